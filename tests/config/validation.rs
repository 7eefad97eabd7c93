//! The rules of section 2.3, each broken by itself.

use super::*;

// B-044: every rule of section 2.3, one at a time.
#[test]
fn every_rule_is_enforced() {
    let long = "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration";
    let cases: Vec<(&str, String)> = vec![
        ("iptables: {masqueradeBit: 32}", "KubeProxyIPTablesConfiguration.MasqueradeBit".into()),
        (
            "mode: ipvs\niptables: {masqueradeBit: -1}",
            "KubeProxyIPTablesConfiguration.MasqueradeBit".into(),
        ),
        (
            "mode: nftables\nnftables: {masqueradeBit: 32}",
            "KubeProxyNFTablesConfiguration.MasqueradeBit".into(),
        ),
        ("mode: ipvs\nipvs: {tcpTimeout: -1s}", "KubeProxyIPVSConfiguration.TCPTimeout".into()),
        (
            "mode: ipvs\nipvs: {tcpFinTimeout: -1s}",
            "KubeProxyIPVSConfiguration.TCPFinTimeout".into(),
        ),
        ("mode: ipvs\nipvs: {udpTimeout: -1s}", "KubeProxyIPVSConfiguration.UDPTimeout".into()),
        (
            "mode: ipvs\nipvs: {excludeCIDRs: [10.0.0.0/8, x]}",
            "KubeProxyIPVSConfiguration.ExcludeCidrs[1]".into(),
        ),
        ("conntrack: {maxPerCore: -1}", format!("{long}.MaxPerCore")),
        ("conntrack: {min: -1}", format!("{long}.Min")),
        ("conntrack: {tcpEstablishedTimeout: -1s}", format!("{long}.TCPEstablishedTimeout")),
        ("conntrack: {tcpCloseWaitTimeout: -1s}", format!("{long}.TCPCloseWaitTimeout")),
        ("conntrack: {udpTimeout: -1s}", format!("{long}.UDPTimeout")),
        ("conntrack: {udpStreamTimeout: -1s}", format!("{long}.UDPStreamTimeout")),
        ("oomScoreAdj: 1001", "KubeProxyLinuxConfiguration.OOMScoreAdj".into()),
        ("oomScoreAdj: -1001", "KubeProxyLinuxConfiguration.OOMScoreAdj".into()),
        ("mode: userspace", "Mode.ProxyMode".into()),
        ("clientConnection: {burst: -1}", "ClientConnection.Burst".into()),
        ("configSyncPeriod: -1s", "ConfigSyncPeriod".into()),
        ("iptables: {minSyncPeriod: -1s}", "MinSyncPeriod".into()),
        ("bindAddress: '[::]'", "BindAddress".into()),
        ("bindAddress: 1.2.3.4:5", "BindAddress".into()),
        ("healthzBindAddress: localhost:1", "HealthzBindAddress".into()),
        ("healthzBindAddress: 1.2.3.4:0", "HealthzBindAddress".into()),
        ("metricsBindAddress: 1.2.3.4:65536", "MetricsBindAddress".into()),
        ("mode: ipvs\nfeatureGates: {KubeProxyIPVS: false}", "Mode.ProxyMode".into()),
        ("nodePortAddresses: [x]", "NodePortAddresses[0]".into()),
        ("showHiddenMetricsForVersion: '1.35'", "ShowHiddenMetricsForVersion".into()),
        ("detectLocalMode: Magic", "DetectLocalMode".into()),
        ("clusterCIDR: 10.0.0.0", "DetectLocalConfiguration.ClusterCIDRs".into()),
        ("logging: {format: xml}", "logging.format".into()),
        ("logging: {flushFrequency: -1s}", "logging.flushFrequency".into()),
        ("logging: {verbosity: 2147483648}", "logging.verbosity".into()),
        (
            "logging: {format: json, vmodule: [{filePattern: a, verbosity: 1}]}",
            "logging.vmodule".into(),
        ),
        (
            "logging: {vmodule: [{filePattern: 'a=b', verbosity: 1}]}",
            "logging.vmodule[0].filePattern".into(),
        ),
        (
            "logging: {options: {text: {splitStream: true}}}",
            "logging.options.text.splitStream".into(),
        ),
        (
            "logging: {options: {json: {infoBufferSize: 64Ki}}}",
            "logging.options.json.infoBufferSize".into(),
        ),
        (
            "featureGates: {LoggingBetaOptions: false}\nlogging: {format: json}",
            "logging.format".into(),
        ),
    ];
    for (body, expected) in cases {
        let violations = violations(&["--config=x"], Some(&format!("{HEAD}{body}\n")));
        assert_eq!(paths(&violations), [expected], "{body}");
    }
}

