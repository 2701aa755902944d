// SPDX-License-Identifier: Apache-2.0
//! The chart in the hands of the real Helm: linted, rendered, refused, installed, changed, rolled
//! back, removed.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::Test;
use crate::deploy;
use kpr_testkit::testbed::{Testbed, program, succeeded};

pub(crate) const TESTS: &[Test] = &[
    ("helm::chart_is_clean", chart_is_clean),
    ("helm::wrong_values_are_refused", wrong_values_are_refused),
    (
        "helm::every_value_set_is_as_recorded_and_accepted",
        value_sets,
    ),
    (
        "helm::rules_and_dashboard_are_those_of_prometheus",
        rules_and_dashboard,
    ),
    ("helm::release_lives_and_goes", release_lives_and_goes),
];

/// Helm, with folders of its own.
pub(crate) struct Helm {
    program: PathBuf,
    kubeconfig: PathBuf,
    home: TempDir,
}

impl Helm {
    pub(crate) fn new(testbed: &Testbed) -> Result<Self> {
        Ok(Self {
            program: Testbed::built("helm").map_err(anyhow::Error::msg)?,
            kubeconfig: testbed.kubeconfig("admin"),
            home: tempfile::Builder::new().prefix("kpr-helm-").tempdir()?,
        })
    }

    pub(crate) fn output(&self, arguments: &[&str]) -> Result<Output> {
        let mut command: Command = program(&self.program);
        command
            .args(arguments)
            .args(["--namespace", "kube-system"])
            .env("KUBECONFIG", &self.kubeconfig);
        for folder in ["CACHE", "CONFIG", "DATA"] {
            let path = self.home.path().join(folder.to_lowercase());
            command.env(format!("HELM_{folder}_HOME"), path);
        }
        Ok(command.output()?)
    }

    /// What it prints when it succeeds.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.output(arguments)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "helm {arguments:?}: {errors}");
        Ok(String::from_utf8(output.stdout)?)
    }
}

fn chart() -> String {
    deploy("helm/kube-proxy-rs")
}

fn values(set: &str) -> String {
    format!(
        "{}/tests/cluster_deploy/values/{set}.yaml",
        env!("CARGO_MANIFEST_DIR")
    )
}

fn chart_is_clean(testbed: &Testbed) -> Result<()> {
    let helm = Helm::new(testbed)?;
    for set in value_set_names()? {
        let said = helm.run(&["lint", "--strict", &chart(), "--values", &values(&set)])?;
        ensure!(said.contains("0 chart(s) failed"), "{set}: {said}");
        ensure!(!said.contains("[WARNING]"), "{set}: {said}");
    }
    Ok(())
}

/// What is given, and what of the answer tells why it is refused.
const REFUSED: [(&str, &str); 14] = [
    (
        "k8sServiceHost=",
        "k8sServiceHost is required: the real address of an API server",
    ),
    (
        "k8sServiceHost=https://10.0.0.1",
        "at '/k8sServiceHost': 'https://10.0.0.1' does not match pattern",
    ),
    (
        "mode=nftables",
        "at '/mode': value must be one of 'ipvs', 'iptables'",
    ),
    (
        "clusterCIDR=5",
        "at '/clusterCIDR': got number, want string",
    ),
    (
        "ipvs.scheduler=best",
        "at '/ipvs/scheduler': value must be one of '', 'rr',",
    ),
    (
        "ipvs.syncPeriod=5",
        "at '/ipvs/syncPeriod': got number, want string",
    ),
    (
        "ipvs.roundRobin=true",
        "at '/ipvs': additional properties 'roundRobin' not allowed",
    ),
    (
        "iptables.masqueradeBit=40",
        "at '/iptables/masqueradeBit': maximum: got 40, want 31",
    ),
    (
        "conntrack.maxPerCpu=1",
        "at '/conntrack': additional properties 'maxPerCpu' not allowed",
    ),
    (
        "nodePortAddresses={primary,everywhere}",
        "at '/nodePortAddresses/1': 'everywhere' does not match pattern",
    ),
    (
        "metricsBindAddress=localhost",
        "at '/metricsBindAddress': 'localhost' does not match pattern",
    ),
    (
        "image.digest=latest",
        "at '/image/digest': 'latest' does not match pattern",
    ),
    (
        "serviceAccount.create=false",
        "serviceAccount.name is needed where serviceAccount.create is false",
    ),
    (
        "modee=ipvs",
        "at '': additional properties 'modee' not allowed",
    ),
];

