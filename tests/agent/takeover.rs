//! Other kube-proxies before and after ours, and `--cleanup`.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kubeweir::model::{Family, Protocol};
use kubeweir::testing::lab::{
    CLUSTER_CIDR, Dial, Lab, NODE_IP, Outcome, Place, SERVICE_CIDR, cluster_ip, external_ip, pod_ip,
};

use crate::objects::{node_port, slice};
use crate::site::Site;

const UPSTREAM: &str = include_str!("../data/takeover/upstream.nft");
const IPTABLES_MODE: &str = include_str!("../data/cleanup/iptables-mode.rules");
/// Both kinds of iptables keep their rules apart.
const VARIANTS: [&str; 2] = ["nft", "legacy"];
const FOREIGN: &str = include_str!("../data/cleanup/foreign.rules");

/// A text with its marks replaced.
pub fn filled<const N: usize>(text: &str, marks: [(&str, String); N]) -> String {
    marks.iter().fold(text.to_owned(), |text, (mark, value)| text.replace(mark, value))
}

/// Upstream's transactions, one for each family, with an endpoint.
fn upstream(endpoint: usize) -> [String; 2] {
    Family::BOTH.map(|family| {
        let marks = [
            ("@IP@", family.nft().to_owned()),
            ("@TYPE@", if family == Family::V4 { "ipv4_addr" } else { "ipv6_addr" }.to_owned()),
            ("@NODE@", NODE_IP[family].to_string()),
            ("@PODS@", CLUSTER_CIDR[family].to_string()),
            ("@SERVICES@", SERVICE_CIDR[family].to_string()),
            ("@CLUSTER@", cluster_ip(1, family).to_string()),
            ("@ENDPOINT@", pod_ip(endpoint, family).to_string()),
        ];
        filled(UPSTREAM, marks)
    })
}

/// An upstream kube-proxy in nftables mode syncs, with an endpoint in pod 0.
fn upstream_writes(site: &Site) {
    for transaction in upstream(0) {
        site.node().nft(&transaction).unwrap();
    }
}

/// `iptables` or `ip6tables`, of a variant.
fn iptables(family: Family, variant: &str, what: &str) -> String {
    let program = if family == Family::V4 { "iptables" } else { "ip6tables" };
    format!("{program}-{variant}-{what}")
}

/// What an iptables-mode kube-proxy has for the same Service.
fn iptables_mode(site: &Site, variant: &str) {
    for family in Family::BOTH {
        let pod = pod_ip(0, family);
        let marks = [
            ("@CLUSTER@", cluster_ip(1, family).to_string()),
            ("@VIP@", external_ip(1, family).to_string()),
            ("@POD@", pod.to_string()),
            ("@TARGET@", SocketAddr::new(pod, 8080).to_string()),
        ];
        for rules in [FOREIGN, &filled(IPTABLES_MODE, marks)] {
            let restore = iptables(family, variant, "restore");
            site.node().feed(&restore, &["--noflush"], rules).unwrap();
        }
    }
}

pub fn web(site: &Site, endpoint: usize) {
    site.server.put(&node_port("web", 1, 30080));
    for family in Family::BOTH {
        site.server.put(&slice("web", family, &[Place::Pod(endpoint)]));
    }
}

/// The iptables rules of both families.
fn saved(site: &Site, variant: &str) -> String {
    let save = |family| site.node().feed(&iptables(family, variant, "save"), &[], "").unwrap();
    save(Family::V4) + &save(Family::V6)
}

/// What new connections came to while something was done.
pub struct Dialled {
    outcomes: Vec<Outcome>,
    before: usize,
    /// Whoever has to repeat a SYN was not served at once. How long it took tells nothing: the machine may
    /// have stood still.
    repeated: usize,
}

