// SPDX-License-Identifier: Apache-2.0
//! What audits find, and when they run.

use super::*;
use kpr_core::plan::ipvs::object::Forwarding;

/// The content of the kernel's listing.
#[derive(Debug, Default)]
pub(super) enum Shown {
    #[default]
    All,
    /// The file does not exist.
    Nothing,
    /// These, followed by a line that cannot be parsed.
    Part(Vec<ListedServer>),
}

impl Fixture {
    /// 101 Services instead of one; reading real servers takes the given time.
    pub(super) fn many_and_slow(&mut self, pace: Duration) {
        let mut services = vec![service("ns/web").port(80)];
        services.extend((0..100).map(|index| {
            let address = format!("10.96.9.{index}");
            service(&format!("ns/other-{index}"))
                .cluster_ips(&[&address])
                .port(80)
        }));
        self.model(Event::ServicesReplaced(services));
        self.work();
        let slow = (self.time.clone(), pace);
        self.lock().slow = Some(slow);
        self.lock().shown = Shown::Nothing;
    }
}

const OUTLINE: ObserveScope = ObserveScope::Summary(AuditDepth::Outline);
const DEEP: ObserveScope = ObserveScope::Summary(AuditDepth::Everything);

#[test]
fn audit_finds_and_repairs_what_others_changed() {
    let mut fixture = Fixture::programmed();
    let address = service("ns/web").cluster_ips[0];
    fixture.lock().kernel.state.addresses.remove(&address);
    let key = rs("10.1.0.6:8080");
    let deleted = ipvs::Step::DeleteRealServer { vs: web(), key };
    fixture.lock().kernel.state.apply(&deleted).unwrap();
    fixture.wait(Duration::from_secs(29));
    assert_eq!(fixture.applied(), Vec::<String>::new());
    fixture.wait(Duration::from_secs(1));
    assert_eq!(fixture.real_servers().len(), 2);
    assert!(fixture.lock().kernel.state.addresses.contains(&address));
    assert_eq!(*fixture.watcher.drift.lock().unwrap(), 2);
    assert_eq!(
        fixture.lock().observations,
        [DEEP],
        "an audit starts no process"
    );
}

#[test]
fn change_does_not_wait_for_the_end_of_an_audit() {
    let mut fixture = Fixture::programmed();
    fixture.many_and_slow(Duration::from_millis(10));
    fixture.wait(Duration::from_secs(30));
    assert!(fixture.lock().audited < 50, "{}", fixture.lock().audited);
    fixture.scale(&["10.1.0.5"]);
    fixture.work();
    assert!(fixture.lock().audited < 50);
    assert_eq!(fixture.real_servers(), [("10.1.0.5:8080", 1)]);
    fixture.finish_audit();
    assert_eq!(fixture.lock().audited, 101);
    assert_eq!(*fixture.watcher.drift.lock().unwrap(), 0);
}

#[test]
fn audit_that_takes_longer_than_its_period_is_finished() {
    let mut fixture = Fixture::programmed();
    fixture.many_and_slow(Duration::from_secs(10));
    fixture.lock().observations.clear();
    fixture.wait(Duration::from_secs(30));
    while fixture.lock().audited < 101 {
        fixture.work();
    }
    assert_eq!(fixture.lock().observations, [DEEP]);
    // It took 130 s. The next one leaves ten times that to other work.
    fixture.wait(Duration::from_mins(20));
    assert_eq!(fixture.lock().observations, [DEEP]);
    fixture.wait(Duration::from_mins(2));
    assert_eq!(fixture.lock().observations.len(), 2);
}

#[test]
fn audit_finds_foreign_servers_where_ours_belong() {
    let mut fixture = Fixture::programmed();
    let (mut kernel, stray) = (fixture.lock().kernel.clone(), rs("10.1.0.9:8080"));
    let server = kernel.state.virtual_servers[&web()].clone();
    let address = service("ns/web").cluster_ips[0];
    let unknown = tcp(&format!("{address}:81"));
    kernel.state.virtual_servers.insert(unknown, server.clone());
    let servers = kernel
        .state
        .virtual_servers
        .get_mut(&web())
        .unwrap()
        .real_servers_mut();
    let weight = *servers.values().next().unwrap();
    servers.insert(stray, weight);
    fixture.lock().kernel = kernel;
    fixture.wait(Duration::from_secs(30));
    fixture.wait(Duration::from_secs(1));
    fixture.work();
    let node = fixture.lock();
    assert_eq!(node.kernel.state.virtual_servers.len(), 1);
    assert_eq!(node.kernel.state.virtual_servers[&web()], server);
}

type Change = Box<dyn Fn(&mut RealServers)>;

/// Changes that other programs may make to the real servers of `ns/web`.
fn changes() -> Vec<(&'static str, Change)> {
    let here = rs("10.1.0.6:8080");
    vec![
        (
            "missing",
            Box::new(move |servers| assert!(servers.remove(&here).is_some())),
        ),
        (
            "extra",
            Box::new(move |servers| {
                let server = *servers.get(&here).unwrap();
                servers.insert(rs("10.1.0.9:8080"), server);
            }),
        ),
        (
            "weight",
            Box::new(move |servers| servers.get_mut(&here).unwrap().weight = 7),
        ),
        (
            "method",
            Box::new(move |servers| {
                servers.get_mut(&here).unwrap().forwarding = Forwarding::Route;
            }),
        ),
    ]
}

