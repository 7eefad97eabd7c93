//! Flows that began before what they dial was there, or whose endpoint is not there any more
//! (`world.md`, C1 to C3).

use std::fs::{self, DirEntry};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use kubeweir::model::{Family, Kind, Protocol};
use kubeweir::testing::api_server::{Ask, Signal};
use kubeweir::testing::lab::{
    Dial, Flow, Lab, NODE_IP, Outcome, Place, cluster_ip, external_ip, real_external_ip,
    remote_pod_ip,
};
use kubeweir::testing::slowed;
use serde_json::{Value, json};

use crate::objects::{node_port, service, slice};
use crate::site::{METRICS, Proxy, SOON, Site};

const NODE_PORT: u16 = 30053;
/// How long a steady sender listens before it sends again.
const INTERVAL: Duration = Duration::from_millis(100);

/// Sends until this server answers.
fn wait_answer(site: &Site, proxy: &Proxy, flow: &mut Flow, server: &str) {
    site.wait(proxy, &format!("an answer of {server}"), || {
        flow.ask(INTERVAL).answer().is_some_and(|answer| answer.server == server)
    });
}

fn steady(site: &Site, to: SocketAddr) -> Flow {
    site.lab_ref().open(Place::Pod(2), Protocol::Udp, to).unwrap()
}

/// With an address of each family under a key of `spec` or, as a load balancer's, of `status`.
fn with_addresses(mut service: Value, kind: &str, address: impl Fn(Family) -> IpAddr) -> Value {
    let all = Family::BOTH.map(address);
    match kind {
        "externalIPs" => service["spec"][kind] = json!(all),
        _ => {
            service["spec"]["type"] = "LoadBalancer".into();
            let ingress = all.map(|ip| json!({ "ip": ip, "ipMode": "VIP" }));
            service["status"] = json!({ "loadBalancer": { "ingress": ingress } });
        }
    }
    service
}

// C1, B-222: a steady sender is refused as soon as nobody is left, and reaches whoever comes next.
#[test]
fn udp_flows_without_an_endpoint() {
    let site = Site::lab();
    let slices = |n| Family::BOTH.map(|family| slice("dns", family, &[Place::Pod(n)]));
    slices(0).iter().for_each(|slice| site.server.put(slice));
    site.server.put(&node_port("dns", 1, NODE_PORT));
    let proxy = site.start();
    site.wait_served(&proxy, 1, "pod-0");
    let mut flows: Vec<Flow> = Family::BOTH
        .into_iter()
        .flat_map(|f| [(cluster_ip(1, f), 53), (NODE_IP[f], NODE_PORT)].map(SocketAddr::from))
        .map(|to| steady(&site, to))
        .collect();
    flows.iter_mut().for_each(|flow| wait_answer(&site, &proxy, flow, "pod-0"));
    for name in ["dns-v4", "dns-v6"] {
        site.server.delete(Kind::EndpointSlice, "default", name);
    }
    for flow in &mut flows {
        site.wait(&proxy, "the refusal", || flow.ask(INTERVAL) == Outcome::Refused);
    }
    slices(1).iter().for_each(|slice| site.server.put(slice));
    flows.iter_mut().for_each(|flow| wait_answer(&site, &proxy, flow, "pod-1"));
}

