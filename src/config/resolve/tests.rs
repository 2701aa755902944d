// SPDX-License-Identifier: Apache-2.0
//! Every row of upstream's validation, and what valid configurations become.

use super::*;

mod kernel;
mod logging;

fn secs(seconds: u32) -> GoDuration {
    GoDuration::from_secs(seconds)
}

fn negative() -> GoDuration {
    GoDuration::from_nanos(-1_000_000_000)
}

fn resolved(
    change: impl FnOnce(&mut KubeProxyConfiguration),
) -> Result<Settings, ValidationErrors> {
    let mut configuration = KubeProxyConfiguration::with_defaults();
    configuration.set_platform_defaults();
    change(&mut configuration);
    resolve(configuration, &Flags::default())
}

#[track_caller]
fn settings(change: impl FnOnce(&mut KubeProxyConfiguration)) -> Settings {
    resolved(change).unwrap()
}

/// Asserts the whole message, path first.
#[track_caller]
fn refused(change: impl FnOnce(&mut KubeProxyConfiguration), message: &str) {
    let errors = resolved(change).expect_err(message);
    // What is found before the validation has no such path.
    let is_early = ["logging.", "unrecognized feature gate"]
        .iter()
        .any(|start| message.starts_with(start));
    let root = if is_early {
        ""
    } else {
        "KubeProxyConfiguration."
    };
    assert_eq!(errors.to_string(), format!("{root}{message}"));
}

#[test]
fn defaults_are_valid() {
    let settings = settings(|_| {});
    assert_eq!(settings.mode, ProxyMode::IPTABLES);
    assert_eq!(settings.sync.period, Duration::from_secs(30));
    assert_eq!(settings.sync.min_period, Duration::from_secs(1));
    assert_eq!(settings.masquerade_bit, 14);
    assert_eq!(settings.masquerade_mark(), 0x4000);
    assert_eq!(
        settings.healthz_address,
        Some("0.0.0.0:10256".parse().unwrap())
    );
    assert_eq!(
        settings.metrics_address,
        Some("127.0.0.1:10249".parse().unwrap())
    );
    assert_eq!(settings.oom_score_adj, -999);
    assert_eq!(settings.conntrack.max_per_core, Some(32768));
    assert_eq!(
        settings.conntrack.tcp_established_timeout,
        Some(Duration::from_hours(24))
    );
    assert_eq!(settings.conntrack.udp_timeout, None);
    assert_eq!(settings.detect_local, DetectLocal::ClusterCidr(vec![]));
    assert!(settings.allow_external_ips && settings.iptables_localhost_node_ports);
    assert_eq!(settings.configuration.mode, "iptables");
}

#[test]
fn feature_gates_must_be_settable() {
    refused(
        |c| c.feature_gates = [("NoSuchGate".to_owned(), true)].into(),
        "unrecognized feature gate: NoSuchGate",
    );
    let without =
        settings(|c| c.feature_gates = [("AllowServiceExternalIPs".to_owned(), false)].into());
    assert!(!without.allow_external_ips);
}

#[test]
fn the_mode_is_ours() {
    for mode in ["IPVS", "userspace", "kernelspace"] {
        refused(
            |c| mode.clone_into(&mut c.mode),
            &format!(
                "Mode.ProxyMode: Invalid value: {mode:?}: must be iptables, ipvs or blank (blank means iptables)"
            ),
        );
    }
    for (mode, expected) in [
        ("", ProxyMode::IPTABLES),
        ("iptables", ProxyMode::IPTABLES),
        ("ipvs", ProxyMode::IPVS),
    ] {
        assert_eq!(settings(|c| mode.clone_into(&mut c.mode)).mode, expected);
    }
}

#[test]
fn nftables_mode_is_refused_with_what_to_use() {
    refused(
        |c| "nftables".clone_into(&mut c.mode),
        "Mode.ProxyMode: Invalid value: \"nftables\": kube-proxy-rs has no nftables mode: use ipvs, or iptables (with iptables-nft its rules are in nftables too)",
    );
}

#[test]
fn ipvs_mode_needs_its_gate() {
    refused(
        |c| {
            "ipvs".clone_into(&mut c.mode);
            c.feature_gates.insert("KubeProxyIPVS".to_owned(), false);
        },
        "Mode.ProxyMode: Invalid value: \"ipvs\": must be iptables or blank: feature gate KubeProxyIPVS is set to false",
    );
}

