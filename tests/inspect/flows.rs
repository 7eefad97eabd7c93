//! `kubeweir flows`: whose connections there are, and how they come and go.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use kubeweir::model::Protocol;
use kubeweir::testing::lab::{Flow, PATIENCE, Place};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::scene::{Said, Scene, binary, unprivileged};

/// How long an event may take: the list that puts things right comes every ten seconds.
const SOON: Duration = Duration::from_secs(40);

const WEB: &str = "10.96.0.10:80";
const NODE_PORT: &str = "192.168.10.1:30080";
const SIX: &str = "[fd00:10:96::77]:53";

/// Another Service, over UDP and IPv6.
const DNS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: dns, namespace: shop}
spec:
  clusterIPs: ["fd00:10:96::77"]
  clusterIP: "fd00:10:96::77"
  ipFamilies: [IPv6]
  ports:
  - {name: dns, port: 53, protocol: UDP}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: dns-1, namespace: shop, labels: {kubernetes.io/service-name: dns}}
addressType: IPv6
ports:
- {name: dns, port: 5353, protocol: UDP}
endpoints:
- {addresses: ["fd00:10:244::a"], nodeName: node}
"#;

fn open(scene: &Scene, from: Place, protocol: Protocol, to: &str) -> (Flow, String, String) {
    let mut flow = scene.lab.open(from, protocol, to.parse().unwrap()).unwrap();
    let answer = flow.ask(PATIENCE).answer().expect("it is served").clone();
    (flow, answer.client.to_string(), answer.endpoint.to_string())
}

fn listed(scene: &Scene, of: &str) -> Vec<Value> {
    let said = scene.kubeweir(&["flows", of, "-o", "json"]);
    assert_eq!((said.code, said.stderr.as_str()), (0, ""), "{of}");
    serde_json::from_str(&said.stdout).unwrap()
}

