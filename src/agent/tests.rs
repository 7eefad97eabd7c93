//! A service that the kernel refuses: who learns of it.

use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};

use super::flows::{self, Told};
use super::note::Note;
use super::subscribers::tests::addressing;
use super::subscribers::{self, Fatal, Outlets, no_health_checks};
use crate::api::{Client, Options, Recorder};
use crate::engine::Engine;
use crate::health::{Health, ProxyHealth};
use crate::kernel::Op;
use crate::metrics::{BuildInfo, Exposition, Metrics, Mode};
use crate::model::{Change, Families, Kind, Node, Object, Protocol};
use crate::program::RuleOptions;
use crate::ruleset::{Element, Key};
use crate::source::Sink;
use crate::status::SharedStatus;
use crate::sync::{Inbox, Limits, Synchronizer, Worker};
use crate::testing::api_server::text;
use crate::testing::objects::{port, service, slice};
use crate::testing::{ApiServer, FakeKernel};
use crate::topology::NodeTopology;

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("not poisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Services good-0 to good-8 and `culprit`, each with an endpoint.
fn objects() -> Vec<Object> {
    let names = (0..9).map(|i| (format!("good-{i}"), i)).chain([("culprit".to_owned(), 66)]);
    let both = |(name, i): (String, u8)| -> [Object; 2] {
        let mut object = service(&name, &[&format!("10.96.0.{i}")]);
        object.ports.push(port("http", Protocol::Tcp, 80, None));
        let ports = ("http", Protocol::Tcp, 8080);
        let endpoints = [format!("10.244.0.{i}")];
        let slice = slice(&format!("{name}-x"), &name, ports, &[&endpoints[0]]);
        [object.into(), slice.into()]
    };
    names.flat_map(both).collect()
}

/// Refuses whatever mentions 10.96.0.66, as a kernel with a fault of its own might.
fn refusing() -> FakeKernel {
    let mut kernel = FakeKernel::new();
    kernel.dislike(|op| {
        let Op::AddElements(_, elements) = op else { return None };
        let culprit = Key::new().address([10, 96, 0, 66].into());
        let mentions = |e: &Element| e.key.as_bytes().starts_with(culprit.as_bytes());
        elements.iter().any(mentions).then_some(libc::ENFILE)
    });
    kernel
}

fn outlets(
    metrics: &Arc<Metrics>,
    status: &SharedStatus,
    notes: mpsc::UnboundedSender<Note>,
) -> Outlets {
    let told = Told {
        metrics: metrics.clone(),
        notes: notes.clone(),
        status: status.clone(),
        inbox: Arc::default(),
    };
    Outlets {
        metrics: metrics.clone(),
        bulk: Arc::default(),
        health: Health::new(ProxyHealth::new(Duration::from_secs(30))),
        status: status.clone(),
        flows: flows::start("a".into(), told).expect("a thread"),
        health_checks: watch::channel(no_health_checks()).0,
        localhost: crate::localhost::Desired::new().0,
        notes,
        fatal: Fatal::default(),
        end_connections_after: None,
    }
}

fn synchronizer(kernel: FakeKernel) -> Synchronizer<FakeKernel> {
    let node_topology = NodeTopology { node: "a".into(), zone: None };
    let families = Families { v4: true, v6: false };
    Synchronizer::new(Engine::new(RuleOptions::nftables(), node_topology, families, true), kernel)
}

fn worker(
    inbox: &Arc<Inbox>,
    around: Outlets,
    synchronizer: Synchronizer<FakeKernel>,
) -> Worker<FakeKernel> {
    let limits = Limits {
        min_interval: Duration::ZERO,
        retry: Duration::from_secs(30),
        audit: Limits::AUDIT,
    };
    let addressing = addressing();
    let subscribers = subscribers::all(around, &addressing);
    let survey = Box::new(move |_: Option<&Node>, _| addressing.clone());
    Worker::new(synchronizer, inbox.clone(), survey, subscribers, limits)
}

/// Writes the Event of a note to an API server; what arrived.
fn event_of(note: Note) -> serde_json::Value {
    let event = note.event().expect("it ends nothing");
    let server = ApiServer::start_plain(Ipv4Addr::LOCALHOST.into()).expect("a server");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let _entered = runtime.enter();
    let options = Options {
        kubeconfig: None,
        master: Some(server.url()),
        content_type: String::new(),
        accept_content_types: String::new(),
        qps: -1.0,
        burst: 0,
        user_agent: "test".to_owned(),
    };
    let client = Client::new(options, Arc::new(|_| {})).expect("a client");
    Recorder::start(client, "a").record(event);
    server.wait("the Event", Duration::from_secs(20), |server| !server.events().is_empty());
    server.events().remove(0)
}

// One bad service never stops the others, and is named in the log, in an Event, in the metrics and
// in the status.
#[test]
fn a_refused_service_is_named_everywhere_and_the_others_are_served() {
    let build = BuildInfo::default();
    let metrics = Arc::new(Metrics::new(Mode::Nftables, &build, Timestamp::now()));
    let (status, inbox, log) = (SharedStatus::default(), Arc::new(Inbox::new()), Log::default());
    let (notes, mut noted) = mpsc::unbounded_channel();
    for kind in Kind::ALL {
        let of_kind = objects().into_iter().filter(|object| object.kind() == kind).collect();
        inbox.deliver(Change::Replace(kind, of_kind));
    }
    inbox.close();
    let stream = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(Mutex::new(stream)).finish();
    tracing::subscriber::with_default(subscriber, || {
        // Does all there is to do, and ends because the inbox is closed.
        worker(&inbox, outlets(&metrics, &status, notes), synchronizer(refusing())).run();
    });

    let family = &status.get().families["IPv4"];
    assert_eq!(family.summary.totals.services, 9, "the others are served");
    assert_eq!((family.summary.dirty, family.summary.set_aside, family.failed_syncs), (0, 1, 0));
    let quarantined = &family.quarantine[0];
    assert_eq!((quarantined.service.as_str(), quarantined.refusals), ("default/culprit", 1));
    assert!(quarantined.reason.starts_with("add element "), "{}", quarantined.reason);

    let sentence = "IPv4: default/culprit is set aside, refused 1 times so far: add element ";
    let problems = crate::inspect::status::problems(&status.get());
    assert!(problems.len() == 1 && problems[0].starts_with(sentence), "{problems:?}");

    let scrape = metrics.scrape(Exposition::Text).expect("a scrape");
    let scrape = String::from_utf8(scrape).expect("text");
    for line in [
        "kubeweir_quarantined_services 1",
        "kubeweir_rejected_commits_total{errno=\"ENFILE\",ip_family=\"IPv4\"} 1",
    ] {
        assert!(scrape.lines().any(|found| found == line), "{line}");
    }

    let log = String::from_utf8(log.0.lock().expect("not poisoned").clone()).expect("text");
    let told = |line: &&str| line.contains("The kernel refused a service; it is set aside");
    let line = log.lines().find(told).unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains("default/culprit") && line.contains("add element"), "{line}");

    let event = event_of(noted.try_recv().expect("a note"));
    for (pointer, want) in [
        ("/reason", "ServiceQuarantined"),
        ("/type", "Warning"),
        ("/regarding/kind", "Service"),
        ("/regarding/name", "culprit"),
        ("/note", quarantined.reason.as_str()),
    ] {
        assert_eq!(text(&event, pointer), want, "{pointer}");
    }
}

