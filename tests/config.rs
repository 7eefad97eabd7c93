//! From a command line and a file to the resolved configuration, as `main` does it.

#![allow(clippy::unwrap_used)] // a test binary, helpers included

use std::time::Duration;

use kubeweir::cli::{self, Command, proxy};
use kubeweir::config::address::parse_cidr;
use kubeweir::config::feature_gates::Gate;
use kubeweir::config::{
    CompleteError, Completed, Config, DetectLocal, NoteLevel, ProxyMode, UNSET_MODE, Violations,
    complete, resolve, write_config,
};
use kubeweir::node::nodeport::{NodePortAddress, NodePortAddresses};

#[path = "config/effects.rs"]
mod effects;
#[path = "config/reading.rs"]
mod reading;
#[path = "config/setups.rs"]
mod setups;
#[path = "config/validation.rs"]
mod validation;

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
const KUBEADM: &str = include_str!("data/config/kubeadm.yaml");
const DEFAULTS: &str = include_str!("data/config/defaults.yaml");

fn parse(flags: &[&str]) -> proxy::Parsed {
    let arguments = ["kube-proxy"].iter().chain(flags).map(|flag| (*flag).to_owned());
    match cli::parse(arguments) {
        Ok(Command::Proxy(parsed)) => *parsed,
        other => panic!("{flags:?}: {other:?}"),
    }
}

fn completed(flags: &[&str], file: Option<&str>) -> Completed {
    complete(&parse(flags).flags, file)
        .unwrap_or_else(|error| panic!("{flags:?} {file:?}: {error:?}"))
}

fn config(flags: &[&str], file: Option<&str>) -> Config {
    resolve(completed(flags, file)).unwrap_or_else(|error| panic!("{flags:?} {file:?}: {error}"))
}

/// A configuration from a file's body alone.
fn from_file(body: &str) -> Config {
    config(&["--config=x"], Some(&format!("{HEAD}{body}")))
}

fn violations(flags: &[&str], file: Option<&str>) -> Violations {
    resolve(completed(flags, file)).expect_err("violations")
}

fn paths(violations: &Violations) -> Vec<&str> {
    violations.0.iter().map(|violation| violation.path.as_str()).collect()
}

fn cidrs(texts: &[&str]) -> NodePortAddresses {
    let cidr = |text: &&str| NodePortAddress::Cidr(parse_cidr(text).expect("CIDR"));
    NodePortAddresses(texts.iter().map(cidr).collect())
}

/// B-050: whether `spec.externalIPs` is honoured.
fn external_ips(config: &Config) -> bool {
    config.gates.enabled(Gate::AllowServiceExternalIps)
}

fn metrics(config: &Config) -> String {
    config.servers.metrics.to_string()
}

fn healthz(config: &Config) -> Option<String> {
    config.servers.healthz.map(|address| address.to_string())
}

// B-007: the health server is off with --healthz-port=0 and only then.
#[test]
fn healthz_port_zero_turns_the_server_off() {
    assert_eq!(healthz(&config(&["--healthz-port=0"], None)), None);
    assert_eq!(healthz(&config(&[], None)).as_deref(), Some("0.0.0.0:10256"));
}

// B-008: metrics cannot be turned off.
#[test]
fn metrics_port_zero_is_refused() {
    assert_eq!(paths(&violations(&["--metrics-port=0"], None)), ["MetricsBindAddress"]);
}

// B-009, B-010, B-011: ports are appended, IPv6 gets brackets, empty means the default.
#[test]
fn bind_address_flags() {
    let config = config(&["--healthz-bind-address=1.2.3.4", "--metrics-bind-address=::1"], None);
    assert_eq!(healthz(&config).as_deref(), Some("1.2.3.4:10256"));
    assert_eq!(metrics(&config), "[::1]:10249");
    let ports = ["--healthz-bind-address=1.2.3.4:5", "--healthz-port=6", "--metrics-port=7"];
    let config = crate::config(&ports, None);
    assert_eq!(healthz(&config).as_deref(), Some("1.2.3.4:5"));
    assert_eq!(metrics(&config), "127.0.0.1:10249");
    let empty = ["--healthz-bind-address=", "--metrics-bind-address=", "--bind-address="];
    let config = crate::config(&empty, None);
    assert_eq!(healthz(&config).as_deref(), Some("0.0.0.0:10256"));
    assert_eq!(metrics(&config), "127.0.0.1:10249");
    assert_eq!(config.bind_address.to_string(), "0.0.0.0");
}

