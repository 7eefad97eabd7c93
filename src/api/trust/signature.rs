//! Signatures in certificates and handshakes: ring's, and what ring lacks of Go's.
//!
//! ring checks each curve with one or two digests only, and P-521 not at all; openssl and others sign
//! with whatever digest they are told to. RSA keys below 2048 bits are old CAs'.

use ::webpki::ring as webpki;
use p256::ecdsa::signature::hazmat::PrehashVerifier;
use ring::signature as rsa;
use rustls::SignatureScheme;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{
    AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id,
};
use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_cert::Certificate;
use x509_cert::der::Encode;

/// Checks a signature over a digest with a public key in SEC1 form.
type Check = fn(key: &[u8], digest: &[u8], signature: &[u8]) -> Result<(), InvalidSignature>;

/// One curve with one digest.
#[derive(Debug)]
struct Ecdsa {
    curve: AlgorithmIdentifier,
    signature: AlgorithmIdentifier,
    digest: fn(&[u8]) -> Vec<u8>,
    check: Check,
}

impl SignatureVerificationAlgorithm for Ecdsa {
    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.curve
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.signature
    }

    fn verify_signature(
        &self,
        key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        (self.check)(key, &(self.digest)(message), signature)
    }
}

fn digest<D: Digest>(message: &[u8]) -> Vec<u8> {
    D::digest(message).to_vec()
}

fn p256(key: &[u8], digest: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
    let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(key).map_err(|_| InvalidSignature)?;
    let signature = p256::ecdsa::Signature::from_der(signature).map_err(|_| InvalidSignature)?;
    key.verify_prehash(digest, &signature).map_err(|_| InvalidSignature)
}

fn p384(key: &[u8], digest: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
    let key = p384::ecdsa::VerifyingKey::from_sec1_bytes(key).map_err(|_| InvalidSignature)?;
    let signature = p384::ecdsa::Signature::from_der(signature).map_err(|_| InvalidSignature)?;
    key.verify_prehash(digest, &signature).map_err(|_| InvalidSignature)
}

fn p521(key: &[u8], digest: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
    let key = p521::ecdsa::VerifyingKey::from_sec1_bytes(key).map_err(|_| InvalidSignature)?;
    let signature = p521::ecdsa::Signature::from_der(signature).map_err(|_| InvalidSignature)?;
    // The crate refuses a digest of less than half the field; as a number it is the same with zeros
    // in front.
    let mut padded = [0; 66];
    padded[66 - digest.len()..].copy_from_slice(digest);
    key.verify_prehash(&padded, &signature).map_err(|_| InvalidSignature)
}

macro_rules! ecdsa {
    ($name:ident, $curve:ident, $signature:ident, $digest:ty, $check:expr) => {
        static $name: &dyn SignatureVerificationAlgorithm = &Ecdsa {
            curve: alg_id::$curve,
            signature: alg_id::$signature,
            digest: digest::<$digest>,
            check: $check,
        };
    };
}

ecdsa!(P256_SHA512, ECDSA_P256, ECDSA_SHA512, Sha512, p256);
ecdsa!(P384_SHA512, ECDSA_P384, ECDSA_SHA512, Sha512, p384);
ecdsa!(P521_SHA256, ECDSA_P521, ECDSA_SHA256, Sha256, p521);
ecdsa!(P521_SHA384, ECDSA_P521, ECDSA_SHA384, Sha384, p521);
ecdsa!(P521_SHA512, ECDSA_P521, ECDSA_SHA512, Sha512, p521);

/// RSA PKCS#1 v1.5 from 1024 bits on, Go's least.
#[derive(Debug)]
struct Rsa {
    signature: AlgorithmIdentifier,
    check: &'static rsa::RsaParameters,
}

impl SignatureVerificationAlgorithm for Rsa {
    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::RSA_ENCRYPTION
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.signature
    }

    fn verify_signature(
        &self,
        key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let key = rsa::UnparsedPublicKey::new(self.check, key);
        key.verify(message, signature).map_err(|_| InvalidSignature)
    }
}

