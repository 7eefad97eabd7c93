//! The object `KubeProxyConfiguration` of `kubeproxy.config.k8s.io/v1alpha1`, field by field.
//!
//! Place in the flow: [`super::decode`] reads it, flags are folded into it, [`super::validate`]
//! judges it, [`super::resolve()`] turns it into [`super::Config`]; `/configz` and
//! `--write-config-to` show it. Knows no rule: every field is what the user wrote, enumerations
//! included, so that all mistakes can be reported at once.
//!
//! Source: behaviour reference section 2.2. Pointer fields of upstream are `Option`: there, zero
//! written out means something else than nothing written.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::duration::GoDuration;

/// The API group and version this program reads and writes.
pub const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// The kind of the object.
pub const KIND: &str = "KubeProxyConfiguration";

/// The whole configuration object.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KubeProxyConfiguration {
    /// [`API_VERSION`].
    pub api_version: String,
    /// [`KIND`].
    pub kind: String,
    /// Gate name to wanted state.
    pub feature_gates: BTreeMap<String, bool>,
    /// How to reach the API server.
    pub client_connection: ClientConnection,
    /// Format and verbosity of the log.
    pub logging: Logging,
    /// Name of this node instead of the kernel's host name.
    pub hostname_override: String,
    /// What to take for the node's primary IP; nothing is bound to it.
    pub bind_address: String,
    /// `IP:port` of the proxy health server.
    pub healthz_bind_address: String,
    /// `IP:port` of the metrics server.
    pub metrics_bind_address: String,
    /// Whether a failure to listen ends the process.
    pub bind_address_hard_fail: bool,
    /// Whether the metrics server offers profiles and the verbosity knob.
    pub enable_profiling: bool,
    /// Previous minor release whose hidden metrics are wanted; no effect, none is hidden.
    pub show_hidden_metrics_for_version: String,
    /// `iptables`, `ipvs` or `nftables`.
    pub mode: String,
    /// Section of mode `iptables`.
    pub iptables: Iptables,
    /// Section of mode `ipvs`.
    pub ipvs: Ipvs,
    /// Section of mode `nftables`.
    pub nftables: Nftables,
    /// Windows only; carried along.
    pub winkernel: Winkernel,
    /// How traffic from this node's pods is recognised.
    pub detect_local_mode: String,
    /// Names for the interface modes of `detect_local_mode`.
    pub detect_local: DetectLocalSection,
    /// Pod CIDRs, comma separated.
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: String,
    /// CIDRs of the addresses that serve NodePorts, and the keywords `primary`, `localhost` and `all`.
    pub node_port_addresses: Vec<String>,
    /// oom_score_adj of the process.
    pub oom_score_adj: Option<i32>,
    /// Connection tracking sysctls.
    pub conntrack: Conntrack,
    /// How often configuration from the API server is refreshed; no effect, changes are watched.
    pub config_sync_period: GoDuration,
    /// Ignored, as upstream does.
    pub port_range: String,
    /// Windows only; carried along.
    pub windows_run_as_service: bool,
    /// What upstream has not; left out when nothing is set, so that upstream reads the file too.
    #[serde(skip_serializing_if = "Kubeweir::is_default")]
    pub kubeweir: Kubeweir,
}

/// Settings of this program alone.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Kubeweir {
    /// Count new connections, and what is refused or dropped, by service; benches/README.md says what that costs.
    pub service_counters: bool,
    /// Whether the tables are owned (kernel 6.9); true unless written otherwise.
    pub table_ownership: Option<bool>,
    /// Whether UDP NodePorts are served on localhost too, where gate
    /// KubeProxyNFTablesLocalhostNodePorts serves TCP ones.
    #[serde(rename = "localhostUDP")]
    pub localhost_udp: bool,
    /// Whether forwarded packets that conntrack calls invalid are dropped in nftables mode too.
    pub drop_invalid: bool,
    /// After which time TCP connections to endpoints that are gone are ended, unless a Service's
    /// annotation says otherwise; 0 never.
    pub end_connections_after: GoDuration,
}

