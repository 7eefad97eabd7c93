//! Health servers over real sockets on loopback: `/healthz`, `/livez`, health-check node ports, and
//! the bounds of every server.

#![allow(clippy::unwrap_used)] // a test binary, helpers included

mod http_client;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener};
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use jiff::Timestamp;
use kubeweir::health::service::{ListenAddresses, ServiceHealth, ServiceHealthServers};
use kubeweir::health::{Health, Moment, ProxyHealth};
use kubeweir::http_server::{self, Limits, Places};
use kubeweir::metrics::server::Pages;
use kubeweir::metrics::{BuildInfo, Exposition, Metrics, Mode};
use kubeweir::model::{Families, Family, Node, ObjectName, PerFamily};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use http_client::{Answer, get, request};

/// A proxy health server whose clock the test moves. `syncPeriod` is 30 s.
struct Fixture {
    health: Health,
    metrics: Arc<Metrics>,
    seconds: Arc<AtomicU64>,
    address: SocketAddr,
}

impl Fixture {
    async fn start() -> Fixture {
        let seconds = Arc::new(AtomicU64::new(0));
        let clock = Arc::clone(&seconds);
        let now = move || moment(clock.load(Ordering::SeqCst));
        let health = Health::with_clock(ProxyHealth::new(Duration::from_secs(30)), Arc::new(now));
        let build = BuildInfo::default();
        let metrics = Arc::new(Metrics::new(Mode::Nftables, &build, Timestamp::UNIX_EPOCH));
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = http_server::bind("healthz", any_port, true).await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let server = kubeweir::health::serve(listener, health.clone(), Arc::clone(&metrics));
        tokio::spawn(server);
        Fixture { health, metrics, seconds, address }
    }

    fn set_time(&self, seconds: u64) {
        self.seconds.store(seconds, Ordering::SeqCst);
    }

    async fn healthz(&self) -> (u16, Value) {
        json(get(self.address, "/healthz").await)
    }

    async fn livez(&self) -> (u16, Value) {
        json(get(self.address, "/livez").await)
    }
}

fn moment(seconds: u64) -> Moment {
    let wall = Timestamp::from_second(1_700_000_000 + seconds as i64).expect("in range");
    Moment { elapsed: Duration::from_secs(seconds), wall }
}

fn json(answer: Answer) -> (u16, Value) {
    (answer.status, serde_json::from_slice(&answer.body).expect("a JSON body"))
}

fn node(deleting: bool, to_be_deleted: bool) -> Node {
    Node {
        name: ObjectName::cluster_scoped("n1"),
        zone: None,
        addresses: Vec::new(),
        pod_cidrs: Vec::new(),
        deleting,
        to_be_deleted,
    }
}

// B-229, B-236, B-237, B-238: paths, headers, bodies in upstream's key order, any method, counters.
#[tokio::test]
async fn health_answers_as_upstream() {
    let fixture = Fixture::start().await;
    fixture.health.observe_node(&node(false, false));
    fixture.health.loop_started(Family::V4);
    fixture.set_time(5);

    let answer = get(fixture.address, "/healthz").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("Content-Type"), Some("application/json"));
    assert_eq!(answer.header("X-Content-Type-Options"), Some("nosniff"));
    assert_eq!(
        answer.text(),
        r#"{"lastUpdated":"2023-11-14T22:13:25Z","currentTime":"2023-11-14T22:13:25Z","nodeEligible":true,"healthy":true,"status":{"IPv4":{"lastUpdated":"2023-11-14T22:13:20Z","healthy":true}}}"#
    );
    let answer = request(fixture.address, "POST", "/livez", &[], "").await;
    assert_eq!(answer.status, 200);
    assert!(!answer.text().contains("nodeEligible"), "{}", answer.text());

    for path in ["/", "/readyz", "/healthz/ping", "/metrics"] {
        let answer = get(fixture.address, path).await;
        assert_eq!((answer.status, answer.text()), (404, "404 page not found\n"), "{path}");
    }
    fixture.health.observe_node(&node(false, true));
    fixture.healthz().await;

    let scrape = fixture.metrics.scrape(Exposition::Text).expect("a scrape");
    let scrape = String::from_utf8(scrape).expect("UTF-8");
    for line in [
        "kubeproxy_proxy_healthz_total{code=\"200\"} 1\n",
        "kubeproxy_proxy_healthz_total{code=\"503\"} 1\n",
        "kubeproxy_proxy_livez_total{code=\"200\"} 1\n",
    ] {
        assert!(scrape.contains(line), "{line:?} in {scrape}");
    }
}

