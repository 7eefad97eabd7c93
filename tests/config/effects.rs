//! Settings that upstream has and that do nothing here: taken, and said.

use kubeweir::config::NoteLevel;
use kubeweir::config::version::PREVIOUS_MINOR;

use crate::{HEAD, config};

fn warnings(flags: &[&str], file: Option<&str>) -> Vec<String> {
    let notes = config(flags, file).notes.into_iter();
    let warnings = notes.filter(|note| note.level == NoteLevel::Warning).map(|note| note.text);
    // A mode that is not set has an effect, and a warning of its own.
    warnings.filter(|text| !text.starts_with("The proxy mode is not set")).collect()
}

// B24: a setting that nothing reads is named when it is set to something.
#[test]
fn settings_without_effect_are_warned_about() {
    for (body, field) in [
        ("configSyncPeriod: 1m", "configSyncPeriod"),
        ("showHiddenMetricsForVersion: 'PREVIOUS'", "showHiddenMetricsForVersion"),
        ("portRange: 1-2", "portRange"),
        ("windowsRunAsService: true", "windowsRunAsService"),
        ("winkernel: {networkName: x}", "winkernel"),
        ("iptables: {masqueradeBit: 15}", "iptables.masqueradeBit"),
        ("mode: nftables\nnftables: {masqueradeBit: 15}", "nftables.masqueradeBit"),
        ("mode: ipvs\nipvs: {scheduler: rr}", "ipvs.scheduler"),
        ("mode: ipvs\nipvs: {strictARP: true}", "ipvs.strictARP"),
        ("mode: ipvs\nipvs: {tcpTimeout: 1s}", "ipvs.tcpTimeout"),
        ("mode: ipvs\nipvs: {tcpFinTimeout: 1s}", "ipvs.tcpFinTimeout"),
        ("mode: ipvs\nipvs: {udpTimeout: 1s}", "ipvs.udpTimeout"),
        ("mode: ipvs\nipvs: {excludeCIDRs: [10.0.0.0/8]}", "ipvs.excludeCIDRs"),
        ("logging: {flushFrequency: 1s}", "logging.flushFrequency"),
    ] {
        let file = format!("{HEAD}{body}\n").replace("PREVIOUS", PREVIOUS_MINOR);
        let warnings = warnings(&["--config=x"], Some(&file));
        assert_eq!(warnings.len(), 1, "{body}: {warnings:?}");
        assert!(warnings[0].starts_with(&format!("{field} has no effect: ")), "{warnings:?}");
    }
    for (flag, name) in [
        ("--boot-id-file=/x", "--boot-id-file"),
        ("--machine-id-file=/x", "--machine-id-file"),
        ("--config-sync-period=1m", "configSyncPeriod"),
        ("--iptables-masquerade-bit=3", "iptables.masqueradeBit"),
    ] {
        let warnings = warnings(&[flag], None);
        assert_eq!(warnings.len(), 1, "{flag}: {warnings:?}");
        assert!(warnings[0].starts_with(&format!("{name} has no effect: ")), "{warnings:?}");
    }
}

// Defaults, zeros and nulls written out ask for nothing, and sections of other modes never count.
#[test]
fn what_asks_for_nothing_is_not_warned_about() {
    for body in [
        "configSyncPeriod: 15m0s\nportRange: ''\nwindowsRunAsService: false\nwinkernel: {networkName: '', enableDSR: false}",
        "configSyncPeriod: 0s\nlogging: {flushFrequency: 0}\niptables: {masqueradeBit: 14}\nnftables: {masqueradeBit: 3}",
        "ipvs: {scheduler: rr, strictARP: true, tcpTimeout: 1s, excludeCIDRs: [10.0.0.0/8]}",
        "mode: ipvs\nipvs: {scheduler: '', strictARP: false, tcpTimeout: 0s, excludeCIDRs: null}",
    ] {
        let file = format!("{HEAD}{body}\n");
        assert_eq!(warnings(&["--config=x"], Some(&file)), Vec::<String>::new(), "{body}");
    }
    assert_eq!(warnings(&[], None), Vec::<String>::new());
}
