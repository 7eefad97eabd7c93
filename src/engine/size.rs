//! How much a service asks of the kernel.
//!
//! An object of half a megabyte, which any API server takes, can name thousands of ports and a
//! thousand endpoints for each of them: millions of elements, for which everybody else would wait.

use super::Engine;
use crate::model::{EndpointSlice, Family, ObjectName, Service, ServicePort};

/// Most list entries of one service in one family. A hundred thousand endpoints behind a port with
/// ClusterIP, NodePort and two load-balancer addresses are less; a commit of this many takes about
/// a second.
pub const MOST_ENTRIES: usize = 500_000;

impl Engine {
    /// The list entries of a service, if they are too many. What one keeps that is set aside was not.
    pub(super) fn oversized(&self, family: Family, service: &ObjectName) -> Option<usize> {
        if self.is_set_aside(family, service) {
            return None;
        }
        let object = self.store.service(service)?;
        let slices = self.store.slices(service);
        let slices = || slices.iter().map(|slice| &**slice).filter(|slice| slice.family == family);
        let entries: usize =
            object.ports.iter().map(|port| entries(object, port, family, slices())).sum();
        (entries > MOST_ENTRIES).then_some(entries)
    }
}

/// Each frontend has a list of its own.
fn entries<'a>(
    service: &Service,
    port: &ServicePort,
    family: Family,
    slices: impl Iterator<Item = &'a EndpointSlice>,
) -> usize {
    let addresses = service.load_balancer_ips.iter().chain(&service.external_ips);
    let addresses = addresses.filter(|address| Family::of(address) == family).count();
    let frontends = 1 + addresses + usize::from(port.node_port.is_some());
    let serves = |slice: &&EndpointSlice| {
        slice.ports.iter().any(|p| p.name == port.name && p.protocol == port.protocol)
    };
    let endpoints: usize = slices.filter(serves).map(|slice| slice.endpoints.len()).sum();
    endpoints * frontends
}
