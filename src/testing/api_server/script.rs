//! What the scripted server was told to do, and what it was asked.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method};
use serde_json::Value;

use super::people::People;
use super::store::Store;
use super::tls::Tls;
use crate::model::Kind;
use crate::wire::Status;

/// What a request is, by its path and query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ask {
    /// A watch with initial events.
    StreamingList,
    /// The first page of a list.
    List,
    /// A page by its continue token.
    ListPage,
    /// A watch from a version.
    Watch,
    /// POST or PATCH of an Event.
    Event,
    /// Anything else; a kube-proxy may not ask it.
    Other,
}

/// One request as it arrived.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// When, on the monotonic clock.
    pub at: Instant,
    pub method: Method,
    /// Path without query.
    pub path: String,
    pub query: BTreeMap<String, String>,
    pub headers: HeaderMap,
    /// The kind that is read; `None` for Events and the like.
    pub kind: Option<Kind>,
    pub ask: Ask,
    pub version: http::Version,
    /// Status of the answer; `None` while it is held or when the connection was dropped.
    pub answered: Option<u16>,
}

/// What to do with a request instead of answering it as usual.
#[derive(Debug, Clone)]
pub enum Answer {
    Refuse {
        code: u16,
        /// `reason` of the Status.
        reason: &'static str,
        /// `Retry-After`, seconds.
        retry_after: Option<u64>,
    },
    Drop,
    /// Wait, then answer as usual.
    Delay(Duration),
    /// Answer with captured bytes; a stream ends behind them.
    Replay {
        /// The `Content-Type`.
        content_type: &'static str,
        body: Bytes,
    },
}

#[derive(Debug, Clone)]
pub struct Fault {
    /// Only requests for this kind; `None` for all.
    pub kind: Option<Kind>,
    /// Only such requests.
    pub ask: Ask,
    /// How often; `usize::MAX` for ever.
    pub times: usize,
    /// What happens instead.
    pub answer: Answer,
}

/// Something to send on open streams of a kind, behind all events so far.
#[derive(Debug, Clone)]
pub enum Signal {
    /// A bookmark at the current version.
    Bookmark,
    /// An ERROR event.
    Error(Status),
    /// An event that cannot be decoded.
    Garbage,
    /// End the stream in order, as at the end of `timeoutSeconds`.
    End,
    /// Break the connection in the middle of a frame.
    Cut,
}

/// Something that befalls all open connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// No more requests are taken: GOAWAY, or `Connection: close`.
    Goodbye,
    /// They are cut in the middle of whatever they carry.
    Cut,
}

/// Everything that requests and test share.
pub(super) struct State {
    pub(super) store: Store,
    pub(super) faults: Vec<Fault>,
    pub(super) held: HashSet<Kind>,
    pub(super) json_only: bool,
    pub(super) page_size: Option<usize>,
    /// Streams are sent in pieces of this many bytes.
    pub(super) chunk: Option<usize>,
    pub(super) token: Option<String>,
    pub(super) tls: Option<Tls>,
    pub(super) requests: Vec<Recorded>,
    pub(super) events: Vec<Value>,
    pub(super) people: People,
    /// Connections that were taken so far.
    pub(super) connections: usize,
    /// Watches that are open now, by kind.
    pub(super) open: BTreeMap<Kind, usize>,
    /// Bytes of streams that connections took so far.
    pub(super) streamed: usize,
}

impl State {
    pub(super) fn new(tls: Option<Tls>) -> State {
        State {
            store: Store::default(),
            faults: Vec::new(),
            held: HashSet::new(),
            json_only: false,
            page_size: None,
            chunk: None,
            token: None,
            tls,
            requests: Vec::new(),
            events: Vec::new(),
            people: People::default(),
            connections: 0,
            open: BTreeMap::new(),
            streamed: 0,
        }
    }

    /// Takes the fault that applies to a request, if there is one.
    pub(super) fn fault(&mut self, kind: Option<Kind>, ask: Ask) -> Option<Answer> {
        let fault = self.faults.iter_mut().find(|fault| {
            fault.times > 0 && fault.ask == ask && (fault.kind.is_none() || fault.kind == kind)
        })?;
        if fault.times != usize::MAX {
            fault.times -= 1;
        }
        Some(fault.answer.clone())
    }
}
