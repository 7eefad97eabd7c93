//! What TLS is made of: ring, and around it what Go's TLS has and ring has not.
//!
//! Place in the flow: [`super::connection`] hands the provider to rustls, [`super::trust`] checks
//! signatures with it. Everything here is a library's arithmetic behind rustls' traits.
//! `rules/README.md` says what the choice costs.

mod group;
mod key;
pub(super) mod signature;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::default_provider;

pub(super) use key::client as client_key;

/// For every connection.
pub(super) fn provider() -> Arc<CryptoProvider> {
    let ring = default_provider();
    Arc::new(CryptoProvider {
        kx_groups: ring.kx_groups.iter().copied().chain([group::P521]).collect(),
        signature_verification_algorithms: signature::ALGORITHMS,
        ..ring
    })
}