// C2, B-221: whatever brings a frontend, a steady sender that was there before reaches its endpoint:
// an address of a load balancer, a NodePort, a Service that comes after its slice, and an address
// that comes to the node.
#[test]
fn udp_flows_older_than_their_frontend() {
    let site = Site::lab();
    let lab = site.lab_ref();
    for family in Family::BOTH {
        let there = |ip| SocketAddr::new(ip, 53);
        let outside = [there(real_external_ip(1, family)), there(real_external_ip(2, family))];
        lab.serve(Place::Outside, "outside", &outside).unwrap();
        let here = SocketAddr::new(NODE_IP[family], NODE_PORT);
        lab.serve(Place::Host, "host", &[here]).unwrap();
        site.server.put(&slice("dns", family, &[Place::Pod(0)]));
        site.server.put(&slice("late", family, &[Place::Pod(1)]));
    }
    site.server.put(&service("dns", 1));
    let proxy = site.start_config(|config| {
        let networks =
            ["192.168.10.0/24", "198.51.100.0/24", "fd00:168:10::/64", "2001:db8:100::/64"];
        config["nodePortAddresses"] = json!(networks);
    });
    site.wait_served(&proxy, 1, "pod-0");

    let both = |to: fn(Family) -> SocketAddr| Family::BOTH.map(|family| steady(&site, to(family)));
    let mut balanced = both(|family| SocketAddr::new(real_external_ip(1, family), 53));
    let mut late = both(|family| SocketAddr::new(real_external_ip(2, family), 53));
    let mut by_node_port = both(|family| SocketAddr::new(NODE_IP[family], NODE_PORT));
    let mut nowhere = both(|family| SocketAddr::new(external_ip(3, family), NODE_PORT));
    for flow in balanced.iter_mut().chain(&mut late) {
        wait_answer(&site, &proxy, flow, "outside");
    }
    for flow in &mut by_node_port {
        wait_answer(&site, &proxy, flow, "host");
    }
    for flow in &mut nowhere {
        assert_eq!(flow.ask(INTERVAL).answer(), None, "nobody has the address");
    }

    let dns = with_addresses(service("dns", 1), "loadBalancer", |f| real_external_ip(1, f));
    site.server.put(&dns);
    balanced.iter_mut().for_each(|flow| wait_answer(&site, &proxy, flow, "pod-0"));
    site.server.put(&node_port("dns", 1, NODE_PORT));
    by_node_port.iter_mut().for_each(|flow| wait_answer(&site, &proxy, flow, "pod-0"));
    site.server.put(&with_addresses(service("late", 2), "externalIPs", |f| real_external_ip(2, f)));
    late.iter_mut().for_each(|flow| wait_answer(&site, &proxy, flow, "pod-1"));
    for family in Family::BOTH {
        lab.bind_on_node(external_ip(3, family)).unwrap();
    }
    nowhere.iter_mut().for_each(|flow| wait_answer(&site, &proxy, flow, "pod-0"));
}

/// Connects from one port until it is answered or `SOON` is over.
fn connect(lab: &Lab, to: SocketAddr) -> Outcome {
    let dial = Dial::new(Protocol::Tcp, to).timeout(SOON);
    lab.dial(Place::Pod(2), dial, 1).remove(0)
}

fn server_of(outcome: &Outcome) -> Option<&str> {
    outcome.answer().map(|answer| answer.server.as_str())
}

// C3, B-223: a TCP client that dialled too early, or an endpoint that is gone, connects from the same
// port once there is someone; an established connection stays what it was.
#[test]
fn tcp_clients_that_nobody_answered() {
    let site = Site::lab();
    let lab = site.lab_ref();
    let early = |family| external_ip(4, family);
    // Nothing comes back from where the early packets go.
    for family in Family::BOTH {
        lab.outside.ip(&format!("route add blackhole {}", early(family))).unwrap();
        site.server.put(&slice("web", family, &[Place::RemotePod(0), Place::Pod(0)]));
    }
    site.server.put(&service("web", 1));
    let proxy = site.start();
    site.wait_served(&proxy, 1, "pod-0");
    let silence = "table inet t {
        chain c {
            type filter hook prerouting priority -300;
            meta l4proto tcp drop
        }
    }";
    std::thread::scope(|scope| {
        let clients = Family::BOTH.map(|family| {
            let to = SocketAddr::new(external_ip(4, family), 80);
            scope.spawn(move || connect(lab, to))
        });
        site.wait(&proxy, "the early packets", || unreplied(&site, early) == 2);
        site.server.put(&with_addresses(service("web", 1), "externalIPs", |f| external_ip(4, f)));
        for client in clients {
            let outcome = client.join().unwrap();
            assert!(server_of(&outcome).is_some(), "{outcome:?}");
        }

        let to = SocketAddr::new(external_ip(4, Family::V4), 80);
        let mut kept = lab.open(Place::Pod(2), Protocol::Tcp, to).unwrap();
        let before = server_of(&kept.ask(SOON)).unwrap().to_owned();
        lab.elsewhere.nft(silence).unwrap();
        // As many as it takes until one of each family waits for the endpoint that is gone.
        let dialled: Vec<_> = (0..16)
            .flat_map(|_| Family::BOTH.map(|family| SocketAddr::new(external_ip(4, family), 80)))
            .map(|to| scope.spawn(move || connect(lab, to)))
            .collect();
        site.wait(&proxy, "packets to the silent endpoint", || unreplied(&site, early) > 2);
        for family in Family::BOTH {
            site.server.put(&slice("web", family, &[Place::Pod(0)]));
        }
        for client in dialled {
            assert_eq!(server_of(&client.join().unwrap()), Some("pod-0"));
        }
        match before.as_str() {
            "pod-0" => assert_eq!(server_of(&kept.ask(SOON)), Some("pod-0")),
            _ => assert_eq!(server_of(&kept.ask(INTERVAL)), None, "TCP stays where it is"),
        }
    });
}

