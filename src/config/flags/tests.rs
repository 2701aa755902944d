// SPDX-License-Identifier: Apache-2.0
//! The command line is read as pflag reads it.

use super::*;
use crate::config::types::VmoduleItem;

fn parsed(arguments: &[&str]) -> Parsed {
    try_parse(arguments).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
}

fn try_parse(arguments: &[&str]) -> Result<Parsed, FlagError> {
    parse(
        std::iter::once("kube-proxy-rs")
            .chain(arguments.iter().copied())
            .map(OsString::from),
    )
}

fn flags(arguments: &[&str]) -> Flags {
    parsed(arguments).cli.flags
}

#[test]
fn the_command_is_well_formed() {
    command().debug_assert();
}

#[test]
fn every_linux_flag_of_upstream_is_taken() {
    let arguments = [
        "--config=c",
        "--write-config-to=w",
        "--cleanup",
        "--init-only",
        "--version",
        "--feature-gates=KubeProxyIPVS=true",
        "--kubeconfig=k",
        "--master=http://m",
        "--kube-api-content-type=application/json",
        "--kube-api-qps=2.5",
        "--kube-api-burst=7",
        "--hostname-override=n",
        "--bind-address=1.2.3.4",
        "--healthz-bind-address=1.2.3.4",
        "--healthz-port=1",
        "--metrics-bind-address=1.2.3.4:5",
        "--metrics-port=2",
        "--bind-address-hard-fail",
        "--profiling",
        "--show-hidden-metrics-for-version=1.36",
        "--proxy-mode=ipvs",
        "--iptables-masquerade-bit=3",
        "--masquerade-all",
        "--iptables-localhost-nodeports=false",
        "--iptables-sync-period=1m",
        "--iptables-min-sync-period=2s",
        "--ipvs-sync-period=3m",
        "--ipvs-min-sync-period=4s",
        "--ipvs-scheduler=lc",
        "--ipvs-exclude-cidrs=10.0.0.0/8",
        "--ipvs-strict-arp",
        "--ipvs-tcp-timeout=5s",
        "--ipvs-tcpfin-timeout=6s",
        "--ipvs-udp-timeout=7s",
        "--ipvs-rules=auto",
        "--ipvs-sync-interface=eth0",
        "--ipvs-sync-id=2",
        "--ipvs-sync-group=224.0.0.82",
        "--ipvs-sync-port=8849",
        "--ipvs-sync-ttl=2",
        "--ipvs-sync-max-length=1400",
        "--ipvs-run-estimation=false",
        "--ipvs-est-cpulist=0-1",
        "--ipvs-est-nice=-3",
        "--ipvs-conn-lfactor=-5",
        "--ipvs-svc-lfactor=-4",
        "--ipvs-conn-max=1000000",
        "--service-annotations=weights",
        "--service-schedulers=mh",
        "--service-max-drain-limit=1h",
        "--service-max-slow-start=1m",
        "--tunnel-cidrs=10.0.0.0/8",
        "--service-max-frontends=1",
        "--service-max-endpoints=2",
        "--service-max-objects=3",
        "--service-metrics-namespaces=shop",
        "--service-metrics-selector=app=web,tier in (a,b)",
        "--service-metrics-endpoints",
        "--service-metrics-limit=4",
        "--detect-local-mode=NodeCIDR",
        "--pod-bridge-interface=cni0",
        "--pod-interface-name-prefix=veth",
        "--cluster-cidr=10.0.0.0/8",
        "--nodeport-addresses=primary",
        "--oom-score-adj=-5",
        "--conntrack-max-per-core=8",
        "--conntrack-min=9",
        "--conntrack-tcp-timeout-established=10s",
        "--conntrack-tcp-timeout-close-wait=11s",
        "--conntrack-tcp-be-liberal",
        "--conntrack-udp-timeout=12s",
        "--conntrack-udp-timeout-stream=13s",
        "--config-sync-period=14s",
        "--v=4",
        "--vmodule=a=1",
        "--logging-format=json",
        "--log-flush-frequency=15s",
        "--log-text-split-stream",
        "--log-text-info-buffer-size=1",
        "--log-json-split-stream",
        "--log-json-info-buffer-size=2",
    ];
    let all = parsed(&arguments);
    assert_eq!(
        all.cli.flags.ipvs_min_sync_period,
        Some(GoDuration::from_secs(4))
    );
    assert_eq!(all.cli.flags.kube_api_qps, Some(2.5));
    assert_eq!(all.cli.flags.verbosity, Some(4));
    // Every flag that is not listed as counting beside --config is reported as ignored.
    assert_eq!(
        all.ignored.len(),
        arguments.len() - (FLAGS.iter().filter(|(id, ..)| counts_always(id)).count() - 5),
        "{:?}",
        all.ignored
    );
}

