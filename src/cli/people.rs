//! The sub-commands for people: argument structs only.
//!
//! Place in the flow: [`super::parse`] returns one of [`Command`]; other modules carry it out.
//! Knows nothing of what a command does.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::{Exit, proxy};
use crate::config::duration::GoDuration;
use crate::config::value::parse_ip_port_text;
use crate::config::version::VERSION;

/// Kubeweir: a kube-proxy that programs nftables over netlink.
///
/// Started as kube-proxy, or with flags first, it is the agent; see `kubeweir proxy --help`.
#[derive(Debug, Clone, Parser)]
#[command(name = "kubeweir", version = VERSION, max_term_width = 100, disable_version_flag = true)]
pub struct People {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// A sub-command.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Program this node from a directory of manifests, watched for changes; needs no cluster
    Run(RunArgs),
    /// Print what a node would get, as nft text; needs no root
    Render(RenderArgs),
    /// Compare the kernel's table with what it should be, or two renders: exit 0 equal, 1 different, 2 unknown
    Diff(DiffArgs),
    /// Walk the kernel's table as a packet would, and say where it goes and why
    Explain(ExplainArgs),
    /// List the connections of a Service, an endpoint or a client, or follow them as they come and go
    Flows(FlowsArgs),
    /// Show the state of the agent on this node
    Status(StatusArgs),
    /// Show new connections a second by service, when the agent counts them
    Top(TopArgs),
    /// Probe the kernel features and privileges that the agent needs
    Check(CheckArgs),
    /// After a crash of the agent: make its tables plain, rules unchanged, so that kube-proxy can follow
    Release,
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Print the manual page
    Man,
    /// Be the agent, with kube-proxy's flags; see `kubeweir proxy --help`
    #[command(disable_help_flag = true)]
    Proxy {
        /// kube-proxy's flags
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        flags: Vec<String>,
    },
}

/// Where objects come from: manifests, a cluster, or where the agent has them from.
#[derive(Debug, Clone, Default, Args)]
pub struct ObjectSource {
    /// A file or directory of manifests, or - for stdin; may be repeated
    #[arg(short = 'f', long = "filename", value_name = "PATH")]
    pub filenames: Vec<PathBuf>,
    /// Read the objects of a live cluster
    #[arg(long, value_name = "FILE", conflicts_with = "filenames")]
    pub kubeconfig: Option<PathBuf>,
    /// Objects, flags and configuration of the agent that runs here
    #[arg(long, conflicts_with_all = ["filenames", "kubeconfig"])]
    pub agent: bool,
}

/// What of a node's set-up shapes its rules; the same names as the agent's flags.
#[derive(Debug, Clone, Default, Args)]
pub struct NodeArgs {
    /// Name of the node whose rules are meant; this host's name without it
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// Configuration file of the agent; as with the agent, only --node and the logging flags win over it
    #[arg(long, value_name = "FILE")]
    pub config: Option<String>,
    /// Pod CIDRs, comma separated, one for each family
    #[arg(long, value_name = "CIDRS")]
    pub cluster_cidr: Option<String>,
    /// CIDRs of the addresses that serve NodePorts, and primary, localhost or all
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    pub nodeport_addresses: Vec<String>,
    /// ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix
    #[arg(long, value_name = "MODE")]
    pub detect_local_mode: Option<String>,
    /// Bridge of the pods, for BridgeInterface
    #[arg(long, value_name = "NAME")]
    pub pod_bridge_interface: Option<String>,
    /// What names of pod interfaces start with, for InterfaceNamePrefix
    #[arg(long, value_name = "PREFIX")]
    pub pod_interface_name_prefix: Option<String>,
    /// Masquerade every service flow
    #[arg(long)]
    pub masquerade_all: bool,
    /// iptables, ipvs or nftables: whose behaviour the rules have; nftables without it
    #[arg(long, value_name = "MODE", default_value = "nftables")]
    pub proxy_mode: String,
    /// Count new connections, and what is refused or dropped, by service: a new flow costs about 2 % more, a scrape about 1.5 us a
    /// service
    #[arg(long)]
    pub service_counters: bool,
}

/// `kubeweir run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Directory of Service, EndpointSlice, Node and ServiceCIDR objects, YAML or JSON
    #[arg(long, value_name = "DIR")]
    pub manifests: PathBuf,
    /// The node and its set-up.
    #[command(flatten)]
    pub node: NodeArgs,
    /// IP or IP:port of the metrics server
    #[arg(long, value_name = "ADDRESS", value_parser = parse_ip_port_text)]
    pub metrics_bind_address: Option<String>,
    /// IP or IP:port of the health server; empty turns it off
    #[arg(long, value_name = "ADDRESS", value_parser = parse_ip_port_text)]
    pub healthz_bind_address: Option<String>,
    /// Shortest time between commits, like 1s; commits at once without it
    #[arg(long, value_name = "DURATION")]
    pub min_sync_period: Option<GoDuration>,
    /// Do not own the tables, so that other programs can change them
    #[arg(long)]
    pub no_table_ownership: bool,
    /// Verbosity of the log
    #[arg(short = 'v', long = "v", value_name = "N", default_value_t = 0)]
    pub verbosity: u32,
    /// text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub logging_format: String,
}