impl Kubeweir {
    fn is_default(&self) -> bool {
        *self == Kubeweir::default()
    }
}

/// `clientConnection`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientConnection {
    /// Path of a kubeconfig; empty means in-cluster.
    pub kubeconfig: String,
    /// Accept header instead of the content type.
    pub accept_content_types: String,
    /// Media type of requests.
    pub content_type: String,
    /// Requests a second.
    #[serde(serialize_with = "whole_or_float", deserialize_with = "finite")]
    pub qps: f32,
    /// Requests that may exceed `qps` for a moment.
    pub burst: i32,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Logging {
    /// `text` or `json`.
    pub format: String,
    /// How often buffered lines are written out; no effect, they are never held back.
    #[serde(deserialize_with = "flush_frequency")]
    pub flush_frequency: GoDuration,
    /// Threshold of info messages.
    pub verbosity: u32,
    /// Thresholds by source file; text only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vmodule: Vec<VmoduleItem>,
    /// Alpha options of the two formats.
    pub options: LoggingOptions,
}

/// One entry of `logging.vmodule`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VmoduleItem {
    /// File name without its extension, with `*` and `?`.
    pub file_pattern: String,
    /// Threshold in files that match.
    pub verbosity: u32,
}

/// `logging.options`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoggingOptions {
    /// Of format `text`.
    pub text: OutputRouting,
    /// Of format `json`.
    pub json: OutputRouting,
}

