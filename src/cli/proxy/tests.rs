//! The agent's flags, as a user writes them.

use super::*;

fn parse_line(arguments: &[&str]) -> Result<Parsed, Exit> {
    parse(&arguments.iter().map(|argument| (*argument).to_owned()).collect::<Vec<_>>())
}

fn flags(arguments: &[&str]) -> Flags {
    parse_line(arguments).unwrap_or_else(|exit| panic!("{arguments:?}: {}", exit.stderr)).flags
}

fn last_line(text: &str) -> &str {
    text.trim_end().lines().last().unwrap_or_default()
}

// B-001, B-004: unknown flags, klog's among them, print usage and an error, and exit 1.
#[test]
fn unknown_flags() {
    for flag in
        ["--bogus", "--logtostderr", "--alsologtostderr=true", "--log-dir=/x", "--udp-timeout=1s"]
    {
        let exit = parse_line(&[flag]).expect_err(flag);
        let name = flag.split('=').next().unwrap_or_default();
        assert_eq!(exit.code, 1, "{flag}");
        assert_eq!(exit.stdout, "", "{flag}");
        assert!(exit.stderr.contains("Usage:"), "{flag}");
        assert_eq!(last_line(&exit.stderr), format!("Error: unknown flag: {name}"));
    }
    let exit = parse_line(&["-x"]).expect_err("-x");
    assert!(last_line(&exit.stderr).starts_with("Error: unknown shorthand flag: "), "{exit:?}");
}

// B-002: a positional argument exits 1 without usage; empty ones are tolerated.
#[test]
fn positional_arguments() {
    for arguments in [&["serve"][..], &["--cleanup", "true"], &["--", "x"]] {
        let exit = parse_line(arguments).expect_err("positional");
        assert_eq!((exit.code, exit.stdout.as_str()), (1, ""), "{arguments:?}");
        assert!(!exit.stderr.contains("Usage:"), "{arguments:?}: {}", exit.stderr);
        assert!(exit.stderr.starts_with("Error: "), "{arguments:?}: {}", exit.stderr);
    }
    assert!(parse_line(&["", "--cleanup", ""]).is_ok());
}

// B-003: every flag with its default, as the banner prints it. The two minimum sync periods are
// zero, a named deviation.
#[test]
fn every_flag_and_its_default() {
    let parsed = parse_line(&[]).expect("defaults");
    let expected = r#"
        bind-address="0.0.0.0" bind-address-hard-fail="false"
        boot-id-file="/proc/sys/kernel/random/boot_id" cleanup="false" cluster-cidr="" config=""
        config-sync-period="15m0s" conntrack-max-per-core="32768" conntrack-min="131072"
        conntrack-tcp-be-liberal="false" conntrack-tcp-timeout-close-wait="1h0m0s"
        conntrack-tcp-timeout-established="24h0m0s" conntrack-udp-timeout="0s"
        conntrack-udp-timeout-stream="0s" detect-local-mode="" drop-invalid="false"
        end-connections-after="0s" feature-gates=""
        healthz-bind-address="0.0.0.0:10256" healthz-port="10256" help="false"
        hostname-override="" init-only="false" iptables-localhost-nodeports="true"
        iptables-masquerade-bit="14" iptables-min-sync-period="0s" iptables-sync-period="30s"
        ipvs-exclude-cidrs="[]" ipvs-min-sync-period="0s" ipvs-scheduler=""
        ipvs-strict-arp="false" ipvs-sync-period="30s" ipvs-tcp-timeout="0s"
        ipvs-tcpfin-timeout="0s" ipvs-udp-timeout="0s" kube-api-burst="10"
        kube-api-content-type="application/vnd.kubernetes.protobuf" kube-api-qps="5"
        kubeconfig="" log-flush-frequency="5s" log-json-info-buffer-size="0"
        log-json-split-stream="false" log-text-info-buffer-size="0"
        log-text-split-stream="false" logging-format="text"
        machine-id-file="/etc/machine-id,/var/lib/dbus/machine-id" masquerade-all="false"
        master="" metrics-bind-address="127.0.0.1:10249" metrics-port="10249"
        nodeport-addresses="[]" oom-score-adj="-999" pod-bridge-interface=""
        pod-interface-name-prefix="" profiling="false" proxy-mode=""
        service-counters="false" show-hidden-metrics-for-version="" table-ownership="true" v="0"
        version="false" vmodule="" write-config-to=""
    "#;
    let expected: Vec<String> =
        expected.split_whitespace().map(|flag| format!("FLAG: --{flag}")).collect();
    assert_eq!(parsed.banner().collect::<Vec<_>>(), expected);
    assert!(parsed.flags.given.is_empty());
    assert_eq!(parsed.notices, "");
}

