//! Settings in files: a directory laid out like /proc and /sys, and the real ones of a namespace.

#![allow(clippy::unwrap_used)] // a test binary, helpers included

mod netns;

use std::path::Path;
use std::time::Duration;

use kubeweir::sysctl::{self, ConntrackSettings, SysctlError};
use netns::in_netns;

const MAX: &str = "proc/sys/net/netfilter/nf_conntrack_max";
const HASHSIZE: &str = "sys/module/nf_conntrack/parameters/hashsize";
const ESTABLISHED: &str = "proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established";

fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a temporary directory");
    for (file, value) in files {
        let path = root.path().join(file);
        std::fs::create_dir_all(path.parent().expect("below the root")).expect("directories");
        std::fs::write(path, value).expect("a file");
    }
    root
}

fn read(root: &Path, file: &str) -> String {
    std::fs::read_to_string(root.join(file)).expect("a readable file").trim().to_owned()
}

fn sized(max_per_core: u32, min: u32) -> Vec<sysctl::Wanted> {
    sysctl::conntrack(&ConntrackSettings { max_per_core, min, ..Default::default() }, 2)
}

// B-209, B-211, N3: limits are raised only.
#[test]
fn limits_are_raised_and_never_lowered() {
    for ((max, hashsize), then) in [
        (("65536", "16384"), ("131072", "32768")),
        (("262144", "65536"), ("262144", "65536")),
        (("131072", "16384"), ("131072", "32768")),
        (("65536", "65536"), ("131072", "65536")),
    ] {
        let root = root(&[(MAX, max), (HASHSIZE, hashsize)]);
        sysctl::apply(root.path(), &sized(32_768, 131_072)).expect("writable files");
        assert_eq!((&*read(root.path(), MAX), &*read(root.path(), HASHSIZE)), then);
    }
}

/// A root in which a file is one of the kernel's that nobody may write, not even root.
fn read_only(file: &str, real: &str, others: &[(&str, &str)]) -> tempfile::TempDir {
    let root = root(others);
    let link = root.path().join(file);
    std::fs::create_dir_all(link.parent().expect("below the root")).expect("directories");
    std::os::unix::fs::symlink(real, link).expect("a link");
    root
}

/// Never writable: the number of the last capability, and the most groups of a process.
const LITTLE: &str = "/proc/sys/kernel/cap_last_cap";
const MUCH: &str = "/proc/sys/kernel/ngroups_max";

// N3: a limit that nobody may write is right if it is large enough.
#[test]
fn a_read_only_limit_that_suffices_is_fine() {
    let enough = read_only(MAX, MUCH, &[(HASHSIZE, "65536")]);
    let written = sysctl::apply(enough.path(), &sized(32_768, 65_536)).expect("nothing to write");
    assert_eq!(written, vec![]);
    let too_small = read_only(MAX, LITTLE, &[(HASHSIZE, "65536")]);
    let error = sysctl::apply(too_small.path(), &sized(32_768, 131_072)).expect_err("refused");
    assert!(matches!(error, SysctlError::Write { .. }), "{error}");
    assert!(error.remedy().contains("conntrack.maxPerCore"), "{}", error.remedy());
}

// N4: hashsize is made if it can be; missing, unreadable or read-only, the rest is made all the same.
#[test]
fn hashsize_is_best_effort() {
    let wanted = sysctl::conntrack(
        &ConntrackSettings {
            max_per_core: 32_768,
            min: 131_072,
            tcp_established: Duration::from_secs(7),
            ..Default::default()
        },
        2,
    );
    let rest = [(MAX, "65536"), (ESTABLISHED, "5")];
    for root in [root(&rest), read_only(HASHSIZE, LITTLE, &rest), read_only(HASHSIZE, "/", &rest)] {
        let written = sysctl::apply(root.path(), &wanted).expect("nothing that matters");
        assert_eq!(written.len(), 2);
        assert_eq!(read(root.path(), MAX), "131072");
        assert_eq!(read(root.path(), ESTABLISHED), "7");
    }
}

// N4: each error says what to do, by the name of the setting.
#[test]
fn errors_say_what_to_do() {
    let everything = ConntrackSettings {
        max_per_core: 1,
        min: 100_000,
        tcp_established: Duration::from_secs(1),
        tcp_close_wait: Duration::from_secs(1),
        tcp_be_liberal: true,
        udp: Duration::from_secs(1),
        udp_stream: Duration::from_secs(1),
    };
    let mut wanted = sysctl::conntrack(&everything, 1);
    wanted.push(sysctl::localhost_nodeports());
    let settings = [
        "conntrack.maxPerCore: 0",
        "conntrack.tcpEstablishedTimeout: 0s",
        "conntrack.tcpCloseWaitTimeout: 0s",
        "conntrack.tcpBeLiberal: false",
        "conntrack.udpTimeout: 0s",
        "conntrack.udpStreamTimeout: 0s",
        "iptables.localhostNodePorts: false",
    ];
    let needed = wanted.iter().filter(|wanted| !wanted.file.ends_with("hashsize"));
    for (wanted, setting) in needed.zip(settings) {
        let refused = read_only(wanted.file, LITTLE, &[]);
        let error = sysctl::apply(refused.path(), &[*wanted]).expect_err("refused");
        assert!(!error.is_missing() && error.remedy().contains(setting), "{}", error.remedy());
        assert!(error.remedy().contains("writable"), "{}", error.remedy());
        let error = sysctl::apply(root(&[]).path(), &[*wanted]).expect_err("missing");
        assert!(error.is_missing() && error.remedy().contains(setting), "{}", error.remedy());
        let module = wanted.file.contains("nf_conntrack");
        assert_eq!(error.remedy().contains("modprobe nf_conntrack"), module, "{}", error.remedy());
    }
}

