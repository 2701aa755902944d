// SPDX-License-Identifier: Apache-2.0
//! Decoding and writing of the configuration file.

use super::*;
use kpr_core::model::GoDuration;

/// What kubeadm puts into the ConfigMap `kube-proxy`, field `config.conf`.
const KUBEADM: &str = include_str!("kubeadm.yaml");
const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

fn loaded(body: &str) -> Result<Loaded, FileError> {
    decode(Path::new("config.conf"), &format!("{HEAD}{body}"))
}

fn decoded(body: &str) -> Result<KubeProxyConfiguration, FileError> {
    Ok(loaded(body)?.configuration)
}

/// The fields that are passed over, and their lines.
#[track_caller]
fn passed_over(body: &str) -> Vec<(String, usize)> {
    let findings = loaded(body).unwrap().findings.into_iter();
    findings.map(|found| (found.field, found.line)).collect()
}

fn message(body: &str) -> String {
    decoded(body).unwrap_err().to_string()
}

#[test]
fn kubeadms_file_is_the_defaults_but_for_two_fields() {
    let loaded = decode(Path::new("config.conf"), KUBEADM).unwrap();
    assert_eq!(loaded.findings, []);
    let mut configuration = loaded.configuration;
    configuration.set_defaults();
    let mut expected = KubeProxyConfiguration::with_defaults();
    expected.client_connection.kubeconfig = "/var/lib/kube-proxy/kubeconfig.conf".to_owned();
    expected.cluster_cidr = "10.244.0.0/16".to_owned();
    assert_eq!(configuration, expected);
}

#[test]
fn unknown_fields_are_passed_over_and_named() {
    let body = "mode: ipvs\nudpIdleTimeout: 250ms\nresourceContainer: null\nMode: iptables\n\
                conntrack: {max: null, min: 5}\nipvs:\n  scheduler: lc\n  masqueradeAll: true\n";
    let configuration = decoded(body).unwrap();
    assert_eq!(configuration.mode, "ipvs");
    assert_eq!(configuration.conntrack.min, Some(5));
    assert_eq!(configuration.ipvs.scheduler, "lc");
    assert!(!configuration.iptables.masquerade_all);
    let named = [
        ("udpIdleTimeout", 4),
        ("resourceContainer", 5),
        ("Mode", 6),
        ("conntrack.max", 7),
        ("ipvs.masqueradeAll", 10),
    ];
    assert_eq!(
        passed_over(body),
        named.map(|(field, line)| (field.to_owned(), line))
    );
}

#[test]
fn what_is_inside_an_unknown_field_does_not_matter() {
    let body = "x-anchors:\n  - &mode {mode: 5}\nvmodule: [{deep: {er: []}}]\n";
    let named = [("x-anchors".to_owned(), 3), ("vmodule".to_owned(), 5)];
    assert_eq!(passed_over(body), named);
    let body = "logging: {vmodule: [{filePattern: a, level: 4}]}\n";
    assert_eq!(
        passed_over(body),
        [("logging.vmodule[0].level".to_owned(), 3)]
    );
}

#[test]
fn the_last_of_a_repeated_field_counts_and_a_section_as_a_whole() {
    let body = "mode: ipvs\nipvs: {scheduler: lc}\nmode: iptables\nipvs: {strictARP: true}\n";
    let configuration = decoded(body).unwrap();
    assert_eq!(configuration.mode, "iptables");
    assert_eq!(configuration.ipvs.scheduler, "");
    assert!(configuration.ipvs.strict_arp);
    let named = [("mode".to_owned(), 5), ("ipvs".to_owned(), 6)];
    assert_eq!(passed_over(body), named);
}

#[test]
fn repeated_sections_of_a_json_file_are_one() {
    let text = format!(
        r#"{{"apiVersion": "{API_VERSION}", "kind": "{KIND}", "ipvs": {{"scheduler": "lc"}},
        "ipvs": {{"strictARP": true}}}}"#
    );
    let loaded = decode(Path::new("c"), &text).unwrap();
    assert_eq!(loaded.configuration.ipvs.scheduler, "lc");
    assert!(loaded.configuration.ipvs.strict_arp);
    assert_eq!(loaded.findings.len(), 1);
    assert_eq!(
        (loaded.findings[0].field.as_str(), loaded.findings[0].line),
        ("ipvs", 2)
    );
}

#[test]
fn the_first_of_several_documents_counts() {
    assert_eq!(passed_over("mode: ipvs\n---\n"), []);
    for rest in ["kind: KubeletConfiguration\n", "- 1\n", "a: [1\n", "text\n"] {
        let loaded = loaded(&format!("mode: ipvs\n---\n{rest}")).unwrap();
        assert_eq!(loaded.configuration.mode, "ipvs");
        assert_eq!(loaded.findings.len(), 1, "{rest}: {:?}", loaded.findings);
    }
    let kubeadm =
        format!("apiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\n---\n{HEAD}");
    let message = decode(Path::new("c"), &kubeadm).unwrap_err().to_string();
    assert!(
        message.contains("no kind \"InitConfiguration\""),
        "{message}"
    );
    assert!(message.contains("document 2, line 4, is one"), "{message}");
}

