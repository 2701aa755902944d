// SPDX-License-Identifier: Apache-2.0
//! The patch in the hands of the real kubeadm: its DaemonSet becomes ours, stays ours at an
//! upgrade, and becomes kube-proxy's again where the patch is gone.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::Test;
use crate::deploy;
use kpr_testkit::testbed::{Testbed, program};

pub(crate) const TESTS: &[Test] = &[("kubeadm::patch_goes_there_and_back", there_and_back)];

/// On what only `kubeadm upgrade` looks at.
const LABEL: &str = "kpr-kubeadm";
const VERSION: &str = "v1.37.2";

/// kubeadm on a control plane that is this test bed.
pub(crate) struct Kubeadm<'a> {
    testbed: &'a Testbed,
    program: PathBuf,
    files: TempDir,
}

impl<'a> Kubeadm<'a> {
    pub(crate) fn new(testbed: &'a Testbed) -> Result<Self> {
        let files = tempfile::Builder::new().prefix("kpr-kubeadm-").tempdir()?;
        let patches = files.path().join("patches");
        fs::create_dir(&patches)?;
        let (host, server) = (testbed.env("HOST4"), testbed.api_server());
        let config = format!(
            "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\n\
             kubernetesVersion: {VERSION}\ncontrolPlaneEndpoint: {server}\n\
             networking: {{podSubnet: '10.244.0.0/16,fd00:244::/56', serviceSubnet: '{},{}'}}\n---\n\
             apiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\n\
             nodeRegistration: {{name: node, criSocket: 'unix:///run/none.sock'}}\n\
             localAPIEndpoint: {{advertiseAddress: {host}}}\n\
             patches: {{directory: {}}}\n---\n\
             apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: iptables\n",
            testbed.env("CIDR4"),
            testbed.env("CIDR6"),
            patches.display(),
        );
        fs::write(files.path().join("config"), config)?;
        let program = Testbed::built("kubeadm").map_err(anyhow::Error::msg)?;
        testbed.apply(&control_plane(&server)?);
        Ok(Self {
            testbed,
            program,
            files,
        })
    }

    /// Puts our patch into the folder of patches.
    pub(crate) fn add_patch(&self) -> Result<()> {
        fs::copy(deploy(&format!("kubeadm/{PATCH}")), self.patch())?;
        Ok(())
    }

    fn remove_patch(&self) -> Result<()> {
        Ok(fs::remove_file(self.patch())?)
    }

    fn patch(&self) -> PathBuf {
        self.files.path().join("patches").join(PATCH)
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = program(&self.program);
        command
            .args(arguments)
            .arg("--kubeconfig")
            .arg(self.testbed.kubeconfig("admin"));
        let output = command.output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubeadm {arguments:?}: {errors}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// What `kubeadm init` does for kube-proxy.
    pub(crate) fn init(&self) -> Result<()> {
        let config = self.files.path().join("config");
        let config = config.to_str().context("a path")?;
        for part in ["kubeadm", "kubelet"] {
            self.run(&["init", "phase", "upload-config", part, "--config", config])?;
        }
        self.run(&["init", "phase", "addon", "kube-proxy", "--config", config])?;
        Ok(())
    }

    /// What `kubeadm upgrade apply` does for kube-proxy.
    fn upgrade(&self) -> Result<()> {
        let patches = self.files.path().join("patches");
        let patches = patches.to_str().context("a path")?;
        self.run(&[
            "upgrade",
            "apply",
            "phase",
            "addon",
            "kube-proxy",
            VERSION,
            "--patches",
            patches,
        ])?;
        Ok(())
    }
}

/// This machine as a control plane, for `kubeadm upgrade`: without a `kubelet.conf` the node is
/// named after the host.
fn control_plane(server: &str) -> Result<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname")?;
    let name = name.trim().to_lowercase();
    Ok(format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{{LABEL}: 'yes'}}}}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata:\n  name: kube-apiserver-{name}\n  namespace: kube-system\n  \
         labels: {{component: kube-apiserver, tier: control-plane, {LABEL}: 'yes'}}\n  \
         annotations: {{kubeadm.kubernetes.io/kube-apiserver.advertise-address.endpoint: '{server}'}}\n\
         spec:\n  nodeName: {name}\n  containers: [{{name: kube-apiserver, image: 'registry.k8s.io/kube-apiserver:{VERSION}'}}]\n"
    ))
}

impl Drop for Kubeadm<'_> {
    fn drop(&mut self) {
        let delete = ["delete", "--ignore-not-found", "-n", "kube-system"];
        let objects = [
            "daemonset/kube-proxy",
            "configmap/kube-proxy",
            "configmap/kubeadm-config",
            "configmap/kubelet-config",
        ];
        let labelled = [
            "node,pod",
            "--selector",
            LABEL,
            "--force",
            "--grace-period=0",
        ];
        for what in [&objects[..], &labelled] {
            // The test's own failure is what counts.
            let arguments = [&delete[..], what].concat();
            drop(self.testbed.kubectl_as("admin", &arguments, ""));
        }
    }
}

const PATCH: &str = "kubeproxydaemonset+strategic.yaml";

/// The template of the DaemonSet's pods, without what the API server adds.
fn pod(testbed: &Testbed) -> Result<Value> {
    let arguments = [
        "get",
        "daemonset",
        "kube-proxy",
        "-n",
        "kube-system",
        "-o",
        "json",
    ];
    let daemon_set: Value = serde_json::from_str(&testbed.kubectl(&arguments))?;
    Ok(daemon_set["spec"].clone())
}

fn there_and_back(testbed: &Testbed) -> Result<()> {
    let kubeadm = Kubeadm::new(testbed)?;
    kubeadm.init()?;
    let before = pod(testbed)?;
    ensure!(
        image(&before) == "registry.k8s.io/kube-proxy:v1.37.2",
        "{before}"
    );

    kubeadm.add_patch()?;
    kubeadm.init()?;
    let patched = pod(testbed)?;
    is_ours(&before, &patched)?;
    // An upgrade writes the DaemonSet anew.
    kubeadm.upgrade().context("with the patch")?;
    ensure!(pod(testbed)? == patched, "{}", pod(testbed)?);

    kubeadm.remove_patch()?;
    kubeadm.upgrade().context("without the patch")?;
    ensure!(pod(testbed)? == before, "{}", pod(testbed)?);
    Ok(())
}

fn image(spec: &Value) -> &Value {
    &spec["template"]["spec"]["containers"][0]["image"]
}

/// Only what the patch names differs from kubeadm's own.
fn is_ours(before: &Value, patched: &Value) -> Result<()> {
    let mut expected = before.clone();
    let container = &mut expected["template"]["spec"]["containers"][0];
    container["image"] = json!("kube-proxy-rs:latest");
    container["command"] = json!([
        "/usr/local/bin/kube-proxy-rs",
        "--config=/var/lib/kube-proxy/config.conf",
        "--hostname-override=$(NODE_NAME)"
    ]);
    for probe in ["livenessProbe", "readinessProbe"] {
        container[probe] = patched["template"]["spec"]["containers"][0][probe].clone();
        ensure!(container[probe]["httpGet"]["port"] == 10256, "{container}");
    }
    ensure!(*patched == expected, "it is\n{patched}\nnot\n{expected}");
    Ok(())
}
