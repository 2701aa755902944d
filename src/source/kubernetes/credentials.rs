// SPDX-License-Identifier: Apache-2.0
//! Who we are, as of now: certificates, keys and tokens are read again, because they are renewed
//! on disk while we run.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::HeaderValue;
use jiff::Timestamp;
use tokio::time::Instant;
use tracing::debug;

use super::Config;
use super::plugin::{self, Credential};
use super::settings::{Login, Settings, Unusable};
use super::tls::Identity;

/// What a plugin gave is asked for again so long before it expires.
const BEFORE_EXPIRY: jiff::SignedDuration = jiff::SignedDuration::from_secs(60);
/// After a refusal by the server, a plugin is not run more often than this.
const PLUGIN_INTERVAL: Duration = Duration::from_secs(10);

pub(super) struct Credentials {
    config: Config,
    settings: Settings,
    /// What the token's file held last.
    token: Option<String>,
    plugin: Option<(Credential, Instant)>,
}

/// Has secrets.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Credentials {
    pub(super) fn new(config: Config, settings: Settings) -> Self {
        let mut credentials = Self {
            config,
            settings,
            token: None,
            plugin: None,
        };
        credentials.read_token();
        credentials
    }

    /// Whether they must be renewed before the next request.
    pub(super) fn is_due(&self) -> bool {
        match (&self.settings.login, &self.plugin) {
            (Login::Plugin(_), None) => true,
            (Login::Plugin(_), Some((credential, _))) => {
                let soon = Timestamp::now().checked_add(BEFORE_EXPIRY);
                soon.is_ok_and(|soon| credential.expires_by(soon))
            }
            (Login::Token { file: Some(_), .. }, _) => self.token.is_none(),
            _ => false,
        }
    }

    /// Reads everything again; runs a plugin whose answer expires or was refused.
    pub(super) async fn renew(&mut self, is_refused: bool) -> Result<(), Unusable> {
        // A kubeconfig may hold the certificates itself. Where the server is does not change.
        match Settings::load(&self.config) {
            Ok(settings) => self.settings = settings,
            Err(error) => debug!(%error, "kubeconfig cannot be read now"),
        }
        self.read_token();
        let Login::Plugin(command) = &self.settings.login else {
            return Ok(());
        };
        let is_old = match &self.plugin {
            Some((_, run)) => is_refused && run.elapsed() >= PLUGIN_INTERVAL,
            None => true,
        };
        if is_old || self.is_due() {
            let credential = plugin::run(command).await?;
            self.plugin = Some((credential, Instant::now()));
        }
        Ok(())
    }

    fn read_token(&mut self) {
        if let Login::Token {
            file: Some(path), ..
        } = &self.settings.login
        {
            // Empty while it is written: what was read before is still good.
            self.token = read_token(path).or(self.token.take());
        }
    }

    /// What connections are made with.
    pub(super) fn identity(&self) -> Result<Identity, Unusable> {
        let settings = &self.settings;
        let authority = settings.authority.read()?;
        if let Some((credential, _)) = &self.plugin
            && let (Some(certificate), Some(key)) = (&credential.certificate, &credential.key)
        {
            return Ok(Identity {
                authority,
                certificate: Some(certificate.clone().into_bytes()),
                key: Some(key.clone().into_bytes()),
            });
        }
        Ok(Identity {
            authority,
            certificate: settings.certificate.read()?,
            key: settings.key.read()?,
        })
    }

    /// The value of the header `Authorization`.
    pub(super) fn authorization(&self) -> Result<Option<HeaderValue>, Unusable> {
        let text = match &self.settings.login {
            Login::Nobody => return Ok(None),
            Login::Password { user, password } => {
                format!("Basic {}", BASE64.encode(format!("{user}:{password}")))
            }
            Login::Token { file, given } => match (&self.token, given, file) {
                (Some(token), _, _) | (None, Some(token), _) => format!("Bearer {token}"),
                (None, None, Some(path)) => return Err(no_token(path)),
                (None, None, None) => return Ok(None),
            },
            Login::Plugin(_) => match &self.plugin {
                Some((
                    Credential {
                        token: Some(token), ..
                    },
                    _,
                )) => format!("Bearer {}", token.trim()),
                _ => return Ok(None),
            },
        };
        let mut value = HeaderValue::try_from(text).map_err(|_has_secrets| {
            Unusable::other(
                "the token has characters that a header cannot have, such as line breaks",
            )
        })?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

/// A token without the line breaks and blanks around it that editors and tools leave; `None` if
/// there is none.
fn read_token(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let token = text.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
    (!token.is_empty()).then(|| token.to_owned())
}

fn no_token(path: &PathBuf) -> Unusable {
    match std::fs::metadata(path) {
        Ok(_) => Unusable::other(format!("tokenFile: {} has no token", path.display())),
        Err(source) => Unusable::Read {
            field: "tokenFile",
            path: path.clone(),
            source,
        },
    }
}