// B-012, B-013, B-014: with --config, only master, host name and logging flags count.
#[test]
fn precedence_with_config() {
    let flags = [
        "--config=x",
        "--master=https://m",
        "--hostname-override= Node-A ",
        "--kubeconfig=/flag",
        "--feature-gates=AllowServiceExternalIPs=false",
        "--masquerade-all",
        "--conntrack-min=1",
        "--proxy-mode=ipvs",
        "--cluster-cidr=bad",
        "--bind-address=::",
        "--metrics-port=0",
    ];
    let file =
        format!("{HEAD}hostnameOverride: from-file\nclientConnection: {{kubeconfig: /file}}\n");
    let completed = completed(&flags, Some(&file));
    assert_eq!(completed.notes, [], "ignored without a warning");
    let config = resolve(completed).expect("the flags do not count");
    assert_eq!(config.client.master.as_deref(), Some("https://m"));
    assert_eq!(config.hostname_override, "node-a");
    assert_eq!(config.client.kubeconfig.as_deref(), Some("/file".as_ref()));
    assert!(external_ips(&config) && !config.masquerade_all);
    assert_eq!((config.mode, config.conntrack.min), (ProxyMode::Iptables, 131_072));
    assert_eq!(config.bind_address.to_string(), "0.0.0.0");
    assert_eq!(metrics(&config), "127.0.0.1:10249");
}

// B-015: logging flags win over the file, vmodule entries of the flags come first.
#[test]
fn logging_flags_override_the_file() {
    let file = format!(
        "{HEAD}logging:\n  verbosity: 1\n  format: json\n  flushFrequency: 1s\n  vmodule:\n  - {{filePattern: b, verbosity: 2}}\n"
    );
    let from_file = completed(&["--config=x"], Some(&file)).object.logging;
    assert_eq!((from_file.verbosity, from_file.format.as_str()), (1, "json"));
    assert_eq!(from_file.flush_frequency.to_string(), "1s");
    let flags =
        ["--config=x", "-v4", "--logging-format=text", "--log-flush-frequency=2s", "--vmodule=a=9"];
    let logging = completed(&flags, Some(&file)).object.logging;
    assert_eq!((logging.verbosity, logging.format.as_str()), (4, "text"));
    assert_eq!(logging.flush_frequency.to_string(), "2s");
    let patterns: Vec<_> =
        logging.vmodule.iter().map(|item| (item.file_pattern.as_str(), item.verbosity)).collect();
    assert_eq!(patterns, [("a", 9), ("b", 2)]);
}

// B-016, B-017: which sync flags count in which mode.
#[test]
fn sync_period_flags() {
    let flags = [
        "--iptables-sync-period=7s",
        "--iptables-min-sync-period=3s",
        "--ipvs-sync-period=9s",
        "--ipvs-min-sync-period=4s",
    ];
    for (mode, sync, minimum) in
        [("", 7, 3), ("iptables", 7, 3), ("nftables", 7, 3), ("ipvs", 9, 4)]
    {
        let mode_flag = format!("--proxy-mode={mode}");
        let config = config(&[&flags[..], &[&mode_flag]].concat(), None);
        let expected = (Duration::from_secs(sync), Duration::from_secs(minimum));
        assert_eq!((config.sync_period, config.min_sync_period), expected, "{mode:?}");
        let config = crate::config(&[&mode_flag], None);
        let expected = (Duration::from_secs(30), Duration::ZERO);
        assert_eq!((config.sync_period, config.min_sync_period), expected, "{mode:?}");
    }
}

