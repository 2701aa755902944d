// SPDX-License-Identifier: Apache-2.0
//! What `deploy/prometheus` holds, judged by a real Prometheus: the rules are valid, each alert
//! fires in its test and does not in another one, and with a proxy in iptables mode that has work
//! every panel of the dashboards and every recording rule has data. (`cluster_ipvs` does the last
//! with one in IPVS mode.)
//!
//! `KPR_TESTBED` names the folder that `hack/testbed/up` made; without it every test reads
//! *ignored*.
#![cfg(test)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use kpr_testkit::dashboard::{self, DASHBOARD};
use kpr_testkit::machine::Machine;
use kpr_testkit::prometheus::{Prometheus, in_repository, promtool};
use kpr_testkit::testbed::{self, Objects, Restart, Test, Testbed, program, succeeded};

use kpr_testkit::wait;

const TESTS: &[Test] = &[
    ("rules_are_valid", rules_are_valid),
    (
        "alerts_fire_where_they_should",
        alerts_fire_where_they_should,
    ),
    ("every_alert_has_tests", every_alert_has_tests),
    ("grafana_knows_all_of_it", grafana_knows_all_of_it),
    ("every_panel_has_data", every_panel_has_data),
];

const RULES: &str = "deploy/prometheus/rules.yaml";
const ALERTS: &str = "deploy/prometheus/alerts.yaml";
const ALERT_TESTS: &str = "tests/monitoring/alerts.yaml";

/// The program under test.
fn ours() -> PathBuf {
    env!("CARGO_BIN_EXE_kube-proxy-rs").into()
}

fn main() -> ExitCode {
    testbed::run(TESTS)
}

// === the rules by themselves ===

fn rules_are_valid(_: &Testbed) -> Result<()> {
    promtool(&[
        "check",
        "rules",
        "--lint=all",
        "--lint-fatal",
        RULES,
        ALERTS,
    ])
    .map(drop)
}

fn alerts_fire_where_they_should(_: &Testbed) -> Result<()> {
    promtool(&["test", "rules", ALERT_TESTS]).map(drop)
}

/// The tests of an alert begin with its name, and ask for that alert. Where it should fire they ask
/// in the minute before, too: so a threshold or a `for` that changes shows.
fn every_alert_has_tests(_: &Testbed) -> Result<()> {
    let rules = yaml(ALERTS)?;
    let alerts: BTreeSet<&str> = list(&rules["groups"])?
        .iter()
        .filter_map(|group| group["rules"].as_array())
        .flatten()
        .filter_map(|rule| rule["alert"].as_str())
        .collect();
    let tests = yaml(ALERT_TESTS)?;
    let (mut fire, mut stay) = (BTreeSet::new(), BTreeSet::new());
    for test in list(&tests["tests"])? {
        let title = test["name"].as_str().context("a test without a name")?;
        let (alert, what) = title.split_once(' ').context("a name without words")?;
        let mut looks = Vec::new();
        for expected in list(&test["promql_expr_test"])? {
            let asked = expected["expr"].as_str().context("no expression")?;
            ensure!(
                asked.contains(&format!("alertname=\"{alert}\", alertstate=\"firing\"")),
                "{title}: {asked}"
            );
            let minute = expected["eval_time"]
                .as_str()
                .and_then(|time| time.strip_suffix('m'))
                .context("no minutes")?;
            let fires = !list(&expected["exp_samples"])?.is_empty();
            looks.push((minute.parse::<u32>()?, fires));
        }
        if what.starts_with("fires ") {
            let begins = matches!(looks[..], [(before, false), (now, true)] if before + 1 == now);
            ensure!(begins, "{title}: {looks:?}");
            fire.insert(alert);
        } else {
            ensure!(matches!(looks[..], [(_, false)]), "{title}: {looks:?}");
            stay.insert(alert);
        }
    }
    ensure!(
        !alerts.is_empty() && alerts == fire && alerts == stay,
        "alerts {alerts:?}, that fire {fire:?}, that do not {stay:?}"
    );
    Ok(())
}

// === the dashboard by itself ===

/// Grafana's own definitions of dashboards, panels and queries know every field, and miss none that
/// they require.
fn grafana_knows_all_of_it(_: &Testbed) -> Result<()> {
    let built = program(&in_repository("hack/dashboard/build")).output()?;
    let folder = succeeded(&["hack/dashboard/build"], &built);
    let reader = Path::new(folder.trim()).join("dashboard");
    let read = |path: &Path| -> Result<_> { Ok(program(&reader).arg(path).output()?) };
    let dashboard = in_repository(DASHBOARD);
    let said = succeeded(&["dashboard"], &read(&dashboard)?);
    ensure!(said.contains("47 panels and rows"), "{said}");
    // It looks into panels and queries.
    let text = fs::read_to_string(dashboard)?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("dashboard.json");
    for (field, wrong) in [
        ("graphTooltip", "graphTooltips"),
        ("legendFormat", "legend_format"),
        ("showLegend", "legend"),
    ] {
        fs::write(
            &path,
            text.replace(&format!("\"{field}\""), &format!("\"{wrong}\"")),
        )?;
        let output = read(&path)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(
            !output.status.success() && errors.contains(wrong),
            "{wrong}: {errors}"
        );
    }
    Ok(())
}

