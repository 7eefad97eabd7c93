//! Judges a completed configuration: all violations at once, each with its path.
//!
//! Place in the flow: between [`super::complete()`] and [`super::resolve()`]. Pure.
//!
//! Source: behaviour reference 2.3; the paths are the ones that users of upstream know.

use std::fmt;

use super::address::{parse_cidr, parse_ip, parse_ip_port};
use super::complete::{Completed, sync_periods};
use super::duration::GoDuration;
use super::feature_gates::Gate;
use super::v1alpha1::{KubeProxyConfiguration, Logging};
use super::version::PREVIOUS_MINOR;
use crate::model::Family;
use crate::node::nodeport::NodePortAddress;

/// One rule that is broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Path below `KubeProxyConfiguration`.
    pub path: String,
    /// The value found, as a user wrote it.
    pub value: String,
    /// What it should be.
    pub reason: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Violation { path, value, reason } = self;
        write!(f, "KubeProxyConfiguration.{path}: Invalid value: {value:?}: {reason}")
    }
}

/// Every rule that is broken, never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", shown(.0))]
pub struct Violations(pub Vec<Violation>);

/// One alone, several in brackets, as Kubernetes prints aggregates.
fn shown(violations: &[Violation]) -> String {
    let texts: Vec<String> = violations.iter().map(ToString::to_string).collect();
    if texts.len() == 1 { texts.concat() } else { format!("[{}]", texts.join(", ")) }
}

/// Collects violations.
#[derive(Default)]
struct Judge(Vec<Violation>);

impl Judge {
    fn require(&mut self, holds: bool, path: &str, value: impl fmt::Display, reason: &str) {
        if !holds {
            let (path, reason) = (path.to_owned(), reason.to_owned());
            self.0.push(Violation { path, value: value.to_string(), reason });
        }
    }

    fn not_negative(&mut self, duration: GoDuration, path: &str) {
        self.require(!duration.is_negative(), path, duration, "must be greater than or equal to 0");
    }
}

/// Checks every rule.
///
/// Errors: all that are broken (B-044).
pub fn validate(completed: &Completed) -> Result<(), Violations> {
    let object = &completed.object;
    let mut judge = Judge::default();
    masquerade_bits(&mut judge, object);
    ipvs(&mut judge, object);
    process(&mut judge, object);
    mode_and_periods(&mut judge, object);
    ipvs_gate(&mut judge, completed);
    addresses(&mut judge, object);
    node_port_addresses(&mut judge, &object.node_port_addresses);
    detect_local(&mut judge, completed);
    logging(&mut judge, completed);
    if judge.0.is_empty() { Ok(()) } else { Err(Violations(judge.0)) }
}

fn masquerade_bits(judge: &mut Judge, object: &KubeProxyConfiguration) {
    const REASON: &str = "must be within the range [0, 31]";
    let mut check = |bit: Option<i32>, section: &str| {
        let bit = bit.unwrap_or_default();
        let path = format!("KubeProxy{section}Configuration.MasqueradeBit");
        judge.require((0..=31).contains(&bit), &path, bit, REASON);
    };
    check(object.iptables.masquerade_bit, "IPTables");
    if object.mode == "nftables" {
        check(object.nftables.masquerade_bit, "NFTables");
    }
}

fn ipvs(judge: &mut Judge, object: &KubeProxyConfiguration) {
    if object.mode != "ipvs" {
        return;
    }
    let section = "KubeProxyIPVSConfiguration";
    judge.not_negative(object.ipvs.tcp_timeout, &format!("{section}.TCPTimeout"));
    judge.not_negative(object.ipvs.tcp_fin_timeout, &format!("{section}.TCPFinTimeout"));
    judge.not_negative(object.ipvs.udp_timeout, &format!("{section}.UDPTimeout"));
    for (index, cidr) in object.ipvs.exclude_cidrs.iter().enumerate() {
        let path = format!("{section}.ExcludeCidrs[{index}]");
        judge.require(parse_cidr(cidr).is_some(), &path, cidr, NOT_A_CIDR);
    }
}