// B-230, B-232: a node that goes, or was never seen, fails /healthz only.
#[tokio::test]
async fn eligibility_of_the_node_concerns_healthz_only() {
    let fixture = Fixture::start().await;
    let cases = [
        ("never seen", None, 503),
        ("plain", Some(node(false, false)), 200),
        ("taint", Some(node(false, true)), 503),
        ("taint gone", Some(node(false, false)), 200),
        ("deletionTimestamp", Some(node(true, false)), 503),
    ];
    for (name, node, expected) in cases {
        if let Some(node) = node {
            fixture.health.observe_node(&node);
        }
        let (status, body) = fixture.healthz().await;
        assert_eq!(status, expected, "{name}");
        assert_eq!(body["nodeEligible"], Value::Bool(expected == 200), "{name}");
        assert_eq!(body["healthy"], Value::Bool(true), "{name}");
        assert_eq!(fixture.livez().await.0, 200, "{name}");
    }
}

// B-233, B-234, B-235, B-236: a request older than 2 x syncPeriod fails both endpoints and flags its
// family; its sync heals; idleness never fails.
#[tokio::test]
async fn late_sync_turns_health_and_a_sync_heals_it() {
    let fixture = Fixture::start().await;
    fixture.health.observe_node(&node(false, false));
    fixture.health.loop_started(Family::V4);
    fixture.health.loop_started(Family::V6);
    fixture.set_time(100_000);
    assert_eq!(fixture.healthz().await.0, 200, "idle");

    fixture.health.queued(Family::V6);
    fixture.set_time(100_059);
    assert_eq!(fixture.healthz().await.0, 200, "59 s late");
    fixture.set_time(100_060);
    let (status, body) = fixture.healthz().await;
    assert_eq!(status, 503);
    assert_eq!(body["healthy"], Value::Bool(false));
    assert_eq!(body["status"]["IPv4"]["healthy"], Value::Bool(true));
    assert_eq!(body["status"]["IPv6"]["healthy"], Value::Bool(false));
    assert_eq!(body["lastUpdated"], "2023-11-14T22:13:20Z", "the newest update, not now");
    assert_eq!(fixture.livez().await.0, 503);

    fixture.health.updated(Family::V6);
    assert_eq!(fixture.healthz().await.0, 200);
    assert_eq!(fixture.livez().await.0, 200);
}

// B-239: both wildcards answer both families.
#[tokio::test]
async fn wildcards_answer_both_families() {
    for wildcard in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
        let asked = SocketAddr::new(wildcard, 0);
        let listener = http_server::bind("healthz", asked, true).await.expect("a free port");
        let port = listener.local_addr().expect("a bound socket").port();
        tokio::spawn(http_server::serve(listener, Router::new(), Places::new(Limits::default())));
        for client in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            assert_eq!(get(SocketAddr::new(client, port), "/").await.status, 404, "{wildcard}");
        }
    }
}

// B-240: a busy port is an error with bindAddressHardFail, and tried again after 5 s without.
#[tokio::test]
async fn busy_port_fails_hard_or_is_tried_again() {
    let busy = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = busy.local_addr().expect("a bound socket");
    let error = http_server::bind("healthz", address, true).await.expect_err("the port is busy");
    assert_eq!((error.server, error.address), ("healthz", address));
    assert_eq!(error.source.kind(), std::io::ErrorKind::AddrInUse);

    let started = Instant::now();
    let retrying = tokio::spawn(http_server::bind("healthz", address, false));
    // Let the first attempt happen while the port is busy.
    tokio::task::yield_now().await;
    drop(busy);
    let bound = tokio::time::timeout(Duration::from_secs(20), retrying).await;
    bound.expect("bound in time").expect("no panic").expect("bound");
    assert!(started.elapsed() >= http_server::BIND_RETRY, "the first attempt met a busy port");
}

