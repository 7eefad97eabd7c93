//! What the node's traffic survives: the real binary on a lab's node, killed, replaced, interfered
//! with and given neighbours, while clients dial.

mod clients;
mod hostile;
mod manifests;
mod neighbours;
mod node;
mod ownership;
mod privilege;
mod restart;

#[path = "../scrape/mod.rs"]
#[allow(dead_code)]
mod scrape;