/// Sysctls, oom score, client, refresh.
fn process(judge: &mut Judge, object: &KubeProxyConfiguration) {
    let linux = "KubeProxyLinuxConfiguration";
    let conntrack = &object.conntrack;
    let path = |field: &str| format!("{linux}.KubeProxyConntrackConfiguration.{field}");
    for (value, field) in [(conntrack.max_per_core, "MaxPerCore"), (conntrack.min, "Min")] {
        let value = value.unwrap_or_default();
        judge.require(value >= 0, &path(field), value, "must be greater than or equal to 0");
    }
    let established = conntrack.tcp_established_timeout.unwrap_or_default();
    judge.not_negative(established, &path("TCPEstablishedTimeout"));
    let close_wait = conntrack.tcp_close_wait_timeout.unwrap_or_default();
    judge.not_negative(close_wait, &path("TCPCloseWaitTimeout"));
    judge.not_negative(conntrack.udp_timeout, &path("UDPTimeout"));
    judge.not_negative(conntrack.udp_stream_timeout, &path("UDPStreamTimeout"));
    let score = object.oom_score_adj.unwrap_or_default();
    judge.require(
        (-1000..=1000).contains(&score),
        &format!("{linux}.OOMScoreAdj"),
        score,
        "must be within the range [-1000, 1000]",
    );
    let burst = object.client_connection.burst;
    judge.require(burst >= 0, "ClientConnection.Burst", burst, "must be non-negative");
    let after = object.kubeweir.end_connections_after;
    judge.require(
        after >= GoDuration::ZERO,
        "Kubeweir.EndConnectionsAfter",
        after,
        "must be non-negative",
    );
    let refresh = object.config_sync_period;
    judge.require(
        refresh > GoDuration::ZERO,
        "ConfigSyncPeriod",
        refresh,
        "must be greater than 0",
    );
}

fn mode_and_periods(judge: &mut Judge, object: &KubeProxyConfiguration) {
    judge.require(
        matches!(object.mode.as_str(), "" | "iptables" | "ipvs" | "nftables"),
        "Mode.ProxyMode",
        &object.mode,
        "must be iptables, ipvs or nftables, or blank for the default",
    );
    let (period, minimum) = sync_periods(object);
    judge.require(period > GoDuration::ZERO, "SyncPeriod", period, "must be greater than 0");
    judge.not_negative(minimum, "MinSyncPeriod");
    let text = format!("must be greater than or equal to MinSyncPeriod, {minimum}");
    judge.require(period >= minimum, "SyncPeriod", period, &text);
}

/// KEP-5495: the mode goes by and by, gate first.
fn ipvs_gate(judge: &mut Judge, completed: &Completed) {
    let mode = &completed.object.mode;
    let possible = mode != "ipvs" || completed.gates.enabled(Gate::KubeProxyIpvs);
    judge.require(possible, "Mode.ProxyMode", mode, "Feature KubeProxyIPVS is disabled");
}

/// `IP:port` with a port that can be listened on.
fn is_listen_address(text: &str) -> bool {
    parse_ip_port(text).is_some_and(|address| address.port() != 0)
}

fn addresses(judge: &mut Judge, object: &KubeProxyConfiguration) {
    let bind = &object.bind_address;
    judge.require(
        parse_ip(bind).is_some(),
        "BindAddress",
        bind,
        "not a valid textual representation of an IP address",
    );
    let reason = "must be IP:port with a port from 1 to 65535";
    let healthz = &object.healthz_bind_address;
    let off = healthz.is_empty();
    judge.require(off || is_listen_address(healthz), "HealthzBindAddress", healthz, reason);
    let metrics = &object.metrics_bind_address;
    judge.require(is_listen_address(metrics), "MetricsBindAddress", metrics, reason);
    let version = &object.show_hidden_metrics_for_version;
    judge.require(
        version.is_empty() || version == PREVIOUS_MINOR,
        "ShowHiddenMetricsForVersion",
        version,
        &format!("must be omitted or have the value {PREVIOUS_MINOR:?}; only the previous minor version is allowed"),
    );
}

const NOT_A_CIDR: &str = "must be a valid CIDR block, (e.g. 10.100.0.0/16 or fde4:8dba:82e1::/48)";

