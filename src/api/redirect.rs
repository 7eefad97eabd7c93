//! Redirects, which balancers answer with and Go follows.
//!
//! Place in the flow: [`super::connection`] puts this between its layers and hyper's client. Own code
//! because the library that has it brings tables of all of Unicode for names that no API server has.

use http::header::{AUTHORIZATION, COOKIE, LOCATION};
use http::{HeaderMap, Method, Request, Response, Uri};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use kube::client::Body;
use tower::BoxError;

use super::dial::Connector;

/// Go's bound.
const MOST: usize = 10;

/// Sends a request, and again to wherever it is sent; what writes is sent once.
pub(super) async fn follow(
    client: Client<Connector, Body>,
    request: Request<Body>,
) -> Result<Response<Incoming>, BoxError> {
    let method = request.method().clone();
    let (mut uri, mut headers) = (request.uri().clone(), request.headers().clone());
    let mut answer = client.request(request).await?;
    for _ in 0..MOST {
        let Some(next) = target(&answer, &uri).filter(|_| method == Method::GET) else { break };
        if next.authority() != uri.authority() || next.scheme() != uri.scheme() {
            forget_credentials(&mut headers);
        }
        uri = next;
        let mut request = Request::get(uri.clone()).body(Body::empty())?;
        request.headers_mut().clone_from(&headers);
        answer = client.request(request).await?;
    }
    Ok(answer)
}

fn forget_credentials(headers: &mut HeaderMap) {
    headers.remove(AUTHORIZATION);
    headers.remove(COOKIE);
}

/// Where an answer sends to: another URL, or another path of this one.
fn target(answer: &Response<Incoming>, uri: &Uri) -> Option<Uri> {
    if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location: Uri = answer.headers().get(LOCATION)?.to_str().ok()?.parse().ok()?;
    if location.scheme().is_some() {
        return Some(location);
    }
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = location.into_parts().path_and_query;
    Uri::from_parts(parts).ok()
}
