//! The ruleset: a fixed program of chains, and the sets and maps that hold the cluster.
//!
//! Place in the flow: pure, between [`crate::topology`]'s lists and [`crate::engine`]'s differences.
//! Every chain, rule, set and element that Kubeweir writes is born here: chains and rules in
//! [`chains`] and, written only when needed, in [`extension`], sets in [`set`], counters in [`counter`], the elements of services in [`placement`], the few objects that only one
//! service has in [`objects`]. `rules/README.md` walks
//! through the result hook by hook.

pub mod chains;
pub mod counter;
pub mod extension;
pub mod objects;
pub mod options;
pub mod placement;
pub mod rule;
pub mod set;
pub mod slots;

pub use chains::{Program, RuleId, program};
pub use counter::CounterId;
pub use extension::{Extension, ExtensionObjects, ended};
pub use objects::{Role, ServiceObjects, clients_map, service_objects};
pub use options::{LocalPods, LocalhostNodePorts, NodeAddressing, NodePortMatch, RuleOptions};
pub use placement::{
    Frontend, FrontendAt, FrontendKey, FrontendKind, Placement, comment, elements,
};
pub use placement::{LocalhostPort, localhost_port};
pub use set::{Class, FrontendSpace, ListScope, SetId};
pub use slots::Slots;
