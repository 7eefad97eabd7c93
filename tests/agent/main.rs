//! The binary itself, started as kube-proxy in a network namespace, against a scripted API server;
//! packets prove what it did.

// clippy.toml allows `unwrap` in test functions; this is for what they share.
#![allow(clippy::unwrap_used)]

#[path = "../http_client/mod.rs"]
mod http_client;
#[path = "../scrape/mod.rs"]
mod scrape;
#[path = "../upstream_metrics/mod.rs"]
mod upstream_metrics;

mod api_loss;
mod changes;
mod command_line;
mod conntrack;
mod flows;
mod ipvs;
mod kubeadm;
mod life;
mod localhost;
mod manifests;
mod meddler;
mod modes;
mod moved;
mod node;
mod objects;
mod quarantine;
mod secrets;
mod servers;
mod silence;
mod site;
mod table;
mod takeover;
mod udp;
