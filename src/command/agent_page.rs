//! One page of the agent's metrics port.

use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

use super::CommandError;

/// How long the agent may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// kube-proxy's metrics port.
const USUAL_PORT: u16 = 10_249;

/// An answer that is no page.
#[derive(Debug, thiserror::Error)]
enum NoPage {
    #[error("no answer within {} s", PATIENCE.as_secs())]
    Late,
    #[error("it answers {0}")]
    Refused(http::StatusCode),
}

/// Fetches a page as text.
pub async fn fetch(address: &str, path: &str) -> Result<String, CommandError> {
    let failed = |source: Box<dyn Error + Send + Sync>| CommandError::Agent {
        address: address.to_owned(),
        path: path.to_owned(),
        source,
    };
    match tokio::time::timeout(PATIENCE, get(address, path)).await {
        Ok(page) => page.map_err(failed),
        Err(_) => Err(failed(NoPage::Late.into())),
    }
}

/// An address alone means the agent's usual port.
fn with_port(address: &str) -> String {
    match address.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, USUAL_PORT).to_string(),
        Err(_) => address.to_owned(),
    }
}

async fn get(address: &str, path: &str) -> Result<String, Box<dyn Error + Send + Sync>> {
    let uri: http::Uri = format!("http://{}{path}", with_port(address)).parse()?;
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<bytes::Bytes>>();
    let answer = client.get(uri).await?;
    if !answer.status().is_success() {
        return Err(NoPage::Refused(answer.status()).into());
    }
    let body = answer.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8_lossy(&body).into_owned())
}
