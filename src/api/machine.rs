//! What a watch does next: the pure part of reading one kind.
//!
//! Place in the flow: [`super::Watch`] performs a [`Request`], tells the [`Machine`] how it went and
//! gets the next [`Step`]. Time arrives as durations, randomness as a number; nothing here does I/O.
//!
//! ```text
//! streaming list ─ bookmark ─> watch ─ ended, broken ─> watch from the last resourceVersion
//!    │ anything else             │ 410
//!    v                           v
//! paged list ─ last page ─> watch   streaming list, or paged list where that was refused for good
//! ```
//!
//! A streaming list may fail for many reasons, and with any status: etcd is too old for it, a proxy
//! does not pass it on. Whatever it is, a paged list follows at once, as in client-go. Only a server
//! that is not there or asks to wait is asked for the same again.

use std::time::Duration;

use crate::api::resource::Request;
use crate::backoff::Backoff;

/// First delay after a failure, doubled by each further one (client-go's reflector).
const BASE: Duration = Duration::from_millis(800);
/// Upper bound of the delay before jitter.
const CAP: Duration = Duration::from_secs(30);
/// From one look for a server that is not there to the next, before jitter.
const ABSENT: Duration = Duration::from_millis(500);
/// A watch that lasted longer may be cut by whoever is on the way, however often: that is no failure of
/// the server. One that ends sooner counts as a failure, so that a server that closes at once is not
/// asked in a tight loop; with an event in it, only from the second in a row on.
const SHORT: Duration = Duration::from_secs(1);

/// Longer than this no server is left alone, whatever it asks for.
pub(in crate::api) const LONGEST_ASKED: Duration = Duration::from_secs(60);

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A page of a list arrived.
    Page {
        /// `metadata.resourceVersion` of the list.
        resource_version: String,
        /// `metadata.continue`, `None` on the last page.
        continue_token: Option<String>,
    },
    /// The server closed a stream in order after this time.
    Ended {
        /// From the request to the end.
        lasted: Duration,
    },
    /// The answer began and broke off, or could not be read on, after this time.
    Broken {
        /// From the request to the break.
        lasted: Duration,
    },
    /// The server took the request and gave no answer.
    Unanswered,
    /// There was no connection, though somebody is there.
    Unreachable,
    /// Nobody took the connection, for this time.
    Absent {
        /// From the first try to the last.
        lasted: Duration,
    },
    /// The server refused, by HTTP status or by an ERROR event.
    Refused(Refusal),
}

/// An API Status that is a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status, or `code` of the Status in an ERROR event.
    pub code: u16,
    /// `reason` of the Status; empty when the answer was not one.
    pub reason: String,
    /// The `Retry-After` header or `details.retryAfterSeconds`.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    /// The requested state is gone (410), or is one the server has not reached: a 504 whose reason is
    /// Timeout, which tells it from a gateway's.
    fn wrong_version(&self) -> bool {
        self.code == 410 || (self.code == 504 && self.reason == "Timeout")
    }

    /// The same request may well succeed later.
    fn is_passing(&self) -> bool {
        matches!(self.code, 401 | 403 | 408 | 429) || (self.code >= 500 && self.code != 501)
    }

    /// The request means nothing to the server, whatever it was for.
    fn is_final(&self) -> bool {
        self.code >= 400 && !self.is_passing() && !self.wrong_version()
    }

    /// The server is busy: it refuses whoever asks, not what is asked for.
    fn is_throttling(&self) -> bool {
        self.code == 429
    }
}

/// A request and when to perform it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Time to wait before.
    pub after: Duration,
    pub request: Request,
}

/// The state of reading one kind.
#[derive(Debug)]
pub struct Machine {
    request: Request,
    /// The last state seen, from lists, events and bookmarks.
    version: Option<String>,
    /// Streaming lists are not to be tried, or were refused in a way that will not change.
    paged: bool,
    failures: u32,
    /// The server was away, and nothing succeeded since.
    lost: bool,
    /// A request got no whole answer, and nothing succeeded since.
    excused: bool,
    /// The last refusal was answered with another request, which did not succeed yet.
    remedied: bool,
    /// The running watch delivered something.
    progressed: bool,
    /// Watches in a row that ended soon after they had begun.
    short: u32,
}

impl Default for Machine {
    fn default() -> Self {
        Machine {
            request: Request::StreamingList,
            version: None,
            paged: false,
            failures: 0,
            lost: false,
            excused: false,
            remedied: false,
            progressed: false,
            short: 0,
        }
    }
}

impl Machine {
    /// A machine that never tries a streaming list.
    pub fn paged() -> Machine {
        let request = Request::List { resource_version: "0".to_owned() };
        Machine { request, paged: true, ..Machine::default() }
    }

    /// What to perform first.
    pub fn first(&self) -> Step {
        Step { after: Duration::ZERO, request: self.request.clone() }
    }

    /// The initial list of a streaming list is complete, as of this resourceVersion.
    pub fn listed(&mut self, resource_version: &str) {
        self.request = Request::Watch { resource_version: resource_version.to_owned() };
        self.advanced(resource_version);
    }

    /// An event or a bookmark of a running watch moved on to this resourceVersion.
    pub fn advanced(&mut self, resource_version: &str) {
        self.version = Some(resource_version.to_owned());
        self.succeeded();
        self.progressed = true;
    }

