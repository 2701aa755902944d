// SPDX-License-Identifier: Apache-2.0
//! Fields, flags and feature gates that kube-proxy had once or never, and what to do about them.

use serde_json::Value;

use super::types::KubeProxyConfiguration;

/// Fields of the file.
const FIELDS: [(&str, &str); 10] = [
    ("udpIdleTimeout", "gone since v1.26, remove it"),
    ("resourceContainer", "gone since v1.16, remove it"),
    (
        "conntrack.max",
        "gone since v1.16, remove it; conntrack.maxPerCore and conntrack.min set the limit",
    ),
    (
        "ipvs.masqueradeAll",
        "never was a field: use iptables.masqueradeAll, which counts in ipvs mode, too",
    ),
    (
        "ipvs.masqueradeBit",
        "never was a field: use iptables.masqueradeBit, which counts in ipvs mode, too",
    ),
    ("ipvs.algorithm", "never was a field: use ipvs.scheduler"),
    ("proxyMode", "never was a field: use mode"),
    ("address", "never was a field: use bindAddress"),
    ("healthzPort", "never was a field: use healthzBindAddress"),
    ("metricsPort", "never was a field: use metricsBindAddress"),
];

/// Flags, without their dashes.
const FLAGS: [(&str, &str); 36] = [
    ("add-dir-header", KLOG),
    ("alsologtostderr", KLOG),
    ("log-backtrace-at", KLOG),
    ("log-dir", KLOG),
    ("log-file", KLOG),
    ("log-file-max-size", KLOG),
    ("logtostderr", KLOG),
    ("one-output", KLOG),
    ("skip-headers", KLOG),
    ("skip-log-headers", KLOG),
    ("stderrthreshold", KLOG),
    (
        "cleanup-iptables",
        "gone from kube-proxy since v1.16; remove it (--cleanup deletes all rules, and exits)",
    ),
    (
        "cleanup-ipvs",
        "gone from kube-proxy; remove it (--cleanup deletes all rules, and exits)",
    ),
    (
        "conntrack-max",
        "gone from kube-proxy since v1.16; remove it, or use --conntrack-max-per-core and --conntrack-min",
    ),
    (
        "resource-container",
        "gone from kube-proxy since v1.16; remove it",
    ),
    ("udp-timeout", USERSPACE),
    ("proxy-port-range", USERSPACE),
    (
        "legacy-userspace-proxy",
        "gone from kube-proxy since v1.2; use --proxy-mode",
    ),
    (
        "etcd-servers",
        "gone from kube-proxy since v1.0; use --kubeconfig or --master",
    ),
    (
        "api-servers",
        "no flag of kube-proxy; use --kubeconfig or --master",
    ),
    ("proxy-namespace", "gone from kube-proxy; remove it"),
    (
        "azure-container-registry-config",
        "gone from kube-proxy; remove it",
    ),
    ("google-json-key", "gone from kube-proxy; remove it"),
    ("allow-privileged", "no flag of kube-proxy; remove it"),
    ("cluster-dns", KUBELET),
    ("cluster-domain", KUBELET),
    ("node-ip", "a flag of the kubelet; use --bind-address"),
    (
        "service-cluster-ip-range",
        "a flag of the API server; kube-proxy wants the pods' range: --cluster-cidr",
    ),
    ("network-plugin", KUBELET),
    ("enable-dsr", WINDOWS),
    ("forward-healthcheck-vip", WINDOWS),
    ("network-name", WINDOWS),
    ("root-hnsendpoint-name", WINDOWS),
    ("source-vip", WINDOWS),
    ("windows-service", WINDOWS),
    ("windows-priorityclass", WINDOWS),
];
const KLOG: &str = "gone from kube-proxy since v1.26; remove it, logs go to stderr";
const USERSPACE: &str = "gone from kube-proxy with its userspace mode (v1.26); remove it";
const KUBELET: &str = "a flag of the kubelet; remove it";
const WINDOWS: &str = "a flag of kube-proxy for Windows; remove it";

/// Feature gates, with the first version that surely has them no more.
const GATES: [(&str, &str); 15] = [
    ("DualStack", "never was a gate, remove it"),
    ("EndpointSlice", "gone by v1.25, remove it"),
    ("EndpointSliceProxying", "gone by v1.25, remove it"),
    ("EndpointSliceTerminatingCondition", GONE),
    ("IPTablesOwnershipCleanup", GONE),
    ("IPv6DualStack", "gone by v1.25, remove it"),
    ("KubeProxyDrainingTerminatingNodes", GONE),
    ("MinimizeIPTablesRestore", GONE),
    ("MixedProtocolLBService", GONE),
    ("ProxyTerminatingEndpoints", GONE),
    ("SCTPSupport", "gone by v1.23, remove it"),
    ("ServiceInternalTrafficPolicy", GONE),
    ("ServiceTopology", "gone by v1.23, remove it"),
    ("SupportIPVSProxyMode", "gone since v1.20, remove it"),
    ("WindowsEndpointSliceProxying", "gone by v1.25, remove it"),
];
const GONE: &str = "gone from Kubernetes, remove it";

