// SPDX-License-Identifier: Apache-2.0

use std::collections::BTreeMap;

use prometheus::{IntGaugeVec, Opts};

use super::text::{Screen, age};
use super::*;
use crate::app::screen::Paint;

fn round(seconds: f64, is_full: bool, succeeded: bool) -> FinishedRound {
    FinishedRound {
        time: "2026-01-01T03:11:00Z".to_owned(),
        seconds,
        is_full,
        succeeded,
        changes: 1,
    }
}

fn status() -> Status {
    let v4 = Family {
        healthy: true,
        last_success: "2026-01-01T03:11:50Z".to_owned(),
        rounds: vec![round(1.5, true, true), round(0.0123, false, true)],
        ..Family::default()
    };
    let v6 = Family {
        healthy: false,
        last_success: "2026-01-01T00:00:00Z".to_owned(),
        is_pending: true,
        unbound_addresses: 1,
        ..Family::default()
    };
    Status {
        version: "v0.1.0".to_owned(),
        kubernetes_version: "v1.37.2".to_owned(),
        mode: "ipvs".to_owned(),
        node: "worker-1".to_owned(),
        pid: 7,
        started: "2026-01-01T00:00:00Z".to_owned(),
        time: "2026-01-01T03:12:00Z".to_owned(),
        node_eligible: true,
        iptables: Some(("nft".to_owned(), "kubelet".to_owned())),
        ipvs_rules: Some(("nftables".to_owned(), "configured".to_owned())),
        services: 12,
        endpoint_slices: 15,
        service_errors: 1,
        families: BTreeMap::from([("IPv4".to_owned(), v4), ("IPv6".to_owned(), v6)]),
        drift: BTreeMap::from([("add-address".to_owned(), (2, 2))]),
        missing_capabilities: vec!["ip_vs_mh".to_owned()],
        sync_daemons: [("backup", true), ("master", false)]
            .map(|(role, runs)| (role.to_owned(), runs))
            .into(),
        problems: vec![Problem {
            service: "shop/web".to_owned(),
            family: "IPv6".to_owned(),
            message: "no such device".to_owned(),
        }],
        ..Status::default()
    }
}

#[test]
fn the_screen_has_trouble_in_words() {
    let text = Screen {
        status: &status(),
        paint: Paint::PLAIN,
        width: None,
    }
    .to_string();
    assert_eq!(
        text,
        "\
kube-proxy-rs v0.1.0 for kube-proxy v1.37.2, mode ipvs, node worker-1
  process         pid 7, up 3h12m
  health          a change has been waiting for more than twice the sync period
  load balancers  may send connections to this node
  iptables        nft (kubelet)
  rules           nftables (configured)
  services        12 in 15 EndpointSlices; 1 with errors, 0 changed since the last sync
  drift           add-address: 2 changed by others, 2 repaired
  kernel lacks    ip_vs_mh
  sync daemons    backup runs, master does not run

FAMILY  HEALTH  SYNCED     LAST             MEDIAN  SLOWEST  PENDING  UNBOUND  REFUSED
IPv4    ok      10s ago    12.3 ms partial  1.50 s  1.50 s   no       0        0
IPv6    late    3h12m ago  -                -       -        yes      1        0

problems
  shop/web IPv6: no such device
"
    );
    let page = include_str!("../../../docs/at-3am.md");
    assert!(page.contains(&text), "docs/at-3am.md shows another screen");
}

#[test]
fn only_a_terminal_gets_colours() {
    let status = status();
    let coloured = Screen {
        status: &status,
        paint: Paint::COLOURED,
        width: None,
    };
    let text = coloured.to_string();
    assert!(text.contains("\x1b[31mlate"), "{text}");
    assert!(text.contains("\x1b[32mok"), "{text}");
}

#[test]
fn a_narrow_terminal_shows_what_matters_most() {
    let status = status();
    let narrow = Screen {
        status: &status,
        paint: Paint::PLAIN,
        width: Some(60),
    };
    let text = narrow.to_string();
    assert!(
        text.contains("\nFAMILY  HEALTH  SYNCED     LAST             PENDING"),
        "{text}"
    );
}

#[test]
fn ages_have_two_units() {
    for (now, text) in [
        ("2026-01-01T00:00:59Z", "59s"),
        ("2026-01-01T00:01:01Z", "1m1s"),
        ("2026-01-01T02:01:01Z", "2h1m"),
        ("2026-01-04T02:01:01Z", "3d2h"),
        ("2025-01-01T00:00:00Z", "0s"),
        ("?", "unknown"),
    ] {
        assert_eq!(age("2026-01-01T00:00:00Z", now), text);
    }
}

#[test]
fn what_the_loop_says_is_added() {
    let mut status = status();
    let shown = Shown {
        service_count: 3,
        trouble_count: 2,
        changed_count: 1,
        ..Shown::default()
    };
    status.add(&shown);
    assert_eq!((status.service_errors, status.changed_services), (2, 1));
    assert_eq!(status.problems, []);
}

#[test]
fn metrics_are_read_by_their_labels() {
    let registry = Registry::new();
    let gauges = |name: &str, labels: &[&str]| {
        let gauges = IntGaugeVec::new(Opts::new(name, "x"), labels).unwrap();
        registry.register(Box::new(gauges.clone())).unwrap();
        gauges
    };
    let capabilities = gauges("kube_proxy_rs_kernel_capability", &["name"]);
    capabilities.with_label_values(&["xt_recent"]).set(0);
    capabilities.with_label_values(&["ip_set"]).set(1);
    let backends = gauges("kube_proxy_rs_iptables_backend", &["backend", "reason"]);
    backends.with_label_values(&["nft", "kubelet"]).set(1);
    let drift = gauges("kube_proxy_rs_drift_total", &["kind", "state"]);
    drift.with_label_values(&["chain", "found"]).set(3);
    drift.with_label_values(&["chain", "repaired"]).set(2);
    let metrics = Scrape(registry.gather());
    let missing = metrics.names("kube_proxy_rs_kernel_capability", 0);
    assert_eq!(missing, ["xt_recent"]);
    assert_eq!(
        metrics.chosen("kube_proxy_rs_iptables_backend", "backend"),
        Some(("nft".to_owned(), "kubelet".to_owned()))
    );
    assert_eq!(metrics.drift()["chain"], (3, 2));
    assert_eq!(metrics.total("kube_proxy_rs_kernel_capability"), 1);
    assert_eq!(metrics.total("unknown"), 0);
}