#[test]
fn burst_is_not_negative() {
    refused(
        |c| c.client_connection.burst = -1,
        "ClientConnection.Burst: Invalid value: -1: must be greater than or equal to 0",
    );
}

#[test]
fn periods_are_above_zero() {
    for value in [GoDuration::ZERO, negative()] {
        refused(
            |c| c.config_sync_period = value,
            &format!("ConfigSyncPeriod: Invalid value: \"{value}\": must be greater than 0"),
        );
    }
    refused(
        |c| {
            c.iptables.sync_period = GoDuration::ZERO;
            c.iptables.min_sync_period = GoDuration::ZERO;
        },
        "SyncPeriod: Invalid value: \"0s\": must be greater than 0",
    );
}

#[test]
fn two_negative_periods_are_two_errors() {
    let errors = resolved(|c| {
        c.iptables.sync_period = negative();
        c.iptables.min_sync_period = negative();
    })
    .unwrap_err();
    assert_eq!(
        errors.to_string(),
        "[KubeProxyConfiguration.SyncPeriod: Invalid value: \"-1s\": must be greater than 0, \
         KubeProxyConfiguration.MinSyncPeriod: Invalid value: \"-1s\": must be greater than or equal to 0]"
    );
}

#[test]
fn the_shortest_period_is_not_negative() {
    refused(
        |c| c.iptables.min_sync_period = negative(),
        "MinSyncPeriod: Invalid value: \"-1s\": must be greater than or equal to 0",
    );
}

#[test]
fn the_shortest_period_is_not_above_the_longest() {
    refused(
        |c| {
            c.iptables.sync_period = secs(5);
            c.iptables.min_sync_period = secs(6);
        },
        "SyncPeriod: Invalid value: \"5s\": must be greater than or equal to KubeProxyConfiguration.MinSyncPeriod",
    );
    settings(|c| {
        c.iptables.sync_period = secs(5);
        c.iptables.min_sync_period = secs(5);
    });
}

#[test]
fn each_mode_has_its_own_periods() {
    let in_mode = |mode: &str| {
        settings(|c| {
            mode.clone_into(&mut c.mode);
            c.iptables.sync_period = secs(11);
            c.iptables.min_sync_period = secs(2);
            c.ipvs.sync_period = secs(22);
        })
        .sync
    };
    assert_eq!(in_mode("iptables").period, Duration::from_secs(11));
    assert_eq!(in_mode("iptables").min_period, Duration::from_secs(2));
    assert_eq!(in_mode("ipvs").period, Duration::from_secs(22));
    assert_eq!(in_mode("ipvs").min_period, Duration::ZERO);
    // What the other mode has is not even checked.
    settings(|c| c.ipvs.sync_period = negative());
}

#[test]
fn bind_address_is_an_ip() {
    for text in ["", "localhost", "1.2.3.4:5", "fd00::1%eth0"] {
        refused(
            |c| text.clone_into(&mut c.bind_address),
            &format!(
                "BindAddress: Invalid value: {text:?}: not a valid textual representation of an IP address"
            ),
        );
    }
    let settings = settings(|c| "172.30.0.041".clone_into(&mut c.bind_address));
    assert_eq!(settings.bind_address.to_string(), "172.30.0.41");
}

#[test]
fn server_addresses_are_ip_and_port() {
    type Field = fn(&mut KubeProxyConfiguration) -> &mut String;
    let fields: [(&str, Field); 2] = [
        ("HealthzBindAddress", |c| &mut c.healthz_bind_address),
        ("MetricsBindAddress", |c| &mut c.metrics_bind_address),
    ];
    for (name, field) in fields {
        for (text, value, rule) in [
            ("1.2.3.4", "1.2.3.4", "must be IP:port"),
            ("fd00::1:80", "fd00::1:80", "must be IP:port"),
            ("localhost:80", "localhost", "must be a valid IP"),
            (":80", "", "must be a valid IP"),
            ("1.2.3.4:0", "0", "must be a valid port"),
            ("1.2.3.4:65536", "65536", "must be a valid port"),
            ("1.2.3.4:http", "http", "must be a valid port"),
        ] {
            refused(
                |c| text.clone_into(field(c)),
                &format!("{name}: Invalid value: {value:?}: {rule}"),
            );
        }
        for text in ["1.2.3.4:1", "[fd00::1]:65535", "0.0.0.0:10256"] {
            settings(|c| text.clone_into(field(c)));
        }
    }
}