fn clients(scene: &Scene, of: &str) -> Vec<String> {
    let flows = listed(scene, of);
    flows.iter().map(|flow| flow["client"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn flows_of_services_endpoints_and_clients() {
    let scene = Scene::with_agent(&[]);
    fs::write(scene.manifests().join("dns.yaml"), DNS).unwrap();
    scene.wait_for("the other Service", |scene| scene.kubeweir(&["flows", "shop/dns"]).code == 0);
    let (_tcp, client, endpoint) = open(&scene, Place::Pod(2), Protocol::Tcp, WEB);
    let (_outside, outside, _) = open(&scene, Place::Outside, Protocol::Tcp, NODE_PORT);
    let (_udp, six, _) = open(&scene, Place::Pod(1), Protocol::Udp, SIX);
    // No Service has to do with this one.
    let (_direct, ..) = open(&scene, Place::Pod(2), Protocol::Tcp, "10.244.1.10:8080");

    let web = listed(&scene, "shop/web");
    assert_eq!(web.len(), 2, "{web:#?}");
    let flow = web.iter().find(|flow| flow["client"] == client.as_str()).unwrap();
    assert_eq!(flow["protocol"], "tcp");
    assert_eq!(flow["frontend"], WEB);
    assert_eq!(flow["service"], "shop/web:http");
    assert_eq!(flow["endpoint"], endpoint.as_str());
    assert_eq!(flow["state"], "ESTABLISHED");
    assert_eq!(flow["in_list"], true);
    assert_eq!(flow["seen_as"], Value::Null);
    assert_eq!([&flow["age_seconds"], &flow["packets"]], [&Value::Null; 2], "not switched on");
    let by_node_port = web.iter().find(|flow| flow["client"] == outside.as_str()).unwrap();
    assert_eq!(by_node_port["frontend"], NODE_PORT);
    assert!(by_node_port["seen_as"].is_string(), "masqueraded: {by_node_port}");

    for (of, expected) in [
        ("shop/web:http", vec![&client, &outside]),
        ("shop/web:80", vec![&client]),
        ("shop/dns", vec![&six]),
        ("shop/cart", vec![]),
        ("10.244.0.12", vec![&client]),
        ("172.20.0.2", vec![&outside]),
        (WEB, vec![&client]),
        ("10.244.0.99", vec![]),
        ("fd00:10:244::a", vec![&six]),
        ("[fd00:10:244::a]:5353", vec![&six]),
        ("[fd00:10:244::a]:5354", vec![]),
    ] {
        let found = clients(&scene, of);
        let expected: Vec<String> = expected.into_iter().cloned().collect();
        assert_eq!(found, expected, "{of}");
    }
    assert!(clients(&scene, &endpoint).contains(&client), "by endpoint");
    let said = scene.kubeweir(&["flows"]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    let lines: Vec<&str> = said.stdout.lines().collect();
    assert_eq!(lines.len(), 4, "{}", said.stdout);
    assert!(lines[0].starts_with("PROTOCOL") && !lines[0].contains("AGE"), "{}", lines[0]);
    let line = lines.iter().find(|line| line.contains(&client)).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words, ["tcp", &client, WEB, "shop/web:http", &endpoint, "ESTABLISHED"]);
    let status = scene.kubeweir(&["status"]).stdout;
    let line = status.lines().find(|line| line.starts_with("conntrack: ")).unwrap_or(&status);
    let entries = line.split_whitespace().nth(1).and_then(|count| count.parse::<u32>().ok());
    assert!(entries.is_some_and(|entries| entries >= 4), "as many as are open: {line}");
}

#[test]
fn ages_and_counts_where_the_kernel_keeps_them() {
    let scene = Scene::with_agent(&[]);
    for key in ["nf_conntrack_timestamp", "nf_conntrack_acct"] {
        scene.lab.node.sysctl(&format!("net/netfilter/{key}"), "1").unwrap();
    }
    let (_flow, client, endpoint) = open(&scene, Place::Pod(2), Protocol::Tcp, WEB);
    let flows = listed(&scene, "shop/web");
    let flow = flows.iter().find(|flow| flow["client"] == client.as_str()).unwrap();
    assert!(flow["age_seconds"].as_u64().unwrap() < 60, "{flow}");
    let count = |name: &str, way: usize| flow[name][way].as_u64().unwrap();
    assert!(count("packets", 0) >= 3 && count("packets", 1) >= 2, "a handshake, an answer: {flow}");
    assert!(count("bytes", 0) >= 3 * 40, "{flow}");
    let text = scene.kubeweir(&["flows", &endpoint]).stdout;
    let header: Vec<&str> = text.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(header[6..], ["AGE", "PACKETS", "BYTES", "NOTE"]);
}

#[test]
fn flows_to_an_endpoint_that_is_gone_say_so() {
    let scene = Scene::with_agent(&[]);
    let (_flow, client, endpoint) = open(&scene, Place::Pod(2), Protocol::Tcp, WEB);
    let ip = endpoint.strip_suffix(":8080").unwrap();
    scene.edit("services.yaml", &format!("- {{addresses: [{ip}],"), "- {addresses: [10.244.0.77],");
    scene.wait_for("the change", |scene| {
        let flows = listed(scene, "shop/web");
        flows.iter().any(|flow| flow["client"] == client.as_str() && flow["in_list"] == false)
    });
    let text = scene.kubeweir(&["flows", "shop/web"]).stdout;
    assert!(text.contains("endpoint not in the list any more"), "{text}");
}

fn fails(said: &Said, sentences: [&str; 2]) {
    assert_eq!((said.code, said.stdout.as_str()), (2, ""), "{said:?}");
    for sentence in sentences {
        assert!(said.stderr.contains(sentence), "no {sentence:?} in {}", said.stderr);
    }
}

#[test]
fn what_is_not_there_is_no_empty_answer() {
    let scene = Scene::with_agent(&[]);
    let unknown = scene.kubeweir(&["flows", "shop/nothing"]);
    fails(&unknown, ["the kernel's tables have no Service shop/nothing", "kubeweir diff"]);
    fails(&scene.kubeweir(&["flows", "web"]), ["\"web\" is no Service", "default/web:http"]);
    let forbidden = scene.lab.node.run(|| unprivileged(&["flows"]));
    fails(&forbidden, ["error: ", "Run this as root (CAP_NET_ADMIN)"]);
}

/// `kubeweir flows --watch` and what it says.
struct Watching {
    process: Child,
    lines: Receiver<String>,
}

impl Watching {
    fn start(scene: &Scene, of: &[&str]) -> Watching {
        let mut command = Command::new(binary());
        command.args([&["flows", "--watch", "-o", "json"], of].concat()).stdout(Stdio::piped());
        let mut process = scene.lab.node.run(|| command.spawn().unwrap());
        let output = BufReader::new(process.stdout.take().unwrap());
        let (send, lines) = channel();
        std::thread::spawn(move || output.lines().try_for_each(|line| send.send(line.unwrap())));
        Watching { process, lines }
    }

    /// Waits for an event of a client.
    fn wait(&self, event: &str, client: &str) -> Value {
        let wanted = |told: &Value| told["event"] == event && told["client"] == client;
        self.wait_all(&[&wanted]).remove(0)
    }

    /// Waits until there was each of some events, in whatever order.
    fn wait_all(&self, wanted: &[&dyn Fn(&Value) -> bool]) -> Vec<Value> {
        let (end, mut seen) = (Instant::now() + SOON, Vec::new());
        let mut found: Vec<Option<Value>> = vec![None; wanted.len()];
        while found.iter().any(Option::is_none) {
            let left = end.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            let line = line.unwrap_or_else(|_| panic!("it did not come; there was {seen:#?}"));
            let told: Value = serde_json::from_str(&line).unwrap();
            for (slot, wanted) in found.iter_mut().zip(wanted) {
                if slot.is_none() && wanted(&told) {
                    *slot = Some(told.clone());
                }
            }
            seen.push(line);
        }
        found.into_iter().flatten().collect()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id().try_into().unwrap()), signal).unwrap();
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// What waits, in bytes, for each socket of the node's namespace that is in conntrack's groups
/// (`/proc/net/netlink`: protocol 12 is netfilter, the groups' mask comes fourth, then what waits).
fn watchers(scene: &Scene) -> Vec<u64> {
    let text = scene.lab.node.run(|| fs::read_to_string("/proc/thread-self/net/netlink").unwrap());
    let waiting = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let mask = u32::from_str_radix(words[3], 16).unwrap_or(0);
        (words[1] == "12" && mask & 0b111 != 0).then(|| words[4].parse().unwrap())
    };
    text.lines().filter_map(waiting).collect()
}

fn is_watched(scene: &Scene) -> bool {
    !watchers(scene).is_empty()
}

#[test]
fn changes_are_told_as_they_happen() {
    let scene = Scene::with_agent(&[]);
    let (old, old_client, _) = open(&scene, Place::Pod(2), Protocol::Tcp, WEB);
    assert!(!is_watched(&scene), "nobody watches, the kernel makes no messages");
    let watching = Watching::start(&scene, &["shop/web"]);
    watching.wait("listed", &old_client);
    assert!(is_watched(&scene));
    let (flow, client, endpoint) = open(&scene, Place::Pod(1), Protocol::Tcp, WEB);
    let new = watching.wait("new", &client);
    assert_eq!((&new["state"], &new["service"]), (&"SYN_SENT".into(), &"shop/web:http".into()));
    assert_eq!(new["endpoint"], endpoint.as_str());
    while watching.wait("update", &client)["state"] != "ESTABLISHED" {}
    drop(flow);
    assert_eq!(watching.wait("update", &client)["state"], "CLOSE");
    watching.wait("end", &client);
    // Of a flow that is older than the first watcher the kernel says nothing.
    drop(old);
    scene.lab.node.feed("conntrack", &["-F"], "").unwrap();
    watching.wait("end", &old_client);
    drop(watching);
    assert!(!is_watched(&scene));
}

/// More flows at once than a socket's buffer has room for.
fn flood() {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    for port in 20_000..60_000 {
        // An ICMP error about an earlier datagram is told here, too.
        let _ = socket.send_to(b"", SocketAddr::from(([127, 0, 0, 2], port)));
    }
}

#[test]
fn lost_changes_are_counted_and_made_up_for() {
    let scene = Scene::with_agent(&[]);
    let (_flow, client, _) = open(&scene, Place::Pod(2), Protocol::Tcp, WEB);
    let watching = Watching::start(&scene, &[]);
    watching.wait("listed", &client);
    for times in 1..=2 {
        // Until everything was read, the kernel takes another loss for the same one.
        let end = Instant::now() + SOON;
        while watchers(&scene) != [0] {
            assert!(Instant::now() < end, "it does not read: {:?}", watchers(&scene));
            std::thread::sleep(Duration::from_millis(10));
        }
        watching.signal(Signal::SIGSTOP);
        scene.lab.node.run(flood);
        let (_other, unheard, _) = open(&scene, Place::Pod(1), Protocol::Tcp, WEB);
        watching.signal(Signal::SIGCONT);
        // A list that was being made when it stopped tells of the flow before the loss is seen.
        watching.wait_all(&[&|told| told["event"] == "lost" && told["times"] == times, &|told| {
            told["event"] == "new" && told["client"] == unheard.as_str()
        }]);
    }
}
