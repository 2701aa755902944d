// SPDX-License-Identifier: Apache-2.0
//! `docs/metrics.md`, made from what the registry shows after everything was touched, in both
//! modes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use prometheus::TextEncoder;
use prometheus::proto::MetricFamily;

use super::tests::{touch_everything, upper_bounds};
use super::*;
use crate::clock::Clock;
use crate::dataplane::kernel::Cost;
use crate::source::{Observer, Problem, Request};
use crate::testing::document_is;
use kpr_core::model::ProxyMode;
use kpr_core::model::net::IpFamily;
use kpr_core::plan::ipvs::object::SyncRole;

/// Everything that a proxy in that mode may show.
fn everything(mode: ProxyMode) -> Vec<MetricFamily> {
    let registry = registry("v1.37.2").unwrap();
    let sync = SyncMetrics::register(&registry, mode, Clock::system()).unwrap();
    touch_everything(&sync);
    sync.refused(IpFamily::V4, 1);
    if mode == ProxyMode::IPVS {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), ipvs::tests::SHOWN).unwrap();
        ipvs::register_from(&registry, file.path()).unwrap();
        return [rest(&registry), services::tests::everything()].concat();
    }
    register_packet_counters(&registry, Box::new(|| Some(1)), Box::new(|| Some(1))).unwrap();
    rest(&registry)
}

fn rest(registry: &Registry) -> Vec<MetricFamily> {
    let dataplane = DataplaneMetrics::register(registry).unwrap();
    dataplane.kernel_cost(&Cost {
        round_trips: 1,
        messages_sent: 1,
        messages_received: 1,
        bytes_sent: 1,
        bytes_received: 1,
        processes: 1,
    });
    dataplane.drift("rule", DriftState::Found, 1);
    dataplane.kernel_capability("ip_vs", true);
    dataplane.iptables_backend("nft", "hint");
    dataplane.ipvs_rules("nftables", "configured");
    dataplane.sysctl_written("net/netfilter/nf_conntrack_max", true);
    dataplane.unbound_addresses(IpFamily::V4, 1);
    dataplane.sync_daemon(SyncRole::Master, true);
    dataplane.over_budget(IpFamily::V4, 1);
    let source = SourceMetrics::register(registry).unwrap();
    source.request(&Request {
        method: "GET",
        host: "h",
        code: Some(200),
        duration: Duration::from_millis(1),
    });
    source.heard("Service");
    source.problem(&Problem {
        object: String::new(),
        field: String::new(),
        message: String::new(),
        reason: "address",
        service: None,
    });
    let health = HealthMetrics::register(registry).unwrap();
    health.healthz_answered(true);
    health.livez_answered(true);
    EventMetrics::register(registry).unwrap().written();
    registry.gather()
}

