//! Where each kind lives in the API and with which selectors it is read.
//!
//! Place in the flow: [`super::watch`] turns what its state machine wants into a request here. Pure.

use form_urlencoded::Serializer;

use crate::model::Kind;

/// Objects per page of a paged list, as upstream asks.
const PAGE: &str = "500";

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A watch that first sends the complete list (KEP-3157).
    StreamingList,
    /// The first page of a list that is not older than `resource_version`; `"0"` takes whatever the
    /// server has at hand, the empty string the most recent state.
    List {
        /// The oldest state to accept.
        resource_version: String,
    },
    /// A further page.
    ListPage {
        /// `metadata.continue` of the page before.
        continue_token: String,
    },
    /// The most recent list in one piece: for servers that expire continue tokens faster than
    /// pages can be read.
    FullList,
    /// A watch from a known state.
    Watch {
        /// The state after which events are wanted.
        resource_version: String,
    },
}

/// The collection's path (section 4.1).
pub(super) fn path(kind: Kind) -> &'static str {
    match kind {
        Kind::Node => "/api/v1/nodes",
        Kind::Service => "/api/v1/services",
        Kind::EndpointSlice => "/apis/discovery.k8s.io/v1/endpointslices",
        Kind::ServiceCidr => "/apis/networking.k8s.io/v1/servicecidrs",
    }
}

/// `fieldSelector` and `labelSelector` of a kind (B-052, B-069 to B-071).
fn selectors(kind: Kind, node: &str) -> Vec<(&'static str, String)> {
    match kind {
        Kind::Node => vec![("fieldSelector", format!("metadata.name={node}"))],
        Kind::Service => vec![
            ("fieldSelector", "spec.clusterIP!=None".into()),
            ("labelSelector", "!service.kubernetes.io/service-proxy-name".into()),
        ],
        Kind::EndpointSlice => {
            vec![("labelSelector", "!service.kubernetes.io/headless".into())]
        }
        Kind::ServiceCidr => Vec::new(),
    }
}

/// Path and query of a request. `timeout` is how long the server keeps a watch open, in seconds.
pub(super) fn uri(kind: Kind, node: &str, request: &Request, timeout: u64) -> String {
    let mut query = Serializer::new(String::new());
    for (name, value) in selectors(kind, node) {
        query.append_pair(name, &value);
    }
    match request {
        Request::StreamingList => {
            query.append_pair("allowWatchBookmarks", "true");
            query.append_pair("resourceVersionMatch", "NotOlderThan");
            query.append_pair("sendInitialEvents", "true");
            query.append_pair("timeoutSeconds", &timeout.to_string());
            query.append_pair("watch", "true");
        }
        Request::List { resource_version } => {
            // With a limit, a version would mean exactly that one, and the list would be as old as
            // what was seen. Without, a list at least as new comes from the server's cache.
            if matches!(resource_version.as_str(), "" | "0") {
                query.append_pair("limit", PAGE);
            }
            query.append_pair("resourceVersion", resource_version);
        }
        Request::ListPage { continue_token } => {
            query.append_pair("continue", continue_token);
            query.append_pair("limit", PAGE);
        }
        Request::FullList => {}
        Request::Watch { resource_version } => {
            query.append_pair("allowWatchBookmarks", "true");
            query.append_pair("resourceVersion", resource_version);
            query.append_pair("timeoutSeconds", &timeout.to_string());
            query.append_pair("watch", "true");
        }
    }
    match query.finish() {
        query if query.is_empty() => path(kind).to_owned(),
        query => format!("{}?{query}", path(kind)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // B-052, B-069, B-070, B-071: the selectors of each kind, and none but these.
    #[test]
    fn every_kind_is_read_with_upstreams_selectors() {
        let cases = [
            (Kind::Node, "/api/v1/nodes?fieldSelector=metadata.name%3Dnode-a"),
            (
                Kind::Service,
                "/api/v1/services?fieldSelector=spec.clusterIP%21%3DNone\
                 &labelSelector=%21service.kubernetes.io%2Fservice-proxy-name",
            ),
            (
                Kind::EndpointSlice,
                "/apis/discovery.k8s.io/v1/endpointslices\
                 ?labelSelector=%21service.kubernetes.io%2Fheadless",
            ),
            (Kind::ServiceCidr, "/apis/networking.k8s.io/v1/servicecidrs"),
        ];
        for (kind, want) in cases {
            assert_eq!(uri(kind, "node-a", &Request::FullList, 300), want, "{kind}");
        }
    }

    #[test]
    fn every_request_has_upstreams_parameters() {
        let cases = [
            (
                Request::StreamingList,
                "?allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan\
                 &sendInitialEvents=true&timeoutSeconds=301&watch=true",
            ),
            (Request::List { resource_version: "0".into() }, "?limit=500&resourceVersion=0"),
            (Request::List { resource_version: "17".into() }, "?resourceVersion=17"),
            (Request::List { resource_version: "".into() }, "?limit=500&resourceVersion="),
            (Request::ListPage { continue_token: "a+b=".into() }, "?continue=a%2Bb%3D&limit=500"),
            (
                Request::Watch { resource_version: "17".into() },
                "?allowWatchBookmarks=true&resourceVersion=17&timeoutSeconds=301&watch=true",
            ),
        ];
        for (request, want) in cases {
            let got = uri(Kind::ServiceCidr, "node-a", &request, 301);
            assert_eq!(got, format!("/apis/networking.k8s.io/v1/servicecidrs{want}"));
        }
    }
}
