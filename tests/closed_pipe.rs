// SPDX-License-Identifier: Apache-2.0
//! Commands whose reader goes away (`kube-proxy-rs --help | head -1`) end quietly. `plan` needs a
//! node: `netns_drop_in` has its test.
#![cfg(test)]

use std::io::Write;
use std::process::{ExitStatus, Stdio};

use kpr_testkit::namespace::command;

/// Runs the program with a stdout that has no reader. Returns its status and stderr.
fn unread(arguments: &[&str]) -> (ExitStatus, String) {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let child = command(env!("CARGO_BIN_EXE_kube-proxy-rs"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = child.wait_with_output().unwrap();
    (
        output.status,
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
fn answers_without_a_reader_are_no_error() {
    let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "{head}portRange: 1-2").unwrap();
    let path = file.path().to_str().unwrap();
    for arguments in [
        &["--help"][..],
        &["plan", "--help"],
        &["--version"],
        &["--version=raw"],
        &["completion", "bash"],
        &["man"],
        &["check-config", path],
    ] {
        let (status, errors) = unread(arguments);
        assert!(status.success(), "{arguments:?}: {status}: {errors}");
        assert_eq!(errors, "", "{arguments:?}");
    }
}

#[test]
fn an_invalid_file_is_still_a_failure() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let kind = "kind: KubeProxyConfiguration";
    let group = "apiVersion: kubeproxy.config.k8s.io/v1alpha1";
    write!(file, "{group}\n{kind}\nmode: none\n").unwrap();
    let (status, errors) = unread(&["check-config", file.path().to_str().unwrap()]);
    assert_eq!(status.code(), Some(1));
    assert_eq!(errors, "");
}
