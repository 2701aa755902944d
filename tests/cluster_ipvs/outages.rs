// SPDX-License-Identifier: Apache-2.0
//! The API server goes away and comes back, its history is lost, the proxy is killed: the kernel
//! stays as it is meanwhile, and nothing is missed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::Test;
use crate::objects::{real_servers, service, slice, slices};
use crate::oracle::Lines;
use crate::world::{NAMESPACE, POD, World};
use kpr_testkit::testbed::{Restart, Testbed};
use kpr_testkit::wait::{must, throughout};

pub(crate) const TESTS: &[Test] = &[
    (
        "an_api_server_that_is_away_changes_nothing",
        an_api_server_that_is_away_changes_nothing,
    ),
    (
        "changes_under_a_dying_api_server_all_arrive",
        changes_under_a_dying_api_server_all_arrive,
    ),
    (
        "an_expired_watch_finds_what_it_missed",
        an_expired_watch_finds_what_it_missed,
    ),
    (
        "a_killed_proxy_finds_everything_in_place",
        a_killed_proxy_finds_everything_in_place,
    ),
];

/// A Service whose only endpoint is the pod that sends back what it gets, and a connection to it.
fn connected(world: &mut World) -> String {
    let pod = format!("{POD} kpr-guest");
    world.create(&(service("echo", "") + &slice("echo", &[&pod])));
    world.agree();
    let address = world.cluster_ips("echo")[0];
    world.talk(&format!("{address}:80"))
}

fn an_api_server_that_is_away_changes_nothing(world: &mut World) {
    let talk = connected(world);
    world.create(&(service("web", "type: NodePort, ") + &slices("web") + &service("goes", "")));
    world.agree();
    // A server that stops in good order withdraws its own endpoint.
    let itself = format!("-> {} ", world.testbed.api_server());
    let seen = |world: &mut World| -> Lines {
        let lines = world.kernel().lines;
        lines
            .into_iter()
            .filter(|line| !line.contains(&itself))
            .collect()
    };
    let before = seen(world);
    let testbed = Testbed::clone(&world.testbed);
    let restart = Restart(&testbed);
    testbed.apiserver("stop");
    throughout(Duration::from_secs(30), || {
        assert_eq!(seen(world), before);
        world.answers_go_on(&talk);
    });
    world
        .guest
        .run("curl -sSf --max-time 20 http://127.0.0.1:10256/healthz");
    drop(restart);

    world.create(&(service("late", "") + &slices("late")));
    world.apply(&slice("web", &["10.1.0.12 kpr-guest"]));
    world.kubectl("delete service goes");
    let lines = world.agree();
    for (name, servers) in [("late", 2), ("web", 1), ("echo", 1)] {
        let address = world.cluster_ips(name)[0];
        assert_eq!(
            real_servers(&lines, "TCP", address, 80).len(),
            servers,
            "{name}"
        );
    }
    world.answers_go_on(&talk);
}

