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
//! | faces for people | [`inspect`] (pure), [`text`], [`command`], [`desk`] | how the agent runs |
//!
//! Two programs. The agent, with its sub-commands for people, is feature `agent`. [`desk`] is
//! `kubectl kubeweir`, feature `desk`, and uses only what has nothing of Linux.
//!
//! `tests/layering.rs` holds this table.

#[cfg(feature = "agent")]
pub mod agent;
pub mod api;
pub mod backoff;
#[cfg(feature = "agent")]
pub mod cleanup;
#[cfg(feature = "agent")]
pub mod cli;
#[cfg(feature = "agent")]
pub mod command;
#[cfg(feature = "agent")]
pub mod config;
pub mod conntrack;
#[cfg(feature = "desk")]
pub mod desk;
pub mod engine;
#[cfg(feature = "agent")]
pub mod health;
#[cfg(feature = "agent")]
pub mod http_server;
pub mod inspect;
pub mod kernel;
#[cfg(feature = "agent")]
pub mod localhost;
#[cfg(feature = "agent")]
pub mod logging;
#[cfg(feature = "agent")]
pub mod manifest;
#[cfg(feature = "agent")]
pub mod metrics;
pub mod model;
#[cfg(feature = "agent")]
pub mod netlink;
#[cfg(feature = "agent")]
pub mod node;
pub mod program;
pub mod ruleset;
pub mod source;
pub mod status;
#[cfg(feature = "agent")]
pub mod sync;
#[cfg(feature = "agent")]
pub mod sysctl;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod text;
pub mod topology;
pub mod wire;