/// A Service's wish for listeners.
fn wish(port: u16, families: Families, v4: usize, v6: usize) -> ServiceHealth {
    ServiceHealth { port, families, local_endpoints: PerFamily { v4, v6 } }
}

fn service(name: &str) -> ObjectName {
    ObjectName::new("ns", name)
}

fn wanted<const N: usize>(list: [(&str, ServiceHealth); N]) -> BTreeMap<ObjectName, ServiceHealth> {
    list.into_iter().map(|(name, health)| (service(name), health)).collect()
}

/// A port that no other test has, below those that the kernel gives to whoever asks for any.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    let mut ports = std::iter::repeat_with(|| NEXT.fetch_add(1, Ordering::Relaxed));
    let is_free = |port: &u16| StdListener::bind((Ipv6Addr::UNSPECIFIED, *port)).is_ok();
    ports.find(is_free).expect("one of thousands is free")
}

fn healthy() -> Option<Health> {
    Some(Health::new(ProxyHealth::new(Duration::from_secs(30))))
}

fn servers(health: Option<Health>) -> ServiceHealthServers {
    ServiceHealthServers::new("n1".into(), health)
}

const V4_ONLY: Families = Families { v4: true, v6: false };

async fn refused(address: SocketAddr) -> bool {
    match TcpStream::connect(address).await {
        Ok(_) => false,
        Err(reason) => reason.kind() == std::io::ErrorKind::ConnectionRefused,
    }
}

// B-241, B-242, B-245: addresses of each family, status, weight and body; the count is
// the family's own, and follows.
#[tokio::test]
async fn health_check_node_port_answers_on_its_addresses() {
    let v4: IpAddr = "127.83.1.1".parse().expect("an address");
    let v6 = IpAddr::V6(Ipv6Addr::LOCALHOST);
    let port = free_port();
    let addresses = ListenAddresses::Only(vec![v4, v6]);
    let mut servers = servers(healthy());
    let dual = wanted([("web", wish(port, Families::DUAL, 2, 0))]);
    assert!(servers.reconcile(&dual, &addresses).await.is_empty());

    let answer = request(SocketAddr::new(v4, port), "PUT", "/any/path?x", &[], "").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("Content-Type"), Some("application/json"));
    assert_eq!(answer.header("X-Content-Type-Options"), Some("nosniff"));
    assert_eq!(answer.header("X-Load-Balancing-Endpoint-Weight"), Some("2"));
    assert_eq!(
        answer.text(),
        "{\n\t\"service\": {\n\t\t\"namespace\": \"ns\",\n\t\t\"name\": \"web\"\n\t},\n\t\
         \"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}"
    );
    let answer = get(SocketAddr::new(v6, port), "/").await;
    assert_eq!(
        (answer.status, answer.header("X-Load-Balancing-Endpoint-Weight")),
        (503, Some("0"))
    );
    assert!(refused(SocketAddr::new("127.83.1.2".parse().expect("an address"), port)).await);

    let gone = wanted([("web", wish(port, Families::DUAL, 0, 1))]);
    assert!(servers.reconcile(&gone, &addresses).await.is_empty());
    assert_eq!(get(SocketAddr::new(v4, port), "/").await.status, 503);
    assert_eq!(get(SocketAddr::new(v6, port), "/").await.status, 200);
}

// B-241: match-all means the wildcard of each of the Service's families and of no other.
#[tokio::test]
async fn match_all_listens_on_the_wildcard_of_each_family() {
    let (v4, v6) = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST));
    let port = free_port();
    let mut servers = servers(healthy());
    let single = wanted([("web", wish(port, V4_ONLY, 1, 1))]);
    assert!(servers.reconcile(&single, &ListenAddresses::Any).await.is_empty());
    assert_eq!(get(SocketAddr::new(v4, port), "/").await.status, 200);
    assert!(refused(SocketAddr::new(v6, port)).await);

    let dual = wanted([("web", wish(port, Families::DUAL, 1, 1))]);
    assert!(servers.reconcile(&dual, &ListenAddresses::Any).await.is_empty());
    assert_eq!(get(SocketAddr::new(v4, port), "/").await.status, 200);
    assert_eq!(get(SocketAddr::new(v6, port), "/").await.status, 200);
}

