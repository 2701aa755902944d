// SPDX-License-Identifier: Apache-2.0
//! What `deploy/` holds, before a real API server: it is accepted as it stands.
//!
//! `KPR_TESTBED` names the folder that `hack/testbed/up` made; without it every test reads *ignored*.
#![cfg(test)]

use std::path::PathBuf;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

use testbed::{Testbed, succeeded};

#[path = "cluster/testbed.rs"]
mod testbed;

fn deploy(path: &str) -> String {
    format!("{}/deploy/{path}", env!("CARGO_MANIFEST_DIR"))
}

fn overlay_is_accepted(testbed: &Testbed, mode: &str) -> Result<(), Failed> {
    let folder = deploy(&format!("kustomize/overlays/{mode}"));
    let accepted = testbed.kubectl(&["apply", "--dry-run=server", "-k", &folder]);
    for object in [
        "serviceaccount/kube-proxy-rs created",
        "clusterrolebinding.rbac.authorization.k8s.io/kube-proxy-rs created",
        "daemonset.apps/kube-proxy-rs created",
    ] {
        if !accepted.contains(object) {
            return Err(format!("no {object} in {accepted}").into());
        }
    }
    Ok(())
}

/// kubeadm's DaemonSet, as far as the patch meets it.
const KUBEADMS: &str = "
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: kube-proxy, namespace: kube-system, labels: {k8s-app: kube-proxy}}
spec:
  selector: {matchLabels: {k8s-app: kube-proxy}}
  updateStrategy: {type: RollingUpdate}
  template:
    metadata: {labels: {k8s-app: kube-proxy}}
    spec:
      hostNetwork: true
      containers:
      - name: kube-proxy
        image: registry.k8s.io/kube-proxy:v1.37.2
        command:
        - /usr/local/bin/kube-proxy
        - --config=/var/lib/kube-proxy/config.conf
        - --hostname-override=$(NODE_NAME)
        env: [{name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
        securityContext: {privileged: true}
        volumeMounts: [{name: kube-proxy, mountPath: /var/lib/kube-proxy}]
      volumes: [{name: kube-proxy, configMap: {name: kube-proxy}}]
";

/// The patch changes image and command and leaves everything else.
fn kubeadm_patch_is_accepted(testbed: &Testbed) -> Result<(), Failed> {
    testbed.apply(KUBEADMS);
    let patch = deploy("kubeadm/kubeproxydaemonset+strategic.yaml");
    let arguments = [
        "patch",
        "daemonset",
        "kube-proxy",
        "-n",
        "kube-system",
        "--type=strategic",
        "--patch-file",
        &patch,
        "--dry-run=server",
        "-o",
        "json",
    ];
    let output = testbed.kubectl_as("admin", &arguments, "");
    let removed = ["delete", "daemonset", "kube-proxy", "-n", "kube-system"];
    testbed.kubectl(&removed);
    let patched: serde_json::Value = serde_json::from_str(&succeeded(&arguments, &output))?;
    let container = &patched["spec"]["template"]["spec"]["containers"][0];
    let expected = [
        ("image", "kube-proxy-rs:latest".into()),
        (
            "command",
            serde_json::json!([
                "/usr/local/bin/kube-proxy-rs",
                "--config=/var/lib/kube-proxy/config.conf",
                "--hostname-override=$(NODE_NAME)"
            ]),
        ),
        ("securityContext", serde_json::json!({ "privileged": true })),
    ];
    for (field, value) in expected {
        if container[field] != value {
            return Err(format!("{field} is {}", container[field]).into());
        }
    }
    let mounted = container["volumeMounts"][0]["mountPath"] == "/var/lib/kube-proxy";
    mounted
        .then_some(())
        .ok_or_else(|| "the ConfigMap is not mounted".into())
}

type Test = fn(&Testbed) -> Result<(), Failed>;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let testbed = std::env::var_os("KPR_TESTBED").map(PathBuf::from);
    let tests: [(&str, Test); 3] = [
        ("ipvs_overlay_is_accepted", |t| {
            overlay_is_accepted(t, "ipvs")
        }),
        ("iptables_overlay_is_accepted", |t| {
            overlay_is_accepted(t, "iptables")
        }),
        ("kubeadm_patch_is_accepted", kubeadm_patch_is_accepted),
    ];
    let trials = tests.into_iter().map(|(name, test)| {
        let directory = testbed.clone();
        let run = move || {
            let directory = directory.ok_or("KPR_TESTBED is not set")?;
            test(&Testbed::open(&directory)?)
        };
        Trial::test(name, run).with_ignored_flag(testbed.is_none())
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}
