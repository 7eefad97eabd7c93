//! The grammar of `kubectl kubeweir`: kubectl's flags where it has one.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Ask Kubeweir's agents, node by node, from where you sit.
///
/// Exit codes: 0 all is well, 1 a problem or a difference was found, 2 a node was not reached or
/// nothing could be asked.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "kubectl-kubeweir",
    bin_name = "kubectl kubeweir",
    version,
    max_term_width = 100,
    disable_help_subcommand = true
)]
pub struct Desk {
    /// Where the agents are.
    #[command(flatten)]
    pub reach: Reach,
    /// What is asked.
    #[command(subcommand)]
    pub command: Command,
}

/// Which cluster, which nodes, which agents.
#[derive(Debug, Clone, Args)]
pub struct Reach {
    /// The kubeconfig instead of $KUBECONFIG or ~/.kube/config
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The context instead of the current one
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Only nodes with these labels
    #[arg(short = 'l', long, global = true, value_name = "LABELS")]
    pub selector: Option<String>,
    /// Form of the answer; text for a terminal without it
    #[arg(short = 'o', long, global = true, value_enum)]
    pub output: Option<Output>,
    /// Namespace of the agents' pods
    #[arg(long, global = true, value_name = "NAME", default_value = "kube-system")]
    pub agents_namespace: String,
    /// Labels of the agents' pods; those of the chart without it, or else kubeadm's k8s-app=kube-proxy
    #[arg(long, global = true, value_name = "LABELS")]
    pub agents_selector: Option<String>,
    /// How many nodes are asked at a time
    #[arg(long, global = true, value_name = "N", default_value = "32")]
    pub parallel: std::num::NonZeroUsize,
    /// How long a node may take, like 30s or 2m
    #[arg(long, global = true, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub timeout: Duration,
}

/// What is asked.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Show every agent: version, mode, last sync, conntrack, problems; and which nodes lag
    Status,
    /// Compare every node's kernel with what the API wants of it
    Diff(DiffArgs),
    /// Say where a connection goes and why, on every node; where nodes agree, once
    Explain(ExplainArgs),
    /// List the connections of a Service, an endpoint or a client, on every node
    Flows(FlowsArgs),
    /// Show new connections a second by Service, of all nodes together, where agents count them
    Top(TopArgs),
    /// Write what a bug report needs of every node into one archive, and what was missing
    Dump(DumpArgs),
    /// Print a completion script for a shell; kubectl itself asks a link to this program named kubectl_complete-kubeweir
    Completions {
        /// Which shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}

/// `kubectl kubeweir diff`.
#[derive(Debug, Clone, Args)]
pub struct DiffArgs {
    /// Only what belongs to Services of this namespace
    #[arg(short = 'n', long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Of every namespace, and what belongs to no Service; so without it, too
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
}

/// `kubectl kubeweir explain`.
#[derive(Debug, Clone, Args)]
pub struct ExplainArgs {
    /// Where the connection comes from: a Pod or an address
    #[arg(value_name = "[NAMESPACE/]POD|ADDR")]
    pub from: String,
    /// Where it goes: a Service and one of its ports, by name or number, or an address
    #[arg(value_name = "[NAMESPACE/]SERVICE[:PORT][/PROTOCOL]|ADDR:PORT[/PROTOCOL]")]
    pub to: String,
    /// Namespace of names without one; the context's without it
    #[arg(short = 'n', long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Ask this node alone
    #[arg(long, value_name = "NODE")]
    pub from_node: Option<String>,
}

/// `kubectl kubeweir flows`.
#[derive(Debug, Clone, Args)]
pub struct FlowsArgs {
    /// Whose: a Service or one of its ports, IP:PORT of an endpoint or a frontend, or the IP of a client or an endpoint; of every Service without it
    #[arg(value_name = "[NAMESPACE/]SERVICE[:PORT]|ENDPOINT|CLIENT")]
    pub of: Option<String>,
    /// Namespace of a name without one; without a name, only flows to its Services
    #[arg(short = 'n', long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// To Services of every namespace; so without it, too
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
}

/// `kubectl kubeweir top`.
#[derive(Debug, Clone, Args)]
pub struct TopArgs {
    /// Only Services of this namespace
    #[arg(short = 'n', long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Of every namespace; so without it, too
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// How many Service ports to show
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub limit: usize,
}

/// `kubectl kubeweir dump`.
#[derive(Debug, Clone, Args)]
pub struct DumpArgs {
    /// The archive, which must not be there yet; kubeweir-TIME.tar without it
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Put names in the place of addresses, the same name for the same address
    #[arg(long)]
    pub redact: bool,
}

/// Form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Text with more columns.
    Wide,
    /// For programs.
    Json,
    /// The same.
    Yaml,
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed: jiff::SignedDuration = text.parse().map_err(|_| "write it like 30s or 2m")?;
    let parsed = Duration::try_from(parsed).ok().filter(|duration| !duration.is_zero());
    parsed.ok_or_else(|| "it has to be above 0".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_tree_is_sound() {
        Desk::command().debug_assert();
    }

    #[test]
    fn a_duration_is_written_as_with_kubectl() {
        for (text, seconds) in [("30s", 30), ("2m", 120), ("1h", 3600)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["0s", "-1s", "", "soon"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