// B-242, Q-17: an unhealthy proxy fails every Service; without a healthz server it counts as healthy.
#[tokio::test]
async fn proxy_health_counts_unless_it_is_not_served() {
    let ip: IpAddr = "127.83.2.1".parse().expect("an address");
    let address = SocketAddr::new(ip, free_port());
    let addresses = ListenAddresses::Only(vec![ip]);
    let wanted = wanted([("web", wish(address.port(), V4_ONLY, 1, 0))]);

    let time = Arc::new(Mutex::new(moment(0)));
    let clock = Arc::clone(&time);
    let now = move || *clock.lock().expect("not poisoned");
    let late = Health::with_clock(ProxyHealth::new(Duration::from_secs(30)), Arc::new(now));
    late.loop_started(Family::V4);
    late.queued(Family::V4);
    *time.lock().expect("not poisoned") = moment(60);
    let mut checked = servers(Some(late.clone()));
    assert!(checked.reconcile(&wanted, &addresses).await.is_empty());
    let (status, body) = json(get(address, "/").await);
    assert_eq!((status, &body["serviceProxyHealthy"]), (503, &Value::Bool(false)));
    late.updated(Family::V4);
    assert_eq!(get(address, "/").await.status, 200);
    checked.reconcile(&BTreeMap::new(), &addresses).await;

    let mut unchecked = servers(None);
    assert!(unchecked.reconcile(&wanted, &addresses).await.is_empty());
    assert_eq!(get(address, "/").await.status, 200);
}

// B-246: a port change moves the listener, deletion closes it, and a freed port can be taken over in
// the same step.
#[tokio::test]
async fn listeners_move_and_close() {
    let ip: IpAddr = "127.83.3.1".parse().expect("an address");
    let (first, second) = (free_port(), free_port());
    let at = |port| SocketAddr::new(ip, port);
    let addresses = ListenAddresses::Only(vec![ip]);
    let mut servers = servers(healthy());
    let step = wanted([("a", wish(first, V4_ONLY, 1, 0))]);
    assert!(servers.reconcile(&step, &addresses).await.is_empty());

    let step = wanted([("a", wish(second, V4_ONLY, 1, 0)), ("b", wish(first, V4_ONLY, 3, 0))]);
    assert!(servers.reconcile(&step, &addresses).await.is_empty());
    let (_, body) = json(get(at(first), "/").await);
    assert_eq!((&body["service"]["name"], &body["localEndpoints"]), (&"b".into(), &3.into()));
    let (_, body) = json(get(at(second), "/").await);
    assert_eq!(body["service"]["name"], "a");

    let step = wanted([("b", wish(first, V4_ONLY, 3, 0))]);
    assert!(servers.reconcile(&step, &addresses).await.is_empty());
    assert!(refused(at(second)).await);
    assert_eq!(get(at(first), "/").await.status, 200);
}

// B-247: a busy port opens none of the family's addresses, is reported with the Event's text at each
// sync, does no harm to others, and is taken when free.
#[tokio::test]
async fn busy_health_check_port_is_reported_and_tried_again() {
    let (good, bad): (IpAddr, IpAddr) =
        ("127.83.4.1".parse().expect("an address"), "127.83.4.2".parse().expect("an address"));
    let busy = StdListener::bind((bad, 0)).expect("a free port");
    let port = busy.local_addr().expect("a bound socket").port();
    let other = free_port();
    let addresses = ListenAddresses::Only(vec![good, bad]);
    let wanted = wanted([("web", wish(port, V4_ONLY, 1, 0)), ("zoo", wish(other, V4_ONLY, 1, 0))]);
    let mut servers = servers(healthy());
    for attempt in ["first", "second"] {
        let failures = servers.reconcile(&wanted, &addresses).await;
        assert_eq!(failures.len(), 1, "{attempt}: {failures:?}");
        assert_eq!((&failures[0].service, failures[0].address), (&service("web"), bad));
        let text = format!(
            "node n1 failed to start healthcheck \"ns/web\" on port {port}: \
             Address already in use (os error 98)"
        );
        assert_eq!(failures[0].to_string(), text, "{attempt}");
        assert!(refused(SocketAddr::new(good, port)).await, "{attempt}: all or nothing");
        assert_eq!(get(SocketAddr::new(good, other), "/").await.status, 200, "{attempt}");
    }
    drop(busy);
    assert!(servers.reconcile(&wanted, &addresses).await.is_empty());
    assert_eq!(get(SocketAddr::new(bad, port), "/").await.status, 200);
}

