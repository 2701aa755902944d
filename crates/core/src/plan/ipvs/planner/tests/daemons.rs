// SPDX-License-Identifier: Apache-2.0
//! Sync daemons: started last, kept, and stopped if they are ours.

use super::*;
use crate::plan::ipvs::object::{SyncDaemon, SyncRole};
use crate::plan::leftovers::{cleanup, teardown};
use crate::plan::testing::fake::Fault;

pub(super) fn daemon(sync_id: u32) -> SyncDaemon {
    SyncDaemon {
        interface: "eth0".into(),
        link: Some(3),
        sync_id,
        group: "224.0.0.81".parse().unwrap(),
        port: 8848,
        ttl: 1,
        max_length: 0,
    }
}

fn with(proxy: &mut Proxy, sync: Option<SyncDaemon>) {
    let mut context = proxy.planner.context().clone();
    context.sync = sync;
    proxy.planner.set_context(context, &proxy.tracker).unwrap();
}

/// What a restarted proxy does with another setting.
fn restarted(proxy: &Proxy, sync: Option<SyncDaemon>) -> (Proxy, Vec<String>) {
    let mut next = proxy.restarted();
    with(&mut next, sync);
    let plan = next.sync();
    let about = lines(&plan).into_iter();
    (next, about.filter(|line| line.contains("daemon")).collect())
}

fn started(sync_id: u32) -> [String; 2] {
    ["master", "backup"].map(|role| {
        format!("start sync daemon {role} on eth0 to 224.0.0.81:8848 id {sync_id} ttl 1")
    })
}

fn stopped() -> [String; 2] {
    ["master", "backup"].map(|role| format!("stop sync daemon {role}"))
}

fn of_others(proxy: &mut Proxy, role: SyncRole, sync_id: u32) {
    let theirs = SyncDaemon {
        link: None,
        ..daemon(sync_id)
    };
    proxy.kernel.state.node.daemons.insert(role, theirs);
    proxy.observe();
}

#[test]
fn they_start_when_there_are_servers() {
    let tracker = tracker(
        vec![service("ns/web").port(80)],
        vec![web(vec![endpoint("10.0.1.1")])],
    );
    let context = Context {
        sync: Some(daemon(7)),
        ..context(IpFamily::V4)
    };
    let mut proxy = Proxy::start(context, tracker, State::default());
    let first = proxy.planner.plan_first(&[]).unwrap();
    assert!(!lines(&first).iter().any(|line| line.contains("daemon")));
    let all = lines(&proxy.sync());
    assert_eq!(all[all.len() - 2..], started(7));
    assert!(proxy.restarted().sync().is_empty());
}

#[test]
fn the_second_family_leaves_them_to_the_first() {
    let context = Context {
        sync: Some(daemon(7)),
        owns_node: false,
        ..context(IpFamily::V6)
    };
    let mut proxy = Proxy::start(context, tracker(vec![], vec![]), State::default());
    assert!(!proxy.sync().to_string().contains("daemon"));
}

#[test]
fn they_follow_the_setting_also_over_a_restart() {
    let (mut proxy, steps) = restarted(&serving_one(), Some(daemon(1)));
    assert_eq!(steps, started(1));
    // The kernel says how long its messages are.
    let running = &mut proxy.kernel.state.node.daemons;
    running.get_mut(&SyncRole::Master).unwrap().max_length = 1472;
    let (proxy, steps) = restarted(&proxy, Some(daemon(1)));
    assert_eq!(steps, [""; 0]);
    let (proxy, steps) = restarted(&proxy, Some(daemon(2)));
    assert_eq!(steps, [stopped(), started(2)].concat());
    let longer = SyncDaemon {
        max_length: 9000,
        ..daemon(2)
    };
    let (proxy, steps) = restarted(&proxy, Some(longer));
    assert_eq!(steps.len(), 4, "{steps:?}");
    let (proxy, steps) = restarted(&proxy, None);
    assert_eq!(steps, stopped());
    assert!(proxy.kernel.state.node.daemons.is_empty());
}

#[test]
fn they_move_to_a_new_interface_of_the_same_name() {
    let (proxy, _) = restarted(&serving_one(), Some(daemon(1)));
    let new = SyncDaemon {
        link: Some(4),
        ..daemon(1)
    };
    let (_, steps) = restarted(&proxy, Some(new));
    assert_eq!(steps, [stopped(), started(1)].concat());
}

#[test]
fn a_daemon_that_others_stop_is_started_again() {
    let mut proxy = serving_one();
    with(&mut proxy, Some(daemon(1)));
    proxy.sync();
    proxy.kernel.state.node.daemons.remove(&SyncRole::Backup);
    proxy.observe();
    assert_eq!(lines(&proxy.sync()), [started(1)[1].clone()]);
}

#[test]
fn daemons_of_others_stay_unless_ours_take_their_place() {
    let mut proxy = serving_one();
    of_others(&mut proxy, SyncRole::Backup, 9);
    assert!(proxy.sync().is_empty());
    let plan = cleanup::servers(&proxy.kernel.state, &cleanup::Facts::default());
    assert!(!plan.to_string().contains("daemon"), "{plan}");
    with(&mut proxy, Some(daemon(1)));
    let [master, backup] = started(1);
    let [_, stopped_backup] = stopped();
    assert_eq!(lines(&proxy.sync()), [stopped_backup, master, backup]);
}

#[test]
fn ours_go_before_the_link_that_says_so() {
    let (proxy, _) = restarted(&serving_one(), Some(daemon(1)));
    let mut state = proxy.kernel.state;
    let plan = cleanup::servers(&state, &cleanup::Facts::default());
    state.addresses.clear();
    let link = teardown::link(&[(IpFamily::V4, state)].into());
    for plan in [plan, link] {
        let text = plan.ordered().to_string();
        let at = |what: &str| text.find(what).unwrap();
        let deleted = at("delete link");
        assert!(stopped().iter().all(|it| at(it) < deleted), "{text}");
    }
}

#[test]
fn one_that_another_program_started_meanwhile_is_replaced() {
    let mut proxy = serving_one();
    with(&mut proxy, Some(daemon(1)));
    // Not observed: the kernel says that it exists.
    let theirs = SyncDaemon {
        link: None,
        ..daemon(9)
    };
    let daemons = &mut proxy.kernel.state.node.daemons;
    daemons.insert(SyncRole::Backup, theirs);
    proxy.try_sync(|_| None);
    let [_, stopped_backup] = stopped();
    let [_, backup] = started(1);
    assert_eq!(lines(&proxy.sync()), [stopped_backup, backup]);
}

#[test]
fn what_the_kernel_refuses_is_not_tried_in_every_round() {
    let mut proxy = serving_one();
    with(&mut proxy, Some(daemon(1)));
    let refused = |step: &Step| {
        let is_backup = matches!(
            step,
            Step::StartSyncDaemon {
                role: SyncRole::Backup,
                ..
            }
        );
        is_backup.then_some(Fault::Unsupported)
    };
    let [_, backup] = started(1);
    proxy.try_sync(refused);
    assert!(proxy.planner.is_pending(), "it is tried again");
    assert_eq!(
        lines(&proxy.try_sync(refused)),
        std::slice::from_ref(&backup)
    );
    assert!(!proxy.planner.is_pending());
    assert!(proxy.try_sync(refused).is_empty());
    // An audit compares everything.
    proxy.observe();
    assert_eq!(lines(&proxy.sync()), [backup]);
}
