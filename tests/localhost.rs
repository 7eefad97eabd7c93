//! The proxy of localhost NodePorts on real sockets: what passes through a connection, and what happens
//! when an endpoint is not there. In a network namespace of its own: ports are fixed.

#![allow(clippy::unwrap_used)] // a test binary, helpers included

mod netns;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kubeweir::localhost::{self, Bounds, Desired};
use kubeweir::metrics::{BuildInfo, Exposition, Metrics, Mode};
use kubeweir::model::{Family, ObjectName, Protocol};
use kubeweir::program::LocalhostPort;
use kubeweir::topology::Backend;
use netns::in_netns;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

const NODE_PORT: u16 = 30080;
const SOON: Duration = Duration::from_secs(10);

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn port(protocol: Protocol, backends: &[u16]) -> LocalhostPort {
    let backend = |port: &u16| Backend { address: [127, 0, 0, 1].into(), port: *port };
    let backends = backends.iter().map(backend).collect();
    LocalhostPort { protocol, port: NODE_PORT, backends, affinity: None }
}

/// A running proxy for one service.
struct Proxy {
    desired: Desired,
    metrics: Arc<Metrics>,
}

impl Proxy {
    fn start(ports: Vec<LocalhostPort>) -> Proxy {
        Proxy::bounded(ports, Bounds::of_process())
    }

    fn bounded(ports: Vec<LocalhostPort>, bounds: Bounds) -> Proxy {
        let (desired, wanted) = Desired::new();
        let started = Timestamp::UNIX_EPOCH;
        let metrics = Arc::new(Metrics::new(Mode::Nftables, &BuildInfo::default(), started));
        tokio::spawn(localhost::run(wanted, metrics.clone(), bounds));
        let mut proxy = Proxy { desired, metrics };
        proxy.serve(ports);
        proxy
    }

    fn serve(&mut self, ports: Vec<LocalhostPort>) {
        self.desired.set(Family::V4, &ObjectName::new("ns", "web"), ports);
        self.desired.publish();
    }

    /// Waits until the page has this line.
    async fn wait_line(&self, line: &str) {
        let there = async {
            while !self.scrape().lines().any(|found| found == line) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(timeout(SOON, there).await.is_ok(), "{line}:\n{}", self.scrape());
    }

    fn scrape(&self) -> String {
        String::from_utf8(self.metrics.scrape(Exposition::Text).unwrap()).unwrap()
    }
}

/// Connects once it listens.
async fn connect() -> TcpStream {
    connect_to(NODE_PORT).await
}

async fn connect_to(port: u16) -> TcpStream {
    let connected = async {
        loop {
            match TcpStream::connect(address(port)).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    timeout(SOON, connected).await.unwrap()
}

fn connections(count: usize) -> String {
    format!("kubeweir_localhost_nodeport_connections{{ip_family=\"IPv4\"}} {count}")
}

const ONE_TOO_MANY: &str =
    "kubeweir_localhost_nodeport_failures_total{ip_family=\"IPv4\",reason=\"limit\"} 1";

fn within(test: impl AsyncFnOnce() + Send) {
    in_netns(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { timeout(SOON * 3, test()).await.unwrap() });
    });
}

// Each side may end its direction and still hear the other.
#[test]
fn half_close_is_passed_on() {
    within(async || {
        let server = TcpListener::bind(address(8080)).await.unwrap();
        let _proxy = Proxy::start(vec![port(Protocol::Tcp, &[8080])]);
        let mut client = connect().await;
        let (mut endpoint, _) = server.accept().await.unwrap();
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut heard = String::new();
        endpoint.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "question");
        endpoint.write_all(b"answer").await.unwrap();
        drop(endpoint);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "answer");
    });
}

#[test]
fn resets_are_passed_on() {
    within(async || {
        let server = TcpListener::bind(address(8080)).await.unwrap();
        let _proxy = Proxy::start(vec![port(Protocol::Tcp, &[8080])]);
        for client_resets in [true, false] {
            let client = connect().await;
            let (endpoint, _) = server.accept().await.unwrap();
            let (breaking, mut other) =
                if client_resets { (client, endpoint) } else { (endpoint, client) };
            socket2::SockRef::from(&breaking).set_linger(Some(Duration::ZERO)).unwrap();
            drop(breaking);
            let error = other.read(&mut [0; 8]).await.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{client_resets}");
        }
    });
}

