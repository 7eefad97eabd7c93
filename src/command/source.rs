//! Objects once: from files, stdin, or a live cluster.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::{CommandError, tell};
use crate::api::{self, Client, ConnectionError, Watch, user_agent};
use crate::cli::people::ObjectSource;
use crate::logging::with_causes;
use crate::manifest::{self, Input, ManifestError};
use crate::model::{Change, Kind, Object};
use crate::source::Sink;

/// How long a cluster's lists may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whether a source was named.
pub fn is_named(source: &ObjectSource) -> bool {
    !source.filenames.is_empty() || source.kubeconfig.is_some()
}

/// Reads all objects. `node` is the only Node that is read from a cluster.
///
/// Errors: no source, an unusable manifest, a cluster that does not deliver. Parts of objects that
/// are not used are told on stderr.
pub fn read(
    source: &ObjectSource,
    node: &str,
    allow_external_ips: bool,
) -> Result<Vec<Object>, CommandError> {
    match &source.kubeconfig {
        Some(kubeconfig) => super::block_on(list(kubeconfig, node, allow_external_ips))?,
        None if source.filenames.is_empty() => Err(CommandError::NoSource),
        None => read_files(source, allow_external_ips),
    }
}

fn read_files(
    source: &ObjectSource,
    allow_external_ips: bool,
) -> Result<Vec<Object>, CommandError> {
    let inputs: Vec<Input> =
        source.filenames.iter().map(|path| input(path)).collect::<Result<_, _>>()?;
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
    kubeconfig: &Path,
    node: &str,
    allow_external_ips: bool,
) -> Result<Vec<Object>, CommandError> {
    let client = client(kubeconfig, "application/vnd.kubernetes.protobuf")?;
    let lists = Arc::new(FirstLists::default());
    for kind in Kind::ALL {
        let sink: Arc<dyn Sink> = lists.clone();
        tokio::spawn(Watch::new(client.clone(), kind, node, allow_external_ips, sink).run());
    }
    let host = || kubeconfig.display().to_string();
    tokio::time::timeout(PATIENCE, lists.all())
        .await
        .map_err(|_| CommandError::ApiTimeout { host: host(), seconds: PATIENCE.as_secs() })
}

/// A client that asks once: nothing is throttled or measured. Needs a runtime.
pub fn client(kubeconfig: &Path, content_type: &str) -> Result<Client, ConnectionError> {
    let options = api::Options {
        kubeconfig: Some(kubeconfig.to_owned()),
        master: None,
        content_type: content_type.to_owned(),
        accept_content_types: String::new(),
        qps: -1.0,
        burst: 0,
        user_agent: user_agent(env!("CARGO_PKG_VERSION"), "unknown"),
    };
    Client::new(options, Arc::new(|_| {}))
}
