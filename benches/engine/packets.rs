//! What packets cost: through a Service, in a flow, and beside the Services.
//!
//! Every kind of packet is sent through every layout of rules in turns, many short ones: what a
//! neighbour on the machine costs one of them it costs the next one too, and the lowest tenth has none of
//! it. See [`path`] for what is timed.

mod layouts;
mod path;
mod services;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use kubeweir::engine::Engine;
use kubeweir::kernel::{Kernel, Op, Transaction};
use kubeweir::model::{Families, Family, PerFamily, Protocol};
use kubeweir::netlink::NetlinkKernel;
use kubeweir::program::{LocalPods, NodePortMatch, RuleOptions};
use kubeweir::ruleset::Expr;
use kubeweir::sync::Synchronizer;
use kubeweir::topology::NodeTopology;

use crate::cluster::NODE;
use crate::report::{Table, percentile};
pub use path::Place;
use path::{Established, From, Path};
use services::{Cluster, ENDPOINT_PORT, Spec, dialled};

/// Turns of each kind in each layout, and packets of a turn: those of the first burst are not timed.
const TURNS: usize = 100;
const WARM_UP: u32 = 32;
const BURST: u32 = 128;
/// A connection is a socket and three packets.
const CONNECTIONS: u32 = 24;

/// What stands between client and server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    ConntrackOnly,
    OneRule,
    OneRuleInUpstreamsHooks,
    Upstream(Cluster),
    Ours { cluster: Cluster, counters: bool },
}

const SMALL: Cluster = Cluster { services: 100, special: false };
const LARGE: Cluster = Cluster { services: 10_000, special: false };
/// With what few clusters use.
const VARIED: Cluster = Cluster { services: 10_000, special: true };

impl Layout {
    fn name(self) -> String {
        let cluster = |c: Cluster| {
            let varied = if c.special { " of all kinds" } else { "" };
            format!("{} Services{varied}", c.services)
        };
        match self {
            Layout::ConntrackOnly => "conntrack only".into(),
            Layout::OneRule => "one rule".into(),
            Layout::OneRuleInUpstreamsHooks => "one rule, upstream's hooks".into(),
            Layout::Upstream(c) => format!("upstream, {}", cluster(c)),
            Layout::Ours { cluster: c, counters: false } => format!("Kubeweir, {}", cluster(c)),
            Layout::Ours { cluster: c, counters: true } => {
                format!("Kubeweir, {}, counted", cluster(c))
            }
        }
    }

    /// Whether a Service is there.
    fn has(self, spec: Spec) -> bool {
        match self {
            Layout::Upstream(cluster) | Layout::Ours { cluster, .. } => {
                cluster.special || dialled::ALL_PLAIN.contains(&spec)
            }
            _ => true,
        }
    }
}

/// How a Service is dialled, if it is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    ClusterIp,
    NodePort,
    LoadBalancer,
    /// The endpoint itself.
    Pod,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Probe {
    /// First packets.
    New(Protocol),
    /// Later packets.
    Established(Protocol),
}

/// A kind of packet.
#[derive(Debug, Clone, Copy)]
struct Kind {
    name: &'static str,
    probe: Probe,
    from: From,
    spec: Spec,
    at: At,
}

impl Kind {
    fn to(&self, layout: Layout, family: Family) -> SocketAddr {
        match self.at {
            // There is no Service.
            _ if layout == Layout::ConntrackOnly => self.endpoint(family),
            At::ClusterIp => self.spec.cluster_ip(family),
            At::NodePort => self.spec.node_port(family),
            At::LoadBalancer => self.spec.load_balancer(family),
            At::Pod => self.endpoint(family),
        }
    }

    fn endpoint(&self, family: Family) -> SocketAddr {
        let address: IpAddr = self.spec.pods(family).next().expect("an endpoint");
        SocketAddr::new(address, ENDPOINT_PORT)
    }
}

fn kinds() -> Vec<Kind> {
    use Probe::{Established, New};
    use Protocol::{Tcp, Udp};
    let kind = |name, probe, from, spec, at| Kind { name, probe, from, spec, at };
    let pod = |name, probe, spec| kind(name, probe, From::Pod, spec, At::ClusterIp);
    let beside = |name, probe| kind(name, probe, From::Pod, dialled::ONE, At::Pod);
    let outside = |name, spec, at| kind(name, New(Udp), From::Outside, spec, at);
    vec![
        pod("new, 1 endpoint", New(Udp), dialled::ONE),
        pod("new, 3 endpoints", New(Udp), dialled::THREE),
        pod("new, 10 endpoints", New(Udp), dialled::TEN),
        pod("new, 100 endpoints", New(Udp), dialled::HUNDRED),
        pod("new, 1000 endpoints", New(Udp), dialled::THOUSAND),
        pod("new, TCP, 1 endpoint", New(Tcp), dialled::ONE),
        pod("new, TCP, 10 endpoints", New(Tcp), dialled::TEN),
        pod("new, affinity", New(Udp), dialled::STICKY),
        outside("new, NodePort", dialled::EXTERNAL, At::NodePort),
        outside("new, load balancer", dialled::EXTERNAL, At::LoadBalancer),
        outside("new, source ranges", dialled::RANGES, At::LoadBalancer),
        outside("new, policy Local", dialled::LOCAL, At::LoadBalancer),
        pod("established, UDP", Established(Udp), dialled::ONE),
        pod("established, TCP", Established(Tcp), dialled::ONE),
        beside("no Service's, new", New(Udp)),
        beside("no Service's, new, TCP", New(Tcp)),
        beside("no Service's, established, UDP", Established(Udp)),
        beside("no Service's, established, TCP", Established(Tcp)),
    ]
}