// B-018: split at commas, one for each family.
#[test]
fn cluster_cidr_flag() {
    let config = config(&["--cluster-cidr=fd00::/64,10.0.0.0/8"], None);
    assert_eq!(config.cluster_cidrs.v4, parse_cidr("10.0.0.0/8"));
    assert_eq!(config.cluster_cidrs.v6, parse_cidr("fd00::/64"));
    let path = "DetectLocalConfiguration.ClusterCIDRs";
    for text in ["", "10.0.0.0/8, fd00::/64", "x"] {
        let violations = violations(&[&format!("--cluster-cidr={text}")], None);
        assert_eq!(paths(&violations), [path], "{text:?}");
    }
}

// B-019: a blank host name is fatal while the configuration is completed.
#[test]
fn blank_hostname_override() {
    let error = complete(&parse(&["--hostname-override=  "]).flags, None).expect_err("blank");
    assert!(matches!(error, CompleteError::NodeName(_)), "{error:?}");
    assert_eq!(config(&["--hostname-override= A "], None).hostname_override, "a");
}

// B-020: what is written is loadable, includes platform defaults, and bare IPs pass (Q-03 mended).
#[test]
fn written_configuration_loads_again() {
    let flags = [
        "--write-config-to=/x",
        "--proxy-mode=nftables",
        "--healthz-bind-address=1.2.3.4",
        "--cluster-cidr=10.0.0.0/8",
    ];
    let first = completed(&flags, None);
    let text = write_config(&first.object).expect("encodes");
    assert_eq!(first.object.node_port_addresses, ["primary"]);
    assert_eq!(first.object.detect_local_mode, "ClusterCIDR");
    assert_eq!(first.object.iptables.sync_period.to_string(), "0s");
    assert!(!text.contains("kubeweir"), "nothing that upstream does not know: {text}");
    let again = completed(&["--config=x"], Some(&text));
    assert_eq!(again.object, first.object);
    assert_eq!(again.notes, []);
    let config = resolve(again).expect("valid");
    assert_eq!(healthz(&config).as_deref(), Some("1.2.3.4:10256"));
}

// B-021: --write-config-to with --config converts and fills in defaults; B-036: these are they.
#[test]
fn written_configuration_has_the_defaults() {
    let minimal = completed(&["--config=x", "--write-config-to=/x"], Some(HEAD));
    let written = write_config(&minimal.object).expect("encodes");
    let tree = |text: &str| -> serde_json::Value { serde_saphyr::from_str(text).expect("YAML") };
    assert_eq!(tree(&written), tree(DEFAULTS));
    for mode in ["ipvs", "nftables"] {
        let object = completed(&["--config=x"], Some(&format!("{HEAD}mode: {mode}\n"))).object;
        let section =
            if mode == "ipvs" { object.ipvs.sync_period } else { object.nftables.sync_period };
        assert_eq!(section.to_string(), "30s", "{mode}");
    }
}

// B-032, B-034: these files are fatal.
#[test]
fn fatal_files() {
    for text in [
        "",
        "kind: KubeProxyConfiguration\n",
        &HEAD.replace("v1alpha1", "v2"),
        &format!("{HEAD}configSyncPeriod: 30\n"),
    ] {
        let error = complete(&parse(&["--config=x"]).flags, Some(text)).expect_err(text);
        assert!(matches!(error, CompleteError::Decode(_)), "{text}: {error:?}");
    }
}

// B-033: leniency is noted.
#[test]
fn lenient_decoding_is_noted() {
    let completed =
        completed(&["--config=x"], Some(&format!("{HEAD}bogus: 1\nmode: ipvs\nmode: nftables\n")));
    assert_eq!(completed.object.mode, "nftables");
    let [note] = &completed.notes[..] else { panic!("{:?}", completed.notes) };
    assert_eq!(note.level, NoteLevel::Info);
    assert!(
        note.text.contains("lenient") && note.text.contains("unknown field \"bogus\""),
        "{note}"
    );
}

