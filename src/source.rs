//! The seam between sources of objects and the engine.
//!
//! Place in the flow: [`crate::api`] and [`crate::manifest`] call a [`Sink`]; the engine's inbox is
//! one, tests have their own. What of an object cannot be used goes the same way, so that there is
//! one place to count it.

use std::error::Error;

use tracing::{error, info};

use crate::model::{Change, Kind, Skip, SkipLevel};

/// Takes changes from a source.
pub trait Sink: Send + Sync {
    /// Takes one change. Never blocks for long: the implementation coalesces by object.
    fn deliver(&self, change: Change);

    /// A part of an object, or the whole of it, is not used. Says so in the log; who counts does that
    /// besides.
    fn skipped(&self, skip: &Skip) {
        report(skip);
    }

    /// How far the API server has told of a kind.
    fn heard(&self, _kind: Kind, _heard: Heard<'_>) {}

    /// Objects of a kind could not be read, which the log has already; they are tried again.
    fn failed(&self, _kind: Kind, _cause: &(dyn Error + 'static)) {}
}

/// A resourceVersion that a source has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard<'a> {
    /// That of an object which changed or went.
    Change(&'a str),
    /// That of a list, or of a bookmark: everything up to there is told.
    State(&'a str),
}

/// Says what of an object is not used (section 4.10).
pub fn report(skip: &Skip) {
    let Skip { kind, object, field, reason, level } = skip;
    match level {
        SkipLevel::Error => error!(%kind, %object, field, reason, "skipped part of an object"),
        SkipLevel::Info => info!(%kind, %object, field, reason, "skipped part of an object"),
    }
}
