//! What the metrics server shows besides metrics, and how settings translate between modules.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use jiff::Timestamp;

use super::Launch;
use super::drops::{self, LastMinute};
use super::figures::Figures;
use super::per_service::PerService;
use crate::config::feature_gates::{Gate, Stage};
use crate::config::{ConntrackConfig, ProxyMode};
use crate::kernel::DumpError;
use crate::metrics::server::{Pages, Statusz};
use crate::metrics::{BuildInfo, FeatureStage, Metrics, Mode, ServiceCount};
use crate::model::{Family, Protocol};
use crate::netlink::Counters;
use crate::program::{FrontendSpace, SetId};
use crate::status::{PATH, SharedStatus};
use crate::sysctl::ConntrackSettings;

/// Most series of one metric by service port in one scrape.
const SERVICE_SERIES: usize = 10_000;

/// The metrics of the configured mode.
pub fn metrics(launch: &Launch, figures: &Figures, started: Timestamp) -> Metrics {
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
    let asked = figures.clone();
    metrics.export_conntrack(Box::new(move || asked.conntrack()));
    let asked = figures.clone();
    metrics.export_rule_counts(Box::new(move || drops::rule_counts(&asked)));
    if launch.config.service_counters {
        let asked = figures.clone();
        let sets = FrontendSpace::BOTH.map(SetId::Connections);
        let connections = move |each: &mut dyn FnMut(ServiceCount<'_>)| {
            let read = move |counters: &mut Counters| PerService::read(counters, &sets);
            asked.counters(read).unwrap_or_default().each(None, each);
        };
        metrics.export_connections(Box::new(connections), SERVICE_SERIES);
        let asked = figures.clone();
        let drops = move |each: &mut dyn FnMut(ServiceCount<'_>)| {
            for (reason, found) in asked.counters(drops::by_service).unwrap_or_default() {
                found.each(Some(reason.as_str()), each);
            }
        };
        metrics.export_service_drops(Box::new(drops), SERVICE_SERIES);
    }
    if launch.config.localhost.is_some() {
        let asked = figures.clone();
        let refused = move || asked.counters(refused_on_localhost).unwrap_or_default();
        metrics.export_refused(Box::new(refused));
    }
    metrics
}

/// The counters of refusals.
fn refused_on_localhost(
    counters: &mut Counters,
) -> Result<Vec<(Family, Protocol, u64)>, DumpError> {
    let set = SetId::RefusedOnLocalhost.name();
    let mut counts = Vec::new();
    for family in Family::BOTH {
        counters.elements(family, &set, |element| {
            let protocol = element.key.protocol_at(0);
            counts.extend(protocol.map(|protocol| (family, protocol, element.packets)));
        })?;
    }
    Ok(counts)
}

/// The pages of the metrics server.
pub fn pages(
    launch: &Launch,
    figures: &Figures,
    status: &SharedStatus,
    last_minute: LastMinute,
    started: Timestamp,
) -> Pages {
    let config = &launch.config;
    let (figures, status) = (figures.clone(), status.clone());
    let shown = move || {
        let mut status = status.get();
        let (figures, last_minute) = (figures.clone(), last_minute.clone());
        async move {
            // Of the moment of the question.
            let asked = move || (figures.conntrack(), last_minute.drops(&figures));
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
