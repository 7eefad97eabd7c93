//! The way of a packet: from a client's socket through the node into a server's queue.
//!
//! ```text
//! client ── veth ── node ── veth ── server        or all three in one namespace
//! ```
//!
//! What a `send` sets off is done before it returns, softirqs included, so the CPU time of the sending
//! thread is the packet's whole way, and nobody else's: neighbours on the same cores cost it hardly
//! anything.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use kubeweir::model::{Family, Protocol};
use kubeweir::netlink::request::{Request, Requests};
use kubeweir::testing::lab::Netns;
use nix::sys::socket::{setsockopt, sockopt};
use nix::time::{ClockId, clock_gettime};
use socket2::{Domain, SockAddr, Socket, Type};

use super::services::{
    ENDPOINT_PORT, node_ip, outside_cidr, pod, pod_cidr, server_cidr, service_cidr,
};

/// The client's number among pods.
const CLIENT: u32 = 0x003f_0001;
/// Room for what is sent before it is read.
const BUFFER: usize = 64 << 20;

/// Whose packet it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// A pod.
    Pod,
    /// Somebody outside of the cluster.
    Outside,
}

impl From {
    /// The address.
    pub fn address(self, family: Family) -> IpAddr {
        match (self, family) {
            (From::Pod, _) => pod(CLIENT, family),
            (From::Outside, Family::V4) => Ipv4Addr::new(198, 51, 100, 7).into(),
            (From::Outside, Family::V6) => Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 7).into(),
        }
    }
}

/// Where the rules are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Between client and server.
    Forwarded,
    /// In the one namespace of both.
    Within,
}

/// Client, node and server, and the sockets of both ends.
pub struct Path {
    /// The namespace with the rules.
    pub node: Netns,
    family: Family,
    /// The client's namespace, if it has one.
    client: Option<Netns>,
    server: Option<Netns>,
    raw: Socket,
    udp: UdpSocket,
    tcp: TcpListener,
    conntrack: Requests,
    next_port: u16,
}

impl Path {
    /// Namespaces, links, sockets; no rules yet.
    pub fn new(family: Family, place: Place) -> Path {
        let netns = |name| Netns::new(name).expect("a network namespace (root is needed)");
        let node = netns("node");
        let (client, server) = match place {
            Place::Within => (None, None),
            Place::Forwarded => (Some(netns("client")), Some(netns("server"))),
        };
        if let (Some(client), Some(server)) = (&client, &server) {
            link(&node, client, server, family);
        }
        let at_server = server.as_ref().unwrap_or(&node);
        // A source that is local is none the kernel takes from a link.
        let local = match place {
            Place::Within => pod_cidr(family),
            Place::Forwarded => server_cidr(family),
        };
        at_server.ip(&format!("route add local {local} dev lo\n")).expect("ip works");
        if place == Place::Within {
            // What is dialled needs a route until it is translated.
            let dialled = service_cidr(family);
            node.ip(&format!("route add local {dialled} dev lo\n")).expect("ip works");
        }
        let at_client = client.as_ref().unwrap_or(&node);
        let (udp, tcp) = at_server.run(|| listen(family));
        let raw = at_client.run(|| {
            let (domain, kind) = (domain(family), Type::from(libc::SOCK_RAW));
            let raw = Socket::new(domain, kind, Some(libc::IPPROTO_RAW.into()));
            raw.expect("CAP_NET_RAW")
        });
        let conntrack = node.visit(Requests::to_netfilter).expect("ctnetlink");
        Path { node, family, client, server, raw, udp, tcp, conntrack, next_port: 1024 }
    }

    /// The CPU time of one packet that is the first of its flow, UDP, mean of so many.
    pub fn new_udp(&mut self, from: From, to: SocketAddr, packets: u32) -> Duration {
        let time = self.send_udp(from, to, packets);
        let arrived = drain(&self.udp);
        assert_eq!(arrived, packets as usize, "to {to}: packets are lost");
        time
    }

    /// The CPU time of one packet that gets nowhere, UDP, mean of so many.
    pub fn refused_udp(&mut self, from: From, to: SocketAddr, packets: u32) -> Duration {
        let time = self.send_udp(from, to, packets);
        assert_eq!(drain(&self.udp), 0, "to {to}: packets are let through");
        time
    }

    fn send_udp(&mut self, from: From, to: SocketAddr, packets: u32) -> Duration {
        let packets: Vec<Vec<u8>> = (0..packets).map(|_| self.packet(from, to)).collect();
        // IPv6's raw sockets take no port.
        let target = SockAddr::from(SocketAddr::new(to.ip(), 0));
        let time = self.timed(|path| {
            for packet in &packets {
                match path.raw.send_to(packet, &target) {
                    // What the output hook refuses fails here; who waits for arrivals counts them.
                    Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
                    sent => drop(sent.expect("sent")),
                }
            }
        });
        time / packets.len() as u32
    }

