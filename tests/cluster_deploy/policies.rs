// SPDX-License-Identifier: Apache-2.0
//! The admission policies: what a tenant may write that has the right to edit its namespace and no
//! other, and with the rights that the policies ask for.

use anyhow::{Result, ensure};
use kpr_testkit::testbed::{Objects, Testbed};
use kpr_testkit::wait;

use crate::{Test, deploy};

pub(crate) const TESTS: &[Test] = &[(
    "policies::tenants_need_rights_for_what_reaches_others",
    tenants_need_rights_for_what_reaches_others,
)];

const NAMESPACE: &str = "policy-tenant";

/// The namespace of a tenant, who may edit it.
const TENANT: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: policy-tenant}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: tenant, namespace: policy-tenant}
rules:
- apiGroups: ['', discovery.k8s.io]
  resources: [services, endpointslices, endpoints]
  verbs: ['*']
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: tenant, namespace: policy-tenant}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: tenant}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: tenant}]
";

/// What an operator adds for a tenant that may.
const RIGHTS: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: trusted, namespace: policy-tenant}
rules:
- apiGroups: [services.kube-proxy-rs.io]
  resources: [externalips, annotations]
  verbs: [use]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: trusted, namespace: policy-tenant}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: trusted}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: tenant}]
";

fn service(annotations: &str, external_ips: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: web, namespace: {NAMESPACE}, annotations: {annotations}}}, spec: {{ports: [{{port: 80}}], externalIPs: {external_ips}}}}}"
    )
}

fn slice(annotations: &str) -> String {
    format!(
        "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: web, namespace: {NAMESPACE}, annotations: {annotations}}}, addressType: IPv4, endpoints: [], ports: []}}"
    )
}

/// What the API server says to the tenant; nothing is kept unless `keeps`.
fn answer(testbed: &Testbed, object: &str, keeps: bool) -> Result<(), String> {
    let dry_run = if keeps { "none" } else { "server" };
    let dry_run = format!("--dry-run={dry_run}");
    let arguments = ["apply", "--as=tenant", &dry_run, "-f", "-"];
    // Older versions of kubectl take what begins with a brace for JSON.
    let object = format!("---\n{object}");
    let output = testbed.kubectl_as("admin", &arguments, &object);
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn tenants_need_rights_for_what_reaches_others(testbed: &Testbed) -> Result<()> {
    let _tenant = Objects::new(testbed, TENANT);
    let read = |name: &str| std::fs::read_to_string(deploy(&format!("policies/{name}.yaml")));
    let policies = format!("{}\n---\n{}", read("external-ips")?, read("annotations")?);
    // Made before there were policies.
    let old = service("{kube-proxy-rs.io/scheduler: lc}", "[198.51.100.9]");
    wait::until("the tenant may edit", || {
        answer(testbed, &old, true).map_err(anyhow::Error::msg)
    })?;
    let _policies = Objects::new(testbed, &policies);
    let refused = [
        (
            service("{}", "[198.51.100.1]"),
            "externalips.services.kube-proxy-rs.io",
        ),
        (
            service("{kube-proxy-rs.io/forwarding-method: ipip}", "[]"),
            "kube-proxy-rs.io/forwarding-method",
        ),
        (
            service("{kube-router.io/service.dsr: tunnel}", "[]"),
            "kube-router.io/service.dsr",
        ),
        (
            slice("{kube-proxy-rs.io/weight: '0'}"),
            "kube-proxy-rs.io/weight",
        ),
    ];
    // The API server takes up a policy a little later.
    for (object, why) in &refused {
        wait::until("the policy holds", || {
            let said = answer(testbed, object, false);
            let is_refused = said.as_ref().is_err_and(|said| said.contains(why));
            ensure!(is_refused, "{object}: {said:?}");
            Ok(())
        })?;
    }
    for harmless in [
        &old,
        &service(
            "{kube-proxy-rs.io/scheduler: lc, example.com/x: 'y'}",
            "[198.51.100.9]",
        ),
        &service("{}", "[]"),
        &slice("{example.com/x: 'y'}"),
    ] {
        let said = answer(testbed, harmless, false);
        ensure!(said.is_ok(), "{harmless}: {said:?}");
    }
    let _rights = Objects::new(testbed, RIGHTS);
    for (object, _) in &refused {
        wait::until("the tenant has the rights", || {
            answer(testbed, object, false).map_err(anyhow::Error::msg)
        })?;
    }
    Ok(())
}
