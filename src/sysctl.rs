//! The kernel settings a kube-proxy makes at start (section 7.6).
//!
//! Place in the flow: configuration and CPU count become a list of [`Wanted`] values (pure); [`apply`]
//! compares each with the file and writes what differs. Must not know the rest of the configuration,
//! nor how important a failure is: start-up ends on an error of [`apply`] (B-215).

mod file;

pub use file::{SysctlError, apply, cpus, set_oom_score_adj, takes_connections_in_their_middle};

use std::time::Duration;

/// Above this `maxPerCore` times CPUs is not followed, not even up to `min`.
const CONNTRACK_MAX_LIMIT: u64 = 1 << 20;

/// The `conntrack` section of the configuration; zero means "leave alone".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConntrackSettings {
    /// `maxPerCore`.
    pub max_per_core: u32,
    pub min: u32,
    /// `tcpEstablishedTimeout`.
    pub tcp_established: Duration,
    /// `tcpCloseWaitTimeout`.
    pub tcp_close_wait: Duration,
    /// `tcpBeLiberal`.
    pub tcp_be_liberal: bool,
    /// `udpTimeout`.
    pub udp: Duration,
    /// `udpStreamTimeout`.
    pub udp_stream: Duration,
}

/// When a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// If it holds another value.
    Different,
    /// If it holds a smaller value.
    Below,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Path without the leading slash.
    pub file: &'static str,
    pub value: u64,
    pub when: When,
}

impl Wanted {
    /// Whether a failure costs no more than memory or time, so that it is only logged.
    pub fn is_best_effort(&self) -> bool {
        self.file == HASHSIZE
    }

    /// What a user writes into the configuration file to have the file left alone.
    pub fn left_alone_by(&self) -> &'static str {
        match self.file.rsplit('/').next().unwrap_or_default() {
            "nf_conntrack_tcp_timeout_established" => "conntrack.tcpEstablishedTimeout: 0s",
            "nf_conntrack_tcp_timeout_close_wait" => "conntrack.tcpCloseWaitTimeout: 0s",
            "nf_conntrack_tcp_be_liberal" => "conntrack.tcpBeLiberal: false",
            "nf_conntrack_udp_timeout" => "conntrack.udpTimeout: 0s",
            "nf_conntrack_udp_timeout_stream" => "conntrack.udpStreamTimeout: 0s",
            "route_localnet" => "iptables.localhostNodePorts: false",
            _ => "conntrack.maxPerCore: 0",
        }
    }

    /// Whether a file that holds `current` has to be written (B-211, B-214). What is no number is
    /// written, so that the kernel decides.
    pub fn differs_from(&self, current: &str) -> bool {
        let Ok(current) = current.trim().parse::<u64>() else { return true };
        match self.when {
            When::Different => current != self.value,
            When::Below => current < self.value,
        }
    }
}

/// Buckets of the conntrack table: the kernel refuses to change them from a network namespace other
/// than the first, and where /sys is read-only.
const HASHSIZE: &str = "sys/module/nf_conntrack/parameters/hashsize";

/// The conntrack settings to make, in upstream's order. A limit that is larger is left as it is: the
/// host may know why, and often nobody may write it. Files of settings that are left alone do not
/// appear, so that they need not exist (B-263).
pub fn conntrack(settings: &ConntrackSettings, cpus: u32) -> Vec<Wanted> {
    let different = |file, value| Wanted { file, value, when: When::Different };
    let below = |file, value| Wanted { file, value, when: When::Below };
    let mut wanted = Vec::new();
    if let Some(max) = conntrack_max(settings, cpus) {
        wanted.push(below("proc/sys/net/netfilter/nf_conntrack_max", max));
        wanted.push(below(HASHSIZE, max / 4));
    }
    let timeouts = [
        ("proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established", settings.tcp_established),
        ("proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait", settings.tcp_close_wait),
    ];
    let seconds = |(file, timeout): (&'static str, Duration)| {
        (!timeout.is_zero()).then(|| different(file, timeout.as_secs()))
    };
    wanted.extend(timeouts.into_iter().filter_map(seconds));
    if settings.tcp_be_liberal {
        wanted.push(different("proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal", 1));
    }
    let timeouts = [
        ("proc/sys/net/netfilter/nf_conntrack_udp_timeout", settings.udp),
        ("proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream", settings.udp_stream),
    ];
    wanted.extend(timeouts.into_iter().filter_map(seconds));
    wanted
}

/// What iptables mode sets for IPv4 NodePorts on localhost. nft mode sets none of it (B-216).
pub fn localhost_nodeports() -> Wanted {
    let file = "proc/sys/net/ipv4/conf/all/route_localnet";
    Wanted { file, value: 1, when: When::Different }
}

