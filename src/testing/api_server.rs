//! A scripted API server: real HTTP, real TLS, both encodings, and every fault a kube-proxy meets.
//!
//! Place in the flow: tests put objects into it, tell it how to misbehave, and read what it was asked.
//! It lives on a thread of its own and listens in the network namespace of the thread that starts it.

mod encode;
mod people;
mod script;
mod serve;
mod store;
mod stream;
mod tls;

use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tokio::sync::{broadcast, watch};

use super::slowed;
use crate::model::Kind;
pub use people::{Execute, Execution};
use script::State;
pub use script::{Answer, Ask, Break, Fault, Recorded, Signal};
use serve::Server;
pub use tls::Chain;
use tls::Tls;

/// Streams that lag behind this many signals miss some; tests send a few.
const SIGNALS: usize = 256;

/// The scripted server. Dropping it stops it.
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    /// Nobody else is given the port while the server is away.
    _port: Socket,
    running: Option<Running>,
}

/// A server that listens.
struct Running {
    listener: Socket,
    stop: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

/// Reserves a free port of an address: whoever asks for any port is given another one, who connects to it
/// is refused, and who names it and sets `SO_REUSEADDR`, as servers do, may listen there.
///
/// Errors: the address cannot be bound.
pub fn reserve(address: IpAddr) -> io::Result<(Socket, SocketAddr)> {
    let any_port = SocketAddr::new(address, 0);
    let socket = Socket::new(Domain::for_address(any_port), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&any_port.into())?;
    let address = socket.local_addr()?.as_socket().expect("of an address family of IP");
    Ok((socket, address))
}

/// What the server's thread and the test share.
struct Shared {
    state: Mutex<State>,
    /// Counts changes of the state; streams and held requests wait for it.
    changed: watch::Sender<u64>,
    signals: broadcast::Sender<(Kind, Signal)>,
    breaks: broadcast::Sender<Break>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.send_modify(|count| *count += 1);
        result
    }
}

impl ApiServer {
    /// Starts a server with TLS on a free port of an address.
    ///
    /// Errors: the address cannot be bound.
    pub fn start(address: IpAddr) -> io::Result<ApiServer> {
        Self::bind(address, Some(Tls::generate(address)))
    }

    /// Starts a server with these certificates on a free port of an address.
    ///
    /// Errors: the address cannot be bound.
    pub fn start_with(address: IpAddr, chain: Chain) -> io::Result<ApiServer> {
        Self::bind(address, Some(Tls::new(chain)))
    }

    /// Starts a server that speaks plain HTTP.
    ///
    /// Errors: the address cannot be bound.
    pub fn start_plain(address: IpAddr) -> io::Result<ApiServer> {
        Self::bind(address, None)
    }

