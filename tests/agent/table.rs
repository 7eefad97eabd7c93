//! The table as other software sees it while the agent works.

use std::io::Write;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kubeweir::model::{Family, Protocol};
use kubeweir::testing::lab::{Dial, PATIENCE, Place, cluster_ip};
use kubeweir::testing::slowed;
use serde_json::{Value, json};

use crate::objects::{node_port, service, slice};
use crate::site::{HEALTHZ, SOON, Site};

/// The header and the rules of a chain, without indentation.
fn chain(table: &str, name: &str) -> String {
    let start = format!("chain {name} {{");
    let body = table.split(&start).nth(1).unwrap_or_else(|| panic!("no {name} in {table}"));
    let lines = body.split('}').next().unwrap().lines().map(str::trim);
    lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

// B-179, B-180, B-181, B-185: base chains where other software expects them, and what they lead to.
#[test]
fn hooks() {
    for (mode, restricted) in [("nftables", true), ("iptables", false)] {
        let site = Site::bare();
        let mut web = node_port("web", 1, 30080);
        web["spec"]["type"] = "LoadBalancer".into();
        web["spec"]["loadBalancerSourceRanges"] = json!(["203.0.113.0/24"]);
        web["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": "192.0.2.10" }] } });
        site.server.put(&web);
        site.server.put(&slice("web", Family::V4, &[Place::RemotePod(0)]));
        let _proxy = site.start_config(|config| config["mode"] = mode.into());
        let table = site.table(Family::V4);
        // In iptables' mode before the hostPorts of others, as upstream's rules are there.
        let (prerouting, output, entrance) = match mode {
            "iptables" => ("dstnat - 1", "-101", "jump to-nodeports"),
            _ => ("dstnat", "-100", "jump nodeports"),
        };
        let prerouting = format!("type nat hook prerouting priority {prerouting};");
        let output = format!("type nat hook output priority {output};");
        for (name, header, leads_to) in [
            ("nat-prerouting", &*prerouting, entrance),
            ("nat-output", &*output, entrance),
            ("nat-postrouting", "type nat hook postrouting priority srcnat;", "jump masquerading"),
            (
                "filter-prerouting-pre-dnat",
                "type filter hook prerouting priority dstnat - 10;",
                "jump firewall-check",
            ),
            (
                "filter-output-pre-dnat",
                "type filter hook output priority -110;",
                "jump firewall-check",
            ),
        ] {
            let chain = chain(&table, name);
            assert!(chain.starts_with(header) && chain.ends_with(leads_to), "{name}: {chain}");
        }
        assert!(chain(&table, "firewall-check").contains("vmap @restricted-services"));
        assert_eq!(table.contains("set nodeport-ips"), restricted, "{mode}: {table}");
    }
}

