//! Starts the threads and tasks around the worker: netlink, monitor, interface addresses.
//!
//! Place in the flow: [`super::run`] calls it once the node is prepared; from then on everything
//! reaches the worker through the inbox.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{error, warn};

use super::retry::with_retries;
use super::subscribers::{self, Outlets};
use super::{AgentError, Launch, Traffic};
use crate::engine::Engine;
use crate::model::{Families, Node, NodeAddresses};
use crate::node::addresses;
use crate::node::nodeport::Hint;
use crate::program::NodeAddressing;
use crate::sync::{Inbox, Limits, Programmer, Survey, watch_foreign_changes};
use crate::text::with_causes;
use crate::topology::NodeTopology;

/// Pause before a broken stream of addresses is opened anew.
const ADDRESSES_RETRY: Duration = Duration::from_secs(1);

/// What the worker is about.
pub struct NodeIdentity {
    /// This node's name.
    pub node: Arc<str>,
    /// This node as it was at the start.
    pub object: Option<Arc<Node>>,
    /// Families to program.
    pub families: Families,
    /// Tables are to be owned.
    pub owned: bool,
    /// Configuration and node.
    pub traffic: Traffic,
}

/// Follows the interfaces' addresses and starts the worker's threads.
///
/// Returns the one that programs: it ends when the inbox is closed. The others end with the process.
pub async fn start(
    launch: &Launch,
    subject: NodeIdentity,
    outlets: Outlets,
    inbox: &Arc<Inbox>,
) -> Result<JoinHandle<()>, AgentError> {
    let mut addresses = follow_addresses().await?;
    let assigned = addresses.borrow_and_update().clone();
    let owned = subject.owned;
    let programmer = Programmer::spawn()?;
    with_retries("nf_tables", async || {
        let portid = programmer.open().await?;
        // Where others cannot be kept off the table, they are watched at least.
        if !owned {
            watch_foreign_changes(portid, inbox.clone()).await?;
        }
        Ok(())
    })
    .await?;
    let mut surveyor = Surveyor::new(subject.traffic.clone(), assigned);
    let addressing = surveyor.survey();
    let engine = engine(subject, &addressing);
    let limits = Limits {
        min_interval: launch.config.min_sync_period,
        retry: launch.config.sync_period,
        audit: Limits::AUDIT,
    };
    let subscribers = subscribers::all(outlets, &addressing);
    let survey = surveyor.into_survey();
    let programming = programmer.start(engine, inbox.clone(), survey, subscribers, limits);
    let inbox = inbox.clone();
    tokio::spawn(async move {
        while addresses.changed().await.is_ok() {
            inbox.set_addresses(addresses.borrow_and_update().clone());
        }
    });
    Ok(programming)
}

/// Interface addresses, now and after every change.
async fn follow_addresses() -> Result<watch::Receiver<NodeAddresses>, AgentError> {
    let (sender, receiver) = watch::channel(read_addresses().await?);
    tokio::spawn(async move {
        loop {
            match addresses::watch(sender.clone()).await {
                Ok(()) => return,
                Err(reason) => warn!(reason = with_causes(&reason), "Following addresses again"),
            }
            tokio::time::sleep(ADDRESSES_RETRY).await;
        }
    });
    Ok(receiver)
}

async fn read_addresses() -> Result<NodeAddresses, AgentError> {
    with_retries("the interfaces' addresses", async || Ok(addresses::read().await?)).await
}

fn engine(subject: NodeIdentity, addressing: &NodeAddressing) -> Engine {
    let zone = subject.object.as_ref().and_then(|node| node.zone.clone());
    let node_topology = NodeTopology { node: subject.node, zone };
    let options = addressing.options.clone();
    let mut engine = Engine::new(options, node_topology, subject.families, subject.owned);
    engine.set_local_addresses(&addressing.local_addresses);
    engine
}

/// Keeps what is known of where the node is reached.
pub struct Surveyor {
    traffic: Traffic,
    assigned: NodeAddresses,
    /// What an operator was told last.
    told: Vec<Hint>,
}

impl Surveyor {
    /// With the interfaces' addresses.
    pub fn new(traffic: Traffic, assigned: NodeAddresses) -> Self {
        Surveyor { traffic, assigned, told: Vec::new() }
    }

    /// What follows from it. New hints are logged.
    pub fn survey(&mut self) -> NodeAddressing {
        let (addressing, hints) = self.traffic.addressing(&self.assigned);
        for hint in hints.iter().filter(|hint| !self.told.contains(hint)) {
            error!("{hint}");
        }
        self.told = hints;
        addressing
    }

    /// For the worker, which tells of what is new.
    pub fn into_survey(mut self) -> Survey {
        Box::new(move |node: Option<&Node>, assigned: Option<NodeAddresses>| {
            if let Some(node) = node {
                self.traffic.follow(node);
            }
            self.assigned = assigned.unwrap_or_else(|| std::mem::take(&mut self.assigned));
            self.survey()
        })
    }
}