impl NodeArgs {
    /// The same as flags of the agent, so that one set of rules turns both into a configuration.
    fn agent_flags(&self) -> Vec<String> {
        let mut flags = vec![
            format!("--proxy-mode={}", self.proxy_mode),
            format!("--masquerade-all={}", self.masquerade_all),
        ];
        if self.service_counters {
            flags.push("--service-counters=true".to_owned());
        }
        let values = [
            ("config", &self.config),
            ("hostname-override", &self.node),
            ("cluster-cidr", &self.cluster_cidr),
            ("detect-local-mode", &self.detect_local_mode),
            ("pod-bridge-interface", &self.pod_bridge_interface),
            ("pod-interface-name-prefix", &self.pod_interface_name_prefix),
        ];
        flags.extend(
            values.iter().filter_map(|(name, value)| {
                value.as_ref().map(|value| format!("--{name}={value}"))
            }),
        );
        flags.extend(
            self.nodeport_addresses.iter().map(|item| format!("--nodeport-addresses={item}")),
        );
        flags
    }

    /// The agent that would have this set-up: input of [`crate::config::complete()`].
    ///
    /// Errors: a value that the agent's flags do not take.
    pub fn as_agent(&self) -> Result<proxy::Parsed, Exit> {
        proxy::parse(&self.agent_flags())
    }
}

impl RunArgs {
    /// The agent that would run like this: input of [`crate::config::complete()`].
    ///
    /// Errors: a value that the agent's flags do not take.
    pub fn as_agent(&self) -> Result<proxy::Parsed, Exit> {
        let mut flags = self.node.agent_flags();
        flags.push(format!("--logging-format={}", self.logging_format));
        flags.push(format!("--v={}", self.verbosity));
        if let Some(address) = &self.metrics_bind_address {
            flags.push(format!("--metrics-bind-address={address}"));
        }
        match self.healthz_bind_address.as_deref() {
            Some("") => flags.push("--healthz-port=0".to_owned()),
            Some(address) => flags.push(format!("--healthz-bind-address={address}")),
            None => {}
        }
        if let Some(period) = self.min_sync_period {
            let name = if self.node.proxy_mode == "ipvs" { "ipvs" } else { "iptables" };
            flags.push(format!("--{name}-min-sync-period={period}"));
        }
        if self.no_table_ownership {
            flags.push("--table-ownership=false".to_owned());
        }
        proxy::parse(&flags)
    }
}

/// Form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// `kubeweir render`.
#[derive(Debug, Clone, Args)]
pub struct RenderArgs {
    /// Objects to render.
    #[command(flatten)]
    pub source: ObjectSource,
    /// The node and its set-up.
    #[command(flatten)]
    pub node: NodeArgs,
    /// Only what belongs to this service
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub service: Option<String>,
}

/// `kubeweir diff`.
#[derive(Debug, Clone, Args)]
pub struct DiffArgs {
    /// Two files of `kubeweir render` to compare; without them the kernel's table is compared
    #[arg(value_name = "RENDER", num_args = 2, conflicts_with_all = ["filenames", "kubeconfig", "agent"])]
    pub renders: Vec<PathBuf>,
    /// What the kernel should have.
    #[command(flatten)]
    pub source: ObjectSource,
    /// The node and its set-up.
    #[command(flatten)]
    pub node: NodeArgs,
    /// Only what belongs to this service
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub service: Option<String>,
    /// Form of the answer
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub output: Output,
}

/// `kubeweir explain`.
#[derive(Debug, Clone, Args)]
pub struct ExplainArgs {
    /// Where the packet comes from: an address, or namespace/pod with a source of objects
    #[arg(value_name = "SRC")]
    pub from: String,
    /// Where it goes: ADDRESS:PORT[/PROTOCOL], or namespace/service:port with a source of objects
    #[arg(value_name = "DST:PORT[/PROTOCOL]")]
    pub to: String,
    /// Interface it arrives on; the host itself dials without it, if the source is its address
    #[arg(long, value_name = "NAME")]
    pub interface: Option<String>,
    /// Where names are looked up.
    #[command(flatten)]
    pub source: ObjectSource,
    /// Form of the answer
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub output: Output,
}

/// `kubeweir flows`.
#[derive(Debug, Clone, Args)]
pub struct FlowsArgs {
    /// Whose: NAMESPACE/SERVICE or NAMESPACE/SERVICE:PORT, IP:PORT of an endpoint or a frontend, or the IP of a client or an endpoint; of every Service without it
    #[arg(value_name = "SERVICE|ENDPOINT|CLIENT")]
    pub of: Option<String>,
    /// Print every change as it happens
    #[arg(short = 'w', long)]
    pub watch: bool,
    /// Form of the answer
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub output: Output,
}

/// `kubeweir status`.
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// Metrics address of the agent; port 10249 if there is only an IP
    #[arg(long, value_name = "IP[:PORT]", default_value = "127.0.0.1:10249")]
    pub address: String,
    /// The metrics address that the agent that runs here was started with
    #[arg(long, conflicts_with = "address")]
    pub agent: bool,
    /// Refresh every second
    #[arg(short = 'w', long)]
    pub watch: bool,
    /// Form of the answer
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub output: Output,
}

/// `kubeweir top`.
#[derive(Debug, Clone, Args)]
pub struct TopArgs {
    /// Metrics address of the agent; port 10249 if there is only an IP
    #[arg(long, value_name = "IP[:PORT]", default_value = "127.0.0.1:10249")]
    pub address: String,
    /// The metrics address that the agent that runs here was started with
    #[arg(long, conflicts_with = "address")]
    pub agent: bool,
    /// How many services to show
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    pub limit: usize,
    /// Measure once and exit
    #[arg(long)]
    pub once: bool,
    /// Form of the answer
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub output: Output,
}

/// `kubeweir check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// Form of the answer
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub output: Output,
}

/// `kubeweir completions`.
#[derive(Debug, Clone, Args)]
pub struct CompletionsArgs {
    /// Which shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// A shell with completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// bash.
    Bash,
    /// zsh.
    Zsh,
    /// fish.
    Fish,
}
