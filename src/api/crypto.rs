//! What TLS is made of: ring, and around it what Go's TLS has and ring has not.
//!
//! Place in the flow: [`super::connection`] hands the provider to rustls, [`super::trust`] checks
//! signatures with it. Everything here is a library's arithmetic behind rustls' traits.
//! `rules/README.md` says what the choice costs.

use std::fmt;
use std::sync::Arc;

use ::webpki::ring as webpki;
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::signature::hazmat::PrehashVerifier;
use p521::ecdh::EphemeralSecret;
use p521::elliptic_curve::Generate;
use p521::elliptic_curve::pkcs8::DecodePrivateKey;
use rsa::pkcs1::{DecodeRsaPrivateKey, DecodeRsaPublicKey};
use rustls::crypto::ring::default_provider;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::crypto::{
    ActiveKeyExchange, CryptoProvider, GetRandomFailed, SharedSecret, SupportedKxGroup,
    WebPkiSupportedAlgorithms,
};
use rustls::ffdhe_groups::FfdheGroup;
use rustls::pki_types::{
    AlgorithmIdentifier, CertificateDer, InvalidSignature, PrivateKeyDer,
    SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer, alg_id,
};
use rustls::sign::{CertifiedKey, Signer, SigningKey, SingleCertAndKey};
use rustls::{Error, NamedGroup, PeerMisbehaved, SignatureAlgorithm, SignatureScheme};
use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_cert::Certificate;
use x509_cert::der::{Decode, Encode};
use x509_cert::spki::EncodePublicKey;

/// For every connection.
pub(super) fn provider() -> Arc<CryptoProvider> {
    let ring = default_provider();
    Arc::new(CryptoProvider {
        kx_groups: ring.kx_groups.iter().copied().chain([P521]).collect(),
        signature_verification_algorithms: ALGORITHMS,
        ..ring
    })
}

/// Key exchange on P-521, the last of the curves that Go offers.
static P521: &dyn SupportedKxGroup = &Group;

#[derive(Debug)]
struct Group;

impl SupportedKxGroup for Group {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let secret = EphemeralSecret::try_generate().map_err(|_| GetRandomFailed)?;
        let share = secret.public_key().to_sec1_bytes();
        Ok(Box::new(Exchange { secret, share }))
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::secp521r1
    }
}

struct Exchange {
    secret: EphemeralSecret,
    share: Box<[u8]>,
}

impl ActiveKeyExchange for Exchange {
    fn complete(self: Box<Self>, peer: &[u8]) -> Result<SharedSecret, Error> {
        let peer = p521::PublicKey::from_sec1_bytes(peer);
        let peer = peer.map_err(|_| PeerMisbehaved::InvalidKeyShare)?;
        Ok(SharedSecret::from(&self.secret.diffie_hellman(&peer).raw_secret_bytes()[..]))
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn pub_key(&self) -> &[u8] {
        &self.share
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::secp521r1
    }
}

// A client's certificate and key, of every sort that Go's TLS signs with.
//
// ring signs with RSA of 2048 to 4096 bits and the usual exponent, and with EC keys on P-256 and P-384
// that come with their public half. What it does not take is signed with by other crates.

/// What a client shows and signs with.
///
/// Errors: the key is of no known sort, the certificate is none, or it is not for this key.
pub(super) fn client_key(
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKeyDer<'_>,
) -> Result<Arc<SingleCertAndKey>, Error> {
    let key = signing_key(key.secret_der()).ok_or_else(|| {
        Error::General("no RSA key of 1024 to 8192 bits, ECDSA or Ed25519 key".to_owned())
    })?;
    let own = chain.first().and_then(|own| Certificate::from_der(own).ok());
    let own = own.ok_or_else(|| Error::General("no certificate".to_owned()))?;
    let certified = own.tbs_certificate().subject_public_key_info().to_der().ok();
    // rustls would look too, but reads no certificate of version 1.
    if key.public_key().map(|key| key.to_vec()) != certified {
        return Err(Error::General("the key is not the certificate's".to_owned()));
    }
    Ok(Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key))))
}

/// Whatever the label of its block says, as Go does it.
fn signing_key(der: &[u8]) -> Option<Arc<dyn SigningKey>> {
    [
        PrivateKeyDer::Pkcs8(der.into()),
        PrivateKeyDer::Pkcs1(der.into()),
        PrivateKeyDer::Sec1(der.into()),
    ]
    .iter()
    .find_map(|key| any_supported_type(key).ok())
    .or_else(|| Some(Arc::new(other(der)?)))
}

