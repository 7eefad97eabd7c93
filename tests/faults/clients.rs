//! Clients that dial in a loop, and count.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use kubeweir::model::{Family, Protocol};
use kubeweir::testing::lab::{Dial, Lab, NODE_IP, Outcome, Place, cluster_ip};

/// Dials of one client between two looks at whether it is to stop.
const BURST: usize = 10;

/// Clients that dial until they are stopped.
pub struct Clients {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Tally>>,
}

/// What became of the dials.
#[derive(Debug, Default)]
struct Tally {
    tried: usize,
    failed: Vec<String>,
    /// Questions over UDP to which nothing came back.
    lost: Vec<String>,
}

impl Clients {
    /// Each place dials its address, over TCP and over UDP in turns.
    pub fn start(lab: &Arc<Lab>, dials: &[(Place, SocketAddr)]) -> Clients {
        let stop = Arc::new(AtomicBool::new(false));
        let client = |&(from, to): &(Place, SocketAddr)| {
            let (lab, stop) = (Arc::clone(lab), Arc::clone(&stop));
            std::thread::spawn(move || dial_until(&lab, from, to, &stop))
        };
        let threads = dials.iter().map(client).collect();
        Clients { stop, threads }
    }

    /// Stops them, prints the figures, and fails the test if a dial failed.
    pub fn none_failed(self, during: &str) {
        self.at_most_lost(during, |_| 0);
    }

    /// The same where endpoints go. The answer to a UDP question is lost where its endpoint is removed, and
    /// its flow deleted, while it is on its way: once in 2.5 million at load 18. A gap loses hundreds.
    pub fn none_failed_but_on_its_way(self, during: &str) {
        self.at_most_lost(during, |tried| 1 + tried / 1_000_000);
    }

    fn at_most_lost(self, during: &str, allowed: impl FnOnce(usize) -> usize) {
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = Tally::default();
        for thread in self.threads {
            let tally = thread.join().expect("a client does not panic");
            sum.tried += tally.tried;
            sum.failed.extend(tally.failed);
            sum.lost.extend(tally.lost);
        }
        let Tally { tried, failed, lost } = sum;
        println!("{during}: {tried} connections tried, {} failed", failed.len() + lost.len());
        assert!(tried > 0, "{during}: nobody dialled");
        assert!(
            failed.is_empty() && lost.len() <= allowed(tried),
            "{during}: {failed:#?} {lost:#?}"
        );
    }
}

fn dial_until(lab: &Lab, from: Place, to: SocketAddr, stop: &AtomicBool) -> Tally {
    let mut tally = Tally::default();
    loop {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for outcome in lab.dial(from, Dial::new(protocol, to), BURST) {
                tally.tried += 1;
                let kind = match &outcome {
                    Outcome::Answered(_) => continue,
                    Outcome::Silent if protocol == Protocol::Udp => &mut tally.lost,
                    _ => &mut tally.failed,
                };
                kind.push(format!("{from:?} {to}/{protocol}: {outcome:?}"));
            }
        }
        // A failed dial may have waited long; its reason is known by now.
        if stop.load(Ordering::Relaxed) || tally.failed.len() + tally.lost.len() > 20 {
            return tally;
        }
    }
}

/// From a pod, the host, and outside; to the ClusterIP, and to the NodePort of the node.
pub fn everywhere(n: usize, node_port: u16) -> Vec<(Place, SocketAddr)> {
    let v4 = SocketAddr::new(cluster_ip(n, Family::V4), 80);
    let v6 = SocketAddr::new(cluster_ip(n, Family::V6), 80);
    vec![
        (Place::Pod(1), v4),
        (Place::Pod(2), v6),
        (Place::Host, v4),
        (Place::Outside, SocketAddr::new(NODE_IP.v4, node_port)),
        (Place::Outside, SocketAddr::new(NODE_IP.v6, node_port)),
    ]
}
