//! The configuration: from flags and file to typed values.
//!
//! Place in the flow: `main` calls [`complete()`] with the flags and the file's text, sets up
//! logging from the completed object, then calls [`resolve()`]; everyone else sees [`Config`].
//!
//! ```text
//! flags (from cli) ─────┐
//!                      ├─> complete ─> Completed (v1alpha1 object) ─> validate + resolve ─> Config
//! file text ─> decode ─┘
//! ```
//!
//! Pure, but for [`mod@watch`]. Must not know rules of traffic, nftables or the API.

mod complete;
pub mod decode;
pub mod duration;
pub mod feature_gates;
pub mod flags;
mod resolve;
pub mod sanity;
mod traffic;
pub mod v1alpha1;
pub mod validate;
pub mod value;
pub mod version;
pub mod watch;
mod yaml;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::model::PerFamily;

pub use crate::model::address;
pub use complete::{CompleteError, Completed, NodeNameError, complete, node_name};
pub use feature_gates::{FeatureGates, Gate};
pub use resolve::{UNSET_MODE, resolve};
pub use traffic::Traffic;
pub use v1alpha1::KubeProxyConfiguration;
pub use validate::{Violation, Violations};

/// Whose behaviour the rules have; they are nftables in every mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProxyMode {
    /// Upstream's iptables mode, also if nothing is written (B-042).
    Iptables,
    /// Upstream's ipvs mode.
    Ipvs,
    /// Upstream's nftables mode.
    Nftables,
}

impl ProxyMode {
    /// From the name in flag or file; unknown names, which validation refuses, are iptables.
    fn from_name(name: &str) -> ProxyMode {
        match name {
            "nftables" => ProxyMode::Nftables,
            "ipvs" => ProxyMode::Ipvs,
            _ => ProxyMode::Iptables,
        }
    }
}

impl fmt::Display for ProxyMode {
    /// As `/proxyMode` answers.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ProxyMode::Iptables => "iptables",
            ProxyMode::Ipvs => "ipvs",
            ProxyMode::Nftables => "nftables",
        })
    }
}

/// How traffic from pods is recognised (section 5.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DetectLocal {
    /// By [`Config::cluster_cidrs`].
    ClusterCidr,
    /// By the node's podCIDRs.
    NodeCidr,
    /// By the interface it arrives on. The name may be longer than an interface name can be, and
    /// then never matches.
    BridgeInterface(String),
    /// By what the name of the interface it arrives on starts with.
    InterfaceNamePrefix(String),
}

/// Connection tracking sysctls; `None` and 0 leave the kernel's value alone (B-040).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConntrackConfig {
    /// Entries per core.
    pub max_per_core: u32,
    /// Least number of entries, whatever the cores.
    pub min: u32,
    /// Idle time of established TCP.
    pub tcp_established_timeout: Option<Duration>,
    /// Time in CLOSE_WAIT.
    pub tcp_close_wait_timeout: Option<Duration>,
    /// Whether packets outside the window are tolerated.
    pub tcp_be_liberal: bool,
    /// Time of unanswered UDP.
    pub udp_timeout: Option<Duration>,
    /// Time of answered UDP.
    pub udp_stream_timeout: Option<Duration>,
}

/// The proxy of NodePorts on loopback addresses (KEP-6032).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalhostProxy {
    /// Whether UDP is carried, which upstream refuses.
    pub udp: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    /// Where the proxy health server listens; `None` if it is off (B-007).
    pub healthz: Option<SocketAddr>,
    /// Where the metrics server listens.
    pub metrics: SocketAddr,
    /// Whether a failure to listen ends the process.
    pub hard_fail: bool,
    /// Whether profiles and the verbosity knob are offered.
    pub profiling: bool,
}