static RSA_SHA256: &dyn SignatureVerificationAlgorithm = &Rsa {
    signature: alg_id::RSA_PKCS1_SHA256,
    check: &rsa::RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY,
};
static RSA_SHA512: &dyn SignatureVerificationAlgorithm = &Rsa {
    signature: alg_id::RSA_PKCS1_SHA512,
    check: &rsa::RSA_PKCS1_1024_8192_SHA512_FOR_LEGACY_USE_ONLY,
};

/// Everything that Go's TLS client accepts and can be checked here.
pub(super) static ALGORITHMS: WebPkiSupportedAlgorithms =
    WebPkiSupportedAlgorithms { all: ALL, mapping: SCHEMES };

static ALL: &[&dyn SignatureVerificationAlgorithm] = &[
    webpki::ECDSA_P256_SHA256,
    webpki::ECDSA_P256_SHA384,
    P256_SHA512,
    webpki::ECDSA_P384_SHA256,
    webpki::ECDSA_P384_SHA384,
    P384_SHA512,
    P521_SHA256,
    P521_SHA384,
    P521_SHA512,
    webpki::ED25519,
    webpki::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    webpki::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    webpki::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
    RSA_SHA256,
    webpki::RSA_PKCS1_2048_8192_SHA384,
    RSA_SHA512,
    webpki::RSA_PKCS1_2048_8192_SHA256_ABSENT_PARAMS,
    webpki::RSA_PKCS1_2048_8192_SHA384_ABSENT_PARAMS,
    webpki::RSA_PKCS1_2048_8192_SHA512_ABSENT_PARAMS,
];

/// TLS 1.3 takes the first of each, TLS 1.2 whichever fits the key.
static SCHEMES: &[(SignatureScheme, &[&dyn SignatureVerificationAlgorithm])] = &[
    (
        SignatureScheme::ECDSA_NISTP384_SHA384,
        &[webpki::ECDSA_P384_SHA384, webpki::ECDSA_P256_SHA384, P521_SHA384],
    ),
    (
        SignatureScheme::ECDSA_NISTP256_SHA256,
        &[webpki::ECDSA_P256_SHA256, webpki::ECDSA_P384_SHA256, P521_SHA256],
    ),
    (SignatureScheme::ECDSA_NISTP521_SHA512, &[P521_SHA512, P384_SHA512, P256_SHA512]),
    (SignatureScheme::ED25519, &[webpki::ED25519]),
    (SignatureScheme::RSA_PSS_SHA512, &[webpki::RSA_PSS_2048_8192_SHA512_LEGACY_KEY]),
    (SignatureScheme::RSA_PSS_SHA384, &[webpki::RSA_PSS_2048_8192_SHA384_LEGACY_KEY]),
    (SignatureScheme::RSA_PSS_SHA256, &[webpki::RSA_PSS_2048_8192_SHA256_LEGACY_KEY]),
    (SignatureScheme::RSA_PKCS1_SHA512, &[RSA_SHA512]),
    (SignatureScheme::RSA_PKCS1_SHA384, &[webpki::RSA_PKCS1_2048_8192_SHA384]),
    (SignatureScheme::RSA_PKCS1_SHA256, &[RSA_SHA256]),
];

/// Whether a certificate carries the anchor's signature.
pub(super) fn is_signed_by(certificate: &Certificate, anchor: &Certificate) -> bool {
    let key = &anchor.tbs_certificate.subject_public_key_info;
    let content = |algorithm: &x509_cert::spki::AlgorithmIdentifierOwned| {
        // The identifiers of rustls are without the outer SEQUENCE.
        let der = algorithm.to_der().ok()?;
        Some(der.get(2..)?.to_vec())
    };
    let signed = certificate.tbs_certificate.to_der().ok();
    let (Some(key_algorithm), Some(algorithm), Some(signed), Some(key), Some(signature)) = (
        content(&key.algorithm),
        content(&certificate.signature_algorithm),
        signed,
        key.subject_public_key.as_bytes(),
        certificate.signature.as_bytes(),
    ) else {
        return false;
    };
    ALL.iter()
        .filter(|one| one.public_key_alg_id().as_ref() == key_algorithm)
        .filter(|one| one.signature_alg_id().as_ref() == algorithm)
        .any(|one| one.verify_signature(key, &signed, signature).is_ok())
}
