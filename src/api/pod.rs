//! One pod's addresses, for people who name a pod instead of an address.
//!
//! Place in the flow: `kubeweir explain --kubeconfig` asks once; the agent never reads pods.

use std::net::IpAddr;

use http::StatusCode;
use k8s_openapi::api::core::v1::Pod;

use super::client::{Client, RequestError};
use crate::model::ObjectName;

/// Why a pod's addresses are not known.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// No answer.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The API server refuses.
    #[error("the API server answers {0}")]
    Refused(StatusCode),
    /// The answer is no pod.
    #[error("the API server's answer is no pod")]
    NoPod(#[source] serde_json::Error),
}

/// The addresses of a pod; `None` if there is no such pod. The client has to ask for JSON, and the
/// name has to consist of what names consist of.
pub async fn pod_addresses(
    client: &Client,
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
