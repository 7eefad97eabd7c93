//! Values for the tests of subscribers.

use std::sync::Arc;
use std::time::Duration;

use crate::model::{EndpointSlice, Family, PerFamily, Service};
use crate::program::{NodeAddressing, RuleOptions};
use crate::sync::{FamilyState, InForce, Report, SyncError, Synced};

/// Of a node without an address.
pub fn addressing() -> NodeAddressing {
    NodeAddressing { options: RuleOptions::nftables(), local_addresses: PerFamily::default() }
}

/// A service and its only slice.
pub fn in_force(service: Service, slice: EndpointSlice) -> InForce {
    let local_ready = slice.endpoints.iter().filter(|e| e.ready).count();
    InForce {
        name: service.name.clone(),
        service: Some(Arc::new(service)),
        slices: std::iter::once(Arc::new(slice)).collect(),
        local_ready,
        localhost: Vec::new(),
    }
}

/// A sync of IPv4.
pub fn synced(in_force: Vec<InForce>, result: Result<(), SyncError>) -> Synced {
    let report = Report {
        family: Family::V4,
        full: false,
        adoption: None,
        services: in_force.iter().map(|service| service.name.clone()).collect(),
        commits: Vec::new(),
        refused: Vec::new(),
        troubles: Vec::new(),
        garbage_stays: false,
        result,
    };
    let elapsed = Duration::from_millis(1);
    Synced { report, elapsed, repair: None, in_force, state: FamilyState::default() }
}