/// max(maxPerCore x CPUs, min), the product capped first (B-209, B-210).
fn conntrack_max(settings: &ConntrackSettings, cpus: u32) -> Option<u64> {
    if settings.max_per_core == 0 {
        return None;
    }
    let scaled = u64::from(settings.max_per_core) * u64::from(cpus);
    if scaled > CONNTRACK_MAX_LIMIT {
        return Some(CONNTRACK_MAX_LIMIT);
    }
    Some(scaled.max(u64::from(settings.min))).filter(|max| *max > 0)
}

#[cfg(test)]
mod tests {
    //! The settings asked for, case by case.

    use super::*;

    /// File name without its directory, and value.
    fn wanted(settings: &ConntrackSettings, cpus: u32) -> Vec<(&'static str, u64)> {
        let name = |file: &'static str| file.rsplit('/').next().unwrap_or(file);
        conntrack(settings, cpus).iter().map(|w| (name(w.file), w.value)).collect()
    }

    fn sized(max_per_core: u32, min: u32) -> ConntrackSettings {
        ConntrackSettings { max_per_core, min, ..ConntrackSettings::default() }
    }

    // B-209, B-210: max(maxPerCore x CPUs, min), the product capped, also below a larger min.
    #[test]
    fn conntrack_max_is_computed() {
        for (max_per_core, min, cpus, max) in [
            (32_768, 131_072, 2, Some(131_072)),
            (32_768, 131_072, 8, Some(262_144)),
            (32_768, 131_072, 64, Some(1_048_576)),
            (32_768, 2_000_000, 64, Some(1_048_576)),
            (32_768, 2_000_000, 2, Some(2_000_000)),
            (1, 0, 3, Some(3)),
            (u32::MAX, 0, u32::MAX, Some(1_048_576)),
            (0, 131_072, 8, None),
        ] {
            let expected =
                max.map_or(vec![], |max| vec![("nf_conntrack_max", max), ("hashsize", max / 4)]);
            assert_eq!(
                wanted(&sized(max_per_core, min), cpus),
                expected,
                "{max_per_core} {min} {cpus}"
            );
        }
    }

    // B-212, B-213: whole seconds, only if positive; tcpBeLiberal only ever writes 1; upstream's order.
    #[test]
    fn timeouts_and_liberal() {
        let settings = ConntrackSettings {
            tcp_established: Duration::from_secs(86_400),
            tcp_close_wait: Duration::from_millis(3_600_900),
            tcp_be_liberal: true,
            udp: Duration::from_secs(40),
            udp_stream: Duration::ZERO,
            ..ConntrackSettings::default()
        };
        let expected = vec![
            ("nf_conntrack_tcp_timeout_established", 86_400),
            ("nf_conntrack_tcp_timeout_close_wait", 3_600),
            ("nf_conntrack_tcp_be_liberal", 1),
            ("nf_conntrack_udp_timeout", 40),
        ];
        assert_eq!(wanted(&settings, 2), expected);
    }

    // B-263: settings that are all zero ask for no file at all.
    #[test]
    fn nothing_configured_asks_for_nothing() {
        assert_eq!(wanted(&ConntrackSettings::default(), 64), vec![]);
    }

    // B-211, B-214: hashsize is only raised, the others are written when they differ.
    #[test]
    fn present_values_are_left_alone() {
        let hashsize = Wanted { file: "hashsize", value: 32_768, when: When::Below };
        assert!(hashsize.differs_from("16384\n"));
        assert!(!hashsize.differs_from("32768\n"));
        assert!(!hashsize.differs_from("65536\n"));
        let timeout = Wanted { file: "timeout", value: 60, when: When::Different };
        assert!(timeout.differs_from("61\n") && timeout.differs_from("59\n"));
        assert!(!timeout.differs_from("60\n"));
        let limits = conntrack(&sized(32_768, 131_072), 2);
        assert!(limits.iter().all(|limit| limit.when == When::Below), "never lowered");
    }

    // B-216: what nft mode applies at start names neither sysctl.
    #[test]
    fn nft_mode_leaves_routing_alone() {
        let everything = ConntrackSettings {
            max_per_core: 1,
            min: 1,
            tcp_established: Duration::from_secs(1),
            tcp_close_wait: Duration::from_secs(1),
            tcp_be_liberal: true,
            udp: Duration::from_secs(1),
            udp_stream: Duration::from_secs(1),
        };
        let settings = conntrack(&everything, 1);
        assert_eq!(settings.len(), 7);
        assert!(settings.iter().all(|w| w.file.contains("nf_conntrack")), "{settings:?}");
        assert!(localhost_nodeports().file.ends_with("route_localnet"));
    }
}
