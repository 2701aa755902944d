// SPDX-License-Identifier: Apache-2.0
//! Defaults of flags, and all flags with their values for `/flagz`.

use std::ffi::OsString;

use clap::parser::ValueSource;

use super::{FLAGS, FlagError, as_pflag, command};

/// The default that is shown for a flag.
pub(super) fn default_of(flag: &str) -> Option<&'static str> {
    let (_, default, _) = FLAGS.iter().find(|(id, ..)| *id == flag)?;
    Some(default)
}

/// All flags in order, as given or else as they are by default.
pub(in crate::config) fn shown(
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Vec<(String, String)>, FlagError> {
    let command = command();
    let matches = command.clone().try_get_matches_from(as_pflag(arguments))?;
    let mut shown: Vec<(String, String)> = command
        .get_arguments()
        .filter_map(|arg| {
            let (id, name) = (arg.get_id().as_str(), arg.get_long()?);
            let is_given = matches.value_source(id) == Some(ValueSource::CommandLine);
            let value = match matches.get_raw(id).filter(|_| is_given) {
                Some(values) => {
                    let values: Vec<_> = values.map(|value| value.to_string_lossy()).collect();
                    values.join(",")
                }
                None => default_of(id).unwrap_or_default().to_owned(),
            };
            Some((name.to_owned(), value))
        })
        .collect();
    shown.sort_unstable();
    Ok(shown)
}

/// kube-proxy has none of these.
#[cfg(test)]
pub(in crate::config) const OURS: [&str; 31] = [
    "help",
    "iptables-backend",
    "ipvs-conn-lfactor",
    "ipvs-conn-max",
    "ipvs-drain-limit",
    "ipvs-est-cpulist",
    "ipvs-est-nice",
    "ipvs-rules",
    "ipvs-run-estimation",
    "ipvs-svc-lfactor",
    "ipvs-sync-group",
    "ipvs-sync-id",
    "ipvs-sync-interface",
    "ipvs-sync-max-length",
    "ipvs-sync-port",
    "ipvs-sync-ttl",
    "localhost-nodeports",
    "manifests",
    "service-annotations",
    "service-max-drain-limit",
    "service-max-endpoints",
    "service-max-frontends",
    "service-max-objects",
    "service-max-slow-start",
    "service-metrics-endpoints",
    "service-metrics-limit",
    "service-metrics-namespaces",
    "service-metrics-selector",
    "service-node-port-range",
    "service-schedulers",
    "tunnel-cidrs",
];

#[cfg(test)]
mod tests {
    use super::*;

    /// What kube-proxy v1.37.2 lists, without `help`.
    const UPSTREAM: [&str; 56] = [
        "bind-address",
        "bind-address-hard-fail",
        "cleanup",
        "cluster-cidr",
        "config",
        "config-sync-period",
        "conntrack-max-per-core",
        "conntrack-min",
        "conntrack-tcp-be-liberal",
        "conntrack-tcp-timeout-close-wait",
        "conntrack-tcp-timeout-established",
        "conntrack-udp-timeout",
        "conntrack-udp-timeout-stream",
        "detect-local-mode",
        "feature-gates",
        "healthz-bind-address",
        "healthz-port",
        "hostname-override",
        "init-only",
        "iptables-localhost-nodeports",
        "iptables-masquerade-bit",
        "iptables-min-sync-period",
        "iptables-sync-period",
        "ipvs-exclude-cidrs",
        "ipvs-min-sync-period",
        "ipvs-scheduler",
        "ipvs-strict-arp",
        "ipvs-sync-period",
        "ipvs-tcp-timeout",
        "ipvs-tcpfin-timeout",
        "ipvs-udp-timeout",
        "kube-api-burst",
        "kube-api-content-type",
        "kube-api-qps",
        "kubeconfig",
        "log-flush-frequency",
        "log-json-info-buffer-size",
        "log-json-split-stream",
        "log-text-info-buffer-size",
        "log-text-split-stream",
        "logging-format",
        "masquerade-all",
        "master",
        "metrics-bind-address",
        "metrics-port",
        "nodeport-addresses",
        "oom-score-adj",
        "pod-bridge-interface",
        "pod-interface-name-prefix",
        "profiling",
        "proxy-mode",
        "show-hidden-metrics-for-version",
        "v",
        "vmodule",
        "version",
        "write-config-to",
    ];

    fn shown_for(arguments: &[&str]) -> Vec<(String, String)> {
        let arguments = std::iter::once(&"kube-proxy-rs").chain(arguments);
        shown(arguments.map(OsString::from)).unwrap()
    }

    #[test]
    fn upstreams_flags_are_there_and_ours() {
        let names: Vec<String> = shown_for(&[]).into_iter().map(|(name, _)| name).collect();
        let is_known = |name: &str| UPSTREAM.contains(&name) || OURS.contains(&name);
        let missing: Vec<_> = UPSTREAM
            .iter()
            .filter(|name| !names.iter().any(|other| other == *name))
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
        let more: Vec<_> = names.iter().filter(|name| !is_known(name)).collect();
        assert!(more.is_empty(), "{more:?}");
        for (id, ..) in FLAGS {
            let name = id.replace('_', "-").replace("verbosity", "v");
            assert!(is_known(&name), "{name}");
        }
    }

    /// So each flag is one that can be given with its default, and what is said to be the default
    /// is.
    #[test]
    fn a_flag_that_is_given_with_its_default_changes_nothing() {
        use crate::config::{Command, parse};
        let run = |flags: &[String]| {
            let arguments = std::iter::once("kube-proxy-rs".to_owned()).chain(flags.to_vec());
            match parse(arguments.map(OsString::from)) {
                Ok(Command::Run(mut settings)) => {
                    settings.notices.clear();
                    *settings
                }
                other => panic!("{flags:?}: {other:?}"),
            }
        };
        for mode in ["iptables", "ipvs"] {
            let mode = format!("--proxy-mode={mode}");
            let expected = run(std::slice::from_ref(&mode));
            for (name, value) in shown_for(&[]) {
                // An empty range is none, which is wrong.
                if ["help", "proxy-mode", "manifests", "cluster-cidr"].contains(&name.as_str()) {
                    continue;
                }
                let value = if value == "[]" { "" } else { &value };
                let mut given = run(&[mode.clone(), format!("--{name}={value}")]);
                let lists = [
                    &mut given.configuration.ipvs.exclude_cidrs,
                    &mut given.configuration.node_port_addresses,
                ];
                for list in lists {
                    // Upstream writes one that was given empty as `[]`, too.
                    if list.as_ref().is_some_and(Vec::is_empty) {
                        *list = None;
                    }
                }
                assert_eq!(given, expected, "--{name}={value}");
            }
        }
    }

    #[test]
    fn what_was_given_is_shown() {
        let shown = shown_for(&[
            "--masquerade-all",
            "-v=4",
            "--nodeport_addresses=primary",
            "--nodeport-addresses=10.0.0.0/8",
        ]);
        let value = |name: &str| {
            let found = shown.iter().find(|(of, _)| of == name);
            found.map(|(_, value)| value.as_str())
        };
        assert_eq!(value("masquerade-all"), Some("true"));
        assert_eq!(value("v"), Some("4"));
        assert_eq!(value("nodeport-addresses"), Some("primary,10.0.0.0/8"));
        assert_eq!(value("config"), Some(""));
        assert_eq!(value("proxy-mode"), Some("iptables"));
    }
}
