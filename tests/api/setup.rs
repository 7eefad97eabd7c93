//! A scripted server, a client, and what its watches deliver; objects to put into the server.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use kubeweir::api::{Client, Exchange, Observe, Options, Watch};
use kubeweir::model::{Change, Kind, Object, ObjectName};
use kubeweir::source::Sink;
use kubeweir::testing::ApiServer;
use kubeweir::testing::api_server::{Answer, Ask, Fault};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

pub const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// For conditions that hold within one back-off or a few.
pub const SOON: Duration = Duration::from_secs(20);
/// How often what is to be quick is tried.
const TRIES: usize = 3;

pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// What the engine would see: the objects there are, and how they came.
#[derive(Default)]
pub struct View {
    pub objects: BTreeMap<(Kind, ObjectName), Object>,
    pub replaced: Vec<Kind>,
}

#[derive(Default)]
pub struct Collected(Mutex<View>);

impl Collected {
    /// Takes no more changes while the guard lives.
    pub fn block(&self) -> MutexGuard<'_, View> {
        self.0.lock().unwrap()
    }
}

impl Sink for Collected {
    fn deliver(&self, change: Change) {
        let mut view = self.0.lock().unwrap();
        match change {
            Change::Apply(object) => {
                view.objects.insert((object.kind(), object.name().clone()), object);
            }
            Change::Delete(kind, name) => {
                view.objects.remove(&(kind, name));
            }
            Change::Replace(kind, objects) => {
                view.objects.retain(|(k, _), _| *k != kind);
                view.replaced.push(kind);
                for object in objects {
                    view.objects.insert((kind, object.name().clone()), object);
                }
            }
        }
    }
}

/// A scripted server, a client of it and what its watches delivered.
pub struct Setup {
    pub server: ApiServer,
    pub directory: TempDir,
    pub sink: Arc<Collected>,
    pub exchanges: Arc<Mutex<Vec<Exchange>>>,
    pub runtime: Runtime,
}

impl Setup {
    pub fn new() -> Setup {
        Setup {
            server: ApiServer::start(LOOPBACK).unwrap(),
            directory: TempDir::new().unwrap(),
            sink: Arc::default(),
            exchanges: Arc::default(),
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap(),
        }
    }

    pub fn options(&self) -> Options {
        options(Some(self.server.write_kubeconfig(self.directory.path()).unwrap()), None)
    }

    pub fn client(&self, options: Options) -> Client {
        let _runtime = self.runtime.enter();
        let exchanges = Arc::clone(&self.exchanges);
        let observe: Observe = Arc::new(move |exchange| {
            exchanges.lock().unwrap().push(exchange.clone());
        });
        Client::new(options, observe).unwrap()
    }

    pub fn watch(&self, client: &Client, kind: Kind) {
        let watch = Watch::new(client.clone(), kind, "node-a", true, self.sink.clone());
        self.runtime.spawn(watch.run());
    }

    /// Watches some kinds and waits for their lists.
    pub fn watching(self, kinds: &[Kind]) -> Setup {
        let client = self.client(self.options());
        for &kind in kinds {
            self.watch(&client, kind);
        }
        for &kind in kinds {
            self.wait(&format!("the list of {kind}"), || self.replaced(kind) == 1);
            self.wait("its watch", || self.server.open_streams(kind) == 1);
        }
        self
    }

    pub fn wait(&self, what: &str, condition: impl Fn() -> bool) {
        self.server.wait(what, SOON, |_| condition());
    }

    pub fn names(&self, kind: Kind) -> Vec<String> {
        let view = self.sink.0.lock().unwrap();
        view.objects.keys().filter(|(k, _)| *k == kind).map(|(_, name)| name.to_string()).collect()
    }

    pub fn wait_for(&self, kind: Kind, names: &[&str]) {
        let what = format!("{kind}s {names:?}, not {:?}", self.names(kind));
        self.wait(&what, || self.names(kind) == names);
    }

    pub fn replaced(&self, kind: Kind) -> usize {
        self.sink.0.lock().unwrap().replaced.iter().filter(|k| **k == kind).count()
    }