/// Whether a set of each family has elements.
fn filled(site: &Site, set: &str) -> [bool; 2] {
    Family::BOTH.map(|family| {
        let table = site.table(family);
        let from = table.split(&format!(" {set} {{")).nth(1).expect("a set of the program");
        from.split("\n\t}").next().is_some_and(|set| set.contains("elements"))
    })
}

/// TCP flows of both families to addresses that nobody has answered.
fn unreplied(site: &Site, to: fn(Family) -> IpAddr) -> usize {
    let of = |family: Family| {
        let name = if family == Family::V4 { "ipv4" } else { "ipv6" };
        let args = ["-L", "-f", name, "-p", "tcp", "-d", &to(family).to_string()];
        site.node().feed("conntrack", &args, "").unwrap()
    };
    Family::BOTH.map(|family| of(family).matches("[UNREPLIED]").count()).iter().sum()
}

// B-163, B-220: what decides where new flows go ends none: an endpoint that serves keeps its own.
// B-226: nor does a restart; but what went meanwhile goes.
#[test]
fn flows_to_serving_endpoints_outlive_policies_ranges_affinity_and_restarts() {
    let site = Site::lab();
    let remote = |n| Family::BOTH.map(|family| slice("dns", family, &[Place::RemotePod(n)]));
    remote(0).iter().for_each(|slice| site.server.put(slice));
    let dns = with_addresses(service("dns", 1), "loadBalancer", |f| external_ip(5, f));
    site.server.put(&dns);
    let proxy = site.start();
    site.wait_served(&proxy, 1, "remote-0");
    let to = |family| SocketAddr::new(external_ip(5, family), 53);
    let mut flows = Family::BOTH.map(|family| steady(&site, to(family)));
    flows.iter_mut().for_each(|flow| wait_answer(&site, &proxy, flow, "remote-0"));
    let mut stay = |what: &str| {
        for flow in &mut flows {
            let outcome = flow.ask(Duration::from_secs(5));
            assert_eq!(server_of(&outcome), Some("remote-0"), "{what}");
        }
    };
    let changes = [
        ("externalTrafficPolicy", json!("Local"), "local-policy-services"),
        (
            "loadBalancerSourceRanges",
            json!(["192.0.2.99/32", "2001:db8:99::/64"]),
            "restricted-services",
        ),
        ("sessionAffinity", json!("ClientIP"), "sticky-services"),
    ];
    for (field, value, set) in changes {
        let mut changed = dns.clone();
        changed["spec"][field] = value;
        site.server.put(&changed);
        site.wait(&proxy, field, || filled(&site, set) == [true; 2]);
        stay(field);
        site.server.put(&dns);
        site.wait(&proxy, "the service as it was", || filled(&site, set) == [false; 2]);
    }
    proxy.terminate();
    let proxy = site.start();
    site.wait(&proxy, "the metrics server", || {
        site.listens(std::net::Ipv4Addr::LOCALHOST.into(), crate::site::METRICS)
    });
    let done = || {
        let name = "kubeproxy_conntrack_reconciler_sync_duration_seconds_count";
        let of = |family| site.scrape().value(name, &[("ip_family", family)]).unwrap_or(0.0);
        of("IPv4") >= 1.0 && of("IPv6") >= 1.0
    };
    site.wait(&proxy, "the first look", done);
    stay("a restart");
    proxy.terminate();
    remote(1).iter().for_each(|slice| site.server.put(slice));
    let proxy = site.start();
    let end = Instant::now() + slowed(SOON);
    for flow in &mut flows {
        while server_of(&flow.ask(INTERVAL)) != Some("remote-1") {
            assert!(Instant::now() < end, "{}", proxy.log());
        }
    }
}

