//! How often the worker turns, and what each turn tells.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::refusals::{V4, cluster, expected, start};
use super::still;
use crate::engine::Engine;
use crate::kernel::{CommitError, Committed, DumpError, Kernel, Rejection, Transaction};
use crate::model::{Change, Families, Family, Kind, PerFamily};
use crate::program::RuleOptions;
use crate::ruleset::{Element, Name, Ruleset};
use crate::source::Sink;
use crate::sync::{Foreign, Inbox, Limits, Subscriber, Synchronizer, Turn, Worker};
use crate::testing::FakeKernel;
use crate::testing::normal::normal_form;
use crate::testing::objects::{port, service};
use crate::topology::NodeTopology;

/// What a kernel refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refuses {
    Nothing,
    Dumps,
    Commits,
}

/// A kernel that refuses, as long as it is told to, and counts how often each family was tried.
#[derive(Clone)]
struct Unwilling {
    refuses: Arc<Mutex<PerFamily<Refuses>>>,
    tries: Arc<Mutex<PerFamily<u32>>>,
    kernel: Arc<Mutex<FakeKernel>>,
}

impl Unwilling {
    fn new(v4: Refuses, v6: Refuses) -> Self {
        Unwilling {
            refuses: Arc::new(Mutex::new(PerFamily { v4, v6 })),
            tries: Arc::default(),
            kernel: Arc::new(Mutex::new(FakeKernel::new())),
        }
    }

    fn refuses(&self, family: Family, what: Refuses) -> bool {
        self.refuses.lock().unwrap()[family] == what
    }
}

impl Kernel for Unwilling {
    fn commit(&mut self, transaction: &Transaction) -> Result<Committed, CommitError> {
        if self.refuses(transaction.family, Refuses::Commits) {
            self.tries.lock().unwrap()[transaction.family] += 1;
            let (object, errno) = ("table".to_owned(), libc::EPERM);
            let rejection = Rejection { op: None, element: None, object, errno };
            return Err(CommitError::Rejected(rejection));
        }
        self.kernel.lock().unwrap().commit(transaction)
    }

    fn dump(&mut self, family: Family) -> Result<Ruleset, DumpError> {
        if self.refuses(family, Refuses::Dumps) {
            self.tries.lock().unwrap()[family] += 1;
            let source = io::Error::from_raw_os_error(libc::EINTR);
            return Err(DumpError::Io { what: "table", family: family.nft(), source });
        }
        self.kernel.lock().unwrap().dump(family)
    }

    fn dump_set(&mut self, family: Family, set: &Name) -> Result<Vec<Element>, DumpError> {
        self.kernel.lock().unwrap().dump_set(family, set)
    }
}

/// What a test keeps of each turn.
#[derive(Debug, Clone, Copy)]
struct Seen {
    waiting: Families,
    repaired: bool,
}

/// Keeps what was told.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<Seen>>>);

impl Subscriber for Kept {
    fn turn(&mut self, turn: &Turn) {
        let repaired = turn.syncs.iter().any(|s| s.repair.is_some() && s.report.result.is_ok());
        self.0.lock().unwrap().push(Seen { waiting: turn.waiting, repaired });
    }
}

/// A worker on a thread of its own.
struct Running {
    inbox: Arc<Inbox>,
    kept: Kept,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    fn start(engine: Engine, kernel: Unwilling, limits: Limits) -> Self {
        let (inbox, kept) = (Arc::new(Inbox::new()), Kept::default());
        let survey = still(&engine);
        let subscribers: Vec<Box<dyn Subscriber>> = vec![Box::new(kept.clone())];
        let synchronizer = Synchronizer::new(engine, kernel);
        let worker = Worker::new(synchronizer, inbox.clone(), survey, subscribers, limits);
        let thread = Some(std::thread::spawn(move || drop(worker.run())));
        Running { inbox, kept, thread }
    }

    fn turns(&self) -> usize {
        self.kept.0.lock().unwrap().len()
    }

