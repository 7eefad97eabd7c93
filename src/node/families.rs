//! Which address families are programmed.
//!
//! Place in the flow: start-up reads the node's [`Ipv6State`] and kernel release, probes nf_tables,
//! and passes the findings to the pure decisions here. Must not know what is programmed.

use std::io;
use std::path::Path;

use crate::model::{Families, Family};

/// Set and non-empty, it allows kernels that upstream refuses (B-064).
pub const SKIP_KERNEL_CHECK: &str = "KUBE_PROXY_NFTABLES_SKIP_KERNEL_VERSION_CHECK";

/// The oldest kernel upstream accepts in nft mode, major and minor.
const OLDEST_KERNEL: (u32, u32) = (5, 13);

/// Why the process cannot serve this node.
#[derive(Debug, thiserror::Error)]
pub enum FamilyError {
    /// The family of the node IP cannot be programmed (B-063).
    #[error("no support for primary IP family {0}")]
    Primary(Family),
    /// nf_tables refused the probe (B-065).
    #[error("unable to create {family} proxier: nf_tables cannot be used")]
    Nftables {
        /// Which family was probed.
        family: Family,
        /// The kernel's answer; "operation not permitted" without CAP_NET_ADMIN.
        #[source]
        source: io::Error,
    },
    /// The kernel is older than upstream allows (B-064).
    #[error("kernel {release} is older than 5.13; set {SKIP_KERNEL_CHECK} to run anyway")]
    Kernel {
        /// `uname -r`.
        release: String,
    },
}

/// What the kernel says about IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ipv6State {
    Enabled,
    /// There is no `/proc/net/if_inet6`: built out or disabled at boot.
    Absent,
    /// `net.ipv6.conf.all.disable_ipv6` is 1.
    Disabled,
}

impl Ipv6State {
    /// From the two facts: whether `if_inet6` exists, and what `disable_ipv6` reads if it can be read.
    pub fn from_facts(if_inet6: bool, disable_ipv6: Option<&str>) -> Self {
        match disable_ipv6.map(str::trim) {
            _ if !if_inet6 => Ipv6State::Absent,
            Some("1") => Ipv6State::Disabled,
            _ => Ipv6State::Enabled,
        }
    }

    /// Reads the facts below a root directory, `/` outside tests.
    pub fn read(root: &Path) -> Self {
        let disable = std::fs::read_to_string(root.join("proc/sys/net/ipv6/conf/all/disable_ipv6"));
        Ipv6State::from_facts(root.join("proc/net/if_inet6").exists(), disable.ok().as_deref())
    }
}

/// The families to program: IPv4 always, IPv6 if the kernel has it, whatever the cluster uses
/// (B-061, B-062).
pub fn programmed(ipv6: Ipv6State, primary: Family) -> Result<Families, FamilyError> {
    let families = Families { v4: true, v6: ipv6 == Ipv6State::Enabled };
    if families.contains(primary) { Ok(families) } else { Err(FamilyError::Primary(primary)) }
}

/// Asks nf_tables for each family whether it can be used; `probe` is a transaction without effect.
pub fn probe_nftables(
    families: Families,
    mut probe: impl FnMut(Family) -> io::Result<()>,
) -> Result<(), FamilyError> {
    families.iter().try_for_each(|family| {
        probe(family).map_err(|source| FamilyError::Nftables { family, source })
    })
}

/// Refuses kernels before 5.13 unless the variable [`SKIP_KERNEL_CHECK`] is non-empty (B-064). A
/// release that cannot be understood is let through: it says nothing about age.
pub fn check_kernel(release: &str, skip: Option<&str>) -> Result<(), FamilyError> {
    let old = kernel_version(release).is_some_and(|version| version < OLDEST_KERNEL);
    if old && skip.is_none_or(str::is_empty) {
        return Err(FamilyError::Kernel { release: release.to_owned() });
    }
    Ok(())
}

/// Major and minor of a release such as `5.10.0-28-amd64`.
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    // B-061, B-062: IPv6 follows the kernel alone.
    #[test]
    fn ipv6_follows_the_kernel() {
        let dual = Families::DUAL;
        let only_v4 = Families { v4: true, v6: false };
        for (if_inet6, disabled, wanted) in [
            (true, Some("0\n"), dual),
            (true, None, dual),
            (true, Some("1\n"), only_v4),
            (false, None, only_v4),
            (false, Some("0\n"), only_v4),
        ] {
            let state = Ipv6State::from_facts(if_inet6, disabled);
            let families = programmed(state, Family::V4).expect("IPv4 is primary");
            assert_eq!(families, wanted, "if_inet6 {if_inet6}, disable_ipv6 {disabled:?}");
        }
    }

    // B-063: the primary family must be there.
    #[test]
    fn primary_family_is_required() {
        assert!(programmed(Ipv6State::Enabled, Family::V6).is_ok());
        let error = programmed(Ipv6State::Disabled, Family::V6).expect_err("IPv6 is off");
        assert!(error.to_string().starts_with("no support for primary IP family"), "{error}");
    }

    // B-062: read from files as the kernel lays them out.
    #[test]
    fn ipv6_state_is_read_below_a_root() {
        let root = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(Ipv6State::read(root.path()), Ipv6State::Absent);
        let write = |file: &str, text: &str| {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().expect("below the root")).expect("directories");
            std::fs::write(path, text).expect("a file");
        };
        write("proc/net/if_inet6", "");
        assert_eq!(Ipv6State::read(root.path()), Ipv6State::Enabled);
        write("proc/sys/net/ipv6/conf/all/disable_ipv6", "1\n");
        assert_eq!(Ipv6State::read(root.path()), Ipv6State::Disabled);
    }

    // B-064: older than 5.13 is refused unless the variable is non-empty.
    #[test]
    fn kernel_check() {
        for (release, skip, accepted) in [
            ("5.13.0", None, true),
            ("5.12.19-generic", None, false),
            ("5.4.0-150-generic", Some(""), false),
            ("5.4.0-150-generic", Some("1"), true),
            ("4.18.0-513.el8.x86_64", None, false),
            ("6.1.0-18-amd64", None, true),
            ("6-rc", None, true),
            ("unknown", None, true),
        ] {
            assert_eq!(check_kernel(release, skip).is_ok(), accepted, "{release} {skip:?}");
        }
    }

    // B-065: the message names the family, the cause says why.
    #[test]
    fn probe_failure_is_fatal() {
        let probe = |family| match family {
            Family::V4 => Ok(()),
            Family::V6 => Err(io::Error::from_raw_os_error(libc::EPERM)),
        };
        assert!(probe_nftables(Families { v4: true, v6: false }, probe).is_ok());
        let error = probe_nftables(Families::DUAL, probe).expect_err("IPv6 is refused");
        assert_eq!(error.to_string(), "unable to create IPv6 proxier: nf_tables cannot be used");
        let cause = std::error::Error::source(&error).expect("a cause").to_string();
        assert!(cause.contains("not permitted"), "{cause}");
    }
}
