//! What else lives on a node, with the real programs.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;

use kubeweir::model::{Family, Protocol};
use kubeweir::testing::lab::{
    Agent, CLUSTER_CIDR, Dial, NODE_IP, Netns, OUTSIDE_IP, Outcome, Place, REMOTE_NODE_IP,
    SECOND_NODE_IP, SILENCE, cluster_ip, external_ip, pod_ip, real_external_ip,
};
use kubeweir::testing::slowed;

use crate::manifests::Web;
use crate::node::{Node, PATIENCE};

const V4: Family = Family::V4;

/// Starts a program of the distribution in some namespace; it ends when the value is dropped.
fn program(node: &Node, netns: &Netns, path: &str, args: &[&str]) -> Agent {
    assert!(Path::new(path).exists(), "{path} is needed; see DEBIAN_TEST_PACKAGES in the Makefile");
    let args: Vec<OsString> = args.iter().map(OsString::from).collect();
    let log = node.directory.path().join(Path::new(path).file_name().unwrap());
    Agent::start(netns, Path::new(path), &args, &File::create(log).unwrap()).unwrap()
}

pub fn dial(node: &Node, from: Place, to: (IpAddr, u16)) -> Outcome {
    let dial = Dial::new(Protocol::Tcp, SocketAddr::from(to));
    node.lab.dial(from, dial, 1).remove(0)
}

fn dropped(node: &Node, from: Place, to: (IpAddr, u16)) -> bool {
    let dial = Dial::new(Protocol::Tcp, SocketAddr::from(to)).timeout(SILENCE);
    node.lab.dial(from, dial, 1).remove(0) == Outcome::Silent
}

