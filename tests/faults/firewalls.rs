//! Other firewalls of a node, with their rules as they write them.

use std::net::SocketAddr;

use kubeweir::model::{Family, Protocol};
use kubeweir::testing::lab::{
    CLUSTER_CIDR, Dial, NODE_IP, Netns, Outcome, PATIENCE, Place, Server, cluster_ip, pod_ip,
};

use crate::manifests::Web;
use crate::neighbours::dial;
use crate::node::Node;

const V4: Family = Family::V4;

/// What dockerd writes when it starts, with one container's published port, and the rule by which a CNI
/// plug-in lets pods' packets through docker's closed FORWARD chain.
const DOCKER: &str = "*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A FORWARD -s @PODS@ -j ACCEPT
-A FORWARD -d @PODS@ -j ACCEPT
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 8080 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -s 172.17.0.2/32 -d 172.17.0.2/32 -p tcp -m tcp --dport 8080 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8088 -j DNAT --to-destination 172.17.0.2:8080
COMMIT
";

// Docker's published ports and Services live side by side, with either iptables, and after each is started.
#[test]
fn docker_publishes_its_ports_beside_services() {
    for variant in ["nft", "legacy"] {
        let mut node = Node::new();
        let mut web = Web::new("web", 10, &[Place::Pod(0), Place::RemotePod(0)]);
        web.node_port = Some(30_010);
        node.write("web", &web.objects());
        let container = Netns::new("container").unwrap();
        let bridge = format!(
            "link add docker0 type bridge\naddr add 172.17.0.1/16 dev docker0\nlink set docker0 up\n\
             link add dock type veth peer name eth0 netns {}\nlink set dock master docker0 up",
            container.path()
        );
        node.lab.node.ip(&bridge).unwrap();
        let inside =
            "addr add 172.17.0.2/16 dev eth0\nlink set eth0 up\nroute add default via 172.17.0.1";
        container.ip(inside).unwrap();
        let address: SocketAddr = "172.17.0.2:8080".parse().unwrap();
        let protocols = [Protocol::Tcp, Protocol::Udp];
        let _server = Server::start(&container, "container", &protocols, &[address]).unwrap();
        let rules = DOCKER.replace("@PODS@", &CLUSTER_CIDR.v4.to_string());
        let restore = format!("iptables-{variant}-restore");
        for start in ["docker first", "kubeweir again"] {
            if start == "docker first" {
                node.lab.node.feed(&restore, &[], &rules).unwrap();
            }
            node.start_and_settle(&[]);
            let dials = [
                (Place::Outside, (NODE_IP.v4, 8088), "container"),
                (Place::Outside, (NODE_IP.v4, 30_010), ""),
                (Place::Pod(1), (cluster_ip(10, V4), 80), ""),
                (Place::Host, (cluster_ip(10, V4), 80), ""),
            ];
            for (from, to, server) in dials {
                for _ in 0..5 {
                    let outcome = dial(&node, from, to);
                    let by = outcome.answer().map(|answer| answer.server.as_str());
                    let right = by.is_some_and(|by| server.is_empty() || by == server);
                    assert!(right, "{variant}, {start}: {to:?} from {from:?}: {outcome:?}");
                }
            }
            // From a container to a Service: the node's own rules decide, as for anyone who is no pod.
            let to = SocketAddr::new(cluster_ip(10, V4), 80);
            let outcome = container.dial(Dial::new(Protocol::Tcp, to));
            assert!(outcome.answer().is_some(), "{variant}, {start}: {outcome:?}");
        }
    }
}

/// What firewalld 1.3.3 writes when it starts with its default zone, without the chains that are empty.
const FIREWALLD: &str = "table inet firewalld {
    chain filter_PREROUTING {
        type filter hook prerouting priority filter + 10; policy accept;
        icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept
        meta nfproto ipv6 fib saddr . mark . iif oif missing drop
    }
    chain nat_PREROUTING { type nat hook prerouting priority dstnat + 10; policy accept; }
    chain nat_POSTROUTING { type nat hook postrouting priority srcnat + 10; policy accept; }
    chain nat_OUTPUT { type nat hook output priority -90; policy accept; }
    chain filter_INPUT {
        type filter hook input priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname \"lo\" accept
        ct state invalid drop
        tcp dport 22 accept
        ip6 daddr fe80::/64 udp dport 546 accept
        meta l4proto { icmp, ipv6-icmp } accept
        reject with icmpx admin-prohibited
    }
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname \"lo\" accept
        ct state invalid drop
        reject with icmpx admin-prohibited
    }
}";

/// What a reload of it begins with and ends without.
const FIREWALLD_RELOADS: &str = "table inet firewalld_policy_drop {
    chain filter_input { type filter hook input priority filter + 9; policy drop;
        ct state { established, related } accept
    }
    chain filter_forward { type filter hook forward priority filter + 9; policy drop;
        ct state { established, related } accept
    }
    chain filter_output { type filter hook output priority filter + 9; policy drop;
        ct state { established, related } accept
    }
}";

// firewalld lets through what was translated, and no more: Services are served while it is there, open
// connections go on while it reloads, and what is refused is refused before it is asked.
#[test]
fn firewalld_starts_and_reloads_beside_services() {
    let mut node = Node::new();
    let mut web = Web::new("web", 10, &[Place::Pod(0), Place::RemotePod(0)]);
    web.node_port = Some(30_010);
    node.write("web", &web.objects());
    node.write("none", &Web::new("none", 11, &[]).objects());
    node.start_and_settle(&[]);
    let tcp = Protocol::Tcp;
    let mut flow =
        node.lab.open(Place::Pod(1), tcp, SocketAddr::new(cluster_ip(10, V4), 80)).unwrap();
    let served = |node: &Node, title: &str| {
        for family in Family::BOTH {
            for (from, to) in [
                (Place::Pod(1), (cluster_ip(10, family), 80)),
                (Place::Host, (cluster_ip(10, family), 80)),
                (Place::Outside, (NODE_IP[family], 30_010)),
            ] {
                for _ in 0..5 {
                    let outcome = dial(node, from, to);
                    assert!(outcome.answer().is_some(), "{title}: {to:?} {from:?}: {outcome:?}");
                }
            }
            let refused = dial(node, Place::Pod(1), (cluster_ip(11, family), 80));
            assert_eq!(refused, Outcome::Refused, "{title}, {family}");
        }
        let untranslated = dial(node, Place::Outside, (pod_ip(1, V4), 8080));
        assert!(untranslated.answer().is_none(), "{title}: firewalld is not in force");
    };
    let list = |node: &Node| node.lab.node.nft("list table inet firewalld").unwrap();
    node.lab.node.nft(FIREWALLD).unwrap();
    let written = list(&node);
    served(&node, "firewalld after us");
    node.lab.node.nft(FIREWALLD_RELOADS).unwrap();
    assert!(flow.ask(PATIENCE).answer().is_some(), "while it reloads");
    node.lab.node.nft("delete table inet firewalld").unwrap();
    node.lab.node.nft(FIREWALLD).unwrap();
    node.lab.node.nft("delete table inet firewalld_policy_drop").unwrap();
    served(&node, "reloaded");
    node.start_and_settle(&["--masquerade-all"]);
    served(&node, "another program of ours");
    assert!(flow.ask(PATIENCE).answer().is_some(), "an open connection goes on");
    assert_eq!(list(&node), written);
}
