//! Kubernetes Events (events.k8s.io/v1) about this node and about Services.
//!
//! Place in the flow: whoever has something to tell calls [`Recorder::record`], which never waits; a
//! task of its own writes to the API. A lost Event is a log line and nothing more: callers log what
//! happened themselves.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1 as events;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, warn};

use super::client::{Client, RequestError};
use super::machine::LONGEST_ASKED;
use super::watch::retry_after;
use crate::model::ObjectName;

/// Events that wait to be written; more are dropped (client-go's queue).
const QUEUE: usize = 1000;
/// Tries per Event, and the pause between two of them (client-go).
const TRIES: u32 = 12;
const PAUSE: Duration = Duration::from_secs(10);
/// Longest `note` that the API accepts, in bytes.
const NOTE_LIMIT: usize = 1024;

/// Why an Event is written (section 8.3, and what upstream has not).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The proxy starts.
    Starting,
    /// The health server's address is taken and that is fatal by configuration.
    FailedToStartProxierHealthcheck,
    /// The metrics server's address is taken and that is fatal by configuration.
    FailedToStartMetricServer,
    /// A healthCheckNodePort cannot be opened.
    FailedToStartServiceHealthcheck,
    /// The configured mode is `ipvs`.
    IpvsDeprecation,
    /// No mode is configured, and the default will change.
    UnsetProxyMode,
    /// Connections to an endpoint that is gone were ended, as was asked for. Ours.
    ConnectionsEnded,
    /// The kernel refuses a Service's elements; it is set aside and retried. Ours.
    ServiceQuarantined,
    /// The conntrack table is nearly full. Ours.
    ConntrackNearLimit,
}

impl Reason {
    /// `reason`, `type` and `action` of the Event.
    fn texts(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Reason::Starting => ("Starting", "Normal", "StartKubeProxy"),
            Reason::FailedToStartProxierHealthcheck => {
                ("FailedToStartProxierHealthcheck", "Warning", "StartKubeProxy")
            }
            Reason::FailedToStartMetricServer => {
                ("FailedToStartMetricServer", "Warning", "StartKubeProxy")
            }
            Reason::FailedToStartServiceHealthcheck => {
                ("FailedToStartServiceHealthcheck", "Warning", "Listen")
            }
            Reason::UnsetProxyMode => ("UnsetProxyMode", "Warning", "StartKubeProxy"),
            Reason::IpvsDeprecation => ("IPVSDeprecation", "Warning", "StartKubeProxy"),
            Reason::ConntrackNearLimit => ("ConntrackNearLimit", "Warning", "TrackConnections"),
            Reason::ConnectionsEnded => ("ConnectionsEnded", "Normal", "EndConnections"),
            Reason::ServiceQuarantined => ("ServiceQuarantined", "Warning", "ProgramService"),
        }
    }
}

/// What an Event is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Regarding {
    Node,
    Service(ObjectName),
}

/// Something to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Also the key of series, with `regarding`.
    pub reason: Reason,
    /// The object.
    pub regarding: Regarding,
    /// For people; may be empty. Cut after 1024 bytes.
    pub note: String,
}

/// Takes Events. Clones write to the same queue; the task ends when the last clone is gone and the
/// queue is empty.
#[derive(Debug, Clone)]
pub struct Recorder(mpsc::Sender<Order>);

/// What the writing task is asked for.
#[derive(Debug)]
enum Order {
    Write(Event, Timestamp),
    /// Answered when everything before it is dealt with.
    Flush(oneshot::Sender<()>),
}

impl Recorder {
    /// Starts the task that writes. `node` is the node's name (section 3.1).
    pub fn start(client: Client, node: &str) -> Recorder {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let writer = Writer { client, node: node.to_owned(), series: Series::default() };
        tokio::spawn(writer.run(receiver));
        Recorder(sender)
    }

    /// Queues an Event. Never waits; a full queue drops it with a log line.
    pub fn record(&self, event: Event) {
        let reason = event.reason.texts().0;
        if self.0.try_send(Order::Write(event, Timestamp::now())).is_err() {
            warn!(reason, "too many Events wait, dropped one");
        }
    }

    /// Waits until every Event so far is written or given up, at most `timeout`.
    pub async fn flush(&self, timeout: Duration) {
        let (done, flushed) = oneshot::channel();
        let wait = async {
            if self.0.send(Order::Flush(done)).await.is_ok() {
                // An error means the task is gone, and there is nothing left to wait for.
                let _ = flushed.await;
            }
        };
        let _ = tokio::time::timeout(timeout, wait).await;
    }
}

/// Why an Event was not written.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error("the request failed")]
    Request(#[from] RequestError),
    #[error("the API server answered {0}")]
    Refused(StatusCode),
}

struct Writer {
    client: Client,
    node: String,
    series: Series,
}