fn changes_under_a_dying_api_server_all_arrive(world: &mut World) {
    const CHANGES: usize = 15;
    let testbed = Testbed::clone(&world.testbed);
    let done = AtomicUsize::new(0);
    thread::scope(|scope| {
        let changer = scope.spawn(|| {
            for number in 0..CHANGES {
                change(&testbed, number);
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
        for number in [2, 6, 10] {
            must("some changes are made", || {
                // When it has failed, its own message is the one to see.
                if done.load(Ordering::Relaxed) >= number || changer.is_finished() {
                    return Ok(());
                }
                Err("too few".to_owned())
            });
            testbed.kill_apiserver();
            testbed.apiserver("start");
        }
    });
    let lines = world.agree();
    for number in 0..CHANGES {
        if number % 3 == 0 {
            continue;
        }
        let address = world.cluster_ips(&format!("web-{number}"))[0];
        let wanted = if number % 3 == 1 { 1 } else { 2 };
        assert_eq!(
            real_servers(&lines, "TCP", address, 80).len(),
            wanted,
            "web-{number}"
        );
    }
}

/// Makes a Service; one of three goes at once, one loses an endpoint. All is tried until it works.
fn change(testbed: &Testbed, number: usize) {
    let name = format!("web-{number}");
    let persist = |arguments: &[&str], input: &str| {
        must("kubectl succeeds", || {
            let all = [
                &["--namespace", NAMESPACE, "--request-timeout=10s"],
                arguments,
            ]
            .concat();
            let output = testbed.kubectl_as("admin", &all, input);
            if output.status.success() {
                return Ok(());
            }
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        });
    };
    let apply = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
    persist(&apply, &(service(&name, "") + &slices(&name)));
    match number % 3 {
        0 => {
            let (service, slices) = (
                format!("service/{name}"),
                format!("endpointslice/{name}-ipv4"),
            );
            persist(&["delete", "--ignore-not-found", &service, &slices], "");
        }
        1 => persist(&apply, &slice(&name, &["10.2.0.11 kpr-far"])),
        _ => {}
    }
}

fn an_expired_watch_finds_what_it_missed(world: &mut World) {
    world.create(&(service("web", "") + &slices("web") + &service("lost", "") + &slices("lost")));
    world.agree();
    let lost = world.cluster_ips("lost")[0];
    let web = world.cluster_ips("web")[0];
    let testbed = Testbed::clone(&world.testbed);
    let restart = Restart(&testbed);
    testbed.kill_apiserver();
    // Behind the server's back a Service and a slice are deleted, and history moves on and is
    // forgotten: the version at which the proxy's watches stand is older than all that is known.
    testbed.delete_from_etcd(&format!("/registry/services/specs/{NAMESPACE}/lost"));
    testbed.delete_from_etcd(&format!("/registry/endpointslices/{NAMESPACE}/web-ipv4"));
    let answer: Value = serde_json::from_str(&testbed.move_history_on()).unwrap();
    let revision = answer["header"]["revision"].as_str().unwrap();
    testbed.etcd(
        "/v3/kv/compaction",
        &format!(r#"{{"revision": "{revision}", "physical": true}}"#),
    );
    drop(restart);
    let lines = world.agree();
    let log = world.log();
    assert!(
        log.contains("too old resource version"),
        "no watch has expired:\n{log}"
    );
    assert!(!lines.iter().any(|line| line.contains(&lost.to_string())));
    assert!(real_servers(&lines, "TCP", web, 80).is_empty());
    world.create(&service("late", ""));
    world.apply(&slice("web", &["10.1.0.12 kpr-guest"]));
    let lines = world.agree();
    assert_eq!(real_servers(&lines, "TCP", web, 80), ["10.1.0.12:8080"]);
}

fn a_killed_proxy_finds_everything_in_place(world: &mut World) {
    let talk = connected(world);
    world.create(&(service("web", "type: NodePort, ") + &slices("web")));
    let before = world.agree();
    world.kill_proxy();
    world.answers_go_on(&talk);
    world.check_plan();
    world.start_proxy();
    must("the proxy has looked at the kernel", || {
        let answer = world
            .guest
            .answer("curl -sSf --max-time 20 http://127.0.0.1:10249/metrics");
        let rounds = "kubeproxy_sync_proxy_rules_duration_seconds_count";
        let families = answer
            .stdout
            .lines()
            .filter(|line| line.starts_with(rounds) && !line.ends_with(" 0"));
        if families.count() == 2 {
            Ok(())
        } else {
            Err(answer.stderr)
        }
    });
    // It shows the last plan that had a step in it.
    let state: Value = serde_json::from_str(&world.ask_proxy("/state")).unwrap();
    assert_eq!(state["lastPlan"], serde_json::json!({}));
    assert_eq!(world.agree(), before);
    world.answers_go_on(&talk);

    // What happens while it is away is made up for, and nothing else is touched.
    world.kill_proxy();
    world.create(&(service("late", "") + &slices("late")));
    world.apply(&slice("web", &["10.1.0.12 kpr-guest"]));
    world.guest.run("ipvsadm -a -t 203.0.113.99:99 -r 203.0.113.101:99 -m; ipvsadm -d -t 203.0.113.99:99 -r 203.0.113.101:99");
    world.start_proxy();
    let lines = world.agree();
    let late = world.cluster_ips("late")[0];
    assert_eq!(real_servers(&lines, "TCP", late, 80).len(), 2);
    world.answers_go_on(&talk);
}
