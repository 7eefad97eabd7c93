//! What a health-check node port answers.
//!
//! Place in the flow: the handler of [`super::ServiceHealthServers`]' listeners. It must not know
//! sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};

use crate::health::Health;
use crate::model::ObjectName;

/// Read by Google's load balancers as the node's share of the traffic.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    service: ServiceName<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct ServiceName<'a> {
    namespace: &'a str,
    name: &'a str,
}

/// Answers any path and method (B-242). Without `health` the proxy counts as healthy.
pub(super) fn router(
    service: ObjectName,
    local_endpoints: Arc<AtomicUsize>,
    health: Option<Health>,
) -> Router {
    Router::new().fallback(move || async move {
        let proxy_healthy = health.is_none_or(|h| h.status().healthy);
        answer(&service, local_endpoints.load(Ordering::Relaxed), proxy_healthy)
    })
}

fn answer(service: &ObjectName, local_endpoints: usize, proxy_healthy: bool) -> Response {
    let ok = local_endpoints > 0 && proxy_healthy;
    let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = [
        (header::CONTENT_TYPE, "application/json".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (WEIGHT, local_endpoints.to_string()),
    ];
    (status, headers, body(service, local_endpoints, proxy_healthy)).into_response()
}

/// A JSON object over several lines, indented with tabs, without a last newline (section 8.2).
fn body(service: &ObjectName, local_endpoints: usize, service_proxy_healthy: bool) -> Vec<u8> {
    let service = ServiceName { namespace: &service.namespace, name: &service.name };
    let body = Body { service, local_endpoints, service_proxy_healthy };
    let mut text = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(b"\t"));
    body.serialize(&mut serializer).expect("a struct of numbers and strings serialises");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    // B-245: the fields of 8.2, in that order and layout.
    #[test]
    fn body_is_tab_indented() {
        let name = ObjectName::new("ns", "svc");
        let expected = "{\n\t\"service\": {\n\t\t\"namespace\": \"ns\",\n\t\t\"name\": \"svc\"\n\t},\n\t\
                        \"localEndpoints\": 3,\n\t\"serviceProxyHealthy\": true\n}";
        assert_eq!(String::from_utf8(body(&name, 3, true)).unwrap(), expected);
    }

    // B-242: only local ready endpoints of a healthy proxy make 200; the weight is the count.
    #[test]
    fn status_needs_endpoints_and_a_healthy_proxy() {
        let cases =
            [(2, true, 200, "2"), (0, true, 503, "0"), (2, false, 503, "2"), (0, false, 503, "0")];
        for (count, healthy, status, weight) in cases {
            let answer = answer(&ObjectName::new("ns", "svc"), count, healthy);
            assert_eq!(answer.status().as_u16(), status, "{count} {healthy}");
            assert_eq!(answer.headers()[WEIGHT], weight, "{count} {healthy}");
        }
    }
}
