// SPDX-License-Identifier: Apache-2.0
//! Steps that must not follow a failure.

use super::*;
use crate::model::testing::ip;
use crate::plan::ipvs::object::{Forwarding, RealServer, SyncRole, VirtualServer};
use crate::plan::ipvs::set::SetSpec;
use crate::plan::prerequisites::Prerequisites as _;
use crate::plan::ruleset::RuleBatch;
use crate::plan::testing::{rs, tcp};

fn lacking(steps: &[Step]) -> Prerequisites {
    let mut failed = Prerequisites::default();
    for step in steps {
        failed.lack(Phase::Rules, step);
    }
    failed
}

fn add_entry(set: SetName, address: &str) -> Step {
    let entry = SetEntry::Ip(ip(address));
    Step::AddEntry { set, entry }
}

fn ips() -> SetName {
    SetId::IpvsIps.name(IpFamily::V4)
}

fn bind(address: &str) -> Step {
    let address = ip(address);
    Step::AddAddress { address }
}

fn rules() -> Step {
    let edits = Vec::new();
    Step::EditRules(RuleBatch::new(IpFamily::V4, edits))
}

#[test]
fn nothing_is_forbidden_at_first() {
    assert!(!Prerequisites::default().forbid(&bind("10.96.0.1")));
}

#[test]
fn the_link_stays_until_its_daemons_have_stopped() {
    let role = SyncRole::Backup;
    assert!(lacking(&[Step::StopSyncDaemon { role }]).forbid(&Step::DeleteLink));
    assert!(!lacking(&[bind("10.96.0.1")]).forbid(&Step::DeleteLink));
}

#[test]
fn an_address_needs_its_reject_entry() {
    let failed = lacking(&[add_entry(ips(), "10.96.0.1")]);
    assert!(failed.forbid(&bind("10.96.0.1")));
    assert!(!failed.forbid(&bind("10.96.0.2")));
    let other = lacking(&[add_entry(SetId::ClusterIp.name(IpFamily::V4), "10.96.0.1")]);
    assert!(!other.forbid(&bind("10.96.0.1")));
}

#[test]
fn an_address_needs_the_rules_and_the_link() {
    assert!(lacking(&[rules()]).forbid(&bind("10.96.0.1")));
    assert!(lacking(&[Step::CreateLink]).forbid(&bind("10.96.0.1")));
}

#[test]
fn a_reject_entry_stays_with_its_address() {
    let address = ip("10.96.0.1");
    let failed = lacking(&[Step::DeleteAddress { address }]);
    let removal = |at: &str| Step::DeleteEntry {
        set: ips(),
        entry: SetEntry::Ip(ip(at)),
    };
    assert!(failed.forbid(&removal("10.96.0.1")));
    assert!(!failed.forbid(&removal("10.96.0.2")));
}

#[test]
fn an_address_stays_with_its_virtual_server() {
    let key = tcp("10.96.0.1:80");
    let failed = lacking(&[Step::DeleteVirtualServer { key }]);
    let unbind = |at: &str| Step::DeleteAddress { address: ip(at) };
    assert!(failed.forbid(&unbind("10.96.0.1")));
    assert!(!failed.forbid(&unbind("10.96.0.2")));
}

#[test]
fn a_set_replaces_another_only_if_it_is_complete() {
    let new = ips().replacement();
    let swap = Step::SwapSets {
        a: new.clone(),
        b: ips(),
    };
    let created = Step::CreateSet(SetSpec {
        name: new.clone(),
        ..SetSpec::new(SetId::IpvsIps, IpFamily::V4, 10)
    });
    assert!(lacking(&[add_entry(new.clone(), "10.96.0.1")]).forbid(&swap));
    assert!(lacking(std::slice::from_ref(&created)).forbid(&swap));
    assert!(lacking(std::slice::from_ref(&created)).forbid(&add_entry(new.clone(), "10.96.0.1")));
    assert!(lacking(&[created]).forbid(&Step::DestroySet { set: new }));
    assert!(!lacking(&[add_entry(ips(), "10.96.0.1")]).forbid(&swap));
    // The entry of a new address is in the set that could not be swapped in.
    assert!(lacking(&[swap]).forbid(&bind("10.96.0.1")));
}

#[test]
fn rules_need_their_sets() {
    let failed = lacking(&[Step::CreateSet(SetSpec::new(
        SetId::ClusterIp,
        IpFamily::V4,
        10,
    ))]);
    assert!(failed.forbid(&rules()));
}

#[test]
fn real_servers_need_their_virtual_server() {
    let server = VirtualServer {
        scheduler: "rr".into(),
        flags: 0,
        timeout: 0,
        netmask: 32,
    };
    let key = tcp("10.96.0.1:80");
    let failed = lacking(&[Step::AddVirtualServer { key, server }]);
    let add = |vs| Step::AddRealServer {
        vs,
        key: rs("10.0.0.1:80"),
        server: RealServer {
            weight: 1,
            forwarding: Forwarding::Masquerade,
            ..RealServer::default()
        },
    };
    assert!(failed.forbid(&add(key)));
    assert!(!failed.forbid(&add(tcp("10.96.0.1:81"))));
}