// B-035: JSON.
#[test]
fn json_file() {
    let text = r#"{"apiVersion":"kubeproxy.config.k8s.io/v1alpha1","kind":"KubeProxyConfiguration","mode":"ipvs"}"#;
    assert_eq!(config(&["--config=x"], Some(text)).mode, ProxyMode::Ipvs);
}

// B-037, B-038: an IPv6 bindAddress changes the defaults of the servers, in the file only.
#[test]
fn server_addresses_of_the_file() {
    let cases = [
        ("bindAddress: '::'\n", "[::]:10256", "[::1]:10249"),
        ("bindAddress: fd00::1\n", "[::]:10256", "[::1]:10249"),
        ("healthzBindAddress: ''\nmetricsBindAddress: ''\n", "0.0.0.0:10256", "127.0.0.1:10249"),
        ("healthzBindAddress: 1.2.3.4\nmetricsBindAddress: '::'\n", "1.2.3.4:10256", "[::]:10249"),
    ];
    for (body, expected_healthz, expected_metrics) in cases {
        let config = from_file(body);
        assert_eq!(healthz(&config).as_deref(), Some(expected_healthz), "{body}");
        assert_eq!(metrics(&config), expected_metrics, "{body}");
    }
    let by_flag = config(&["--bind-address=::"], None);
    assert_eq!(healthz(&by_flag).as_deref(), Some("0.0.0.0:10256"));
}

// B-039: a named deviation: a minSyncPeriod of zero stays zero; one that is written counts.
#[test]
fn min_sync_period_of_the_file() {
    for mode in ["iptables", "nftables"] {
        for (written, expected) in [("0s", 0), ("1s", 1000), ("250ms", 250)] {
            let config =
                from_file(&format!("mode: {mode}\n{mode}: {{minSyncPeriod: {written}}}\n"));
            assert_eq!(config.min_sync_period, Duration::from_millis(expected), "{mode} {written}");
        }
    }
}

// B-040: zero means leave alone, absent means the default.
#[test]
fn conntrack_zeros_are_preserved() {
    let config = from_file(
        "conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}\n",
    );
    assert_eq!((config.conntrack.max_per_core, config.conntrack.min), (0, 0));
    assert_eq!(config.conntrack.tcp_established_timeout, None);
    assert_eq!(config.conntrack.tcp_close_wait_timeout, None);
    let config = from_file("conntrack: {udpTimeout: 5s}\n");
    assert_eq!((config.conntrack.max_per_core, config.conntrack.min), (32_768, 131_072));
    assert_eq!(config.conntrack.tcp_established_timeout, Some(Duration::from_secs(86_400)));
    assert_eq!(config.conntrack.tcp_close_wait_timeout, Some(Duration::from_secs(3_600)));
    assert_eq!(config.conntrack.udp_timeout, Some(Duration::from_secs(5)));
    assert_eq!(config.conntrack.udp_stream_timeout, None);
}

// B-041: masqueradeAll of the active mode's section.
#[test]
fn masquerade_all_by_mode() {
    for (section, expected) in
        [("iptables", [true, true, false]), ("nftables", [false, false, true])]
    {
        for (mode, expected) in ["iptables", "ipvs", "nftables"].into_iter().zip(expected) {
            let config = from_file(&format!("mode: {mode}\n{section}: {{masqueradeAll: true}}\n"));
            assert_eq!(config.masquerade_all, expected, "{section} in {mode}");
        }
    }
    for mode in ["iptables", "ipvs", "nftables"] {
        let config = config(&[&format!("--proxy-mode={mode}"), "--masquerade-all"], None);
        assert!(config.masquerade_all, "{mode} by flag");
    }
}