// Q-07, Q-08: listeners follow the list of addresses; an empty list listens nowhere and is no failure.
#[tokio::test]
async fn listeners_follow_the_node_addresses() {
    let (a, b): (IpAddr, IpAddr) =
        ("127.83.5.1".parse().expect("an address"), "127.83.5.2".parse().expect("an address"));
    let port = free_port();
    let wanted = wanted([("web", wish(port, V4_ONLY, 1, 0))]);
    let mut servers = servers(healthy());
    for (list, open) in [
        (vec![a], [true, false]),
        (vec![b, a], [true, true]),
        (vec![b], [false, true]),
        (vec![], [false, false]),
        (vec![a], [true, false]),
    ] {
        let failures = servers.reconcile(&wanted, &ListenAddresses::Only(list.clone())).await;
        assert!(failures.is_empty(), "{list:?}: {failures:?}");
        for (ip, expected) in [a, b].into_iter().zip(open) {
            assert_eq!(!refused(SocketAddr::new(ip, port)).await, expected, "{list:?}: {ip}");
        }
    }
}

const NARROW: Limits = Limits {
    connections: 2,
    head_bytes: 8192,
    head_time: Duration::from_millis(300),
    time: Duration::from_millis(600),
};

/// A server with narrow bounds, and a page that no socket buffer holds.
async fn narrow() -> (SocketAddr, Limits) {
    (bounded(NARROW).await, NARROW)
}

async fn bounded(limits: Limits) -> SocketAddr {
    let router = Router::new().route("/large", axum::routing::get(async || vec![b'x'; 64 << 20]));
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = http_server::bind("test", any_port, true).await.expect("a free port");
    let address = listener.local_addr().expect("a bound socket");
    tokio::spawn(http_server::serve(listener, router, Places::new(limits)));
    address
}

/// Clients that do not read the answer are cut off after the time, too.
#[tokio::test]
async fn clients_that_do_not_read_are_cut_off() {
    let (address, limits) = narrow().await;
    let mut deaf = Vec::new();
    for _ in 0..limits.connections {
        let mut stream = TcpStream::connect(address).await.expect("accepted");
        stream.write_all(b"GET /large HTTP/1.1\r\nHost: test\r\n\r\n").await.expect("sent");
        deaf.push(stream);
    }
    assert_eq!(get(address, "/").await.status, 404);
}

/// Clients that say nothing, or say it a byte at a time, are cut off after the time for a head.
#[tokio::test]
async fn silent_clients_are_cut_off() {
    let (address, limits) = narrow().await;
    let started = Instant::now();
    let silent = TcpStream::connect(address).await.expect("accepted");
    let mut slow = TcpStream::connect(address).await.expect("accepted");
    let dripped = drip(&mut slow);
    let dripped = tokio::time::timeout(Duration::from_secs(10), dripped).await;
    dripped.expect("a slow client is cut off, too");
    assert!(started.elapsed() >= limits.head_time, "nobody else wanted its place");
    closed(silent).await;
}

/// Whoever comes gets a place; it is taken from the client that has been silent for longest.
#[tokio::test]
async fn the_oldest_silent_client_makes_room() {
    let patient =
        Limits { head_time: Duration::from_secs(3600), time: Duration::from_secs(3600), ..NARROW };
    let address = bounded(patient).await;
    let mut silent = Vec::new();
    for _ in 0..patient.connections {
        silent.push(TcpStream::connect(address).await.expect("accepted"));
    }
    assert_eq!(get(address, "/").await.status, 404);
    closed(silent.remove(0)).await;
    let mut still_open = silent.remove(0);
    still_open.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").await.expect("sent");
    let mut answer = Vec::new();
    still_open.read_to_end(&mut answer).await.expect("an answer");
    assert!(answer.starts_with(b"HTTP/1.1 404"), "{}", String::from_utf8_lossy(&answer));
}

