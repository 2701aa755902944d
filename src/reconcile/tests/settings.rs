// SPDX-License-Identifier: Apache-2.0
//! Settings that change while the loop runs have the same result as a start with them.

use super::*;

fn objects<P: Planner>(fixture: &mut Fixture<P>)
where
    Shared: Kernel<P>,
{
    fixture.known_node();
    let web = service("ns/web")
        .port(80)
        .node_port(30_080)
        .vip("198.51.100.1")
        .external_ip("203.0.113.1");
    fixture.model(Event::ServicesReplaced(vec![web]));
    let endpoints = vec![endpoint("10.1.0.5").local(), endpoint("10.1.0.6")];
    fixture.model(Event::SlicesReplaced(vec![
        slice("ns/web", "a", endpoints).port(8080),
    ]));
}

/// The state of the kernel after a start with these flags.
fn started<P: Planner>(start: fn(&[&str]) -> Fixture<P>, flags: &[&str]) -> Fixture<P>
where
    Shared: Kernel<P>,
{
    let mut fixture = start(flags);
    fixture.lock().addresses = ["192.0.2.1", "192.0.2.2"].map(ip).into();
    fixture.reconciler.take_in(Input::NodeAddresses);
    objects(&mut fixture);
    fixture.wait(Duration::from_secs(10));
    fixture
}

/// What changes with settings. A kernel setting that is no longer wanted stays, since its previous
/// value is unknown, and with it the rule that guards it.
fn changing<P: Planner>(fixture: &Fixture<P>) -> State
where
    Shared: Kernel<P>,
{
    let mut state = fixture.lock().kernel.state.clone();
    state.node.sysctls.clear();
    for rules in state.rules.chains.values_mut() {
        rules.retain(|rule| rule.as_str() != "-j KUBE-FIREWALL");
    }
    state
        .rules
        .chains
        .retain(|(_, chain), rules| chain.as_str() != "KUBE-FIREWALL" && !rules.is_empty());
    state
}

#[track_caller]
fn leads_where_a_start_leads<P: Planner>(start: fn(&[&str]) -> Fixture<P>, mode: &str, flag: &str)
where
    Shared: Kernel<P>,
{
    let mode = format!("--proxy-mode={mode}");
    let mut live = started(start, &[&mode]);
    let before = changing(&live);
    let fresh = started(start, &[&mode, flag]);
    live.reconciler
        .take_in(Input::Settings(fresh.reconciler.settings.clone()));
    live.wait(Duration::from_secs(10));
    assert_eq!(changing(&live), changing(&fresh), "{flag}");
    assert_ne!(changing(&live), before, "{flag} has no effect");

    let back = started(start, &[&mode]);
    live.reconciler
        .take_in(Input::Settings(back.reconciler.settings.clone()));
    live.wait(Duration::from_secs(10));
    assert_eq!(changing(&live), before, "{flag} and back");
}

#[test]
fn ipvs_mode_takes_in_settings() {
    for flag in [
        "--ipvs-scheduler=lc",
        "--nodeport-addresses=192.0.2.1/32",
        "--masquerade-all",
        "--iptables-masquerade-bit=3",
        "--cluster-cidr=10.1.0.0/16",
    ] {
        leads_where_a_start_leads(Fixture::with, "ipvs", flag);
    }
}

#[test]
fn iptables_mode_takes_in_settings() {
    for flag in [
        "--nodeport-addresses=192.0.2.1/32",
        "--masquerade-all",
        "--iptables-masquerade-bit=3",
        "--cluster-cidr=10.1.0.0/16",
        "--conntrack-tcp-be-liberal",
    ] {
        leads_where_a_start_leads(Fixture::in_iptables_mode, "iptables", flag);
    }
}

#[test]
fn periods_change_at_once() {
    let mut fixture = started(
        Fixture::with,
        &["--proxy-mode=ipvs", "--ipvs-sync-period=10m"],
    );
    let shorter = started(
        Fixture::with,
        &["--proxy-mode=ipvs", "--ipvs-sync-period=20s"],
    );
    fixture.work();
    fixture.lock().observations.clear();
    fixture
        .reconciler
        .take_in(Input::Settings(shorter.reconciler.settings.clone()));
    fixture.work();
    fixture.wait(Duration::from_secs(21));
    assert_eq!(
        fixture.lock().observations,
        [ObserveScope::Summary(AuditDepth::Everything)]
    );
}

#[test]
fn rules_for_the_end_of_ipvs_mode_end_with_it() {
    let previous = Shared::default();
    // An address without a virtual server is deleted in the first attempt.
    let address = service("ns/web").cluster_ips[0];
    {
        let state = &mut previous.lock().unwrap().kernel.state;
        state.node.link_exists = true;
        state.addresses.insert(address);
    }
    let mut fixture = Fixture::after(Some(previous.clone()));
    let from_itself = format!("-s {address}/32 ");
    let has_rule = |fixture: &Fixture<iptables::Planner>| {
        let node = fixture.lock();
        let mut rules = node.kernel.state.rules.chains.values().flatten();
        rules.any(|rule| rule.as_str().contains(&from_itself))
    };
    let refused = ("delete-address", Fault::Refused);
    previous.lock().unwrap().troubles.push_back(refused);
    fixture.known_node();
    fixture.model(Event::ServicesReplaced(vec![service("ns/web").port(80)]));
    fixture.model(Event::SlicesReplaced(vec![]));
    fixture.scale(&["10.1.0.5"]);
    fixture.work();
    assert!(has_rule(&fixture));
    for _ in 0..3 {
        fixture.wait(Duration::from_secs(15));
    }
    assert!(previous.lock().unwrap().kernel.state.addresses.is_empty());
    assert!(!has_rule(&fixture));
}
