//! What a command reads: a node's set-up, and objects from files, stdin or a live cluster.

use std::error::Error;
use std::fs::{self, DirEntry};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use tokio::sync::Notify;

use super::CommandError;
use crate::api::{self, ConnectionError, Watch, addresses_of_pod, pod_addresses, user_agent};
use crate::cli;
use crate::cli::people::{Command, NodeArgs, ObjectSource};
use crate::cli::proxy::Parsed;
use crate::config::feature_gates::Gate;
use crate::config::{self, ClientConfig, Config, Traffic};
use crate::inspect::wanted::NodeSetup;
use crate::manifest::{self, Input, ManifestError};
use crate::model::{Change, Families, Kind, Node, NodeAddresses, Object, ObjectName};
use crate::node::nodeport::Hint;
use crate::program::NodeAddressing;
use crate::source::Sink;
use crate::text::{tell, with_causes};
use crate::topology::NodeTopology;

/// Configuration and name of the node whose tables are meant.
pub struct Setup {
    pub config: Config,
    pub node: String,
}

/// Reads flags and the configuration file, or takes both from the agent that runs here.
pub fn setup(args: &NodeArgs, source: &ObjectSource) -> Result<Setup, CommandError> {
    let config = if source.agent { running()?.config } else { config_of(args)? };
    let host = nix::unistd::gethostname().unwrap_or_default();
    let node = config::node_name(&config.hostname_override, &host.to_string_lossy())?;
    Ok(Setup { config, node })
}

fn config_of(args: &NodeArgs) -> Result<Config, CommandError> {
    let parsed = args.as_agent().map_err(CommandError::Flags)?;
    let text = match &args.config {
        Some(path) => Some(read(Path::new(path))?),
        None => None,
    };
    Ok(config::resolve(config::complete(&parsed.flags, text.as_deref())?)?)
}

impl Setup {
    /// Gate AllowServiceExternalIPs.
    pub fn allow_external_ips(&self) -> bool {
        self.config.gates.enabled(Gate::AllowServiceExternalIps)
    }

    /// What shapes the tables. `assigned`: addresses of the node's interfaces, where they are known;
    /// otherwise those of its Node object stand for them. With what an operator should be told.
    pub fn for_objects(
        &self,
        objects: &[Object],
        assigned: Option<NodeAddresses>,
        families: Families,
        can_own: bool,
    ) -> (NodeSetup, Vec<Hint>) {
        let node = objects.iter().find_map(|object| match object {
            Object::Node(node) if *node.name.name == *self.node => Some(&**node),
            _ => None,
        });
        let owned = can_own && self.config.table_ownership;
        let traffic = Traffic::new(self.config.clone(), node);
        let assigned = assigned.unwrap_or_else(|| addresses_of(node));
        let (NodeAddressing { options, local_addresses }, hints) = traffic.addressing(&assigned);
        let setup = NodeSetup {
            local_addresses,
            options,
            node_topology: NodeTopology {
                node: self.node.as_str().into(),
                zone: node.and_then(|node| node.zone.clone()),
            },
            families,
            owned,
        };
        (setup, hints)
    }
}

/// On stderr.
pub fn tell_hints(hints: &[Hint]) {
    hints.iter().for_each(|hint| tell(&format!("note: {hint}\n")));
}

fn addresses_of(node: Option<&Node>) -> NodeAddresses {
    let mut addresses = node.map(|node| node.addresses.clone()).unwrap_or_default();
    addresses.sort_unstable();
    addresses.dedup();
    NodeAddresses(addresses)
}

/// How long a cluster's lists may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Whether a source was named.
pub fn is_named(source: &ObjectSource) -> bool {
    !source.filenames.is_empty() || source.kubeconfig.is_some() || source.agent
}

/// Reads all objects. `node` is the only Node that is read from a cluster.
///
/// Errors: no source, an unusable manifest, a cluster that does not deliver. Parts of objects that
/// are not used are told on stderr.
pub fn objects(
    source: &ObjectSource,
    node: &str,
    allow_external_ips: bool,
) -> Result<Vec<Object>, CommandError> {
    match origin(source)? {
        Origin::Api(access) => super::block_on(list(&access, node, allow_external_ips))?,
        Origin::Files(files) if files.is_empty() => Err(CommandError::NoSource),
        Origin::Files(files) => read_files(&files, allow_external_ips),
    }
}

/// A source, with what it stands for.
enum Origin {
    Files(Vec<PathBuf>),
    Api(Access),
}

/// How an API server is reached.
#[derive(Default)]
struct Access {
    /// `None`: by the service account of the pod.
    kubeconfig: Option<PathBuf>,
    master: Option<String>,
}

fn origin(source: &ObjectSource) -> Result<Origin, CommandError> {
    if source.agent {
        let Running { config, manifests } = running()?;
        let ClientConfig { kubeconfig, master, .. } = config.client;
        return Ok(match manifests {
            Some(directory) => Origin::Files(vec![directory]),
            None => Origin::Api(Access { kubeconfig, master }),
        });
    }
    Ok(match &source.kubeconfig {
        None => Origin::Files(source.filenames.clone()),
        kubeconfig => Origin::Api(Access { kubeconfig: kubeconfig.clone(), master: None }),
    })
}

