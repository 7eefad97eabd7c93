//! A small cluster made of network namespaces, with real sockets.
//!
//! Place in the flow: outside it. Packet tests and the demo build a [`Lab`], let Kubeweir program
//! its node, and dial. Nothing here knows what Kubeweir should do.
//!
//! ```text
//!  pods (a namespace each) ── veth ── node ── eth0 ── elsewhere (the second node and its pods)
//!                                      └───── eth1 ── outside (clients, and the default route)
//! ```
//!
//! The namespaces have no names and the links are made between them, so the namespace of the test
//! process never sees anything of it, and any number of labs can exist side by side. Needs root,
//! `ip` and, for scripts, `nft`.

mod address;
mod agent;
mod dial;
mod netns;
mod objects;
mod server;

use std::fmt::Write;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::model::{Family, Protocol};

pub use address::{
    CLUSTER_CIDR, EXTERNAL_CIDR, GATEWAY, NODE_CIDR, NODE_IP, OUTSIDE_IP, Place, REMOTE_NODE_IP,
    SECOND_NODE_IP, SERVICE_CIDR, cluster_ip, external_ip, pod_ip, real_external_ip, remote_pod_ip,
};
pub use agent::Agent;
pub use dial::{Dial, Flow, Outcome, PATIENCE, SILENCE};
pub use netns::Netns;
pub use objects::{
    EndpointBuilder, NODE_NAME, ServiceBuilder, endpoint, node, service, service_cidr, slice,
};
pub use server::{Answer, Server};

/// Why a lab could not be built or used.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A namespace could not be made.
    #[error("creating network namespace {name}")]
    Namespace {
        /// For messages.
        name: String,
        /// Why; EPERM without CAP_SYS_ADMIN.
        #[source]
        source: io::Error,
    },
    /// A sysctl could not be read or written.
    #[error("sysctl {key} in {netns}")]
    Sysctl {
        netns: String,
        /// Path below `/proc/sys`.
        key: String,
        #[source]
        source: io::Error,
    },
    /// A program could not be run.
    #[error("running {program} in {netns}")]
    Program {
        program: String,
        netns: String,
        #[source]
        source: io::Error,
    },
    /// A program ended with an error.
    #[error("{program} in {netns}: {status}: {stderr}")]
    Refused {
        program: String,
        netns: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// A server could not listen.
    #[error("server {server} cannot listen on {address}")]
    Listen {
        server: String,
        /// The address it should have.
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
}

/// How pods are connected to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodNetwork {
    /// Each by a link of its own, `veth0`, `veth1`, …, as the `ptp` plug-in does.
    Routed,
    /// All by the bridge `cbr0`, as the `bridge` plug-in does.
    Bridge,
}

/// How many pods the node has, and how many addresses the servers of the second node.
pub const PODS: usize = 3;

/// The ports that every pod, here and elsewhere, serves over TCP and UDP.
pub const POD_PORTS: [u16; 3] = [8080, 8443, 5353];

/// The cluster: see the module's picture.
#[derive(Debug)]
pub struct Lab {
    /// The node under test. Forwards; has [`NODE_IP`] and [`SECOND_NODE_IP`].
    pub node: Netns,
    /// Pods of the node, each with [`pod_ip`].
    pub pods: Vec<Netns>,
    /// The second node, with [`REMOTE_NODE_IP`] and all [`remote_pod_ip`]s.
    pub elsewhere: Netns,
    /// Clients from outside and the node's default route.
    pub outside: Netns,
    servers: Mutex<Vec<Server>>,
}

