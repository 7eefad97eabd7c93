//! Settings that are accepted because clusters carry them, and that do nothing here.
//!
//! Place in the flow: [`super::resolve()`] asks once. What is zero or upstream's default asks for
//! nothing and is not worth a line. Pure.

use super::duration::GoDuration;
use super::flags::Flags;
use super::note::Note;
use super::v1alpha1::{Ipvs, KubeProxyConfiguration, Winkernel};

/// The bit that upstream takes if none is written.
const MASQUERADE_BIT: i32 = 14;
const NO_MARKS: &str = "packets are not marked to be masqueraded";
const OTHER_SYSTEM: &str = "it is for Windows";

/// A note for each setting that somebody chose and that does nothing.
pub fn without_effect(object: &KubeProxyConfiguration) -> Vec<Note> {
    let other = |bit: Option<i32>| bit.is_some_and(|bit| bit != MASQUERADE_BIT);
    let period = object.config_sync_period;
    let flush = object.logging.flush_frequency;
    let (iptables, nftables) = match object.mode.as_str() {
        "nftables" => (None, object.nftables.masquerade_bit),
        _ => (object.iptables.masquerade_bit, None),
    };
    let mut settings = vec![
        (
            period != GoDuration::from_secs(15 * 60),
            "configSyncPeriod",
            "changes are watched, and nothing is read again in between",
        ),
        (
            !object.show_hidden_metrics_for_version.is_empty(),
            "showHiddenMetricsForVersion",
            "no metric is hidden",
        ),
        (!object.port_range.is_empty(), "portRange", "upstream ignores it too"),
        (object.windows_run_as_service, "windowsRunAsService", OTHER_SYSTEM),
        (object.winkernel != Winkernel::default(), "winkernel", OTHER_SYSTEM),
        (other(iptables), "iptables.masqueradeBit", NO_MARKS),
        (other(nftables), "nftables.masqueradeBit", NO_MARKS),
        (flush != GoDuration::from_secs(5), "logging.flushFrequency", "lines are never held back"),
    ];
    if object.mode == "ipvs" {
        settings.extend(ipvs(&object.ipvs));
    }
    notes(&settings)
}

fn ipvs(section: &Ipvs) -> [(bool, &'static str, &'static str); 6] {
    const NO_IPVS: &str = "rules are nftables, also in mode ipvs";
    [
        (!section.scheduler.is_empty(), "ipvs.scheduler", NO_IPVS),
        (!section.exclude_cidrs.is_empty(), "ipvs.excludeCIDRs", NO_IPVS),
        (section.strict_arp, "ipvs.strictARP", NO_IPVS),
        (!section.tcp_timeout.is_zero(), "ipvs.tcpTimeout", NO_IPVS),
        (!section.tcp_fin_timeout.is_zero(), "ipvs.tcpFinTimeout", NO_IPVS),
        (!section.udp_timeout.is_zero(), "ipvs.udpTimeout", NO_IPVS),
    ]
}

/// The same for flags that have no field.
pub fn flags_without_effect(flags: &Flags) -> Vec<Note> {
    const UNREAD: &str = "machines are not told apart here";
    notes(&[
        (flags.is_given("boot-id-file"), "--boot-id-file", UNREAD),
        (flags.is_given("machine-id-file"), "--machine-id-file", UNREAD),
    ])
}

fn notes(settings: &[(bool, &str, &str)]) -> Vec<Note> {
    let chosen = settings.iter().filter(|(chosen, ..)| *chosen);
    chosen
        .map(|(_, name, reason)| Note::warning(format!("{name} has no effect: {reason}")))
        .collect()
}
