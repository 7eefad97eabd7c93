//! A client's certificate and key, of every sort that Go's TLS signs with.
//!
//! ring signs with RSA of 2048 to 4096 bits and the usual exponent, and with EC keys on P-256 and P-384
//! that come with their public half. What it does not take is signed with by other crates.

use std::fmt;
use std::sync::Arc;

use p256::ecdsa::signature::Signer as _;
use p521::elliptic_curve::pkcs8::DecodePrivateKey;
use rsa::pkcs1::DecodeRsaPrivateKey;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, SubjectPublicKeyInfoDer};
use rustls::sign::{CertifiedKey, Signer, SigningKey, SingleCertAndKey};
use rustls::{Error, SignatureAlgorithm, SignatureScheme};
use sha2::{Sha256, Sha384, Sha512};
use x509_cert::Certificate;
use x509_cert::der::{Decode, Encode};
use x509_cert::spki::EncodePublicKey;

/// What a client shows and signs with.
///
/// Errors: the key is of no known sort, the certificate is none, or it is not for this key.
pub(in crate::api) fn client(
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