impl Writer {
    async fn run(mut self, mut queue: mpsc::Receiver<Order>) {
        while let Some(order) = queue.recv().await {
            let (event, time) = match order {
                Order::Write(event, time) => (event, time),
                Order::Flush(done) => {
                    // Whoever asked may have stopped waiting.
                    let _ = done.send(());
                    continue;
                }
            };
            let written = match self.series.record(event.reason, &event.regarding, Instant::now()) {
                Write::Create => self.create(&event, time).await,
                Write::Patch { name, count } => self.patch(&event, &name, count, time).await,
                Write::Nothing => Ok(()),
            };
            let reason = event.reason.texts().0;
            match written {
                Ok(()) => debug!(reason, "wrote an Event"),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    warn!(reason, error, "cannot write an Event");
                }
            }
        }
    }

    async fn create(&mut self, event: &Event, time: Timestamp) -> Result<(), WriteError> {
        let object = build(event, &self.node, time);
        let name = object.metadata.name.clone().unwrap_or_default();
        let body = serde_json::to_vec(&object).expect("an Event is valid JSON");
        let uri = collection(&event.regarding);
        let answer = self.send(Method::POST, &uri, "application/json", body).await?;
        match answer.status() {
            status if status.is_success() || status == StatusCode::CONFLICT => {
                self.series.created(event.reason, &event.regarding, name, Instant::now());
                Ok(())
            }
            status => Err(WriteError::Refused(status)),
        }
    }

    async fn patch(
        &mut self,
        event: &Event,
        name: &str,
        count: i32,
        time: Timestamp,
    ) -> Result<(), WriteError> {
        let series = events::EventSeries { count, last_observed_time: MicroTime(time) };
        let body = serde_json::json!({ "series": series }).to_string().into_bytes();
        let uri = format!("{}/{name}", collection(&event.regarding));
        let content_type = "application/strategic-merge-patch+json";
        let answer = self.send(Method::PATCH, &uri, content_type, body).await?;
        match answer.status() {
            status if status.is_success() => Ok(()),
            StatusCode::NOT_FOUND => {
                self.series.forget(event.reason, &event.regarding);
                self.create(event, time).await
            }
            status => Err(WriteError::Refused(status)),
        }
    }

    /// Sends until there is an answer that time would not change.
    async fn send(
        &self,
        method: Method,
        uri: &str,
        content_type: &'static str,
        body: Vec<u8>,
    ) -> Result<Response<Bytes>, RequestError> {
        let mut left = TRIES;
        loop {
            left -= 1;
            let answer = self.client.submit(method.clone(), uri, content_type, body.clone()).await;
            let passing = match &answer {
                Ok(answer) => is_passing(answer.status()),
                Err(_) => true,
            };
            if !passing || left == 0 {
                return answer;
            }
            let asked = answer.ok().and_then(|answer| retry_after(answer.headers()));
            let asked = asked.map(|asked| asked.min(LONGEST_ASKED));
            let pause = asked.unwrap_or_else(|| PAUSE.mul_f64(rand::random_range(0.1..1.0)));
            tokio::time::sleep(pause).await;
        }
    }
}

fn is_passing(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::UNAUTHORIZED)
}

/// The namespace of Events about an object: a Node's are in `default`.
fn namespace(regarding: &Regarding) -> &str {
    match regarding {
        Regarding::Node => "default",
        Regarding::Service(name) => &name.namespace,
    }
}

fn collection(regarding: &Regarding) -> String {
    format!("/apis/events.k8s.io/v1/namespaces/{}/events", namespace(regarding))
}

fn reference(regarding: &Regarding, node: &str) -> ObjectReference {
    match regarding {
        Regarding::Node => ObjectReference {
            kind: Some("Node".into()),
            name: Some(node.into()),
            // As every component on a node does it, so that `kubectl describe node` finds them.
            uid: Some(node.into()),
            ..Default::default()
        },
        Regarding::Service(name) => ObjectReference {
            kind: Some("Service".into()),
            namespace: Some(name.namespace.to_string()),
            name: Some(name.name.to_string()),
            ..Default::default()
        },
    }
}

fn build(event: &Event, node: &str, time: Timestamp) -> events::Event {
    let (reason, kind, action) = event.reason.texts();
    let regarding = reference(&event.regarding, node);
    let name = format!("{}.{:x}", regarding.name.as_deref().unwrap_or(""), time.as_nanosecond());
    let cut = (0..=event.note.len().min(NOTE_LIMIT)).rfind(|&end| event.note.is_char_boundary(end));
    let note = &event.note[..cut.unwrap_or(0)];
    events::Event {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(namespace(&event.regarding).into()),
            ..Default::default()
        },
        event_time: Some(MicroTime(time)),
        reporting_controller: Some("kube-proxy".into()),
        reporting_instance: Some(format!("kube-proxy-{node}")),
        action: Some(action.into()),
        reason: Some(reason.into()),
        type_: Some(kind.into()),
        note: (!note.is_empty()).then(|| note.into()),
        regarding: Some(regarding),
        ..Default::default()
    }
}