/// Dials the Service's ClusterIPs again and again, from a pod, while `work` is done, and somewhat
/// longer.
pub fn while_dialling(lab: &Lab, work: impl FnOnce()) -> Dialled {
    let repeated = repeated_syns(lab);
    let done = AtomicBool::new(false);
    let started = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let dialler = scope.spawn(|| {
            let mut outcomes = Vec::new();
            while !done.load(Ordering::Relaxed) {
                for to in services() {
                    outcomes.extend(lab.dial(Place::Pod(1), Dial::new(Protocol::Tcp, to), 5));
                }
                started.store(true, Ordering::Relaxed);
            }
            outcomes
        });
        // Also when `work` panics: the scope waits for the dialler.
        let end = Ending(&done);
        while !started.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
        }
        work();
        drop(end);
        let outcomes = dialler.join().unwrap();
        Dialled { before: 10, outcomes, repeated: repeated_syns(lab) - repeated }
    })
}

/// How many SYNs, or answers to one, the dialling pod has sent again so far.
fn repeated_syns(lab: &Lab) -> usize {
    let text =
        lab.pods[1].run(|| std::fs::read_to_string("/proc/thread-self/net/netstat").unwrap());
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let [names, values] = [(); 2].map(|()| lines.next().unwrap().split_whitespace());
    let (_, value) = names.zip(values).find(|(name, _)| *name == "TCPSynRetrans").unwrap();
    value.parse().unwrap()
}

/// Sets a flag when it goes.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Dialled {
    pub fn assert_all_served(&self) {
        self.assert_served_but(0);
    }

    /// The same where the connection that was open at one moment may end.
    pub fn assert_served_but(&self, open: usize) {
        assert!(self.outcomes.len() > self.before, "dials after the start");
        let unserved = self.outcomes.iter().filter(|outcome| outcome.answer().is_none());
        let unserved: Vec<_> = unserved.collect();
        assert!(
            unserved.len() + self.repeated <= open,
            "{} of {}, and {} repeated SYNs: {unserved:?}",
            unserved.len(),
            self.outcomes.len(),
            self.repeated
        );
    }
}

fn services() -> [SocketAddr; 2] {
    Family::BOTH.map(|family| SocketAddr::new(cluster_ip(1, family), 80))
}

// B-203, B-204, B-205, Q-32: after an iptables-mode kube-proxy ours are in force before theirs go;
// no new connection of either family fails, and of others' rules none is missing. And back: a kube-proxy
// of that mode, whose start deletes our tables, serves after us.
#[test]
fn from_iptables_mode_and_back() {
    VARIANTS.into_iter().for_each(from_iptables_and_back);
}

fn from_iptables_and_back(variant: &str) {
    let site = Site::lab();
    web(&site, 0);
    for family in Family::BOTH {
        let restore = iptables(family, variant, "restore");
        site.node().feed(&restore, &["--noflush"], FOREIGN).unwrap();
    }
    let strip = |text: String| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| line.split(" [").next().unwrap_or(line).to_owned()).collect()
    };
    let foreign = strip(saved(&site, variant));
    iptables_mode(&site, variant);
    let mut proxy = None;
    let dialled = while_dialling(site.lab_ref(), || {
        let started = site.start();
        site.wait(&started, "the end of the old rules", || {
            let old = saved(&site, variant).contains("KUBE-SVC-AAAA");
            assert!(old || site.is_synced(), "theirs are gone before ours are there");
            !old
        });
        proxy = Some(started);
    });
    dialled.assert_all_served();
    let proxy = proxy.unwrap();
    proxy.wait_log(&["Removed what another proxy mode had left"]);
    // FOREIGN was loaded twice: appended rules are there twice, too.
    let left: Vec<String> = strip(saved(&site, variant));
    assert!(foreign.iter().all(|line| left.contains(line)), "{left:#?}");
    assert!(!left.iter().any(|line| line.contains("KUBE-SERVICES")), "{left:#?}");

    for family in Family::BOTH {
        site.server.put(&slice("web", family, &[Place::Pod(2)]));
    }
    site.wait_served(&proxy, 1, "pod-2");
    proxy.terminate();
    site.node().nft("delete table ip kube-proxy\ndelete table ip6 kube-proxy").unwrap();
    iptables_mode(&site, variant);
    for to in services() {
        let outcome = site.dial(Place::Pod(1), Protocol::Tcp, to);
        let by = outcome.answer().map(|answer| answer.server.as_str());
        assert_eq!(by, Some("pod-0"), "{variant} {to}: {outcome:?}");
    }
}