fn labels(family: &MetricFamily) -> String {
    let labels = family
        .get_metric()
        .iter()
        .flat_map(prometheus::proto::Metric::get_label);
    let labels: BTreeSet<String> = labels.map(|label| format!("`{}`", label.name())).collect();
    labels.into_iter().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_document_is_as_the_code() {
    let mut text = "<!-- Made from the code by hack/update-golden.sh. -->
# Metrics
Served at `/metrics` on the metrics port (`--metrics-bind-address`, 127.0.0.1:10249 by default). kube-proxy's metrics have its names, types, labels and buckets
(v1.37.2; compared with a running one by `tests/cluster_drop_in`); those with the prefix `kube_proxy_rs_` are ours. A series with labels appears when it is first
written. Rules, alerts and a dashboard: `deploy/prometheus`.

| name | type | labels | mode | origin | description |
|---|---|---|---|---|---|
"
    .to_owned();
    let (mut families, mut modes) = (BTreeMap::new(), BTreeMap::new());
    for mode in [ProxyMode::IPVS, ProxyMode::IPTABLES] {
        for family in everything(mode) {
            modes
                .entry(family.name().to_owned())
                .or_insert_with(Vec::new)
                .push(mode.as_str());
            families.insert(family.name().to_owned(), family);
        }
    }
    for (name, family) in &families {
        let kind = format!("{:?}", family.get_field_type()).to_lowercase();
        let mode = match modes[name].as_slice() {
            [one] => one,
            _ => "both",
        };
        let is_ours = name.starts_with("kube_proxy_rs_") || name == "process_threads";
        let origin = if is_ours { "ours" } else { "kube-proxy's" };
        let about = family
            .help()
            .trim_start_matches("[ALPHA] ")
            .trim_end_matches('.')
            .replace('|', "\\|");
        writeln!(
            text,
            "| `{name}` | {kind} | {} | {mode} | {origin} | {about} |",
            labels(family)
        )
        .unwrap();
    }
    text.push_str("\n## Buckets\nUpper limits in seconds.\n\n");
    let all: Vec<MetricFamily> = families.values().cloned().collect();
    let shown = TextEncoder::new().encode_to_string(&all).unwrap();
    let mut buckets: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for name in families.keys() {
        let bounds = upper_bounds(&shown, name);
        if !bounds.is_empty() {
            buckets.entry(bounds.join(" ")).or_default().push(name);
        }
    }
    for (bounds, names) in buckets {
        writeln!(text, "- `{}`: {bounds}", names.join("`, `")).unwrap();
    }
    text.push_str(OF_SERVICES);
    document_is("docs/metrics.md", &text);
}

const OF_SERVICES: &str = "
## Traffic of Services
In ipvs mode, and only for the Services that the operator chooses: `--service-metrics-namespaces shop,kube-system` (`*` for all)
or `--service-metrics-selector 'app=web,tier in (front,back)'`; with both, a Service must meet both. `--service-metrics-endpoints` adds
`kube_proxy_rs_endpoint_*`. Without these flags nothing is read and nothing is kept.

- A series is a Service port in a family: all virtual servers of the port (cluster IP, external addresses, node port, that of a firewall
  mark) are added up. Labels are not called `namespace` and `service`, which Prometheus Operator gives to targets.
- Each scrape reads the kernel once: one dump of virtual servers, one list of connections, and with endpoints one dump for each counted
  virtual server. The kernel adds up its counters every two seconds.
- `--service-metrics-limit` (1000) bounds Service ports, and endpoints; `kube_proxy_rs_service_metrics_left_out` says how many are beyond
  it. Those that are counted stay counted; others follow by name when there is room.
- Counters never go back while the process lives: when a virtual server is deleted and made anew, its count begins at zero in the kernel
  and goes on here. What passed between the last scrape and the deletion is lost. A Service port that is deleted, or no longer chosen,
  takes its series with it; if it comes again, it begins anew, which Prometheus takes for a reset.
- A new process begins with what the kernel says: with what was counted since the virtual servers were made, which a restart leaves in
  place. That is a continuation, unless a virtual server was made anew before: then the count is lower, and Prometheus sees a reset.
- With the sysctl `net.ipv4.vs.run_estimation` at 0 the kernel does not add up, the counters stand still, and
  `kube_proxy_rs_service_counters_frozen` is 1; connections are still right.
- Packets that endpoints send straight to clients (direct routing, tunnels) do not come by and are not counted.
";

/// A panel that asks for a metric that does not exist would stay empty in silence.
#[test]
fn the_dashboard_knows_only_metrics_that_there_are() {
    let known: BTreeSet<String> = [ProxyMode::IPVS, ProxyMode::IPTABLES]
        .into_iter()
        .flat_map(everything)
        .map(|family| family.name().to_owned())
        .collect();
    let path = "deploy/prometheus/dashboards/kube-proxy-rs.json";
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let text = std::fs::read_to_string(text).unwrap();
    let is_name = |sign: char| sign.is_ascii_alphanumeric() || sign == '_';
    let words = text.split(|sign| !is_name(sign));
    let names: BTreeSet<&str> = words
        .filter(|word| word.starts_with("kube_proxy_rs_"))
        .map(|word| word.trim_end_matches("_bucket"))
        .collect();
    let unknown: Vec<&&str> = names
        .iter()
        .filter(|name| !known.contains(**name))
        .collect();
    assert!(names.len() > 15 && unknown.is_empty(), "{unknown:?}");
}

/// Else a metric that nothing here touches would be missing in silence.
#[test]
fn every_name_in_the_sources_is_touched() {
    let known: BTreeSet<String> = [ProxyMode::IPVS, ProxyMode::IPTABLES]
        .into_iter()
        .flat_map(everything)
        .map(|family| family.name().to_owned())
        .collect();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/metrics");
    let mut names = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let is_test = path
            .file_name()
            .is_some_and(|name| name == "tests.rs" || name == "reference.rs");
        if is_test || path.is_dir() {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for name in text.split('"').filter(|text| {
            text.starts_with("kube_proxy_rs_")
                || text.starts_with("kubeproxy_")
                || text.starts_with("rest_client_")
        }) {
            names += 1;
            assert!(known.contains(name), "{name}");
        }
    }
    assert!(names > 30, "{names}");
}
