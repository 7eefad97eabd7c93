//! A lab whose node is programmed by the engine over netlink.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use kubeweir::engine::Engine;
use kubeweir::kernel::Kernel;
use kubeweir::model::{
    Change, EndpointSlice, Families, Family, Kind, Object, ObjectName, PerFamily, Protocol,
};
use kubeweir::netlink::{NetlinkKernel, probe_ownership};
use kubeweir::program::{LocalPods, NodePortMatch, RuleOptions};
use kubeweir::ruleset::Ruleset;
use kubeweir::sync::{Report, Synchronizer};
use kubeweir::testing::lab::{
    CLUSTER_CIDR, EndpointBuilder, GATEWAY, Lab, NODE_CIDR, NODE_IP, NODE_NAME, Netns, Place,
    PodNetwork, SECOND_NODE_IP, ServiceBuilder, endpoint, node, service_cidr, slice,
};
use kubeweir::testing::wait_unowned;
use kubeweir::topology::NodeTopology;

/// How pods are recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detector {
    None,
    ClusterCidr,
    NodeCidr,
    Bridge,
    Prefix,
}

/// Where NodePorts are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodePorts {
    /// On the node's first address.
    Primary,
    /// On the first and the second address.
    Both,
    /// On every local address.
    All,
}

/// What a test varies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    pub detector: Detector,
    pub masquerade_all: bool,
    pub node_ports: NodePorts,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            detector: Detector::ClusterCidr,
            masquerade_all: false,
            node_ports: NodePorts::Primary,
        }
    }
}

/// A lab and what programs its node.
pub struct Rig {
    pub lab: Arc<Lab>,
    network: PodNetwork,
    settings: Settings,
    objects: BTreeMap<(Kind, ObjectName), Object>,
    proxy: Proxy,
}

impl Rig {
    pub fn new(network: PodNetwork, settings: Settings) -> Rig {
        let lab = Arc::new(Lab::new(network).unwrap());
        let proxy = Proxy::start(&lab.node, network, settings);
        Rig { lab, network, settings, objects: BTreeMap::new(), proxy }
    }

    /// A first, complete listing: these objects, the node and the ServiceCIDR.
    pub fn start(&mut self, objects: Vec<Object>) {
        let own = [Object::Node(Arc::new(node())), Object::ServiceCidr(Arc::new(service_cidr()))];
        for object in own.into_iter().chain(objects) {
            self.objects.insert((object.kind(), object.name().clone()), object);
        }
        self.list();
    }

    /// New or changed objects.
    pub fn set(&mut self, objects: Vec<Object>) -> Vec<Report> {
        for object in objects {
            self.objects.insert((object.kind(), object.name().clone()), object.clone());
            self.proxy.apply(Change::Apply(object));
        }
        self.proxy.sync()
    }

    /// Deleted objects of namespace `default`.
    pub fn delete(&mut self, kind: Kind, names: &[&str]) -> Vec<Report> {
        for name in names {
            let name = ObjectName::new("default", *name);
            self.objects.remove(&(kind, name.clone())).expect("only what is there is deleted");
            self.proxy.apply(Change::Delete(kind, name));
        }
        self.proxy.sync()
    }

    /// A new process takes the node over.
    pub fn restart(&mut self) {
        self.begin_again();
        self.list();
    }

    /// The process ends in order: its tables become plain ones.
    pub fn end(&mut self) {
        self.begin_again();
        self.proxy.with(|proxy| {
            let release = |family| kubeweir::sync::release(&mut proxy.kernel, family).unwrap();
            Family::BOTH.map(release)
        });
    }

    /// The end of the old one's socket makes its tables orphans, or plain ones.
    fn begin_again(&mut self) {
        self.proxy = Proxy::start(&self.lab.node, self.network, self.settings);
        self.proxy.with(|proxy| wait_unowned(&mut proxy.kernel));
    }

    fn list(&mut self) {
        self.proxy.list(&self.objects);
    }

    /// `nft list ruleset` on the node.
    pub fn listing(&self) -> String {
        self.lab.node.feed("nft", &["list", "ruleset"], "").unwrap()
    }

    /// The kernel's tables, and those that a fresh start makes of the same objects elsewhere.
    pub fn dumps(&self) -> (PerFamily<Ruleset>, PerFamily<Ruleset>) {
        let elsewhere = Netns::new("fresh").unwrap();
        let fresh = Proxy::start(&elsewhere, self.network, self.settings);
        fresh.list(&self.objects);
        (self.proxy.dump(), fresh.dump())
    }
}

type Work = Box<dyn FnOnce(&mut Synchronizer<NetlinkKernel>) + Send>;

/// What programs a node, on a thread in the node's namespace: sockets belong to both.
struct Proxy {
    /// None when it ends.
    work: Option<Sender<Work>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    fn start(netns: &Netns, network: PodNetwork, settings: Settings) -> Proxy {
        let (work, incoming) = channel::<Work>();
        let thread = netns.spawn(move || {
            let mut proxy = synchronizer(network, settings);
            incoming.into_iter().for_each(|work| work(&mut proxy));
        });
        Proxy { work: Some(work), thread: Some(thread) }
    }