impl Lab {
    /// Builds everything and starts a server in each pod, `pod-0` … and `remote-0` …, on
    /// [`POD_PORTS`].
    pub fn new(network: PodNetwork) -> Result<Lab, LabError> {
        let pods = (0..PODS).map(|n| Netns::new(&format!("pod-{n}"))).collect::<Result<_, _>>()?;
        let lab = Lab {
            node: Netns::new("node")?,
            pods,
            elsewhere: Netns::new("elsewhere")?,
            outside: Netns::new("outside")?,
            servers: Mutex::default(),
        };
        lab.set_sysctls()?;
        lab.link_neighbours()?;
        lab.link_pods(network)?;
        lab.ask_long_for_neighbours()?;
        lab.start_pod_servers(&[Protocol::Tcp, Protocol::Udp])?;
        lab.meet_neighbours();
        Ok(lab)
    }

    /// Starts a server of TCP and UDP that lives as long as the lab.
    pub fn serve(
        &self,
        place: Place,
        name: &str,
        addresses: &[SocketAddr],
    ) -> Result<(), LabError> {
        self.serve_over(&[Protocol::Tcp, Protocol::Udp], place, name, addresses)
    }

    /// Starts in each pod what [`Lab::new`] started, for SCTP, which not every kernel has.
    pub fn serve_sctp(&self) -> Result<(), LabError> {
        self.start_pod_servers(&[Protocol::Sctp])
    }

    fn serve_over(
        &self,
        protocols: &[Protocol],
        place: Place,
        name: &str,
        addresses: &[SocketAddr],
    ) -> Result<(), LabError> {
        let server = Server::start(self.netns(place), name, protocols, addresses)?;
        self.servers.lock().expect("nobody panics holding it").push(server);
        Ok(())
    }

    /// Assigns an address to the node's loopback interface, as software for load balancers does.
    pub fn bind_on_node(&self, address: IpAddr) -> Result<(), LabError> {
        self.node.assign(address)
    }

    /// The namespace of a place.
    pub fn netns(&self, place: Place) -> &Netns {
        match place {
            Place::Pod(n) => &self.pods[n],
            Place::RemotePod(_) => &self.elsewhere,
            Place::Host => &self.node,
            Place::Outside | Place::OutsideAt(_) => &self.outside,
        }
    }

    /// Dials from a place `times` times, each time as a new flow, with that place's own address.
    pub fn dial(&self, place: Place, dial: Dial, times: usize) -> Vec<Outcome> {
        let from = dial.from.or_else(|| place.source(Family::of(&dial.to.ip())));
        self.netns(place).dial_times(Dial { from, ..dial }, times)
    }

    /// Opens a flow from a place and keeps it.
    pub fn open(&self, place: Place, protocol: Protocol, to: SocketAddr) -> Result<Flow, Outcome> {
        let dial = Dial { from: place.source(Family::of(&to.ip())), ..Dial::new(protocol, to) };
        self.netns(place).open(dial)
    }

    fn set_sysctls(&self) -> Result<(), LabError> {
        for pod in &self.pods {
            // Of two pods on one bridge the node tells each that the other is its neighbour, and then answers
            // go past its conntrack, unless br_netfilter is there. IPv4's redirects are not sent, below;
            // IPv6 knows no such setting.
            pod.sysctl("net/ipv6/conf/all/accept_redirects", "0")?;
            pod.sysctl("net/ipv6/conf/default/accept_redirects", "0")?;
        }
        for netns in [&self.node, &self.elsewhere, &self.outside] {
            netns.sysctl("net/ipv4/ip_forward", "1")?;
            netns.sysctl("net/ipv6/conf/all/forwarding", "1")?;
            netns.sysctl("net/ipv4/conf/all/send_redirects", "0")?;
            netns.sysctl("net/ipv4/conf/default/send_redirects", "0")?;
            // Refusals are to be seen every time, not once a second: no type of message is limited
            // (none cannot be said in IPv6; 255 is reserved).
            netns.sysctl("net/ipv4/icmp_ratemask", "0")?;
            netns.sysctl("net/ipv6/icmp/ratemask", "255")?;
        }
        Ok(())
    }

