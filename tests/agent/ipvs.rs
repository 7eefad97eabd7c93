//! From and back to kube-proxy's ipvs mode, with real virtual servers: `make kernels` runs these.

use std::net::SocketAddr;

use kubeweir::model::{Family, Protocol};
use kubeweir::testing::lab::{CLUSTER_CIDR, NODE_IP, PATIENCE, Place, SILENCE, cluster_ip, pod_ip};

use crate::site::{Proxy, Site};
use crate::takeover::{Dialled, filled, web, while_dialling};

const SETS: &str = include_str!("../data/takeover/ipvs.sets");
const RULES: &str = include_str!("../data/takeover/ipvs.rules");

/// What an ipvs-mode kube-proxy has for one Service with a NodePort and its endpoint in pod 0; what is
/// there already stays.
fn ipvs_mode(site: &Site, iptables: &str) {
    let node = site.node();
    let run = |program: &str, args: &[&str], input: &str| {
        node.feed(program, args, input).unwrap();
    };
    for setting in
        ["conntrack", "conn_reuse_mode", "expire_nodest_conn", "expire_quiescent_template"]
    {
        let value = if setting == "conn_reuse_mode" { "0" } else { "1" };
        node.sysctl(&format!("net/ipv4/vs/{setting}"), value)
            .expect("IPVS (module ip_vs), which not every kernel has; see make kernels");
    }
    node.ip("link add kube-ipvs0 type dummy").unwrap();
    for family in Family::BOTH {
        let (cluster, pod) = (cluster_ip(1, family), pod_ip(0, family));
        let (kube, inet, tables) = match family {
            Family::V4 => ("KUBE-", "inet", "iptables"),
            Family::V6 => ("KUBE-6-", "inet6", "ip6tables"),
        };
        let marks = || {
            [
                ("@KUBE@", kube.to_owned()),
                ("@INET@", inet.to_owned()),
                ("@CLUSTER@", cluster.to_string()),
                ("@POD@", pod.to_string()),
                ("@PODS@", CLUSTER_CIDR[family].to_string()),
            ]
        };
        run("ipset", &["restore", "-exist"], &filled(SETS, marks()));
        let restore = format!("{tables}-{iptables}-restore");
        run(&restore, &["--noflush"], &filled(RULES, marks()));
        let suffix = if family == Family::V4 { "" } else { " nodad" };
        node.ip(&format!("addr add {cluster} dev kube-ipvs0{suffix}")).unwrap();
        let target = SocketAddr::new(pod, 8080).to_string();
        for frontend in [SocketAddr::new(cluster, 80), SocketAddr::new(NODE_IP[family], 30080)] {
            let frontend = frontend.to_string();
            run("ipvsadm", &["-A", "-t", &frontend, "-s", "rr"], "");
            run("ipvsadm", &["-a", "-t", &frontend, "-r", &target, "-m"], "");
        }
    }
}

fn virtual_servers(site: &Site) -> String {
    site.node().feed("ipvsadm", &["-S", "-n"], "").unwrap()
}

/// Both frontends from where they are dialled are answered by this server.
fn assert_served(site: &Site, server: &str) {
    for family in Family::BOTH {
        let frontends = [
            (Place::Pod(1), SocketAddr::new(cluster_ip(1, family), 80)),
            (Place::Host, SocketAddr::new(cluster_ip(1, family), 80)),
            (Place::Outside, SocketAddr::new(NODE_IP[family], 30080)),
        ];
        for (from, to) in frontends {
            let outcome = site.dial(from, Protocol::Tcp, to);
            let by = outcome.answer().map(|answer| answer.server.as_str());
            assert_eq!(by, Some(server), "{to} from {from:?}: {outcome:?}");
        }
    }
}

fn taken_over(site: &Site, mode: &str) -> (Proxy, Dialled) {
    let mut proxy = None;
    let dialled = while_dialling(site.lab_ref(), || {
        let started = site.start_config(|config| config["mode"] = mode.into());
        site.wait(&started, "the end of their link", || {
            site.node().feed("ip", &["link", "show", "kube-ipvs0"], "").is_err()
        });
        proxy = Some(started);
    });
    (proxy.unwrap(), dialled)
}

// B-206, Q-20, Q-32: there and back, with either iptables: no new connection fails, their link, virtual
// servers of ClusterIPs, sets and chains go, and what they write after us works. A connection that IPVS
// has may end with its virtual server, as kernels do: only its own table knows where it goes.
#[test]
#[ignore = "needs a kernel with IPVS: make kernels"]
fn from_ipvs_mode_and_back() {
    for (iptables, mode) in [("nft", "ipvs"), ("legacy", "nftables")] {
        let site = Site::lab();
        web(&site, 0);
        ipvs_mode(&site, iptables);
        assert_served(&site, "pod-0");
        let frontend = SocketAddr::new(cluster_ip(1, Family::V4), 80);
        let mut open = site.lab_ref().open(Place::Pod(1), Protocol::Tcp, frontend).unwrap();
        assert!(open.ask(PATIENCE).answer().is_some());
        let (proxy, dialled) = taken_over(&site, mode);
        dialled.assert_served_but(1);
        println!("a connection that IPVS has: {:?}", open.ask(SILENCE));
        proxy.wait_log(&["Removed what another proxy mode had left", "services=2"]);
        let left = virtual_servers(&site);
        for family in Family::BOTH {
            let gone = cluster_ip(1, family).to_string();
            assert!(!left.contains(&gone), "{left}");
            let [tables, kube] = match family {
                Family::V4 => ["iptables", "KUBE-C"],
                Family::V6 => ["ip6tables", "KUBE-6-C"],
            };
            let saved = site.node().feed(&format!("{tables}-{iptables}-save"), &[], "").unwrap();
            assert!(!saved.contains("KUBE-SERVICES"), "{saved}");
            let sets = site.node().feed("ipset", &["list", "-n"], "").unwrap();
            assert!(!sets.contains(kube), "{sets}");
        }
        assert_served(&site, "pod-0");
        for family in Family::BOTH {
            site.server.put(&crate::objects::slice("web", family, &[Place::RemotePod(1)]));
        }
        site.wait_served(&proxy, 1, "remote-1");

        // What an ipvs-mode kube-proxy does when it starts: our tables go, then its own rules come.
        proxy.terminate();
        site.node().nft("delete table ip kube-proxy\ndelete table ip6 kube-proxy").unwrap();
        site.node().feed("ipvsadm", &["-C"], "").unwrap();
        ipvs_mode(&site, iptables);
        assert_served(&site, "pod-0");
    }
}

// B-022, B-023, B-206: --cleanup takes all of it but virtual servers on addresses that are not theirs.
#[test]
#[ignore = "needs a kernel with IPVS: make kernels"]
fn clean_up_of_ipvs_mode() {
    let site = Site::lab();
    ipvs_mode(&site, "nft");
    // Their NodePorts' virtual servers sit on the node's own addresses, and so might anyone's.
    let output = site.run(&["--cleanup"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("2 IPVS services stay"), "{said}");
    let left = virtual_servers(&site);
    assert_eq!(left.matches("-A -t").count(), 2, "{left}");
    assert!(left.contains(&NODE_IP.v4.to_string()), "{left}");
    let (links, sets) = (
        site.node().feed("ip", &["link"], "").unwrap(),
        site.node().feed("ipset", &["list", "-n"], ""),
    );
    assert!(!links.contains("kube-ipvs0") && !sets.unwrap().contains("KUBE-"));
    site.node().feed("ipvsadm", &["-C"], "").unwrap();
    assert_eq!(site.run(&["--cleanup"]).status.code(), Some(0));
}
