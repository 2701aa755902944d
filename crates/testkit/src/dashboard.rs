// SPDX-License-Identifier: Apache-2.0
//! What is asked of Prometheus: the queries of our dashboard, the recording rules, and the panels
//! of kubernetes-mixin.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::prometheus::{CLUSTER, Prometheus, in_repository};

pub const DASHBOARD: &str = "deploy/prometheus/dashboards/kube-proxy-rs.json";
const RULES: &str = "deploy/prometheus/rules.yaml";

/// The panels of `dashboards/proxy.libsonnet` of kubernetes-mixin (Apache-2.0,
/// github.com/kubernetes-monitoring/kubernetes-mixin, commit aa38e2b), with its defaults;
/// `SELECTOR` stands for what is the same everywhere. Not `Goroutines`: we have none.
const MIXIN: &[(&str, &[&str])] = &[
    ("Up", &["sum(up{CLUSTER})"]),
    (
        "Rules Sync Rate",
        &[
            "sum(rate(kubeproxy_sync_proxy_rules_duration_seconds_count{SELECTOR}[$__rate_interval]))",
        ],
    ),
    (
        "Rules Sync Latency 99th Quantile",
        &[
            "histogram_quantile(0.99,rate(kubeproxy_sync_proxy_rules_duration_seconds_bucket{SELECTOR}[$__rate_interval]))",
        ],
    ),
    (
        "Network Programming Rate",
        &[
            "sum(rate(kubeproxy_network_programming_duration_seconds_count{SELECTOR}[$__rate_interval]))",
        ],
    ),
    (
        "Network Programming Latency 99th Quantile",
        &[
            "histogram_quantile(0.99, sum(rate(kubeproxy_network_programming_duration_seconds_bucket{SELECTOR}[$__rate_interval])) by (instance, le))",
        ],
    ),
    (
        "Kube API Request Rate",
        &[
            "sum(rate(rest_client_requests_total{SELECTOR,code=~\"2..\"}[$__rate_interval]))",
            "sum(rate(rest_client_requests_total{SELECTOR,code=~\"3..\"}[$__rate_interval]))",
            "sum(rate(rest_client_requests_total{SELECTOR,code=~\"4..\"}[$__rate_interval]))",
            "sum(rate(rest_client_requests_total{SELECTOR,code=~\"5..\"}[$__rate_interval]))",
        ],
    ),
    (
        "Post Request Latency 99th Quantile",
        &[
            "histogram_quantile(0.99, sum(rate(rest_client_request_duration_seconds_bucket{SELECTOR,verb=\"POST\"}[$__rate_interval])) by (verb, le))",
        ],
    ),
    (
        "Get Request Latency 99th Quantile",
        &[
            "histogram_quantile(0.99, sum(rate(rest_client_request_duration_seconds_bucket{SELECTOR, verb=\"GET\"}[$__rate_interval])) by (verb, le))",
        ],
    ),
    ("Memory", &["process_resident_memory_bytes{SELECTOR}"]),
    (
        "CPU usage",
        &["rate(process_cpu_seconds_total{SELECTOR}[$__rate_interval])"],
    ),
];

/// A panel: its title and queries, of which all must have data, or one where `any_suffices`.
#[derive(Debug)]
struct Panel {
    title: String,
    queries: Vec<String>,
    any_suffices: bool,
}

/// What has no data yet, of all that a proxy in this mode must fill.
pub fn empty(prometheus: &Prometheus, mode: &str) -> Result<Vec<String>> {
    let mut empty = Vec::new();
    for panel in ours(mode)?.into_iter().chain(mixin()).chain(recorded()?) {
        let mut answers = Vec::new();
        for query in &panel.queries {
            answers.push(!prometheus.query(&filled(query))?.is_empty());
        }
        let is_full = if panel.any_suffices {
            answers.contains(&true)
        } else {
            !answers.contains(&false)
        };
        if !is_full {
            empty.push(format!("{}: {:?}", panel.title, panel.queries));
        }
    }
    Ok(empty)
}

/// Rules that Prometheus could not evaluate, with what it says.
pub fn rules_in_error(prometheus: &Prometheus) -> Result<Vec<String>> {
    let data = prometheus.ask("rules")?;
    let groups = data["groups"].as_array().context("no groups")?;
    let rules: Vec<&Value> = groups
        .iter()
        .filter_map(|group| group["rules"].as_array())
        .flatten()
        .collect();
    ensure!(rules.len() > 20, "there are {} rules", rules.len());
    Ok(rules
        .into_iter()
        .filter(|rule| rule["health"] != "ok")
        .map(ToString::to_string)
        .collect())
}

/// Panels of our dashboard whose title does not say that they are another mode's.
fn ours(mode: &str) -> Result<Vec<Panel>> {
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(in_repository(DASHBOARD))?)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let panels: Vec<Panel> = panels
        .iter()
        .filter(|panel| panel["type"] != "row")
        .filter_map(|panel| {
            let title = panel["title"].as_str()?.to_owned();
            let of = title
                .rsplit_once(" (")
                .map(|(_, of)| of.trim_end_matches(')'));
            let queries = panel["targets"].as_array()?.iter();
            let queries = queries.filter_map(|target| Some(target["expr"].as_str()?.to_owned()));
            let queries = queries.collect();
            of.is_none_or(|of| of == mode).then_some(Panel {
                title,
                queries,
                any_suffices: false,
            })
        })
        .collect();
    ensure!(panels.len() > 20, "there are {} panels", panels.len());
    Ok(panels)
}

fn mixin() -> impl Iterator<Item = Panel> {
    let cluster = format!("cluster=\"{CLUSTER}\", job=\"kube-proxy\"");
    let selector = format!("{cluster}, instance=~\"$instance\"");
    MIXIN.iter().map(move |(title, queries)| Panel {
        title: format!("kubernetes-mixin: {title}"),
        queries: queries
            .iter()
            .map(|query| {
                query
                    .replace("SELECTOR", &selector)
                    .replace("CLUSTER", &cluster)
            })
            .collect(),
        any_suffices: true,
    })
}

fn recorded() -> Result<Vec<Panel>> {
    let rules: Value = serde_saphyr::from_str(&fs::read_to_string(in_repository(RULES))?)?;
    let groups = rules["groups"].as_array().context("no groups")?;
    let names: BTreeSet<String> = groups
        .iter()
        .filter_map(|group| group["rules"].as_array())
        .flatten()
        .filter_map(|rule| Some(rule["record"].as_str()?.to_owned()))
        .collect();
    ensure!(!names.is_empty(), "no rules");
    let panel = |name: String| Panel {
        title: "recorded".to_owned(),
        queries: vec![name],
        any_suffices: false,
    };
    Ok(names.into_iter().map(panel).collect())
}

/// As Grafana asks when all jobs and instances are chosen.
fn filled(query: &str) -> String {
    let filled = query.replace("$__rate_interval", "30s");
    filled.replace("$instance", ".+").replace("$job", ".+")
}