    /// Does something on its thread.
    fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Synchronizer<NetlinkKernel>) -> T + Send + 'static,
    ) -> T {
        let (answer, outcome) = channel();
        let work: Work = Box::new(move |proxy| drop(answer.send(work(proxy))));
        self.work.as_ref().unwrap().send(work).expect("its thread runs");
        outcome.recv().expect("its thread did not panic")
    }

    fn apply(&self, change: Change) {
        self.with(|proxy| drop(proxy.engine.apply(change)));
    }

    fn dump(&self) -> PerFamily<Ruleset> {
        self.with(|proxy| PerFamily::from_fn(|family| proxy.kernel.dump(family).unwrap()))
    }

    fn list(&self, objects: &BTreeMap<(Kind, ObjectName), Object>) {
        for kind in Kind::ALL {
            let of_kind =
                objects.values().filter(|object| object.kind() == kind).cloned().collect();
            self.apply(Change::Replace(kind, of_kind));
        }
        self.sync();
    }

    fn sync(&self) -> Vec<Report> {
        let reports: Vec<Report> = self.with(|proxy| {
            Family::BOTH.into_iter().filter_map(|f| proxy.sync(f, Duration::ZERO)).collect()
        });
        for report in &reports {
            assert!(report.result.is_ok() && report.refused.is_empty(), "{report:?}");
            assert!(report.troubles.is_empty(), "{report:?}");
        }
        reports
    }
}

/// Its socket is closed when this returns.
impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.work.take());
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || ended.is_some_and(|end| end.is_ok()), "it panicked");
    }
}

fn synchronizer(network: PodNetwork, settings: Settings) -> Synchronizer<NetlinkKernel> {
    let local_pods = PerFamily::from_fn(|family| match settings.detector {
        Detector::None => LocalPods::Unknown,
        Detector::ClusterCidr => LocalPods::Cidr(CLUSTER_CIDR[family]),
        Detector::NodeCidr => LocalPods::Cidr(NODE_CIDR[family]),
        Detector::Bridge => LocalPods::Interface("cbr0".to_owned()),
        Detector::Prefix if network == PodNetwork::Bridge => {
            LocalPods::InterfacePrefix("cb".to_owned())
        }
        Detector::Prefix => LocalPods::InterfacePrefix("veth".to_owned()),
    });
    let options = RuleOptions {
        masquerade_all: settings.masquerade_all,
        local_pods,
        node_ports: PerFamily::from_fn(|family| settings.node_ports.addresses(family)),
        node_ips: PerFamily::from_fn(|family| Some(NODE_IP[family])),
        ..RuleOptions::nftables()
    };
    let node_topology = NodeTopology { node: NODE_NAME.into(), zone: None };
    let (kernel, owned) = (NetlinkKernel::open().unwrap(), probe_ownership().unwrap());
    let mut engine = Engine::new(options, node_topology, Families::DUAL, owned);
    if settings.node_ports == NodePorts::All {
        engine.set_local_addresses(&PerFamily::from_fn(|family| {
            vec![NODE_IP[family], SECOND_NODE_IP[family], GATEWAY[family]]
        }));
    }
    Synchronizer::new(engine, kernel)
}

impl NodePorts {
    fn addresses(self, family: Family) -> NodePortMatch {
        match self {
            NodePorts::Primary => NodePortMatch::Addresses(vec![NODE_IP[family]]),
            NodePorts::Both => {
                let mut both = vec![NODE_IP[family], SECOND_NODE_IP[family]];
                both.sort();
                NodePortMatch::Addresses(both)
            }
            NodePorts::All => NodePortMatch::AnyLocal,
        }
    }
}

/// Adds something of each family to a Service.
pub fn both_families(
    built: ServiceBuilder,
    add: impl Fn(ServiceBuilder, Family) -> ServiceBuilder,
) -> ServiceBuilder {
    Family::BOTH.into_iter().fold(built, add)
}

/// A slice as a source delivers it.
pub fn slice_object(slice: EndpointSlice) -> Object {
    Object::EndpointSlice(Arc::new(slice))
}

/// Slices of both families for ports made by `twins("http", …)` or `each(…, "http", …)`, all endpoints
/// ready.
pub fn web_slices(service: &str, port: u16, endpoints: &[Place]) -> Vec<Object> {
    web_slices_of(service, port, |family| {
        endpoints.iter().map(|&place| endpoint(place, family)).collect()
    })
}

/// The same with endpoints in any state.
pub fn web_slices_of(
    service: &str,
    port: u16,
    endpoints: impl Fn(Family) -> Vec<EndpointBuilder>,
) -> Vec<Object> {
    let ports = [
        ("http-tcp", Protocol::Tcp, port),
        ("http-udp", Protocol::Udp, port),
        ("http-sctp", Protocol::Sctp, port),
    ];
    let of = |family| slice_object(slice(service, family, &ports, endpoints(family)));
    Family::BOTH.map(of).to_vec()
}
