// SPDX-License-Identifier: Apache-2.0
//! What is taken from a kubeconfig file.

use std::path::PathBuf;

use super::*;

fn load(text: &str) -> Result<Settings, Error> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    Settings::load(&Config {
        kubeconfig: Some(file.path().to_owned()),
        ..Config::default()
    })
}

/// A kubeconfig with these fields of its cluster and user.
fn kubeconfig(cluster: &str, user: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         clusters: [{{name: k, cluster: {{server: 'https://192.0.2.1:6443', {cluster}}}}}]\n\
         contexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
         users: [{{name: u, user: {{{user}}}}}]\n"
    )
}

fn refusal(cluster: &str, user: &str) -> String {
    let error = load(&kubeconfig(cluster, user)).unwrap_err();
    crate::telemetry::ErrorChain(&error).to_string()
}

#[test]
fn the_master_flag_overrides_the_server_of_the_kubeconfig() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), kubeconfig("", "token: secret")).unwrap();
    let mut config = Config {
        kubeconfig: Some(file.path().to_owned()),
        ..Config::default()
    };
    let url = Settings::load(&config).unwrap().server.cluster_url;
    assert_eq!(url, "https://192.0.2.1:6443/");
    config.master = Some("192.0.2.2:8080".to_owned());
    let overridden = Settings::load(&config).unwrap();
    assert_eq!(overridden.server.cluster_url, "http://192.0.2.2:8080/");
    assert!(matches!(overridden.login, Login::Token { .. }));
}

#[test]
fn a_kubeconfig_that_cannot_be_used_is_named() {
    let broken = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(broken.path(), "clusters: [").unwrap();
    let missing = PathBuf::from("/nonexistent/kubeconfig");
    for path in [broken.path().to_owned(), missing] {
        let config = Config {
            kubeconfig: Some(path.clone()),
            ..Config::default()
        };
        let error = Settings::load(&config).unwrap_err();
        let expected = format!("cannot use the kubeconfig file {}", path.display());
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn a_master_that_is_no_url_is_named() {
    let config = Config {
        master: Some("http://a b".to_owned()),
        ..Config::default()
    };
    let error = Settings::load(&config).unwrap_err();
    let expected = "\"http://a b\" is not the URL of an API server";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn data_wins_over_a_file_and_may_be_wrapped() {
    let fields = "certificate-authority: /nonexistent, certificate-authority-data: 'YW\n  Jj'";
    let settings = load(&kubeconfig(fields, "")).unwrap();
    assert_eq!(settings.authority.read().unwrap().unwrap(), b"abc");
    let refused = refusal("certificate-authority-data: '%%'", "");
    assert!(
        refused.contains("certificate-authority: not base64"),
        "{refused}"
    );
}

#[test]
fn half_a_client_certificate_is_refused() {
    let refused = refusal("", "client-certificate: /x.crt");
    assert!(
        refused.ends_with("client-certificate without client-key"),
        "{refused}"
    );
    let refused = refusal("", "client-key: /x.key");
    assert!(
        refused.ends_with("client-key without client-certificate"),
        "{refused}"
    );
}

#[test]
fn a_token_file_and_a_token_are_both_kept() {
    let settings = load(&kubeconfig("", "token: ' old\n ', tokenFile: /new")).unwrap();
    let Login::Token { file, given } = settings.login else {
        panic!("a token");
    };
    assert_eq!(file, Some(PathBuf::from("/new")));
    assert_eq!(given.as_deref(), Some("old"));
}

#[test]
fn what_kubernetes_no_longer_has_is_said() {
    let refused = refusal("", "auth-provider: {name: gcp}");
    assert!(
        refused.contains("auth-provider \"gcp\": gone from Kubernetes since v1.26"),
        "{refused}"
    );
    let refused = refusal("", "username: u, password: p, token: t");
    assert!(refused.contains("not both"), "{refused}");
}

#[test]
fn secrets_are_not_shown() {
    let user = "token: hidden-token, client-key-data: aGlkZGVu, client-certificate-data: eA==";
    let settings = load(&kubeconfig("proxy-url: 'http://u:hidden@proxy'", user)).unwrap();
    let shown = format!("{settings:?}");
    assert!(!shown.contains("hidden"), "{shown}");
}
