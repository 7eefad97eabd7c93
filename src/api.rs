//! The API server: what is read from it and what is written to it.
//!
//! Place in the flow: [`Watch`]es read Nodes, ServiceCIDRs, Services and EndpointSlices, decode them
//! with [`crate::wire`] and hand [`crate::model::Change`]s to a [`crate::source::Sink`]. [`Recorder`]
//! posts Events. [`observed_node`] lets the start wait for this node's own object.
//! Nothing here knows rules or what is done with a change.

mod access;
mod client;
mod connection;
mod crypto;
mod dial;
mod events;
mod machine;
mod node;
mod person;
mod proxy;
mod resource;
mod trust;
mod watch;

pub use access::ConnectionError;
pub use client::{Client, Exchange, Observe, RequestError, user_agent};
pub use connection::Options;
pub use events::{Event, Reason, Recorder, Regarding};
pub use machine::{Machine, Outcome, Refusal, Step};
pub use node::{NodeSink, ObservedNode, observed_node};
pub use person::{Person, PodError, addresses as addresses_of_pod, pod_addresses};
pub use resource::Request;
pub use watch::Watch;
