// SPDX-License-Identifier: Apache-2.0
//! What a restart cannot help does not make a kubelet restart the proxy: the API server refuses a
//! kind, the Node has no pod CIDRs.

use std::thread;

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::Test;
use crate::ours;
use kpr_testkit::kubelet::{Kubelet, Probed};
use kpr_testkit::machine::Machine;
use kpr_testkit::testbed::{Objects, Testbed};

pub(crate) const TESTS: &[Test] = &[(
    "a_kubelet_does_not_restart_it_for_what_others_lack",
    a_kubelet_does_not_restart_it_for_what_others_lack,
)];

const BINDING: &str = "kubeadm:node-proxier";

/// All but Services.
const FEW_RIGHTS: &str = "apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: kpr-no-services}
rules:
- {apiGroups: [\"\"], resources: [nodes], verbs: [get, list, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [get, list, watch]}
- {apiGroups: [networking.k8s.io], resources: [servicecidrs], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: kpr-no-services}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: kpr-no-services}
subjects: [{kind: ServiceAccount, name: kube-proxy, namespace: kube-system}]
";

/// The rights of kube-proxy, which are given back with this.
struct WithoutRights<'a>(&'a Testbed, String);

impl<'a> WithoutRights<'a> {
    fn new(testbed: &'a Testbed) -> Self {
        let binding = testbed.kubectl(&["get", "clusterrolebinding", BINDING, "-o", "json"]);
        testbed.kubectl(&["delete", "clusterrolebinding", BINDING]);
        Self(testbed, binding)
    }
}

impl Drop for WithoutRights<'_> {
    fn drop(&mut self) {
        let arguments = ["create", "-f", "-"];
        // The test's own failure is what counts.
        drop(self.0.kubectl_as("admin", &arguments, &self.1));
    }
}

fn a_kubelet_does_not_restart_it_for_what_others_lack(testbed: &Testbed) -> Result<()> {
    let kubelet = Kubelet::new()?;
    let waits = Machine::new(testbed, "kpr-no-cidrs", 0)?;
    waits.register("{}");
    let waiting = waits.spawn(waits.with_flags(
        &ours(),
        &[kubelet.sync_period, "--detect-local-mode=NodeCIDR"],
    ))?;
    let refused = Machine::new(testbed, "kpr-refused", 1)?;
    refused.register("{}");
    let _few = Objects::new(testbed, FEW_RIGHTS);
    let rights = WithoutRights::new(testbed);
    let refusing = refused.spawn(refused.with_flags(&ours(), &[kubelet.sync_period]))?;
    refusing.wait_for_log(&["watch failed", "kind=\"Service\"", "403"])?;

    let (one, other) = thread::scope(|scope| {
        let one = scope.spawn(|| kubelet.watch(&waits.namespace, |_| Ok(())));
        let other = kubelet.watch(&refused.namespace, |_| Ok(()));
        (one.join(), other)
    });
    let one = one.map_err(|_panic| anyhow!("the kubelet died"))??;
    eprintln!("no pod CIDRs: {one:?}, Services refused: {other:?}");
    let is_calm = |probed: &Probed| probed.failures.is_empty() && probed.probes > 30;
    ensure!(is_calm(&one), "{one:?}\n{}", waiting.log());
    let other = other?;
    ensure!(is_calm(&other), "{other:?}\n{}", refusing.log());

    drop(rights);
    refused
        .health_becomes(&refusing, 200)
        .context("after the rights came")?;
    refused.rules_become(&refusing, "it serves", |rules| {
        rules.contains("default/kubernetes:https cluster IP")
    })
}
