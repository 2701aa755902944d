// SPDX-License-Identifier: Apache-2.0
//! Names, types, labels and buckets, as `/metrics` shows them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use prometheus::TextEncoder;

use super::*;
use crate::clock::{Clock, ManualClock};
use crate::dataplane::kernel::Cost;
use crate::source::{Observer, Problem, Request};
use kpr_core::model::ProxyMode;
use kpr_core::model::net::IpFamily;

fn text(registry: &Registry) -> String {
    TextEncoder::new()
        .encode_to_string(&registry.gather())
        .unwrap()
}

fn sync_metrics(mode: ProxyMode) -> (Registry, SyncMetrics, ManualClock) {
    let registry = Registry::new();
    let (clock, hand) = Clock::manual("2026-01-01T00:00:00.25Z".parse().unwrap());
    let metrics = SyncMetrics::register(&registry, mode, clock).unwrap();
    (registry, metrics, hand)
}

/// Every series whose metric has that name, without its value for histograms' parts.
fn value(text: &str, series: &str) -> Option<f64> {
    text.lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

/// Metric name to type.
fn types(text: &str) -> BTreeMap<&str, &str> {
    text.lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|line| line.split_once(' '))
        .collect()
}

pub(super) fn upper_bounds<'a>(text: &'a str, metric: &str) -> Vec<&'a str> {
    text.lines()
        .filter(|line| line.starts_with(&format!("{metric}_bucket")))
        .filter_map(|line| line.split_once("le=\"")?.1.split_once('"'))
        .map(|(bound, _)| bound)
        .collect()
}

pub(super) fn touch_everything(metrics: &SyncMetrics) {
    let family = IpFamily::V4;
    metrics.loop_turned();
    metrics.sync_queued(family);
    metrics.sync_finished(family, SyncScope::Full, Duration::from_millis(3), true);
    metrics.sync_finished(family, SyncScope::Partial, Duration::from_millis(2), false);
    metrics.network_programmed(family, Duration::from_secs(1));
    metrics.endpoint_changes(2);
    metrics.service_changes(1);
    metrics.changes_pending(4, 5);
    metrics.known(11, 12);
    metrics.no_local_endpoints(family, 1, 2);
    metrics.iptables_rules(family, Table::Nat, 7, 3);
    metrics.iptables_rules(family, Table::Filter, 2, 1);
    metrics.restore_failed(family);
    metrics.conntrack_cleaned(family, Duration::from_millis(1), 6);
    metrics.steps_applied("add_real_server", family, true, 9);
    metrics.draining_servers(8);
}