/// Where lines of one format go.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OutputRouting {
    /// Errors to stderr, the rest to stdout.
    pub split_stream: bool,
    /// Buffer of the info stream, a Kubernetes quantity in bytes.
    #[serde(deserialize_with = "quantity")]
    pub info_buffer_size: Quantity,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Iptables {
    /// Accepted and validated; masquerading needs no mark here.
    pub masquerade_bit: Option<i32>,
    /// Masquerade every service flow.
    pub masquerade_all: bool,
    /// Serve NodePorts on 127.0.0.1.
    pub localhost_node_ports: Option<bool>,
    /// Longest time between full syncs.
    pub sync_period: GoDuration,
    /// Shortest time between syncs.
    pub min_sync_period: GoDuration,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ipvs {
    /// Longest time between full syncs.
    pub sync_period: GoDuration,
    /// Shortest time between syncs.
    pub min_sync_period: GoDuration,
    /// IPVS scheduler; no effect.
    pub scheduler: String,
    /// CIDRs that clean-up in ipvs mode leaves alone; no effect.
    #[serde(rename = "excludeCIDRs")]
    pub exclude_cidrs: Vec<String>,
    /// Whether arp_ignore and arp_announce are set; no effect.
    #[serde(rename = "strictARP")]
    pub strict_arp: bool,
    /// Time-out of idle TCP sessions; no effect.
    pub tcp_timeout: GoDuration,
    /// Time-out of TCP sessions after FIN; no effect.
    pub tcp_fin_timeout: GoDuration,
    /// Time-out of UDP sessions; no effect.
    pub udp_timeout: GoDuration,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Nftables {
    /// Accepted and validated; masquerading needs no mark here.
    pub masquerade_bit: Option<i32>,
    /// Masquerade every service flow.
    pub masquerade_all: bool,
    /// Longest time between full syncs.
    pub sync_period: GoDuration,
    /// Shortest time between syncs.
    pub min_sync_period: GoDuration,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Winkernel {
    /// HNS network.
    pub network_name: String,
    /// Source IP; one of the wrong family is warned about on Linux too.
    pub source_vip: String,
    /// Direct server return.
    #[serde(rename = "enableDSR")]
    pub enable_dsr: bool,
    /// HNS endpoint of the root.
    pub root_hns_endpoint_name: String,
    /// Whether health checks go to the VIP.
    pub forward_health_check_vip: bool,
}

/// `detectLocal`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DetectLocalSection {
    /// For mode `BridgeInterface`.
    pub bridge_interface: String,
    /// For mode `InterfaceNamePrefix`.
    pub interface_name_prefix: String,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Conntrack {
    /// Entries per core; 0 leaves the limit alone.
    pub max_per_core: Option<i32>,
    /// Least number of entries, whatever the cores.
    pub min: Option<i32>,
    /// Idle time of established TCP; 0 leaves it alone.
    pub tcp_established_timeout: Option<GoDuration>,
    /// Time in CLOSE_WAIT; 0 leaves it alone.
    pub tcp_close_wait_timeout: Option<GoDuration>,
    /// Whether out-of-window packets are tolerated.
    pub tcp_be_liberal: bool,
    /// Time of unanswered UDP; 0 leaves it alone.
    pub udp_timeout: GoDuration,
    /// Time of answered UDP; 0 leaves it alone.
    pub udp_stream_timeout: GoDuration,
}

/// A Kubernetes quantity of bytes, kept as written: `0`, `64Ki`, `1M`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Quantity(String);

impl Default for Quantity {
    fn default() -> Self {
        Quantity("0".to_owned())
    }
}

/// A text that is no quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("quantities must be a number with an optional suffix such as Ki, M or Gi, not {0:?}")]
pub struct InvalidQuantity(String);

impl std::str::FromStr for Quantity {
    type Err = InvalidQuantity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const SUFFIXES: [&str; 16] =
            ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        let end =
            unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let has_digit = number.bytes().any(|byte| byte.is_ascii_digit());
        let is_number = has_digit && number.matches('.').count() <= 1;
        let is_exponent = suffix.strip_prefix(['e', 'E']).is_some_and(|e| e.parse::<i64>().is_ok());
        if !is_number || !(is_exponent || SUFFIXES.contains(&suffix)) {
            return Err(InvalidQuantity(text.to_owned()));
        }
        let is_zero = number.bytes().all(|byte| matches!(byte, b'0' | b'.'));
        Ok(if is_zero { Quantity::default() } else { Quantity(text.to_owned()) })
    }
}

impl std::fmt::Display for Quantity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Quantity {
    /// Whether it is the default, no buffer.
    pub fn is_zero(&self) -> bool {
        *self == Quantity::default()
    }
}

/// Text or number, where upstream's JSON takes both.
#[derive(Deserialize)]
#[serde(untagged)]
enum TextOrNumber {
    Number(serde_json::Number),
    Text(String),
}

/// `logging.flushFrequency`: a duration string, or an integer of nanoseconds (section 2.1).
fn flush_frequency<'de, D: Deserializer<'de>>(deserializer: D) -> Result<GoDuration, D::Error> {
    match TextOrNumber::deserialize(deserializer)? {
        TextOrNumber::Number(number) => {
            let nanoseconds = number.as_i64().map(GoDuration::from_nanos);
            nanoseconds.ok_or_else(|| serde::de::Error::custom("not an integer of nanoseconds"))
        }
        TextOrNumber::Text(text) => text.parse().map_err(serde::de::Error::custom),
    }
}

/// A number that 32 bits can hold, as Go wants it.
fn finite<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f32, D::Error> {
    let value = f32::deserialize(deserializer)?;
    let fits = value.is_finite().then_some(value);
    fits.ok_or_else(|| serde::de::Error::custom("out of the range of 32 bits"))
}

/// Whole numbers without a decimal point, as Go writes them.
fn whole_or_float<S: Serializer>(value: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    if value.fract() == 0.0 && value.abs() < 1e9 {
        serializer.serialize_i64(*value as i64)
    } else {
        serializer.serialize_f32(*value)
    }
}

fn quantity<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Quantity, D::Error> {
    match TextOrNumber::deserialize(deserializer)? {
        TextOrNumber::Number(number) => number.to_string().parse(),
        // As upstream: blanks around it are not looked at.
        TextOrNumber::Text(text) => text.trim().parse(),
    }
    .map_err(serde::de::Error::custom)
}
