// SPDX-License-Identifier: Apache-2.0
//! A server with a key on P-521, of an authority that has one, too.

use ::p521::ecdsa::signature::Signer as _;
use ::p521::ecdsa::{DerSignature, SigningKey};
use rustls::SignatureScheme;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::sign::{CertifiedKey, SingleCertAndKey};

use super::ways::{Fields, PLAIN, Way, certificate, file};
use super::*;

/// ring has no such keys.
#[derive(Clone, Debug)]
struct Key(SigningKey);

impl Key {
    /// The number is in the middle of the PKCS#8.
    fn read(name: &str) -> Self {
        let key = PrivateKeyDer::from_pem_file(file(&format!("{name}.key"))).unwrap();
        let head = [0x02, 0x01, 0x01, 0x04, 0x42];
        let bytes = key.secret_der();
        let at = bytes.windows(head.len()).position(|window| window == head);
        let start = at.unwrap() + head.len();
        Self(SigningKey::from_slice(&bytes[start..start + 66]).unwrap())
    }
}

impl rustls::sign::SigningKey for Key {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn rustls::sign::Signer>> {
        let is_offered = offered.contains(&SignatureScheme::ECDSA_NISTP521_SHA512);
        is_offered.then(|| Box::new(self.clone()) as _)
    }

    fn algorithm(&self) -> rustls::SignatureAlgorithm {
        rustls::SignatureAlgorithm::ECDSA
    }
}

impl rustls::sign::Signer for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let signature: DerSignature = self.0.sign(message);
        Ok(signature.as_bytes().to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP521_SHA512
    }
}

/// A server that shows a certificate and has a key.
fn shown(name: &str, key: &str) -> Arc<rustls::ServerConfig> {
    let key = CertifiedKey::new(vec![certificate(name)], Arc::new(Key::read(key)));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    Arc::new(config)
}

#[tokio::test]
async fn a_server_and_an_authority_on_p_521_are_taken() {
    let hashes = ["p521-sha256", "p521-sha384", "p521-sha512"];
    let authority = Fields {
        cluster: "certificate-authority: p521-ca.crt",
        ..PLAIN
    };
    for name in hashes {
        let mut way = Way::new(shown(name, name), authority).await;
        way.fixture.asked().await;
    }
    for cluster in [
        "certificate-authority: p521-sha256.crt",
        "insecure-skip-tls-verify: true",
    ] {
        let fields = Fields { cluster, ..PLAIN };
        let mut way = Way::new(shown("p521-sha256", "p521-sha256"), fields).await;
        way.fixture.asked().await;
    }
}

#[tokio::test]
async fn a_server_on_p_521_without_its_key_or_authority_is_refused() {
    let authority = Fields {
        cluster: "certificate-authority: p521-ca.crt",
        ..PLAIN
    };
    let stolen = shown("p521-sha512", "p521-sha256");
    Way::new(stolen, authority).await.fails().await;
    let unknown = shown("p521-sha512", "p521-sha512");
    Way::new(unknown, PLAIN).await.fails().await;
}