/// Waits until the server has closed a connection.
async fn closed(mut stream: TcpStream) {
    let mut byte = [0];
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut byte)).await;
    // A reset is an end as well: what was sent may not have been read.
    assert!(!matches!(read.expect("closed in time"), Ok(1)), "nothing was asked");
}

/// Sends a head that never ends, until the server closes.
async fn drip(stream: &mut TcpStream) {
    let head = b"GET /healthz HTTP/1.1\r\nX: ".iter().chain(std::iter::repeat(&b'x'));
    for byte in head {
        if stream.write_all(&[*byte]).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Opens this many connections, of which every other one drips, and keeps all of them busy: who is
/// dropped comes again within a second.
fn hold_on(address: SocketAddr, count: usize) -> JoinSet<()> {
    let mut clients = JoinSet::new();
    for i in 0..count {
        clients.spawn(async move {
            loop {
                if let Ok(mut stream) = TcpStream::connect(address).await {
                    match i % 2 {
                        0 => drop(stream.read(&mut [0]).await),
                        _ => drip(&mut stream).await,
                    }
                }
                // Not all in one burst.
                tokio::time::sleep(Duration::from_millis(500 + i as u64)).await;
            }
        });
    }
    clients
}

// 64 silent connections, on a health-check node port 16, took the port away from everyone for ten
// seconds, and could come again: load balancers took the node out.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn silent_connections_take_a_port_from_nobody() {
    let fixture = Fixture::start().await;
    fixture.health.observe_node(&node(false, false));
    let ip: IpAddr = "127.83.6.1".parse().expect("an address");
    let check = SocketAddr::new(ip, free_port());
    let mut servers = servers(healthy());
    let web = wanted([("web", wish(check.port(), V4_ONLY, 1, 0))]);
    assert!(servers.reconcile(&web, &ListenAddresses::Only(vec![ip])).await.is_empty());
    let metrics = metrics_server().await;
    let probes = [
        (fixture.address, "/healthz"),
        (fixture.address, "/livez"),
        (check, "/"),
        (metrics, "/metrics"),
    ];
    for count in [70, 500] {
        for (address, path) in probes {
            let clients = hold_on(address, count);
            // A thread of its own: a prober is no slower for what others do.
            let prober = tokio::task::spawn_blocking(move || probe(address, path, count));
            prober.await.expect("it is answered each time");
            drop(clients);
        }
    }
}

/// Asks a page twenty times, while more of the others arrive. A machine that stands still for a second is
/// late now and then; where silent ones keep their places, it is so each time.
fn probe(address: SocketAddr, path: &'static str, others: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let mut late = Vec::new();
        for _ in 0..20 {
            let started = Instant::now();
            // One that is dropped is asked again by whoever probes, and counts as late.
            let answer = tokio::spawn(get(address, path)).await;
            if let Ok(answer) = &answer {
                assert_eq!(answer.status, 200, "{path} beside {others}");
            }
            let took = started.elapsed();
            if answer.is_err() || took >= Duration::from_secs(1) {
                late.push(took);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(late.len() <= 5, "{path} beside {others}: {late:?}");
    });
}

/// Metrics of nothing, served.
async fn metrics_server() -> SocketAddr {
    let build = BuildInfo::default();
    let metrics = Arc::new(Metrics::new(Mode::Nftables, &build, Timestamp::UNIX_EPOCH));
    let pages = Pages {
        proxy_mode: "nftables".to_owned(),
        configuration: Value::Null,
        flags: None,
        status: None,
        profiling: None,
        extra: Router::new(),
    };
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = http_server::bind("metrics", any_port, true).await.expect("a free port");
    let address = listener.local_addr().expect("a bound socket");
    tokio::spawn(kubeweir::metrics::server::run(listener, metrics, pages));
    address
}

/// A head over the bound is refused.
#[tokio::test]
async fn large_heads_are_refused() {
    let (address, limits) = narrow().await;
    let fits = "x".repeat(limits.head_bytes / 2);
    assert_eq!(request(address, "GET", "/", &[("X", &fits)], "").await.status, 404);
    let large = "x".repeat(limits.head_bytes);
    assert_eq!(request(address, "GET", "/", &[("X", &large)], "").await.status, 431);
}
