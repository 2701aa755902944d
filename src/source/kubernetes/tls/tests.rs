// SPDX-License-Identifier: Apache-2.0
//! What is refused before a connection is made, and what errors advise.

use super::*;

const CERTIFICATE: &[u8] = include_bytes!("../tests/certificates/client.crt");
const KEY: &[u8] = include_bytes!("../tests/certificates/client.key");
const OTHER_KEY: &[u8] = include_bytes!("../tests/certificates/renewed-client.key");

fn refusal(authority: &[u8], certificate: &[u8], key: &[u8]) -> String {
    let identity = Identity {
        authority: Some(authority.to_vec()),
        certificate: Some(certificate.to_vec()),
        key: Some(key.to_vec()),
    };
    client_config(&identity, false).unwrap_err().to_string()
}

#[test]
fn what_cannot_be_used_is_named() {
    for (authority, certificate, key, expected) in [
        (
            &b""[..],
            CERTIFICATE,
            KEY,
            "certificate-authority: no certificate in PEM",
        ),
        (
            KEY,
            CERTIFICATE,
            KEY,
            "certificate-authority: no certificate in PEM",
        ),
        (
            CERTIFICATE,
            b"",
            KEY,
            "client-certificate: no certificate in PEM",
        ),
        (
            CERTIFICATE,
            CERTIFICATE,
            b"",
            "client-key: no private key in PEM",
        ),
        (
            CERTIFICATE,
            CERTIFICATE,
            OTHER_KEY,
            "do not belong together",
        ),
    ] {
        let text = refusal(authority, certificate, key);
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn text_around_certificates_is_passed_over() {
    let mut bundle = b"# Made by hand\n".to_vec();
    bundle.extend_from_slice(KEY);
    bundle.extend_from_slice(CERTIFICATE);
    let identity = Identity {
        authority: Some(bundle),
        ..Identity::default()
    };
    assert!(client_config(&identity, false).is_ok());
}

#[test]
fn without_an_authority_there_are_the_systems_or_mozillas() {
    assert!(client_config(&Identity::default(), false).is_ok());
}

#[test]
fn errors_of_the_library_come_with_advice() {
    let chained = std::io::Error::other(Error::AlertReceived(AlertDescription::HandshakeFailure));
    let tls = tls_error(&chained).expect("it is one");
    assert!(hint(tls).unwrap().contains("give the server a certificate"));
    let other = std::io::Error::other("no route to host");
    assert!(tls_error(&other).is_none());
}