#[test]
fn only_the_health_server_may_be_disabled_by_an_empty_address() {
    assert_eq!(
        settings(|c| c.healthz_bind_address.clear()).healthz_address,
        None
    );
    refused(
        |c| c.metrics_bind_address.clear(),
        "MetricsBindAddress: Invalid value: \"\": must be IP:port",
    );
}

#[test]
fn node_port_addresses_are_cidrs_or_keywords() {
    for text in ["10.0.0.1", "Primary", "", "10.0.0.0/33"] {
        refused(
            |c| c.node_port_addresses = Some(vec!["10.0.0.0/8".to_owned(), text.to_owned()]),
            &format!(
                "NodePortAddresses[1]: Invalid value: {text:?}: must be a valid CIDR or one of the keywords 'primary', 'localhost', 'all'"
            ),
        );
    }
}

#[test]
fn a_repeated_keyword_is_a_duplicate_and_a_repeated_cidr_is_not() {
    for keyword in ["primary", "localhost", "all"] {
        refused(
            |c| c.node_port_addresses = Some(vec![keyword.to_owned(), keyword.to_owned()]),
            &format!("NodePortAddresses[1]: Duplicate value: {keyword:?}"),
        );
    }
    let settings = settings(|c| {
        c.node_port_addresses = Some(
            ["primary", "localhost", "10.0.0.0/8", "10.0.0.0/8"]
                .map(str::to_owned)
                .to_vec(),
        );
    });
    assert_eq!(settings.node_port_addresses.entries().len(), 4);
}

#[test]
fn hidden_metrics_are_of_the_previous_minor() {
    for version in ["1.35", "1.37", "v1.36"] {
        refused(
            |c| version.clone_into(&mut c.show_hidden_metrics_for_version),
            &format!(
                "ShowHiddenMetricsForVersion: Invalid value: {version:?}: must be omitted or have the value '1.36'"
            ),
        );
    }
    settings(|c| "1.36".clone_into(&mut c.show_hidden_metrics_for_version));
}

#[test]
fn the_local_mode_is_one_of_four() {
    refused(
        |c| "clustercidr".clone_into(&mut c.detect_local_mode),
        "DetectLocalMode: Unsupported value: \"clustercidr\": supported values: \"ClusterCIDR\", \"NodeCIDR\", \"BridgeInterface\", \"InterfaceNamePrefix\", \"\"",
    );
    for mode in ["", "ClusterCIDR"] {
        let settings = settings(|c| mode.clone_into(&mut c.detect_local_mode));
        assert_eq!(
            settings.detect_local,
            DetectLocal::ClusterCidr(vec![]),
            "{mode:?}"
        );
    }
    let settings = settings(|c| "NodeCIDR".clone_into(&mut c.detect_local_mode));
    assert_eq!(settings.detect_local, DetectLocal::NodeCidr);
}

#[test]
fn interface_modes_need_a_name_that_an_interface_can_have() {
    type Field = fn(&mut KubeProxyConfiguration) -> &mut String;
    let fields: [(&str, &str, Field); 2] = [
        ("BridgeInterface", "InterfaceName", |c| {
            &mut c.detect_local.bridge_interface
        }),
        ("InterfaceNamePrefix", "InterfacePrefix", |c| {
            &mut c.detect_local.interface_name_prefix
        }),
    ];
    for (mode, path, field) in fields {
        for (name, rule) in [
            ("", "must not be empty"),
            (
                "a234567890123456",
                "must have at most 15 bytes and no slash, colon, blank or final plus sign",
            ),
        ] {
            refused(
                |c| {
                    mode.clone_into(&mut c.detect_local_mode);
                    name.clone_into(field(c));
                },
                &format!("DetectLocalConfiguration.{path}: Invalid value: {name:?}: {rule}"),
            );
        }
    }
    let settings = settings(|c| {
        "BridgeInterface".clone_into(&mut c.detect_local_mode);
        "cni0".clone_into(&mut c.detect_local.bridge_interface);
    });
    assert_eq!(
        settings.detect_local,
        DetectLocal::BridgeInterface("cni0".parse().unwrap())
    );
}