#[test]
fn a_wrong_type_is_named_in_an_operators_words() {
    for (body, expected) in [
        ("oomScoreAdj: often\n", "oomScoreAdj: want a whole number"),
        ("oomScoreAdj: 1.5\n", "oomScoreAdj: want a whole number"),
        (
            "oomScoreAdj: 3000000000\n",
            "oomScoreAdj: want a whole number",
        ),
        ("oomScoreAdj: \"-999\"\n", "(without quotes)"),
        (
            "bindAddressHardFail: 3\n",
            "bindAddressHardFail: want true or false, not the number 3",
        ),
        (
            "bindAddressHardFail: \"true\"\n",
            "want true or false (without quotes)",
        ),
        (
            "hostnameOverride: 12345\n",
            "hostnameOverride: want a text (put it in quotes), not the number 12345",
        ),
        (
            "hostnameOverride: yes\n",
            "want a text (put it in quotes), not the word true",
        ),
        (
            "nodePortAddresses: 10.0.0.0/8\n",
            "nodePortAddresses: want a list ([10.0.0.0/8])",
        ),
        (
            "nodePortAddresses: [[a]]\n",
            "nodePortAddresses[0]: want a text, not a list",
        ),
        (
            "conntrack: 5\n",
            "conntrack: want a section with fields of its own, not the number 5",
        ),
        (
            "conntrack: {maxPerCore: 32Ki}\n",
            "conntrack.maxPerCore: want a whole number",
        ),
        (
            "configSyncPeriod: 15\n",
            "configSyncPeriod: want a duration with its unit, such as 15s",
        ),
        (
            "configSyncPeriod: soon\n",
            "configSyncPeriod: want a duration such as 30s",
        ),
        (
            "configSyncPeriod: null\n",
            "configSyncPeriod: want a duration such as 30s, 15m or 1h30m, not null",
        ),
        (
            "featureGates: {KubeProxyIPVS: maybe}\n",
            "featureGates.KubeProxyIPVS: want true or false",
        ),
        (
            "featureGates: KubeProxyIPVS=true\n",
            "featureGates: want a map of names to true or false",
        ),
        (
            "clientConnection: {qps: fast}\n",
            "clientConnection.qps: want a number",
        ),
        (
            "logging: {options: {text: {infoBufferSize: big}}}\n",
            "want a size such as 512, 4k or 4Ki",
        ),
        (
            "logging: {flushFrequency: 1.5}\n",
            "or a number of nanoseconds",
        ),
    ] {
        let message = message(body);
        assert!(
            message.starts_with("failed to decode config.conf:3:"),
            "{body}: {message}"
        );
        assert!(message.contains(expected), "{body}: {message}");
    }
}

#[test]
fn all_wrong_types_are_named_at_once() {
    let message = message("mode: 5\nunknown: 1\nconntrack:\n  min: few\n");
    assert!(
        message.contains("config.conf:3:7: mode: want a text"),
        "{message}"
    );
    assert!(
        message.contains("; line 6: conntrack.min: want a whole number"),
        "{message}"
    );
}

#[test]
fn numbers_and_words_are_those_of_yaml_1_1() {
    let body = "iptables: {masqueradeBit: 0014}\nclientConnection: {burst: 10.0, qps: 1e1}\n\
                bindAddressHardFail: on\noomScoreAdj: -0x10\nconntrack: {min: 1_000, maxPerCore: null}\n\
                featureGates: {KubeProxyIPVS: null}\nportRange: ~\nipvs: null\n";
    let configuration = decoded(body).unwrap();
    assert_eq!(configuration.iptables.masquerade_bit, Some(12));
    assert_eq!(configuration.client_connection.burst, 10);
    assert!(configuration.client_connection.qps.total_cmp(&10.0).is_eq());
    assert!(configuration.bind_address_hard_fail);
    assert_eq!(configuration.oom_score_adj, Some(-16));
    assert_eq!(configuration.conntrack.min, Some(1000));
    assert_eq!(configuration.conntrack.max_per_core, None);
    assert!(!configuration.feature_gates["KubeProxyIPVS"]);
    assert_eq!(passed_over(body), []);
}

#[test]
fn a_null_in_a_list_is_an_empty_text() {
    let configuration = decoded("nodePortAddresses: [null]\n").unwrap();
    assert_eq!(configuration.node_port_addresses, Some(vec![String::new()]));
}

#[test]
fn a_syntax_error_quotes_its_line_and_gives_no_advice_to_programmers() {
    for body in [
        "mode: [a\n",
        "mode: {{ .mode }}\n",
        "\tmode: a\n",
        "mode: *nothing\n",
    ] {
        let message = message(body);
        assert!(
            message.starts_with("failed to decode config.conf:"),
            "{body}: {message}"
        );
        for word in ["Option", "from_str", "deserialize", "DuplicateKey"] {
            assert!(!message.contains(word), "{body}: {message}");
        }
    }
    let message = decode(Path::new("c"), "{\"kind\": \"a\",}")
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("c:1:14: key must be a string"),
        "{message}"
    );
}