fn wrong_values_are_refused(testbed: &Testbed) -> Result<()> {
    let helm = Helm::new(testbed)?;
    for (value, expected) in REFUSED {
        let defaults = values("defaults");
        let output = helm.output(&[
            "template",
            "kpr",
            &chart(),
            "--values",
            &defaults,
            "--set",
            value,
        ])?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(
            !output.status.success() && errors.contains(expected),
            "{value} leads to {}: {errors}",
            output.status
        );
    }
    Ok(())
}

fn value_set_names() -> Result<Vec<String>> {
    let folder = values("defaults");
    let folder = PathBuf::from(folder);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder.parent().context("it is in a folder")?)? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str());
        names.push(name.context("a name")?.to_owned());
    }
    names.sort();
    ensure!(names.len() > 7, "{names:?}");
    Ok(names)
}

/// What the chart renders for a set of values.
pub(crate) fn rendered(helm: &Helm, set: &str) -> Result<String> {
    let (chart, values) = (chart(), values(set));
    helm.run(&[
        "template",
        "kpr",
        &chart,
        "--values",
        &values,
        "--kube-version",
        "1.37.2",
    ])
}

fn value_sets(testbed: &Testbed) -> Result<()> {
    let helm = Helm::new(testbed)?;
    let _kinds = OperatorKinds::install(testbed)?;
    for set in value_set_names()? {
        let text = rendered(&helm, &set)?;
        compare(&set, &text)?;
        let arguments = ["apply", "--dry-run=server", "-f", "-"];
        let accepted = succeeded(&arguments, &testbed.kubectl_as("admin", &arguments, &text));
        let objects = text
            .lines()
            .filter(|line| line.starts_with("kind: "))
            .count();
        let count = accepted.matches("created (server dry run)").count();
        ensure!(objects == count, "{set}: {count} of {objects}: {accepted}");
    }
    Ok(())
}

fn rules_and_dashboard(testbed: &Testbed) -> Result<()> {
    let helm = Helm::new(testbed)?;
    let _kinds = OperatorKinds::install(testbed)?;
    let (chart, values) = (chart(), values("defaults"));
    let text = helm.run(&[
        "template",
        "kpr",
        &chart,
        "--values",
        &values,
        "--show-only",
        "templates/monitoring.yaml",
        "--set",
        "prometheusRule.enabled=true,dashboard.enabled=true,serviceMonitor.jobLabel=proxies",
    ])?;
    let objects: Vec<Value> = serde_saphyr::from_multiple(&text)?;
    let of_kind = |kind: &str| {
        let found = objects.iter().find(|object| object["kind"] == kind);
        found.with_context(|| format!("no {kind} in {text}"))
    };
    let (rule, dashboard) = (of_kind("PrometheusRule")?, of_kind("ConfigMap")?);
    let mut expected = Vec::new();
    for file in ["rules", "alerts"] {
        let text = fs::read_to_string(deploy(&format!("prometheus/{file}.yaml")))?;
        let text = text.replace(r#"job="kube-proxy""#, r#"job="proxies""#);
        let mut rules: Value = serde_saphyr::from_str(&text)?;
        expected.push(rules["groups"][0].take());
    }
    let expected = Value::from(expected);
    let groups = &rule["spec"]["groups"];
    ensure!(*groups == expected, "{groups} instead of {expected}");
    let shown = dashboard["data"]["kube-proxy-rs.json"].as_str();
    let shown: Value = serde_json::from_str(shown.context("a dashboard")?)?;
    let file = fs::read_to_string(deploy("prometheus/dashboards/kube-proxy-rs.json"))?;
    ensure!(
        shown == serde_json::from_str::<Value>(&file)?,
        "another dashboard"
    );
    ensure!(
        dashboard["metadata"]["labels"]["grafana_dashboard"] == "1",
        "{}",
        dashboard["metadata"]
    );
    let arguments = ["apply", "--dry-run=server", "-f", "-"];
    succeeded(&arguments, &testbed.kubectl_as("admin", &arguments, &text));
    Ok(())
}

/// The kinds of the Prometheus operator, as its release has them. They are removed with this.
struct OperatorKinds<'a> {
    testbed: &'a Testbed,
    folder: PathBuf,
}

impl<'a> OperatorKinds<'a> {
    fn install(testbed: &'a Testbed) -> Result<Self> {
        let folder = Testbed::built("operator-kinds").map_err(anyhow::Error::msg)?;
        let kinds = Self { testbed, folder };
        kinds.kubectl(&["apply", "--server-side"])?;
        kinds.kubectl(&["wait", "--for=condition=Established", "--timeout=60s"])?;
        Ok(kinds)
    }