// B-042: blank means iptables. B-043: nftables serves NodePorts on the primary addresses.
#[test]
fn mode_defaults() {
    assert_eq!(from_file("mode: ''\n").mode, ProxyMode::Iptables);
    assert_eq!(config(&[], None).mode, ProxyMode::Iptables);
    let says = |config: &Config| config.notes.iter().any(|note| note.text.contains("nftables"));
    assert!(says(&from_file("mode: ipvs\n")) && !says(&from_file("mode: nftables\n")));
    assert_eq!(from_file("").nodeport_addresses, NodePortAddresses(vec![]));
    assert_eq!(
        from_file("mode: nftables\n").nodeport_addresses,
        NodePortAddresses(vec![NodePortAddress::Primary])
    );
    let by_flag = config(&["--proxy-mode=nftables", "--nodeport-addresses="], None);
    assert_eq!(by_flag.nodeport_addresses, NodePortAddresses(vec![NodePortAddress::Primary]));
    let named =
        config(&["--proxy-mode=nftables", "--nodeport-addresses=10.0.0.0/8,fd00::/8"], None);
    assert_eq!(named.nodeport_addresses, cidrs(&["10.0.0.0/8", "fd00::/8"]));
    assert!(!named.localhost_nodeports && from_file("").localhost_nodeports);
}

// 1.37, KEP-5343: whoever writes no mode is told that the default will change.
#[test]
fn an_unset_mode_is_told() {
    let told = |config: &Config| config.notes.iter().any(|note| note.text == UNSET_MODE);
    for unset in [config(&[], None), from_file(""), from_file("mode: ''\n")] {
        assert!(told(&unset) && unset.mode_unset);
    }
    for set in [config(&["--proxy-mode=iptables"], None), from_file("mode: nftables\n")] {
        assert!(!told(&set) && !set.mode_unset);
    }
}

// 1.37: keywords beside each other and beside CIDRs, by file and by flag, written as they were given.
#[test]
fn node_port_keywords() {
    use NodePortAddress::{All, Cidr, Localhost, Primary};
    let net = |text: &str| Cidr(parse_cidr(text).expect("CIDR"));
    for (list, expected) in [
        ("primary,localhost", vec![Primary, Localhost]),
        ("localhost", vec![Localhost]),
        ("all", vec![All]),
        ("all,localhost", vec![All, Localhost]),
        ("10.0.0.0/8,primary,fd00::/8", vec![net("10.0.0.0/8"), Primary, net("fd00::/8")]),
    ] {
        let file = from_file(&format!("mode: nftables\nnodePortAddresses: [{list}]\n"));
        assert_eq!(file.nodeport_addresses, NodePortAddresses(expected.clone()), "{list}");
        let flag =
            config(&["--proxy-mode=nftables", &format!("--nodeport-addresses={list}")], None);
        assert_eq!(flag.nodeport_addresses, NodePortAddresses(expected), "{list}");
        let written = write_config(&flag.object).expect("encodes");
        let again = completed(&["--config=x"], Some(&written));
        let words: Vec<&str> = list.split(',').collect();
        assert_eq!(again.object.node_port_addresses, words);
    }
}

// B-049: locked gates, by flag and by file; unknown ones only warn (Q-33).
#[test]
fn feature_gates() {
    let error = complete(&parse(&["--feature-gates=NFTablesProxyMode=false"]).flags, None);
    assert!(matches!(error, Err(CompleteError::FeatureGates(_))), "{error:?}");
    let file = format!("{HEAD}featureGates: {{MultiCIDRServiceAllocator: false}}\n");
    let error = complete(&parse(&["--config=x"]).flags, Some(&file));
    assert!(matches!(error, Err(CompleteError::FeatureGates(_))), "{error:?}");
    let completed = completed(&["--feature-gates=Bogus=true,AllowServiceExternalIPs=true"], None);
    let levels: Vec<_> = completed.notes.iter().map(|note| note.level).collect();
    assert_eq!(levels, [NoteLevel::Warning, NoteLevel::Warning], "{:?}", completed.notes);
    assert!(completed.gates.enabled(Gate::ComponentStatusz));
}

