//! The flag table (section 1.3), as a struct that clap fills.
//!
//! Place in the flow: [`crate::cli`] fills it from a command line, [`super::complete()`] reads it. How a
//! command line is taken apart is not known here.
//!
//! Complete and in upstream's order of topics; the last two are this program's own. The help text
//! of a flag is the documentation of its field.
//!
//! Deviation from upstream: without being written, the minimum sync period is zero and not 1 s. A
//! commit here costs microseconds, and what arrives during one is coalesced (B-039, B-193).

use std::collections::BTreeSet;

use clap::Args;

use super::duration::GoDuration;
use super::v1alpha1::Quantity;
use super::value::{
    GateMap, Vmodule, parse_bool, parse_float32, parse_gates, parse_int32, parse_ip_port_text,
    parse_ip_text, parse_item, parse_vmodule,
};
use super::version::{self, VersionFlag};

/// Identifiers of the flags that are lists: repeated, comma separated, or both.
pub const LISTS: [&str; 2] = ["ipvs_exclude_cidrs", "nodeport_addresses"];

/// Identifier of the flag that is a map.
pub const GATES: &str = "feature_gates";

/// Every flag of the agent.
#[derive(Debug, Clone, Args)]
pub struct Flags {
    /// Names of the flags that were written on the command line.
    #[arg(skip)]
    pub given: BTreeSet<String>,
    /// Path of a KubeProxyConfiguration file, YAML or JSON. Other flags are then ignored, except --master, --hostname-override, the logging flags and the actions.
    #[arg(long, default_value = "")]
    pub config: String,
    /// Write the effective configuration to this file and exit.
    #[arg(long, default_value = "")]
    pub write_config_to: String,
    /// Remove the iptables, ipvs and nftables rules of kube-proxy and exit.
    #[arg(long, default_value = "false", value_parser = parse_bool, action = clap::ArgAction::Set)]
    pub cleanup: bool,
    /// Do the set-up that needs privileges and exit.
    #[arg(long, default_value = "false", value_parser = parse_bool, action = clap::ArgAction::Set)]
    pub init_only: bool,
    /// Print the version and exit: true, raw, or vX.Y.Z to report another build of the same release.
    #[arg(long, default_value = "false", value_parser = version::parse_flag)]
    pub version: VersionFlag,
    /// Comma separated name=bool; may be repeated.
    #[arg(long, value_parser = parse_gates, action = clap::ArgAction::Append)]
    pub feature_gates: Vec<GateMap>,
    /// Path of a kubeconfig; in-cluster configuration without it.
    #[arg(long, default_value = "")]
    pub kubeconfig: String,
    /// URL of the API server; wins over the kubeconfig, with --config too.
    #[arg(long, default_value = "")]
    pub master: String,
    /// Media type of API requests.
    #[arg(long, default_value = "application/vnd.kubernetes.protobuf")]
    pub kube_api_content_type: String,
    /// API requests a second.
    #[arg(long, default_value = "5", value_parser = parse_float32)]
    pub kube_api_qps: f32,
    /// API requests above the rate for a moment.
    #[arg(long, default_value = "10", value_parser = parse_int32)]
    pub kube_api_burst: i32,
    /// Name of this node instead of the host name; wins over --config.
    #[arg(long, default_value = "")]
    pub hostname_override: String,
    /// What to take for the node's primary IP; no socket is bound to it.
    #[arg(long, default_value = "0.0.0.0", value_parser = parse_ip_text)]
    pub bind_address: String,
    /// IP or IP:port of the health server.
    #[arg(long, default_value = "0.0.0.0:10256", value_parser = parse_ip_port_text)]
    pub healthz_bind_address: String,
    /// Port of the health server if its address has none; 0 turns it off.
    #[arg(long, default_value = "10256", hide = true, value_parser = parse_int32)]
    pub healthz_port: i32,
    /// IP or IP:port of the metrics server.
    #[arg(long, default_value = "127.0.0.1:10249", value_parser = parse_ip_port_text)]
    pub metrics_bind_address: String,
    /// Port of the metrics server if its address has none.
    #[arg(long, default_value = "10249", hide = true, value_parser = parse_int32)]
    pub metrics_port: i32,
    /// End the process if a server cannot listen.
    #[arg(long, default_value = "false", value_parser = parse_bool, action = clap::ArgAction::Set)]
    pub bind_address_hard_fail: bool,
    /// Offer profiles and the verbosity knob on the metrics server.
    #[arg(long, default_value = "false", value_parser = parse_bool, action = clap::ArgAction::Set)]
    pub profiling: bool,
    /// Accepted, must be the previous minor; no effect, no metric is hidden.
    #[arg(long, default_value = "")]
    pub show_hidden_metrics_for_version: String,
    /// iptables, ipvs or nftables; rules are nftables in each, the behaviour is the mode's.
    #[arg(long, default_value = "")]
    pub proxy_mode: String,
    /// Accepted and checked; masquerading needs no mark here.
    #[arg(long, default_value = "14", value_parser = parse_int32)]
    pub iptables_masquerade_bit: i32,
    /// Masquerade every service flow.
    #[arg(long, default_value = "false", value_parser = parse_bool, action = clap::ArgAction::Set)]
    pub masquerade_all: bool,
    /// Serve NodePorts on 127.0.0.1, in iptables mode.
    #[arg(long, default_value = "true", value_parser = parse_bool, action = clap::ArgAction::Set)]
    pub iptables_localhost_nodeports: bool,
    /// Longest time between full syncs, iptables and nftables mode.
    #[arg(long, default_value = "30s")]
    pub iptables_sync_period: GoDuration,
    /// Shortest time between syncs, iptables and nftables mode; upstream's default is 1s.
    #[arg(long, default_value = "0s")]
    pub iptables_min_sync_period: GoDuration,
    /// Longest time between full syncs, ipvs mode.
    #[arg(long, default_value = "30s")]
    pub ipvs_sync_period: GoDuration,
    /// Shortest time between syncs, ipvs mode; upstream's default is 1s.
    #[arg(long, default_value = "0s")]
    pub ipvs_min_sync_period: GoDuration,
    /// Accepted for ipvs mode.
    #[arg(long, default_value = "")]
    pub ipvs_scheduler: String,
    /// Accepted for ipvs mode, no effect.
    #[arg(long, value_delimiter = ',', value_parser = parse_item)]
    pub ipvs_exclude_cidrs: Vec<String>,
    /// Accepted for ipvs mode.
    #[arg(long, default_value = "false", value_parser = parse_bool, action = clap::ArgAction::Set)]
    pub ipvs_strict_arp: bool,
    /// Accepted for ipvs mode.
    #[arg(long, default_value = "0s")]
    pub ipvs_tcp_timeout: GoDuration,
    /// Accepted for ipvs mode.
    #[arg(long, default_value = "0s")]
    pub ipvs_tcpfin_timeout: GoDuration,
    /// Accepted for ipvs mode.
    #[arg(long, default_value = "0s")]
    pub ipvs_udp_timeout: GoDuration,
    /// ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix.
    #[arg(long, default_value = "")]
    pub detect_local_mode: String,
    /// Bridge of the pods, for BridgeInterface.
    #[arg(long, default_value = "")]
    pub pod_bridge_interface: String,
    /// What names of pod interfaces start with, for InterfaceNamePrefix.
    #[arg(long, default_value = "")]
    pub pod_interface_name_prefix: String,
    /// Pod CIDRs of the cluster, comma separated, one for each family.
    #[arg(long, default_value = "")]
    pub cluster_cidr: String,
    /// CIDRs of the addresses that serve NodePorts, and primary, localhost or all
    #[arg(long, value_delimiter = ',', value_parser = parse_item)]
    pub nodeport_addresses: Vec<String>,
    /// oom_score_adj of the process, -1000 to 1000.
    #[arg(long, default_value = "-999", value_parser = parse_int32)]
    pub oom_score_adj: i32,
    /// Conntrack entries per core; 0 leaves the limit alone.
    #[arg(long, default_value = "32768", value_parser = parse_int32)]
    pub conntrack_max_per_core: i32,
    /// Least number of conntrack entries.
    #[arg(long, default_value = "131072", value_parser = parse_int32)]
    pub conntrack_min: i32,
    /// Idle time of established TCP; 0 leaves it alone.
    #[arg(long, default_value = "24h0m0s")]
    pub conntrack_tcp_timeout_established: GoDuration,
    /// Time in CLOSE_WAIT; 0 leaves it alone.
    #[arg(long, default_value = "1h0m0s")]
    pub conntrack_tcp_timeout_close_wait: GoDuration,
    /// Tolerate packets outside the TCP window.
    #[arg(long, default_value = "false", value_parser = parse_bool, action = clap::ArgAction::Set)]
    pub conntrack_tcp_be_liberal: bool,
    /// Time of unanswered UDP; 0 leaves it alone.
    #[arg(long, default_value = "0s")]
    pub conntrack_udp_timeout: GoDuration,
    /// Time of answered UDP; 0 leaves it alone.
    #[arg(long, default_value = "0s")]
    pub conntrack_udp_timeout_stream: GoDuration,
    /// Accepted, no effect: changes are watched.
    #[arg(long, default_value = "15m0s")]
    pub config_sync_period: GoDuration,
    /// Verbosity of the log.
    #[arg(long, short, default_value = "0")]
    pub v: u32,
    /// Verbosity by source file, comma separated pattern=N; text format only.
    #[arg(long, default_value = "", value_parser = parse_vmodule)]
    pub vmodule: Vmodule,
    /// text or json.
    #[arg(long, default_value = "text")]
    pub logging_format: String,
    /// Accepted; lines are never held back.
    #[arg(long, default_value = "5s")]
    pub log_flush_frequency: GoDuration,
    /// Text format: errors to stderr, the rest to stdout; needs gate LoggingAlphaOptions.
    #[arg(long, default_value = "false", value_parser = parse_bool, action = clap::ArgAction::Set)]
    pub log_text_split_stream: bool,
    /// JSON format: errors to stderr, the rest to stdout; needs gate LoggingAlphaOptions.
    #[arg(long, default_value = "false", value_parser = parse_bool, action = clap::ArgAction::Set)]
    pub log_json_split_stream: bool,
    /// Accepted with gate LoggingAlphaOptions; lines are never held back.
    #[arg(long, default_value = "0")]
    pub log_text_info_buffer_size: Quantity,
    /// Accepted with gate LoggingAlphaOptions; lines are never held back.
    #[arg(long, default_value = "0")]
    pub log_json_info_buffer_size: Quantity,
    /// Accepted, no effect.
    #[arg(long, default_value = "/proc/sys/kernel/random/boot_id")]
    pub boot_id_file: String,
    /// Accepted, no effect.
    #[arg(long, default_value = "/etc/machine-id,/var/lib/dbus/machine-id")]
    pub machine_id_file: String,
    /// Count new connections, and packets that are refused or dropped, by service: a new flow costs about 2 % more, a scrape about 1.5 us a service; not in upstream, honoured with --config.
    #[arg(long, default_value = "false", value_parser = parse_bool, action = clap::ArgAction::Set)]
    pub service_counters: bool,
    /// Own the tables, on kernels from 6.9; not in upstream, honoured with --config.
    #[arg(long, default_value = "true", value_parser = parse_bool, action = clap::ArgAction::Set)]
    pub table_ownership: bool,
    /// Drop forwarded packets that conntrack calls invalid in nftables mode too, as iptables mode does: out-of-window packets of a masqueraded connection do not end it; not in upstream, honoured with --config.
    #[arg(long, default_value = "false", value_parser = parse_bool, action = clap::ArgAction::Set)]
    pub drop_invalid: bool,
    /// End TCP connections to endpoints that are gone after this time, unless their Service's annotation kubeweir.io/end-connections-after says otherwise; 0 never; not in upstream, honoured with --config.
    #[arg(long, default_value = "0s")]
    pub end_connections_after: GoDuration,
}

impl Flags {
    /// Whether a flag was written on the command line.
    pub fn is_given(&self, name: &str) -> bool {
        self.given.contains(name)
    }

    /// `--feature-gates`, all its occurrences together; the last setting of a gate wins.
    pub fn gates(&self) -> GateMap {
        GateMap::merge(&self.feature_gates)
    }
}