impl std::fmt::Display for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.master, &self.kubeconfig) {
            (Some(master), _) => f.write_str(master),
            (None, Some(kubeconfig)) => kubeconfig.display().fmt(f),
            (None, None) => f.write_str("the pod's service account"),
        }
    }
}

fn read_files(files: &[PathBuf], allow_external_ips: bool) -> Result<Vec<Object>, CommandError> {
    let inputs: Vec<Input> = files.iter().map(|path| input(path)).collect::<Result<_, _>>()?;
    let (objects, errors) = manifest::load_all(&inputs, allow_external_ips);
    errors.iter().for_each(|error| tell(&format!("{}\n", with_causes(error))));
    let unusable = |error: &&ManifestError| {
        matches!(
            error,
            ManifestError::Read { .. }
                | ManifestError::Document { .. }
                | ManifestError::Object { .. }
        )
    };
    match errors.iter().filter(unusable).count() {
        0 => Ok(objects),
        unusable => Err(CommandError::Manifests(unusable)),
    }
}

fn input(path: &Path) -> Result<Input, CommandError> {
    if path.as_os_str() != "-" {
        return Ok(Input::Path(path.to_owned()));
    }
    let text = std::io::read_to_string(std::io::stdin())
        .map_err(|source| CommandError::Read { path: path.to_owned(), source })?;
    Ok(Input::Text { name: "stdin".to_owned(), text })
}

/// Keeps the first complete list of each kind.
#[derive(Default)]
struct FirstLists {
    lists: Mutex<Vec<(Kind, Vec<Object>)>>,
    /// What went wrong last.
    failure: Mutex<Option<String>>,
    changed: Notify,
}

impl Sink for FirstLists {
    fn deliver(&self, change: Change) {
        let Change::Replace(kind, objects) = change else { return };
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        if !lists.iter().any(|(known, _)| *known == kind) {
            lists.push((kind, objects));
            self.changed.notify_one();
        }
    }

    fn failed(&self, kind: Kind, cause: &(dyn Error + 'static)) {
        let failure = format!("{kind}: {}", with_causes(cause));
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
    }
}

impl FirstLists {
    fn take_all(&self) -> Option<Vec<Object>> {
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        let complete = lists.len() == Kind::ALL.len();
        complete.then(|| lists.drain(..).flat_map(|(_, objects)| objects).collect())
    }

    async fn all(&self) -> Vec<Object> {
        loop {
            if let Some(objects) = self.take_all() {
                return objects;
            }
            self.changed.notified().await;
        }
    }
}

async fn list(
    access: &Access,
    node: &str,
    allow_external_ips: bool,
) -> Result<Vec<Object>, CommandError> {
    let client = client(access, "application/vnd.kubernetes.protobuf")?;
    let lists = Arc::new(FirstLists::default());
    for kind in Kind::ALL {
        let sink: Arc<dyn Sink> = lists.clone();
        tokio::spawn(Watch::new(client.clone(), kind, node, allow_external_ips, sink).run());
    }
    tokio::time::timeout(TIMEOUT, lists.all()).await.map_err(|_| {
        let failure = lists.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        CommandError::ApiTimeout {
            access: access.to_string(),
            seconds: TIMEOUT.as_secs(),
            failure: failure.unwrap_or_else(|| "no answer".to_owned()),
        }
    })
}

/// A client that asks once: nothing is throttled or measured. Needs a runtime.
fn client(access: &Access, content_type: &str) -> Result<api::Client, ConnectionError> {
    let options = api::Options {
        kubeconfig: access.kubeconfig.clone(),
        master: access.master.clone(),
        content_type: content_type.to_owned(),
        accept_content_types: String::new(),
        qps: -1.0,
        burst: 0,
        user_agent: user_agent(env!("CARGO_PKG_VERSION"), "unknown"),
    };
    api::Client::new(options, Arc::new(|_| {}))
}

/// `namespace/name`.
pub fn object_name(text: &str) -> Result<ObjectName, CommandError> {
    ObjectName::parse(text, None).ok_or_else(|| CommandError::ObjectName(text.to_owned()))
}

/// The addresses of a pod; `None` if there is no such pod.
///
/// Errors: a file cannot be read, or the cluster does not answer. What is no pod is passed over.
pub fn pod_addresses_of(
    source: &ObjectSource,
    name: &ObjectName,
) -> Result<Option<Vec<IpAddr>>, CommandError> {
    let files = match origin(source)? {
        Origin::Files(files) => files,
        Origin::Api(access) => {
            return super::block_on(async {
                let client = client(&access, "application/json")?;
                Ok(pod_addresses(&client, name).await?)
            })?;
        }
    };
    for path in files {
        for file in pod_files(&path)? {
            let text = read(&file)?;
            // Unusable files are told of when Services are read from them.
            let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap_or_default();
            let found = documents.iter().flat_map(items).find_map(|object| is_pod(object, name));
            if let Some(pod) = found {
                return Ok(Some(addresses_of_pod(&pod)));
            }
        }
    }
    Ok(None)
}

pub fn read(path: &Path) -> Result<String, CommandError> {
    std::fs::read_to_string(path)
        .map_err(|source| CommandError::Read { path: path.to_owned(), source })
}

/// The file, or the files of a directory; stdin has been read or will be, for Services.
fn pod_files(path: &Path) -> Result<Vec<PathBuf>, CommandError> {
    if path.as_os_str() == "-" {
        return Ok(Vec::new());
    }
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    manifest::list(path).map_err(|source| CommandError::Read { path: path.to_owned(), source })
}

/// The document, or the items of a List.
fn items(document: &Value) -> Vec<&Value> {
    match document.get("items").and_then(Value::as_array) {
        Some(items) => items.iter().collect(),
        None => vec![document],
    }
}

fn is_pod(object: &Value, name: &ObjectName) -> Option<Pod> {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str);
    let is_meant = text("/kind") == Some("Pod")
        && text("/metadata/name") == Some(&name.name)
        && text("/metadata/namespace").unwrap_or("default") == &*name.namespace;
    if is_meant { serde_json::from_value(object.clone()).ok() } else { None }
}