/// What to say of a field that does not exist.
pub(super) fn field(path: &str) -> String {
    if let Some((_, advice)) = FIELDS.iter().find(|(name, _)| *name == path) {
        return (*advice).to_owned();
    }
    let known = known_fields();
    let (parent, name) = split(path);
    if let Some(meant) = known.iter().find(|known| known.eq_ignore_ascii_case(path)) {
        return format!("unknown field, has no effect: upper and lower case matter, write {meant}");
    }
    let is_namesake = |known: &&String| split(known).1.eq_ignore_ascii_case(name);
    let meant: Vec<&str> = known
        .iter()
        .filter(is_namesake)
        .map(String::as_str)
        .collect();
    if !meant.is_empty() {
        return format!("unknown field, has no effect: write {}", meant.join(" or "));
    }
    let is_close = |known: &&String| {
        let (other_parent, other) = split(known);
        // Two wrong letters, in words that have more than these.
        other_parent == parent && name.len() > 3 && strsim::osa_distance(other, name) <= 2
    };
    match known.iter().find(is_close) {
        Some(meant) => format!("unknown field, has no effect: did you mean {meant}?"),
        None => "unknown field, has no effect: remove it".to_owned(),
    }
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('.').unwrap_or(("", path))
}

/// The paths of all fields, but for the few that are left out where they have their default.
fn known_fields() -> Vec<String> {
    fn collect(value: &Value, path: &str, into: &mut Vec<String>) {
        for (name, value) in value.as_object().into_iter().flatten() {
            let path = if path.is_empty() {
                name.clone()
            } else {
                format!("{path}.{name}")
            };
            collect(value, &path, into);
            into.push(path);
        }
    }
    let mut known = Vec::new();
    // It always has a JSON form.
    if let Ok(value) = serde_json::to_value(KubeProxyConfiguration::with_defaults()) {
        collect(&value, "", &mut known);
    }
    known
}

/// What to say of a flag that does not exist, if that is known.
pub(super) fn flag(name: &str) -> Option<&'static str> {
    find(&FLAGS, name)
}

/// What to say of a feature gate that does not exist, if that is known.
pub(super) fn gate(name: &str) -> Option<&'static str> {
    find(&GATES, name)
}

fn find(table: &[(&str, &'static str)], name: &str) -> Option<&'static str> {
    let found = table.iter().find(|(known, _)| *known == name);
    found.map(|(_, advice)| *advice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::gates::FeatureGates;

    #[test]
    fn unknown_fields_come_with_what_to_do() {
        for (path, expected) in [
            ("udpIdleTimeout", "gone since v1.26, remove it"),
            (
                "Mode",
                "unknown field, has no effect: upper and lower case matter, write mode",
            ),
            (
                "ipvs.ExcludeCIDRs",
                "unknown field, has no effect: upper and lower case matter, write ipvs.excludeCIDRs",
            ),
            (
                "strictARP",
                "unknown field, has no effect: write ipvs.strictARP",
            ),
            (
                "masqueradeAll",
                "unknown field, has no effect: write iptables.masqueradeAll or nftables.masqueradeAll",
            ),
            (
                "metrisBindAddress",
                "unknown field, has no effect: did you mean metricsBindAddress?",
            ),
            (
                "ipvs.sheduler",
                "unknown field, has no effect: did you mean ipvs.scheduler?",
            ),
            ("x-anchors", "unknown field, has no effect: remove it"),
            ("ipvs.colour", "unknown field, has no effect: remove it"),
        ] {
            assert_eq!(field(path), expected, "{path}");
        }
    }

    #[test]
    fn what_is_gone_is_not_there() {
        for (path, _) in FIELDS {
            assert!(!known_fields().iter().any(|known| known == path), "{path}");
        }
        for (name, _) in GATES {
            let gates = [(name.to_owned(), true)].into_iter().collect();
            assert_eq!(FeatureGates::from_map(&gates).1.len(), 1, "{name}");
        }
        for (name, _) in FLAGS {
            let command = crate::config::flags::command();
            let exists = command
                .get_arguments()
                .any(|arg| arg.get_long() == Some(name));
            assert!(!exists, "{name}");
        }
    }
}
