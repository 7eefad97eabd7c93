//! What the node's traffic survives: the real binary on a lab's node, killed, replaced, interfered
//! with and given neighbours, while clients dial.

// Tests may panic, their helpers too.
#![allow(clippy::unwrap_used)]

mod clients;
mod firewalls;
mod guests;
mod hostile;
mod kernel;
mod manifests;
mod neighbours;
mod nfqueue;
mod node;
mod ownership;
mod privilege;
mod restart;
mod soak;
mod start;

#[path = "../scrape/mod.rs"]
#[allow(dead_code)]
mod scrape;
