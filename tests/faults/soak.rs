//! Churn for a long time: `KUBEWEIR_SOAK_SECONDS=600` for ten minutes, a few seconds without it.

use std::fs;
use std::time::{Duration, Instant};

use kubeweir::model::Family;
use kubeweir::ruleset::Ruleset;
use kubeweir::testing::lab::{KernelMemory, Place};
use serde_json::Value;

use crate::clients::{Clients, everywhere};
use crate::manifests::{Web, bystanders};
use crate::node::Node;

const SERVED: usize = 10;
const NODE_PORT: u16 = 30_010;

/// Churning services, in files of so many: a file is read whole, and reading is not what is tested.
const SERVICES: usize = 1000;
const IN_A_FILE: usize = 10;

/// Growth beyond this in the second half is a leak.
const FLAT: u64 = 16 << 20;

/// The same for what the kernel holds; lists differ from round to round.
const FLAT_KERNEL: u64 = 2 << 20;

/// Rounds at least, and half of them before memory is looked at: until about ten thousand changes of
/// objects it grows into its holes, however fast they come.
const ROUNDS: usize = 30;

fn seconds() -> u64 {
    let given = std::env::var("KUBEWEIR_SOAK_SECONDS").ok();
    given.map_or(20, |text| text.parse().expect("a number of seconds"))
}

/// Resident memory in bytes.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the agent runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// What process and kernel hold at some moment.
#[derive(Debug)]
struct Held {
    /// Bytes of the process.
    resident: u64,
    /// Bytes of the kernel, where they are accounted.
    kernel: Option<u64>,
    /// Elements, sets and chains of both tables.
    objects: [usize; 3],
}

impl Held {
    /// Waits for a moment at which nothing changes: otherwise no table can be read.
    fn by(node: &Node, kernel: Option<&KernelMemory>) -> Held {
        let mut tables = None;
        node.wait("tables at rest", || {
            tables = node.try_tables();
            tables.is_some()
        });
        let tables = tables.expect("they were waited for");
        let sum =
            |count: fn(&Ruleset) -> usize| Family::BOTH.map(|f| count(&tables[f])).iter().sum();
        let elements = |t: &Ruleset| t.sets.values().map(|(_, elements)| elements.len()).sum();
        Held {
            resident: resident(node.pid()),
            kernel: kernel.and_then(KernelMemory::bytes),
            objects: [sum(elements), sum(|t| t.sets.len()), sum(|t| t.chains.len())],
        }
    }

    /// Fails if there is more of it than some time before.
    fn is_not_more_than(&self, before: &Held) {
        println!("after half of it {before:?}");
        println!("at the end       {self:?}");
        assert!(self.resident < before.resident + FLAT, "memory grows");
        // Lists differ from round to round, but not by so much.
        let piles_up = |(now, before): (&usize, &usize)| *now > before + before / 2;
        assert!(!self.objects.iter().zip(&before.objects).any(piles_up), "objects pile up");
        match (before.kernel, self.kernel) {
            (Some(before), Some(now)) => {
                assert!(now < before + FLAT_KERNEL, "memory of the kernel grows");
            }
            _ => println!("kernel memory is not measured: no memory cgroup can be made here"),
        }
    }
}

/// The services of one file in some round: their lists change in every round, their shape sometimes.
fn file(node: &Node, number: usize, round: usize) -> usize {
    let from = 1000 + number * IN_A_FILE;
    let mut objects = bystanders(from, IN_A_FILE, round);
    for object in &mut objects {
        // Names are numbered from 0 in each file.
        let text = object.to_string().replace("bystander-", &format!("churn-{number}-"));
        *object = serde_json::from_str::<Value>(&text).expect("it was JSON before");
        if object["kind"] == "Service" {
            object["spec"]["type"] = "ClusterIP".into();
            for port in object["spec"]["ports"].as_array_mut().expect("ports") {
                port.as_object_mut().expect("a port").remove("nodePort");
            }
            if (round + number).is_multiple_of(7) {
                object["spec"]["sessionAffinity"] = "ClientIP".into();
            }
        }
    }
    if (round + number).is_multiple_of(13) {
        objects.clear();
    }
    node.write(&format!("churn-{number}"), &objects);
    // A Service's two slices change with it.
    3 * IN_A_FILE
}

#[test]
fn churn_loses_no_connection_and_no_memory() {
    let mut node = Node::new();
    let mut served = Web::new("served", SERVED, &[Place::Pod(0), Place::RemotePod(0)]);
    served.node_port = Some(NODE_PORT);
    node.write("served", &served.objects());
    for number in 0..SERVICES / IN_A_FILE {
        file(&node, number, 0);
    }
    node.start_and_settle(&[]);
    let kernel = KernelMemory::of(node.pid());
    let clients = Clients::start(&node.lab, &everywhere(SERVED, NODE_PORT));
    let (start, length) = (Instant::now(), Duration::from_secs(seconds()));
    let (mut changes, mut round, mut half, mut most_waiting) = (0, 0, None, 0);
    while start.elapsed() < length || round < ROUNDS {
        round += 1;
        let extra = [Place::Pod(1), Place::RemotePod(1), Place::Pod(2), Place::RemotePod(2)];
        // What is dialled churns too, around an endpoint that lives on.
        served.endpoints = [&[Place::Pod(0)], &extra[..round % 5]].concat();
        node.write("served", &served.objects());
        for number in 0..SERVICES / IN_A_FILE {
            changes += file(&node, number, round);
            if start.elapsed() > length / 2 && round > ROUNDS / 2 && half.is_none() {
                half = Some(Held::by(&node, kernel.as_ref()));
            }
        }
        // The page asks the kernel, too, which answers nobody while it commits: on a busy machine the
        // server may give an exchange up.
        let mut status = None;
        node.wait("a status", || {
            status = node.status();
            status.is_some()
        });
        most_waiting = most_waiting.max(status.map_or(0, |status| status.backlog));
    }
    node.settled();
    let rate = changes as u64 / start.elapsed().as_secs().max(1);
    println!(
        "{changes} changes of objects in {:.0?}, {rate} a second, at most {most_waiting} waiting",
        start.elapsed()
    );
    Held::by(&node, kernel.as_ref()).is_not_more_than(&half.expect("time passed"));
    clients.none_failed_but_on_its_way("churn");
    assert!(rate > 100, "hundreds of changes a second: {rate}");
    assert!(most_waiting <= 3 * SERVICES + 10, "one change for each object at most");
    assert!(!node.log().contains("panicked"));
    // The mirror: a reader that trusts nothing finds nothing to change.
    node.like_fresh(&[]);
    node.start_and_settle(&[]);
    let last = node.status().expect("the agent runs").families["IPv4"].last_sync.clone();
    let last = last.expect("it has synced");
    assert_eq!((last.added, last.deleted), (0, 0), "kernel and mirror were equal");
}