    fn bind(address: IpAddr, tls: Option<Tls>) -> io::Result<ApiServer> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State::new(tls)),
            changed: watch::Sender::new(0),
            signals: broadcast::Sender::new(SIGNALS),
            breaks: broadcast::Sender::new(SIGNALS),
        });
        let (port, address) = reserve(address)?;
        let mut server = ApiServer { shared, address, _port: port, running: None };
        server.listen()?;
        Ok(server)
    }

    fn listen(&mut self) -> io::Result<()> {
        // The standard library sets `SO_REUSEADDR`.
        let listener = TcpListener::bind(self.address)?;
        listener.set_nonblocking(true)?;
        let same = Socket::from(listener.try_clone()?);
        let (stop, stopped) = watch::channel(false);
        let server = Server { shared: Arc::clone(&self.shared) };
        let thread = std::thread::Builder::new()
            .name("api-server".to_owned())
            .spawn(move || server.run(listener, stopped))?;
        self.running = Some(Running { listener: same, stop, thread });
        Ok(())
    }

    /// Stops listening and breaks all connections. Objects stay.
    pub fn stop(&mut self) {
        if let Some(Running { listener, stop, thread }) = self.running.take() {
            stop.send_replace(true);
            thread.join().expect("the server's thread does not panic");
            // To close it is not enough while a child that was just forked has it, too.
            listener.shutdown(Shutdown::Both).expect("a listener");
        }
    }

    /// Listens again on the same port, in the network namespace of this thread.
    ///
    /// Errors: as of [`ApiServer::start`].
    pub fn resume(&mut self) -> io::Result<()> {
        self.stop();
        self.listen()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        let scheme = if self.shared.lock().tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Adds or replaces an object of one of the four kinds: a `k8s-openapi` type or a
    /// [`Value`] with `apiVersion` and `kind`.
    pub fn put(&self, object: &impl Serialize) {
        let object = serde_json::to_value(object).expect("API objects are valid JSON");
        let kind =
            store::kind_of(&object).expect("the object is of a kind that a kube-proxy reads");
        self.shared.change(|state| state.store.put(kind, object));
    }

    /// Deletes an object; returns whether it existed.
    pub fn delete(&self, kind: Kind, namespace: &str, name: &str) -> bool {
        self.shared.change(|state| state.store.delete(kind, namespace, name))
    }

    /// Adds or replaces a pod, by its name. From then on people are answered too.
    pub fn put_pod(&self, pod: Value) {
        self.shared.change(|state| {
            let pods = &mut state.people.pods;
            pods.retain(|other| other["metadata"]["name"] != pod["metadata"]["name"]);
            pods.push(pod);
        });
    }

    /// Who runs programs in pods.
    pub fn execute(&self, execute: Execute) {
        self.shared.change(|state| state.people.execute = Some(execute));
    }

    /// Speaks the older protocol with those who run programs.
    pub fn only_v4(&self) {
        self.shared.change(|state| state.people.only_v4 = true);
    }

    pub fn version(&self) -> u64 {
        self.shared.lock().store.version
    }

    /// Moves the store's version on without a change that anybody watches, as leases do.
    pub fn age(&self, versions: u64) {
        self.shared.change(|state| state.store.version += versions);
    }

    /// Forgets the history: watches from before the current version get 410.
    pub fn compact(&self) {
        self.shared.change(|state| state.store.oldest = state.store.version);
    }

    /// Drops the history, which every watch has been sent: a long run would keep every state of every
    /// object.
    pub fn drop_history(&self) {
        self.shared.change(|state| state.store.drop_history());
    }

    /// Adds a fault; faults are tried in the order of adding.
    pub fn fail(&self, fault: Fault) {
        self.shared.change(|state| state.faults.push(fault));
    }

    /// Refuses streaming lists as a server without them does.
    pub fn refuse_streaming_lists(&self) {
        let answer = Answer::Refuse { code: 422, reason: "Invalid", retry_after: None };
        self.fail(Fault { kind: None, ask: Ask::StreamingList, times: usize::MAX, answer });
    }

    /// Holds back the end of a kind's initial list until [`ApiServer::release`].
    pub fn hold(&self, kind: Kind) {
        self.shared.change(|state| state.held.insert(kind));
    }

    /// Lets a held list end.
    pub fn release(&self, kind: Kind) {
        self.shared.change(|state| state.held.remove(&kind));
    }

    /// Answers JSON whatever is asked for.
    pub fn json_only(&self) {
        self.shared.change(|state| state.json_only = true);
    }

    /// Answers lists in pages of this many objects, also at resourceVersion 0.
    pub fn page_size(&self, objects: usize) {
        self.shared.change(|state| state.page_size = Some(objects));
    }

    /// Sends streams in pieces of this many bytes.
    pub fn chunk(&self, bytes: usize) {
        self.shared.change(|state| state.chunk = Some(bytes));
    }

    /// Demands this bearer token from now on; open streams go on.
    pub fn demand_token(&self, token: &str) {
        self.shared.change(|state| state.token = Some(token.to_owned()));
    }

    /// Replaces the CA and the server's certificate for new connections.
    pub fn rotate_ca(&self) {
        let tls = Tls::generate(self.address.ip());
        self.shared.change(|state| state.tls = Some(tls));
    }

    /// The CA's certificate.
    ///
    /// # Panics
    /// Without TLS.
    pub fn ca_pem(&self) -> String {
        self.shared.lock().tls.as_ref().expect("a server with TLS").ca_pem.clone()
    }

    /// Speaks HTTP/1.1 only on new connections.
    pub fn http1_only(&self) {
        self.shared.change(|state| state.tls = state.tls.take().map(Tls::http1_only));
    }

    /// Takes clients with a certificate of a new CA only, on new connections; returns one, in PEM,
    /// and its key.
    ///
    /// # Panics
    /// Without TLS.
    pub fn demand_certificate(&self) -> (String, String) {
        self.shared.change(|state| {
            let tls = state.tls.take().expect("a server with TLS");
            let (tls, certificate, key) = tls.for_clients();
            state.tls = Some(tls);
            (certificate, key)
        })
    }

    /// Puts TLS with this server's certificates in front of something else; returns where.
    ///
    /// Errors: no port is free.
    ///
    /// # Panics
    /// Without TLS.
    pub fn tls_front(&self, behind: SocketAddr) -> io::Result<SocketAddr> {
        let acceptor = self.shared.lock().tls.as_ref().expect("a server with TLS").acceptor.clone();
        tls::front(SocketAddr::new(self.address.ip(), 0), acceptor, behind)
    }

    /// How many connections were taken so far.
    pub fn connections(&self) -> usize {
        self.shared.lock().connections
    }

    /// Does something to all open connections.
    pub fn break_connections(&self, how: Break) {
        // Without a connection there is no receiver; the test's next wait tells.
        let _ = self.shared.breaks.send(how);
    }

    /// Sends something on all open streams of a kind.
    pub fn signal(&self, kind: Kind, signal: Signal) {
        // Without an open stream there is no receiver; the test's next wait tells.
        let _ = self.shared.signals.send((kind, signal));
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Recorded> {
        self.shared.lock().requests.clone()
    }

    /// How many requests of this sort were made.
    pub fn count(&self, kind: Kind, ask: Ask) -> usize {
        let state = self.shared.lock();
        state.requests.iter().filter(|r| r.kind == Some(kind) && r.ask == ask).count()
    }

    /// How many Events were created or patched.
    pub fn count_events(&self) -> usize {
        self.shared.lock().requests.iter().filter(|r| r.ask == Ask::Event).count()
    }

    /// How many streams of a kind are open now.
    pub fn open_streams(&self, kind: Kind) -> usize {
        self.shared.lock().open.get(&kind).copied().unwrap_or(0)
    }

    /// Bytes of streams that connections took so far; behind by what sockets hold.
    pub fn streamed(&self) -> usize {
        self.shared.lock().streamed
    }

    /// The Events written so far, with their series.
    pub fn events(&self) -> Vec<Value> {
        self.shared.lock().events.clone()
    }

    /// Waits until a condition holds; the deadline is [`slowed`].
    ///
    /// # Panics
    /// When it does not within the deadline; the message has `what` and the requests so far.
    pub fn wait(&self, what: &str, deadline: Duration, condition: impl Fn(&ApiServer) -> bool) {
        let end = Instant::now() + slowed(deadline);
        while !condition(self) {
            let requests = || -> Vec<String> {
                let line =
                    |r: &Recorded| format!("{} {} {:?} {:?}", r.method, r.path, r.ask, r.answered);
                self.requests().iter().map(line).collect()
            };
            assert!(Instant::now() < end, "waited for {what}; requests: {:#?}", requests());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Writes `kubeconfig`, `ca.crt` and `token` into a directory; returns the kubeconfig's path.
    /// The files are named relative to the kubeconfig.
    ///
    /// Errors: the directory cannot be written.
    pub fn write_kubeconfig(&self, directory: &Path) -> io::Result<PathBuf> {
        let (tls, token) = {
            let state = self.shared.lock();
            (state.tls.clone(), state.token.clone())
        };
        let mut cluster = serde_json::json!({ "server": self.url() });
        if let Some(tls) = tls {
            std::fs::write(directory.join("ca.crt"), tls.ca_pem)?;
            cluster["certificate-authority"] = "ca.crt".into();
        }
        let mut user = serde_json::json!({});
        if let Some(token) = token {
            std::fs::write(directory.join("token"), token)?;
            user["tokenFile"] = "token".into();
        }
        let kubeconfig = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "default",
            "clusters": [{ "name": "default", "cluster": cluster }],
            "users": [{ "name": "default", "user": user }],
            "contexts": [{ "name": "default", "context": { "cluster": "default", "user": "default" } }],
        });
        let path = directory.join("kubeconfig");
        std::fs::write(&path, kubeconfig.to_string())?;
        Ok(path)
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A Value's text at a pointer, for assertions on recorded Events.
pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}
