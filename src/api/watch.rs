//! Reads one kind from the API server for ever.
//!
//! Place in the flow: a [`Watch`] per kind performs what its [`Machine`] wants, decodes with
//! [`crate::wire`] and delivers changes to a [`Sink`]. The next bytes are read only after the sink
//! took the last change, so a slow consumer slows the stream and buffers nothing. Knows nothing of
//! what a change means.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, Method, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tracing::{debug, error, info, warn};

use super::client::{Client, RequestError, collect};
use super::machine::{Machine, Outcome, Refusal};
use super::resource::{self, Request};
use crate::model::{Change, Kind, Object, ObjectName};
use crate::source::{Heard, Sink};
use crate::wire::{Decoder, Encoding, Frames, MAX_FRAME, Status};

/// How long a server keeps a watch open, in seconds: random, so that watches do not end together
/// (client-go).
const WATCH_SECONDS: std::ops::Range<u64> = 300..600;
/// Time after which a watch that the server should have ended is given up.
const OVERDUE: Duration = Duration::from_secs(30);
/// How long nothing may come while a streaming list is not complete. An API server itself waits for
/// its cache, up to a few seconds.
const LIST_SILENCE: Duration = Duration::from_secs(20);

/// Reads one kind.
pub struct Watch {
    client: Client,
    kind: Kind,
    node: String,
    sink: Arc<dyn Sink>,
    decoder: Decoder,
    machine: Machine,
    /// The list that is being read, by name: a streaming list may change or delete what it sent.
    listing: BTreeMap<ObjectName, Object>,
}