    /// The CPU time of `connect`: a handshake of three packets.
    pub fn new_tcp(&mut self, from: From, to: SocketAddr, connections: u32) -> Duration {
        let mut sum = Duration::ZERO;
        for _ in 0..connections {
            let socket = self.tcp_socket(from);
            sum += self.timed(|_| socket.connect(&to.into()).expect("connected"));
            let (accepted, _) = self.tcp.accept().expect("it came");
            // Reset, so that nothing stays behind.
            socket.set_linger(Some(Duration::ZERO)).expect("an option every socket has");
            drop(socket);
            drop(accepted);
        }
        sum / connections
    }

    /// Opens a flow to a Service's one endpoint, which answers once.
    pub fn establish(
        &mut self,
        protocol: Protocol,
        from: From,
        to: SocketAddr,
        endpoint: IpAddr,
    ) -> Established {
        if protocol == Protocol::Tcp {
            let client = self.tcp_socket(from);
            client.connect(&to.into()).expect("connected");
            let (server, _) = self.tcp.accept().expect("it came");
            server.set_nonblocking(true).expect("an option every socket has");
            client.set_tcp_nodelay(true).expect("an option every TCP socket has");
            return Established::Tcp(client.into(), server);
        }
        let at = SocketAddr::new(endpoint, ENDPOINT_PORT);
        let server = self.server.as_ref().unwrap_or(&self.node).run(|| udp_socket(at));
        let client = SocketAddr::new(from.address(self.family), 0);
        let client = self.at_client(|| udp_socket(client));
        client.connect(to).expect("a route");
        client.send(b"ping").expect("sent");
        let (_, peer) = server.recv_from(&mut [0; 64]).expect("it came");
        server.send_to(b"pong", peer).expect("sent");
        client.recv(&mut [0; 64]).expect("it came");
        Established::Udp(client, server)
    }

    /// The CPU time of a packet in a flow, mean of so many.
    pub fn established(&mut self, flow: &mut Established, packets: u32) -> Duration {
        let time = self.timed(|_| {
            for _ in 0..packets {
                match flow {
                    Established::Udp(client, _) => {
                        assert_eq!(client.send(b"ping").expect("sent"), 4)
                    }
                    Established::Tcp(client, _) => {
                        let sent = std::io::Write::write(client, b"ping");
                        assert_eq!(sent.expect("sent"), 4);
                    }
                }
            }
        });
        match flow {
            Established::Udp(_, server) => assert_eq!(drain(server), packets as usize),
            Established::Tcp(_, server) => {
                let mut buffer = [0; 4096];
                let mut left = packets as usize * 4;
                while left > 0 {
                    left -= server.read(&mut buffer).expect("what was sent is here");
                }
            }
        }
        time / packets
    }

    /// Forgets all flows.
    pub fn forget(&mut self) {
        const CTNETLINK: u16 = 1;
        const DELETE: u8 = 2;
        let every = Request::nfnetlink(CTNETLINK, DELETE, 0, Vec::new());
        self.conntrack.execute(&every, |_| {}).expect("flushed");
    }

    fn timed(&mut self, work: impl FnOnce(&mut Path)) -> Duration {
        let before = cpu_time();
        work(self);
        cpu_time() - before
    }

    fn at_client<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.client.as_ref().unwrap_or(&self.node).run(work)
    }

    fn tcp_socket(&mut self, from: From) -> Socket {
        let source = SocketAddr::new(from.address(self.family), self.port());
        let socket = self.at_client(|| Socket::new(domain(self.family), Type::STREAM, None));
        let socket = socket.expect("a socket");
        // TIME_WAIT and the like of earlier ones.
        socket.set_reuse_address(true).expect("an option every socket has");
        socket.bind(&source.into()).expect("a free port");
        socket
    }

    fn port(&mut self) -> u16 {
        let port = self.next_port;
        self.next_port = port.checked_add(1).unwrap_or(1024);
        port
    }

    /// An IP packet with a UDP datagram of 4 bytes, of a flow of its own.
    fn packet(&mut self, from: From, to: SocketAddr) -> Vec<u8> {
        let source = from.address(self.family);
        let ports = [self.port().to_be_bytes(), to.port().to_be_bytes()].concat();
        let datagram =
            |checksum: u16| [&ports[..], &[0, 12], &checksum.to_be_bytes(), b"ping"].concat();
        match (source, to.ip()) {
            (IpAddr::V4(source), IpAddr::V4(to)) => {
                // The kernel fills in the header's checksum and identification.
                let head = [0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0];
                [&head[..], &source.octets(), &to.octets(), &datagram(0)].concat()
            }
            (IpAddr::V6(source), IpAddr::V6(to)) => {
                let head = [0x60, 0, 0, 0, 0, 12, 17, 64];
                let addresses = [source.octets(), to.octets()].concat();
                let sum = checksum(&[&addresses[..], &[0, 17, 0, 12], &datagram(0)].concat());
                [&head[..], &addresses, &datagram(sum)].concat()
            }
            (source, to) => panic!("{source} and {to} are of two families"),
        }
    }
}