    fn kubectl(&self, arguments: &[&str]) -> Result<()> {
        let folder = self.folder.to_str().context("a path")?;
        let arguments = [arguments, &["-f", folder]].concat();
        let output = self.testbed.kubectl_as("admin", &arguments, "");
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{arguments:?}: {errors}");
        Ok(())
    }
}

impl Drop for OperatorKinds<'_> {
    fn drop(&mut self) {
        // The test's own failure is what counts.
        drop(self.kubectl(&["delete", "--ignore-not-found", "--wait=false"]));
    }
}

/// Compares with `tests/golden/helm`, or writes it there where `UPDATE_GOLDEN` is set.
fn compare(set: &str, text: &str) -> Result<()> {
    let path = format!(
        "{}/tests/golden/helm/{set}.yaml",
        env!("CARGO_MANIFEST_DIR")
    );
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        return Ok(fs::write(path, text)?);
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    ensure!(
        text == expected,
        "{path} differs; run hack/update-golden.sh with KPR_TESTBED and look at the difference. It should be\n{text}"
    );
    Ok(())
}

/// A release. It is removed with this.
pub(crate) struct Release<'a> {
    helm: &'a Helm,
}

impl<'a> Release<'a> {
    /// Installs the chart with a set of values and single values over them.
    pub(crate) fn install(helm: &'a Helm, set: &str, more: &[&str]) -> Result<Self> {
        let release = Self { helm };
        let (chart, values) = (chart(), values(set));
        let arguments = ["install", "kpr", &chart, "--values", &values];
        helm.run(&[&arguments[..], more].concat())?;
        Ok(release)
    }
}

impl Drop for Release<'_> {
    fn drop(&mut self) {
        let arguments = ["uninstall", "kpr", "--ignore-not-found"];
        // The test's own failure is what counts.
        drop(self.helm.output(&arguments));
    }
}

/// Mode in the ConfigMap, and the checksum by which the DaemonSet's pods follow it.
fn installed(testbed: &Testbed) -> Result<(String, Value)> {
    let get = |kind: &str| -> Result<Value> {
        let arguments = [
            "get",
            kind,
            "kube-proxy-rs",
            "-n",
            "kube-system",
            "-o",
            "json",
        ];
        Ok(serde_json::from_str(&testbed.kubectl(&arguments))?)
    };
    let config = get("configmap")?;
    let file = config["data"]["config.conf"].as_str().unwrap_or_default();
    let mode = file.lines().find_map(|line| line.strip_prefix("mode: "));
    let daemon_set = get("daemonset")?;
    let checksum = &daemon_set["spec"]["template"]["metadata"]["annotations"]["checksum/config"];
    Ok((mode.context("no mode")?.to_owned(), checksum.clone()))
}

fn release_lives_and_goes(testbed: &Testbed) -> Result<()> {
    let helm = Helm::new(testbed)?;
    let release = Release::install(&helm, "defaults", &[])?;
    let first = installed(testbed)?;
    ensure!(first.0 == "ipvs" && first.1.is_string(), "{first:?}");
    let notes = helm.run(&["get", "notes", "kpr"])?;
    for text in [
        "kube-proxy-rs runs in ipvs mode",
        "clusterCIDR is not set",
        "kubectl -n kube-system rollout status daemonset/kube-proxy-rs",
    ] {
        ensure!(notes.contains(text), "no {text:?} in {notes}");
    }
    let (chart, defaults) = (chart(), values("defaults"));
    let upgrade = ["upgrade", "kpr", &chart, "--values", &defaults];
    let to_iptables = [
        "--set",
        "mode=iptables",
        "--set",
        "clusterCIDR=10.244.0.0/16",
    ];
    helm.run(&[&upgrade[..], &to_iptables].concat())?;
    let second = installed(testbed)?;
    ensure!(second.0 == "iptables" && second.1 != first.1, "{second:?}");
    let notes = helm.run(&["get", "notes", "kpr"])?;
    ensure!(!notes.contains("clusterCIDR"), "{notes}");
    helm.run(&["rollback", "kpr", "1"])?;
    ensure!(installed(testbed)? == first, "{:?}", installed(testbed)?);
    helm.run(&["uninstall", "kpr"])?;
    let left = testbed.kubectl(&[
        "get",
        "serviceaccounts,configmaps,daemonsets,services,clusterrolebindings",
        "--all-namespaces",
        "--selector=app.kubernetes.io/instance=kpr",
        "-o",
        "name",
    ]);
    ensure!(left.is_empty(), "{left}");
    drop(release);
    Ok(())
}
