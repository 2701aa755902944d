// SPDX-License-Identifier: Apache-2.0
//! Credential plugins (`exec` of a kubeconfig): a program that prints a token or a client
//! certificate, with the time until which it is valid.

use std::fmt;
use std::process::Stdio;
use std::time::Duration;

use jiff::Timestamp;
use kube::config::{ExecAuthCluster, ExecConfig, ExecInteractiveMode};
use serde::{Deserialize, Serialize};

use super::settings::Unusable;

/// A plugin that takes longer is ended: others wait for its answer.
const LIMIT: Duration = Duration::from_mins(1);
/// Of what a failed plugin says, no more is shown.
const MAX_SHOWN: usize = 300;

/// What a plugin printed.
#[derive(Clone, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Credential {
    pub(super) token: Option<String>,
    #[serde(rename = "clientCertificateData")]
    pub(super) certificate: Option<String>,
    #[serde(rename = "clientKeyData")]
    pub(super) key: Option<String>,
    expiration_timestamp: Option<String>,
}

/// Has secrets.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("expires", &self.expiration_timestamp)
            .finish_non_exhaustive()
    }
}

impl Credential {
    /// Whether it is not valid for much longer.
    pub(super) fn expires_by(&self, time: Timestamp) -> bool {
        let expires = self.expiration_timestamp.as_ref();
        expires
            .and_then(|text| text.parse::<Timestamp>().ok())
            .is_some_and(|expires| expires <= time)
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    api_version: Option<&'a str>,
    kind: &'static str,
    spec: Spec<'a>,
}

#[derive(Serialize)]
struct Spec<'a> {
    interactive: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<&'a ExecAuthCluster>,
}

#[derive(Deserialize)]
struct Answer {
    status: Option<Credential>,
}

/// Runs a plugin.
pub(super) async fn run(plugin: &ExecConfig) -> Result<Credential, Unusable> {
    let name = plugin.command.as_deref().unwrap_or_default();
    if name.is_empty() {
        return Err(Unusable::other("exec: command is missing"));
    }
    if plugin.interactive_mode == Some(ExecInteractiveMode::Always) {
        return Err(Unusable::other(
            "exec: interactiveMode Always needs a terminal, and a proxy has none",
        ));
    }
    let failed = |what: String| Unusable::other(format!("exec: {name:?} {what}"));
    let request = serde_json::to_string(&Request {
        api_version: plugin.api_version.as_deref(),
        kind: "ExecCredential",
        spec: Spec {
            interactive: false,
            cluster: plugin.cluster.as_ref(),
        },
    });
    let mut command = tokio::process::Command::new(name);
    command
        .args(plugin.args.iter().flatten())
        .env("KUBERNETES_EXEC_INFO", request.unwrap_or_default())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    for variable in plugin.env.iter().flatten() {
        if let (Some(key), Some(value)) = (variable.get("name"), variable.get("value")) {
            command.env(key, value);
        }
    }
    let output = match tokio::time::timeout(LIMIT, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => {
            let hint = plugin.install_hint.as_deref().unwrap_or_default();
            return Err(failed(format!("cannot be run: {error}. {hint}")));
        }
        Err(_elapsed) => return Err(failed(format!("took more than {} s", LIMIT.as_secs()))),
    };
    if !output.status.success() {
        let said: String = String::from_utf8_lossy(&output.stderr)
            .trim()
            .chars()
            .take(MAX_SHOWN)
            .collect();
        return Err(failed(format!("failed ({}): {said}", output.status)));
    }
    // client-go takes YAML, too. The output has secrets: no part of it is shown.
    let answer: Answer = serde_saphyr::from_slice(&output.stdout)
        .map_err(|_has_secrets| failed("printed no ExecCredential".to_owned()))?;
    let credential = answer.status.unwrap_or_default();
    match (&credential.token, &credential.certificate, &credential.key) {
        (None, None, None) => Err(failed(
            "printed neither a token nor a certificate".to_owned(),
        )),
        (_, Some(_), None) | (_, None, Some(_)) => Err(failed(
            "printed only one of clientCertificateData and clientKeyData".to_owned(),
        )),
        _ => Ok(credential),
    }
}
