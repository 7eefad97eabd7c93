//! Metrics: what is counted and measured, by upstream's names and by our own.
//!
//! Place in the flow: everybody with effects records here through typed methods, so that no name or
//! label is spelled anywhere else; [`server`] exports. A registry of our own, no globals. Nothing
//! here knows when something ought to be recorded.
//!
//! Labelled metrics appear in a scrape with their first observation, as upstream's do (section 9.2).

mod agent;
mod client;
mod conntrack;
mod definition;
mod exposition;
mod localhost;
mod process;
mod proxy;
mod rules;
pub mod server;
mod services;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use jiff::Timestamp;
use prometheus::Registry;

pub use agent::AgentMetrics;
pub use client::{ClientMetrics, Request};
pub use conntrack::ConntrackSource;
pub use definition::{MetricDoc, MetricKind, Mode, Stability};
pub use exposition::Exposition;
pub use localhost::{LocalhostMetrics, OpenConnection, RefusedSource};
pub use process::{BuildInfo, FeatureStage, ProcessMetrics, Slis};
pub use proxy::{NoLocalEndpoints, ProxyMetrics};
pub use rules::{RuleCounts, RuleSource};
pub use services::{ServiceCount, ServiceSource};

use conntrack::ConntrackCollector;
use definition::Registrar;
use localhost::RefusedCollector;
use rules::RuleCollector;
use services::ServiceFamily;

/// All metrics of the process.
pub struct Metrics {
    /// Upstream's `kubeproxy_*`.
    pub proxy: ProxyMetrics,
    /// Kubeweir's `kubeweir_*`.
    pub agent: AgentMetrics,
    /// About NodePorts on loopback addresses.
    pub localhost: LocalhostMetrics,
    /// The API client's `rest_client_*`.
    pub client: ClientMetrics,
    /// Feature gates.
    pub process: ProcessMetrics,
    /// What `/metrics/slis` serves.
    pub slis: Slis,
    rules: Arc<OnceLock<RuleSource>>,
    connections: OnceLock<ServiceFamily>,
    service_drops: OnceLock<ServiceFamily>,
    registry: Registry,
    docs: Vec<MetricDoc>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("registry", &self.registry).finish_non_exhaustive()
    }
}

impl Metrics {
    /// The metrics that exist in a mode, all at zero. `started` is when the process started.
    pub fn new(mode: Mode, build: &BuildInfo, started: Timestamp) -> Self {
        let registry = Registry::new();
        let mut r = Registrar::new(&registry, mode);
        let proxy = ProxyMetrics::register(&mut r, mode);
        let agent = AgentMetrics::register(&mut r);
        let localhost = LocalhostMetrics::register(&mut r);
        let client = ClientMetrics::register(&mut r);
        r.announce(localhost::refused_spec(), MetricKind::Counter);
        let of_services = services::connections().into_iter().chain(services::drops());
        of_services.for_each(|(spec, kind)| r.announce(spec, kind));
        conntrack::specs().for_each(|(spec, kind)| r.announce(spec, kind));
        let rules = Arc::new(OnceLock::new());
        let collector = RuleCollector::announced(&mut r, mode, rules.clone());
        registry.register(Box::new(collector)).expect("names are ours, each used once");
        let process = ProcessMetrics::register(&mut r, build);
        let docs = r.into_docs();
        let slis = Slis::new(mode, started.as_duration().as_secs_f64());
        let (connections, service_drops) = (OnceLock::new(), OnceLock::new());
        Metrics {
            proxy,
            agent,
            localhost,
            client,
            process,
            slis,
            rules,
            connections,
            service_drops,
            registry,
            docs,
        }
    }

    /// From now on exports connections per service port, at most `limit` series. Only the first source
    /// counts.
    pub fn export_connections(&self, source: ServiceSource, limit: usize) {
        let _ =
            self.connections.set(ServiceFamily { specs: services::connections(), source, limit });
    }

    /// From now on exports what is not let through per service port, in the same way.
    pub fn export_service_drops(&self, source: ServiceSource, limit: usize) {
        let _ = self.service_drops.set(ServiceFamily { specs: services::drops(), source, limit });
    }

    /// From now on exports what the rules refused to NodePorts on loopback addresses. Called at most
    /// once.
    pub fn export_refused(&self, source: RefusedSource) {
        let collector = RefusedCollector::new(source);
        self.registry.register(Box::new(collector)).expect("called at most once, names are ours");
    }

    /// From now on exports what the rules counted. Only the first source counts.
    pub fn export_rule_counts(&self, source: RuleSource) {
        let _ = self.rules.set(source);
    }

    /// From now on exports the kernel's figures about conntrack. Called at most once.
    pub fn export_conntrack(&self, source: ConntrackSource) {
        let collector = ConntrackCollector::new(source);
        self.registry.register(Box::new(collector)).expect("called at most once, names are ours");
    }

    /// A scrape of everything. May block in the sources handed in above.
    pub fn scrape(&self, exposition: Exposition) -> Result<Vec<u8>, prometheus::Error> {
        let mut body = exposition.encode(&self.registry.gather())?;
        for services in
            [&self.connections, &self.service_drops].into_iter().filter_map(OnceLock::get)
        {
            services.write(exposition, &mut body);
        }
        Ok(body)
    }
}

/// Every metric of every mode, sorted by name: for documentation and to check dashboards with.
///
/// Shape: what `/metrics` and `/metrics/slis` can export, each name once; `modes` says in which modes.
pub fn reference() -> Vec<MetricDoc> {
    let mut by_name: BTreeMap<String, MetricDoc> = BTreeMap::new();
    for mode in Mode::ALL {
        let metrics = Metrics::new(mode, &BuildInfo::default(), Timestamp::UNIX_EPOCH);
        for doc in metrics.docs.into_iter().chain(metrics.slis.docs) {
            let known =
                by_name.entry(doc.name.clone()).or_insert(MetricDoc { modes: vec![], ..doc });
            if !known.modes.contains(&mode) {
                known.modes.push(mode);
            }
        }
    }
    by_name.into_values().collect()
}