#[test]
fn underscores_stand_for_dashes_in_names_only() {
    let flags = flags(&["--proxy_mode=ipvs", "--hostname_override", "a_b"]);
    assert_eq!(flags.proxy_mode.as_deref(), Some("ipvs"));
    assert_eq!(flags.hostname_override.as_deref(), Some("a_b"));
    assert_eq!(
        self::flags(&["--config=/a_b"]).config,
        Some(PathBuf::from("/a_b"))
    );
}

#[test]
fn mode_is_proxy_mode() {
    assert_eq!(flags(&["--mode=ipvs"]).proxy_mode.as_deref(), Some("ipvs"));
}

#[test]
fn switches_take_a_value_only_after_an_equals_sign() {
    assert_eq!(flags(&["--masquerade-all"]).masquerade_all, Some(true));
    assert_eq!(
        flags(&["--masquerade-all=false"]).masquerade_all,
        Some(false)
    );
    assert_eq!(flags(&["--masquerade-all=T"]).masquerade_all, Some(true));
    assert_eq!(flags(&["--masquerade-all=0"]).masquerade_all, Some(false));
    assert_eq!(flags(&[]).masquerade_all, None);
    assert!(matches!(
        try_parse(&["--masquerade-all=yes"]),
        Err(FlagError::Usage(_))
    ));
    let error = try_parse(&["--masquerade-all", "false"]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "\"kube-proxy-rs\" does not take any arguments, got [\"false\"]"
    );
}

#[test]
fn positional_arguments_are_refused() {
    let error = try_parse(&["bogus"]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "\"kube-proxy-rs\" does not take any arguments, got [\"bogus\"]"
    );
}

#[test]
fn empty_arguments_are_passed_over() {
    let flags = flags(&[
        "",
        "--hostname-override",
        "",
        "--masquerade-all",
        "",
        "--proxy-mode=ipvs",
        "",
    ]);
    assert_eq!(flags.hostname_override.as_deref(), Some(""));
    // A switch takes no value from the next argument.
    assert_eq!(flags.masquerade_all, Some(true));
    assert_eq!(flags.proxy_mode.as_deref(), Some("ipvs"));
}

#[test]
fn the_next_argument_is_the_value() {
    let flags = flags(&["--oom-score-adj", "-7", "--ipvs-udp-timeout", "-1s"]);
    assert_eq!(flags.oom_score_adj, Some(-7));
    assert!(flags.ipvs_udp_timeout.is_some());
}

#[test]
fn rates_are_numbers_that_a_float_can_hold() {
    for (text, rate) in [("5", 5.0), ("1e3", 1000.0), ("-1.5", -1.5)] {
        let argument = format!("--kube-api-qps={text}");
        assert_eq!(flags(&[&argument]).kube_api_qps, Some(rate));
    }
    let error = try_parse(&["--kube-api-qps=1e40"]).unwrap_err();
    assert!(error.to_string().contains("value out of range"), "{error}");
}

#[test]
fn an_unknown_flag_is_named() {
    let error = try_parse(&["--bogus=1"]).unwrap_err();
    assert!(error.to_string().contains("--bogus"), "{error}");
}

#[test]
fn a_bad_value_names_its_flag() {
    for argument in [
        "--oom-score-adj=x",
        "--ipvs-sync-period=soon",
        "--iptables-masquerade-bit=1.5",
        "--v=-1",
        "--kube-api-qps=fast",
        "--cleanup=maybe",
    ] {
        let error = try_parse(&[argument]).unwrap_err().to_string();
        let flag = argument.split('=').next().unwrap();
        assert!(error.contains(flag), "{argument}: {error}");
    }
}

