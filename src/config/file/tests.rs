// SPDX-License-Identifier: Apache-2.0
//! Decoding and writing of the configuration file.

use super::*;
use kpr_core::model::GoDuration;

/// What kubeadm puts into the ConfigMap `kube-proxy`, field `config.conf`.
const KUBEADM: &str = include_str!("kubeadm.yaml");
const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

fn decoded(body: &str) -> Result<KubeProxyConfiguration, FileError> {
    decode(Path::new("config.conf"), &format!("{HEAD}{body}"))
}

fn message(body: &str) -> String {
    decoded(body).unwrap_err().to_string()
}

#[test]
fn kubeadms_file_is_the_defaults_but_for_two_fields() {
    let mut configuration = decode(Path::new("config.conf"), KUBEADM).unwrap();
    configuration.set_defaults();
    let mut expected = KubeProxyConfiguration::with_defaults();
    expected.client_connection.kubeconfig = "/var/lib/kube-proxy/kubeconfig.conf".to_owned();
    expected.cluster_cidr = "10.244.0.0/16".to_owned();
    assert_eq!(configuration, expected);
}

#[test]
fn an_unknown_field_is_named_with_file_and_line() {
    let message = message("mode: ipvs\nbogus: 1\n");
    assert!(
        message.starts_with("failed to decode config.conf:4:1: "),
        "{message}"
    );
    assert!(message.contains("unknown field `bogus`"), "{message}");
    assert!(!message.contains('\n'), "{message}");
}

#[test]
fn an_unknown_field_inside_a_section_is_named_with_its_line() {
    let message = message("ipvs:\n  scheduler: lc\n  masqueradeAll: true\n");
    assert!(
        message.starts_with("failed to decode config.conf:5:3: "),
        "{message}"
    );
    assert!(
        message.contains("unknown field `masqueradeAll`"),
        "{message}"
    );
}

#[test]
fn a_repeated_field_is_an_error_with_its_line() {
    let message = message("mode: ipvs\nmode: iptables\n");
    assert!(
        message.starts_with("failed to decode config.conf:4:1: "),
        "{message}"
    );
    assert!(message.contains("mode"), "{message}");
}

#[test]
fn a_wrong_type_is_an_error_with_its_line() {
    for body in [
        "oomScoreAdj: often\n",
        "bindAddressHardFail: 3\n",
        "nodePortAddresses: primary\n",
        "conntrack: 5\n",
        "configSyncPeriod: 15\n",
        "configSyncPeriod: soon\n",
        "featureGates: {KubeProxyIPVS: maybe}\n",
    ] {
        let message = message(body);
        assert!(
            message.starts_with("failed to decode config.conf:3:"),
            "{body}: {message}"
        );
    }
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
    ] {
        let message = decode(Path::new("c"), text).unwrap_err().to_string();
        assert!(message.contains(expected), "{text}: {message}");
    }
}

#[test]
fn json_is_read_too() {
    let text = r#"{"apiVersion":"kubeproxy.config.k8s.io/v1alpha1","kind":"KubeProxyConfiguration",
        "mode":"ipvs","ipvs":{"strictARP":true,"excludeCIDRs":["10.0.0.0/8"],"tcpTimeout":"15m"}}"#;
    let configuration = decode(Path::new("c"), text).unwrap();
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
        assert_eq!(configuration.logging.flush_frequency, expected, "{value}");
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
        decode(Path::new("c"), &text).unwrap(),
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
    assert_eq!(load(&path).unwrap(), configuration);
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
