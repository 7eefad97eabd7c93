//! Signatures in certificates and handshakes: ring's, and what ring lacks of Go's.
//!
//! ring checks each curve with one or two digests only, and P-521 and P-224 not at all; openssl and
//! others sign with whatever digest they are told to. RSA keys below 2048 bits are those of old CAs.

use ::webpki::ring as webpki;
use p256::ecdsa::signature::hazmat::PrehashVerifier;
use rsa::pkcs1::DecodeRsaPublicKey;
use rustls::SignatureScheme;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{
    AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id,
};
use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_cert::Certificate;
use x509_cert::der::Encode;

/// Checks a signature over a digest, or over a message, with a public key: in SEC1 or PKCS#1 form.
type Check = fn(key: &[u8], signed: &[u8], signature: &[u8]) -> Result<(), InvalidSignature>;

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

macro_rules! check {
    ($curve:ident, $least:literal) => {
        fn $curve(key: &[u8], digest: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
            let key = $curve::ecdsa::VerifyingKey::from_sec1_bytes(key);
            let signature = $curve::ecdsa::Signature::from_der(signature);
            let (Ok(key), Ok(signature)) = (key, signature) else { return Err(InvalidSignature) };
            // Less than half a field is refused; as a number it is the same with zeros in front.
            let mut padded = [0; $least];
            let digest = match $least.checked_sub(digest.len()) {
                Some(zeros) => {
                    padded[zeros..].copy_from_slice(digest);
                    &padded[..]
                }
                None => digest,
            };
            key.verify_prehash(digest, &signature).map_err(|_| InvalidSignature)
        }
    };
}

check!(p224, 14_usize);
check!(p256, 16_usize);
check!(p384, 24_usize);
check!(p521, 33_usize);

/// The curve P-224, for which rustls has no name.
const P224: AlgorithmIdentifier = AlgorithmIdentifier::from_slice(&[
    0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x21,
]);

macro_rules! ecdsa {
    ($name:ident, $curve:expr, $signature:ident, $digest:ty, $check:expr) => {
        static $name: &dyn SignatureVerificationAlgorithm = &Ecdsa {
            curve: $curve,
            signature: alg_id::$signature,
            digest: digest::<$digest>,
            check: $check,
        };
    };
}

ecdsa!(P224_SHA256, P224, ECDSA_SHA256, Sha256, p224);
ecdsa!(P224_SHA384, P224, ECDSA_SHA384, Sha384, p224);
ecdsa!(P224_SHA512, P224, ECDSA_SHA512, Sha512, p224);
ecdsa!(P256_SHA512, alg_id::ECDSA_P256, ECDSA_SHA512, Sha512, p256);
ecdsa!(P384_SHA512, alg_id::ECDSA_P384, ECDSA_SHA512, Sha512, p384);
ecdsa!(P521_SHA256, alg_id::ECDSA_P521, ECDSA_SHA256, Sha256, p521);
ecdsa!(P521_SHA384, alg_id::ECDSA_P521, ECDSA_SHA384, Sha384, p521);
ecdsa!(P521_SHA512, alg_id::ECDSA_P521, ECDSA_SHA512, Sha512, p521);

/// RSA from 1024 bits on, Go's least: by ring where it can.
#[derive(Debug)]
struct Rsa {
    ring: &'static dyn SignatureVerificationAlgorithm,
    small: Check,
}

impl SignatureVerificationAlgorithm for Rsa {
    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.ring.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.ring.signature_alg_id()
    }

    fn verify_signature(
        &self,
        key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let by_ring = self.ring.verify_signature(key, message, signature);
        by_ring.or_else(|_| (self.small)(key, message, signature))
    }
}

macro_rules! rsa {
    ($name:ident, $ring:ident, $verify:ident, $digest:ty) => {
        static $name: &dyn SignatureVerificationAlgorithm = &Rsa {
            ring: webpki::$ring,
            small: |key, message, signature| {
                let key = rsa::PublicKey::from_pkcs1_der(key).map_err(|_| InvalidSignature)?;
                key.$verify::<$digest>(message, signature).map_err(|_| InvalidSignature)
            },
        };
    };
}

rsa!(RSA_SHA256, RSA_PKCS1_2048_8192_SHA256, pkcs1v15_verify, Sha256);
rsa!(RSA_SHA384, RSA_PKCS1_2048_8192_SHA384, pkcs1v15_verify, Sha384);
rsa!(RSA_SHA512, RSA_PKCS1_2048_8192_SHA512, pkcs1v15_verify, Sha512);
rsa!(PSS_SHA256, RSA_PSS_2048_8192_SHA256_LEGACY_KEY, pss_verify, Sha256);
rsa!(PSS_SHA384, RSA_PSS_2048_8192_SHA384_LEGACY_KEY, pss_verify, Sha384);
rsa!(PSS_SHA512, RSA_PSS_2048_8192_SHA512_LEGACY_KEY, pss_verify, Sha512);

/// Everything that Go's TLS client accepts and can be checked here.
pub(in crate::api) static ALGORITHMS: WebPkiSupportedAlgorithms =
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
    P224_SHA256,
    P224_SHA384,
    P224_SHA512,
    webpki::ED25519,
    PSS_SHA256,
    PSS_SHA384,
    PSS_SHA512,
    RSA_SHA256,
    RSA_SHA384,
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
    (SignatureScheme::RSA_PSS_SHA512, &[PSS_SHA512]),
    (SignatureScheme::RSA_PSS_SHA384, &[PSS_SHA384]),
    (SignatureScheme::RSA_PSS_SHA256, &[PSS_SHA256]),
    (SignatureScheme::RSA_PKCS1_SHA512, &[RSA_SHA512]),
    (SignatureScheme::RSA_PKCS1_SHA384, &[RSA_SHA384]),
    (SignatureScheme::RSA_PKCS1_SHA256, &[RSA_SHA256]),
];

/// Whether a certificate carries another one's signature.
pub(in crate::api) fn is_signed_by(certificate: &Certificate, issuer: &Certificate) -> bool {
    let key = issuer.tbs_certificate().subject_public_key_info();
    let content = |algorithm: &x509_cert::spki::AlgorithmIdentifierOwned| {
        // The identifiers of rustls are without the outer SEQUENCE.
        let der = algorithm.to_der().ok()?;
        Some(der.get(2..)?.to_vec())
    };
    let signed = certificate.tbs_certificate().to_der().ok();
    let (Some(key_algorithm), Some(algorithm), Some(signed), Some(key), Some(signature)) = (
        content(&key.algorithm),
        content(certificate.signature_algorithm()),
        signed,
        key.subject_public_key.as_bytes(),
        certificate.signature().as_bytes(),
    ) else {
        return false;
    };
    ALL.iter()
        .filter(|one| one.public_key_alg_id().as_ref() == key_algorithm)
        .filter(|one| one.signature_alg_id().as_ref() == algorithm)
        .any(|one| one.verify_signature(key, &signed, signature).is_ok())
}
