// SPDX-License-Identifier: Apache-2.0
//! The Node object changes, and the proxy follows without ending.

use anyhow::{Result, ensure};

use crate::Test;
use crate::ours;
use kpr_testkit::machine::Machine;
use kpr_testkit::testbed::{Objects, Testbed};
use kpr_testkit::wait;

pub(crate) const TESTS: &[Test] = &[
    ("the_node_is_followed_live", the_node_is_followed_live),
    ("pod_cidrs_are_waited_for", pod_cidrs_are_waited_for),
    ("a_node_of_another_name", a_node_of_another_name),
];

/// Endpoints in two zones, for clients of each.
const HINTED: &str = "apiVersion: v1
kind: Service
metadata: {name: kpr-zones, namespace: default}
spec:
  type: NodePort
  ports: [{name: http, port: 80, nodePort: 30123}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kpr-zones-1, namespace: default, labels: {kubernetes.io/service-name: kpr-zones}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.244.1.1], zone: a, hints: {forZones: [{name: a}]}}
- {addresses: [10.244.2.2], zone: b, hints: {forZones: [{name: b}]}}
";

fn the_node_is_followed_live(testbed: &Testbed) -> Result<()> {
    let _objects = Objects::new(testbed, HINTED);
    let machine = Machine::new(testbed, "kpr-live", 0)?;
    machine.register("{}");
    let mut proxy =
        machine.spawn(machine.with_flags(&ours(), &["--nodeport-addresses=primary"]))?;
    machine.health_becomes(&proxy, 200)?;
    let first = format!("-d {}/32", machine.address);
    machine.rules_become(&proxy, "node ports answer on the node's address", |rules| {
        rules.contains(&first) && rules.contains("10.244.1.1:8080")
    })?;

    // Another zone, other endpoints.
    let label = "topology.kubernetes.io/zone=b";
    testbed.kubectl(&["label", "--overwrite", "node", machine.name, label]);
    machine.rules_become(&proxy, "endpoints of the other zone are used", |rules| {
        rules.contains("10.244.2.2:8080") && !rules.contains("10.244.1.1:8080")
    })?;

    // Another address.
    machine
        .namespace
        .ip("address add 192.0.2.77/24 dev eth0\n")?;
    machine.set_addresses(&["192.0.2.77"]);
    machine.rules_become(&proxy, "node ports answer on the new address", |rules| {
        rules.contains("-d 192.0.2.77/32") && !rules.contains(&first)
    })?;

    // Load balancers shall look elsewhere, and shall not any more.
    let taint = "ToBeDeletedByClusterAutoscaler=1:NoSchedule";
    testbed.kubectl(&["taint", "node", machine.name, taint]);
    machine.health_becomes(&proxy, 503)?;
    ensure!(machine.get(10256, "/livez")?.0 == 200);
    testbed.kubectl(&[
        "taint",
        "node",
        machine.name,
        "ToBeDeletedByClusterAutoscaler-",
    ]);
    machine.health_becomes(&proxy, 200)?;

    // A finalizer keeps it for a while.
    let finalizer = |list: &str| format!(r#"{{"metadata": {{"finalizers": {list}}}}}"#);
    let patch = |list: &str| {
        testbed.kubectl(&[
            "patch",
            "node",
            machine.name,
            "--type=merge",
            "-p",
            &finalizer(list),
        ]);
    };
    patch(r#"["kpr.example.com/wait"]"#);
    testbed.kubectl(&["delete", "--wait=false", "node", machine.name]);
    machine.health_becomes(&proxy, 503)?;
    patch("[]");
    machine.rules_become(&proxy, "the rules stay", |rules| {
        rules.contains("-d 192.0.2.77/32") && rules.contains("10.244.2.2:8080")
    })?;
    machine.register("{}");
    machine.health_becomes(&proxy, 200)?;
    ensure!(proxy.is_running()?, "{}", proxy.log());
    Ok(())
}

fn pod_cidrs_are_waited_for(testbed: &Testbed) -> Result<()> {
    let _objects = Objects::new(testbed, HINTED);
    let machine = Machine::new(testbed, "kpr-pods", 0)?;
    machine.register("{}");
    let flags = [
        "--detect-local-mode=NodeCIDR",
        "--masquerade-all=false",
        "-v=2",
    ];
    let proxy = machine.spawn(machine.with_flags(&ours(), &flags))?;
    // It has seen all other objects, and has not begun.
    wait::until("everything is listed", || {
        let (_, metrics) = machine.get(10249, "/metrics")?;
        let pending = metrics.lines().find_map(|line| {
            line.strip_prefix("kubeproxy_sync_proxy_rules_service_changes_pending ")
        });
        ensure!(pending.is_some_and(|count| count != "0"), "{pending:?}");
        Ok(())
    })?;
    let rules = machine.namespace.run("iptables-save", &["-t", "nat"])?;
    ensure!(!rules.contains("KUBE-SVC"), "{rules}");
    let pods = r#"{"spec": {"podCIDR": "10.244.9.0/24", "podCIDRs": ["10.244.9.0/24"]}}"#;
    testbed.kubectl(&["patch", "node", machine.name, "--type=merge", "-p", pods]);
    machine.rules_become(&proxy, "pods of this node are told apart", |rules| {
        rules.contains("! -s 10.244.9.0/24")
    })
}

/// The flag names a Node that there is not, the kubelet has registered another one: Services are
/// served, and it is said what to do.
fn a_node_of_another_name(testbed: &Testbed) -> Result<()> {
    let _objects = Objects::new(testbed, HINTED);
    let machine = Machine::new(testbed, "kpr-registered", 0)?;
    machine.register("{}");
    let flags = ["--hostname-override=kpr-misnamed"];
    let proxy = machine.spawn(machine.with_flags(&ours(), &flags))?;
    proxy.wait_for_log(&[
        "ERROR",
        "there is no Node object",
        "kpr-misnamed",
        "--hostname-override",
    ])?;
    machine.rules_become(&proxy, "the Service is served", |rules| {
        rules.contains("10.244.1.1:8080")
    })?;
    wait::until("an Event says it", || {
        let of = "--field-selector=reason=NodeIncomplete";
        let events = testbed.kubectl(&["get", "events", "-A", of, "-o", "yaml"]);
        ensure!(events.contains("kpr-misnamed"), "{events}");
        Ok(())
    })
}