#[test]
fn a_repeated_flag_counts_the_last_time() {
    assert_eq!(
        flags(&["--proxy-mode=ipvs", "--proxy-mode=iptables"])
            .proxy_mode
            .as_deref(),
        Some("iptables")
    );
    assert_eq!(
        flags(&["--masquerade-all", "--masquerade-all=false"]).masquerade_all,
        Some(false)
    );
}

#[test]
fn a_value_may_be_negative_and_stand_apart() {
    assert_eq!(
        flags(&["--oom-score-adj", "-998"]).oom_score_adj,
        Some(-998)
    );
    assert_eq!(
        flags(&["--conntrack-udp-timeout=-1s"]).conntrack_udp_timeout,
        Some(GoDuration::from_nanos(-1_000_000_000))
    );
}

#[test]
fn verbosity_has_a_short_and_a_long_form() {
    for arguments in [
        &["-v", "3"][..],
        &["-v=3"],
        &["-v3"],
        &["--v=3"],
        &["--v", "3"],
    ] {
        assert_eq!(flags(arguments).verbosity, Some(3), "{arguments:?}");
    }
}

#[test]
fn lists_are_split_at_commas_and_gathered() {
    let given = flags(&[
        "--nodeport-addresses=primary,10.0.0.0/8",
        "--nodeport-addresses=localhost",
    ]);
    assert_eq!(
        strings(&given.nodeport_addresses),
        Some(vec![
            "primary".to_owned(),
            "10.0.0.0/8".to_owned(),
            "localhost".to_owned()
        ])
    );
    assert_eq!(
        strings(&flags(&["--nodeport-addresses="]).nodeport_addresses),
        Some(vec![])
    );
    assert_eq!(strings(&flags(&[]).nodeport_addresses), None);
}

#[test]
fn lists_may_be_quoted_as_in_csv() {
    for (text, fields) in [
        ("a,b", &["a", "b"][..]),
        ("\"a\",b", &["a", "b"]),
        ("\"a,b\",c", &["a,b", "c"]),
        ("\"a\"\"b\"", &["a\"b"]),
        ("\"\"\"\"", &["\""]),
        ("\"\",", &["", ""]),
    ] {
        let given = flags(&["--ipvs-exclude-cidrs", text]);
        assert_eq!(
            strings(&given.ipvs_exclude_cidrs).unwrap(),
            fields,
            "{text}"
        );
    }
    for text in ["a\"", "\"a", "\"a\"b", "\"a\"\"", "a,\"b"] {
        let refused = try_parse(&["--nodeport-addresses", text]);
        let error = refused.map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("a quotation mark"), "{text}: {error}");
    }
}

/// kube-proxy looks at them when it parses the command line.
#[test]
fn values_are_looked_at_where_a_file_replaces_them() {
    for flag in [
        "--bind-address=localhost",
        "--healthz-bind-address=localhost:1",
        "--metrics-bind-address=1.2.3.4:70000",
        "--metrics-bind-address=1.2.3.4:+1",
        "--feature-gates=A",
        "--feature-gates=A=maybe",
        "--nodeport-addresses=\"",
        "--v=abc",
    ] {
        assert!(try_parse(&["--config=c", flag]).is_err(), "{flag}");
    }
    for flag in [
        "--bind-address=",
        "--bind-address=192.0.2.01",
        "--healthz-bind-address=::1",
        "--healthz-bind-address=[::1]:0",
        "--metrics-bind-address=",
    ] {
        assert!(try_parse(&["--config=c", flag]).is_ok(), "{flag}");
    }
}

#[test]
fn gates_are_pairs() {
    let given = flags(&["--feature-gates=A=true,B=false", "--feature-gates=C=1"]);
    let pairs = gates(&given.feature_gates).unwrap();
    assert_eq!(
        pairs.into_iter().collect::<Vec<_>>(),
        [
            ("A".to_owned(), true),
            ("B".to_owned(), false),
            ("C".to_owned(), true)
        ]
    );
    for value in ["A", "A=maybe"] {
        let error = gates(&[value.to_owned()]).unwrap_err().to_string();
        assert!(
            error.contains("--feature-gates") && error.contains(value),
            "{error}"
        );
    }
}

