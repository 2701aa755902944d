// SPDX-License-Identifier: Apache-2.0
//! Our metrics beside those of a real kube-proxy that has the same configuration and the same
//! objects: names, types, labels, buckets.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::Test;
use crate::ours;
use kpr_testkit::machine::Machine;
use kpr_testkit::proxy::Proxy;
use kpr_testkit::testbed::{Objects, Testbed};
use kpr_testkit::wait;

pub(crate) const TESTS: &[Test] = &[("metrics_are_kube_proxys", metrics_are_kube_proxys)];

/// What kube-proxy shows and we do not, by the start of the name.
const THEIRS_ALONE: &[&str] = &[
    // Go's runtime.
    "go_",
    // Its client library: exec plugins, transports, its rate limiter. The two that dashboards use
    // are ours too.
    "rest_client_exec_plugin_",
    "rest_client_rate_limiter_duration_seconds",
    "rest_client_request_retries_total",
    "rest_client_request_size_bytes",
    "rest_client_response_size_bytes",
    "rest_client_transport_",
    // Its metrics library, and what is linked in from the API server's.
    "aggregator_",
    "apiserver_",
    "authentication_",
    "authorization_",
    "cardinality_enforcement_unexpected_categorizations_total",
    "disabled_metrics_total",
    "hidden_metrics_total",
    "registered_metrics_total",
    "informer_",
    "reflector_",
    "workqueue_",
    // Gates of components: ours are few, and `check-config` says which have an effect.
    "kubernetes_feature_enabled",
    // Packets that nfacct objects count, which our rules do not have.
    "kubeproxy_iptables_ct_state_invalid_dropped_packets_total",
    "kubeproxy_iptables_localhost_nodeports_accepted_packets_total",
];
/// What we show and kube-proxy does not.
const OURS_ALONE: &[&str] = &[
    "kube_proxy_rs_",
    "process_threads",
    // kube-proxy's too, but it has no series before an endpoint of UDP has changed; we look at
    // flows at start as well.
    "kubeproxy_conntrack_reconciler_",
];

/// Every selector of the panels and rules of kubernetes-mixin, but `up` (which Prometheus makes)
/// and goroutines.
const PANELS: &[(&str, &[&str])] = &[
    ("kubeproxy_sync_proxy_rules_duration_seconds_count", &[]),
    (
        "kubeproxy_sync_proxy_rules_duration_seconds_bucket",
        &["le"],
    ),
    ("kubeproxy_network_programming_duration_seconds_count", &[]),
    (
        "kubeproxy_network_programming_duration_seconds_bucket",
        &["le"],
    ),
    ("rest_client_requests_total", &["code=\"200\""]),
    (
        "rest_client_request_duration_seconds_bucket",
        &["verb=\"POST\"", "le"],
    ),
    (
        "rest_client_request_duration_seconds_bucket",
        &["verb=\"GET\"", "le"],
    ),
    ("process_resident_memory_bytes", &[]),
    ("process_cpu_seconds_total", &[]),
    // OpenShift's alerts.
    (
        "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
        &[],
    ),
    ("kubeproxy_sync_proxy_rules_last_timestamp_seconds", &[]),
];

fn metrics_are_kube_proxys(testbed: &Testbed) -> Result<()> {
    let real = Path::new(testbed.env("BIN")).join("kube-proxy");
    ensure!(real.exists(), "build it: hack/testbed/build kube-proxy");
    let mut scrapes = Vec::new();
    let mine = Machine::new(testbed, "kpr-ours", 0)?;
    let theirs = Machine::new(testbed, "kpr-theirs", 1)?;
    // A table size that a namespace may not write ends kube-proxy.
    let conntrack = [
        ("maxPerCore: null", "maxPerCore: 0"),
        ("min: null", "min: 0"),
    ];
    let mut running = Vec::new();
    for (machine, program) in [(&mine, ours()), (&theirs, real)] {
        machine.configure(&conntrack)?;
        machine.register("{}");
        running.push((machine, machine.spawn(machine.as_kubeadm_does(&program))?));
    }
    let _objects = Objects::new(testbed, &objects("10.244.1.1"));
    for (machine, proxy) in &running {
        machine.health_becomes(proxy, 200)?;
        ensure!(machine.get(10256, "/livez")?.0 == 200);
        machine.rules_become(proxy, "the Service has rules", |rules| {
            rules.contains("10.244.1.1:8080")
        })?;
    }
    // A change makes a partial round.
    testbed.apply(&objects("10.244.1.2"));
    for (machine, proxy) in &running {
        machine.rules_become(proxy, "the Service has other rules", |rules| {
            rules.contains("10.244.1.2:8080")
        })?;
        scrapes.push(scrape(machine, proxy)?);
    }
    let [mine, theirs] = scrapes.as_slice() else {
        unreachable!("there are two")
    };
    let differences = differences(mine, theirs);
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    for (name, labels) in PANELS {
        let is_it = |line: &&str| {
            line.split(['{', ' ']).next() == Some(name)
                && labels.iter().all(|label| line.contains(label))
        };
        ensure!(
            mine.text.lines().any(|line| is_it(&line)),
            "a panel is empty: {name} {labels:?}"
        );
    }
    Ok(())
}