// B-188, B-191, B-207: an upstream table is replaced in one transaction, in each mode of ours.
#[test]
fn after_upstream_nftables_mode() {
    for mode in ["nftables", "iptables"] {
        let site = Site::lab();
        web(&site, 0);
        upstream_writes(&site);
        let mut proxy = None;
        let dialled = while_dialling(site.lab_ref(), || {
            let started = site.start_config(|config| config["mode"] = mode.into());
            let ours = |family| site.table(family).contains("chain pick");
            site.wait(&started, "our tables", || Family::BOTH.into_iter().all(ours));
            proxy = Some(started);
        });
        dialled.assert_all_served();
        for table in Family::BOTH.map(|family| site.table(family)) {
            let theirs = ["service-nodeports", "default/web/tcp"];
            assert!(!theirs.iter().any(|name| table.contains(name)), "{table}");
        }
    }
}

// B-179, B-188: an upstream kube-proxy takes our table over once we have ended, and we take it back.
#[test]
fn upstream_after_us() {
    let site = Site::lab();
    web(&site, 2);
    let plain =
        |config: &mut serde_json::Value| config["kubeweir"]["tableOwnership"] = false.into();
    let proxy = site.start_config(plain);
    site.wait_served(&proxy, 1, "pod-2");
    proxy.terminate();
    let dialled = while_dialling(site.lab_ref(), || {
        upstream_writes(&site);
    });
    dialled.assert_all_served();
    let served_by = |to| {
        let outcome = site.dial(Place::Outside, Protocol::Tcp, to);
        outcome.answer().map(|answer| answer.server.clone())
    };
    let node_ports = Family::BOTH.map(|family| SocketAddr::new(NODE_IP[family], 30080));
    for to in services().into_iter().chain(node_ports) {
        assert_eq!(served_by(to).as_deref(), Some("pod-0"), "{to}");
    }
    let proxy = site.start();
    site.wait_served(&proxy, 1, "pod-2");
}

// B-022, B-023, B-204: --cleanup takes our table, upstream's and iptables mode's rules, and leaves
// others'; a second time there is nothing to do; no API server is asked.
#[test]
fn cleanup() {
    let mut site = Site::lab();
    web(&site, 0);
    let proxy = site.start();
    site.wait_served(&proxy, 1, "pod-0");
    proxy.terminate();
    site.server.stop();
    for variant in VARIANTS {
        iptables_mode(&site, variant);
    }
    let config = site.config(|_| {});
    let clean = |arguments: &[&str]| {
        let output = site.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    };
    clean(&[&config, "--cleanup"]);
    for variant in VARIANTS {
        let left = saved(&site, variant);
        assert!(!left.contains("KUBE-SERVICES") && left.contains("KUBE-FIREWALL"), "{left}");
    }
    let tables = || site.node().feed("nft", &["list", "tables"], "").unwrap();
    assert!(!tables().contains("kube-proxy"), "{}", tables());

    upstream_writes(&site);
    clean(&["--cleanup"]);
    assert!(!tables().contains("kube-proxy"), "{}", tables());
    clean(&["--cleanup"]);
}

// B-022: what cannot be removed is exit code 1: the table of an agent that still runs.
#[test]
fn cleanup_under_a_running_agent() {
    let site = Site::bare();
    let _proxy = site.start();
    let output = site.run(&["--cleanup"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(site.is_synced(), "it stays");
}
