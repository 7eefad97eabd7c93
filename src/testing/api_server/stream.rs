//! The body of one watch: initial events, changes as they happen, and what the script adds.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::sync::{broadcast, watch};

use super::script::Signal;
use super::store::Selector;
use super::{Shared, encode};
use crate::model::Kind;
use crate::wire::{Encoding, Status};

/// The body of an answer.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// What ends a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    InOrder,
    Broken,
}

pub(super) struct Stream {
    shared: Arc<Shared>,
    kind: Kind,
    encoding: Encoding,
    selector: Selector,
    /// Everything up to this version was sent.
    version: u64,
    /// The end of the initial events is still to be sent.
    initial: bool,
    /// Bytes to send before anything else.
    pending: VecDeque<Bytes>,
    end: Option<End>,
    signals: broadcast::Receiver<(Kind, Signal)>,
    changed: watch::Receiver<u64>,
}

impl Stream {
    /// A watch from a version, or with initial events.
    pub(super) fn new(
        shared: Arc<Shared>,
        kind: Kind,
        encoding: Encoding,
        selector: Selector,
        from: Option<u64>,
    ) -> Stream {
        let mut stream = Stream {
            kind,
            encoding,
            selector,
            version: from.unwrap_or(0),
            initial: from.is_none(),
            pending: VecDeque::new(),
            end: None,
            signals: shared.signals.subscribe(),
            changed: shared.changed.subscribe(),
            shared,
        };
        stream.begin();
        stream
    }

    fn begin(&mut self) {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        *state.open.entry(self.kind).or_default() += 1;
        if self.initial {
            self.version = state.store.version;
            for object in state.store.list(self.kind, &self.selector) {
                self.pending.push_back(encode::event(self.encoding, self.kind, "ADDED", &object));
            }
        } else if self.version < state.store.oldest {
            let message = format!("too old resource version: {}", self.version);
            let status = status(410, "Expired", &message);
            self.pending.push_back(encode::error(self.encoding, &status));
            self.end = Some(End::InOrder);
        }
    }

    pub(super) fn into_body(self) -> Body {
        let frames = futures::stream::unfold(self, async |mut stream| {
            let chunk = stream.next().await?;
            Some((chunk.map(Frame::data), stream))
        });
        StreamBody::new(frames).boxed_unsync()
    }

    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            if let Some(chunk) = self.take_pending() {
                // Lets the connection flush, so that pieces really arrive one by one.
                tokio::task::yield_now().await;
                return Some(Ok(chunk));
            }
            match self.end {
                Some(End::InOrder) => return None,
                Some(End::Broken) => return Some(Err(io::Error::other("scripted cut"))),
                None => {}
            }
            if self.catch_up() {
                continue;
            }
            tokio::select! {
                signal = self.signals.recv() => match signal {
                    Ok((kind, signal)) if kind == self.kind => {
                        // Changes made before the signal go first.
                        while self.catch_up() {}
                        self.obey(signal);
                    }
                    _ => {}
                },
                changed = self.changed.changed() => changed.ok()?,
            }
        }
    }

    fn take_pending(&mut self) -> Option<Bytes> {
        let mut frame = self.pending.pop_front()?;
        let mut state = self.shared.lock();
        let size = state.chunk.unwrap_or(usize::MAX);
        if frame.len() > size {
            self.pending.push_front(frame.split_off(size));
        }
        state.streamed += frame.len();
        Some(frame)
    }

    /// Queues what happened since; returns whether there was something.
    fn catch_up(&mut self) -> bool {
        let shared = Arc::clone(&self.shared);
        let state = shared.lock();
        if self.initial {
            if state.held.contains(&self.kind) {
                return false;
            }
            self.initial = false;
            let end = encode::bookmark(self.encoding, self.kind, self.version, true);
            self.pending.push_back(end);
            return true;
        }
        let Some(entry) = state.store.after(self.version, self.kind) else { return false };
        self.version = entry.version;
        if let Some((event, object)) = entry.event(&self.selector) {
            self.pending.push_back(encode::event(self.encoding, self.kind, event, object));
        }
        true
    }

    fn obey(&mut self, signal: Signal) {
        let bookmark = |stream: &Stream| {
            let version = stream.shared.lock().store.version;
            encode::bookmark(stream.encoding, stream.kind, version, false)
        };
        match signal {
            Signal::Bookmark => self.pending.push_back(bookmark(self)),
            Signal::Error(status) => {
                self.pending.push_back(encode::error(self.encoding, &status));
                self.end = Some(End::InOrder);
            }
            Signal::Garbage => self.pending.push_back(match self.encoding {
                Encoding::Json => Bytes::from_static(b"{\"type\":\"ADDED\",\"object\":7}\n"),
                Encoding::Protobuf => Bytes::from_static(b"\0\0\0\x03\xff\xff\xff"),
            }),
            Signal::End => self.end = Some(End::InOrder),
            Signal::Cut => {
                let mut frame = bookmark(self);
                frame.truncate(frame.len() / 2);
                self.pending.push_back(frame);
                self.end = Some(End::Broken);
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(open) = self.shared.lock().open.get_mut(&self.kind) {
            *open -= 1;
        }
    }
}

pub(super) fn status(code: u16, reason: &str, message: &str) -> Status {
    Status {
        code: Some(code.into()),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        ..Default::default()
    }
}
