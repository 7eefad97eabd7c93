//! What the node is: its addresses, its families, its Node object.
//!
//! Place in the flow: start-up asks [`families`] which families to program and [`object`] which
//! addresses the node has; [`addresses`] then feeds interface addresses into the engine. The
//! deciding parts are pure; the readers beside them decide nothing. Nothing here knows Services.

pub mod addresses;
pub mod families;
pub mod nodeport;
pub mod object;