/// A Service with one endpoint that changed just now, and one with policy Local and none here.
fn objects(endpoint: &str) -> String {
    let now = jiff::Timestamp::now();
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: kpr-counted, namespace: default}}
spec: {{ports: [{{name: http, port: 80}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: kpr-elsewhere, namespace: default}}
spec: {{type: NodePort, internalTrafficPolicy: Local, externalTrafficPolicy: Local, ports: [{{name: http, port: 80}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: kpr-counted-1
  namespace: default
  labels: {{kubernetes.io/service-name: kpr-counted}}
  annotations: {{endpoints.kubernetes.io/last-change-trigger-time: \"{now}\"}}
addressType: IPv4
ports: [{{name: http, port: 8080}}]
endpoints: [{{addresses: [{endpoint}]}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: kpr-elsewhere-1, namespace: default, labels: {{kubernetes.io/service-name: kpr-elsewhere}}}}
addressType: IPv4
ports: [{{name: http, port: 8080}}]
endpoints: [{{addresses: [10.244.7.7]}}]
"
    )
}

struct Scrape {
    text: String,
    families: BTreeMap<String, Family>,
}

/// One metric.
#[derive(Debug, Default, PartialEq)]
struct Family {
    kind: String,
    /// Each set of names that some series has.
    labels: BTreeSet<BTreeSet<String>>,
    /// Upper limits, as they are printed by Go.
    buckets: BTreeSet<String>,
}

fn scrape(machine: &Machine<'_>, proxy: &Proxy) -> Result<Scrape> {
    // Both have measured what was triggered after their start.
    let name = "kubeproxy_network_programming_duration_seconds_count";
    wait::until("changes were measured", || {
        let (code, headers, text) = machine.ask(10249, "/metrics")?;
        ensure!(code == 200, "it is {code}");
        ensure!(text.contains(name), "there is no {name}");
        let start: f64 = headers
            .get("process-start-time-unix")
            .context("no start time")?
            .parse()?;
        ensure!(start > 1e9, "it started at {start}");
        let kind = headers.get("content-type").context("no type")?;
        ensure!(
            kind == "text/plain; version=0.0.4; charset=utf-8; escaping=underscores",
            "it is {kind}"
        );
        Ok(Scrape {
            families: parse(&text)?,
            text,
        })
    })
    .with_context(|| format!("the log:\n{}", proxy.log()))
}

fn parse(text: &str) -> Result<BTreeMap<String, Family>> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(typed) = line.strip_prefix("# TYPE ") {
            let (name, kind) = typed.split_once(' ').context("no type")?;
            name.clone_into(&mut current);
            families.entry(current.clone()).or_default().kind = kind.to_owned();
        } else if !line.starts_with('#') && !line.is_empty() {
            let family = families
                .get_mut(&current)
                .context("a series before its type")?;
            let series = line.rsplit_once(' ').context("no value")?.0;
            let mut labels = BTreeSet::new();
            if let Some((_, inside)) = series.split_once('{') {
                for label in split_labels(inside.trim_end_matches('}')) {
                    let (name, value) = label.split_once('=').context("no label")?;
                    if name == "le" {
                        let limit: f64 = value.trim_matches('"').parse()?;
                        family.buckets.insert(limit.to_string());
                    } else {
                        labels.insert(name.to_owned());
                    }
                }
            }
            family.labels.insert(labels);
        }
    }
    Ok(families)
}

/// Commas inside quotes do not count.
fn split_labels(text: &str) -> Vec<String> {
    let (mut labels, mut label, mut quoted) = (Vec::new(), String::new(), false);
    for character in text.chars() {
        if character == ',' && !quoted {
            labels.push(std::mem::take(&mut label));
            continue;
        }
        quoted ^= character == '"';
        label.push(character);
    }
    labels.push(label);
    labels.retain(|label| !label.is_empty());
    labels
}

fn differences(ours: &Scrape, theirs: &Scrape) -> Vec<String> {
    let is_any = |name: &str, starts: &[&str]| starts.iter().any(|start| name.starts_with(start));
    let mut differences = Vec::new();
    for (name, family) in &theirs.families {
        match ours.families.get(name) {
            _ if is_any(name, THEIRS_ALONE) => {}
            None => differences.push(format!("lacking: {name} {family:?}")),
            Some(ours) if ours != family => {
                differences.push(format!("{name}: ours {ours:?}, kube-proxy's {family:?}"));
            }
            Some(_) => {}
        }
    }
    for name in ours.families.keys() {
        if !theirs.families.contains_key(name) && !is_any(name, OURS_ALONE) {
            differences.push(format!("only ours: {name}"));
        }
    }
    differences
}
