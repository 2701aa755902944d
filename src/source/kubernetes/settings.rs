// SPDX-License-Identifier: Apache-2.0
//! Where the API server is and who we are: a kubeconfig file, or the service account of a pod, read
//! as client-go reads them.

use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::header::{HeaderValue, USER_AGENT};
use kube::config::{AuthInfo, Cluster, ExecConfig, Kubeconfig, KubeconfigError};
use secrecy::ExposeSecret as _;
use tracing::warn;

use super::{Config, Error};

const AGENT: &str = concat!("kube-proxy-rs/", env!("CARGO_PKG_VERSION"));

/// Why what a kubeconfig names cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error("{field}: cannot read {}", path.display())]
    Read {
        field: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{field}: not base64")]
    Base64 {
        field: &'static str,
        #[source]
        source: base64::DecodeError,
    },
    /// Says the field and what to do.
    #[error("{0}")]
    Other(String),
}

impl Unusable {
    pub(super) fn other(text: impl Into<String>) -> Self {
        Self::Other(text.into())
    }
}

/// All that a connection is made of.
#[derive(Clone)]
pub(super) struct Settings {
    /// URL, name of the server, headers.
    pub(super) server: kube::Config,
    pub(super) authority: Pem,
    pub(super) certificate: Pem,
    pub(super) key: Pem,
    pub(super) login: Login,
    /// `proxy-url`, with its password.
    pub(super) proxy: Option<String>,
}

/// Certificates or a key.
#[derive(Clone)]
pub(super) enum Pem {
    None,
    Given(Vec<u8>),
    File(&'static str, PathBuf),
}

/// What goes into the header `Authorization`.
#[derive(Clone)]
pub(super) enum Login {
    Nobody,
    Password {
        user: String,
        password: String,
    },
    /// The file wins, as in client-go.
    Token {
        file: Option<PathBuf>,
        given: Option<String>,
    },
    Plugin(Box<ExecConfig>),
}

/// Has secrets.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("url", &self.server.cluster_url)
            .finish_non_exhaustive()
    }
}

impl Pem {
    /// The field of a kubeconfig with the data, else the one with the path.
    fn of(
        field: &'static str,
        data: Option<&str>,
        path: Option<&String>,
    ) -> Result<Self, Unusable> {
        let given = |text: &&str| !text.trim().is_empty();
        if let Some(data) = data.filter(given) {
            let data: String = data.split_whitespace().collect();
            let bytes = BASE64.decode(data);
            return bytes
                .map(Self::Given)
                .map_err(|source| Unusable::Base64 { field, source });
        }
        let path = path.filter(|path| !path.is_empty());
        Ok(path.map_or(Self::None, |path| Self::File(field, path.into())))
    }

    pub(super) fn read(&self) -> Result<Option<Vec<u8>>, Unusable> {
        match self {
            Self::None => Ok(None),
            Self::Given(bytes) => Ok(Some(bytes.clone())),
            Self::File(field, path) => match std::fs::read(path) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(source) => Err(Unusable::Read {
                    field,
                    path: path.clone(),
                    source,
                }),
            },
        }
    }
}

impl Settings {
    /// Reads the configuration, but none of the files that it names.
    pub(super) fn load(config: &Config) -> Result<Self, Error> {
        let master = config.master.as_deref().map(parse_master).transpose()?;
        let mut settings = match (&config.kubeconfig, &master) {
            (Some(path), _) => from_file(path)?,
            (None, Some(url)) => Self::nobody(kube::Config::new(url.clone())),
            (None, None) => in_cluster()?,
        };
        if let Some(url) = master {
            settings.server.cluster_url = url;
        }
        let agent = (USER_AGENT, HeaderValue::from_static(AGENT));
        settings.server.headers.push(agent);
        Ok(settings)
    }

    fn nobody(server: kube::Config) -> Self {
        Self {
            server,
            authority: Pem::None,
            certificate: Pem::None,
            key: Pem::None,
            login: Login::Nobody,
            proxy: None,
        }
    }

    /// Says what an operator may not know to be unsafe.
    pub(super) fn warn_of_insecurity(&self) {
        let server = &self.server.cluster_url;
        if server.scheme_str() == Some("http") {
            warn!(%server, "connection to the API server is not encrypted: anyone between can read and change it");
        } else if self.server.accept_invalid_certs {
            warn!(%server, "insecure-skip-tls-verify is set: anyone between can play the API server and read our token");
        }
    }
}

fn in_cluster() -> Result<Settings, Error> {
    let server = kube::Config::incluster().map_err(|source| Error::InCluster(Box::new(source)))?;
    let authority = server.root_cert_file.clone();
    let token = server.auth_info.token_file.clone();
    Ok(Settings {
        authority: authority.map_or(Pem::None, |path| Pem::File("certificate authority", path)),
        login: Login::Token {
            file: token.map(PathBuf::from),
            given: None,
        },
        ..Settings::nobody(kube::Config::new(server.cluster_url))
    })
}