fn yaml(path: &str) -> Result<Value> {
    Ok(serde_saphyr::from_str(&fs::read_to_string(
        in_repository(path),
    )?)?)
}

fn list(value: &Value) -> Result<&Vec<Value>> {
    value
        .as_array()
        .with_context(|| format!("not a list: {value}"))
}

// === with a proxy ===

/// Endpoints change, a rule is flushed, objects are skipped and Events written, the API server goes
/// and comes back, again and again, until all panels have data.
fn every_panel_has_data(testbed: &Testbed) -> Result<()> {
    let machine = Machine::new(testbed, "kpr-seen", 0)?;
    machine.register("{}");
    let flags = [
        "--metrics-bind-address=0.0.0.0:10249",
        "--cluster-cidr=10.244.0.0/16",
    ];
    let proxy = machine.spawn(machine.with_flags(&ours(), &flags))?;
    let _objects = Objects::new(testbed, &objects(0));
    machine.health_becomes(&proxy, 200)?;
    let prometheus = Prometheus::start(format!("{}:10249", machine.address).parse()?)?;
    let _restart = Restart(testbed);
    let (mut turn, mut scrapes) = (0, 0.0);
    wait::until("every panel has data", || {
        let now = prometheus.scrapes()?;
        ensure!(now > scrapes, "{now} scrapes");
        (turn, scrapes) = (turn + 1, now);
        testbed.apply(&objects(turn));
        let flush = ["-w", "-t", "nat", "-F", "KUBE-POSTROUTING"];
        machine.namespace.run("iptables", &flush)?;
        for path in ["/healthz", "/livez"] {
            machine.get(10256, path)?;
        }
        // What a slow machine has forgotten by then is seen again.
        if turn % 20 == 5 {
            testbed.apiserver("stop");
            testbed.apiserver("start");
        }
        let empty = dashboard::empty(&prometheus, "iptables")?;
        ensure!(empty.is_empty(), "{}", empty.join("\n"));
        Ok(())
    })
    .with_context(|| format!("the log:\n{}", proxy.log()))?;
    let repaired = prometheus.query("sum(kube_proxy_rs_drift_total{state=\"repaired\"})")?;
    ensure!(
        repaired.iter().all(|count| *count >= 2.0),
        "{repaired:?} were repaired"
    );
    let wrong = dashboard::rules_in_error(&prometheus)?;
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// A Service with another endpoint each turn, one with policy Local and no endpoint here, and some
/// of which one is wrong in another way each turn: of one alone a few Events are written.
fn objects(turn: u32) -> String {
    const ODD: u32 = 8;
    let now = jiff::Timestamp::now();
    let odd = |number: u32| {
        let way = (turn + number) / ODD;
        format!(
            "---
apiVersion: v1
kind: Service
metadata: {{name: kpr-odd-{number}, namespace: default, annotations: {{kube-proxy-rs.io/scheduler: 'none-{way}'}}}}
spec: {{ports: [{{name: http, port: 80}}]}}
"
        )
    };
    let odd: String = (0..ODD).map(odd).collect();
    let turn = turn % 200;
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: kpr-seen, namespace: default}}
spec: {{ports: [{{name: http, port: 80}}, {{name: dns, port: 53, protocol: UDP}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: kpr-elsewhere, namespace: default}}
spec: {{type: NodePort, internalTrafficPolicy: Local, externalTrafficPolicy: Local, ports: [{{name: http, port: 80}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: kpr-seen-1
  namespace: default
  labels: {{kubernetes.io/service-name: kpr-seen}}
  annotations: {{endpoints.kubernetes.io/last-change-trigger-time: \"{now}\"}}
addressType: IPv4
ports: [{{name: http, port: 8080}}, {{name: dns, port: 5353, protocol: UDP}}]
endpoints: [{{addresses: [10.244.1.{turn}]}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: kpr-elsewhere-1, namespace: default, labels: {{kubernetes.io/service-name: kpr-elsewhere}}}}
addressType: IPv4
ports: [{{name: http, port: 8080}}]
endpoints: [{{addresses: [10.244.7.7]}}]
{odd}"
    )
}
