//! What TLS is made of: ring, and around it what Go's TLS has and ring has not.
//!
//! Place in the flow: [`super::connection`] hands the provider to rustls, [`super::trust`] checks
//! signatures with it. Everything here is a library's arithmetic behind rustls' traits.
//! `rules/README.md` says what the choice costs.

mod key;
pub(super) mod signature;

use std::sync::Arc;

use p521::ecdh::EphemeralSecret;
use p521::elliptic_curve::Generate;
use rustls::crypto::ring::default_provider;
use rustls::crypto::{
    ActiveKeyExchange, CryptoProvider, GetRandomFailed, SharedSecret, SupportedKxGroup,
};
use rustls::ffdhe_groups::FfdheGroup;
use rustls::{Error, NamedGroup, PeerMisbehaved};

pub(super) use key::client as client_key;

/// For every connection.
pub(super) fn provider() -> Arc<CryptoProvider> {
    let ring = default_provider();
    Arc::new(CryptoProvider {
        kx_groups: ring.kx_groups.iter().copied().chain([P521]).collect(),
        signature_verification_algorithms: signature::ALGORITHMS,
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