    fn link_neighbours(&self) -> Result<(), LabError> {
        let mut node = format!(
            "link add eth0 type veth peer name eth0 netns {}\n\
             link add eth1 type veth peer name eth0 netns {}\n\
             link set eth0 up\nlink set eth1 up\n",
            self.elsewhere.path(),
            self.outside.path()
        );
        let mut elsewhere = String::from("link set eth0 up\n");
        let mut outside = String::from("link set eth0 up\n");
        for family in Family::BOTH {
            let (here, second) = (NODE_IP[family], SECOND_NODE_IP[family]);
            let (there, out) = (REMOTE_NODE_IP[family], OUTSIDE_IP[family]);
            let prefix = if family == Family::V4 { "24" } else { "64 nodad" };
            let [remote_pods, external, clients] = [
                address::REMOTE_POD_CIDR[family],
                address::REAL_EXTERNAL_CIDR[family],
                address::CLIENT_CIDR[family],
            ];
            lines(
                &mut node,
                &[
                    format!("addr add {here}/{prefix} dev eth0"),
                    format!("addr add {second}/{prefix} dev eth1"),
                    format!("route add {remote_pods} via {there}"),
                    format!("route add {clients} via {out}"),
                    format!("route add default via {out} src {here}"),
                ],
            );
            lines(
                &mut elsewhere,
                &[
                    format!("addr add {there}/{prefix} dev eth0"),
                    format!("route add local {remote_pods} dev lo"),
                    format!("route add default via {here}"),
                ],
            );
            lines(
                &mut outside,
                &[
                    format!("addr add {out}/{prefix} dev eth0"),
                    format!("route add local {external} dev lo"),
                    format!("route add local {clients} dev lo"),
                    format!("route add default via {second}"),
                ],
            );
        }
        // IPv6's preferred source must exist on the node before it can be named: nodad above.
        self.node.ip(&node)?;
        self.elsewhere.ip(&elsewhere)?;
        self.outside.ip(&outside)
    }

    fn link_pods(&self, network: PodNetwork) -> Result<(), LabError> {
        let mut node = String::new();
        if network == PodNetwork::Bridge {
            node.push_str("link add cbr0 type bridge\nlink set cbr0 up\n");
            node.push_str(&gateways("cbr0"));
        }
        for (n, pod) in self.pods.iter().enumerate() {
            let link = format!("veth{n}");
            writeln!(node, "link add {link} type veth peer name eth0 netns {}", pod.path())
                .expect("a String takes everything");
            match network {
                PodNetwork::Bridge => lines(
                    &mut node,
                    &[
                        format!("link set {link} master cbr0"),
                        // Where br_netfilter translates in the bridge, a pod that reaches itself
                        // leaves by the port it came in; CNI's bridge sets it for the same reason.
                        format!("link set {link} type bridge_slave hairpin on"),
                    ],
                ),
                PodNetwork::Routed => node.push_str(&gateways(&link)),
            }
            lines(&mut node, &[format!("link set {link} up")]);
            let device = if network == PodNetwork::Bridge { "cbr0" } else { &link };
            for family in Family::BOTH {
                lines(&mut node, &[format!("route add {} dev {device}", pod_ip(n, family))]);
            }
        }
        self.node.ip(&node)?;
        for (n, pod) in self.pods.iter().enumerate() {
            let mut text = String::from("link set eth0 up\n");
            for family in Family::BOTH {
                let (own, gateway) = (pod_ip(n, family), GATEWAY[family]);
                let suffix = if family == Family::V4 { "" } else { " nodad" };
                lines(
                    &mut text,
                    &[
                        // Without a prefix everything goes through the node, answers included.
                        format!("addr add {own} dev eth0{suffix}"),
                        format!("route add {gateway} dev eth0"),
                        format!("route add default via {gateway} dev eth0"),
                    ],
                );
            }
            pod.ip(&text)?;
        }
        Ok(())
    }