#[test]
fn valid_edge_values() {
    for body in [
        "nftables: {masqueradeBit: 32}",
        "ipvs: {excludeCIDRs: [x], tcpTimeout: -1s}",
        "oomScoreAdj: 1000",
        "showHiddenMetricsForVersion: '1.36'",
        "detectLocalMode: NodeCIDR\nclusterCIDR: x,y,z",
        "featureGates: {LoggingAlphaOptions: true}\nlogging: {options: {text: {splitStream: true}}}",
        "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: a-nineteen-letters1}",
        "iptables: {syncPeriod: 1s, minSyncPeriod: 1s}",
        "logging: {format: json}",
    ] {
        from_file(&format!("{body}\n"));
    }
}

// B-044: all violations come at once.
#[test]
fn violations_are_reported_together() {
    let file = format!("{HEAD}mode: x\noomScoreAdj: 5000\nbindAddress: nope\n");
    let violations = violations(&["--config=x"], Some(&file));
    assert_eq!(
        paths(&violations),
        ["KubeProxyLinuxConfiguration.OOMScoreAdj", "Mode.ProxyMode", "BindAddress"]
    );
    let text = violations.to_string();
    assert!(text.starts_with('[') && text.ends_with(']'), "{text}");
    assert!(
        text.contains("KubeProxyConfiguration.BindAddress: Invalid value: \"nope\": "),
        "{text}"
    );
}

// B-045: a sync period below the minimum.
#[test]
fn sync_period_below_the_minimum() {
    let file = format!("{HEAD}mode: nftables\nnftables: {{syncPeriod: 1s, minSyncPeriod: 2s}}\n");
    assert_eq!(paths(&violations(&["--config=x"], Some(&file))), ["SyncPeriod"]);
    assert_eq!(paths(&violations(&["--iptables-sync-period=0"], None)), ["SyncPeriod"]);
}

// B-046, as 1.37 has it: keywords may stand beside CIDRs; other words are still none.
#[test]
fn node_port_keywords_are_three() {
    for items in ["primary,10.0.0.0/8", "10.0.0.0/8,primary,localhost", "all"] {
        config(&[&format!("--nodeport-addresses={items}")], None);
    }
    for (items, at) in [("primary,loopback", 1), ("Primary", 0), ("localhost,127.0.0.1", 1)] {
        let violations = violations(&[&format!("--nodeport-addresses={items}")], None);
        assert_eq!(paths(&violations), [format!("NodePortAddresses[{at}]")], "{items}");
    }
}

// B-047: interface modes need their name.
#[test]
fn interface_modes() {
    let bridge = violations(&["--detect-local-mode=BridgeInterface"], None);
    assert_eq!(paths(&bridge), ["DetectLocalConfiguration.InterfaceName"]);
    let prefix = violations(&["--detect-local-mode=InterfaceNamePrefix"], None);
    assert_eq!(paths(&prefix), ["DetectLocalConfiguration.InterfacePrefix"]);
    let config =
        config(&["--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cbr0"], None);
    assert_eq!(config.detect_local, DetectLocal::BridgeInterface("cbr0".to_owned()));
    let named = ["--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=cali"];
    let config = crate::config(&named, None);
    assert_eq!(config.detect_local, DetectLocal::InterfaceNamePrefix("cali".to_owned()));
}

// B-048: one CIDR, or one of each family.
#[test]
fn too_many_cluster_cidrs() {
    for text in ["10.0.0.0/8,11.0.0.0/8", "fd00::/64,fd01::/64", "10.0.0.0/8,fd00::/64,11.0.0.0/8"]
    {
        let file = format!("{HEAD}clusterCIDR: {text}\n");
        let violations = violations(&["--config=x"], Some(&file));
        assert_eq!(paths(&violations), ["DetectLocalConfiguration.ClusterCIDRs"], "{text}");
    }
}