/// A connection that this server answers.
fn connected(site: &Site, from: Place, to: SocketAddr, server: &str) -> Flow {
    let end = Instant::now() + slowed(SOON);
    loop {
        let opened = site.lab_ref().open(from, Protocol::Tcp, to).ok();
        let asked = opened.map(|mut flow| (server_of(&flow.ask(SOON)) == Some(server), flow));
        if let Some((true, flow)) = asked {
            return flow;
        }
        assert!(Instant::now() < end, "{server} is never chosen");
    }
}

// C7: a look at flows that fails is made again, until it succeeds.
#[test]
fn a_look_at_flows_that_fails_is_made_again() {
    let site = Site::lab();
    site.server.put(&service("dns", 1));
    put_endpoints(&site, "dns", &[Place::Pod(0)]);
    let proxy = site.start();
    site.wait_served(&proxy, 1, "pod-0");
    let mut flows =
        Family::BOTH.map(|family| steady(&site, SocketAddr::new(cluster_ip(1, family), 53)));
    flows.iter_mut().for_each(|flow| wait_answer(&site, &proxy, flow, "pod-0"));
    let tasks = format!("/proc/{}/task", proxy.agent.pid());
    let named = |task: &DirEntry| {
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        name.trim() == "conntrack"
    };
    let thread = fs::read_dir(tasks).unwrap().flatten().find(named).unwrap();
    // Whatever asks for lists first.
    let failing = "inject=sendmsg:error=ENOBUFS:when=1..4";
    let mut strace = Command::new("strace")
        .args(["-qq", "-e", "signal=none", "-e", "trace=sendmsg", "-e", failing, "-o"])
        .arg(site.path("trace"))
        .arg("-p")
        .arg(thread.file_name())
        .spawn()
        .unwrap();
    site.wait(&proxy, "strace", || {
        let status = fs::read_to_string(thread.path().join("status")).unwrap();
        status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
    });
    put_endpoints(&site, "dns", &[Place::Pod(1)]);
    flows.iter_mut().for_each(|flow| wait_answer(&site, &proxy, flow, "pod-1"));
    strace.kill().unwrap();
    strace.wait().unwrap();
    let failures = proxy.log().matches("Failed to clean up stale flows, trying again").count();
    assert_eq!(failures, 4, "{}", proxy.log());
}