fn from_file(path: &Path) -> Result<Settings, Error> {
    let file = Kubeconfig::read_from(path)
        .and_then(chosen)
        .map_err(|source| Error::Kubeconfig {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
    selected(file).map_err(|source| Error::Credentials {
        path: path.to_owned(),
        source,
    })
}

/// The cluster with its URL, and the user, of the current context.
struct Chosen {
    cluster: Cluster,
    url: http::Uri,
    user: AuthInfo,
}

fn chosen(file: Kubeconfig) -> Result<Chosen, KubeconfigError> {
    let name = file
        .current_context
        .filter(|name| !name.is_empty())
        .ok_or(KubeconfigError::CurrentContextNotSet)?;
    let context = file
        .contexts
        .into_iter()
        .find(|named| named.name == name)
        .and_then(|named| named.context)
        .ok_or(KubeconfigError::LoadContext(name))?;
    let cluster = file
        .clusters
        .into_iter()
        .find(|named| named.name == context.cluster)
        .and_then(|named| named.cluster)
        .ok_or(KubeconfigError::LoadClusterOfContext(context.cluster))?;
    // As in client-go, a user who is not there is nobody.
    let mut user = file
        .auth_infos
        .into_iter()
        .find(|named| Some(&named.name) == context.user.as_ref())
        .and_then(|named| named.auth_info)
        .unwrap_or_default();
    if let Some(plugin) = &mut user.exec
        && plugin.provide_cluster_info
    {
        plugin.cluster = Some((&cluster).try_into()?);
    }
    let url = cluster.server.as_deref().unwrap_or_default();
    if url.is_empty() {
        return Err(KubeconfigError::MissingClusterUrl);
    }
    let url = url.parse().map_err(KubeconfigError::ParseClusterUrl)?;
    Ok(Chosen { cluster, url, user })
}

fn selected(chosen: Chosen) -> Result<Settings, Unusable> {
    let Chosen { cluster, url, user } = chosen;
    let login = login(&user)?;
    let mut server = kube::Config::new(url);
    server.accept_invalid_certs = cluster.insecure_skip_tls_verify.unwrap_or_default();
    server.tls_server_name = cluster.tls_server_name.filter(|name| !name.is_empty());
    // For the headers of impersonation.
    server.auth_info = AuthInfo {
        impersonate: user.impersonate,
        impersonate_uid: user.impersonate_uid,
        impersonate_groups: user.impersonate_groups,
        impersonate_user_extra: user.impersonate_user_extra,
        ..AuthInfo::default()
    };
    let key = user.client_key_data.as_ref();
    let settings = Settings {
        authority: Pem::of(
            "certificate-authority",
            cluster.certificate_authority_data.as_deref(),
            cluster.certificate_authority.as_ref(),
        )?,
        certificate: Pem::of(
            "client-certificate",
            user.client_certificate_data.as_deref(),
            user.client_certificate.as_ref(),
        )?,
        key: Pem::of(
            "client-key",
            key.map(secrecy::ExposeSecret::expose_secret),
            user.client_key.as_ref(),
        )?,
        login,
        proxy: cluster.proxy_url.filter(|url| !url.is_empty()),
        server,
    };
    match (&settings.certificate, &settings.key) {
        (Pem::None, Pem::None) => Ok(settings),
        (Pem::None, _) => Err(Unusable::other("client-key without client-certificate")),
        (_, Pem::None) => Err(Unusable::other("client-certificate without client-key")),
        _ => Ok(settings),
    }
}

fn login(user: &AuthInfo) -> Result<Login, Unusable> {
    if let Some(provider) = &user.auth_provider {
        return Err(Unusable::other(format!(
            "auth-provider {:?}: gone from Kubernetes since v1.26; use an exec plugin or a token",
            provider.name
        )));
    }
    let given = |text: &&String| !text.is_empty();
    let token = user
        .token
        .as_ref()
        .map(|token| token.expose_secret().trim());
    let token = token.filter(|token| !token.is_empty()).map(str::to_owned);
    let file = user.token_file.as_ref().filter(given).map(PathBuf::from);
    if let Some(name) = user.username.as_ref().filter(given) {
        if token.is_some() || file.is_some() {
            return Err(Unusable::other(
                "username/password or bearer token may be set, but not both",
            ));
        }
        let password = user.password.as_ref();
        return Ok(Login::Password {
            user: name.clone(),
            password: password.map_or_else(String::new, |text| text.expose_secret().to_owned()),
        });
    }
    if token.is_some() || file.is_some() {
        return Ok(Login::Token { file, given: token });
    }
    Ok(match &user.exec {
        Some(plugin) => Login::Plugin(Box::new(plugin.clone())),
        None => Login::Nobody,
    })
}

/// As client-go reads it, a URL without a scheme is a plain HTTP one.
fn parse_master(url: &str) -> Result<http::Uri, Error> {
    let full = if url.contains("://") {
        url.to_owned()
    } else {
        format!("http://{url}")
    };
    full.parse().map_err(|source| Error::Master {
        url: url.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests;
