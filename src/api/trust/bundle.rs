//! Certificates in PEM as they come: with comments, other blocks and broken ones between them.
//!
//! As in Go, what cannot be read costs nothing but itself.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

const BEGIN: &[u8] = b"-----BEGIN ";
const CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----";
const END: &[u8] = b"-----END ";
const DASHES: &[u8] = b"-----";

/// What a bundle holds.
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