    /// A neighbour that does not answer three times in three seconds is unreachable, as the kernel would
    /// have it; on a slow machine it is only late.
    fn ask_long_for_neighbours(&self) -> Result<(), LabError> {
        for netns in self.pods.iter().chain([&self.node, &self.elsewhere, &self.outside]) {
            for table in ["net/ipv4/neigh", "net/ipv6/neigh"] {
                for link in netns.sysctls(table)? {
                    for question in ["mcast_solicit", "ucast_solicit"] {
                        netns.sysctl(&format!("{table}/{link}/{question}"), "60")?;
                    }
                }
            }
        }
        Ok(())
    }

    fn start_pod_servers(&self, protocols: &[Protocol]) -> Result<(), LabError> {
        for n in 0..PODS {
            let at = |ip: fn(usize, Family) -> IpAddr| -> Vec<SocketAddr> {
                let ports = POD_PORTS.into_iter();
                ports
                    .flat_map(|port| Family::BOTH.map(|f| SocketAddr::new(ip(n, f), port)))
                    .collect()
            };
            let here = (Place::Pod(n), format!("pod-{n}"), at(pod_ip));
            let there = (Place::RemotePod(n), format!("remote-{n}"), at(remote_pod_ip));
            for (place, name, addresses) in [here, there] {
                self.serve_over(protocols, place, &name, &addresses)?;
            }
        }
        Ok(())
    }

    /// Uses every link once, so that no later packet is lost while neighbours are still unknown:
    /// TCP would repeat it, UDP does not.
    fn meet_neighbours(&self) {
        for family in Family::BOTH {
            for n in 0..PODS {
                for place in [Place::Outside, Place::RemotePod(0)] {
                    let to = SocketAddr::new(pod_ip(n, family), POD_PORTS[0]);
                    let met = self.dial(place, Dial::new(Protocol::Tcp, to), 1);
                    assert!(met[0].answer().is_some(), "{place:?} cannot reach {to}: {met:?}");
                }
            }
        }
    }
}

/// The node's ends of a link to pods; the same addresses on every link, as CNI plug-ins do.
fn gateways(link: &str) -> String {
    let (v4, v6) = (GATEWAY.v4, GATEWAY.v6);
    format!("addr add {v4} dev {link}\naddr add {v6} dev {link} nodad\n")
}

fn lines(text: &mut String, more: &[String]) {
    for line in more {
        text.push_str(line);
        text.push('\n');
    }
}

// What the kernel holds on behalf of a process, tables above all.
//
// The kernel charges nf_tables' memory to the control group of the task that asks for it, so a group
// of its own tells a process's apart from everyone else's. Needs the memory controller, version 1
// or 2.

/// A control group with one process in it, which leaves it when this is dropped.
pub struct KernelMemory(PathBuf);

impl KernelMemory {
    /// Moves a process into a group of its own; `None` where the memory controller is not at hand.
    /// What it allocated before is not counted.
    pub fn of(pid: u32) -> Option<KernelMemory> {
        // The memory of an earlier group of the same process is freed at the kernel's leisure.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"].into_iter().find_map(|root| {
            let group = Path::new(root).join(format!("kubeweir-{pid}-{number}"));
            fs::create_dir(&group).ok()?;
            let group = KernelMemory(group);
            group.bytes()?;
            fs::write(group.0.join("cgroup.procs"), pid.to_string()).ok()?;
            Some(group)
        })
    }

    /// Bytes that are charged to the group.
    pub fn bytes(&self) -> Option<u64> {
        if let Ok(text) = fs::read_to_string(self.0.join("memory.kmem.usage_in_bytes")) {
            return text.trim().parse().ok();
        }
        let text = fs::read_to_string(self.0.join("memory.stat")).ok()?;
        text.lines().find_map(|line| line.strip_prefix("kernel "))?.trim().parse().ok()
    }
}

impl Drop for KernelMemory {
    fn drop(&mut self) {
        let procs = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        for pid in procs.lines() {
            fs::write(self.0.with_file_name("cgroup.procs"), pid).ok();
        }
        fs::remove_dir(&self.0).ok();
    }
}
