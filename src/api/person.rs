//! A person's way to the API server: kubectl's files, variables and flags.
//!
//! Place in the flow: `kubectl kubeweir` asks for one client; the agent never does. Everything that
//! is accepted of certificates, credentials and proxies is [`super::connection`]'s.

use std::env;
use std::net::IpAddr;
use std::path::PathBuf;

use http::header::{AUTHORIZATION, USER_AGENT};
use http::{HeaderValue, Request, StatusCode};
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::client::Body;
use kube::config::Kubeconfig;
use tower::ServiceExt;

use super::access::{Access, ConnectionError, read_kubeconfig, unusable};
use super::client::{self, RequestError};
use super::connection::{Connected, connected};
use crate::model::ObjectName;

/// Who asks, as kubectl's flags say it.
#[derive(Debug, Clone, Default)]
pub struct Person {
    /// `--kubeconfig`; without it the files of `KUBECONFIG`, else `~/.kube/config`, else the pod's
    /// service account.
    pub kubeconfig: Option<PathBuf>,
    /// `--context`; without it the current one.
    pub context: Option<String>,
    /// `User-Agent`.
    pub user_agent: String,
}

impl Person {
    /// Reads files and builds a client, which speaks HTTP/1.1: `exec` needs a connection of its own.
    /// Blocks on files and exec plugins; needs a runtime.
    ///
    /// Errors: what cannot be read or used. No connection is made yet.
    pub fn client(&self) -> Result<Client, ConnectionError> {
        let access = self.access()?;
        let namespace = access.config.default_namespace.clone();
        let Connected { transport, authorization, .. } = connected(access, false)?;
        let user_agent = HeaderValue::from_str(&self.user_agent).ok();
        let transport = transport.map_request(move |mut request: Request<Body>| {
            let headers = [(USER_AGENT, &user_agent), (AUTHORIZATION, &authorization)];
            for (name, value) in headers {
                if let Some(value) = value {
                    request.headers_mut().insert(name, value.clone());
                }
            }
            request
        });
        Ok(Client::new(transport, namespace))
    }

    fn access(&self) -> Result<Access, ConnectionError> {
        let files = match &self.kubeconfig {
            Some(file) => vec![file.clone()],
            None => usual_files(),
        };
        // kubectl, too, goes on as the pod that it runs in.
        if files.is_empty() && self.context.is_none() {
            return Access::of_pod();
        }
        let shown = shown(&files);
        let mut kubeconfig = Kubeconfig::default();
        for file in &files {
            let next = read_kubeconfig(file)?;
            kubeconfig = kubeconfig.merge(next).map_err(|source| unusable(&shown, source))?;
        }
        if self.context.is_some() {
            kubeconfig.current_context.clone_from(&self.context);
        }
        Access::of_kubeconfig(&shown, kubeconfig, None)
    }
}

/// Those that are there: kubectl passes over the others.
fn usual_files() -> Vec<PathBuf> {
    let named = env::var_os("KUBECONFIG").filter(|value| !value.is_empty());
    let files: Vec<PathBuf> = match named {
        Some(list) => env::split_paths(&list).collect(),
        None => env::home_dir().map(|home| home.join(".kube/config")).into_iter().collect(),
    };
    files.into_iter().filter(|file| file.exists()).collect()
}

/// Several files in one name, as `KUBECONFIG` has them.
fn shown(files: &[PathBuf]) -> PathBuf {
    let joined = env::join_paths(files.iter().map(PathBuf::as_path));
    joined.map(PathBuf::from).unwrap_or_default()
}

// One pod's addresses, for people who name a pod instead of an address.

/// Why a pod's addresses are not known.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("the API server answers {0}")]
    Refused(StatusCode),
    #[error("the API server's answer is no pod")]
    NoPod(#[source] serde_json::Error),
}

/// The addresses of a pod; `None` if there is no such pod. The client has to ask for JSON, and the
/// name has to consist of what names consist of.
pub async fn pod_addresses(
    client: &client::Client,
    name: &ObjectName,
) -> Result<Option<Vec<IpAddr>>, PodError> {
    let uri = format!("/api/v1/namespaces/{}/pods/{}", name.namespace, name.name);
    let answer = client.get(&uri).await?;
    match answer.status() {
        StatusCode::NOT_FOUND => return Ok(None),
        status if !status.is_success() => return Err(PodError::Refused(status)),
        _ => {}
    }
    let pod: Pod = serde_json::from_slice(answer.body()).map_err(PodError::NoPod)?;
    Ok(Some(addresses(&pod)))
}

/// `status.podIPs`; pods that are not scheduled yet have none.
pub fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let ips = pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten());
    ips.filter_map(|ip| ip.ip.parse().ok()).collect()
}
