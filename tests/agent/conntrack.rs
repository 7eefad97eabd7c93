//! The kernel's conntrack table: what the agent tells of it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use kubeweir::model::{Family, Protocol};
use kubeweir::testing::lab::{PATIENCE, Place, cluster_ip};
use serde_json::Value;

use crate::objects::{service, slice};
use crate::site::Site;

/// A table that takes more flows would take too long to fill, and too much memory.
const LARGEST: f64 = (1 << 20) as f64;

fn figure(site: &Site, name: &str) -> f64 {
    site.scrape().value(&format!("kubeweir_conntrack_{name}"), &[]).expect("exported always")
}

/// What `conntrack -S` says of all CPUs together.
fn counted(site: &Site, name: &str) -> f64 {
    let text = site.node().feed("conntrack", &["-S"], "").unwrap();
    let words =
        text.split_whitespace().filter_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    words.map(|count| count.parse::<f64>().expect("a number")).sum()
}

/// Opens so many flows that nobody answers, from the node to itself.
fn fill(flows: usize) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let hosts = (2..=u8::MAX).map(|last| Ipv4Addr::new(127, 0, 0, last));
    let to = hosts.flat_map(|host| (1024..=u16::MAX).map(move |port| (host, port)));
    for to in to.take(flows) {
        // A full table refuses some; an ICMP error about an earlier datagram is told here, too.
        let _ = socket.send_to(b"", to);
    }
}

#[test]
fn figures_are_the_kernels_and_a_full_table_is_told() {
    let site = Site::lab();
    let proxy = site.start();
    site.wait(&proxy, "entries", || figure(&site, "entries") > 0.0);
    let limit = figure(&site, "entries_limit");
    let path = "/proc/sys/net/netfilter/nf_conntrack_max";
    let max = site.node().run(|| std::fs::read_to_string(path).unwrap());
    assert_eq!(limit.to_string(), max.trim());
    assert!(
        limit <= LARGEST,
        "this test fills the table: nf_conntrack_max has to be below {LARGEST}"
    );
    assert_eq!(figure(&site, "early_drops_total"), 0.0);

    // A busy machine needs longer to fill it than flows without an answer last.
    site.node().sysctl("net/netfilter/nf_conntrack_udp_timeout", "600").unwrap();
    site.node().run(|| fill(limit as usize + 1000));
    let event = site.wait_event("ConntrackNearLimit");
    assert_eq!(event["type"], "Warning");
    assert_eq!(event["regarding"]["kind"], "Node");
    let note = event["note"].as_str().unwrap();
    assert!(note.contains(&format!("of {limit} entries (")), "{note}");
    assert!(note.contains("conntrack.maxPerCore"), "{note}");
    site.wait(&proxy, "flows pushed out", || figure(&site, "early_drops_total") > 0.0);
    proxy.wait_log(&["The conntrack table is nearly full"]);
    let said: Value = site.json(crate::site::METRICS, kubeweir::status::PATH);
    assert_eq!(said["conntrack"]["limit"], limit as u64);
    assert!(said["conntrack"]["entries"].as_f64().unwrap() > 0.5 * limit, "{said}");

    site.node().feed("conntrack", &["-F"], "").unwrap();
    proxy.wait_log(&["The conntrack table has room again"]);
    for (metric, theirs) in [
        ("early_drops_total", "early_drop"),
        ("drops_total", "drop"),
        ("insert_failures_total", "insert_failed"),
        ("search_restarts_total", "search_restart"),
        ("clashes_resolved_total", "clash_resolve"),
        ("chains_too_long_total", "chaintoolong"),
    ] {
        site.wait(&proxy, metric, || figure(&site, metric) == counted(&site, theirs));
    }
}

#[test]
fn flows_that_cannot_be_tracked_are_counted() {
    let site = Site::lab();
    site.server.put(&service("web", 1));
    site.server.put(&slice("web", Family::V4, &[Place::RemotePod(0)]));
    let proxy = site.start();
    site.wait_served(&proxy, 1, "remote-0");

    // Who has no entry any more and may not get one in the middle of a flow.
    let to = SocketAddr::new(cluster_ip(1, Family::V4), 80);
    let mut flow = site.lab_ref().open(Place::Pod(1), Protocol::Tcp, to).unwrap();
    assert!(flow.ask(PATIENCE).answer().is_some());
    let before = figure(&site, "invalid_packets_total");
    site.node().sysctl("net/netfilter/nf_conntrack_tcp_loose", "0").unwrap();
    site.node().feed("conntrack", &["-F"], "").unwrap();
    flow.ask(Duration::from_millis(300));
    site.wait(&proxy, "an invalid packet", || figure(&site, "invalid_packets_total") > before);

    // Two flows that a rule of somebody else gives the same addresses and ports.
    let rule = "table ip narrow { chain post { type nat hook postrouting priority 90;\n\
                ip daddr 198.51.100.77 tcp dport 9 snat to 192.168.10.1:1000\n}\n}";
    site.node().nft(rule).unwrap();
    site.lab_ref().outside.ip("route add blackhole 198.51.100.77").unwrap();
    let [failed, dropped] = ["insert_failures_total", "drops_total"];
    let before = [failed, dropped].map(|name| figure(&site, name));
    let nobody = SocketAddr::new(IpAddr::from([198, 51, 100, 77]), 9);
    site.node().run(|| {
        for _ in 0..2 {
            TcpStream::connect_timeout(&nobody, Duration::from_millis(300)).ok();
        }
    });
    for (name, before) in [failed, dropped].into_iter().zip(before) {
        site.wait(&proxy, name, || figure(&site, name) > before);
    }
}