    fn wait(&self, what: &str, mut until: impl FnMut(&[Seen]) -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !until(&self.kept.0.lock().unwrap()) {
            assert!(Instant::now() < end, "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.inbox.close();
        let ended = self.thread.take().expect("running").join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

fn dual_stack() -> Engine {
    let node_topology = NodeTopology { node: "a".into(), zone: None };
    let mut engine = Engine::new(RuleOptions::nftables(), node_topology, Families::DUAL, true);
    for kind in Kind::ALL {
        engine.apply(Change::Replace(kind, Vec::new()));
    }
    engine
}

fn limits(min_interval: u64, audit: u64) -> Limits {
    Limits {
        min_interval: Duration::from_millis(min_interval),
        retry: Duration::from_secs(30),
        audit: Duration::from_millis(audit),
    }
}

/// How often a family whose every sync fails is tried at most since then: at once, and after pauses of 50,
/// 100, 200, 400 ms and so on. However late a busy machine lets a test look, these are few.
fn tries_since(start: Instant) -> u32 {
    1 + (start.elapsed().as_millis() / 50 + 1).ilog2()
}

// B2: an overdue audit, a repair and a retry all wait for the pause after a failure, or the minimum
// interval: within a second of failing there are a handful of turns, not thousands.
#[test]
fn a_worker_whose_every_sync_fails_turns_a_handful_of_times() {
    for refuses in [Refuses::Dumps, Refuses::Commits] {
        for (min_interval, audit) in [(0, 3_600_000), (0, 1), (300, 1), (5_000, 1)] {
            let start = Instant::now();
            let kernel = Unwilling::new(refuses, refuses);
            let running = Running::start(dual_stack(), kernel, limits(min_interval, audit));
            for family in Family::BOTH {
                running.inbox.foreign_change(family, Foreign::default());
            }
            running.wait("a turn", |turns| !turns.is_empty());
            std::thread::sleep(Duration::from_millis(700));
            let turns = running.turns();
            // In two families, and the first turn and what comes in besides.
            let allowed = 2 * tries_since(start) as usize + 4;
            assert!(turns <= allowed, "{refuses:?} {min_interval} {audit}: {turns} > {allowed}");
        }
    }
}

// B2: the same with a refused service whose retry comes due while the family may not be synced.
#[test]
fn a_retry_that_is_due_waits_for_the_minimum_interval() {
    let Synchronizer { engine, .. } = start(cluster(3), FakeKernel::new());
    let kernel = Unwilling::new(Refuses::Nothing, Refuses::Nothing);
    kernel.kernel.lock().unwrap().dislike(|op| {
        use crate::kernel::Op;
        let named = |e: &Element| e.key.as_bytes().starts_with(&[10, 96, 0, 1]);
        let Op::AddElements(_, elements) = op else { return None };
        elements.iter().any(named).then_some(libc::EINVAL)
    });
    let start = Instant::now();
    let running = Running::start(engine, kernel, limits(3_000, 3_600_000));
    running.wait("a turn", |turns| !turns.is_empty());
    // The retry is due after one second.
    std::thread::sleep(Duration::from_millis(1_500));
    let turns = running.turns();
    let allowed = 4 + 2 * (start.elapsed().as_secs() / 3) as usize;
    assert!(turns <= allowed, "{turns} > {allowed}");
}

// B11: changes of one family never bring a retry of the other one forward.
#[test]
fn a_failing_family_is_not_tried_sooner_because_the_other_one_changes() {
    let kernel = Unwilling::new(Refuses::Nothing, Refuses::Dumps);
    let tries = kernel.tries.clone();
    let start = Instant::now();
    let running = Running::start(dual_stack(), kernel, limits(0, 3_600_000));
    for i in 0..300_u32 {
        let mut object = service("web", &["10.96.0.1"]);
        object.ports.push(port("http", crate::model::Protocol::Tcp, 80 + (i % 2) as u16, None));
        running.inbox.deliver(Change::Apply(object.into()));
        std::thread::sleep(Duration::from_millis(2));
    }
    running.wait("a turn", |turns| !turns.is_empty());
    let tries = tries.lock().unwrap().v6;
    let allowed = tries_since(start) + 1;
    assert!((1..=allowed).contains(&tries), "{tries} tries, at most {allowed}");
}

// B12, B14: a repair that fails is work that waits, in every turn, and counts once it succeeded.
#[test]
fn a_failing_repair_is_work_that_waits_and_counts_when_it_succeeds() {
    let kernel = Unwilling::new(Refuses::Nothing, Refuses::Nothing);
    let refuses = kernel.refuses.clone();
    let running = Running::start(dual_stack(), kernel, limits(20, 3_600_000));
    running.wait("the first sync", |turns| !turns.is_empty());
    let first = running.turns();
    refuses.lock().unwrap().v4 = Refuses::Dumps;
    running.inbox.foreign_change(Family::V4, Foreign::default());
    running.wait("three failing turns", |turns| turns.len() >= first + 3);
    let kept = running.kept.0.lock().unwrap().clone();
    let waits = kept[first..].iter().all(|turn| turn.waiting.v4 && !turn.repaired);
    assert!(waits, "{kept:?}");
    refuses.lock().unwrap().v4 = Refuses::Nothing;
    running.wait("the repair", |turns| turns.iter().filter(|turn| turn.repaired).count() == 1);
}

// A table is read back from time to time, also when nobody told of a change.

/// A kernel that others can reach.
#[derive(Clone)]
struct Shared(Arc<Mutex<FakeKernel>>);

impl Kernel for Shared {
    fn commit(&mut self, transaction: &Transaction) -> Result<Committed, CommitError> {
        self.0.lock().unwrap().commit(transaction)
    }

    fn dump(&mut self, family: Family) -> Result<Ruleset, DumpError> {
        self.0.lock().unwrap().dump(family)
    }

    fn dump_set(&mut self, family: Family, set: &Name) -> Result<Vec<Element>, DumpError> {
        self.0.lock().unwrap().dump_set(family, set)
    }
}

// B-197: what nobody told of is found, and put right, when the time for a full sync has come.
#[test]
fn an_unnoticed_change_is_found_by_the_periodic_full_sync() {
    assert_eq!(Limits::AUDIT, Duration::from_secs(3600));
    let kernel = Shared(Arc::new(Mutex::new(FakeKernel::new())));
    let Synchronizer { engine, .. } = start(cluster(3), FakeKernel::new());
    let survey = still(&engine);
    let synchronizer = Synchronizer::new(engine, kernel.clone());
    let inbox = Arc::new(Inbox::new());
    let limits = Limits {
        min_interval: Duration::ZERO,
        retry: Duration::from_secs(30),
        audit: Duration::from_millis(10),
    };
    let worker = Worker::new(synchronizer, inbox.clone(), survey, Vec::new(), limits);
    let thread = std::thread::spawn(move || worker.run());
    let wanted = expected(cluster(3));
    let until_right = || {
        let end = Instant::now() + Duration::from_secs(20);
        while normal_form(kernel.0.lock().unwrap().ruleset(V4)) != wanted {
            assert!(Instant::now() < end, "it stays wrong");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    until_right();
    *kernel.0.lock().unwrap().ruleset_mut(V4) = Ruleset::empty(V4);
    until_right();
    inbox.close();
    thread.join().unwrap();
}