// B-210, B-263: nothing configured, nothing touched: the files need not even exist.
#[test]
fn zeroed_settings_touch_nothing() {
    let empty = root(&[]);
    let written = sysctl::apply(empty.path(), &sysctl::conntrack(&Default::default(), 2));
    assert_eq!(written.expect("nothing to do"), vec![]);
}

// B-214, B-262: right values are not written; what is opened for writing would be refused here.
#[test]
fn right_values_need_no_write_access() {
    in_netns(|| {
        let established = Duration::from_secs(432_100);
        let settings = ConntrackSettings { tcp_established: established, ..Default::default() };
        let wanted = sysctl::conntrack(&settings, 2);
        let first = sysctl::apply(Path::new("/"), &wanted).expect("a writable /proc");
        assert_eq!(first, wanted);
        assert_eq!(read(Path::new("/"), ESTABLISHED), "432100");
        // A read-only /proc/sys in a mount namespace of this thread.
        let alone = nix::sched::CloneFlags::CLONE_NEWNS | nix::sched::CloneFlags::CLONE_FS;
        nix::sched::unshare(alone).expect("a mount namespace");
        netns::run(&["mount", "--make-rprivate", "/"], "");
        netns::run(&["mount", "--bind", "/proc/sys", "/proc/sys"], "");
        netns::run(&["mount", "-o", "remount,ro,bind", "/proc/sys"], "");
        let again = sysctl::apply(Path::new("/"), &wanted).expect("nothing to write");
        assert_eq!(again, vec![]);
        let other = ConntrackSettings { tcp_established: established * 2, ..settings };
        let error = sysctl::apply(Path::new("/"), &sysctl::conntrack(&other, 2));
        let error = error.expect_err("a read-only /proc").to_string();
        assert_eq!(error, format!("writing 864200 to /{ESTABLISHED}"));
    });
}

// B-212, B-213: the kernel takes each of the settings.
#[test]
fn the_kernel_accepts_every_setting() {
    in_netns(|| {
        let settings = ConntrackSettings {
            tcp_established: Duration::from_secs(86_401),
            tcp_close_wait: Duration::from_secs(3_601),
            tcp_be_liberal: true,
            udp: Duration::from_secs(41),
            udp_stream: Duration::from_secs(181),
            ..ConntrackSettings::default()
        };
        let wanted = sysctl::conntrack(&settings, 2);
        assert_eq!(wanted.len(), 5);
        sysctl::apply(Path::new("/"), &wanted).expect("a writable /proc");
        for setting in wanted {
            assert_eq!(read(Path::new("/"), setting.file), setting.value.to_string());
        }
        sysctl::apply(Path::new("/"), &[sysctl::localhost_nodeports()]).expect("route_localnet");
        assert_eq!(read(Path::new("/"), "proc/sys/net/ipv4/conf/all/route_localnet"), "1");
    });
}

// B-215: an error names the file and ends the list.
#[test]
fn a_failure_is_reported_and_ends_the_list() {
    let root = root(&[(ESTABLISHED, "5")]);
    let settings = ConntrackSettings {
        max_per_core: 1,
        min: 1,
        tcp_established: Duration::from_secs(1),
        ..ConntrackSettings::default()
    };
    let error = sysctl::apply(root.path(), &sysctl::conntrack(&settings, 1));
    let error = error.expect_err("nf_conntrack_max is missing");
    assert!(matches!(&error, SysctlError::Read { file, .. } if file.ends_with(MAX)), "{error}");
    assert_eq!(read(root.path(), ESTABLISHED), "5");
}

// B-217: written if it can be, otherwise the caller does not even learn of it.
#[test]
fn oom_score_adj() {
    let file = "proc/self/oom_score_adj";
    let with = root(&[(file, "0\n")]);
    sysctl::set_oom_score_adj(with.path(), -999);
    assert_eq!(read(with.path(), file), "-999");
    let without = root(&[]);
    sysctl::set_oom_score_adj(without.path(), -999);
    assert!(!without.path().join(file).exists());
}

// B-209: CPUs that have a topology count, cpufreq and offline ones do not.
#[test]
fn cpus_of_sysfs() {
    let file = |name: &str| format!("sys/devices/system/cpu/{name}");
    let files =
        ["cpu0/topology/core_id", "cpu1/topology/core_id", "cpu2/online", "cpufreq/topology/x"];
    let files: Vec<String> = files.into_iter().map(file).collect();
    let files: Vec<(&str, &str)> = files.iter().map(|f| (f.as_str(), "0")).collect();
    assert_eq!(sysctl::cpus(root(&files).path()), 2);
    assert!(sysctl::cpus(root(&[]).path()) >= 1);
    let here = std::thread::available_parallelism().map_or(1, usize::from);
    assert!(sysctl::cpus(Path::new("/")) as usize >= here);
}
