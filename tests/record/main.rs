//! A record that cannot lie: clients write down every connection and every datagram, with endpoint and
//! time, while endpoints, Services, policies, servers and the agent change and fail. Then a checker
//! that knows nothing but the record says whether it fits ([`check`]).
//!
//! `make record` goes on for ten minutes; `KUBEWEIR_RECORD_SECONDS` says how long, and
//! `KUBEWEIR_RECORD_SEED` which history. The record stays in `target/tmp/record.jsonl`;
//! `KUBEWEIR_RECORD_FILE` has one judged that is there already.

// Tests may panic, their helpers too.
#![allow(clippy::unwrap_used)]

mod check;
mod dialler;
mod lines;
mod world;

#[path = "../faults/manifests.rs"]
#[allow(dead_code)]
mod manifests;
#[path = "../faults/node.rs"]
#[allow(dead_code)]
mod node;
#[path = "../scrape/mod.rs"]
#[allow(dead_code)]
mod scrape;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kubeweir::model::Family;
use kubeweir::testing::lab::{NODE_IP, Place, cluster_ip, external_ip};

use dialler::{Clients, Target};
use lines::{Recorder, Way};
use world::{SERVICES, World};

/// Where a Service is dialled from: a pod that is no endpoint, one that is, the host, outside.
fn targets() -> Vec<Target> {
    let mut targets = Vec::new();
    for (at, (name, n, node_port)) in SERVICES.into_iter().enumerate() {
        for family in Family::BOTH {
            let by_cluster_ip = SocketAddr::new(cluster_ip(n, family), 80);
            let by_node_port = SocketAddr::new(NODE_IP[family], node_port);
            let own = if at == 0 { Place::Pod(2) } else { Place::Pod(0) };
            let mut target = |place, to, way| {
                targets.push(Target { place, to, service: name.to_owned(), way });
            };
            target(own, by_cluster_ip, Way::ClusterIp);
            target(Place::Outside, by_node_port, Way::NodePort);
            if at == 0 {
                target(Place::Host, by_cluster_ip, Way::ClusterIp);
                let by_balancer = SocketAddr::new(external_ip(n, family), 80);
                target(Place::Outside, by_balancer, Way::Balancer);
            }
        }
    }
    targets
}

/// How long it goes on; one round of everything at least, about a minute.
fn length() -> Duration {
    let given = std::env::var("KUBEWEIR_RECORD_SECONDS").ok();
    given.map_or(Duration::ZERO, |text| Duration::from_secs(text.parse().expect("a number")))
}

#[test]
fn the_record_fits() {
    let old = std::env::var_os("KUBEWEIR_RECORD_FILE").map(PathBuf::from);
    let path = old.unwrap_or_else(write_record);
    let verdict = check::check(&lines::read(&path));
    println!("{}: {}", path.display(), verdict.figures);
    println!("{} violations", verdict.violations.len());
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for violation in &verdict.violations {
        let seen = seen.entry(violation.rule).or_default();
        *seen += 1;
        if *seen <= 10 {
            print!("{violation}");
        }
    }
    assert!(verdict.violations.is_empty(), "{seen:?}");
    assert_eq!(verdict.figures.missing(), [""; 0], "too little happened");
}

/// Lets everything happen, and returns what was written of it.
fn write_record() -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("record.jsonl");
    let seed = std::env::var("KUBEWEIR_RECORD_SEED").ok();
    let seed = seed.map_or_else(rand::random, |text| text.parse().expect("a number"));
    println!("KUBEWEIR_RECORD_SEED={seed}");
    let recorder = Recorder::create(&path);
    let mut world = World::new(recorder.pen(), seed);
    let clients = Clients::start(&world.node.lab, &recorder.pen(), &targets());
    let end = Instant::now() + length();
    loop {
        world.round();
        if Instant::now() >= end {
            break;
        }
    }
    world.calm_down();
    clients.stop();
    assert!(!world.node.log().contains("panicked"), "{}", world.node.log());
    drop(world);
    recorder.close();
    path
}
