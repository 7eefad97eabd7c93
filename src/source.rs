//! The seam between sources of objects and the engine.
//!
//! Place in the flow: [`crate::api`] and [`crate::manifest`] call a [`Sink`]; the engine's inbox is
//! one, tests have their own.

use crate::model::Change;

/// Takes changes from a source.
pub trait Sink: Send + Sync {
    /// Takes one change. Never blocks for long: the implementation coalesces by object.
    fn deliver(&self, change: Change);
}
