// SPDX-License-Identifier: Apache-2.0
//! TLS as client-go's users know it. Certificates are read from PEM as Go reads it, a server
//! certificate may be pinned by giving it as the authority, our own may be of any version, and
//! where no authority is given those of the system count, else Mozilla's.

use std::error::Error as StdError;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    AlertDescription, CertificateError, DigitallySignedStruct, Error, InconsistentKeys,
    RootCertStore, SignatureScheme,
};
use tracing::{debug, info};

use super::failure::cause;
use super::settings::Unusable;

mod p521;

/// What the TLS of a connection is made of, as PEM. A change of it needs a new connection.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Identity {
    /// `None`: any authority that the system trusts.
    pub(super) authority: Option<Vec<u8>>,
    pub(super) certificate: Option<Vec<u8>>,
    pub(super) key: Option<Vec<u8>>,
}

/// Makes the TLS of a client.
pub(super) fn client_config(identity: &Identity, insecure: bool) -> Result<ClientConfig, Unusable> {
    let provider = Arc::new(p521::provider());
    let versions = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| Unusable::other(error.to_string()))?;
    let verifier: Arc<dyn ServerCertVerifier> = if insecure {
        Arc::new(Unchecked(provider.clone()))
    } else {
        Arc::new(Verifier::new(identity.authority.as_deref(), &provider)?)
    };
    let config = versions
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    Ok(match (&identity.certificate, &identity.key) {
        (Some(certificate), Some(key)) => {
            let own = certified_key(certificate, key, &provider)?;
            config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own)))
        }
        _ => config.with_no_client_auth(),
    })
}

/// Our certificate with its key. Whether the server takes it is the server's affair: no version or
/// extension is asked for here, as in Go.
fn certified_key(
    certificate: &[u8],
    key: &[u8],
    provider: &CryptoProvider,
) -> Result<CertifiedKey, Unusable> {
    let chain = certificates("client-certificate", certificate)?;
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|error| Unusable::other(format!("client-key: no private key in PEM: {error}")))?;
    let key = provider.key_provider.load_private_key(key);
    let key = key.map_err(|error| {
        Unusable::other(format!(
            "client-key: {error}; use RSA of 2048 to 8192 bits, ECDSA P-256 or P-384, or Ed25519"
        ))
    })?;
    let own = CertifiedKey::new(chain, key);
    match own.keys_match() {
        Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => Err(Unusable::other(
            "client-certificate and client-key do not belong together",
        )),
        _ => Ok(own),
    }
}

/// All certificates of a PEM text, as Go: what is none is passed over.
fn certificates(field: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(Unusable::other(format!("{field}: no certificate in PEM"))),
        Err(error) => Err(Unusable::other(format!("{field}: {error}"))),
    }
}

/// Checks the server's certificate.
#[derive(Debug)]
struct Verifier {
    chains: Arc<WebPkiServerVerifier>,
    /// Certificates that were given as authorities: a server that shows one of them is the one.
    pinned: Vec<CertificateDer<'static>>,
}

impl Verifier {
    fn new(authority: Option<&[u8]>, provider: &Arc<CryptoProvider>) -> Result<Self, Unusable> {
        let mut roots = RootCertStore::empty();
        let pinned = match authority {
            Some(pem) => certificates("certificate-authority", pem)?,
            None => system_roots(&mut roots),
        };
        // One that cannot be read does not make the others useless.
        let (_usable, unusable) = roots.add_parsable_certificates(pinned.iter().cloned());
        if unusable > 0 {
            debug!(unusable, "certificate authorities that cannot be used");
        }
        if roots.is_empty() {
            return Err(Unusable::other(
                "certificate-authority: no certificate that can be used (X.509 v3, in PEM)",
            ));
        }
        let chains = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|error| Unusable::other(format!("certificate-authority: {error}")))?;
        Ok(Self {
            chains,
            pinned: authority.map_or_else(Vec::new, |_| pinned),
        })
    }
}

/// The authorities that the system trusts, which may be mounted into the container; without any,
/// Mozilla's as of the build.
fn system_roots(roots: &mut RootCertStore) -> Vec<CertificateDer<'static>> {
    let native = rustls_native_certs::load_native_certs();
    if native.certs.is_empty() {
        info!("no certificate authorities in the system, using Mozilla's of this build");
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    native.certs
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chains = &self.chains;
        let checked =
            chains.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let Err(error) = checked else { return checked };
        // The time is checked before anything that tells an authority from a server.
        let is_about_the_chain = match &error {
            Error::InvalidCertificate(CertificateError::UnknownIssuer) => true,
            Error::InvalidCertificate(CertificateError::Other(other)) => {
                other.to_string().contains(CA_AS_SERVER)
            }
            _ => false,
        };
        let is_pinned = |known: &CertificateDer<'_>| known.as_ref() == end_entity.as_ref();
        if is_about_the_chain && self.pinned.iter().any(is_pinned) {
            verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            return Ok(ServerCertVerified::assertion());
        }
        Err(error)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let chains = &self.chains;
        chains.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let chains = &self.chains;
        chains.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

/// Of webpki's errors rustls passes on some as they are.
const CA_AS_SERVER: &str = "CaUsedAsEndEntity";

/// Takes any server (`insecure-skip-tls-verify`).
#[derive(Debug)]
struct Unchecked(Arc<CryptoProvider>);

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.0.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

/// The TLS error in the causes of a failure.
pub(super) fn tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref() {
            return Some(tls);
        }
        next = cause(error);
    }
    None
}

/// What to do about a TLS error whose text does not say it: which rule of the library it is, and
/// the way out.
pub(super) fn hint(error: &Error) -> Option<&'static str> {
    Some(match error {
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "the server's certificate is from none of the certificate authorities that were given"
        }
        Error::InvalidCertificate(CertificateError::Other(other)) => {
            let text = other.to_string();
            if text.contains(CA_AS_SERVER) {
                "the server shows a certificate that is an authority itself: give that very \
                 certificate as certificate-authority, or let an authority sign one for the server"
            } else if text.contains("UnsupportedCertVersion") {
                "the server's certificate is X.509 v1, which has no names: make one of version 3 \
                 with subjectAltName"
            } else {
                return None;
            }
        }
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => {
            "the server's certificate is for other names: use one of them in the URL, or \
             tls-server-name"
        }
        Error::InvalidCertificate(
            CertificateError::UnsupportedSignatureAlgorithmContext { .. }
            | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. },
        ) => {
            "the server's certificate or its authority uses an algorithm that is not supported: \
             use RSA of 2048 bits or more, ECDSA on P-256, P-384 or P-521, with SHA-2, or Ed25519"
        }
        Error::AlertReceived(AlertDescription::HandshakeFailure) | Error::PeerIncompatible(_) => {
            "no common TLS version, cipher or kind of key: rustls takes TLS 1.2 or 1.3 with ECDHE \
             and AES-GCM or ChaCha20, and server keys of RSA, ECDSA P-256, P-384 or P-521, or \
             Ed25519: give the server a certificate with such a key"
        }
        Error::AlertReceived(
            AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRequired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::UnsupportedCertificate,
        ) => "the server does not take our client certificate",
        Error::InvalidMessage(_) => "the server does not speak TLS on this port",
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