#[test]
fn the_type_must_be_named() {
    for (text, expected) in [
        ("", "the file is empty"),
        ("mode: ipvs\n", "'kind' is missing"),
        ("kind: KubeProxyConfiguration\n", "'apiVersion' is missing"),
        (
            "apiVersion: kubeproxy.config.k8s.io/v1\nkind: KubeProxyConfiguration\n",
            "no kind \"KubeProxyConfiguration\" is registered for version \"kubeproxy.config.k8s.io/v1\"",
        ),
        (
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n",
            "no kind \"KubeletConfiguration\"",
        ),
        ("- a\n", "want a map of fields, not a list"),
        ("null\n", "it is empty"),
        ("---\n---\nkind: KubeProxyConfiguration\n", "it is empty"),
        ("kind: 5\n", "kind: want a text, not the number 5"),
    ] {
        let message = decode(Path::new("c"), text).unwrap_err().to_string();
        assert!(message.contains(expected), "{text}: {message}");
    }
}

#[test]
fn json_is_read_too() {
    let text = r#"{"apiVersion":"kubeproxy.config.k8s.io/v1alpha1","kind":"KubeProxyConfiguration",
        "mode":"ipvs","ipvs":{"strictARP":true,"excludeCIDRs":["10.0.0.0/8"],"tcpTimeout":"15m"}}"#;
    let configuration = decode(Path::new("c"), text).unwrap().configuration;
    assert_eq!(configuration.mode, "ipvs");
    assert!(configuration.ipvs.strict_arp);
    assert_eq!(
        configuration.ipvs.exclude_cidrs,
        Some(vec!["10.0.0.0/8".to_owned()])
    );
    assert_eq!(configuration.ipvs.tcp_timeout, GoDuration::from_secs(900));
}

#[test]
fn a_flush_frequency_is_a_duration_or_nanoseconds() {
    for (value, expected) in [
        ("7s", GoDuration::from_secs(7)),
        ("5000000000", GoDuration::from_secs(5)),
        ("null", GoDuration::ZERO),
    ] {
        let configuration = decoded(&format!("logging:\n  flushFrequency: {value}\n")).unwrap();
        assert_eq!(configuration.logging.flush_frequency.0, expected, "{value}");
    }
}

#[test]
fn what_is_written_is_read_back() {
    let mut configuration = decoded(
        "mode: ipvs\nhostnameOverride: \"on\"\nclusterCIDR: 10.0.0.0/8,fd00::/56\nnodePortAddresses: [primary, \"::/0\"]\n\
         clientConnection: {qps: 2.5}\nfeatureGates: {KubeProxyIPVS: true}\n\
         logging: {vmodule: [{filePattern: reconcile, verbosity: 4}], options: {text: {infoBufferSize: 2Ki}}}\n",
    )
    .unwrap();
    configuration.set_defaults();
    let text = encode(&configuration).unwrap();
    assert_eq!(
        decode(Path::new("c"), &text).unwrap().configuration,
        configuration,
        "{text}"
    );
}

#[test]
fn keys_are_written_in_alphabetical_order() {
    fn assert_sorted(value: &serde_json::Value, text: &str) {
        let Some(object) = value.as_object() else {
            return;
        };
        let mut last = 0;
        for (key, value) in object {
            // serde_json sorts, so each key must come later in the text than the one before.
            let position = text.find(&format!("\"{key}\"")).unwrap();
            assert!(position >= last, "{key}");
            last = position;
            assert_sorted(value, &serde_json::to_string(value).unwrap());
        }
    }
    let configuration = KubeProxyConfiguration::with_defaults();
    let text = serde_json::to_string(&configuration).unwrap();
    let top: Vec<&str> = text.split('"').filter(|part| !part.is_empty()).collect();
    assert_eq!(top[1], "apiVersion");
    assert_sorted(&serde_json::to_value(&configuration).unwrap(), &text);
}

#[test]
fn a_missing_file_is_named() {
    let error = load(Path::new("/nonexistent/config.conf")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot read configuration file /nonexistent/config.conf"
    );
}

#[test]
fn a_configuration_is_written_to_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.yaml");
    let configuration = KubeProxyConfiguration::with_defaults();
    write(&path, &configuration).unwrap();
    assert_eq!(load(&path).unwrap().configuration, configuration);
    assert!(matches!(
        write(&directory.path().join("no/such"), &configuration),
        Err(FileError::Write { .. })
    ));
}

#[test]
fn files_of_the_overlays_are_usable() {
    for mode in ["ipvs", "iptables"] {
        let root = env!("CARGO_MANIFEST_DIR");
        let path = format!("{root}/deploy/kustomize/overlays/{mode}/config.conf");
        let findings = crate::config::check::check(Path::new(&path)).unwrap();
        assert!(findings.is_usable(), "{findings}");
    }
}