// An endpoint that does not read stops its client: nothing piles up in between.
#[test]
fn back_pressure_is_passed_on() {
    within(async || {
        let server = TcpListener::bind(address(8080)).await.unwrap();
        let _proxy = Proxy::start(vec![port(Protocol::Tcp, &[8080])]);
        let mut client = connect().await;
        let (mut endpoint, _) = server.accept().await.unwrap();
        let chunk = vec![7; 1 << 20];
        let mut sent = 0;
        // Two sockets' buffers are all there is: at most 16 MiB each by the kernel's defaults.
        while let Ok(written) = timeout(Duration::from_secs(1), client.write(&chunk)).await {
            sent += written.unwrap();
            assert!(sent < 64 << 20, "{sent} bytes were taken that nobody read");
        }
        let reading = async {
            let mut left = sent;
            let mut buffer = vec![0; 1 << 20];
            while left > 0 {
                left -= endpoint.read(&mut buffer).await.unwrap();
            }
        };
        timeout(SOON, reading).await.unwrap();
    });
}

// Upstream gives up after one endpoint; here the next one is tried, and all of them being gone resets.
#[test]
fn the_next_endpoint_is_tried() {
    within(async || {
        let server = TcpListener::bind(address(8080)).await.unwrap();
        let mut proxy = Proxy::start(vec![port(Protocol::Tcp, &[8081, 8080, 8082])]);
        for _ in 0..20 {
            let mut client = connect().await;
            let (mut endpoint, _) = timeout(SOON, server.accept()).await.unwrap().unwrap();
            endpoint.write_all(b"x").await.unwrap();
            assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 1);
        }
        proxy.serve(vec![port(Protocol::Tcp, &[8081])]);
        let gone = async {
            loop {
                let mut client = connect().await;
                if let Err(error) = client.read(&mut [0; 8]).await {
                    return error;
                }
            }
        };
        drop(server);
        let error = timeout(SOON, gone).await.unwrap();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        let scrape = proxy.scrape();
        assert!(scrape.contains("reason=\"dial\""), "{scrape}");
    });
}

// A NodePort that is gone takes no new clients, and leaves those that it has.
#[test]
fn connections_outlive_their_listener() {
    within(async || {
        let server = TcpListener::bind(address(8080)).await.unwrap();
        let mut proxy = Proxy::start(vec![port(Protocol::Tcp, &[8080])]);
        let mut client = connect().await;
        let (mut endpoint, _) = server.accept().await.unwrap();
        proxy.serve(vec![]);
        while TcpStream::connect(address(NODE_PORT)).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        client.write_all(b"still there").await.unwrap();
        let mut heard = [0; 11];
        endpoint.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"still there");
        drop((client, endpoint));
        proxy.wait_line(&connections(0)).await;
    });
}

// Each client has a socket of its own, so that answers find their way; a new list moves it.
#[test]
fn udp_clients_are_told_apart() {
    within(async || {
        let servers = [8080, 8081].map(|port| std::net::UdpSocket::bind(address(port)).unwrap());
        let [old, new] = servers.map(|socket| {
            socket.set_nonblocking(true).unwrap();
            UdpSocket::from_std(socket).unwrap()
        });
        let mut proxy = Proxy::start(vec![port(Protocol::Udp, &[8080])]);
        let mut clients = Vec::new();
        for name in [b"a", b"b"] {
            let client = UdpSocket::bind(address(0)).await.unwrap();
            client.connect(address(NODE_PORT)).await.unwrap();
            clients.push((client, name));
        }
        for server in [&old, &new] {
            let echo = async {
                loop {
                    let mut buffer = [0; 8];
                    let (length, from) = server.recv_from(&mut buffer).await.unwrap();
                    server.send_to(&buffer[..length], from).await.unwrap();
                }
            };
            let asked = async {
                for (client, name) in &clients {
                    let mut answer = [0; 8];
                    loop {
                        let _ = client.send(*name).await;
                        let heard = timeout(Duration::from_millis(50), client.recv(&mut answer));
                        if let Ok(Ok(length)) = heard.await {
                            assert_eq!(&answer[..length], *name);
                            break;
                        }
                    }
                }
            };
            tokio::select! {
                () = asked => {}
                () = echo => {}
            }
            // The second round finds no other endpoint.
            proxy.serve(vec![port(Protocol::Udp, &[8081])]);
        }
    });
}

