//! Addresses of pods by name, from manifests or a cluster. Nothing else needs pods.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use super::{CommandError, source};
use crate::api::{addresses_of_pod, pod_addresses};
use crate::cli::people::ObjectSource;
use crate::manifest;
use crate::model::ObjectName;

/// The addresses of a pod; `None` if there is no such pod.
///
/// Errors: a file cannot be read, or the cluster does not answer. What is no pod is passed over.
pub fn addresses(
    source: &ObjectSource,
    name: &ObjectName,
) -> Result<Option<Vec<IpAddr>>, CommandError> {
    if let Some(kubeconfig) = &source.kubeconfig {
        return super::block_on(async {
            let client = source::client(kubeconfig, "application/json")?;
            Ok(pod_addresses(&client, name).await?)
        })?;
    }
    for path in &source.filenames {
        for file in files(path)? {
            let text = read(&file)?;
            // Unusable files are told of when Services are read from them.
            let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap_or_default();
            let found = documents.iter().flat_map(objects).find_map(|object| is_pod(object, name));
            if let Some(pod) = found {
                return Ok(Some(addresses_of_pod(&pod)));
            }
        }
    }
    Ok(None)
}

fn read(path: &Path) -> Result<String, CommandError> {
    std::fs::read_to_string(path)
        .map_err(|source| CommandError::Read { path: path.to_owned(), source })
}

/// The file, or the files of a directory; stdin has been read or will be, for Services.
fn files(path: &Path) -> Result<Vec<PathBuf>, CommandError> {
    if path.as_os_str() == "-" {
        return Ok(Vec::new());
    }
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    manifest::list(path).map_err(|source| CommandError::Read { path: path.to_owned(), source })
}

/// The document, or the items of a List.
fn objects(document: &Value) -> Vec<&Value> {
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
