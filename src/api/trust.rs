//! Whether a server is the one that it says it is: what Go's TLS client accepts, since the
//! certificates of clusters were made for Go.
//!
//! Place in the flow: [`super::connection`] hands over the bundle of a CA and gets a verifier for
//! rustls. rustls' own verifier answers nearly always; what it refuses and Go accepts is looked at
//! here: a server's own certificate as trust anchor, and a certificate that is marked as a CA's and
//! comes straight from an anchor.

mod bundle;

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::der::oid::AssociatedOid;
use x509_cert::ext::pkix::{
    BasicConstraints, ExtendedKeyUsage, KeyUsage, NameConstraints, SubjectAltName,
};
use x509_cert::spki::ObjectIdentifier;

pub(super) use bundle::{Bundle, certificates};

use super::crypto::{provider, signature};

/// Extended key usages that a server may have (RFC 5280).
const SERVER_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");
const ANY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37.0");

/// What is looked at of what a server shows; signatures cost time.
const MOST_INTERMEDIATES: usize = 10;

/// Accepts servers by trust anchors.
#[derive(Debug)]
pub(super) struct Anchors {
    certificates: Vec<CertificateDer<'static>>,
    /// `None` without anchors, with which rustls builds none.
    chains: Option<Arc<WebPkiServerVerifier>>,
}

impl Anchors {
    /// Takes the certificates that can be anchors; those that cannot are left out.
    pub(super) fn new(certificates: Vec<CertificateDer<'static>>) -> Anchors {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(certificates.iter().cloned());
        let chains = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider());
        Anchors { certificates, chains: chains.build().ok() }
    }

    /// What Go accepts beyond rustls.
    fn accepts(
        &self,
        server: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> bool {
        let Ok(certificate) = Certificate::from_der(server) else { return false };
        let anchored = self.certificates.iter().any(|anchor| anchor.as_ref() == server.as_ref());
        let issued = || {
            let between = read(&intermediates[..intermediates.len().min(MOST_INTERMEDIATES)]);
            knows_all_critical(&certificate)
                && is_issued(&certificate, &between, &read(&self.certificates), now)
        };
        (anchored || issued())
            && is_valid_at(&certificate, now)
            && may_serve(&certificate)
            && ParsedCertificate::try_from(server)
                .and_then(|parsed| verify_server_name(&parsed, name))
                .is_ok()
    }
}

/// Those that can be read.
fn read(certificates: &[CertificateDer<'_>]) -> Vec<Certificate> {
    certificates.iter().filter_map(|one| Certificate::from_der(one).ok()).collect()
}

/// Whether signatures lead from a certificate to an anchor.
fn is_issued(
    certificate: &Certificate,
    intermediates: &[Certificate],
    anchors: &[Certificate],
    now: UnixTime,
) -> bool {
    // One that was tried on one way is of no use on another; so each is looked at once.
    let mut left: Vec<&Certificate> = intermediates.iter().collect();
    let mut reached = vec![(certificate, 0)];
    while let Some((child, below)) = reached.pop() {
        let signed = |issuer: &Certificate| {
            issuer.tbs_certificate().subject() == child.tbs_certificate().issuer()
                && is_valid_at(issuer, now)
                && may_issue(issuer, below)
                && signature::is_signed_by(child, issuer)
        };
        if anchors.iter().any(signed) {
            return true;
        }
        let is_issuer = |issuer: &&Certificate| !is_old(issuer) && signed(issuer);
        let (issuers, others) = left.into_iter().partition(is_issuer);
        left = others;
        reached.extend(Vec::into_iter(issuers).map(|issuer| (issuer, below + 1)));
    }
    false
}

/// Within the time that the certificate was made for.
fn is_valid_at(certificate: &Certificate, now: UnixTime) -> bool {
    let validity = certificate.tbs_certificate().validity();
    let seconds = |time: &x509_cert::time::Time| time.to_unix_duration().as_secs();
    (seconds(&validity.not_before)..=seconds(&validity.not_after)).contains(&now.as_secs())
}

/// An extension's content; `None` if it is not there, `Some(None)` if it cannot be read.
fn extension<'a, T: Decode<'a> + AssociatedOid>(certificate: &'a Certificate) -> Option<Option<T>> {
    let extensions = certificate.tbs_certificate().extensions()?;
    let found = extensions.iter().find(|extension| extension.extn_id == T::OID)?;
    Some(T::from_der(found.extn_value.as_bytes()).ok())
}

/// No extended key usage that leaves servers out.
fn may_serve(certificate: &Certificate) -> bool {
    match extension::<ExtendedKeyUsage>(certificate) {
        None => true,
        Some(None) => false,
        Some(Some(usage)) => usage.0.iter().any(|id| *id == SERVER_AUTH || *id == ANY_USAGE),
    }
}

/// Of a version without extensions: an anchor may still be a CA.
fn is_old(certificate: &Certificate) -> bool {
    certificate.tbs_certificate().version() != x509_cert::Version::V3
}

/// A CA without limits on names, which would have to be checked, and with room for the CAs below it.
fn may_issue(issuer: &Certificate, below: u8) -> bool {
    let is_ca = match extension::<BasicConstraints>(issuer) {
        Some(Some(constraints)) => {
            constraints.ca && constraints.path_len_constraint.is_none_or(|most| below <= most)
        }
        Some(None) => false,
        None => is_old(issuer),
    };
    let signs = match extension::<KeyUsage>(issuer) {
        Some(usage) => usage.is_some_and(|usage| usage.key_cert_sign()),
        None => true,
    };
    is_ca
        && signs
        && may_serve(issuer)
        && knows_all_critical(issuer)
        && extension::<NameConstraints>(issuer).is_none()
}

/// No critical extension that is not looked at here.
fn knows_all_critical(certificate: &Certificate) -> bool {
    let known = [BasicConstraints::OID, ExtendedKeyUsage::OID, KeyUsage::OID, SubjectAltName::OID];
    let extensions = certificate.tbs_certificate().extensions().into_iter().flatten();
    extensions.filter(|extension| extension.critical).all(|one| known.contains(&one.extn_id))
}

impl ServerCertVerifier for Anchors {
    fn verify_server_cert(
        &self,
        server: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let refused = match &self.chains {
            Some(chains) => {
                match chains.verify_server_cert(server, intermediates, name, ocsp, now) {
                    Ok(verified) => return Ok(verified),
                    Err(refused) => refused,
                }
            }
            None => CertificateError::UnknownIssuer.into(),
        };
        if self.accepts(server, intermediates, name, now) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(refused)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &signature::ALGORITHMS;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &signature::ALGORITHMS;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        signature::ALGORITHMS.supported_schemes()
    }
}

/// Accepts every server: `insecure-skip-tls-verify`.
#[derive(Debug)]
pub(super) struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        signature::ALGORITHMS.supported_schemes()
    }
}
