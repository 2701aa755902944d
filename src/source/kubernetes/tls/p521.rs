// SPDX-License-Identifier: Apache-2.0
//! Signatures of ECDSA keys on P-521, which ring does not check and Go does: API servers and
//! authorities may have such keys. Only public data is handled here.

use std::sync::LazyLock;

use ::p521::ecdsa::signature::hazmat::PrehashVerifier as _;
use ::p521::ecdsa::{DerSignature, VerifyingKey};
use rustls::SignatureScheme;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{
    AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id,
};
use sha2::{Digest as _, Sha256, Sha384, Sha512};

/// P-521 with one of the hashes that authorities sign with.
#[derive(Debug)]
struct OnP521 {
    signature: AlgorithmIdentifier,
    hash: fn(&[u8]) -> Hash,
}

/// As long as that of SHA-512. A shorter one has zeros in front of it: it is the same number.
type Hash = [u8; 64];

static SHA256: OnP521 = OnP521 {
    signature: alg_id::ECDSA_SHA256,
    hash: |message| padded(&Sha256::digest(message)),
};
static SHA384: OnP521 = OnP521 {
    signature: alg_id::ECDSA_SHA384,
    hash: |message| padded(&Sha384::digest(message)),
};
static SHA512: OnP521 = OnP521 {
    signature: alg_id::ECDSA_SHA512,
    hash: |message| padded(&Sha512::digest(message)),
};

fn padded(hash: &[u8]) -> Hash {
    let mut padded: Hash = [0; 64];
    for (to, from) in padded.iter_mut().rev().zip(hash.iter().rev()) {
        *to = *from;
    }
    padded
}

impl SignatureVerificationAlgorithm for OnP521 {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let key = VerifyingKey::from_sec1_bytes(public_key).map_err(|_invalid| InvalidSignature)?;
        let signature = DerSignature::from_bytes(signature).map_err(|_invalid| InvalidSignature)?;
        key.verify_prehash(&(self.hash)(message), &signature)
            .map_err(|_invalid| InvalidSignature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_P521
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.signature
    }
}

type Algorithm = &'static dyn SignatureVerificationAlgorithm;

static ALL: LazyLock<Vec<Algorithm>> = LazyLock::new(|| {
    let more: [Algorithm; 3] = [&SHA256, &SHA384, &SHA512];
    let ring = rustls::crypto::ring::default_provider().signature_verification_algorithms;
    ring.all.iter().copied().chain(more).collect()
});

static IN_TLS: [Algorithm; 1] = [&SHA512];

static MAPPING: LazyLock<Vec<(SignatureScheme, &'static [Algorithm])>> = LazyLock::new(|| {
    let more = (SignatureScheme::ECDSA_NISTP521_SHA512, &IN_TLS[..]);
    let ring = rustls::crypto::ring::default_provider().signature_verification_algorithms;
    ring.mapping.iter().copied().chain([more]).collect()
});

/// ring, and P-521 in what it checks.
pub(super) fn provider() -> CryptoProvider {
    CryptoProvider {
        signature_verification_algorithms: WebPkiSupportedAlgorithms {
            all: &ALL,
            mapping: &MAPPING,
        },
        ..rustls::crypto::ring::default_provider()
    }
}
