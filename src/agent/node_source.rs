//! Where objects come from, and this node's own object, which is needed before anything else.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;
use tracing::{error, info};

use super::{AgentError, Launch, Source};
use crate::api::{self, Client, Exchange, ObservedNode, Recorder, Watch, observed_node};
use crate::config::DetectLocal;
use crate::config::feature_gates::Gate;
use crate::manifest::Directory;
use crate::metrics::{Metrics, Request};
use crate::model::{Change, Kind, Node, Object, Skip};
use crate::node::object::{NodeStep, NodeWait};
use crate::source::{self, Heard, Sink};
use crate::status::SharedStatus;
use crate::sync::Inbox;

/// The source, opened, and the Node it showed.
pub struct NodeSource {
    /// This node's object, if there is one.
    pub node: Option<Arc<Node>>,
    /// The rest of the source.
    pub source: Opened,
}

/// A source that has not delivered anything but the Node.
pub enum Opened {
    /// The API server.
    Api {
        /// The connection.
        client: Client,
        /// This node's name.
        node: String,
        /// Gate AllowServiceExternalIPs.
        allow_external_ips: bool,
        /// Gate WatchListClient.
        streaming_lists: bool,
        /// Where it delivers.
        sink: Arc<dyn Sink>,
    },
    /// A directory.
    Manifests(Box<Directory>),
}

/// Opens the source and waits for the Node as section 3.2 says.
pub async fn open(
    launch: &Launch,
    node: &str,
    sink: Arc<dyn Sink>,
    metrics: &Arc<Metrics>,
) -> Result<NodeSource, AgentError> {
    let allow_external_ips = launch.config.gates.enabled(Gate::AllowServiceExternalIps);
    match &launch.source {
        Source::Manifests(directory) => {
            info!(directory = %directory.display(), "Reading manifests");
            let path = directory.clone();
            let reading = tokio::task::spawn_blocking(move || {
                Directory::open(path, allow_external_ips, sink)
            });
            let directory = match reading.await {
                Ok(directory) => directory?,
                Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
            };
            let node = directory.objects().find_map(|object| match object {
                Object::Node(found) if *found.name.name == *node => Some(found.clone()),
                _ => None,
            });
            Ok(NodeSource { node, source: Opened::Manifests(Box::new(directory)) })
        }
        Source::Api => {
            // Files may be slow and exec plugins slower: signals are heard meanwhile.
            let (options, observe) = (options(launch), observe(metrics.clone()));
            let client = tokio::task::spawn_blocking(move || Client::new(options, observe)).await;
            let client = client.expect("reading credentials does not panic")?;
            let (node_sink, mut seen) = observed_node(Arc::clone(&sink));
            let streaming_lists = launch.config.gates.enabled(Gate::WatchListClient);
            let watch = Watch::new(
                client.clone(),
                Kind::Node,
                node,
                allow_external_ips,
                Arc::new(node_sink),
            );
            tokio::spawn(watch.streaming(streaming_lists).run());
            let pod_cidrs = launch.config.detect_local == DetectLocal::NodeCidr;
            let found = wait(&mut seen, node, pod_cidrs).await?;
            let node = node.to_owned();
            let source = Opened::Api { client, node, allow_external_ips, streaming_lists, sink };
            Ok(NodeSource { node: found, source })
        }
    }
}

/// The inbox, the metric of what does not reach it, and how far the source has come.
pub struct Counted {
    pub inbox: Arc<Inbox>,
    pub metrics: Arc<Metrics>,
    pub status: SharedStatus,
}

impl Sink for Counted {
    fn deliver(&self, change: Change) {
        self.inbox.deliver(change);
    }

    fn skipped(&self, skip: &Skip) {
        source::report(skip);
        self.metrics.agent.skipped(skip);
    }

    fn heard(&self, kind: Kind, heard: Heard<'_>) {
        self.status.update(|status| status.heard.entry(kind.to_string()).or_default().take(heard));
    }
}

async fn wait(
    seen: &mut watch::Receiver<ObservedNode>,
    name: &str,
    pod_cidrs: bool,
) -> Result<Option<Arc<Node>>, AgentError> {
    // An API server that cannot be reached blocks here for ever, as upstream.
    if seen.wait_for(|seen| seen.listed).await.is_err() {
        std::future::pending::<()>().await;
    }
    let mut wait = NodeWait::new(Instant::now(), pod_cidrs);
    loop {
        let node = seen.borrow_and_update().node.clone();
        match wait.step(Instant::now(), node.as_deref()) {
            NodeStep::Proceed(missing) => {
                if let Some(missing) = missing {
                    error!(node = name, reason = %missing, "Going on with loopback node IPs");
                }
                return Ok(node);
            }
            NodeStep::Fail(source) => {
                return Err(AgentError::Node { node: name.to_owned(), source });
            }
            NodeStep::Wait(until) => {
                let left = until.saturating_duration_since(Instant::now());
                let _ = tokio::time::timeout(left, seen.changed()).await;
            }
        }
    }
}

fn options(launch: &Launch) -> api::Options {
    let client = &launch.config.client;
    api::Options {
        kubeconfig: client.kubeconfig.clone(),
        master: client.master.clone(),
        content_type: client.content_type.clone(),
        accept_content_types: client.accept_content_types.clone().unwrap_or_default(),
        qps: client.qps,
        burst: i32::try_from(client.burst).unwrap_or(i32::MAX),
        user_agent: api::user_agent(
            &launch.version,
            option_env!("KUBEWEIR_COMMIT").unwrap_or("unknown"),
        ),
    }
}

fn observe(metrics: Arc<Metrics>) -> api::Observe {
    Arc::new(move |exchange: &Exchange| {
        let method = exchange.method.as_str();
        metrics.client.requested(Request {
            method,
            host: &exchange.host,
            status: exchange.code,
            took: exchange.duration,
            request_bytes: exchange.request_bytes,
            response_bytes: exchange.response_bytes,
        });
        metrics.client.throttled(method, &exchange.host, exchange.throttled);
    })
}

impl Opened {
    /// Where Events go: nowhere without an API server.
    pub fn recorder(&self, node: &str) -> Option<Recorder> {
        match self {
            Opened::Api { client, .. } => Some(Recorder::start(client.clone(), node)),
            Opened::Manifests(_) => None,
        }
    }

    /// Starts delivering.
    pub fn start(self) -> Result<(), AgentError> {
        match self {
            Opened::Api { client, node, allow_external_ips, streaming_lists, sink } => {
                for kind in [Kind::ServiceCidr, Kind::Service, Kind::EndpointSlice] {
                    let sink = Arc::clone(&sink);
                    let watch = Watch::new(client.clone(), kind, &node, allow_external_ips, sink);
                    tokio::spawn(watch.streaming(streaming_lists).run());
                }
            }
            Opened::Manifests(directory) => drop(directory.follow()?),
        }
        Ok(())
    }
}