    /// What to do after a request ended. `jitter` is uniform in 0..1 and spreads clients that failed
    /// together.
    pub fn next(&mut self, outcome: Outcome, jitter: f64) -> Step {
        let progressed = std::mem::replace(&mut self.progressed, false);
        let after = match &outcome {
            // The paged list is the remedy, not time.
            _ if self.ends_streaming(&outcome) => asked_to_wait(&outcome, jitter),
            // A list is no success yet if the watch after it is refused as the one before it was.
            Outcome::Page { .. } => {
                if !self.remedied {
                    self.succeeded();
                }
                Duration::ZERO
            }
            Outcome::Ended { lasted } | Outcome::Broken { lasted } if self.is_watching() => {
                let in_order = matches!(outcome, Outcome::Ended { .. });
                self.after_stream(*lasted, in_order && progressed, jitter)
            }
            // A connection that was kept open was closed as the request came in.
            Outcome::Unanswered | Outcome::Broken { .. } if !self.excused => {
                self.excused = true;
                Duration::ZERO
            }
            Outcome::Absent { lasted } => {
                self.lost = true;
                ABSENT.mul_f64(1.0 + jitter).saturating_sub(*lasted)
            }
            Outcome::Refused(refusal) => self.after_refusal(refusal, jitter),
            _ => self.back_off(jitter),
        };
        self.request = match self.request.clone() {
            Request::StreamingList => self.after_streaming_list(&outcome),
            Request::Watch { .. } => self.after_watch(&outcome),
            page => self.after_page(page, &outcome),
        };
        Step { after, request: self.request.clone() }
    }

    /// A streaming list failed, and not for the server as a whole.
    fn ends_streaming(&self, outcome: &Outcome) -> bool {
        self.request == Request::StreamingList
            && match outcome {
                Outcome::Unreachable | Outcome::Absent { .. } => false,
                Outcome::Refused(refusal) => !refusal.is_throttling(),
                _ => true,
            }
    }

    fn after_streaming_list(&mut self, outcome: &Outcome) -> Request {
        if let Outcome::Refused(refusal) = outcome {
            self.paged = refusal.is_final();
        }
        if self.ends_streaming(outcome) { self.list("0") } else { Request::StreamingList }
    }

    fn after_page(&mut self, page: Request, outcome: &Outcome) -> Request {
        match outcome {
            Outcome::Page { continue_token: Some(token), .. } => {
                Request::ListPage { continue_token: token.clone() }
            }
            Outcome::Page { resource_version, continue_token: None } => {
                self.version = Some(resource_version.clone());
                self.watch()
            }
            Outcome::Refused(refusal) if refusal.wrong_version() => match page {
                Request::ListPage { .. } => Request::FullList,
                _ => Request::List { resource_version: String::new() },
            },
            // The token means nothing to this server.
            Outcome::Refused(refusal) if !refusal.is_passing() => self.list("0"),
            _ => page,
        }
    }

    fn after_watch(&mut self, outcome: &Outcome) -> Request {
        match outcome {
            Outcome::Refused(refusal) if refusal.wrong_version() || !refusal.is_passing() => {
                if self.paged { self.list("0") } else { Request::StreamingList }
            }
            _ => self.watch(),
        }
    }

    /// A list that does not go back behind what was seen.
    fn list(&self, default: &str) -> Request {
        let version = self.version.as_deref().unwrap_or(default);
        Request::List { resource_version: version.to_owned() }
    }

    fn watch(&self) -> Request {
        Request::Watch { resource_version: self.version.clone().unwrap_or_default() }
    }

    fn after_refusal(&mut self, refusal: &Refusal, jitter: f64) -> Duration {
        if let Some(asked) = refusal.retry_after {
            return spread(asked, jitter);
        }
        // The remedy is another request, not time: but only once, in case it fails the same way.
        let remedied = refusal.wrong_version() || !refusal.is_passing();
        if !remedied || std::mem::replace(&mut self.remedied, true) {
            return self.back_off(jitter);
        }
        // An API server that restarted forgets old versions. How long it was away says nothing
        // about the remedy; but whoever lost it with us is not to ask for a list at the same time.
        let was_lost = self.lost || self.excused || self.failures > 0;
        self.failures = 0;
        let delay = self.back_off(jitter);
        if was_lost { delay } else { Duration::ZERO }
    }

    fn is_watching(&self) -> bool {
        matches!(self.request, Request::Watch { .. })
    }

    fn after_stream(&mut self, lasted: Duration, orderly: bool, jitter: f64) -> Duration {
        if lasted >= SHORT {
            self.short = 0;
            self.succeeded();
            return Duration::ZERO;
        }
        self.failures = self.failures.max(self.short);
        self.short = self.short.saturating_add(1);
        if orderly && self.short == 1 { Duration::ZERO } else { self.back_off(jitter) }
    }

    fn succeeded(&mut self) {
        self.failures = 0;
        self.lost = false;
        self.excused = false;
        self.remedied = false;
    }

    fn back_off(&mut self, jitter: f64) -> Duration {
        self.failures = self.failures.saturating_add(1);
        Backoff::new(BASE, CAP).pause(self.failures).mul_f64(1.0 + jitter)
    }
}

/// How long a server that refused asks to wait.
fn asked_to_wait(outcome: &Outcome, jitter: f64) -> Duration {
    match outcome {
        Outcome::Refused(Refusal { retry_after: Some(asked), .. }) => spread(*asked, jitter),
        _ => Duration::ZERO,
    }
}

/// Not all clients that were asked to wait come back together, and none comes early.
fn spread(asked: Duration, jitter: f64) -> Duration {
    asked.min(LONGEST_ASKED) + BASE.mul_f64(jitter)
}

#[cfg(test)]
mod tests;
