//! Kubeweir: a kube-proxy that programs nftables over netlink.
//!
//! The program is fixed, the cluster is data: a small set of chains is written once, and Services
//! and EndpointSlices become elements of a few named sets and maps.
//!
//! ```text
//! API server (api) / manifest directory (manifest)
//!    ─ wire: both encodings decode to model ─> inbox ─> store: objects, dirty services
//!    ─> topology: which endpoints this node may use (pure)
//!    ─> program: elements of each dirty service (pure)
//!    ─> engine: difference to what is applied (pure) ─> transaction
//!    ─> netlink ─> kernel
//!    ─> applied state; one value a turn ─> metrics, status, health, flows, events
//! ```
//!
//! | Layer | Modules | Must not know |
//! | --- | --- | --- |
//! | model | [`model`], [`backoff`] | everything else |
//! | core (pure) | [`topology`], [`ruleset`], [`program`], [`kernel`], [`engine`] | I/O, clocks, async, logging |
//! | adapters | [`source`], [`wire`], [`manifest`], [`api`], [`netlink`], [`conntrack`], [`node`], [`sysctl`], [`cleanup`], [`health`], [`metrics`], [`http_server`], [`localhost`] | how traffic is decided |
//! | what the agent tells | [`status`] | who asks |
//! | orchestration | [`sync`], [`agent`] | Kubernetes' own types |
//! | shell | [`config`], [`cli`], [`logging`], `main` | rules of traffic |
//! | faces for people | [`inspect`] (pure), [`command`] | how the agent runs |
//!
//! `tests/layering.rs` holds this table.

pub mod agent;
pub mod api;
pub mod backoff;
pub mod cleanup;
pub mod cli;
pub mod command;
pub mod config;
pub mod conntrack;
pub mod engine;
pub mod health;
pub mod http_server;
pub mod inspect;
pub mod kernel;
pub mod localhost;
pub mod logging;
pub mod manifest;
pub mod metrics;
pub mod model;
pub mod netlink;
pub mod node;
pub mod program;
pub mod ruleset;
pub mod source;
pub mod status;
pub mod sync;
pub mod sysctl;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod topology;
pub mod wire;
