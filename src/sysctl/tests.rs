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