// The agent that runs here: what it was started with.

pub struct Running {
    pub config: Config,
    /// The directory of its manifests; `None` where it reads the API.
    pub manifests: Option<PathBuf>,
}

/// Finds it: a process of this program in this network namespace that is an agent.
///
/// Errors: there is none, or its configuration cannot be read.
pub fn running() -> Result<Running, CommandError> {
    let processes = fs::read_dir("/proc").map_err(CommandError::Processes)?;
    let own = Identity::of(Path::new("/proc/self")).map_err(CommandError::Processes)?;
    let (parsed, manifests) = processes
        .flatten()
        .filter(|process| is_another(process) && is_like(process, &own))
        .find_map(|process| agent(&fs::read(process.path().join("cmdline")).ok()?))
        .ok_or(CommandError::NoAgent)?;
    let file = Some(&parsed.flags.config).filter(|file| !file.is_empty());
    let read = |file: &String| {
        let path = PathBuf::from(file);
        fs::read_to_string(&path).map_err(|source| CommandError::Read { path, source })
    };
    let text = file.map(read).transpose()?;
    let config = config::resolve(config::complete(&parsed.flags, text.as_deref())?)?;
    Ok(Running { config, manifests })
}

impl Running {
    /// Where its metrics server is reached from here.
    pub fn metrics(&self) -> String {
        let mut address = self.config.servers.metrics;
        if address.ip().is_unspecified() {
            address.set_ip(match address {
                SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
                SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
            });
        }
        address.to_string()
    }
}

/// Program and network namespace of a process.
#[derive(PartialEq, Eq)]
struct Identity([(u64, u64); 2]);

impl Identity {
    fn of(process: &Path) -> io::Result<Identity> {
        let file = |name| fs::metadata(process.join(name)).map(|file| (file.dev(), file.ino()));
        Ok(Identity([file("exe")?, file("ns/net")?]))
    }
}

fn is_another(process: &DirEntry) -> bool {
    let name = process.file_name();
    let number = name.to_str().and_then(|name| name.parse::<u32>().ok());
    number.is_some_and(|number| number != std::process::id())
}

fn is_like(process: &DirEntry, own: &Identity) -> bool {
    Identity::of(&process.path()).is_ok_and(|other| other == *own)
}

/// What a command line starts, if that is an agent that stays.
fn agent(command_line: &[u8]) -> Option<(Box<Parsed>, Option<PathBuf>)> {
    let line = command_line.strip_suffix(b"\0")?;
    let arguments = line.split(|byte| *byte == 0).map(|a| String::from_utf8_lossy(a).into_owned());
    match cli::parse(arguments).ok()? {
        cli::Command::Proxy(parsed) if !parsed.flags.init_only && !parsed.flags.cleanup => {
            Some((parsed, None))
        }
        cli::Command::People(command) => match *command {
            Command::Run(run) => Some((Box::new(run.as_agent().ok()?), Some(run.manifests))),
            _ => None,
        },
        cli::Command::Proxy(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_are_told_from_other_commands_by_their_arguments() {
        let flags = |line: &str| agent(line.replace(' ', "\0").as_bytes());
        for line in ["kube-proxy --config=/x ", "/bin/kubeweir --v=2 ", "kubeweir proxy "] {
            assert!(flags(line).is_some_and(|(_, manifests)| manifests.is_none()), "{line}");
        }
        let (parsed, manifests) = flags("kubeweir run --manifests /m --node n ").expect("an agent");
        assert_eq!((&*parsed.flags.hostname_override, manifests), ("n", Some("/m".into())));
        for line in
            ["kubeweir diff --agent ", "kube-proxy --init-only ", "kube-proxy --cleanup ", ""]
        {
            assert!(flags(line).is_none(), "{line}");
        }
    }
}
