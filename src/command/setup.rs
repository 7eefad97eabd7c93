//! A node's set-up: the same flags and files as the agent's, turned into the same options.

use ipnet::IpNet;

use super::{CommandError, tell};
use crate::cli::people::NodeArgs;
use crate::config::feature_gates::Gate;
use crate::config::{self, Config, Traffic};
use crate::inspect::wanted::NodeSetup;
use crate::model::{Families, Node, NodeAddresses, Object};
use crate::node::object::NodeIps;
use crate::topology::Vantage;

/// Configuration and name of the node whose tables are meant.
pub struct Setup {
    /// The configuration.
    pub config: Config,
    /// The node's name.
    pub node: String,
}

/// Reads flags and the configuration file.
pub fn read(args: &NodeArgs) -> Result<Setup, CommandError> {
    let parsed = args.as_agent().map_err(CommandError::Flags)?;
    let text = match &args.config {
        Some(path) => Some(
            std::fs::read_to_string(path)
                .map_err(|source| CommandError::Read { path: path.into(), source })?,
        ),
        None => None,
    };
    let config = config::resolve(config::complete(&parsed.flags, text.as_deref())?)?;
    let host = nix::unistd::gethostname().unwrap_or_default();
    let node = config::node_name(&config.hostname_override, &host.to_string_lossy())?;
    Ok(Setup { config, node })
}

impl Setup {
    /// Gate AllowServiceExternalIPs.
    pub fn allow_external_ips(&self) -> bool {
        self.config.gates.enabled(Gate::AllowServiceExternalIps)
    }

    /// What shapes the tables. `assigned`: addresses of the node's interfaces, where they are known;
    /// otherwise those of its Node object stand for them.
    pub fn for_objects(
        self,
        objects: &[Object],
        assigned: Option<NodeAddresses>,
        families: Families,
        can_own: bool,
    ) -> NodeSetup {
        let node = objects.iter().find_map(|object| match object {
            Object::Node(node) if *node.name.name == *self.node => Some(&**node),
            _ => None,
        });
        let bind = Some(self.config.bind_address).filter(|address| !address.is_unspecified());
        let owned = can_own && self.config.table_ownership;
        let traffic = Traffic {
            node_ips: NodeIps::resolve(node, bind).ips,
            pod_cidrs: node.map_or_else(Vec::<IpNet>::new, |node| node.pod_cidrs.clone()),
            config: self.config,
        };
        let assigned = assigned.unwrap_or_else(|| addresses_of(node));
        let (options, hints) = traffic.options(&assigned);
        hints.iter().for_each(|hint| tell(&format!("note: {hint}\n")));
        NodeSetup {
            local_addresses: traffic.local_addresses(&assigned),
            options,
            vantage: Vantage {
                node: self.node.into(),
                zone: node.and_then(|node| node.zone.clone()),
            },
            families,
            owned,
        }
    }
}

fn addresses_of(node: Option<&Node>) -> NodeAddresses {
    let mut addresses = node.map(|node| node.addresses.clone()).unwrap_or_default();
    addresses.sort_unstable();
    addresses.dedup();
    NodeAddresses(addresses)
}