/// A layout in force.
pub struct Scene {
    layout: Layout,
    family: Family,
    path: Path,
    flow: Option<Established>,
    /// Of the current kind.
    times: Vec<Duration>,
    proxy: Option<Synchronizer<NetlinkKernel>>,
}

impl Scene {
    fn new(layout: Layout, family: Family, place: Place) -> Scene {
        let path = Path::new(family, place);
        let proxy = match layout {
            Layout::ConntrackOnly => {
                path.node.nft(&layouts::conntrack_only(family)).expect("nft takes it");
                None
            }
            // With each kind anew.
            Layout::OneRule | Layout::OneRuleInUpstreamsHooks => None,
            Layout::Upstream(cluster) => {
                path.node.nft(&layouts::upstream(cluster, family)).expect("nft takes it");
                None
            }
            Layout::Ours { cluster, counters } => Some(program(&path, cluster, family, counters)),
        };
        Scene { layout, family, path, flow: None, times: Vec::new(), proxy }
    }

    /// Ours at 10 000 Services, and whether connections are counted.
    pub fn counting(counters: bool) -> Scene {
        Scene::new(Layout::Ours { cluster: LARGE, counters }, Family::V4, Place::Forwarded)
    }

    /// Writes every chain that counts anew, without that.
    fn strip_counters(&mut self) {
        let (family, proxy) = (self.family, self.proxy.as_mut().expect("ours"));
        let mut ops = Vec::new();
        let counts = |expr: &Expr| matches!(expr, Expr::Count(_));
        self.path.node.visit(|| {
            for (name, (_, rules)) in proxy.kernel.dump(family).expect("a table").chains {
                if !rules.iter().flat_map(|rule| &rule.exprs).any(counts) {
                    continue;
                }
                ops.push(Op::FlushChain(name.clone()));
                for mut rule in rules {
                    rule.exprs.retain(|expr| !counts(expr));
                    ops.push(Op::AddRule(name.clone(), rule));
                }
            }
            proxy.kernel.commit(&Transaction { family, ops }).expect("the table is ours")
        });
    }

    fn begin(&mut self, kind: &Kind) {
        let (to, endpoint) = (kind.to(self.layout, self.family), kind.endpoint(self.family));
        // The rule is there also for packets that it is not about.
        let dialled = if kind.at == At::Pod { kind.spec.cluster_ip(self.family) } else { to };
        let rule = match self.layout {
            Layout::OneRule => layouts::one_rule(dialled, endpoint.ip()),
            Layout::OneRuleInUpstreamsHooks => {
                layouts::one_rule_in_upstreams_hooks(dialled, endpoint.ip())
            }
            _ => String::new(),
        };
        self.path.node.nft(&rule).expect("nft takes it");
        self.times.clear();
        self.flow = match kind.probe {
            Probe::New(_) => None,
            Probe::Established(protocol) => {
                Some(self.path.establish(protocol, kind.from, to, endpoint.ip()))
            }
        };
    }

    fn turn(&mut self, kind: &Kind) {
        let to = kind.to(self.layout, self.family);
        let time = match (kind.probe, &mut self.flow) {
            (Probe::Established(_), Some(flow)) => {
                self.path.established(flow, WARM_UP);
                self.path.established(flow, BURST)
            }
            (Probe::New(Protocol::Tcp), _) => {
                self.path.new_tcp(kind.from, to, 2);
                self.path.new_tcp(kind.from, to, CONNECTIONS)
            }
            _ => {
                self.path.new_udp(kind.from, to, WARM_UP);
                self.path.new_udp(kind.from, to, BURST)
            }
        };
        self.times.push(time);
    }

    fn end(&mut self) {
        self.flow = None;
        self.path.forget();
    }
}

fn program(
    path: &Path,
    cluster: Cluster,
    family: Family,
    counters: bool,
) -> Synchronizer<NetlinkKernel> {
    let cidr = |family| services::pod_cidr(family).parse().expect("a network");
    let options = RuleOptions {
        local_pods: PerFamily::from_fn(|family| LocalPods::Cidr(cidr(family))),
        node_ports: PerFamily::from_fn(|family| {
            NodePortMatch::Addresses(vec![services::node_ip(family)])
        }),
        service_counters: counters,
        ..RuleOptions::nftables()
    };
    let node_topology = NodeTopology { node: NODE.into(), zone: None };
    let kernel = path.node.visit(NetlinkKernel::open).expect("nf_tables");
    let engine = Engine::new(options, node_topology, Families::default().with(family), true);
    let mut proxy = Synchronizer::new(engine, kernel);
    for change in cluster.lists(family) {
        proxy.engine.apply(change);
    }
    let report = path.node.visit(|| proxy.sync(family, Duration::ZERO)).expect("something to do");
    assert!(report.result.is_ok() && report.troubles.is_empty(), "{report:?}");
    proxy
}