#[test]
fn cluster_cidrs_are_one_or_one_per_family() {
    const PATH: &str = "DetectLocalConfiguration.ClusterCIDRs";
    let rule = "must be a valid CIDR block (e.g. 10.100.0.0/16 or fde4:8dba:82e1::/48)";
    let one = |text: &'static str| {
        move |c: &mut KubeProxyConfiguration| text.clone_into(&mut c.cluster_cidr)
    };
    refused(
        one("10.0.0.0"),
        &format!("{PATH}[0]: Invalid value: \"10.0.0.0\": {rule}"),
    );
    // A blank after the comma belongs to the CIDR.
    refused(
        one("10.0.0.0/8, fd00::/8"),
        &format!("{PATH}[1]: Invalid value: \" fd00::/8\": {rule}"),
    );
    refused(
        one("10.0.0.0/8,11.0.0.0/8"),
        &format!("{PATH}: Invalid value: [\"10.0.0.0/8\", \"11.0.0.0/8\"]: {CIDR_COUNT}"),
    );
    refused(
        one("10.0.0.0/8,fd00::/8,fd01::/16"),
        &format!(
            "{PATH}: Invalid value: [\"10.0.0.0/8\", \"fd00::/8\", \"fd01::/16\"]: {CIDR_COUNT}"
        ),
    );
    let DetectLocal::ClusterCidr(cidrs) = settings(one("010.0.0.0/8,fd00::/8")).detect_local else {
        panic!("not by CIDR")
    };
    assert_eq!(
        cidrs.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.0.0.0/8", "fd00::/8"]
    );
}

#[test]
fn cluster_cidrs_are_not_checked_in_other_modes() {
    settings(|c| {
        "NodeCIDR".clone_into(&mut c.detect_local_mode);
        "nonsense".clone_into(&mut c.cluster_cidr);
    });
}

#[test]
fn the_host_name_is_trimmed_and_lower_case() {
    let named = |name: &'static str| {
        move |c: &mut KubeProxyConfiguration| name.clone_into(&mut c.hostname_override)
    };
    assert_eq!(
        settings(named(" Node-A ")).hostname_override.as_deref(),
        Some("node-a")
    );
    assert_eq!(settings(named("")).hostname_override, None);
    refused(
        named("  "),
        "HostnameOverride: Invalid value: \"  \": must not consist of blanks",
    );
}

#[test]
fn all_errors_are_told_at_once_in_the_order_of_upstream() {
    let errors = resolved(|c| {
        c.logging.verbosity = u32::MAX;
        c.bind_address.clear();
        c.iptables.masquerade_bit = Some(99);
        "none".clone_into(&mut c.mode);
    })
    .unwrap_err();
    let paths: Vec<&str> = errors
        .errors()
        .iter()
        .map(|error| error.path.as_str())
        .collect();
    assert_eq!(
        paths,
        [
            "KubeProxyIPTablesConfiguration.MasqueradeBit",
            "Mode.ProxyMode",
            "BindAddress",
            "logging.verbosity"
        ]
    );
    assert!(errors.to_string().starts_with("[KubeProxyConfiguration."));
}

#[test]
fn the_source_is_a_directory_or_an_api_server() {
    let resolve_with = |flags: Flags| {
        let mut configuration = KubeProxyConfiguration::with_defaults();
        configuration.client_connection.kubeconfig = "/k".to_owned();
        resolve(configuration, &flags).unwrap().source
    };
    let directory = Flags {
        manifests: Some(PathBuf::from("/m")),
        ..Default::default()
    };
    assert_eq!(
        resolve_with(directory),
        Source::Manifests(PathBuf::from("/m"))
    );
    let master = Flags {
        master: Some("http://m".to_owned()),
        ..Default::default()
    };
    assert_eq!(
        resolve_with(master),
        Source::Kubernetes(kubernetes::Config {
            kubeconfig: Some(PathBuf::from("/k")),
            master: Some("http://m".to_owned()),
            ..kubernetes::Config::default()
        })
    );
}

#[test]
fn the_range_of_node_ports_is_said_or_unknown() {
    let range = |arguments: &[&str]| {
        let arguments = ["kube-proxy-rs"].iter().chain(arguments).map(Into::into);
        match crate::config::parse(arguments) {
            Ok(crate::config::Command::Run(settings)) => Ok(settings.node_port_range),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(format!("{error:?}")),
        }
    };
    assert_eq!(range(&[]), Ok(None));
    assert_eq!(range(&["--service-node-port-range="]), Ok(None));
    let said = "20000-22767".parse().unwrap();
    assert_eq!(
        range(&["--service-node-port-range=20000-22767"]),
        Ok(Some(said))
    );
    let error = range(&["--service-node-port-range=9-1"]).unwrap_err();
    assert!(error.contains("service-node-port-range"), "{error}");
}