// A node dies. Clients of its endpoints are told within the window and a packet, if their Service asks
// for it: a packet from elsewhere is taken for a new connection's, and whoever gets it resets it; sockets
// of the host end at once. Other Services' are not told. A kernel that takes no connection in its middle
// (`nf_conntrack_tcp_loose=0`) refuses what it would take otherwise.
#[test]
fn connections_to_endpoints_that_are_gone_are_ended_on_request() {
    let site = Site::lab();
    let lab = site.lab_ref();
    const NAMES: [&str; 5] = ["asks", "silent", "last", "strict", "strict-last"];
    let [asks, silent, last, strict, strict_last] = [1, 2, 3, 4, 5];
    let number = |n: usize| NODE_PORT + n as u16;
    for (name, n) in NAMES.into_iter().zip(1..) {
        let mut service = node_port(name, n, number(n));
        if n != silent {
            service["metadata"] = ending(name, n, "1s")["metadata"].clone();
        }
        site.server.put(&service);
    }
    let put = |n: usize, endpoints: &[Place]| put_endpoints(&site, NAMES[n - 1], endpoints);
    let (gone, lives) = (Place::RemotePod(0), Place::Pod(0));
    [asks, silent, strict].into_iter().for_each(|n| put(n, &[gone, lives]));
    [last, strict_last].into_iter().for_each(|n| put(n, &[gone]));
    let proxy = site.start();
    [asks, silent, strict].into_iter().for_each(|n| site.wait_served(&proxy, n, "pod-0"));
    [last, strict_last].into_iter().for_each(|n| site.wait_served(&proxy, n, "remote-0"));
    let (pod, host, outside) = (Place::Pod(1), Place::Host, Place::Outside);
    let open = |places: &[Place], services: &[usize]| -> Vec<Flow> {
        let each = places.iter().flat_map(|from| services.iter().map(move |n| (*from, *n)));
        let both = each.flat_map(|(from, n)| Family::BOTH.map(|family| (from, n, family)));
        let connected = both.map(|(from, n, family)| {
            let to = match from {
                Place::Outside => (NODE_IP[family], number(n)),
                _ => (cluster_ip(n, family), 80),
            };
            connected(&site, from, to.into(), "remote-0")
        });
        connected.collect()
    };
    let mut others = open(&[pod, outside], &[asks, last]);
    let mut hosts = open(&[host], &[asks, last]);
    let mut kept = open(&[pod, outside, host], &[silent]);
    let mut strict_others = open(&[pod, outside], &[strict, strict_last]);
    let mut strict_hosts = open(&[host], &[strict, strict_last]);
    let to = |n| SocketAddr::new(cluster_ip(n, Family::V4), 80);
    let mut living = [asks, strict].map(|n| connected(&site, pod, to(n), "pod-0"));

    lab.elsewhere.ip("link set eth0 down").unwrap();
    let removed = Instant::now();
    [asks, silent].into_iter().for_each(|n| put(n, &[lives]));
    put(last, &[]);
    let end = |flow: &mut Flow| {
        let mut outcome = Outcome::Silent;
        site.wait(&proxy, "the end", || {
            outcome = flow.ask(INTERVAL);
            outcome != Outcome::Silent
        });
        outcome
    };
    for flow in &mut others {
        assert_eq!(end(flow), Outcome::Failed(ErrorKind::ConnectionReset));
    }
    assert!(removed.elapsed() >= Duration::from_secs(1), "{:?}", removed.elapsed());
    for flow in &mut hosts {
        assert_eq!(end(flow), Outcome::Failed(ErrorKind::ConnectionAborted));
    }
    assert!(kept.iter_mut().all(|flow| flow.ask(INTERVAL) == Outcome::Silent));

    let event = site.wait_event("ConnectionsEnded");
    assert!(["asks", "last"].map(Value::from).contains(&event["regarding"]["name"]), "{event}");
    let ended = |each: u64| {
        let name = "kubeweir_ended_connections_total";
        let is = |family| site.scrape().value(name, &[("ip_family", family)]) == Some(each as f64);
        site.wait(&proxy, "the counts", || is("IPv4") && is("IPv6"));
        let expected = json!({ "ended": 2 * each, "draining": 0, "held": 0 });
        site.wait(&proxy, "the status", || {
            site.json(METRICS, kubeweir::status::PATH)["endings"] == expected
        });
    };
    ended(6);
    let rules = |family| site.table(family).matches("@ended-connections").count();
    assert_eq!(Family::BOTH.map(rules), [0; 2], "not where nobody needs it");

    site.node().sysctl("net/netfilter/nf_conntrack_tcp_loose", "0").unwrap();
    put(strict, &[lives]);
    put(strict_last, &[]);
    ended(12);
    for flow in &mut strict_hosts {
        assert_eq!(end(flow), Outcome::Failed(ErrorKind::ConnectionAborted));
    }
    for flow in &mut strict_others {
        assert_eq!(flow.ask(SOON), Outcome::Failed(ErrorKind::ConnectionReset), "one packet");
    }
    assert!(living.iter_mut().all(|flow| server_of(&flow.ask(SOON)) == Some("pod-0")));
    assert_eq!(Family::BOTH.map(rules), [2; 2]);
    let elements = |table: String| {
        let set = table.split("set ended-connections {").nth(1).unwrap();
        set.split("\n\t}").next().unwrap().matches(" expires ").count()
    };
    let listed = || Family::BOTH.map(|family| elements(site.table(family)));
    assert_eq!(listed(), [6; 2]);
}

/// Asks for the end of its connections after a window.
fn ending(name: &str, n: usize, window: &str) -> Value {
    let mut service = service(name, n);
    let annotations = json!({ "kubeweir.io/end-connections-after": window });
    service["metadata"]["annotations"] = annotations;
    service
}

fn put_endpoints(site: &Site, name: &str, endpoints: &[Place]) {
    let slices = Family::BOTH.map(|family| slice(name, family, endpoints));
    slices.iter().for_each(|slice| site.server.put(slice));
}

/// Of each family, to the `n`-th Service.
fn connected_by_cluster_ip(site: &Site, n: usize, server: &str) -> [Flow; 2] {
    let to = |family| SocketAddr::new(cluster_ip(n, family), 80);
    Family::BOTH.map(|family| connected(site, Place::Pod(1), to(family), server))
}