/// Reads what has come; returns how many datagrams.
fn drain(socket: &UdpSocket) -> usize {
    let mut buffer = [0; 64];
    std::iter::repeat_with(|| socket.recv(&mut buffer)).take_while(Result::is_ok).count()
}

/// A flow with packets in both directions: the client's socket, and the endpoint's.
pub enum Established {
    Udp(UdpSocket, UdpSocket),
    Tcp(TcpStream, TcpStream),
}

fn domain(family: Family) -> Domain {
    match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    }
}

fn listen(family: Family) -> (UdpSocket, TcpListener) {
    let any: IpAddr = match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    let at = SocketAddr::new(any, ENDPOINT_PORT);
    (udp_socket(at), TcpListener::bind(at).expect("a free port"))
}

fn udp_socket(at: SocketAddr) -> UdpSocket {
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM, None).expect("a socket");
    // Beside the one for all addresses.
    socket.set_reuse_address(true).expect("an option every socket has");
    socket.bind(&at.into()).expect("a free port");
    socket.set_nonblocking(true).expect("an option every socket has");
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).expect("CAP_NET_ADMIN");
    socket.into()
}

fn link(node: &Netns, client: &Netns, server: &Netns, family: Family) {
    let (gateway, prefix, nodad) = match family {
        Family::V4 => ("169.254.1.1", 32, ""),
        Family::V6 => ("fe80::1", 128, " nodad"),
    };
    let own = |from: From| from.address(family);
    node.ip(&format!(
        "link add to-client address 02:00:00:00:00:01 type veth peer name eth0 address 02:00:00:00:00:02 netns {}\n\
         link add to-server address 02:00:00:00:00:03 type veth peer name eth0 address 02:00:00:00:00:04 netns {}\n\
         link set to-client up\nlink set to-server up\n\
         addr add {}/{prefix} dev lo{nodad}\n",
        client.path(),
        server.path(),
        node_ip(family),
    ))
    .expect("ip works");
    client
        .ip(&format!(
            "link set eth0 up\naddr add {}/{prefix} dev lo{nodad}\naddr add {}/{prefix} dev lo{nodad}\n\
             neigh add {gateway} lladdr 02:00:00:00:00:01 dev eth0 nud permanent\n\
             route add default via {gateway} dev eth0 onlink\n",
            own(From::Pod),
            own(From::Outside),
        ))
        .expect("ip works");
    server
        .ip(&format!(
            "link set eth0 up\n\
             neigh add {gateway} lladdr 02:00:00:00:00:03 dev eth0 nud permanent\n\
             route add default via {gateway} dev eth0 onlink\n"
        ))
        .expect("ip works");
    let other = match family {
        Family::V4 => "169.254.1.2",
        Family::V6 => "fe80::2",
    };
    node.ip(&format!(
        "neigh add {other} lladdr 02:00:00:00:00:02 dev to-client nud permanent\n\
         neigh add {other} lladdr 02:00:00:00:00:04 dev to-server nud permanent\n\
         route add {}/{prefix} via {other} dev to-client onlink\n\
         route add {} via {other} dev to-client onlink\n\
         route add {} via {other} dev to-server onlink\n",
        own(From::Pod),
        outside_cidr(family),
        pod_cidr(family),
    ))
    .expect("ip works");
    for (key, value) in [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv4/conf/all/rp_filter", "0"),
    ] {
        node.sysctl(key, value).expect("a sysctl every kernel has");
    }
}

/// Of the sending thread, softirqs included.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("Linux has it").into()
}

/// The checksum of a UDP datagram with its pseudo header.
fn checksum(bytes: &[u8]) -> u16 {
    let words =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    // UDP says "none" with a zero.
    match !((folded & 0xffff) as u16 + (folded >> 16) as u16) {
        0 => 0xffff,
        sum => sum,
    }
}
