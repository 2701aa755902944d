// SPDX-License-Identifier: Apache-2.0
//! Which changed settings need a restart.

use super::settings::Settings;

/// The flags or fields that differ and are read only at start; all others may change while the
/// proxy runs.
pub fn needs_restart(old: &Settings, new: &Settings) -> Vec<&'static str> {
    macro_rules! differing {
        ($($field:ident: $name:literal),*; $($live:ident),*,) => {{
            // Without `..`, so that a new setting cannot be forgotten.
            let Settings { $($field,)* $($live: _,)* } = new;
            [$((*$field != old.$field).then_some($name),)*].into_iter().flatten().collect()
        }};
    }
    differing! {
        mode: "mode",
        source: "clientConnection",
        hostname_override: "hostnameOverride",
        healthz_address: "healthzBindAddress",
        metrics_address: "metricsBindAddress",
        bind_address_hard_fail: "bindAddressHardFail",
        iptables_backend: "--iptables-backend",
        ipvs_rules: "--ipvs-rules",
        budget: "--service-max-objects",
        annotations: "--service-annotations",
        service_metrics: "--service-metrics-limit",
        allow_external_ips: "featureGates.AllowServiceExternalIPs",
        logging: "logging",
        kubernetes_version: "--version",
        config_file: "--config";
        // What planning reads, and the loop.
        bind_address, sync, masquerade_all, masquerade_bit, iptables_localhost_node_ports,
        localhost_node_ports, ipvs, detect_local, node_port_addresses, node_port_range,
        // Written again.
        conntrack, oom_score_adj,
        // For people.
        notices, configuration,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Command, parse};

    fn settings(body: &str) -> Settings {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.conf");
        let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        std::fs::write(&path, format!("{head}{body}")).unwrap();
        let config = format!("--config={}", path.display());
        match parse(["kube-proxy-rs", &config].map(Into::into)).unwrap() {
            // The folder is another one each time.
            Command::Run(settings) => Settings {
                config_file: None,
                ..*settings
            },
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn most_fields_change_while_the_proxy_runs() {
        let old = settings("");
        for body in [
            "bindAddress: 192.0.2.1\nhealthzBindAddress: 0.0.0.0\nmetricsBindAddress: 127.0.0.1\n",
            "clusterCIDR: 10.0.0.0/8\n",
            "configSyncPeriod: 1m\nclientConnection: {qps: 50}\n",
            "conntrack: {min: 5, tcpBeLiberal: true}\n",
            "detectLocal: {bridgeInterface: cni0}\ndetectLocalMode: BridgeInterface\n",
            "enableProfiling: true\n",
            "iptables: {masqueradeAll: true, masqueradeBit: 3, syncPeriod: 1m, minSyncPeriod: 5s, localhostNodePorts: false}\n",
            "ipvs: {scheduler: lc, excludeCIDRs: [10.0.0.0/8], strictARP: true, tcpTimeout: 1m}\n",
            "nodePortAddresses: [primary]\n",
            "oomScoreAdj: 5\n",
        ] {
            assert_eq!(needs_restart(&old, &settings(body)), [""; 0], "{body}");
        }
    }

    #[test]
    fn what_is_read_at_start_needs_another() {
        let old = settings("");
        for (body, field) in [
            ("mode: ipvs\n", "mode"),
            ("clientConnection: {kubeconfig: /k}\n", "clientConnection"),
            ("hostnameOverride: other\n", "hostnameOverride"),
            ("healthzBindAddress: 0.0.0.0:1\n", "healthzBindAddress"),
            ("metricsBindAddress: 127.0.0.1:1\n", "metricsBindAddress"),
            ("bindAddressHardFail: true\n", "bindAddressHardFail"),
            (
                "featureGates: {AllowServiceExternalIPs: false}\n",
                "featureGates.AllowServiceExternalIPs",
            ),
            ("logging: {verbosity: 4}\n", "logging"),
        ] {
            assert_eq!(needs_restart(&old, &settings(body)), [field], "{body}");
        }
    }
}