#[test]
fn audit_asks_only_about_real_servers_that_are_not_shown_as_believed() {
    for (what, change) in changes() {
        let mut fixture = Fixture::programmed();
        fixture.many_and_slow(Duration::ZERO);
        fixture.lock().shown = Shown::All;
        fixture.wait(Duration::from_secs(30));
        fixture.finish_audit();
        assert_eq!(fixture.lock().audited, 0, "nothing was changed");
        let wanted = fixture.lock().kernel.clone();
        {
            let mut node = fixture.lock();
            let servers = &mut node.kernel.state.virtual_servers;
            change(servers.get_mut(&web()).unwrap().real_servers_mut());
        }
        assert_ne!(fixture.lock().kernel, wanted, "{what}");
        fixture.wait(Duration::from_secs(30));
        fixture.finish_audit();
        assert_eq!(fixture.lock().audited, 1, "{what}");
        assert_eq!(fixture.lock().kernel, wanted, "{what}");
        assert_eq!(*fixture.watcher.drift.lock().unwrap(), 1, "{what}");
    }
}

#[test]
fn audit_believes_the_answer_and_not_what_is_shown() {
    let mut fixture = Fixture::programmed();
    fixture.lock().shown = Shown::Part(vec![(web(), RealServers::new())]);
    fixture.wait(Duration::from_secs(30));
    fixture.finish_audit();
    assert_eq!(fixture.lock().audited, 1);
    assert_eq!(fixture.applied(), Vec::<String>::new());
    assert_eq!(*fixture.watcher.drift.lock().unwrap(), 0);
}

#[test]
fn audit_asks_about_all_that_nothing_is_shown_of() {
    let web_as_it_is = |fixture: &Fixture| {
        let servers = &fixture.lock().kernel.state.virtual_servers;
        Shown::Part(vec![(web(), (*servers[&web()].real_servers).clone())])
    };
    for (shown, asked) in [(None, 101), (Some(()), 100)] {
        let mut fixture = Fixture::programmed();
        fixture.many_and_slow(Duration::ZERO);
        let shown = shown.map_or(Shown::Nothing, |()| web_as_it_is(&fixture));
        fixture.lock().shown = shown;
        for audits in 1..=2 {
            fixture.wait(Duration::from_secs(30));
            fixture.finish_audit();
            assert_eq!(fixture.lock().audited, audits * asked);
        }
        assert_eq!(*fixture.watcher.drift.lock().unwrap(), 0);
    }
}

#[test]
fn audit_leaves_out_rules_that_nobody_changed() {
    let mut fixture = Fixture::in_iptables_mode(&["--iptables-sync-period=30s"]);
    fixture.known_node();
    fixture.model(Event::ServicesReplaced(vec![service("ns/web").port(80)]));
    fixture.model(Event::SlicesReplaced(vec![]));
    fixture.scale(&["10.1.0.5"]);
    fixture.work();
    let wanted = fixture.lock().kernel.state.clone();
    fixture.lock().observations.clear();
    let scopes = |fixture: &mut Fixture<iptables::Planner>, rules: Watched| {
        fixture.lock().rules = rules;
        fixture.lock().kernel.state.node.sysctls.clear();
        fixture.wait(Duration::from_secs(30));
        assert_eq!(fixture.lock().kernel.state, wanted, "the setting is back");
        std::mem::take(&mut fixture.lock().observations)
    };
    let audit = [ObserveScope::Audit];
    assert_eq!(scopes(&mut fixture, Watched::Unchanged), audit);
    let everything = [ObserveScope::Everything];
    assert_eq!(scopes(&mut fixture, Watched::Unsure), everything);
    assert!(scopes(&mut fixture, Watched::Changed).contains(&ObserveScope::Everything));
}

/// After an audit that took 260 ms, of 101 virtual servers.
fn audited_once() -> Fixture {
    let mut fixture = Fixture::programmed();
    fixture.many_and_slow(Duration::from_millis(20));
    fixture.applied();
    fixture.lock().observations.clear();
    fixture.wait(Duration::from_secs(30));
    fixture.finish_audit();
    assert_eq!(std::mem::take(&mut fixture.lock().observations), [DEEP]);
    assert_eq!(std::mem::take(&mut fixture.lock().audited), 101);
    fixture
}

#[test]
fn what_takes_long_is_left_out_of_most_audits() {
    let mut fixture = audited_once();
    let address = service("ns/web").cluster_ips[0];
    fixture.lock().kernel.state.addresses.remove(&address);
    let key = rs("10.1.0.6:8080");
    let deleted = ipvs::Step::DeleteRealServer { vs: web(), key };
    fixture.lock().kernel.state.apply(&deleted).unwrap();
    for _ in 0..4 {
        fixture.wait(Duration::from_secs(30));
        fixture.finish_audit();
    }
    assert_eq!(fixture.applied(), [""; 0]);
    assert_eq!(fixture.lock().audited, 0);
    assert_eq!(
        std::mem::take(&mut fixture.lock().observations),
        [OUTLINE; 4]
    );
    fixture.wait(Duration::from_secs(30));
    fixture.finish_audit();
    assert_eq!(std::mem::take(&mut fixture.lock().observations), [DEEP]);
    assert!(fixture.lock().kernel.state.addresses.contains(&address));
    assert_eq!(fixture.real_servers().len(), 2);
}

#[test]
fn after_drift_everything_is_read() {
    let mut fixture = audited_once();
    let wanted = fixture.lock().kernel.clone();
    let key = rs("10.1.0.6:8080");
    for step in [
        ipvs::Step::DeleteRealServer { vs: web(), key },
        ipvs::Step::DeleteVirtualServer {
            key: tcp("10.96.9.5:80"),
        },
    ] {
        fixture.lock().kernel.state.apply(&step).unwrap();
    }
    for _ in 0..4 {
        fixture.wait(Duration::from_secs(30));
        fixture.finish_audit();
    }
    // The second one finds what the first could not see.
    assert_eq!(fixture.lock().observations, [OUTLINE, DEEP, DEEP, OUTLINE]);
    assert_eq!(fixture.lock().kernel, wanted);
}
