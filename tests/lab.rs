//! The lab itself: that its sockets tell the truth about rules written by hand.

#![allow(clippy::unwrap_used)] // a test binary, helpers included

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use kubeweir::model::{Family, Protocol};
use kubeweir::testing::lab::{
    Agent, Answer, Dial, Lab, NODE_IP, Outcome, PATIENCE, Place, PodNetwork, SECOND_NODE_IP,
    SILENCE, cluster_ip, external_ip, pod_ip, real_external_ip, remote_pod_ip,
};
use kubeweir::testing::slowed;

const NETWORKS: [PodNetwork; 2] = [PodNetwork::Routed, PodNetwork::Bridge];
const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
const SERVICE: usize = 10;
const REJECTED: usize = 11;
const DROPPED: usize = 12;

/// A ClusterIP with two endpoints, hairpin masquerade, a refusal and a drop.
fn rules(family: Family) -> String {
    let nft = family.nft();
    let [service, rejected, dropped] =
        [SERVICE, REJECTED, DROPPED].map(|n| cluster_ip(n, family).to_string());
    let (local, remote) = (pod_ip(0, family), remote_pod_ip(0, family));
    let dnat = format!(
        "{nft} daddr {service} meta l4proto {{ tcp, udp }} th dport 80 \
         dnat {nft} to numgen random mod 2 map {{ 0 : {local} . 8080, 1 : {remote} . 8080 }}"
    );
    let refuse = format!(
        "{nft} daddr {rejected} meta l4proto tcp reject with tcp reset\n\
         {nft} daddr {rejected} reject\n{nft} daddr {dropped} drop"
    );
    format!(
        "table {nft} by-hand {{
            chain prerouting {{ type nat hook prerouting priority -100; {dnat}; }}
            chain output {{ type nat hook output priority -100; {dnat}; }}
            chain postrouting {{ type nat hook postrouting priority 100;
                ct status dnat {nft} saddr {local} {nft} daddr {local} masquerade fully-random
            }}
            chain forward {{ type filter hook forward priority 0;
                {refuse}
            }}
            chain filter-output {{ type filter hook output priority 0;
                {refuse}
            }}
        }}"
    )
}

fn answers(outcomes: &[Outcome]) -> Vec<&Answer> {
    let answer = |o: &'_ Outcome| assert!(o.answer().is_some(), "not an answer: {outcomes:?}");
    outcomes.iter().for_each(answer);
    outcomes.iter().filter_map(Outcome::answer).collect()
}

#[test]
fn every_place_reaches_every_server_without_rules() {
    let places = [
        Place::Pod(0),
        Place::Pod(1),
        Place::RemotePod(2),
        Place::Host,
        Place::Outside,
        Place::OutsideAt(9),
    ];
    for network in NETWORKS {
        let lab = Lab::new(network).unwrap();
        for (family, protocol) in Family::BOTH.into_iter().zip(PROTOCOLS) {
            for place in places {
                let pod = (pod_ip(0, family), "pod-0");
                let remote = (remote_pod_ip(1, family), "remote-1");
                for (to, name) in [pod, remote] {
                    let dial = Dial::new(protocol, SocketAddr::new(to, 8080));
                    let outcomes = lab.dial(place, dial, 1);
                    let answer = answers(&outcomes)[0];
                    assert_eq!(answer.server, name, "{network:?} {place:?}");
                    assert_eq!(answer.endpoint, dial.to);
                    assert!(!answer.masqueraded(), "{network:?} {place:?} {answer:?}");
                    let source = place.source(family).unwrap_or(answer.seen.ip());
                    assert_eq!(answer.seen.ip(), source);
                }
            }
        }
    }
}

#[test]
fn dnat_hairpin_refusal_and_drop_show() {
    for network in NETWORKS {
        let lab = Lab::new(network).unwrap();
        for family in Family::BOTH {
            lab.node.nft(&rules(family)).unwrap();
            std::thread::scope(|scope| {
                let lab = &lab;
                for protocol in PROTOCOLS {
                    for place in [Place::Pod(0), Place::Pod(1), Place::Host, Place::Outside] {
                        scope.spawn(move || check_rules(lab, place, protocol, family));
                    }
                }
            });
        }
    }
}

fn check_rules(lab: &Lab, place: Place, protocol: Protocol, family: Family) {
    let case = format!("{place:?} {protocol} {family}, look with {}", lab.node.hint());
    let to = |n| Dial::new(protocol, SocketAddr::new(cluster_ip(n, family), 80));
    let both = BTreeSet::from(["pod-0".to_owned(), "remote-0".to_owned()]);
    let outcomes = lab.dial(place, to(SERVICE), 40);
    let answers = answers(&outcomes);
    let names: BTreeSet<String> = answers.iter().map(|a| a.server.clone()).collect();
    assert_eq!(names, both, "{case}");
    for answer in answers {
        let hairpin = place == Place::Pod(0) && answer.server == "pod-0";
        assert_eq!(answer.masqueraded(), hairpin, "{case}: {answer:?}");
    }
    let refused = lab.dial(place, to(REJECTED), 2);
    assert_eq!(refused, [Outcome::Refused, Outcome::Refused], "{case}");
    let dropped = to(DROPPED).timeout(SILENCE);
    assert_eq!(lab.dial(place, dropped, 1), [Outcome::Silent], "{case}");
}

