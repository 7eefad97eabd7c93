//! What the rules do not let through, counted by reason.
//!
//! Each reason is a named counter of the table: a rule refers to it by name, so the rule's text stays
//! what it was, whatever was counted, and rules can be compared after a restart. What is let through
//! meets none of them. (The one exception is [`CounterId::AcceptedOnLocalhost`], upstream's.)
//!
//! A counter lives as long as its table: through changes, and through a restart that adopts the table.
//! Where the table is replaced, it starts again at 0.

use std::fmt;

use super::{LocalhostNodePorts, RuleOptions};
use crate::model::Family;
use crate::ruleset::Name;

/// A named counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CounterId {
    /// Refused: no usable endpoint anywhere.
    NoEndpoints,
    /// Dropped: policy Local, and no endpoint on this node.
    NoLocalEndpoints,
    /// Dropped: the client is in none of the load balancer's source ranges.
    SourceRanges,
    /// Refused: a port of a ClusterIP that no Service has.
    UnusedPort,
    /// Dropped: an address of the service networks that no Service has.
    UnallocatedAddress,
    /// Dropped: forwarded, and conntrack calls it invalid.
    Invalid,
    /// Refused: a NodePort on a loopback address that nobody serves there.
    Localhost,
    /// First packets that were sent on from a NodePort on a loopback address: `mode: iptables`.
    AcceptedOnLocalhost,
}

impl CounterId {
    /// What is not let through, the most usual first.
    pub const REASONS: [CounterId; 7] = [
        CounterId::NoEndpoints,
        CounterId::NoLocalEndpoints,
        CounterId::SourceRanges,
        CounterId::UnusedPort,
        CounterId::UnallocatedAddress,
        CounterId::Invalid,
        CounterId::Localhost,
    ];

    /// Those that a family's rules refer to.
    pub fn of_program(
        family: Family,
        options: &RuleOptions,
    ) -> impl Iterator<Item = CounterId> + use<> {
        let (guarded, invalid) = (options.guard_cluster_ips, options.drop_invalid);
        let loopback = options.serves_localhost(family);
        let refuses_localhost = options.localhost[family] != LocalhostNodePorts::Untouched;
        let is_there = move |id: &CounterId| match id {
            CounterId::NoEndpoints | CounterId::NoLocalEndpoints | CounterId::SourceRanges => true,
            CounterId::UnusedPort | CounterId::UnallocatedAddress => guarded,
            CounterId::Invalid => invalid,
            CounterId::Localhost => refuses_localhost,
            CounterId::AcceptedOnLocalhost => loopback,
        };
        let all = CounterId::REASONS.into_iter().chain([CounterId::AcceptedOnLocalhost]);
        all.filter(is_there)
    }

    /// The counter with this name.
    pub fn from_name(name: &str) -> Option<CounterId> {
        let mut all = CounterId::REASONS.into_iter().chain([CounterId::AcceptedOnLocalhost]);
        all.find(|id| id.as_str() == name)
    }

    /// The counter's name.
    pub fn as_str(self) -> &'static str {
        match self {
            CounterId::NoEndpoints => "no-endpoints",
            CounterId::NoLocalEndpoints => "no-local-endpoints",
            CounterId::SourceRanges => "source-ranges",
            CounterId::UnusedPort => "unused-port",
            CounterId::UnallocatedAddress => "unallocated-address",
            CounterId::Invalid => "invalid",
            CounterId::Localhost => "localhost",
            CounterId::AcceptedOnLocalhost => "accepted-on-localhost",
        }
    }

    /// What becomes of the packets, and why, in words.
    pub fn meaning(self) -> &'static str {
        match self {
            CounterId::NoEndpoints => "refused, no usable endpoint anywhere",
            CounterId::NoLocalEndpoints => "dropped, policy Local and no endpoint here",
            CounterId::SourceRanges => "dropped, client outside loadBalancerSourceRanges",
            CounterId::UnusedPort => "refused, a port that the ClusterIP does not have",
            CounterId::UnallocatedAddress => "dropped, a service address that no Service has",
            CounterId::Invalid => "dropped, forwarded and invalid to conntrack",
            CounterId::Localhost => "refused, a NodePort on a loopback address",
            CounterId::AcceptedOnLocalhost => "sent on from a NodePort on a loopback address",
        }
    }

    /// The same, as rules refer to it.
    pub fn name(self) -> Name {
        self.as_str().into()
    }
}

impl fmt::Display for CounterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
