// SPDX-License-Identifier: Apache-2.0
//! Plain manifests: the kustomize overlays and kind's echo Service.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::Test;
use crate::deploy;
use kpr_testkit::testbed::{Testbed, program};

pub(crate) const TESTS: &[Test] = &[
    ("manifests::ipvs_overlay_is_accepted", |testbed| {
        overlay(testbed, "ipvs")
    }),
    ("manifests::iptables_overlay_is_accepted", |testbed| {
        overlay(testbed, "iptables")
    }),
    ("manifests::echo_is_accepted", echo_is_accepted),
];

/// What the API server makes of an overlay, by kind.
fn objects(testbed: &Testbed, mode: &str) -> Result<BTreeMap<String, Vec<Value>>> {
    let folder = deploy(&format!("kustomize/overlays/{mode}"));
    let arguments = ["apply", "--dry-run=server", "-k", &folder, "-o", "json"];
    let list: Value = serde_json::from_str(&testbed.kubectl(&arguments))?;
    let mut objects = BTreeMap::<String, Vec<Value>>::new();
    for object in list["items"].as_array().context("a list")? {
        let kind = object["kind"].as_str().context("a kind")?;
        objects
            .entry(kind.to_owned())
            .or_default()
            .push(object.clone());
    }
    Ok(objects)
}

fn overlay(testbed: &Testbed, mode: &str) -> Result<()> {
    let objects = objects(testbed, mode)?;
    let count: Vec<_> = objects
        .iter()
        .map(|(kind, all)| (kind.as_str(), all.len()))
        .collect();
    // No Role of its own, and one binding.
    let expected = [
        ("ClusterRoleBinding", 1),
        ("ConfigMap", 2),
        ("DaemonSet", 1),
        ("ServiceAccount", 1),
    ];
    ensure!(count == expected, "{count:?}");
    let binding = &objects["ClusterRoleBinding"][0];
    is(binding, "/roleRef/name", &json!("system:node-proxier"))?;
    is(
        binding,
        "/subjects",
        &json!([{"kind": "ServiceAccount", "name": "kube-proxy-rs", "namespace": "kube-system"}]),
    )?;
    let config = objects["ConfigMap"]
        .iter()
        .find_map(|map| map["data"]["config.conf"].as_str());
    let config = config.context("no config.conf")?;
    ensure!(
        config.contains("kind: KubeProxyConfiguration")
            && config.contains(&format!("mode: {mode}\n")),
        "{config}"
    );

    let daemon_set = &objects["DaemonSet"][0];
    is(
        daemon_set,
        "/spec/updateStrategy",
        &json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}),
    )?;
    let pod = &daemon_set["spec"]["template"]["spec"];
    is(pod, "/serviceAccountName", &json!("kube-proxy-rs"))?;
    // Where SELinux enforces, no other type may use the host's lock.
    is(pod, "/securityContext/seLinuxOptions/type", &json!("spc_t"))?;
    is(pod, "/hostNetwork", &json!(true))?;
    is(pod, "/priorityClassName", &json!("system-node-critical"))?;
    is(pod, "/tolerations", &json!([{"operator": "Exists"}]))?;
    let container = &pod["containers"][0];
    is(
        container,
        "/readinessProbe/httpGet",
        &json!({"path": "/healthz", "port": "healthz", "scheme": "HTTP"}),
    )?;
    is(
        container,
        "/livenessProbe/httpGet",
        &json!({"path": "/livez", "port": "healthz", "scheme": "HTTP"}),
    )?;
    is(container, "/ports/0/containerPort", &json!(10256))?;
    is(
        container,
        "/securityContext",
        &json!({
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]},
        }),
    )?;
    ensure!(
        container["resources"]["requests"].is_object(),
        "{container}"
    );
    for (volume, mount) in [
        (
            json!({"name": "xtables-lock", "hostPath": {"path": "/run/xtables.lock", "type": "FileOrCreate"}}),
            json!({"name": "xtables-lock", "mountPath": "/run/xtables.lock"}),
        ),
        (
            json!({"name": "modules", "hostPath": {"path": "/lib/modules", "type": ""}}),
            json!({"name": "modules", "mountPath": "/lib/modules", "readOnly": true}),
        ),
    ] {
        ensure!(
            has(&pod["volumes"], &volume),
            "no {volume} in {}",
            pod["volumes"]
        );
        ensure!(
            has(&container["volumeMounts"], &mount),
            "no {mount} in {container}"
        );
    }
    Ok(())
}

fn is(object: &Value, pointer: &str, expected: &Value) -> Result<()> {
    let found = object.pointer(pointer);
    ensure!(
        found == Some(expected),
        "{pointer} is {found:?}, not {expected}"
    );
    Ok(())
}

fn has(list: &Value, item: &Value) -> bool {
    list.as_array().is_some_and(|list| list.contains(item))
}

fn echo_is_accepted(testbed: &Testbed) -> Result<()> {
    let file = deploy("kind/echo.yaml");
    let accepted = testbed.kubectl(&["apply", "--dry-run=server", "-f", &file]);
    let count = accepted.matches("created (server dry run)").count();
    ensure!(count == 3, "{accepted}");
    Ok(())
}

/// An overlay as an operator applies it, with the address of the API server filled in. It is
/// deleted with this.
pub(crate) struct Overlay<'a> {
    testbed: &'a Testbed,
    folder: TempDir,
    mode: &'static str,
}

impl<'a> Overlay<'a> {
    pub(crate) fn apply(testbed: &'a Testbed, mode: &'static str) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("kpr-overlay-").tempdir()?;
        let overlay = Self {
            testbed,
            folder,
            mode,
        };
        let copied = program(Path::new("cp"))
            .args(["-R", &deploy("kustomize")])
            .arg(overlay.folder.path())
            .status()?;
        ensure!(copied.success(), "cp: {copied}");
        let (host, port) = (testbed.env("HOST4"), testbed.env("API_PORT"));
        fs::write(
            overlay.path().join("api-server.env"),
            format!("KUBERNETES_SERVICE_HOST={host}\nKUBERNETES_SERVICE_PORT={port}\n"),
        )?;
        testbed.kubectl(&["apply", "-k", &overlay.path().to_string_lossy()]);
        Ok(overlay)
    }

    fn path(&self) -> PathBuf {
        self.folder
            .path()
            .join("kustomize/overlays")
            .join(self.mode)
    }
}

impl Drop for Overlay<'_> {
    fn drop(&mut self) {
        let folder = self.path();
        let arguments = [
            "delete",
            "--ignore-not-found",
            "-k",
            &folder.to_string_lossy(),
        ];
        // The test's own failure is what counts.
        drop(self.testbed.kubectl_as("admin", &arguments, ""));
    }
}