#[test]
fn addresses_are_where_the_lab_says() {
    let lab = Lab::new(PodNetwork::Routed).unwrap();
    for family in Family::BOTH {
        let bound = external_ip(20, family);
        lab.bind_on_node(bound).unwrap();
        let on_node = [bound, NODE_IP[family], SECOND_NODE_IP[family]];
        let at = on_node.map(|ip: IpAddr| SocketAddr::new(ip, 9100));
        lab.serve(Place::Host, "host", &at).unwrap();
        let real = SocketAddr::new(real_external_ip(5, family), 9100);
        lab.serve(Place::Outside, "real", &[real]).unwrap();
        for protocol in PROTOCOLS {
            for place in [Place::Pod(0), Place::RemotePod(0), Place::Host, Place::Outside] {
                for to in at {
                    let outcomes = lab.dial(place, Dial::new(protocol, to), 1);
                    assert_eq!(answers(&outcomes)[0].endpoint, to);
                }
                let outcomes = lab.dial(place, Dial::new(protocol, real), 1);
                assert_eq!(answers(&outcomes)[0].server, "real");
            }
            let nobody = Dial::new(protocol, SocketAddr::new(NODE_IP[family], 9));
            assert_eq!(lab.dial(Place::Outside, nobody, 1), [Outcome::Refused]);
        }
    }
}

#[test]
fn open_flows_outlive_their_rules() {
    let lab = Lab::new(PodNetwork::Routed).unwrap();
    for family in Family::BOTH {
        lab.node.nft(&rules(family)).unwrap();
        for protocol in PROTOCOLS {
            let to = SocketAddr::new(cluster_ip(SERVICE, family), 80);
            let mut flow = lab.open(Place::Pod(1), protocol, to).expect("opens");
            let first = flow.ask(PATIENCE);
            assert!(first.answer().is_some(), "{first:?}");
            // Some rule that needs conntrack has to stay, or the kernel turns it off.
            lab.node.nft(&format!("flush chain {} by-hand prerouting", family.nft())).unwrap();
            assert_eq!(flow.ask(PATIENCE), first, "{protocol} {family}");
            lab.node.nft(&format!("delete table {} by-hand", family.nft())).unwrap();
            lab.node.nft(&rules(family)).unwrap();
        }
    }
}

#[test]
fn programs_run_on_the_node_and_end_with_the_agent() {
    let lab = Lab::new(PodNetwork::Routed).unwrap();
    let log = tempfile::tempfile().unwrap();
    let args = ["infinity".into()];
    let agent = Agent::start(&lab.node, "sleep".as_ref(), &args, &log).unwrap();
    let process = format!("/proc/{}", agent.pid());
    let netns = std::fs::read_link(format!("{process}/ns/net")).unwrap();
    let node = lab.node.run(|| std::fs::read_link("/proc/thread-self/ns/net").unwrap());
    assert_eq!(netns, node);
    drop(agent);
    assert!(!std::path::Path::new(&process).exists());
    let agent = Agent::start(&lab.node, "sleep".as_ref(), &args, &log).unwrap();
    // SIGTERM may reach setpriv before it has become the program; either way it ends by the signal.
    let ended = agent.terminate(PATIENCE).expect("ends in time");
    assert!(!ended.success());
}

#[test]
fn a_lab_is_ready_quickly() {
    let start = Instant::now();
    let labs: Vec<Lab> = (0..3).map(|_| Lab::new(PodNetwork::Bridge).unwrap()).collect();
    println!("{:?} a lab", start.elapsed() / 3);
    drop(labs);
    assert!(start.elapsed() < slowed(Duration::from_secs(15)), "{:?}", start.elapsed());
}

// An agent under strace outlived its test, and the whole run.
#[test]
fn what_a_program_has_started_ends_with_it() {
    let lab = Lab::new(PodNetwork::Routed).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let written = directory.path().join("pid");
    let script = format!(
        "(sleep 1000 & echo $! > {0}.draft; mv {0}.draft {0}; wait) & wait",
        written.display()
    );
    let log = std::fs::File::create(directory.path().join("log")).unwrap();
    let args = ["-c".into(), script.into()];
    let program = Agent::start(&lab.node, Path::new("sh"), &args, &log).unwrap();
    let wait = |what: &str, done: &dyn Fn() -> bool| {
        let deadline = Instant::now() + slowed(Duration::from_secs(10));
        while !done() {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    wait("its start", &|| written.exists());
    let pid = std::fs::read_to_string(&written).unwrap();
    let state = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).ok()?;
        stat.split_whitespace().nth(2).map(str::to_owned)
    };
    assert!(state().is_some_and(|state| state != "Z"));
    drop(program);
    wait("its end", &|| state().is_none_or(|state| state == "Z"));
}