    /// Requests without an answer.
    pub fn failures(&self) -> usize {
        let exchanges = self.exchanges.lock().unwrap();
        exchanges.iter().filter(|exchange| exchange.code.is_none()).count()
    }

    /// Lists of a kind, of any sort.
    pub fn lists(&self, kind: Kind) -> usize {
        [Ask::StreamingList, Ask::List, Ask::ListPage]
            .into_iter()
            .map(|ask| self.server.count(kind, ask))
            .sum()
    }

    /// The `resourceVersion`s of the watches of a kind.
    pub fn watched_from(&self, kind: Kind) -> Vec<String> {
        let requests = self.server.requests();
        let watches = requests.iter().filter(|r| r.kind == Some(kind) && r.ask == Ask::Watch);
        watches.map(|request| request.query["resourceVersion"].clone()).collect()
    }
}

pub fn options(kubeconfig: Option<PathBuf>, master: Option<String>) -> Options {
    Options {
        kubeconfig,
        master,
        content_type: PROTOBUF.into(),
        accept_content_types: String::new(),
        qps: -1.0,
        burst: 0,
        user_agent: kubeweir::api::user_agent("v0.1.0", "abcdef0"),
    }
}

/// Asserts that something takes less than this. A machine that stands still for a second looks like a
/// pause of ours; but a pause of ours comes each time.
pub fn quick(bound: Duration, what: &str, took: impl Fn() -> Duration) {
    let mut slow = Vec::new();
    while slow.len() < TRIES {
        let took = took();
        if took < bound {
            return;
        }
        slow.push(took);
    }
    panic!("{what}: {slow:?}, each time more than {bound:?}");
}

pub fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "namespace": "shop", "labels": {} },
        "spec": {
            "type": "ClusterIP", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
            "ipFamilies": ["IPv4"],
            "ports": [{ "name": "http", "protocol": "TCP", "port": 80 }],
        },
    })
}

pub fn slice(name: &str) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": name, "namespace": "shop", "labels": { "kubernetes.io/service-name": "cart" },
        },
        "addressType": "IPv4",
        "endpoints": [{ "addresses": ["10.244.0.5"], "conditions": { "ready": true } }],
        "ports": [{ "name": "http", "protocol": "TCP", "port": 8080 }],
    })
}

pub fn node(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": name },
        "spec": { "podCIDRs": ["10.244.0.0/24"] },
        "status": { "addresses": [{ "type": "InternalIP", "address": "192.0.2.1" }] },
    })
}

pub fn service_cidr(name: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": { "name": name },
        "spec": { "cidrs": ["10.96.0.0/12"] },
    })
}

pub fn labelled(mut object: Value, label: &str) -> Value {
    object["metadata"]["labels"][label] = "".into();
    object
}

pub fn headless(name: &str) -> Value {
    let mut object = service(name);
    object["spec"]["clusterIP"] = "None".into();
    object
}

pub fn fault(kind: Kind, ask: Ask, times: usize, answer: Answer) -> Fault {
    Fault { kind: Some(kind), ask, times, answer }
}

pub fn refuse(code: u16, reason: &'static str, retry_after: Option<u64>) -> Answer {
    Answer::Refuse { code, reason, retry_after }
}

/// Objects of every kind, some of which the selectors leave out.
pub fn fill(server: &ApiServer) {
    for object in [
        node("node-a"),
        node("node-b"),
        service_cidr("kubernetes"),
        service("cart"),
        headless("headless"),
        labelled(service("mesh"), "service.kubernetes.io/service-proxy-name"),
        slice("cart-1"),
        labelled(slice("headless-1"), "service.kubernetes.io/headless"),
    ] {
        server.put(&object);
    }
}

pub fn wait_for_everything(setup: &Setup) {
    setup.wait_for(Kind::Node, &["node-a"]);
    setup.wait_for(Kind::ServiceCidr, &["kubernetes"]);
    setup.wait_for(Kind::Service, &["shop/cart"]);
    setup.wait_for(Kind::EndpointSlice, &["shop/cart-1"]);
}