const BOTH_MODES: [(&str, &str); 17] = [
    ("kube_proxy_rs_draining_servers", "gauge"),
    ("kube_proxy_rs_endpoint_slices", "gauge"),
    ("kube_proxy_rs_loop_last_turn_timestamp_seconds", "gauge"),
    ("kube_proxy_rs_plan_steps_total", "counter"),
    ("kube_proxy_rs_services", "gauge"),
    (
        "kubeproxy_conntrack_reconciler_deleted_entries_total",
        "counter",
    ),
    (
        "kubeproxy_conntrack_reconciler_sync_duration_seconds",
        "histogram",
    ),
    (
        "kubeproxy_network_programming_duration_seconds",
        "histogram",
    ),
    ("kubeproxy_sync_proxy_rules_duration_seconds", "histogram"),
    (
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
        "gauge",
    ),
    (
        "kubeproxy_sync_proxy_rules_endpoint_changes_total",
        "counter",
    ),
    (
        "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
        "counter",
    ),
    (
        "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
        "gauge",
    ),
    ("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "gauge"),
    (
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
        "gauge",
    ),
    (
        "kubeproxy_sync_proxy_rules_service_changes_pending",
        "gauge",
    ),
    (
        "kubeproxy_sync_proxy_rules_service_changes_total",
        "counter",
    ),
];

const IPTABLES_MODE: [(&str, &str); 5] = [
    (
        "kubeproxy_sync_full_proxy_rules_duration_seconds",
        "histogram",
    ),
    (
        "kubeproxy_sync_partial_proxy_rules_duration_seconds",
        "histogram",
    ),
    ("kubeproxy_sync_proxy_rules_iptables_last", "gauge"),
    (
        "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total",
        "counter",
    ),
    ("kubeproxy_sync_proxy_rules_iptables_total", "gauge"),
];

#[test]
fn names_and_types_are_upstreams() {
    let both = BOTH_MODES.into_iter();
    let (registry, metrics, _) = sync_metrics(ProxyMode::IPVS);
    touch_everything(&metrics);
    assert_eq!(types(&text(&registry)), both.clone().collect());
    let (registry, metrics, _) = sync_metrics(ProxyMode::IPTABLES);
    touch_everything(&metrics);
    assert_eq!(types(&text(&registry)), both.chain(IPTABLES_MODE).collect());
}

#[test]
fn labelled_series_appear_once_touched() {
    let (registry, _metrics, _) = sync_metrics(ProxyMode::IPTABLES);
    let untouched = text(&registry);
    let names: BTreeSet<&str> = types(&untouched).into_keys().collect();
    assert_eq!(
        names.into_iter().collect::<Vec<_>>(),
        [
            "kube_proxy_rs_draining_servers",
            "kube_proxy_rs_endpoint_slices",
            "kube_proxy_rs_loop_last_turn_timestamp_seconds",
            "kube_proxy_rs_services",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total",
            "kubeproxy_sync_proxy_rules_service_changes_pending",
            "kubeproxy_sync_proxy_rules_service_changes_total",
        ]
    );
}

#[test]
fn help_starts_with_the_stability() {
    let (registry, metrics, _) = sync_metrics(ProxyMode::IPTABLES);
    touch_everything(&metrics);
    let text = text(&registry);
    let mut helps = text
        .lines()
        .filter(|line| line.starts_with("# HELP "))
        .peekable();
    assert!(helps.peek().is_some());
    for help in helps {
        assert!(help.contains(" [ALPHA] "), "{help}");
    }
}

#[test]
fn rounds_have_kube_proxys_buckets() {
    let (registry, metrics, _) = sync_metrics(ProxyMode::IPTABLES);
    touch_everything(&metrics);
    let text = text(&registry);
    let expected = [
        "0.001", "0.002", "0.004", "0.008", "0.016", "0.032", "0.064", "0.128", "0.256", "0.512",
        "1.024", "2.048", "4.096", "8.192", "16.384", "+Inf",
    ];
    for metric in [
        "kubeproxy_sync_proxy_rules_duration_seconds",
        "kubeproxy_sync_full_proxy_rules_duration_seconds",
        "kubeproxy_sync_partial_proxy_rules_duration_seconds",
        "kubeproxy_conntrack_reconciler_sync_duration_seconds",
    ] {
        assert_eq!(upper_bounds(&text, metric), expected, "{metric}");
    }
}

#[test]
fn network_programming_has_kube_proxys_buckets() {
    let (registry, metrics, _) = sync_metrics(ProxyMode::IPVS);
    touch_everything(&metrics);
    let text = text(&registry);
    let bounds = upper_bounds(&text, "kubeproxy_network_programming_duration_seconds");
    assert_eq!(bounds.len(), 3 + 59 + 12 + 7 + 1);
    assert_eq!(bounds[..5], ["0", "0.25", "0.5", "1", "2"]);
    assert_eq!(bounds[60..65], ["58", "59", "60", "65", "70"]);
    assert_eq!(
        bounds[71..],
        [
            "105", "110", "115", "120", "150", "180", "210", "240", "270", "300", "+Inf"
        ]
    );
}

#[test]
fn a_failed_round_counts_and_is_no_success() {
    let (registry, metrics, hand) = sync_metrics(ProxyMode::IPTABLES);
    let family = IpFamily::V6;
    metrics.sync_finished(family, SyncScope::Full, Duration::from_millis(1), true);
    hand.advance(Duration::from_secs(10));
    metrics.sync_queued(family);
    metrics.sync_finished(family, SyncScope::Partial, Duration::from_millis(1), false);
    metrics.sync_finished(family, SyncScope::Full, Duration::from_millis(1), false);
    let text = text(&registry);
    let series = |name: &str| value(&text, &format!("kubeproxy_{name}{{ip_family=\"IPv6\"}}"));
    assert_eq!(series("sync_proxy_rules_duration_seconds_count"), Some(3.0));
    assert_eq!(
        series("sync_full_proxy_rules_duration_seconds_count"),
        Some(2.0)
    );
    assert_eq!(
        series("sync_partial_proxy_rules_duration_seconds_count"),
        Some(1.0)
    );
    assert_eq!(
        series("sync_proxy_rules_iptables_partial_restore_failures_total"),
        Some(1.0)
    );
    assert_eq!(
        series("sync_proxy_rules_last_timestamp_seconds"),
        Some(1_767_225_600.25)
    );
    assert_eq!(
        series("sync_proxy_rules_last_queued_timestamp_seconds"),
        Some(1_767_225_610.25)
    );
}

#[test]
fn values_reach_their_series() {
    let (registry, metrics, _) = sync_metrics(ProxyMode::IPTABLES);
    touch_everything(&metrics);
    let text = text(&registry);
    for (series, expected) in [
        ("kubeproxy_sync_proxy_rules_endpoint_changes_total", 2.0),
        ("kubeproxy_sync_proxy_rules_service_changes_total", 1.0),
        ("kubeproxy_sync_proxy_rules_endpoint_changes_pending", 4.0),
        ("kubeproxy_sync_proxy_rules_service_changes_pending", 5.0),
        (
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"internal\"}",
            1.0,
        ),
        (
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"external\"}",
            2.0,
        ),
        (
            "kubeproxy_sync_proxy_rules_iptables_total{ip_family=\"IPv4\",table=\"nat\"}",
            7.0,
        ),
        (
            "kubeproxy_sync_proxy_rules_iptables_last{ip_family=\"IPv4\",table=\"filter\"}",
            1.0,
        ),
        (
            "kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family=\"IPv4\"}",
            1.0,
        ),
        (
            "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv4\"}",
            6.0,
        ),
        (
            "kube_proxy_rs_plan_steps_total{ip_family=\"IPv4\",kind=\"add_real_server\",result=\"ok\"}",
            9.0,
        ),
        ("kube_proxy_rs_draining_servers", 8.0),
        ("kube_proxy_rs_services", 11.0),
        ("kube_proxy_rs_endpoint_slices", 12.0),
    ] {
        assert_eq!(value(&text, series), Some(expected), "{series}\n{text}");
    }
}

#[test]
fn the_dataplane_counts_what_it_does() {
    let registry = Registry::new();
    let metrics = DataplaneMetrics::register(&registry).unwrap();
    for round_trips in [1, 3] {
        metrics.kernel_cost(&Cost {
            round_trips,
            messages_sent: 4,
            messages_received: 5,
            bytes_sent: 600,
            bytes_received: 700,
            processes: 1,
        });
    }
    metrics.drift("rule", DriftState::Found, 2);
    metrics.drift("rule", DriftState::Repaired, 1);
    metrics.kernel_capability("ip_vs", true);
    metrics.iptables_backend("nft", "hint");
    metrics.ipvs_rules("nftables", "configured");
    metrics.sysctl_written("net/netfilter/nf_conntrack_max", false);
    let text = text(&registry);
    for (series, expected) in [
        ("kube_proxy_rs_netlink_round_trips_total", 3.0),
        ("kube_proxy_rs_processes_started_total", 1.0),
        (
            "kube_proxy_rs_netlink_messages_total{direction=\"sent\"}",
            4.0,
        ),
        (
            "kube_proxy_rs_netlink_messages_total{direction=\"received\"}",
            5.0,
        ),
        (
            "kube_proxy_rs_netlink_bytes_total{direction=\"sent\"}",
            600.0,
        ),
        (
            "kube_proxy_rs_netlink_bytes_total{direction=\"received\"}",
            700.0,
        ),
        (
            "kube_proxy_rs_drift_total{kind=\"rule\",state=\"found\"}",
            2.0,
        ),
        (
            "kube_proxy_rs_drift_total{kind=\"rule\",state=\"repaired\"}",
            1.0,
        ),
        ("kube_proxy_rs_kernel_capability{name=\"ip_vs\"}", 1.0),
        (
            "kube_proxy_rs_iptables_backend{backend=\"nft\",reason=\"hint\"}",
            1.0,
        ),
        (
            "kube_proxy_rs_ipvs_rules{reason=\"configured\",rules=\"nftables\"}",
            1.0,
        ),
        (
            "kube_proxy_rs_sysctl_unwritable{name=\"net/netfilter/nf_conntrack_max\"}",
            1.0,
        ),
    ] {
        assert_eq!(value(&text, series), Some(expected), "{series}");
    }
}

#[test]
fn the_source_counts_requests_and_skipped_objects() {
    let registry = Registry::new();
    let metrics = SourceMetrics::register(&registry).unwrap();
    let request = Request {
        method: "GET",
        host: "10.0.0.1:6443",
        code: Some(200),
        duration: Duration::from_millis(30),
    };
    metrics.request(&request);
    metrics.request(&Request {
        code: None,
        ..request
    });
    metrics.problem(&Problem {
        object: "Service default/web".to_owned(),
        field: "spec.clusterIP".to_owned(),
        message: "not an address".to_owned(),
        reason: "address",
        service: None,
    });
    let text = text(&registry);
    for (series, expected) in [
        (
            "rest_client_requests_total{code=\"200\",host=\"10.0.0.1:6443\",method=\"GET\"}",
            1.0,
        ),
        (
            "rest_client_requests_total{code=\"<error>\",host=\"10.0.0.1:6443\",method=\"GET\"}",
            1.0,
        ),
        (
            "rest_client_request_duration_seconds_count{host=\"10.0.0.1:6443\",verb=\"GET\"}",
            2.0,
        ),
        (
            "kube_proxy_rs_skipped_objects_total{reason=\"address\"}",
            1.0,
        ),
    ] {
        assert_eq!(value(&text, series), Some(expected), "{series}\n{text}");
    }
    assert_eq!(
        upper_bounds(&text, "rest_client_request_duration_seconds"),
        [
            "0.005", "0.025", "0.1", "0.25", "0.5", "1", "2", "4", "8", "15", "30", "60", "+Inf"
        ]
    );
}

#[test]
fn the_registry_knows_the_process_and_the_build() {
    let registry = registry("v1.37.2").unwrap();
    let text = text(&registry);
    let types = types(&text);
    for (name, kind) in [
        ("process_cpu_seconds_total", "counter"),
        ("process_open_fds", "gauge"),
        ("process_max_fds", "gauge"),
        ("process_resident_memory_bytes", "gauge"),
        ("process_virtual_memory_bytes", "gauge"),
        ("process_start_time_seconds", "gauge"),
        ("kubernetes_build_info", "gauge"),
    ] {
        assert_eq!(types.get(name), Some(&kind), "{name}");
    }
    let info = text
        .lines()
        .find(|line| line.starts_with("kubernetes_build_info{"))
        .unwrap();
    assert!(
        info.contains("major=\"1\"") && info.contains("minor=\"37\""),
        "{info}"
    );
    assert!(info.ends_with(" 1"), "{info}");
}

#[test]
fn all_parts_fit_into_one_registry() {
    let registry = registry("v1.37.2").unwrap();
    SyncMetrics::register(&registry, ProxyMode::IPTABLES, Clock::system()).unwrap();
    DataplaneMetrics::register(&registry).unwrap();
    SourceMetrics::register(&registry).unwrap();
    HealthMetrics::register(&registry).unwrap();
    assert!(HealthMetrics::register(&registry).is_err());
}