fn node_port_addresses(judge: &mut Judge, items: &[String]) {
    const REASON: &str = "must be a valid CIDR block, (e.g. 10.100.0.0/16 or fde4:8dba:82e1::/48), \
                          or one of 'primary', 'localhost' and 'all'";
    for (index, item) in items.iter().enumerate() {
        let known = NodePortAddress::keyword(item).is_some() || parse_cidr(item).is_some();
        judge.require(known, &format!("NodePortAddresses[{index}]"), item, REASON);
    }
}

fn detect_local(judge: &mut Judge, completed: &Completed) {
    let object = &completed.object;
    let section = "DetectLocalConfiguration";
    match object.detect_local_mode.as_str() {
        "" | "ClusterCIDR" => cluster_cidrs(judge, &completed.cluster_cidrs),
        "NodeCIDR" => {}
        "BridgeInterface" => {
            let name = &object.detect_local.bridge_interface;
            let path = format!("{section}.InterfaceName");
            judge.require(!name.is_empty(), &path, name, "must be a non-empty string");
        }
        "InterfaceNamePrefix" => {
            let prefix = &object.detect_local.interface_name_prefix;
            let path = format!("{section}.InterfacePrefix");
            judge.require(!prefix.is_empty(), &path, prefix, "must be a non-empty string");
        }
        other => judge.require(
            false,
            "DetectLocalMode",
            other,
            "must be ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix, or blank for the default",
        ),
    }
}

/// One CIDR, or one of each family (B-048).
fn cluster_cidrs(judge: &mut Judge, items: &[String]) {
    let path = "DetectLocalConfiguration.ClusterCIDRs";
    let parsed: Vec<_> = items.iter().map(|item| parse_cidr(item)).collect();
    for (item, cidr) in items.iter().zip(&parsed) {
        judge.require(cidr.is_some(), path, item, NOT_A_CIDR);
    }
    let families: Vec<Family> = parsed.iter().flatten().map(Family::of_net).collect();
    let sound = match families[..] {
        _ if items.len() > 2 => false,
        [first, second] => first != second,
        _ => true,
    };
    judge.require(
        sound,
        path,
        items.join(","),
        "must be a single CIDR or a dual-stack pair of CIDRs",
    );
}

fn logging(judge: &mut Judge, completed: &Completed) {
    let logging = &completed.object.logging;
    let flush = logging.flush_frequency;
    judge.require(
        flush > GoDuration::ZERO,
        "logging.flushFrequency",
        flush,
        "Must be greater than zero",
    );
    let beta = completed.gates.enabled(Gate::LoggingBetaOptions);
    match logging.format.as_str() {
        "text" => {}
        "json" => judge.require(
            beta,
            "logging.format",
            "json",
            "Log format json is disabled, see LoggingBetaOptions feature",
        ),
        other => judge.require(false, "logging.format", other, "Unsupported log format"),
    }
    let verbosity = logging.verbosity;
    let most = i32::MAX.unsigned_abs();
    judge.require(verbosity <= most, "logging.verbosity", verbosity, "Must be <= 2147483647");
    vmodule(judge, logging);
    let alpha = completed.gates.enabled(Gate::LoggingAlphaOptions);
    for (routing, format) in [(&logging.options.text, "text"), (&logging.options.json, "json")] {
        let path = |field: &str| format!("logging.options.{format}.{field}");
        let reason = "Feature LoggingAlphaOptions is disabled";
        judge.require(alpha || !routing.split_stream, &path("splitStream"), true, reason);
        let size = &routing.info_buffer_size;
        judge.require(alpha || size.is_zero(), &path("infoBufferSize"), size, reason);
    }
}

fn vmodule(judge: &mut Judge, logging: &Logging) {
    if !logging.vmodule.is_empty() {
        let text = logging.format == "text";
        judge.require(
            text,
            "logging.vmodule",
            &logging.format,
            "Only supported for text log format",
        );
    }
    for (index, item) in logging.vmodule.iter().enumerate() {
        let pattern = &item.file_pattern;
        let path = format!("logging.vmodule[{index}].filePattern");
        let sound = !pattern.is_empty() && !pattern.contains(['=', ',']);
        judge.require(sound, &path, pattern, "File pattern must not be empty nor contain = or ,");
    }
}
