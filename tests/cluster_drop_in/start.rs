// SPDX-License-Identifier: Apache-2.0
//! The start in kube-proxy's place, and what is told as Events.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::Test;
use crate::ours;
use kpr_testkit::machine::Machine;
use kpr_testkit::testbed::{Objects, Testbed};
use kpr_testkit::wait;

pub(crate) const TESTS: &[Test] = &[
    (
        "kubeadms_config_map_and_command_line_start_it",
        kubeadms_config_map_and_command_line_start_it,
    ),
    ("what_goes_wrong_is_told", what_goes_wrong_is_told),
];

fn kubeadms_config_map_and_command_line_start_it(testbed: &Testbed) -> Result<()> {
    let machine = Machine::new(testbed, "kpr-kubeadm", 0)?;
    machine.register("{}");
    let proxy = machine.spawn(machine.as_kubeadm_does(&ours()))?;
    let body = machine.health_becomes(&proxy, 200)?;
    let health: Value = serde_json::from_str(&body)?;
    ensure!(
        health["nodeEligible"] == true && health["status"]["IPv4"]["healthy"] == true,
        "{body}"
    );
    // The API server is reached through its Service.
    machine.rules_become(&proxy, "the API server has rules", |rules| {
        rules.contains(
            "-d 10.96.0.1/32 -p tcp -m comment --comment \"default/kubernetes:https cluster IP\"",
        )
    })?;
    ensure!(machine.get(10249, "/proxyMode")? == (200, "iptables".to_owned()));
    let (_, configz) = machine.get(10249, "/configz")?;
    let configz: Value = serde_json::from_str(&configz)?;
    let configuration = &configz["kubeproxy.config.k8s.io"];
    ensure!(configuration["clusterCIDR"] == "10.244.0.0/16", "{configz}");

    let started = event(testbed, "default", "Node", machine.name, "Starting")?;
    ensure!(started["type"] == "Normal", "{started}");
    ensure!(started["reportingController"] == "kube-proxy", "{started}");
    let instance = started["reportingInstance"].as_str().unwrap_or_default();
    ensure!(instance.starts_with("kube-proxy-"), "{started}");
    ensure!(started["action"] == "StartKubeProxy", "{started}");
    // The role was enough for all of it.
    let (_, metrics) = machine.get(10249, "/metrics")?;
    let refused: Vec<&str> = metrics
        .lines()
        .filter(|line| line.starts_with("rest_client_requests_total"))
        .filter(|line| line.contains("code=\"401\"") || line.contains("code=\"403\""))
        .collect();
    ensure!(refused.is_empty(), "{refused:?}");
    let score = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", proxy.pid()))?;
    // Not everybody may lower it; who may not says so.
    ensure!(
        score.trim() == "-999" || proxy.log().contains("failed to set oomScoreAdj"),
        "oom_score_adj is {score}"
    );
    Ok(())
}

const CLASHING: &str = "apiVersion: v1
kind: Service
metadata: {name: kpr-older, namespace: default}
spec: {externalIPs: [203.0.113.7], ports: [{name: http, port: 80}]}
";
const CLASHES: &str = "apiVersion: v1
kind: Service
metadata: {name: kpr-younger, namespace: default}
spec: {externalIPs: [203.0.113.7], ports: [{name: http, port: 80}]}
";

fn what_goes_wrong_is_told(testbed: &Testbed) -> Result<()> {
    // Those of another run have the same names.
    testbed.kubectl(&["delete", "events", "--all", "-n", "default"]);
    let machine = Machine::new(testbed, "kpr-told", 0)?;
    machine.register("{}");
    let proxy = machine.spawn(machine.with_flags(&ours(), &["--cluster-cidr=fd00::/8"]))?;
    machine.health_becomes(&proxy, 200)?;
    event(
        testbed,
        "default",
        "Node",
        machine.name,
        "DoubtfulConfiguration",
    )?;
    let _older = Objects::new(testbed, CLASHING);
    // Ages are whole seconds; of the same age, the name decides.
    let _younger = Objects::new(testbed, CLASHES);
    let clash = event(
        testbed,
        "default",
        "Service",
        "kpr-younger",
        "AddressConflict",
    )?;
    let note = clash["note"].as_str().unwrap_or_default();
    ensure!(note.contains("default/kpr-older:http holds it"), "{clash}");
    let uid = testbed.kubectl(&[
        "get",
        "service",
        "kpr-younger",
        "-o",
        "jsonpath={.metadata.uid}",
    ]);
    ensure!(clash["regarding"]["uid"] == uid, "{clash}");
    drop(proxy);

    // Somebody has the port, and the operator wants to know.
    let taken = machine
        .namespace
        .enter(|| std::net::TcpListener::bind("127.0.0.1:10249"))??;
    let mut refused = machine.spawn(machine.with_flags(&ours(), &["--bind-address-hard-fail"]))?;
    let (status, log) = refused.wait()?;
    ensure!(!status.success(), "{log}");
    event(
        testbed,
        "default",
        "Node",
        machine.name,
        "FailedToStartMetricServer",
    )?;
    drop(taken);
    Ok(())
}

/// Waits for an event about an object.
fn event(
    testbed: &Testbed,
    namespace: &str,
    kind: &str,
    name: &str,
    reason: &str,
) -> Result<Value> {
    wait::until(&format!("{kind} {name} has an event {reason}"), || {
        let arguments = [
            "get",
            "events.v1.events.k8s.io",
            "-n",
            namespace,
            "-o",
            "json",
        ];
        let list: Value = serde_json::from_str(&testbed.kubectl(&arguments))?;
        let events = list["items"].as_array().cloned().unwrap_or_default();
        let is_it = |event: &Value| {
            let regarding = &event["regarding"];
            regarding["kind"] == kind && regarding["name"] == name && event["reason"] == reason
        };
        events
            .iter()
            .find(|event| is_it(event))
            .cloned()
            .with_context(|| format!("there are {}", Value::from(events)))
    })
}