/// Sends a kind of packet through all scenes that have its Service, in turns; returns the lowest tenth
/// and the median of each, in nanoseconds.
fn measure(kind: &Kind, scenes: &mut [Scene]) -> Vec<Option<[f64; 2]>> {
    let has = |scene: &Scene| scene.layout.has(kind.spec);
    scenes.iter_mut().filter(|scene| has(scene)).for_each(|scene| scene.begin(kind));
    for _ in 0..TURNS {
        scenes.iter_mut().filter(|scene| has(scene)).for_each(|scene| scene.turn(kind));
    }
    let of = |scene: &mut Scene| {
        has(scene).then(|| {
            scene.end();
            [10, 50].map(|p| percentile(&mut scene.times, p).as_secs_f64() * 1e9)
        })
    };
    scenes.iter_mut().map(of).collect()
}

/// New flows to ten endpoints: the lowest tenth and the median of each scene, in nanoseconds.
pub fn new_flows(scenes: &mut [Scene]) -> Vec<[f64; 2]> {
    let is_it = |kind: &Kind| kind.spec == dialled::TEN && kind.probe == Probe::New(Protocol::Udp);
    let kind = kinds().into_iter().find(is_it).expect("it is among the kinds");
    measure(&kind, scenes).into_iter().flatten().collect()
}

/// Packets to a port that a ClusterIP does not have, with the rules as they are and without their
/// counters: the lowest tenth and the median of each, in nanoseconds.
pub fn refused(place: Place) -> [[f64; 2]; 2] {
    let layout = Layout::Ours { cluster: SMALL, counters: false };
    let mut scenes = [false, true].map(|stripped| {
        let mut scene = Scene::new(layout, Family::V4, place);
        if stripped {
            scene.strip_counters();
        }
        scene
    });
    let to = SocketAddr::new(dialled::ONE.cluster_ip(Family::V4).ip(), 9);
    for _ in 0..TURNS {
        for scene in &mut scenes {
            scene.path.refused_udp(From::Pod, to, WARM_UP);
            let time = scene.path.refused_udp(From::Pod, to, BURST);
            scene.times.push(time);
        }
    }
    scenes.map(|mut scene| {
        scene.end();
        [10, 50].map(|p| percentile(&mut scene.times, p).as_secs_f64() * 1e9)
    })
}

/// Prints the tables of forwarded packets.
pub fn run() {
    tables("forwarded, IPv4", Family::V4, Place::Forwarded, &[SMALL, LARGE, VARIED]);
    tables("forwarded, IPv6", Family::V6, Place::Forwarded, &[VARIED]);
}

/// Prints those of packets within one namespace.
pub fn within() {
    tables("within one namespace, IPv4", Family::V4, Place::Within, &[LARGE]);
}

fn tables(title: &str, family: Family, place: Place, clusters: &[Cluster]) {
    let bare = [Layout::ConntrackOnly, Layout::OneRule, Layout::OneRuleInUpstreamsHooks];
    let pair = |&cluster| [Layout::Upstream(cluster), Layout::Ours { cluster, counters: false }];
    let layouts: Vec<Layout> = bare.into_iter().chain(clusters.iter().flat_map(pair)).collect();
    let mut scenes: Vec<Scene> =
        layouts.iter().map(|&layout| Scene::new(layout, family, place)).collect();
    let names: Vec<String> = layouts.iter().map(|layout| layout.name()).collect();
    let columns: Vec<&str> =
        ["packet"].into_iter().chain(names.iter().map(String::as_str)).collect();
    let mut tables = ["lowest tenth", "median"]
        .map(|what| Table::new(&format!("CPU time of a packet, {title}, {what}, ns"), &columns));
    for kind in kinds() {
        // On loopback TCP gathers what is sent: a `send` is no packet.
        let gathers = kind.probe == Probe::Established(Protocol::Tcp);
        if place == Place::Within && (kind.from == From::Outside || gathers) {
            continue;
        }
        let measured = measure(&kind, &mut scenes);
        for (at, table) in tables.iter_mut().enumerate() {
            table.row(&row(&kind, &measured, at));
        }
    }
    tables.iter().for_each(Table::print);
}

/// Times, and what they are above the reference: one rule for a new flow of a Service, conntrack
/// alone for all else.
fn row(kind: &Kind, measured: &[Option<[f64; 2]>], at: usize) -> Vec<String> {
    let is_first = matches!(kind.probe, Probe::New(_)) && kind.at != At::Pod;
    let reference = measured[usize::from(is_first)].map_or(f64::NAN, |both| both[at]);
    let cell = |both: &Option<[f64; 2]>| match both {
        None => String::new(),
        Some(both) => format!("{:.0} {:+.1} %", both[at], (both[at] / reference - 1.0) * 100.0),
    };
    [kind.name.to_owned()].into_iter().chain(measured.iter().map(cell)).collect()
}