// B-178, B-189: tables of others, with things that no kube-proxy knows, are as they were. Nor are
// they read, also by a later start: sets that an older nft cannot read end every sync of upstream
// (kubernetes#136786).
#[test]
fn foreign_tables() {
    let foreign = "table inet mine {
        set seen { type ipv4_addr . inet_service; flags interval,timeout; }
        set names { type ifname; flags interval; elements = { \"eth*\", \"wl0\" }; }
        map typed { typeof ip saddr . ct mark : verdict; flags timeout; counter; }
        chain early { type filter hook prerouting priority -300; ct state untracked counter; }
        chain named { meta mark set ct mark; limit rate 5/second log prefix \"x\"; fib daddr type unicast; }
    }
    table arp other {
        chain in { type filter hook input priority 0; arp operation 1 accept; }
    }
    table netdev third {
    }";
    let site = Site::lab();
    site.node().nft(foreign).unwrap();
    let list = |name: &str| {
        let words: Vec<&str> = ["list", "table"].into_iter().chain(name.split(' ')).collect();
        site.node().feed("nft", &words, "").unwrap()
    };
    let tables = ["inet mine", "arp other", "netdev third"];
    let before = tables.map(list);
    site.server.put(&service("web", 1));
    site.server.put(&slice("web", Family::V4, &[Place::Pod(0)]));
    let proxy = site.start();
    site.wait_served(&proxy, 1, "pod-0");
    site.server.put(&slice("web", Family::V4, &[Place::Pod(2)]));
    site.wait_served(&proxy, 1, "pod-2");
    proxy.terminate();
    let proxy = site.start();
    site.server.put(&slice("web", Family::V4, &[Place::Pod(0)]));
    site.wait_served(&proxy, 1, "pod-0");
    assert_eq!(tables.map(list), before);
    let all = site.node().feed("nft", &["list", "tables"], "").unwrap();
    assert_eq!(all.lines().count(), 2 + tables.len(), "{all}");
}

// B-187, B-104, B-195: while endpoints are swapped again and again, every new connection is served.
#[test]
fn no_state_in_between() {
    let site = Site::lab();
    site.server.put(&service("web", 1));
    let slices = [[Place::Pod(0)].as_slice(), &[Place::Pod(2), Place::RemotePod(0)]];
    site.server.put(&slice("web", Family::V4, slices[0]));
    let proxy = site.start();
    site.wait_served(&proxy, 1, "pod-0");
    let to = SocketAddr::new(cluster_ip(1, Family::V4), 80);
    let mut servers = std::collections::BTreeSet::new();
    let end = Instant::now() + slowed(SOON);
    for round in 0.. {
        // A busy agent sees many swaps as one, or as none.
        if round >= 30 && (servers.len() == 3 || Instant::now() > end) {
            break;
        }
        site.server.put(&slice("web", Family::V4, slices[(round + 1) % 2]));
        let dial = Dial::new(Protocol::Tcp, to).timeout(PATIENCE);
        for outcome in site.lab_ref().dial(Place::Pod(1), dial, 20) {
            let answer = outcome.answer().unwrap_or_else(|| panic!("{outcome:?}"));
            servers.insert(answer.server.clone());
        }
    }
    assert_eq!(servers.len(), 3, "the swaps were seen: {servers:?}");
    assert!(!proxy.log().contains("Sync failed"), "{}", proxy.log());
}

/// A program that owns a family's table, and thereby keeps us from it.
pub struct Owner(Child);

impl Owner {
    /// Returns when it has it.
    pub fn of_v6(site: &Site) -> Owner {
        let mut command = Command::new("nft");
        command.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = site.node().run(|| command.spawn().unwrap());
        let stdin = child.stdin.as_mut().unwrap();
        stdin.write_all(b"add table ip6 kube-proxy { flags owner ; }\n").unwrap();
        stdin.flush().unwrap();
        let (owner, end) = (Owner(child), Instant::now() + slowed(SOON));
        let tables = || site.node().feed("nft", &["list", "tables"], "").unwrap();
        while !tables().contains("ip6 kube-proxy") {
            assert!(Instant::now() < end, "nft does not take the table");
            std::thread::sleep(Duration::from_millis(10));
        }
        owner
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

// B-202, B-233, B-234, B-196, B-259: one family that cannot be programmed is late, counted and tried
// again; the other works.
#[test]
fn one_family_fails() {
    let site = Site::lab();
    let owner = Owner::of_v6(&site);
    site.server.put(&service("web", 1));
    for family in Family::BOTH {
        site.server.put(&slice("web", family, &[Place::Pod(0)]));
    }
    let config = site.config(|config| config["nftables"]["syncPeriod"] = "1s".into());
    let proxy = site.launch(&[&config, "--hostname-override=node"]);
    site.wait_served(&proxy, 1, "pod-0");
    // On a busy machine IPv4 may be late, too, for a while, and before IPv6 is.
    let only_v6_is_late = || {
        let answer = site.get(HEALTHZ, "/livez");
        let body: Value = serde_json::from_slice(&answer.body).unwrap();
        let healthy = |family: &str| body["status"][family]["healthy"].as_bool();
        answer.status == 503 && (healthy("IPv4"), healthy("IPv6")) == (Some(true), Some(false))
    };
    site.wait(&proxy, "503 for IPv6 alone", only_v6_is_late);
    let failures = "kubeproxy_sync_proxy_rules_nftables_sync_failures_total";
    let scrape = site.scrape();
    assert!(scrape.value(failures, &[("ip_family", "IPv6")]) >= Some(1.0));
    assert_eq!(scrape.value(failures, &[("ip_family", "IPv4")]), None);
    drop(owner);
    site.wait(&proxy, "IPv6", || site.is_synced());
    site.wait(&proxy, "200", || site.get(HEALTHZ, "/livez").status == 200);
}