/// A DNS question for an A record (RFC 1035).
fn question(name: &str) -> Vec<u8> {
    let mut bytes = vec![0x4b, 0x57, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

fn ask_udp(netns: &Netns, server: SocketAddr, question: &[u8]) -> Option<Vec<u8>> {
    netns.run(|| {
        let any: IpAddr = match server.ip() {
            IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        // Connected as a resolver's socket is: an answer from another address would be ignored.
        socket.connect(server).ok()?;
        socket.set_read_timeout(Some(slowed(PATIENCE))).unwrap();
        socket.send(question).ok()?;
        let mut answer = vec![0; 512];
        let len = socket.recv(&mut answer).ok()?;
        answer.truncate(len);
        Some(answer)
    })
}

fn ask_tcp(netns: &Netns, server: SocketAddr, question: &[u8]) -> Option<Vec<u8>> {
    netns.run(|| {
        let mut stream = TcpStream::connect(server).ok()?;
        stream.set_read_timeout(Some(slowed(PATIENCE))).unwrap();
        let len = u16::try_from(question.len()).unwrap().to_be_bytes();
        stream.write_all(&[&len, question].concat()).ok()?;
        let mut len = [0; 2];
        stream.read_exact(&mut len).ok()?;
        let mut answer = vec![0; u16::from_be_bytes(len).into()];
        stream.read_exact(&mut answer).ok()?;
        Some(answer)
    })
}

#[test]
fn a_dns_server_is_the_clusters_dns() {
    let mut node = Node::new();
    let dns = Web { port: 53, target: 53, ..Web::new("kube-dns", 10, &[Place::Pod(1)]) };
    node.write("dns", &dns.objects());
    let pod = node.lab.netns(Place::Pod(1));
    let addresses = Family::BOTH.map(|f| format!("--listen-address={}", pod_ip(1, f)));
    let _server = program(
        &node,
        pod,
        "/usr/sbin/dnsmasq",
        &[
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--bind-interfaces",
            "--user=root",
            "--pid-file",
            "--address=/web.default.svc.cluster.local/10.96.0.99",
            &addresses[0],
            &addresses[1],
        ],
    );
    node.start_and_settle(&[]);
    let question = question("web.default.svc.cluster.local");
    let direct = SocketAddr::new(pod_ip(1, V4), 53);
    let client = node.lab.netns(Place::Pod(2));
    node.wait("dnsmasq", || ask_tcp(client, direct, &question).is_some());
    for from in [Place::Pod(0), Place::Pod(1), Place::Pod(2), Place::Host] {
        for family in Family::BOTH {
            let server = SocketAddr::new(cluster_ip(10, family), 53);
            for (how, ask) in [("UDP", ask_udp as fn(&_, _, &_) -> _), ("TCP", ask_tcp)] {
                for _ in 0..20 {
                    let answer: Option<Vec<u8>> = ask(node.lab.netns(from), server, &question);
                    let answer = answer.unwrap_or_else(|| panic!("{from:?} {server} {how}"));
                    assert!(answer.ends_with(&[10, 96, 0, 99]), "{from:?} {how}: {answer:?}");
                }
            }
        }
    }
}

/// What an HTTP server says at its root.
fn fetch(netns: &Netns, to: (IpAddr, u16)) -> Option<String> {
    netns.run(|| {
        let mut stream = TcpStream::connect(SocketAddr::from(to)).ok()?;
        stream.set_read_timeout(Some(slowed(PATIENCE))).unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\nHost: shop\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        text.split_once("\r\n\r\n").map(|(_, body)| body.trim().to_owned())
    })
}

fn start_nginx(node: &Node) -> Agent {
    let directory = node.directory.path();
    let text = format!(
        "daemon off; master_process off; pid {0}/nginx.pid; error_log {0}/nginx.log;\n\
         events {{}}\n\
         http {{ access_log off;\n\
           client_body_temp_path {0}/b; proxy_temp_path {0}/p; fastcgi_temp_path {0}/f;\n\
           uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;\n\
           server {{ listen 8000; listen [::]:8000; return 200 $remote_addr; }} }}\n",
        directory.display()
    );
    let file = directory.join("nginx.conf");
    fs::write(&file, text).unwrap();
    let pod = node.lab.netns(Place::Pod(0));
    let args = ["-p", directory.to_str().unwrap(), "-c", file.to_str().unwrap()];
    let server = program(node, pod, "/usr/sbin/nginx", &args);
    node.wait("nginx", || fetch(&node.lab.outside, (pod_ip(0, V4), 8000)).is_some());
    server
}

// Tables 5.5 and 5.6 of the reference: policy Local shows the client's own address, policy Cluster
// an address of the node.
#[test]
fn an_ingress_controller_sees_its_clients() {
    let mut node = Node::new();
    let ingress = |name: &str, n: usize, node_port: u16, local: bool| Web {
        target: 8000,
        node_port: Some(node_port),
        external_local: local,
        load_balancer_ips: Family::BOTH.map(|family| external_ip(n, family)).to_vec(),
        ..Web::new(name, n, &[Place::Pod(0)])
    };
    node.write("local", &ingress("local", 20, 30_020, true).objects());
    node.write("anyone", &ingress("anyone", 21, 30_021, false).objects());
    let _nginx = start_nginx(&node);
    node.start_and_settle(&[]);
    let outside = &node.lab.outside;
    let mut fetched = 0;
    for family in Family::BOTH {
        let client = OUTSIDE_IP[family].to_string();
        for at in [(external_ip(20, family), 80), (NODE_IP[family], 30_020)] {
            assert_eq!(fetch(outside, at).as_deref(), Some(client.as_str()), "{at:?}, Local");
            fetched += 1;
        }
        for at in [(external_ip(21, family), 80), (NODE_IP[family], 30_021)] {
            let seen: IpAddr = fetch(outside, at).expect("an answer").parse().unwrap();
            let of_node = [NODE_IP, SECOND_NODE_IP, kubeweir::testing::lab::GATEWAY];
            assert!(of_node.iter().any(|ips| ips[family] == seen), "{at:?}, Cluster: {seen}");
            fetched += 1;
        }
        let inside = fetch(node.lab.netns(Place::Pod(2)), (external_ip(20, family), 80));
        assert_eq!(inside, Some(pod_ip(2, family).to_string()), "a pod by the load balancer's IP");
    }
    println!("{fetched} pages from outside");
}

// Filters work on what is forwarded: endpoints' addresses, and clients' where they are kept.
#[test]
fn a_network_policy_engine_sees_endpoints_and_clients() {
    let mut node = Node::new();
    let mut web = Web::new("web", 10, &[Place::Pod(0)]);
    (web.node_port, web.external_local) = (Some(30_010), true);
    node.write("web", &web.objects());
    node.start_and_settle(&[]);
    let (cluster_ip, node_port) = ((cluster_ip(10, V4), 80), (NODE_IP.v4, 30_010));
    for from in [Place::Pod(1), Place::Pod(2)] {
        assert!(dial(&node, from, cluster_ip).answer().is_some(), "open before the policy");
    }
    // Ingress to pod-0 on 8080 from pod-2 and from one address outside, as an engine would write it.
    let policy = format!(
        "table inet engine {{ chain forward {{ type filter hook forward priority filter;\n\
           ct state established,related accept\n\
           ip daddr {pod} tcp dport 8080 ip saddr {{ {allowed}, {outside} }} accept\n\
           ip daddr {pod} counter drop\n\
         }}\n}}\n",
        pod = pod_ip(0, V4),
        allowed = pod_ip(2, V4),
        outside = OUTSIDE_IP.v4,
    );
    node.lab.node.nft(&policy).unwrap();
    assert!(dial(&node, Place::Pod(2), cluster_ip).answer().is_some(), "allowed pod");
    assert!(dropped(&node, Place::Pod(1), cluster_ip), "another pod");
    assert!(dial(&node, Place::Outside, node_port).answer().is_some(), "allowed block outside");
    assert!(dropped(&node, Place::OutsideAt(7), node_port), "another address outside");
    let unrelated = (pod_ip(1, V4), 8080);
    assert!(dial(&node, Place::Outside, unrelated).answer().is_some(), "no policy there");
}

/// Host ports and egress as CNI plug-ins write them, at a distance from everybody else's priority.
fn cni(distance: i32) -> String {
    let table = |family: Family| {
        let (name, pods) = (family.nft(), CLUSTER_CIDR[family]);
        let to = SocketAddr::new(pod_ip(2, family), 8080);
        let (before, after) = (-100 + distance, 100 + distance);
        format!(
            "table {name} cni {{\n\
               chain prerouting {{ type nat hook prerouting priority {before};\n\
                 fib daddr type local tcp dport 9999 dnat to {to}\n\
               }}\n\
               chain output {{ type nat hook output priority {before};\n\
                 fib daddr type local tcp dport 9999 dnat to {to}\n\
               }}\n\
               chain postrouting {{ type nat hook postrouting priority {after};\n\
                 {name} saddr {pods} {name} daddr != {pods} masquerade\n\
               }}\n\
             }}\n"
        )
    };
    Family::BOTH.map(table).concat()
}

#[test]
fn host_ports_and_egress_of_a_cni_plugin() {
    let mut node = Node::new();
    let mut web = Web::new("web", 10, &[Place::Pod(0), Place::RemotePod(0)]);
    web.node_port = Some(30_010);
    node.write("web", &web.objects());
    let internet = Family::BOTH.map(|family| SocketAddr::new(real_external_ip(1, family), 8080));
    node.lab.serve(Place::Outside, "internet", &internet).unwrap();
    node.start_and_settle(&[]);
    for distance in [-10, -1, 1, 10] {
        node.lab.node.nft(&cni(distance)).unwrap();
        for family in Family::BOTH {
            let title = format!("{distance} {family}");
            let answer = |from, to| {
                let outcome = dial(&node, from, to);
                outcome.answer().unwrap_or_else(|| panic!("{title}: {to:?}: {outcome:?}")).clone()
            };
            let host_port = answer(Place::Outside, (SECOND_NODE_IP[family], 9999));
            assert_eq!((host_port.server.as_str(), host_port.masqueraded()), ("pod-2", false));
            assert_eq!(answer(Place::Host, (NODE_IP[family], 9999)).server, "pod-2");
            let away = answer(Place::Pod(1), (real_external_ip(1, family), 8080));
            assert_eq!((away.server.as_str(), away.masqueraded()), ("internet", true));
            for _ in 0..10 {
                assert!(!answer(Place::Pod(1), (cluster_ip(10, family), 80)).masqueraded());
                assert!(answer(Place::Outside, (NODE_IP[family], 30_010)).masqueraded());
                answer(Place::Host, (cluster_ip(10, family), 80));
            }
        }
        node.lab.node.nft("delete table ip cni; delete table ip6 cni").unwrap();
    }
}

/// The rules of both iptables, without their counters.
fn saved(netns: &Netns) -> [Vec<String>; 2] {
    ["iptables-legacy-save", "iptables-nft-save"].map(|program| {
        let text = netns.feed(program, &[], "").unwrap();
        let rules = text.lines().filter(|line| line.starts_with("-A") || line.starts_with(':'));
        rules.map(|line| line.split(" [").next().unwrap_or(line).to_owned()).collect()
    })
}

#[test]
fn rules_of_both_iptables_stay_and_work() {
    let node = Node::new();
    node.write("web", &Web::new("web", 10, &[Place::Pod(0)]).objects());
    let to = format!("{}:8080", pod_ip(1, V4));
    let run = |program: &str, args: &str| {
        let args: Vec<&str> = args.split(' ').collect();
        node.lab
            .node
            .feed(program, &args, "")
            .unwrap_or_else(|error| panic!("{error}; see DEBIAN_TEST_PACKAGES in the Makefile"))
    };
    for (program, port) in [("iptables-legacy", 7001), ("iptables-nft", 7002)] {
        run(program, "-N LOCAL-POLICY");
        run(program, "-A FORWARD -j LOCAL-POLICY");
        let blocked = pod_ip(2, V4);
        run(program, &format!("-A LOCAL-POLICY -d {blocked} -p tcp --dport 8443 -j DROP"));
        let dnat = format!("-t nat -A PREROUTING -p tcp --dport {port} -j DNAT --to {to}");
        run(program, &dnat);
    }
    let before = saved(&node.lab.node);
    assert!(before.iter().all(|rules| rules.len() > 3), "{before:?}");
    let mut node = node;
    node.start_and_settle(&[]);
    // What other modes of kube-proxy left is looked for a moment after the first sync.
    for round in 0..20 {
        assert!(dial(&node, Place::Pod(1), (cluster_ip(10, V4), 80)).answer().is_some(), "{round}");
        for port in [7001, 7002] {
            let outcome = dial(&node, Place::Outside, (SECOND_NODE_IP.v4, port));
            assert_eq!(outcome.answer().expect("a host port").server, "pod-1", "{port}");
        }
        assert!(dropped(&node, Place::Outside, (pod_ip(2, V4), 8443)), "their filter works");
    }
    assert_eq!(saved(&node.lab.node), before);
}

/// Packets sent by an interface so far.
pub fn sent(netns: &Netns, link: &str) -> u64 {
    let text = netns.run(|| fs::read_to_string("/proc/thread-self/net/dev")).unwrap();
    let line = text.lines().find_map(|line| line.trim().strip_prefix(&format!("{link}:")));
    line.unwrap().split_whitespace().nth(9).unwrap().parse().unwrap()
}

// VXLAN: the kernel's own tunnel that most overlay networks are made of.
#[test]
fn a_tunnel_carries_pod_traffic_between_nodes() {
    let mut node = Node::new();
    let mut web = Web::new("web", 10, &[Place::RemotePod(0), Place::RemotePod(1)]);
    web.node_port = Some(30_010);
    node.write("web", &web.objects());
    let (here, there) = (NODE_IP.v4, REMOTE_NODE_IP.v4);
    let tunnel = |local: IpAddr, remote: IpAddr, last: u8, route: &str| {
        format!(
            "link add vx0 type vxlan id 42 dstport 8472 local {local} remote {remote} dev eth0\n\
             addr add 10.99.0.{last}/24 dev vx0\nlink set vx0 up\n{route}\n"
        )
    };
    node.lab.node.ip(&tunnel(here, there, 1, "route replace 10.244.1.0/24 via 10.99.0.2")).unwrap();
    let back = tunnel(there, here, 2, "route add 10.244.0.0/24 via 10.99.0.1");
    node.lab.elsewhere.ip(&back).unwrap();
    node.start_and_settle(&[]);
    let before = sent(&node.lab.node, "vx0");
    let rounds = 20;
    for _ in 0..rounds {
        let kept = dial(&node, Place::Pod(1), (cluster_ip(10, V4), 80));
        assert!(!kept.answer().expect("over the tunnel").masqueraded(), "{kept:?}");
        let masqueraded =
            [(Place::Host, (cluster_ip(10, V4), 80)), (Place::Outside, (NODE_IP.v4, 30_010))];
        for (from, to) in masqueraded {
            let outcome = dial(&node, from, to);
            let seen = outcome.answer().unwrap_or_else(|| panic!("{from:?}: {outcome:?}")).seen;
            assert_eq!(seen.ip(), IpAddr::from([10, 99, 0, 1]), "the tunnel's own address");
        }
    }
    let carried = sent(&node.lab.node, "vx0") - before;
    println!("{carried} packets through the tunnel for {} connections", 3 * rounds);
    assert!(carried >= 3 * rounds * 3, "a handshake and a question each: {carried}");
}
