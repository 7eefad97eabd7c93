//! A valid object to the [`Config`] that the rest of the program uses.
//!
//! Place in the flow: after [`super::validate`]. Pure. Whatever depends on the mode is decided here
//! and nowhere else: which section counts, which NodePort addresses are left (reference 2.2, 5.3).

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::address::{parse_cidr, parse_ip, parse_ip_port};
use super::complete::{Completed, sync_periods, without_effect};
use super::duration::GoDuration;
use super::feature_gates::Gate;
use super::validate::{Violations, validate};
use super::{
    ClientConfig, Config, ConntrackConfig, DetectLocal, LocalhostProxy, Note, ProxyMode,
    ServerConfig,
};
use crate::model::{Family, PerFamily};
use crate::node::nodeport::{NodePortAddress, NodePortAddresses};

/// KEP-5343: said where `mode` is not written, in the log and as an Event.
pub const UNSET_MODE: &str = "The proxy mode is not set, so iptables mode is used. Kubernetes 1.40 will \
                              use nftables mode here; set the mode (--proxy-mode, or mode in the \
                              configuration) to keep iptables mode";

/// Validates and resolves.
///
/// Errors: every rule of section 2.3 that is broken.
pub fn resolve(completed: Completed) -> Result<Config, Violations> {
    validate(&completed)?;
    let Completed { object, cluster_cidrs, master, mode_unset, gates, mut notes } = completed;
    let mode = ProxyMode::from_name(&object.mode);
    let (sync_period, min_sync_period) = sync_periods(&object);
    let localhost_nodeports =
        mode == ProxyMode::Iptables && object.iptables.localhost_node_ports.unwrap_or(true);
    let localhost = (mode == ProxyMode::Nftables
        && gates.enabled(Gate::NfTablesLocalhostNodePorts))
    .then_some(LocalhostProxy { udp: object.kubeweir.localhost_udp });
    if mode_unset {
        notes.push(Note::warning(UNSET_MODE.to_owned()));
    }
    if mode != ProxyMode::Nftables {
        notes.push(Note::info(format!(
            "Mode {mode}: rules are programmed as nftables, with the behaviour of that mode"
        )));
    }
    notes.extend(without_effect(&object));
    Ok(Config {
        mode,
        mode_unset,
        hostname_override: object.hostname_override.clone(),
        bind_address: parse_ip(&object.bind_address).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        cluster_cidrs: first_of_family(&cluster_cidrs),
        detect_local: detect_local(&object),
        nodeport_addresses: nodeport_addresses(&object.node_port_addresses),
        masquerade_all: match mode {
            ProxyMode::Nftables => object.nftables.masquerade_all,
            ProxyMode::Iptables | ProxyMode::Ipvs => object.iptables.masquerade_all,
        },
        localhost_nodeports,
        localhost,
        sync_period: sync_period.to_std(),
        min_sync_period: min_sync_period.to_std(),
        conntrack: conntrack(&object.conntrack),
        oom_score_adj: object.oom_score_adj.unwrap_or(-999),
        servers: ServerConfig {
            healthz: parse_ip_port(&object.healthz_bind_address),
            metrics: parse_ip_port(&object.metrics_bind_address)
                .expect("validation refuses anything but IP:port"),
            hard_fail: object.bind_address_hard_fail,
            profiling: object.enable_profiling,
        },
        client: client(&object.client_connection, master),
        service_counters: object.kubeweir.service_counters,
        table_ownership: object.kubeweir.table_ownership.unwrap_or(true),
        drop_invalid: object.kubeweir.drop_invalid,
        end_connections_after: Some(object.kubeweir.end_connections_after)
            .filter(|after| !after.is_zero())
            .map(GoDuration::to_std),
        gates,
        notes,
        object,
    })
}

fn first_of_family(cidrs: &[String]) -> PerFamily<Option<IpNet>> {
    let parsed: Vec<IpNet> = cidrs.iter().filter_map(|cidr| parse_cidr(cidr)).collect();
    PerFamily::from_fn(|family| parsed.iter().find(|net| Family::of_net(net) == family).copied())
}

fn detect_local(object: &super::v1alpha1::KubeProxyConfiguration) -> DetectLocal {
    match object.detect_local_mode.as_str() {
        "NodeCIDR" => DetectLocal::NodeCidr,
        "BridgeInterface" => {
            DetectLocal::BridgeInterface(object.detect_local.bridge_interface.clone())
        }
        "InterfaceNamePrefix" => {
            DetectLocal::InterfaceNamePrefix(object.detect_local.interface_name_prefix.clone())
        }
        _ => DetectLocal::ClusterCidr,
    }
}

/// Validated before: what is not a keyword is a CIDR.
fn nodeport_addresses(items: &[String]) -> NodePortAddresses {
    let entry = |item: &String| {
        NodePortAddress::keyword(item).or_else(|| parse_cidr(item).map(NodePortAddress::Cidr))
    };
    NodePortAddresses(items.iter().filter_map(entry).collect())
}

fn conntrack(section: &super::v1alpha1::Conntrack) -> ConntrackConfig {
    let count = |value: Option<i32>| u32::try_from(value.unwrap_or(0)).unwrap_or(0);
    let set = |value: GoDuration| (!value.is_zero()).then(|| value.to_std());
    ConntrackConfig {
        max_per_core: count(section.max_per_core),
        min: count(section.min),
        tcp_established_timeout: set(section.tcp_established_timeout.unwrap_or_default()),
        tcp_close_wait_timeout: set(section.tcp_close_wait_timeout.unwrap_or_default()),
        tcp_be_liberal: section.tcp_be_liberal,
        udp_timeout: set(section.udp_timeout),
        udp_stream_timeout: set(section.udp_stream_timeout),
    }
}

fn client(section: &super::v1alpha1::ClientConnection, master: String) -> ClientConfig {
    let written = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    ClientConfig {
        kubeconfig: written(&section.kubeconfig).map(Into::into),
        master: written(&master),
        accept_content_types: written(&section.accept_content_types),
        content_type: section.content_type.clone(),
        qps: section.qps,
        burst: u32::try_from(section.burst).unwrap_or(0),
    }
}
