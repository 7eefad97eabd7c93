//! What the metrics server shows besides metrics, and how settings translate between modules.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use jiff::Timestamp;

use super::drops::{self, LastMinute};
use super::{Launch, pressure};
use crate::config::feature_gates::{Gate, Stage};
use crate::config::{ConntrackConfig, ProxyMode};
use crate::kernel::Kernel;
use crate::metrics::server::{Pages, Statusz};
use crate::metrics::{BuildInfo, FeatureStage, Metrics, Mode, ServiceConnections};
use crate::model::{Family, ObjectName, Protocol, ServicePortName};
use crate::netlink::NetlinkKernel;
use crate::program::{FrontendSpace, SetId};
use crate::status::{PATH, SharedStatus};
use crate::sysctl::ConntrackSettings;

/// Most series of connection counters in one scrape.
const CONNECTION_SERIES: usize = 10_000;

/// The metrics of the configured mode.
pub fn metrics(launch: &Launch, started: Timestamp) -> Metrics {
    let mode = match launch.config.mode {
        ProxyMode::Nftables => Mode::Nftables,
        ProxyMode::Iptables => Mode::Iptables,
        ProxyMode::Ipvs => Mode::Ipvs,
    };
    let build = BuildInfo {
        major: crate::config::version::MAJOR.to_owned(),
        minor: crate::config::version::MINOR.to_owned(),
        git_version: launch.version.clone(),
        git_commit: option_env!("KUBEWEIR_COMMIT").unwrap_or_default().to_owned(),
        git_tree_state: String::new(),
        build_date: option_env!("KUBEWEIR_BUILD_DATE").unwrap_or_default().to_owned(),
        compiler_version: "rustc".to_owned(),
        platform: format!("linux/{}", std::env::consts::ARCH),
    };
    let metrics = Metrics::new(mode, &build, started);
    for (name, stage, enabled) in launch.config.gates.iter() {
        let stage = match stage {
            Stage::Alpha => FeatureStage::Alpha,
            Stage::Beta => FeatureStage::Beta,
            Stage::Ga { .. } => FeatureStage::Ga,
            Stage::Deprecated => FeatureStage::Deprecated,
        };
        metrics.process.feature(name, stage, enabled);
    }
    metrics.export_conntrack(Box::new(pressure::statistics));
    metrics.export_rule_counts(Box::new(drops::rule_counts));
    if launch.config.service_counters {
        metrics.export_connections(Box::new(connections), CONNECTION_SERIES);
    }
    if launch.config.localhost.is_some() {
        metrics.export_refused(Box::new(refused_on_localhost));
    }
    metrics
}

/// The counters of refusals, read as [`connections`] are.
fn refused_on_localhost() -> Vec<(Family, Protocol, u64)> {
    let Ok(mut kernel) = NetlinkKernel::open() else { return Vec::new() };
    let set = SetId::RefusedOnLocalhost.name();
    let mut counts = Vec::new();
    for family in Family::BOTH {
        let elements = kernel.dump_set(family, &set).unwrap_or_default();
        counts.extend(elements.iter().filter_map(|element| {
            Some((family, element.key.protocol_at(0)?, element.packets.unwrap_or(0)))
        }));
    }
    counts
}

/// The counters of all frontends, added up by service port. Runs on the scraping thread, with a socket of
/// its own, to close which it may have to wait for a commit, as [`super::drops`] says.
fn connections() -> Vec<ServiceConnections> {
    let Ok(mut kernel) = NetlinkKernel::open() else { return Vec::new() };
    let mut sums: BTreeMap<(String, u8, Family), u64> = BTreeMap::new();
    for family in Family::BOTH {
        for space in FrontendSpace::BOTH {
            let set = SetId::Connections(space).name();
            let protocol_at = match space {
                FrontendSpace::Services => family.address_len(),
                FrontendSpace::NodePorts => 0,
            };
            for element in kernel.dump_set(family, &set).unwrap_or_default() {
                let label = element.comment.as_deref().unwrap_or_default().to_owned();
                let protocol = element.key.protocol_at(protocol_at).map_or(0, |p| p.number());
                *sums.entry((label, protocol, family)).or_default() += element.packets.unwrap_or(0);
            }
        }
    }
    sums.into_iter()
        .filter_map(|((label, protocol, family), connections)| {
            let (namespace, rest) = label.split_once('/')?;
            let (service, port_name) = rest.split_once(':').unwrap_or((rest, ""));
            let port = ServicePortName {
                service: ObjectName::new(namespace, service),
                port: port_name.into(),
                protocol: Protocol::from_number(protocol)?,
            };
            Some(ServiceConnections { port, family, connections })
        })
        .collect()
}

/// The pages of the metrics server.
pub fn pages(
    launch: &Launch,
    status: &SharedStatus,
    last_minute: LastMinute,
    started: Timestamp,
) -> Pages {
    let config = &launch.config;
    let status = status.clone();
    let shown = move || {
        let mut status = status.get();
        let last_minute = last_minute.clone();
        async move {
            // Of the moment of the question.
            let asked = move || (pressure::statistics(), last_minute.drops());
            let (conntrack, drops) = tokio::task::spawn_blocking(asked).await.unwrap_or_default();
            status.conntrack = conntrack;
            for (family, drops) in drops.into_iter().flatten() {
                if let Some(shown) = status.families.get_mut(&family.to_string()) {
                    shown.dropped = drops;
                }
            }
            let body = serde_json::to_string(&status).expect("the status is plain data");
            ([(CONTENT_TYPE, "application/json")], body)
        }
    };
    let log = launch.log.clone();
    Pages {
        proxy_mode: config.mode.to_string(),
        configuration: crate::config::shown(&config.object),
        flags: config
            .gates
            .enabled(Gate::ComponentFlagz)
            .then(|| launch.flags.iter().cloned().collect()),
        status: config.gates.enabled(Gate::ComponentStatusz).then(|| Statusz {
            started,
            compiler_version: "rustc".to_owned(),
            binary_version: launch.version.clone(),
            emulation_version: format!(
                "{}.{}",
                crate::config::version::MAJOR,
                crate::config::version::MINOR
            ),
        }),
        profiling: config
            .servers
            .profiling
            .then(|| Arc::new(move |v: i32| log.set_verbosity(u32::try_from(v).unwrap_or(0))) as _),
        extra: Router::new().route(PATH, get(shown)),
    }
}

/// The conntrack section as the sysctl module takes it.
pub fn conntrack_settings(config: &ConntrackConfig) -> ConntrackSettings {
    let or_zero = |timeout: Option<Duration>| timeout.unwrap_or_default();
    ConntrackSettings {
        max_per_core: config.max_per_core,
        min: config.min,
        tcp_established: or_zero(config.tcp_established_timeout),
        tcp_close_wait: or_zero(config.tcp_close_wait_timeout),
        tcp_be_liberal: config.tcp_be_liberal,
        udp: or_zero(config.udp_timeout),
        udp_stream: or_zero(config.udp_stream_timeout),
    }
}
