// SPDX-License-Identifier: Apache-2.0
//! Settings that change while the loop runs lead where a start with them leads.

use super::*;

fn objects(fixture: &mut Fixture) {
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

/// What the kernel holds after a start with these flags.
fn started(flags: &[&str]) -> Fixture {
    let mut fixture = Fixture::with(flags);
    fixture.lock().addresses = ["192.0.2.1", "192.0.2.2"].map(ip).into();
    fixture.reconciler.take_in(Input::NodeAddresses);
    objects(&mut fixture);
    fixture.wait(Duration::from_secs(10));
    fixture
}

/// What changes with settings. A setting of the kernel that is no longer wanted stays, since nobody knows what it was
/// before, and with it the rule that guards it.
fn changing(fixture: &Fixture) -> State {
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
fn leads_where_a_start_leads(mode: &str, flag: &str) {
    let mode = format!("--proxy-mode={mode}");
    let mut live = started(&[&mode]);
    let before = changing(&live);
    let fresh = started(&[&mode, flag]);
    live.reconciler
        .take_in(Input::Settings(fresh.reconciler.settings.clone()));
    live.wait(Duration::from_secs(10));
    assert_eq!(changing(&live), changing(&fresh), "{flag}");
    assert_ne!(changing(&live), before, "{flag} has no effect");

    let back = started(&[&mode]);
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
        leads_where_a_start_leads("ipvs", flag);
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
        leads_where_a_start_leads("iptables", flag);
    }
}

#[test]
fn periods_change_at_once() {
    let mut fixture = started(&["--proxy-mode=ipvs", "--ipvs-sync-period=10m"]);
    let shorter = started(&["--proxy-mode=ipvs", "--ipvs-sync-period=20s"]);
    fixture.work();
    fixture.lock().observations.clear();
    fixture
        .reconciler
        .take_in(Input::Settings(shorter.reconciler.settings.clone()));
    fixture.work();
    fixture.wait(Duration::from_secs(21));
    assert_eq!(fixture.lock().observations, [Extent::Outline]);
}