#[test]
fn external_ips_follow_their_gate() {
    assert!(!external_ips(&config(&["--feature-gates=AllowServiceExternalIPs=false"], None)));
    assert!(external_ips(&config(&[], None)));
}

// B-051: kubeadm's zero values amount to the defaults.
#[test]
fn kubeadm_file() {
    let kubeadm = completed(&["--config=x"], Some(KUBEADM));
    assert_eq!(kubeadm.notes, []);
    let mut expected = completed(&["--config=x"], Some(HEAD));
    expected.object.client_connection.kubeconfig = "/var/lib/kube-proxy/kubeconfig.conf".to_owned();
    expected.object.cluster_cidr = "10.244.0.0/16".to_owned();
    expected.cluster_cidrs = vec!["10.244.0.0/16".to_owned()];
    assert_eq!(kubeadm, expected);
    let config = resolve(kubeadm).expect("valid");
    assert_eq!(config.mode, ProxyMode::Iptables);
    assert_eq!(config.cluster_cidrs.v4, parse_cidr("10.244.0.0/16"));
}

#[test]
fn own_settings() {
    let by_flag =
        config(&["--config=x", "--service-counters", "--table-ownership=false"], Some(HEAD));
    assert!(by_flag.service_counters && !by_flag.table_ownership);
    let by_file = from_file("kubeweir: {serviceCounters: true, tableOwnership: false}\n");
    assert!(by_file.service_counters && !by_file.table_ownership);
    let neither = from_file("");
    assert!(!neither.service_counters && neither.table_ownership);
    assert!(!neither.drop_invalid && neither.end_connections_after.is_none());
    let by_flag =
        config(&["--config=x", "--drop-invalid", "--end-connections-after=30s"], Some(HEAD));
    let by_file = from_file("kubeweir: {dropInvalid: true, endConnectionsAfter: 30s}\n");
    for config in [by_flag, by_file] {
        assert!(config.drop_invalid);
        assert_eq!(config.end_connections_after, Some(std::time::Duration::from_secs(30)));
    }
}

#[test]
fn run_is_an_agent_in_nftables_mode() {
    let line = [
        "kubeweir",
        "run",
        "--manifests",
        "m",
        "--node",
        "N1",
        "--cluster-cidr",
        "10.0.0.0/8",
        "--nodeport-addresses",
        "10.1.0.0/16,10.2.0.0/16",
        "--masquerade-all",
        "--service-counters",
        "--no-table-ownership",
        "--healthz-bind-address=",
        "--metrics-bind-address",
        "127.0.0.1:0",
        "-v",
        "3",
    ];
    let run = |line: &[&str]| match cli::parse(line.iter().map(|argument| (*argument).to_owned())) {
        Ok(Command::People(command)) => match *command {
            cli::people::Command::Run(run) => run.as_agent().expect("an agent"),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    let defaults =
        resolve(complete(&run(&line[..4]).flags, None).expect("complete")).expect("valid");
    assert_eq!(defaults.mode, ProxyMode::Nftables);
    assert_eq!(defaults.nodeport_addresses, NodePortAddresses(vec![NodePortAddress::Primary]));
    assert_eq!(defaults.min_sync_period, Duration::ZERO);
    let full = resolve(complete(&run(&line).flags, None).expect("complete"));
    let violations = full.expect_err("port 0 cannot be asked for");
    assert_eq!(paths(&violations), ["MetricsBindAddress"]);
    let mut line = line;
    line[15] = "127.0.0.1:9";
    let config = resolve(complete(&run(&line).flags, None).expect("complete")).expect("valid");
    assert_eq!(config.hostname_override, "n1");
    assert_eq!(config.nodeport_addresses, cidrs(&["10.1.0.0/16", "10.2.0.0/16"]));
    assert!(config.masquerade_all && config.service_counters && !config.table_ownership);
    assert_eq!(healthz(&config), None);
    assert_eq!(config.object.logging.verbosity, 3);
}