// Two at a time: the third client waits, is counted, and is served when a place is free.
#[test]
fn connections_are_bounded() {
    within(async || {
        let server = TcpListener::bind(address(8080)).await.unwrap();
        let proxy = Proxy::bounded(vec![port(Protocol::Tcp, &[8080])], Bounds::new(2, 1));
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(connect().await);
        }
        proxy.wait_line(ONE_TOO_MANY).await;
        proxy.wait_line(&connections(2)).await;
        let mut served = Vec::new();
        for _ in 0..2 {
            served.push(server.accept().await.unwrap().0);
        }
        // Whoever is not served has no connection to an endpoint, however long it waits.
        assert!(timeout(Duration::from_millis(200), server.accept()).await.is_err());
        drop((clients.remove(0), served.remove(0)));
        timeout(SOON, server.accept()).await.unwrap().unwrap();
        proxy.wait_line(&connections(2)).await;
    });
}

// A listener without clients kept a place for the next one: with more NodePorts than places the rest was
// served never.
#[test]
fn idle_listeners_take_no_place() {
    within(async || {
        let server = TcpListener::bind(address(8080)).await.unwrap();
        let at =
            |offset| LocalhostPort { port: NODE_PORT + offset, ..port(Protocol::Tcp, &[8080]) };
        let _proxy = Proxy::bounded((0..4).map(at).collect(), Bounds::new(1, 1));
        for offset in (0..4).rev() {
            let mut client = connect_to(NODE_PORT + offset).await;
            let (mut endpoint, _) = timeout(SOON, server.accept()).await.unwrap().unwrap();
            endpoint.write_all(b"x").await.unwrap();
            assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 1);
        }
    });
}

// A client too many is dropped and counted, as by a full table of connections; the others go on.
#[test]
fn udp_clients_are_bounded() {
    within(async || {
        let server = UdpSocket::bind(address(8080)).await.unwrap();
        let proxy = Proxy::bounded(vec![port(Protocol::Udp, &[8080])], Bounds::new(1, 1));
        let [first, second] =
            [UdpSocket::bind(address(0)).await, UdpSocket::bind(address(0)).await]
                .map(|client| client.unwrap());
        let mut buffer = [0; 8];
        let reached = async {
            loop {
                let _ = first.send_to(b"first", address(NODE_PORT)).await;
                if timeout(Duration::from_millis(50), server.recv(&mut buffer)).await.is_ok() {
                    return;
                }
            }
        };
        timeout(SOON, reached).await.unwrap();
        second.send_to(b"second", address(NODE_PORT)).await.unwrap();
        proxy.wait_line(ONE_TOO_MANY).await;
        first.send_to(b"last", address(NODE_PORT)).await.unwrap();
        let heard = async {
            loop {
                let length = server.recv(&mut buffer).await.unwrap();
                assert_ne!(&buffer[..length], b"second");
                if &buffer[..length] == b"last" {
                    return;
                }
            }
        };
        timeout(SOON, heard).await.unwrap();
    });
}

// What a connection may cost: two buffers of 4 KiB and what the runtime keeps of two sockets.
const BYTES_A_CONNECTION: u64 = 16 << 10;

// Endpoints that do not read make nothing grow: 100 connections, each stuffed until it takes no more.
#[test]
fn memory_is_bounded_by_the_number_of_connections() {
    const COUNT: usize = 100;
    let run = |count: usize| {
        allocation_counter::measure(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let server = TcpListener::bind(address(8080)).await.unwrap();
                let proxy = Proxy::start(vec![port(Protocol::Tcp, &[8080])]);
                let mut held = Vec::new();
                for _ in 0..count {
                    let client = connect().await;
                    held.push((client, timeout(SOON, server.accept()).await.unwrap().unwrap()));
                }
                let chunk = vec![7; 64 << 10];
                for (client, _) in &held {
                    while let Ok(Ok(())) =
                        timeout(Duration::from_millis(20), client.writable()).await
                    {
                        let _ = client.try_write(&chunk);
                    }
                }
                proxy.wait_line(&connections(count)).await;
            });
        })
    };
    in_netns(|| {
        let few = run(1).bytes_max;
        let many = run(1 + COUNT).bytes_max;
        let each = (many - few) / COUNT as u64;
        assert!(each <= BYTES_A_CONNECTION, "{each} bytes a connection");
    });
}
