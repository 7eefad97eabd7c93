//! Giving up every capability that a running agent does not need.
//!
//! Place in the flow: `main` calls [`settle`] once the configuration is known and before the
//! runtime starts its threads, for capabilities belong to threads and pass on to those they start.
//! What comes later needs no more than what is kept: writing sysctls below `/proc/sys/net` needs
//! CAP_NET_ADMIN, the module parameter that holds conntrack's hash size only its owner, root; and
//! the OOM score, which would need CAP_SYS_RESOURCE, is set before.
//!
//! It must not know what any of the adapters does.

use std::path::Path;

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use tracing::warn;

use crate::config::Config;
use crate::sysctl;
use crate::text::with_causes;

/// Ports below this are privileged, unless the sysctl `ip_unprivileged_port_start` says otherwise.
const FIRST_UNPRIVILEGED_PORT: u16 = 1024;

/// A privilege could not be given up.
#[derive(Debug, thiserror::Error)]
#[error("giving up privileges: {operation}")]
pub struct PrivilegeError {
    operation: &'static str,
    #[source]
    source: Errno,
}

/// Takes what only a privileged process can have, the OOM score (B-217), and gives up the rest.
/// A failure is logged and no more: the agent works as well with too many privileges.
pub fn settle(config: &Config, init_only: bool) {
    if !init_only {
        sysctl::set_oom_score_adj(Path::new("/"), config.oom_score_adj);
    }
    if let Err(error) = renounce(needed(config)) {
        warn!(reason = with_causes(&error), "Going on with more privileges than needed");
    }
}

/// What the agent keeps: CAP_NET_ADMIN; CAP_NET_BIND_SERVICE only if a server is configured on a
/// privileged port.
fn needed(config: &Config) -> CapabilitySet {
    let servers = [Some(config.servers.metrics), config.servers.healthz];
    let privileged = |address: std::net::SocketAddr| {
        address.port() != 0 && address.port() < FIRST_UNPRIVILEGED_PORT
    };
    let mut needed = CapabilitySet::NET_ADMIN;
    if servers.into_iter().flatten().any(privileged) {
        needed |= CapabilitySet::NET_BIND_SERVICE;
    }
    needed
}

/// Gives up all capabilities of the calling thread but these, for good: no program it could ever
/// execute would get them back.
///
/// Errors: if the kernel refuses; what was given up until then stays given up.
fn renounce(keep: CapabilitySet) -> Result<(), PrivilegeError> {
    let failed = |operation| move |source| PrivilegeError { operation, source };
    set_no_new_privs(true).map_err(failed("setting no_new_privs"))?;
    clear_ambient_capability_set().map_err(failed("clearing the ambient set"))?;
    let held = capabilities(None).map_err(failed("reading capabilities"))?;
    // Without CAP_SETPCAP the bounding set has to stay; no_new_privs makes it worthless.
    if held.effective.contains(CapabilitySet::SETPCAP) {
        bound(keep).map_err(failed("shrinking the bounding set"))?;
    }
    let kept = held.permitted & keep;
    let sets =
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(failed("dropping capabilities"))
}

fn bound(keep: CapabilitySet) -> Result<(), Errno> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if keep.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Beyond the last capability that this kernel knows.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_privileged_port_needs_more() {
        let needed_with = |flag: &str| {
            let flags = [flag.to_owned(), "--hostname-override=a".to_owned()];
            let parsed = crate::cli::proxy::parse(&flags).expect("valid flags");
            let completed = crate::config::complete(&parsed.flags, None).expect("complete");
            needed(&crate::config::resolve(completed).expect("a valid configuration"))
        };
        let net_admin = CapabilitySet::NET_ADMIN;
        assert_eq!(needed_with("--metrics-bind-address=127.0.0.1:10249"), net_admin);
        let both = net_admin | CapabilitySet::NET_BIND_SERVICE;
        assert_eq!(needed_with("--metrics-bind-address=127.0.0.1:1023"), both);
        assert_eq!(needed_with("--healthz-bind-address=0.0.0.0:80"), both);
    }
}