/// Value of a sample that is spelled like this; 0 if it is absent.
fn sample(metrics: &Metrics, name: &str) -> u64 {
    let scrape = metrics.scrape(Exposition::Text).expect("a scrape");
    let scrape = String::from_utf8(scrape).expect("text");
    let line = scrape.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0, |value| value.parse().expect("a whole number"))
}

// B-259: failed deletions of what nothing needs any more are counted apart from failed syncs.
#[test]
fn a_failed_deletion_of_garbage_is_counted_and_is_no_failed_sync() {
    let metrics = Arc::new(Metrics::new(Mode::Nftables, &BuildInfo::default(), Timestamp::now()));
    let (status, inbox) = (SharedStatus::default(), Arc::new(Inbox::new()));
    let (notes, _noted) = mpsc::unbounded_channel();
    let mut kernel = FakeKernel::new();
    let garbage = |op: &Op| matches!(op, Op::DeleteSet(_) | Op::DeleteChain(_));
    kernel.dislike(move |op| garbage(op).then_some(libc::EBUSY));
    let around = || outlets(&metrics, &status, notes.clone());
    let mut sticky = service("sticky", &["10.96.0.1"]);
    sticky.ports.push(port("http", Protocol::Tcp, 80, None));
    sticky.session_affinity = Some(60);
    let endpoints = slice("sticky-x", "sticky", ("http", Protocol::Tcp, 8080), &["10.244.0.1"]);
    for kind in Kind::ALL {
        let objects = [Object::from(sticky.clone()), endpoints.clone().into()];
        let of_kind = objects.into_iter().filter(|object| object.kind() == kind).collect();
        inbox.deliver(Change::Replace(kind, of_kind));
    }
    inbox.close();
    let synchronizer = worker(&inbox, around(), synchronizer(kernel)).run();
    let failures = "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total{ip_family=\"IPv4\"}";
    assert_eq!(sample(&metrics, failures), 0);
    sticky.session_affinity = None;
    let inbox = Arc::new(Inbox::new());
    inbox.deliver(Change::Apply(sticky.into()));
    inbox.close();
    worker(&inbox, around(), synchronizer).run();
    assert_eq!(sample(&metrics, failures), 1);
    assert_eq!(status.get().families["IPv4"].failed_syncs, 0);
}