fn other(der: &[u8]) -> Option<Key> {
    macro_rules! on_curve {
        ($curve:ident, $scheme:ident) => {{
            let secret = $curve::SecretKey::from_pkcs8_der(der).ok();
            secret.or_else(|| $curve::SecretKey::from_sec1_der(der).ok()).and_then(|secret| {
                let public = secret.public_key().to_public_key_der().ok()?.into_vec();
                let key = $curve::ecdsa::SigningKey::from(secret);
                let sign = move |_, message: &[u8]| {
                    let signature: $curve::ecdsa::Signature = key.try_sign(message).ok()?;
                    Some(signature.to_der().as_bytes().to_vec())
                };
                let schemes = &[SignatureScheme::$scheme];
                Some(Key::new(public, SignatureAlgorithm::ECDSA, schemes, sign))
            })
        }};
    }
    on_curve!(p521, ECDSA_NISTP521_SHA512)
        .or_else(|| on_curve!(p384, ECDSA_NISTP384_SHA384))
        .or_else(|| on_curve!(p256, ECDSA_NISTP256_SHA256))
        .or_else(|| rsa(der))
}

fn rsa(der: &[u8]) -> Option<Key> {
    let key = rsa::PrivateKey::from_pkcs8_der(der).ok();
    let key = key.or_else(|| rsa::PrivateKey::from_pkcs1_der(der).ok())?;
    let public = key.to_public_key().to_public_key_der().ok()?.into_vec();
    // The largest does not fit into a key of 1024 bits.
    let fits = usize::from(rsa::traits::PublicKeyParts::size(&key) < 2 * 64 + 2);
    let schemes = &[
        SignatureScheme::RSA_PSS_SHA512,
        SignatureScheme::RSA_PSS_SHA384,
        SignatureScheme::RSA_PSS_SHA256,
        SignatureScheme::RSA_PKCS1_SHA512,
        SignatureScheme::RSA_PKCS1_SHA384,
        SignatureScheme::RSA_PKCS1_SHA256,
    ][fits..];
    let sign = move |scheme, message: &[u8]| {
        match scheme {
            SignatureScheme::RSA_PSS_SHA512 => key.pss_sign::<Sha512>(message),
            SignatureScheme::RSA_PSS_SHA384 => key.pss_sign::<Sha384>(message),
            SignatureScheme::RSA_PSS_SHA256 => key.pss_sign::<Sha256>(message),
            SignatureScheme::RSA_PKCS1_SHA512 => key.pkcs1v15_sign::<Sha512>(message),
            SignatureScheme::RSA_PKCS1_SHA384 => key.pkcs1v15_sign::<Sha384>(message),
            _ => key.pkcs1v15_sign::<Sha256>(message),
        }
        .ok()
    };
    Some(Key::new(public, SignatureAlgorithm::RSA, schemes, sign))
}

type Sign = dyn Fn(SignatureScheme, &[u8]) -> Option<Vec<u8>> + Send + Sync;

/// A key that ring does not take.
struct Key {
    public: Vec<u8>,
    algorithm: SignatureAlgorithm,
    /// Preferred ones first.
    schemes: &'static [SignatureScheme],
    sign: Arc<Sign>,
}

impl Key {
    fn new(
        public: Vec<u8>,
        algorithm: SignatureAlgorithm,
        schemes: &'static [SignatureScheme],
        sign: impl Fn(SignatureScheme, &[u8]) -> Option<Vec<u8>> + Send + Sync + 'static,
    ) -> Key {
        Key { public, algorithm, schemes, sign: Arc::new(sign) }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

impl SigningKey for Key {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let scheme = *self.schemes.iter().find(|scheme| offered.contains(scheme))?;
        Some(Box::new(Chosen { scheme, sign: Arc::clone(&self.sign) }))
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(self.public.as_slice().into())
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.algorithm
    }
}

/// A key and how to sign with it.
struct Chosen {
    scheme: SignatureScheme,
    sign: Arc<Sign>,
}

impl fmt::Debug for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chosen").field("scheme", &self.scheme).finish_non_exhaustive()
    }
}

impl Signer for Chosen {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let signature = (self.sign)(self.scheme, message);
        signature.ok_or_else(|| Error::General("signing failed".to_owned()))
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}

// Signatures in certificates and handshakes: ring's, and what ring lacks of Go's.
//
// ring checks each curve with one or two digests only, and P-521 and P-224 not at all; openssl and
// others sign with whatever digest they are told to. RSA keys below 2048 bits are those of old CAs.

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
pub(super) fn is_signed_by(certificate: &Certificate, issuer: &Certificate) -> bool {
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
