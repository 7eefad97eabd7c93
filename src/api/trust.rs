//! Whether a server is the one that it says it is: what Go's TLS client accepts, since the
//! certificates of clusters were made for Go.
//!
//! Place in the flow: [`super::connection`] hands over the bundle of a CA and gets a verifier for
//! rustls. rustls' own verifier answers nearly always; what it refuses and Go accepts is looked at
//! here: a server's own certificate as trust anchor, and a certificate that is marked as a CA's and
//! comes straight from an anchor.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::pem::PemObject;
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

use super::crypto::{ALGORITHMS, is_signed_by, provider};

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
                && is_signed_by(child, issuer)
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
        let algorithms = &ALGORITHMS;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &ALGORITHMS;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ALGORITHMS.supported_schemes()
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
        ALGORITHMS.supported_schemes()
    }
}

const BEGIN: &[u8] = b"-----BEGIN ";
const CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----";
const END: &[u8] = b"-----END ";
const DASHES: &[u8] = b"-----";

/// What a bundle holds: PEM with comments, other blocks and broken ones between the certificates. As
/// in Go, what cannot be read costs nothing but itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::api) struct Bundle {
    /// Certificates that can be trust anchors, in their order.
    pub(in crate::api) certificates: Vec<CertificateDer<'static>>,
    /// The numbers of the blocks that are of no use, counted from 1.
    pub(in crate::api) broken: Vec<usize>,
}

impl Bundle {
    /// Reads a bundle of trust anchors.
    pub(in crate::api) fn parse(text: &[u8]) -> Bundle {
        let mut bundle = Bundle::default();
        for (at, block) in blocks(text).enumerate() {
            match certificate(block).filter(is_anchor) {
                Some(certificate) => bundle.certificates.push(certificate),
                None if block.starts_with(CERTIFICATE) => bundle.broken.push(at + 1),
                None => {}
            }
        }
        bundle
    }
}

/// The certificates of a chain, with whatever they are for.
pub(in crate::api) fn certificates(text: &[u8]) -> Vec<CertificateDer<'static>> {
    blocks(text).filter_map(certificate).collect()
}

fn is_anchor(certificate: &CertificateDer<'static>) -> bool {
    webpki::anchor_from_trusted_cert(certificate).is_ok()
}

fn certificate(block: &[u8]) -> Option<CertificateDer<'static>> {
    if !block.starts_with(CERTIFICATE) {
        return None;
    }
    CertificateDer::from_pem_slice(block).ok()
}

/// The blocks of a text: each from its first line to the end of its last one, or to the next block if
/// it has no end.
fn blocks(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = &rest[find(rest, BEGIN)?..];
        let next = find(&rest[BEGIN.len()..], BEGIN).map_or(rest.len(), |at| at + BEGIN.len());
        let own = &rest[..next];
        let end = find(own, END).and_then(|at| {
            let tail = at + END.len();
            Some(tail + find(&own[tail..], DASHES)? + DASHES.len())
        });
        let (block, after) = rest.split_at(end.unwrap_or(next));
        rest = after;
        Some(block)
    })
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}