fn wait_reset(site: &Site, proxy: &Proxy, flows: &mut [Flow]) {
    for flow in flows {
        let reset = Outcome::Failed(ErrorKind::ConnectionReset);
        // One endpoint after the other, and each time a pause as long as the looks before it took: where
        // others' flows are many and processors few, a dozen took more than half a minute.
        let end = Instant::now() + slowed(4 * SOON);
        site.wait_until(end, proxy, "the reset", || flow.ask(INTERVAL) == reset);
    }
}

// What may be a mistake of whoever writes lists ends no connection: a first sync, lists that come again
// after the API was away, a list that is lost as a whole until it has an endpoint again.
#[test]
fn connections_outlive_first_syncs_lists_anew_and_lists_that_are_lost() {
    let mut site = Site::lab();
    site.server.put(&ending("web", 1, "1s"));
    site.server.put(&ending("clock", 2, "1s"));
    let (gone, lives) = (Place::RemotePod(0), Place::Pod(0));
    let both = |site: &Site| {
        ["web", "clock"].into_iter().for_each(|name| put_endpoints(site, name, &[gone, lives]));
    };
    // What is due before is ended before: where this one is over, nothing else will come.
    let window = |site: &Site, proxy: &Proxy| {
        let mut flows = connected_by_cluster_ip(site, 2, "remote-0");
        put_endpoints(site, "clock", &[lives]);
        wait_reset(site, proxy, &mut flows);
    };
    both(&site);
    let proxy = site.start();
    let mut flows = connected_by_cluster_ip(&site, 1, "remote-0");
    let mut living = connected_by_cluster_ip(&site, 1, "pod-0");
    let mut live = |what: &str| {
        for flow in flows.iter_mut().chain(&mut living) {
            assert!(flow.ask(SOON).answer().is_some(), "{what}");
        }
    };

    proxy.terminate();
    put_endpoints(&site, "web", &[lives]);
    let proxy = site.start();
    proxy.wait_synced();
    window(&site, &proxy);
    live("a first sync");

    both(&site);
    site.wait_served(&proxy, 1, "remote-0");
    let watched = [Kind::Service, Kind::EndpointSlice];
    watched.into_iter().for_each(|kind| site.wait_watched(kind));
    let lists = |site: &Site| -> usize {
        let asks = [Ask::StreamingList, Ask::List, Ask::ListPage];
        asks.map(|ask| site.server.count(Kind::EndpointSlice, ask)).iter().sum()
    };
    let listed = lists(&site);
    watched.into_iter().for_each(|kind| site.server.signal(kind, Signal::Cut));
    site.server.stop();
    site.server.age(10_000);
    site.server.compact();
    let Site { ground, server, .. } = &mut site;
    ground.node().run(|| server.resume().unwrap());
    site.wait(&proxy, "the list anew", || lists(&site) > listed);
    watched.into_iter().for_each(|kind| site.wait_watched(kind));
    window(&site, &proxy);
    live("a list anew");

    both(&site);
    put_endpoints(&site, "web", &[]);
    site.wait(&proxy, "what is held", || {
        site.json(METRICS, kubeweir::status::PATH)["endings"]["held"] == 4
    });
    window(&site, &proxy);
    live("a list that is lost");
    put_endpoints(&site, "web", &[lives]);
    wait_reset(&site, &proxy, &mut flows);
    assert!(living.iter_mut().all(|flow| flow.ask(SOON).answer().is_some()), "it came back");
}

// Ten endpoints a second: of one family's twelve that go at once, the last is ended after the others.
#[test]
fn connections_are_not_ended_faster_than_their_pace() {
    let site = Site::lab();
    site.server.put(&ending("web", 1, "0s"));
    let last = SocketAddr::new(remote_pod_ip(14, Family::V4), 8080);
    site.lab_ref().serve(Place::RemotePod(14), "last", &[last]).unwrap();
    let many: Vec<Place> = (3..15).map(Place::RemotePod).chain([Place::Pod(0)]).collect();
    site.server.put(&slice("web", Family::V4, &many));
    let proxy = site.start();
    site.wait_served(&proxy, 1, "last");
    let to = SocketAddr::new(cluster_ip(1, Family::V4), 80);
    let mut flow = connected(&site, Place::Pod(1), to, "last");
    let removed = Instant::now();
    site.server.put(&slice("web", Family::V4, &[Place::Pod(0)]));
    wait_reset(&site, &proxy, std::slice::from_mut(&mut flow));
    assert!(removed.elapsed() >= Duration::from_millis(1100), "{:?}", removed.elapsed());
}