#[test]
fn vmodule_entries_are_pairs() {
    let items = vmodule(&["health=2,reconcile=4".to_owned()]).unwrap();
    assert_eq!(items.len(), 2);
    assert_eq!(
        items[1],
        VmoduleItem {
            file_pattern: "reconcile".to_owned(),
            verbosity: 4
        }
    );
    for value in ["health", "health=x", "=3"] {
        assert!(vmodule(&[value.to_owned()]).is_err(), "{value}");
    }
}

#[test]
fn version_may_have_a_value() {
    assert_eq!(flags(&["--version"]).version.as_deref(), Some("true"));
    assert_eq!(flags(&["--version=raw"]).version.as_deref(), Some("raw"));
}

#[test]
fn flags_beside_a_file_are_ignored_and_named() {
    let parsed = parsed(&[
        "--config=c",
        "--proxy-mode=ipvs",
        "--masquerade-all",
        "-v=2",
        "--hostname-override=n",
        "--master=m",
    ]);
    assert_eq!(parsed.ignored, ["masquerade-all", "proxy-mode"]);
    assert_eq!(self::parsed(&["--proxy-mode=ipvs"]).ignored, [""; 0]);
}

#[test]
fn plan_takes_the_same_flags_after_its_name() {
    let parsed = parsed(&[
        "plan",
        "--manifests=d",
        "--proxy_mode",
        "ipvs",
        "--output",
        "json",
        "--masquerade-all",
        "--verbose",
    ]);
    let Some(Sub::Plan {
        flags,
        output,
        verbose,
    }) = parsed.cli.command
    else {
        panic!("{parsed:?}")
    };
    assert_eq!((output, verbose), (OutputFormat::Json, Some(true)));
    assert_eq!(flags.manifests, Some(PathBuf::from("d")));
    assert_eq!(flags.proxy_mode.as_deref(), Some("ipvs"));
    assert_eq!(flags.masquerade_all, Some(true));
}

#[test]
fn check_config_takes_a_file() {
    let parsed = parsed(&["check-config", "c.yaml"]);
    assert!(
        matches!(parsed.cli.command, Some(Sub::CheckConfig { file, .. }) if *file == *"c.yaml")
    );
    assert!(matches!(
        try_parse(&["check-config"]),
        Err(FlagError::Usage(_))
    ));
}

#[test]
fn manifests_exclude_an_api_server() {
    assert!(matches!(
        try_parse(&["--manifests=d", "--master=m"]),
        Err(FlagError::Usage(_))
    ));
    assert!(matches!(
        try_parse(&["--manifests=d", "--kubeconfig=k"]),
        Err(FlagError::Usage(_))
    ));
}

#[test]
fn localhost_nodeports_is_off_and_counts_beside_a_file() {
    assert_eq!(flags(&[]).localhost_nodeports, None);
    let parsed = parsed(&["--config=c", "--localhost-nodeports"]);
    assert_eq!(parsed.cli.flags.localhost_nodeports, Some(true));
    assert_eq!(parsed.cli.flags.iptables_localhost_nodeports, None);
    assert_eq!(parsed.ignored, [""; 0]);
}

#[test]
fn iptables_backend_is_one_of_three_and_counts_beside_a_file() {
    let parsed = parsed(&["--config=c", "--iptables-backend=legacy"]);
    assert_eq!(
        parsed.cli.flags.iptables_backend,
        Some(IptablesBackend::Legacy)
    );
    assert_eq!(parsed.ignored, [""; 0]);
    let error = try_parse(&["--iptables-backend=nftables"]).unwrap_err();
    assert!(error.to_string().contains("auto, legacy, nft"), "{error}");
}

#[test]
fn ipvs_rules_is_one_of_three_and_counts_beside_a_file() {
    let parsed = parsed(&["--config=c", "--ipvs-rules=nftables"]);
    assert_eq!(parsed.cli.flags.ipvs_rules, Some(IpvsRulesChoice::Nftables));
    assert_eq!(parsed.ignored, [""; 0]);
    let error = try_parse(&["--ipvs-rules=nft"]).unwrap_err();
    let known = "auto, iptables, nftables";
    assert!(error.to_string().contains(known), "{error}");
}