// Which Events are new and which continue a series.
//
// Source: KEP-383.

/// A series without repeats for this long is over (client-go).
const FINISHED: Duration = Duration::from_secs(6 * 60);
/// The written count of a lasting series is refreshed this often (client-go).
const REFRESH: Duration = Duration::from_secs(30 * 60);

/// What to write for an occurrence.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Write {
    /// A new Event.
    Create,
    /// `series.count` of the Event with this name.
    Patch { name: String, count: i32 },
    /// Nothing: counted for the next patch.
    Nothing,
}

/// Series that are going on, by reason and object.
#[derive(Debug, Default)]
struct Series(HashMap<(Reason, Regarding), Entry>);

#[derive(Debug)]
struct Entry {
    name: String,
    count: i32,
    seen: Instant,
    written: Instant,
}

impl Series {
    /// Takes an occurrence at `now`.
    fn record(&mut self, reason: Reason, regarding: &Regarding, now: Instant) -> Write {
        self.0.retain(|_, entry| now.saturating_duration_since(entry.seen) < FINISHED);
        let Some(entry) = self.0.get_mut(&(reason, regarding.clone())) else {
            return Write::Create;
        };
        entry.count += 1;
        entry.seen = now;
        if entry.count > 2 && now.saturating_duration_since(entry.written) < REFRESH {
            return Write::Nothing;
        }
        entry.written = now;
        Write::Patch { name: entry.name.clone(), count: entry.count }
    }

    /// An Event was created under this name and opens a series.
    fn created(&mut self, reason: Reason, regarding: &Regarding, name: String, now: Instant) {
        let entry = Entry { name, count: 1, seen: now, written: now };
        self.0.insert((reason, regarding.clone()), entry);
    }

    /// The Event is not there any more: the next occurrence is a new one.
    fn forget(&mut self, reason: Reason, regarding: &Regarding) {
        self.0.remove(&(reason, regarding.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_carry_upstreams_fields() {
        let time: Timestamp = "2026-11-21T04:00:00.123456Z".parse().unwrap();
        let note = "é".repeat(600);
        let regarding = Regarding::Service(ObjectName::new("shop", "cart"));
        let event = Event { reason: Reason::FailedToStartServiceHealthcheck, regarding, note };
        let got = serde_json::to_value(build(&event, "node-a", time)).unwrap();
        let want = serde_json::json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": { "name": "cart.18e9f372a0344a00", "namespace": "shop" },
            "eventTime": "2026-11-21T04:00:00.123456Z",
            "reportingController": "kube-proxy",
            "reportingInstance": "kube-proxy-node-a",
            "action": "Listen",
            "reason": "FailedToStartServiceHealthcheck",
            "type": "Warning",
            "note": "é".repeat(512),
            "regarding": { "kind": "Service", "namespace": "shop", "name": "cart" },
        });
        assert_eq!(got, want);
    }

    #[test]
    fn events_about_the_node_are_in_default() {
        let event =
            Event { reason: Reason::Starting, regarding: Regarding::Node, note: String::new() };
        let got = build(&event, "node-a", Timestamp::UNIX_EPOCH);
        assert_eq!(got.metadata.namespace.as_deref(), Some("default"));
        let regarding = got.regarding.unwrap();
        assert_eq!(regarding.kind.as_deref(), Some("Node"));
        assert_eq!(regarding.uid.as_deref(), Some("node-a"));
        assert_eq!(got.note, None);
    }

    #[test]
    fn repeats_become_a_series_and_series_end() {
        let start = Instant::now();
        let mut series = Series::default();
        let mut at = |minute: u64| {
            let now = start + Duration::from_secs(60 * minute);
            let write = series.record(Reason::Starting, &Regarding::Node, now);
            if write == Write::Create {
                series.created(Reason::Starting, &Regarding::Node, format!("at-{minute}"), now);
            }
            write
        };
        let patch = |name: &str, count| Write::Patch { name: name.into(), count };
        assert_eq!(at(0), Write::Create);
        assert_eq!(at(1), patch("at-0", 2), "the first repeat makes it a series");
        for minute in [2, 7, 12, 17, 22, 27] {
            assert_eq!(at(minute), Write::Nothing, "minute {minute}");
        }
        assert_eq!(at(31), patch("at-0", 9), "refreshed after half an hour");
        assert_eq!(at(36), Write::Nothing);
        assert_eq!(at(42), Write::Create, "six minutes of silence end a series");
    }

    #[test]
    fn series_are_kept_apart_by_reason_and_object() {
        let now = Instant::now();
        let mut series = Series::default();
        series.created(Reason::Starting, &Regarding::Node, "a".into(), now);
        let other = series.record(Reason::ServiceQuarantined, &Regarding::Node, now);
        assert_eq!(other, Write::Create);
        series.forget(Reason::Starting, &Regarding::Node);
        assert_eq!(series.record(Reason::Starting, &Regarding::Node, now), Write::Create);
    }
}