/// Why a request did not go as wanted.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("no answer")]
    Unreachable(#[source] RequestError),
    #[error("the answer broke off or makes no sense")]
    Broken(#[source] Box<dyn Error + Send + Sync>),
    #[error("the API server refused: {} {}: {message}", refusal.code, refusal.reason)]
    Refused { refusal: Refusal, message: String },
}

impl Failure {
    fn broken(cause: impl Error + Send + Sync + 'static) -> Failure {
        Failure::Broken(Box::new(cause))
    }

    /// `lasted`: since the request.
    fn outcome(self, lasted: Duration) -> Outcome {
        match self {
            Failure::Unreachable(error) if error.was_sent() => Outcome::Unanswered,
            Failure::Unreachable(error) if error.is_absence() => Outcome::Absent { lasted },
            Failure::Unreachable(_) => Outcome::Unreachable,
            Failure::Broken(_) => Outcome::Broken { lasted },
            Failure::Refused { refusal, .. } => Outcome::Refused(refusal),
        }
    }
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Failure {
        match error {
            RequestError::Send { .. } | RequestError::TooSlow { .. } => Failure::Unreachable(error),
            RequestError::Receive { .. } => Failure::broken(error),
        }
    }
}

impl Watch {
    /// A watch on one kind. `node` is this node's name, the only Node that is read.
    /// `allow_external_ips`: feature gate AllowServiceExternalIPs.
    pub fn new(
        client: Client,
        kind: Kind,
        node: &str,
        allow_external_ips: bool,
        sink: Arc<dyn Sink>,
    ) -> Watch {
        Watch {
            client,
            kind,
            node: node.to_owned(),
            sink,
            decoder: Decoder::new(allow_external_ips),
            machine: Machine::default(),
            listing: BTreeMap::new(),
        }
    }

    /// Whether a streaming list is tried first: feature gate WatchListClient.
    pub fn streaming(mut self, enabled: bool) -> Watch {
        self.machine = if enabled { Machine::default() } else { Machine::paged() };
        self
    }

    /// Reads until it is dropped.
    pub async fn run(mut self) -> Infallible {
        let mut step = self.machine.first();
        loop {
            tokio::time::sleep(step.after).await;
            let begun = Instant::now();
            let outcome = match self.perform(&step.request).await {
                Ok(outcome) => outcome,
                Err(failure) => {
                    let cause = &failure as &dyn Error;
                    warn!(kind = %self.kind, error = cause, "reading from the API server failed");
                    self.sink.failed(self.kind, cause);
                    failure.outcome(begun.elapsed())
                }
            };
            step = self.machine.next(outcome, rand::random());
            debug!(kind = %self.kind, request = ?step.request, after = ?step.after, "next request");
        }
    }

    async fn perform(&mut self, request: &Request) -> Result<Outcome, Failure> {
        let seconds = rand::random_range(WATCH_SECONDS);
        let uri = resource::uri(self.kind, &self.node, request, seconds);
        let longest = Duration::from_secs(seconds) + OVERDUE;
        match request {
            Request::ListPage { .. } => self.page(&uri).await,
            Request::List { .. } | Request::FullList => {
                self.listing.clear();
                self.page(&uri).await
            }
            Request::Watch { .. } => self.stream(&uri, longest, false).await,
            Request::StreamingList => {
                self.listing.clear();
                self.stream(&uri, longest, true).await
            }
        }
    }

    /// Reads one page of a list.
    async fn page(&mut self, uri: &str) -> Result<Outcome, Failure> {
        let answer = self.client.get(uri).await?;
        if !answer.status().is_success() {
            return Err(refused(&answer));
        }
        let encoding = encoding(answer.headers());
        let list =
            self.decoder.list(self.kind, encoding, answer.body()).map_err(Failure::broken)?;
        list.skips.iter().for_each(|skip| self.sink.skipped(skip));
        self.listing.extend(list.objects.into_iter().map(|object| (object.name().clone(), object)));
        if list.continue_token.is_none() {
            self.deliver_listing();
            self.sink.heard(self.kind, Heard::State(&list.resource_version));
        }
        Ok(Outcome::Page {
            resource_version: list.resource_version,
            continue_token: list.continue_token,
        })
    }

    /// Reads a stream to its end. `listing`: it begins with a list.
    async fn stream(
        &mut self,
        uri: &str,
        longest: Duration,
        listing: bool,
    ) -> Result<Outcome, Failure> {
        let begun = Instant::now();
        let answer = self.client.stream(uri).await?;
        if !answer.status().is_success() {
            let path = resource::path(self.kind).to_owned();
            return Err(refused(&collect(answer, Method::GET, path).await?));
        }
        let encoding = encoding(answer.headers());
        let stream = Stream::new(answer.into_body(), encoding);
        match tokio::time::timeout(longest, self.events(stream, listing)).await {
            Ok(Ok(())) | Err(_) => Ok(Outcome::Ended { lasted: begun.elapsed() }),
            Ok(Err(failure)) => Err(failure),
        }
    }

    async fn events(&mut self, mut stream: Stream, mut listing: bool) -> Result<(), Failure> {
        while let Some(frame) = next_frame(&mut stream, listing).await? {
            match self.decoder.event(self.kind, stream.encoding(), &frame) {
                Ok(event) => self.event(event, &mut listing)?,
                Err(broken) => {
                    let cause = &broken as &dyn Error;
                    error!(kind = %self.kind, error = cause, "skipped an unreadable event");
                }
            }
        }
        Ok(())
    }

    fn event(&mut self, event: crate::wire::Event, listing: &mut bool) -> Result<(), Failure> {
        use crate::wire::Event;
        let is_bookmark = matches!(event, Event::Bookmark { .. });
        let version = match event {
            Event::Applied(decoded) => {
                decoded.skips.iter().for_each(|skip| self.sink.skipped(skip));
                match decoded.object {
                    Some(object) => self.apply(object, *listing),
                    None => self.delete(decoded.name, *listing),
                }
                decoded.resource_version
            }
            Event::Deleted { name, resource_version } => {
                self.delete(name, *listing);
                resource_version
            }
            Event::Bookmark { resource_version, initial_events_end } => {
                if *listing && initial_events_end {
                    *listing = false;
                    self.deliver_listing();
                    self.machine.listed(&resource_version);
                }
                resource_version
            }
            Event::Error(status) => return Err(refusal_of(status, None, None)),
        };
        // Versions inside a list are not in order: only its end is a point to resume from.
        if !*listing && !version.is_empty() {
            self.machine.advanced(&version);
            let heard = if is_bookmark { Heard::State } else { Heard::Change };
            self.sink.heard(self.kind, heard(&version));
        }
        Ok(())
    }

    fn apply(&mut self, object: Object, listing: bool) {
        if listing {
            self.listing.insert(object.name().clone(), object);
        } else {
            self.sink.deliver(Change::Apply(object));
        }
    }

    fn delete(&mut self, name: ObjectName, listing: bool) {
        if listing {
            self.listing.remove(&name);
        } else {
            self.sink.deliver(Change::Delete(self.kind, name));
        }
    }

    fn deliver_listing(&mut self) {
        let objects: Vec<Object> = std::mem::take(&mut self.listing).into_values().collect();
        info!(kind = %self.kind, objects = objects.len(), "list complete");
        self.sink.deliver(Change::Replace(self.kind, objects));
    }
}

/// The next event's bytes. The list that a stream begins with comes in one go: a silence within it
/// means that somebody on the way holds it back.
async fn next_frame(stream: &mut Stream, listing: bool) -> Result<Option<Bytes>, Failure> {
    if !listing {
        return stream.next().await;
    }
    match tokio::time::timeout(LIST_SILENCE, stream.next()).await {
        Ok(frame) => frame,
        Err(silent) => Err(Failure::broken(silent)),
    }
}

/// The encoding that the server chose; it may not be the one we prefer.
fn encoding(headers: &HeaderMap) -> Encoding {
    let value = headers.get(CONTENT_TYPE).map(|value| value.as_bytes()).unwrap_or_default();
    if value.starts_with(b"application/vnd.kubernetes.protobuf") {
        Encoding::Protobuf
    } else {
        Encoding::Json
    }
}

/// The failure that an answer without success means.
fn refused(answer: &Response<Bytes>) -> Failure {
    let status = Status::from_body(encoding(answer.headers()), answer.body()).unwrap_or_default();
    refusal_of(status, Some(answer.status()), retry_after(answer.headers()))
}

/// `code` and `asked` come from the head of the answer, which the Status repeats.
fn refusal_of(status: Status, code: Option<StatusCode>, asked: Option<Duration>) -> Failure {
    let seconds = status.details.and_then(|details| details.retry_after_seconds);
    let in_body = seconds.and_then(|seconds| u64::try_from(seconds).ok()).filter(|&s| s > 0);
    let of_status = u16::try_from(status.code.unwrap_or_default()).unwrap_or_default();
    let refusal = Refusal {
        code: code.map_or(of_status, |code| code.as_u16()),
        reason: status.reason.unwrap_or_default(),
        retry_after: asked.or(in_body.map(Duration::from_secs)),
    };
    Failure::Refused { refusal, message: status.message.unwrap_or_default() }
}

/// `Retry-After` in seconds, the only form API servers use.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The body of a watch as frames: holds one chunk and one incomplete frame at most.
struct Stream {
    body: Incoming,
    frames: Frames,
    encoding: Encoding,
}

/// A stream ended in the middle of an event.
#[derive(Debug, thiserror::Error)]
#[error("the stream ended within an event")]
struct Cut;

impl Stream {
    fn new(body: Incoming, encoding: Encoding) -> Stream {
        Stream { body, frames: Frames::new(encoding, MAX_FRAME), encoding }
    }

    fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// The next event's bytes, `None` at an orderly end.
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
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

#[cfg(test)]
mod tests {
    use super::*;

    // As in client-go, what is no number is none; a negative one asks for nothing.
    #[test]
    fn retry_after_is_a_number_of_seconds_and_anything_else_is_none() {
        let cases = [
            ("1", Some(1)),
            (" 30 ", Some(30)),
            ("0", Some(0)),
            ("99999999", Some(99_999_999)),
            ("-1", None),
            ("1.5", None),
            ("99999999999999999999", None),
            ("Fri, 31 Dec 2038 23:59:59 GMT", None),
            ("", None),
        ];
        for (value, want) in cases {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
            assert_eq!(retry_after(&headers), want.map(Duration::from_secs), "{value:?}");
        }
    }
}
