//! The body of a watch as frames.
//!
//! Place in the flow: between the HTTP body and [`super::Watch`]. Holds one chunk and one incomplete
//! frame at most.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::Failure;
use crate::wire::{Encoding, Frames, MAX_FRAME};

pub(super) struct Stream {
    body: Incoming,
    frames: Frames,
    encoding: Encoding,
}

/// A stream ended in the middle of an event.
#[derive(Debug, thiserror::Error)]
#[error("the stream ended within an event")]
struct Cut;

impl Stream {
    pub(super) fn new(body: Incoming, encoding: Encoding) -> Stream {
        Stream { body, frames: Frames::new(encoding, MAX_FRAME), encoding }
    }

    pub(super) fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// The next event's bytes, `None` at an orderly end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            if let Some(frame) = self.frames.next_frame().map_err(Failure::broken)? {
                return Ok(Some(frame));
            }
            match self.body.frame().await {
                Some(Ok(chunk)) => self.frames.push(chunk.data_ref().map_or(&[], |data| &data[..])),
                Some(Err(cause)) => return Err(Failure::broken(cause)),
                None if self.frames.is_empty() => return Ok(None),
                None => return Err(Failure::broken(Cut)),
            }
        }
    }
}
