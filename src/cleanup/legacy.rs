//! Notices iptables-legacy.
//!
//! Its rules are not in nf_tables but in tables of their own, replaced whole through a socket option
//! that no safe crate offers. A kube-proxy image picks the variant that the node's kubelet uses,
//! which on distributions of today is iptables-nft. Place in the flow: says at clean-up that such
//! tables are in use, so that an operator can look; removes nothing.

use std::path::Path;

use super::{CleanupError, Removed};

/// Reports the tables of iptables-legacy in use below a root, `/` outside tests.
pub fn check(root: &Path, removed: &mut Removed) {
    for file in ["ip_tables_names", "ip6_tables_names"] {
        // Absent without the module, empty without a table.
        let names = std::fs::read_to_string(root.join("proc/net").join(file)).unwrap_or_default();
        let names: Vec<&str> = names.split_whitespace().collect();
        if !names.is_empty() {
            let tables = format!("{file}: {}", names.join(", "));
            removed.errors.push(CleanupError::Legacy { tables });
        }
    }
}