/// How to reach the API server.
#[derive(Debug, Clone, PartialEq)]
pub struct ClientConfig {
    pub kubeconfig: Option<PathBuf>,
    /// URL that wins over the kubeconfig's server; without both, in-cluster (B-013).
    pub master: Option<String>,
    /// Accept header instead of `content_type`.
    pub accept_content_types: Option<String>,
    /// Media type of requests.
    pub content_type: String,
    /// Requests a second; below 0 means no limit.
    pub qps: f32,
    /// Requests that may exceed `qps` for a moment.
    pub burst: u32,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Whose behaviour the rules have.
    pub mode: ProxyMode,
    /// No mode was written: see [`UNSET_MODE`].
    pub mode_unset: bool,
    /// Name of the node; empty means the kernel's host name: see [`node_name()`].
    pub hostname_override: String,
    /// What to take for the node's primary IP; unspecified means nothing (section 3.3).
    pub bind_address: IpAddr,
    /// Pod CIDRs, for [`DetectLocal::ClusterCidr`].
    pub cluster_cidrs: PerFamily<Option<IpNet>>,
    /// How traffic from pods is recognised.
    pub detect_local: DetectLocal,
    /// Which addresses serve NodePorts.
    pub nodeport_addresses: crate::node::nodeport::NodePortAddresses,
    /// Whether every service flow is masqueraded; from the active mode's section (B-041).
    pub masquerade_all: bool,
    /// Whether NodePorts are served on 127.0.0.1; never but in iptables mode, IPv4 only.
    pub localhost_nodeports: bool,
    /// NodePorts on loopback addresses by a proxy, where `nodeport_addresses` names those; `None`
    /// without its gate, and in other modes.
    pub localhost: Option<LocalhostProxy>,
    /// Longest time between full syncs.
    pub sync_period: Duration,
    /// Shortest time between syncs: zero unless one was written (B-039, B-193: a deviation).
    pub min_sync_period: Duration,
    /// Connection tracking sysctls.
    pub conntrack: ConntrackConfig,
    /// oom_score_adj of the process.
    pub oom_score_adj: i32,
    pub servers: ServerConfig,
    /// How to reach the API server.
    pub client: ClientConfig,
    /// Whether new connections are counted by service.
    pub service_counters: bool,
    /// Whether the tables are owned, on kernels that can.
    pub table_ownership: bool,
    /// Whether forwarded packets that conntrack calls invalid are dropped in every mode.
    pub drop_invalid: bool,
    /// After which time TCP connections to endpoints that are gone are ended, where a Service does
    /// not say.
    pub end_connections_after: Option<Duration>,
    pub gates: FeatureGates,
    /// What is worth a log line about all this; logged once by `main`.
    pub notes: Vec<Note>,
    /// The whole object, for [`shown`] and [`write_config`].
    pub object: KubeProxyConfiguration,
}

/// The object could not be written as YAML.
#[derive(Debug, thiserror::Error)]
#[error("cannot encode the configuration")]
pub struct EncodeError(#[source] Box<serde_saphyr::ser::Error>);

/// The object as a file that this program and upstream load (B-020).
pub fn write_config(object: &KubeProxyConfiguration) -> Result<String, EncodeError> {
    serde_saphyr::to_string(&shown(object)).map_err(|error| EncodeError(Box::new(error)))
}

/// The object as upstream shows it, in `/configz` and in files: keys in order, without some fields
/// that say nothing, and `null` for lists that nobody gave.
pub fn shown(object: &KubeProxyConfiguration) -> Value {
    let mut shown = serde_json::to_value(object).expect("the configuration is plain data");
    for (section, name) in [
        ("", "featureGates"),
        ("", "windowsRunAsService"),
        ("/logging/options/json", "splitStream"),
        ("/logging/options/text", "splitStream"),
    ] {
        if let Some(Value::Object(fields)) = shown.pointer_mut(section) {
            fields.retain(|field, value| field != name || (*value != json!({}) && *value != false));
        }
    }
    for list in ["/nodePortAddresses", "/ipvs/excludeCIDRs"] {
        if let Some(list) = shown.pointer_mut(list).filter(|list| **list == json!([])) {
            *list = Value::Null;
        }
    }
    shown
}

// Things worth a log line that are no failure: found by pure code, logged by `main`.

/// One log line in waiting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// How loudly it is said.
    pub level: NoteLevel,
    pub text: String,
}

/// How loudly a [`Note`] is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoteLevel {
    /// For the record.
    Info,
    /// Something may be mistaken.
    Warning,
    /// Something is mistaken, and the process goes on.
    Error,
}

impl Note {
    pub fn info(text: String) -> Note {
        Note { level: NoteLevel::Info, text }
    }

    pub fn warning(text: String) -> Note {
        Note { level: NoteLevel::Warning, text }
    }

    pub fn error(text: String) -> Note {
        Note { level: NoteLevel::Error, text }
    }

    pub fn log(&self) {
        match self.level {
            NoteLevel::Info => tracing::info!("{}", self.text),
            NoteLevel::Warning => tracing::warn!("{}", self.text),
            NoteLevel::Error => tracing::error!("{}", self.text),
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