// B-003: every flag is accepted with `-` and `_`, and its type is checked.
#[test]
fn every_flag_takes_its_type() {
    let by_type: [(&str, &str, &[&str]); 5] = [
        (
            "true",
            "maybe",
            &[
                "cleanup",
                "init-only",
                "bind-address-hard-fail",
                "profiling",
                "masquerade-all",
                "iptables-localhost-nodeports",
                "ipvs-strict-arp",
                "conntrack-tcp-be-liberal",
                "log-text-split-stream",
                "log-json-split-stream",
            ],
        ),
        (
            "7",
            "x",
            &[
                "healthz-port",
                "metrics-port",
                "kube-api-burst",
                "kube-api-qps",
                "iptables-masquerade-bit",
                "oom-score-adj",
                "conntrack-max-per-core",
                "conntrack-min",
                "v",
            ],
        ),
        (
            "1m30s",
            "30",
            &[
                "iptables-sync-period",
                "iptables-min-sync-period",
                "ipvs-sync-period",
                "ipvs-min-sync-period",
                "ipvs-tcp-timeout",
                "ipvs-tcpfin-timeout",
                "ipvs-udp-timeout",
                "conntrack-tcp-timeout-established",
                "conntrack-tcp-timeout-close-wait",
                "conntrack-udp-timeout",
                "conntrack-udp-timeout-stream",
                "config-sync-period",
                "log-flush-frequency",
            ],
        ),
        ("1.2.3.4", "xx", &["bind-address", "healthz-bind-address", "metrics-bind-address"]),
        ("64Ki", "x", &["log-text-info-buffer-size", "log-json-info-buffer-size"]),
    ];
    for (good, bad, names) in by_type {
        for name in names {
            let parsed =
                parse_line(&[&format!("--{}={good}", name.replace('-', "_"))]).expect(name);
            assert!(parsed.flags.given.contains(*name), "{name}");
            let shown = format!("FLAG: --{name}={good:?}");
            assert!(parsed.banner().any(|line| line == shown), "{name}: {:?}", parsed.shown);
            let exit = parse_line(&[&format!("--{name}={bad}")]).expect_err(name);
            let start = format!("Error: invalid argument {bad:?} for \"--{name}\" flag: ");
            assert!(
                last_line(&exit.stderr).starts_with(&start),
                "{name}: {}",
                last_line(&exit.stderr)
            );
            assert_eq!(exit.code, 1, "{name}");
        }
    }
}

#[test]
fn values_are_taken_as_pflag_takes_them() {
    assert_eq!(flags(&["--oom-score-adj", "-5"]).oom_score_adj, -5);
    assert_eq!(flags(&["--config", "--cleanup"]).config, "--cleanup");
    assert_eq!(flags(&["--cluster_cidr", "a_b"]).cluster_cidr, "a_b");
    for arguments in [&["-v", "4"][..], &["-v=4"], &["-v4"], &["--v", "4"], &["--v=4"]] {
        assert_eq!(flags(arguments).v, 4, "{arguments:?}");
    }
    for (text, expected) in
        [("t", true), ("T", true), ("TRUE", true), ("1", true), ("F", false), ("0", false)]
    {
        assert_eq!(flags(&[&format!("--profiling={text}")]).profiling, expected, "{text}");
    }
    assert!(flags(&["--profiling"]).profiling);
    assert!(parse_line(&["--profiling="]).is_err());
    assert_eq!(flags(&["--v=1", "--v=2"]).v, 2, "the last one wins");
    let lists =
        flags(&["--nodeport-addresses=a,b", "--nodeport_addresses", "c"]).nodeport_addresses;
    assert_eq!(lists, ["a", "b", "c"]);
    assert_eq!(flags(&["--config", ""]).config, "");
    let exit = parse_line(&["--config"]).expect_err("no value");
    assert_eq!(last_line(&exit.stderr), "Error: flag needs an argument: --config");
}

// B-005: the version goes to stdout and needs nothing else.
#[test]
fn version() {
    for arguments in [&["--version"][..], &["--version=true"], &["--config=/none", "--version"]] {
        let exit = parse_line(arguments).expect_err("exits");
        assert_eq!((exit.code, exit.stderr.as_str()), (0, ""), "{arguments:?}");
        assert!(exit.stdout.starts_with("Kubernetes v1.37."), "{arguments:?}: {}", exit.stdout);
    }
    assert!(parse_line(&["--version=raw"]).expect_err("exits").stdout.starts_with("version.Info{"));
    assert_eq!(flags(&["--version=v1.37.0-x"]).version.reported(), "v1.37.0-x");
    assert_eq!(parse_line(&["--version=v1.2.3"]).expect_err("other release").code, 1);
    assert_eq!(parse_line(&["--version=maybe"]).expect_err("no bool").code, 1);
}

// B-006: the deprecated ports work, say so, and are hidden.
#[test]
fn deprecated_ports() {
    let parsed = parse_line(&["--healthz-port=1", "--metrics_port", "2"]).expect("accepted");
    assert_eq!((parsed.flags.healthz_port, parsed.flags.metrics_port), (1, 2));
    let notices: Vec<_> = parsed.notices.lines().collect();
    assert_eq!(notices.len(), 2, "{notices:?}");
    assert!(notices[0].starts_with("Flag --healthz-port has been deprecated, "), "{notices:?}");
    assert!(notices[1].starts_with("Flag --metrics-port has been deprecated, "), "{notices:?}");
    let help = parse_line(&["--help"]).expect_err("help");
    assert_eq!((help.code, help.stderr.as_str()), (0, ""));
    assert!(help.stdout.contains("--healthz-bind-address"), "{}", help.stdout);
    assert!(!help.stdout.contains("--healthz-port"), "{}", help.stdout);
}

// B-031: given values are shown, in Go's form.
#[test]
fn banner_shows_given_values() {
    let parsed = parse_line(&[
        "--config-sync-period=90s",
        "--feature-gates=B=false,A=false",
        "--feature-gates=B=true",
        "--nodeport-addresses=a,b",
    ])
    .expect("valid");
    for line in [
        "FLAG: --config-sync-period=\"1m30s\"",
        "FLAG: --feature-gates=\"A=false,B=true\"",
        "FLAG: --nodeport-addresses=\"[a,b]\"",
    ] {
        assert!(parsed.banner().any(|shown| shown == line), "{line}: {:?}", parsed.shown);
    }
}
