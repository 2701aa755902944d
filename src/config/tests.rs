// SPDX-License-Identifier: Apache-2.0
//! From arguments to a command.

use std::path::Path;
use std::time::Duration;

use super::*;
use crate::source::{Source, kubernetes};
use kpr_core::model::ProxyMode;
use kpr_core::model::node::DetectLocal;
use kpr_core::plan::conntrack::tuning::Tuning;

fn try_command(arguments: &[&str]) -> Result<Command, ConfigError> {
    parse(
        std::iter::once("kube-proxy-rs")
            .chain(arguments.iter().copied())
            .map(OsString::from),
    )
}

#[track_caller]
fn run(arguments: &[&str]) -> Settings {
    match try_command(arguments) {
        Ok(Command::Run(settings)) => *settings,
        other => panic!("{arguments:?}: {other:?}"),
    }
}

#[track_caller]
fn message(arguments: &[&str]) -> String {
    let error = try_command(arguments).expect_err("accepted");
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// A configuration file, and `--config` naming it.
fn config_file(body: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.conf");
    let head = format!(
        "apiVersion: {}\nkind: {}\n",
        types::API_VERSION,
        types::KIND
    );
    std::fs::write(&path, format!("{head}{body}")).unwrap();
    let flag = format!("--config={}", path.display());
    (directory, flag)
}

fn subjects(settings: &Settings) -> Vec<&str> {
    settings
        .notices
        .iter()
        .map(|notice| notice.subject.as_str())
        .collect()
}

#[test]
fn nothing_given_runs_with_the_defaults() {
    let settings = run(&[]);
    assert_eq!(settings.mode, ProxyMode::IPTABLES);
    assert_eq!(settings.configuration.mode, "iptables");
    assert_eq!(settings.configuration.detect_local_mode, "ClusterCIDR");
    assert_eq!(settings.kubernetes_version, KUBERNETES_VERSION);
    assert_eq!(
        subjects(&settings),
        ["mode", "clusterCIDR", "nodePortAddresses"]
    );
}

#[test]
fn the_command_line_of_kubeadm_runs() {
    let (_directory, config) = config_file("clusterCIDR: 10.244.0.0/16\nmode: ipvs\n");
    let settings = run(&[&config, "--hostname-override=Worker-1"]);
    assert_eq!(settings.mode, ProxyMode::IPVS);
    assert_eq!(settings.hostname_override.as_deref(), Some("worker-1"));
    assert!(settings.config_file.is_some());
}

#[test]
fn flags_reach_their_settings() {
    let settings = run(&[
        "--mode=ipvs",
        "--ipvs-scheduler=lc",
        "--ipvs-exclude-cidrs=10.1.0.0/16,10.2.0.0/16",
        "--ipvs-strict-arp",
        "--ipvs-tcp-timeout=15m",
        "--ipvs-sync-period=1m",
        "--ipvs-min-sync-period=2s",
        "--masquerade-all",
        "--iptables-masquerade-bit=3",
        "--iptables-localhost-nodeports=false",
        "--cluster-cidr=10.0.0.0/8",
        "--nodeport-addresses=primary,localhost",
        "--oom-score-adj=-5",
        "--conntrack-max-per-core=0",
        "--conntrack-min=7",
        "--conntrack-tcp-timeout-established=0",
        "--conntrack-tcp-be-liberal",
        "--conntrack-udp-timeout=9s",
        "--kubeconfig=/k",
        "--kube-api-qps=2.5",
        "--kube-api-burst=3",
        "--master=http://m",
        "--bind-address=192.0.2.1",
        "--healthz-bind-address=192.0.2.1:81",
        "--metrics-bind-address=::1",
        "--bind-address-hard-fail",
        "--feature-gates=AllowServiceExternalIPs=false",
        "--logging-format=json",
        "-v=4",
    ]);
    assert_eq!(settings.mode, ProxyMode::IPVS);
    assert_eq!(settings.ipvs.scheduler, "lc");
    assert_eq!(settings.ipvs.exclude_cidrs.len(), 2);
    assert!(settings.ipvs.strict_arp);
    assert_eq!(settings.ipvs.timeouts.tcp, Some(Duration::from_mins(15)));
    assert_eq!(settings.sync.period, Duration::from_mins(1));
    assert_eq!(settings.sync.min_period, Duration::from_secs(2));
    assert!(settings.masquerade_all && !settings.iptables_localhost_node_ports);
    assert_eq!(settings.masquerade_mark(), 8);
    assert_eq!(
        settings.detect_local,
        DetectLocal::ClusterCidr(vec!["10.0.0.0/8".parse().unwrap()])
    );
    assert_eq!(settings.node_port_addresses.entries().len(), 2);
    assert_eq!(settings.oom_score_adj, -5);
    assert_eq!(
        settings.conntrack,
        Tuning {
            max_per_core: None,
            min: 7,
            tcp_established_timeout: None,
            tcp_close_wait_timeout: Some(Duration::from_hours(1)),
            tcp_be_liberal: true,
            udp_timeout: Some(Duration::from_secs(9)),
            udp_stream_timeout: None,
        }
    );
    assert_eq!(
        settings.source,
        Source::Kubernetes(kubernetes::Config {
            kubeconfig: Some(PathBuf::from("/k")),
            master: Some("http://m".to_owned()),
            ..kubernetes::Config::default()
        })
    );
    assert_eq!(settings.bind_address.to_string(), "192.0.2.1");
    assert_eq!(
        settings.healthz_address,
        Some("192.0.2.1:81".parse().unwrap())
    );
    assert_eq!(
        settings.metrics_address,
        Some("[::1]:10249".parse().unwrap())
    );
    assert!(settings.bind_address_hard_fail && !settings.allow_external_ips);
    let logging = LogSettings {
        format: LogFormat::Json,
        verbosity: 4,
        vmodule: vec![],
    };
    assert_eq!(settings.logging, logging);
}

#[test]
fn flags_do_not_derive_defaults_again() {
    let settings = run(&["--bind-address=fd00::1"]);
    assert_eq!(
        settings.healthz_address,
        Some("0.0.0.0:10256".parse().unwrap())
    );
    let (_directory, config) = config_file("bindAddress: fd00::1\n");
    assert_eq!(
        run(&[&config]).healthz_address,
        Some("[::]:10256".parse().unwrap())
    );
}

#[test]
fn an_empty_bind_address_keeps_the_default() {
    assert_eq!(
        run(&["--bind-address="]).bind_address.to_string(),
        "0.0.0.0"
    );
}

#[test]
fn a_zero_given_as_a_flag_stays_a_zero() {
    assert!(message(&["--iptables-sync-period=0"]).contains("SyncPeriod: Invalid value: \"0s\""));
    assert_eq!(
        run(&["--iptables-min-sync-period=0"]).sync.min_period,
        Duration::ZERO
    );
    let (_directory, config) = config_file("iptables: {minSyncPeriod: 0s, syncPeriod: 0s}\n");
    let sync = run(&[&config]).sync;
    assert_eq!(
        (sync.min_period, sync.period),
        (Duration::from_secs(1), Duration::from_secs(30))
    );
}

#[test]
fn ipvs_has_a_shortest_period_by_default_from_flags_and_not_from_a_file() {
    let second = Duration::from_secs(1);
    assert_eq!(run(&["--mode=ipvs"]).sync.min_period, second);
    let given = run(&["--mode=ipvs", "--ipvs-min-sync-period=0"]);
    assert_eq!(given.sync.min_period, Duration::ZERO);
    let (_directory, config) = config_file("mode: ipvs\n");
    assert_eq!(run(&[&config]).sync.min_period, Duration::ZERO);
}

#[test]
fn what_a_file_has_too_much_is_one_remark() {
    let body = "mode: ipvs\nudpIdleTimeout: 250ms\nmode: iptables\n";
    let (_directory, config) = config_file(body);
    let notice = run(&[&config]).notices.remove(0);
    assert_eq!(
        notice.to_string(),
        "--config: Using lenient decoding as strict decoding failed: \
         udpIdleTimeout (line 4): gone since v1.26, remove it; \
         mode (line 5): stands here a second time: the last one counts"
    );
}

#[test]
fn flags_that_are_gone_say_what_to_do() {
    assert_eq!(
        message(&["--conntrack-max=0", "--log_dir", "/var/log", "-v=2"]),
        "unknown flag: --conntrack-max (gone from kube-proxy since v1.16; remove it, or use \
         --conntrack-max-per-core and --conntrack-min); \
         unknown flag: --log-dir (gone from kube-proxy since v1.26; remove it, logs go to stderr)"
    );
}

#[test]
fn numbers_of_flags_have_a_base() {
    for (value, expected) in [("0x10", 16), ("010", 8), ("1_000", 1000), ("-0b11", -3)] {
        let settings = run(&[&format!("--oom-score-adj={value}")]);
        assert_eq!(i32::from(settings.oom_score_adj), expected, "{value}");
    }
    for value in ["1__0", "_1", "1_", "08", "1.0", ""] {
        let message = message(&[&format!("--oom-score-adj={value}")]);
        assert!(
            message.contains("want a whole number"),
            "{value}: {message}"
        );
    }
}

#[test]
fn an_empty_cluster_cidr_is_none_in_a_file_and_wrong_as_a_flag() {
    let (_directory, config) = config_file("clusterCIDR: ''\n");
    assert_eq!(
        run(&[&config]).detect_local,
        DetectLocal::ClusterCidr(vec![])
    );
    let message = message(&["--cluster-cidr="]);
    assert!(
        message.contains("ClusterCIDRs[0]: Invalid value: \"\""),
        "{message}"
    );
    run(&["--cluster-cidr=", "--detect-local-mode=NodeCIDR"]);
}

#[test]
fn split_streams_need_their_gate_as_flags_and_count_for_nothing_in_a_file() {
    let message = message(&["--log-json-split-stream"]);
    assert_eq!(
        message,
        "initialize logging: logging.options.json.splitStream: Forbidden: \
         Feature LoggingAlphaOptions is disabled"
    );
    let (_directory, config) = config_file("logging: {options: {text: {splitStream: true}}}\n");
    let settings = run(&[&config]);
    assert!(!settings.configuration.logging.options.text.split_stream);
    assert!(subjects(&settings).contains(&"logging.options"));
}

#[test]
fn a_file_replaces_the_flags_that_are_in_its_format() {
    let (_directory, config) = config_file("mode: ipvs\nipvs: {scheduler: wlc}\n");
    let settings = run(&[
        &config,
        "--proxy-mode=iptables",
        "--ipvs-scheduler=lc",
        "--kubeconfig=/k",
        "--metrics-port=0",
        "--feature-gates=AllowServiceExternalIPs=false",
    ]);
    assert_eq!(settings.mode, ProxyMode::IPVS);
    assert_eq!(settings.ipvs.scheduler, "wlc");
    assert_eq!(
        settings.metrics_address,
        Some("127.0.0.1:10249".parse().unwrap())
    );
    assert!(settings.allow_external_ips);
    let ignored: Vec<&str> = subjects(&settings)
        .into_iter()
        .filter(|subject| subject.starts_with("--"))
        .collect();
    assert_eq!(
        ignored,
        [
            "--feature-gates",
            "--ipvs-scheduler",
            "--kubeconfig",
            "--metrics-port",
            "--proxy-mode"
        ]
    );
}

#[test]
fn master_host_name_and_logging_count_beside_a_file() {
    let (_directory, config) = config_file(
        "hostnameOverride: other\nlogging: {verbosity: 1, vmodule: [{filePattern: b, verbosity: 2}]}\n",
    );
    let settings = run(&[
        &config,
        "--master=http://m",
        "--hostname-override=Mine",
        "-v=5",
        "--vmodule=a=9",
    ]);
    let Source::Kubernetes(client) = &settings.source else {
        panic!("{settings:?}")
    };
    assert_eq!(client.master.as_deref(), Some("http://m"));
    assert_eq!(settings.hostname_override.as_deref(), Some("mine"));
    assert_eq!(settings.logging.verbosity, 5);
    assert_eq!(
        settings.logging.vmodule,
        [("a".to_owned(), 9), ("b".to_owned(), 2)]
    );
}

#[test]
fn the_host_name_of_a_file_is_kept_verbatim_in_the_configuration() {
    let (_directory, config) = config_file("hostnameOverride: \" Node-A \"\n");
    let settings = run(&[&config]);
    assert_eq!(settings.hostname_override.as_deref(), Some("node-a"));
    assert_eq!(settings.configuration.hostname_override, " Node-A ");
}

#[test]
fn a_blank_host_name_is_refused() {
    let message = message(&["--hostname-override=  "]);
    assert!(message.contains("--hostname-override"), "{message}");
    assert!(
        message.contains("empty hostname-override is invalid"),
        "{message}"
    );
}

#[test]
fn deprecated_ports_complete_and_disable() {
    let settings = run(&["--healthz-port=81", "--metrics-port=82"]);
    assert_eq!(
        settings.healthz_address,
        Some("0.0.0.0:81".parse().unwrap())
    );
    assert_eq!(
        settings.metrics_address,
        Some("127.0.0.1:82".parse().unwrap())
    );
    assert!(subjects(&settings).contains(&"--healthz-port"));
    let with_address = run(&["--healthz-bind-address=192.0.2.1", "--healthz-port=81"]);
    assert_eq!(
        with_address.healthz_address,
        Some("192.0.2.1:81".parse().unwrap())
    );
    let disabled = run(&["--healthz-port=0", "--metrics-port=0"]);
    assert_eq!(
        (disabled.healthz_address, disabled.metrics_address),
        (None, None)
    );
    assert!(message(&["--healthz-port=70000"]).contains("HealthzBindAddress"));
}

#[test]
fn an_empty_server_address_keeps_the_default() {
    let settings = run(&["--metrics-bind-address=", "--healthz-bind-address="]);
    assert_eq!(
        settings.healthz_address,
        Some("0.0.0.0:10256".parse().unwrap())
    );
    assert_eq!(
        settings.metrics_address,
        Some("127.0.0.1:10249".parse().unwrap())
    );
}

#[test]
fn the_effective_configuration_shows_the_periods_of_its_mode_only() {
    let periods = |settings: &Settings| {
        let config = &settings.configuration;
        [
            config.iptables.sync_period,
            config.iptables.min_sync_period,
            config.ipvs.sync_period,
            config.nftables.sync_period,
        ]
        .map(|period| period.to_string())
    };
    assert_eq!(
        periods(&run(&["--mode=iptables"])),
        ["30s", "1s", "0s", "0s"]
    );
    assert_eq!(periods(&run(&["--mode=ipvs"])), ["0s", "0s", "30s", "0s"]);
}

#[test]
fn errors_are_reported_in_one_form() {
    let report = |arguments: &[&str]| try_command(arguments).unwrap_err().report();
    assert!(report(&["--bogus"]).starts_with("Error: unexpected argument '--bogus' found\n"));
    assert_eq!(
        report(&["--mode=ipvs", "--oom-score-adj=1001"]),
        "Error: failed validate: KubeProxyConfiguration.KubeProxyLinuxConfiguration.OOMScoreAdj: \
         Invalid value: 1001: must be within the range [-1000, 1000]\n"
    );
}

#[test]
fn errors_say_at_which_step_they_arose() {
    let missing = message(&["--config=/nonexistent/c"]);
    assert!(
        missing.starts_with("failed complete: cannot read configuration file "),
        "{missing}"
    );
    let (_directory, config) = config_file("mode: 1\n");
    let wrong = message(&[&config]);
    assert!(
        wrong.starts_with("failed complete: failed to decode "),
        "{wrong}"
    );
    assert!(
        wrong.contains("config.conf:3:7: mode: want a text"),
        "{wrong}"
    );
    let invalid = message(&["--proxy-mode=nftables"]);
    assert!(
        invalid.starts_with("failed validate: KubeProxyConfiguration.Mode.ProxyMode: "),
        "{invalid}"
    );
}

#[test]
fn errors_of_gates_and_logging_come_before_others_as_in_kube_proxy() {
    // Each message is one of kube-proxy v1.37.2.
    for (arguments, expected) in [
        (
            &[
                "--feature-gates=Bogus=true",
                "--logging-format=xml",
                "--proxy-mode=x",
            ][..],
            "failed complete: unrecognized feature gate: Bogus",
        ),
        (
            &["--logging-format=xml", "--proxy-mode=x"],
            "initialize logging: logging.format: Invalid value: \"xml\": Unsupported log format",
        ),
        (
            &["--vmodule=a=1", "--logging-format=json", "--proxy-mode=x"],
            "initialize logging: logging.vmodule: Forbidden: Only supported for text log format",
        ),
    ] {
        assert_eq!(message(arguments), expected);
    }
    let (_directory, config) =
        config_file("mode: x\nlogging: {format: xml, verbosity: 3000000000}\n");
    assert_eq!(
        message(&[&config]),
        "initialize logging: [logging.format: Invalid value: \"xml\": Unsupported log format, \
         logging.verbosity: Invalid value: 3000000000: Must be <= 2147483647]"
    );
}

#[test]
fn write_config_comes_before_cleanup_and_after_validation() {
    let command = try_command(&["--write-config-to=/tmp/w", "--cleanup", "--mode=ipvs"]).unwrap();
    let Command::WriteConfig { path, settings } = command else {
        panic!("{command:?}")
    };
    assert_eq!(path, Path::new("/tmp/w"));
    let text = file::encode(&settings.configuration).unwrap();
    assert!(text.contains("mode: ipvs\n"), "{text}");
    assert!(message(&["--write-config-to=/tmp/w", "--mode=x"]).starts_with("failed validate"));
}

#[test]
fn commands_are_told_apart() {
    assert!(matches!(
        try_command(&["--cleanup"]),
        Ok(Command::Cleanup(_))
    ));
    assert!(matches!(
        try_command(&["--cleanup", "--init-only"]),
        Ok(Command::Cleanup(_))
    ));
    assert!(matches!(
        try_command(&["--init-only"]),
        Ok(Command::InitOnly(_))
    ));
    assert!(matches!(
        try_command(&["--cleanup=false"]),
        Ok(Command::Run(_))
    ));
    assert!(matches!(
        try_command(&["plan", "--manifests=/m", "--output=json"]),
        Ok(Command::Plan { settings, output: OutputFormat::Json, verbose: false })
            if settings.source == Source::Manifests(PathBuf::from("/m"))
    ));
    assert!(matches!(
        try_command(&["check-config", "c"]),
        Ok(Command::CheckConfig { .. })
    ));
    assert!(
        matches!(try_command(&["--help"]), Ok(Command::Help(text)) if text.contains("--proxy-mode"))
    );
}

#[test]
fn the_version_is_printed_before_anything_is_checked() {
    let Ok(Command::Version(text)) = try_command(&["--version", "--mode=x"]) else {
        panic!("no version")
    };
    assert!(text.starts_with("Kubernetes v1.37.2 "), "{text}");
    assert!(
        matches!(try_command(&["--version=raw"]), Ok(Command::Version(text)) if text.contains("platform: linux/"))
    );
}

#[test]
fn the_reported_version_may_be_refined_only() {
    assert_eq!(
        run(&["--version=v1.37.2-eks.1"]).kubernetes_version,
        "v1.37.2-eks.1"
    );
    for version in ["v1.37.20", "v1.38.0", "1.37.2", "bogus"] {
        assert!(
            message(&[&format!("--version={version}")]).contains("--version"),
            "{version}"
        );
    }
}
