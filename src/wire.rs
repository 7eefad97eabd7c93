//! Decodes what the API server sends, protobuf or JSON, into the model.
//!
//! Place in the flow: [`crate::api`] hands over bodies and stream chunks, [`crate::manifest`] parsed
//! documents; what leaves here is [`crate::model`]. Both encodings and manifests meet in one
//! conversion ([`convert`]), so that they cannot differ. Knows nothing of connections, files, clocks
//! or how traffic is decided.
//!
//! Bad input is never an error of the whole: an unusable part of an object, or an object, becomes a
//! [`Skip`] and the rest is used. A [`WireError`] means that a body or a frame as such is unreadable.

mod convert;
mod decode;
pub mod message;

use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use crate::model::{Hints, Kind, Object, ObjectName, Skip};

pub use decode::{Decoder, Unreadable};
pub use decode::{Frames, MAX_FRAME};
pub use message::Status;

/// How a body is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// `application/json`.
    Json,
    /// `application/vnd.kubernetes.protobuf`: magic and envelope around the message.
    Protobuf,
}

/// One object of a body or an event.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// Its name as written, even if no object came of it. Not checked for its charset then.
    pub name: ObjectName,
    /// `metadata.resourceVersion`, opaque; empty if absent.
    pub resource_version: String,
    /// The object; `None` when it must not be used. An object of this name that is already in use
    /// is to be deleted then.
    pub object: Option<Object>,
    /// Parts that were not used, or why the object as a whole was not.
    pub skips: Vec<Skip>,
}

/// The body of a LIST request: one page.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct List {
    /// `metadata.resourceVersion`, from which a watch continues.
    pub resource_version: String,
    /// `metadata.continue`; `None` on the last page.
    pub continue_token: Option<String>,
    /// `metadata.remainingItemCount`; `None` if the server did not count.
    pub remaining_item_count: Option<i64>,
    /// The usable objects, in the list's order.
    pub objects: Vec<Object>,
    /// What was not used of the list's objects.
    pub skips: Vec<Skip>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// ADDED or MODIFIED.
    Applied(Decoded),
    /// DELETED: it is gone, or left the selector.
    Deleted {
        name: ObjectName,
        /// The version of the deletion; a watch may resume from it.
        resource_version: String,
    },
    /// BOOKMARK: a version to resume from.
    Bookmark {
        resource_version: String,
        /// Whether it ends the initial events of a streaming list.
        initial_events_end: bool,
    },
    /// ERROR: the watch is over; code 410 means that its version is too old.
    Error(Status),
}

/// What was being decoded when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    List(Kind),
    Event(Kind),
    Status,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::List(kind) => write!(f, "{kind}List"),
            Part::Event(kind) => write!(f, "event of {kind}"),
            Part::Status => f.write_str("Status"),
        }
    }
}

/// A body or a frame that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("decoding the JSON of {part}")]
    Json {
        part: Part,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    #[error("decoding the protobuf of {part}")]
    Protobuf {
        part: Part,
        /// Where and why.
        #[source]
        source: prost::DecodeError,
    },
    #[error("decoding {part}: no Kubernetes protobuf envelope")]
    NoEnvelope { part: Part },
    /// The object of an event has no readable metadata, or a Status no readable fields.
    #[error("decoding the object of {part}")]
    Object {
        part: Part,
        /// Where and why.
        #[source]
        source: Unreadable,
    },
    #[error("expected {expected}, got kind {found:?}")]
    UnexpectedKind {
        expected: Part,
        /// `kind` of the body.
        found: String,
    },
    /// The server answered with a Status where something else was expected.
    #[error("the API server sent no {expected}")]
    Refused {
        expected: Part,
        #[source]
        source: Status,
    },
    #[error("unknown watch event type {0:?}")]
    UnknownEvent(String),
    #[error("a watch frame of {length} bytes or more exceeds the limit of {limit}")]
    FrameTooLong {
        /// Its length as far as known, bytes.
        length: usize,
        /// The limit, bytes.
        limit: usize,
    },
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = self.reason.as_deref().unwrap_or_default();
        write!(f, "{} {reason}", self.code.unwrap_or_default())?;
        match self.message.as_deref() {
            Some(message) if !message.is_empty() => write!(f, ": {message}"),
            _ => Ok(()),
        }
    }
}

/// Strings before the first look for unused ones.
const FIRST_SWEEP: usize = 1024;

/// Hands out one `Arc` per distinct value.
#[derive(Debug, Default)]
pub struct Interner {
    strings: Pool<str>,
    hints: Pool<Hints>,
}

impl Interner {
    /// The shared form of a string.
    pub fn intern(&mut self, text: &str) -> Arc<str> {
        self.strings.share(text, |text| text.into())
    }

    /// The shared form of an endpoint's hints.
    pub fn intern_hints(&mut self, hints: Hints) -> Arc<Hints> {
        self.hints.share(&hints, |hints| Arc::new(hints.clone()))
    }
}

/// Values of one sort. Those that nobody else holds any more are dropped whenever their number has
/// doubled.
#[derive(Debug)]
struct Pool<T: ?Sized> {
    values: HashSet<Arc<T>>,
    sweep_at: usize,
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Pool { values: HashSet::new(), sweep_at: FIRST_SWEEP }
    }
}

impl<T: ?Sized + Eq + Hash> Pool<T> {
    fn share(&mut self, value: &T, make: impl FnOnce(&T) -> Arc<T>) -> Arc<T> {
        if let Some(known) = self.values.get(value) {
            return known.clone();
        }
        if self.values.len() >= self.sweep_at {
            self.values.retain(|value| Arc::strong_count(value) > 1);
            self.sweep_at = FIRST_SWEEP.max(2 * self.values.len());
        }
        let new = make(value);
        self.values.insert(new.clone());
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_strings_share_memory_and_unused_ones_go() {
        let mut interner = Interner::default();
        let kept = interner.intern("node-a");
        for i in 0..10 * FIRST_SWEEP {
            interner.intern(&format!("gone-{i}"));
        }
        assert!(Arc::ptr_eq(&kept, &interner.intern("node-a")));
        assert!(interner.strings.values.len() <= FIRST_SWEEP, "{:?}", interner.strings);
    }
}
