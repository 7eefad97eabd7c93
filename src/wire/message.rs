//! The API's messages, trimmed to the fields that decisions need.
//!
//! One struct serves both encodings: prost reads the field numbers of Kubernetes' `generated.proto`
//! files (proto2: every scalar is optional), serde the JSON and YAML names. What is not listed here
//! is skipped without being stored, in both encodings. `null` means absent, as Go prints empty lists.
//!
//! Place in the flow: bytes become these, [`super::convert`] turns them into the model. Nothing here
//! judges a value.

use bytes::Bytes;
use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use std::borrow::Cow;
use std::fmt;

/// Label that ties a slice to its Service (B-093).
pub const LABEL_SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label of a Service that another proxy serves (B-069).
pub const LABEL_SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Label of a headless Service's slices (B-070).
pub const LABEL_HEADLESS: &str = "service.kubernetes.io/headless";
/// Label with a node's zone (B-060).
pub const LABEL_ZONE: &str = "topology.kubernetes.io/zone";
/// Annotation of ours: after which time TCP connections to endpoints that are gone are ended.
pub const ANNOTATION_END_CONNECTIONS: &str = "kubeweir.io/end-connections-after";
/// Annotation with the time of the change that led to this slice (B-257).
pub const ANNOTATION_TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Annotation of the bookmark that ends the initial events of a streaming list.
pub const ANNOTATION_INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// The keys that JSON and YAML decoding keeps; other pairs are dropped as they are read.
const WANTED_KEYS: [&str; 7] = [
    LABEL_SERVICE_NAME,
    LABEL_SERVICE_PROXY_NAME,
    LABEL_HEADLESS,
    LABEL_ZONE,
    ANNOTATION_TRIGGER_TIME,
    ANNOTATION_END_CONNECTIONS,
    ANNOTATION_INITIAL_EVENTS_END,
];

/// A label or an annotation. Protobuf decoding shares the input's buffer, so that large values cost
/// nothing.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Pair {
    /// The key, UTF-8.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// The value, UTF-8.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

/// meta/v1 Time. Protobuf: seconds and nanoseconds since 1970; JSON: RFC 3339.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Time {
    /// Seconds since 1970.
    #[prost(int64, optional, tag = "1")]
    pub seconds: Option<i64>,
}

/// meta/v1 ObjectMeta.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ObjectMeta {
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    #[prost(string, optional, tag = "3")]
    pub namespace: Option<String>,
    /// `resourceVersion`, opaque.
    #[prost(string, optional, tag = "6")]
    pub resource_version: Option<String>,
    #[prost(message, optional, tag = "8")]
    pub creation_timestamp: Option<Time>,
    #[prost(message, optional, tag = "9")]
    pub deletion_timestamp: Option<Time>,
    #[prost(message, repeated, tag = "11")]
    #[serde(deserialize_with = "wanted_pairs")]
    pub labels: Vec<Pair>,
    #[prost(message, repeated, tag = "12")]
    #[serde(deserialize_with = "wanted_pairs")]
    pub annotations: Vec<Pair>,
}

impl ObjectMeta {
    /// The value of a label; `None` when it is absent or no UTF-8.
    pub fn label(&self, key: &str) -> Option<&str> {
        find(&self.labels, key)
    }

    /// The value of an annotation; `None` when it is absent or no UTF-8.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        find(&self.annotations, key)
    }
}

fn find<'a>(pairs: &'a [Pair], key: &str) -> Option<&'a str> {
    let pair = pairs.iter().find(|pair| pair.key == key.as_bytes())?;
    std::str::from_utf8(&pair.value).ok()
}

/// What every object starts with; enough for deletions, bookmarks and reports.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
pub struct PartialObject {
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<ObjectMeta>,
}

/// meta/v1 ListMeta.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ListMeta {
    /// `resourceVersion`, opaque.
    #[prost(string, optional, tag = "2")]
    pub resource_version: Option<String>,
    /// `continue`: the token of the next page.
    #[prost(string, optional, tag = "3")]
    pub r#continue: Option<String>,
    #[prost(int64, optional, tag = "4")]
    pub remaining_item_count: Option<i64>,
}

/// meta/v1 Status: the server's answer when it does not do what it was asked.
#[derive(Clone, PartialEq, Eq, prost::Message, Deserialize)]
#[serde(default)]
pub struct Status {
    /// `message`, for people.
    #[prost(string, optional, tag = "3")]
    pub message: Option<String>,
    /// `reason`, one word: `Expired`, `Timeout`.
    #[prost(string, optional, tag = "4")]
    pub reason: Option<String>,
    #[prost(message, optional, tag = "5")]
    pub details: Option<StatusDetails>,
    /// `code`, the HTTP status.
    #[prost(int32, optional, tag = "6")]
    pub code: Option<i32>,
}

impl std::error::Error for Status {}

/// meta/v1 StatusDetails.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct StatusDetails {
    #[prost(int32, optional, tag = "5")]
    pub retry_after_seconds: Option<i32>,
}

/// core/v1 Service.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
pub struct Service {
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<ObjectMeta>,
    #[prost(message, optional, tag = "2")]
    pub spec: Option<ServiceSpec>,
    #[prost(message, optional, tag = "3")]
    pub status: Option<ServiceStatus>,
}

/// core/v1 ServiceSpec.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceSpec {
    #[prost(message, repeated, tag = "1")]
    #[serde(deserialize_with = "null_as_default")]
    pub ports: Vec<ServicePort>,
    #[prost(string, optional, tag = "3")]
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<String>,
    #[prost(string, optional, tag = "4")]
    pub r#type: Option<String>,
    #[prost(string, repeated, tag = "5")]
    #[serde(rename = "externalIPs", deserialize_with = "null_as_default")]
    pub external_ips: Vec<String>,
    #[prost(string, optional, tag = "7")]
    pub session_affinity: Option<String>,
    #[prost(string, repeated, tag = "9")]
    #[serde(deserialize_with = "null_as_default")]
    pub load_balancer_source_ranges: Vec<String>,
    #[prost(string, optional, tag = "11")]
    pub external_traffic_policy: Option<String>,
    #[prost(int32, optional, tag = "12")]
    pub health_check_node_port: Option<i32>,
    #[prost(message, optional, tag = "14")]
    pub session_affinity_config: Option<SessionAffinityConfig>,
    #[prost(string, repeated, tag = "18")]
    #[serde(rename = "clusterIPs", deserialize_with = "null_as_default")]
    pub cluster_ips: Vec<String>,
    #[prost(string, repeated, tag = "19")]
    #[serde(deserialize_with = "null_as_default")]
    pub ip_families: Vec<String>,
    #[prost(string, optional, tag = "22")]
    pub internal_traffic_policy: Option<String>,
}

/// core/v1 ServicePort.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServicePort {
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    #[prost(string, optional, tag = "2")]
    pub protocol: Option<String>,
    #[prost(int32, optional, tag = "3")]
    pub port: Option<i32>,
    #[prost(int32, optional, tag = "5")]
    pub node_port: Option<i32>,
}

/// core/v1 SessionAffinityConfig.
#[derive(Clone, Copy, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
pub struct SessionAffinityConfig {
    #[prost(message, optional, tag = "1")]
    #[serde(rename = "clientIP")]
    pub client_ip: Option<ClientIpConfig>,
}

/// core/v1 ClientIPConfig.
#[derive(Clone, Copy, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClientIpConfig {
    #[prost(int32, optional, tag = "1")]
    pub timeout_seconds: Option<i32>,
}

/// core/v1 ServiceStatus.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceStatus {
    #[prost(message, optional, tag = "1")]
    pub load_balancer: Option<LoadBalancerStatus>,
}

/// core/v1 LoadBalancerStatus.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
pub struct LoadBalancerStatus {
    #[prost(message, repeated, tag = "1")]
    #[serde(deserialize_with = "null_as_default")]
    pub ingress: Vec<LoadBalancerIngress>,
}

/// core/v1 LoadBalancerIngress.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LoadBalancerIngress {
    /// `ip`; empty for an entry with only a host name.
    #[prost(string, optional, tag = "1")]
    pub ip: Option<String>,
    #[prost(string, optional, tag = "3")]
    pub ip_mode: Option<String>,
}

/// discovery.k8s.io/v1 EndpointSlice.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointSlice {
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<ObjectMeta>,
    #[prost(message, repeated, tag = "2")]
    #[serde(deserialize_with = "null_as_default")]
    pub endpoints: Vec<Endpoint>,
    #[prost(message, repeated, tag = "3")]
    #[serde(deserialize_with = "null_as_default")]
    pub ports: Vec<EndpointPort>,
    #[prost(string, optional, tag = "4")]
    pub address_type: Option<String>,
}

/// discovery.k8s.io/v1 Endpoint.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Endpoint {
    #[prost(string, repeated, tag = "1")]
    #[serde(deserialize_with = "null_as_default")]
    pub addresses: Vec<String>,
    #[prost(message, optional, tag = "2")]
    pub conditions: Option<EndpointConditions>,
    #[prost(string, optional, tag = "6")]
    pub node_name: Option<String>,
    #[prost(message, optional, tag = "8")]
    pub hints: Option<EndpointHints>,
}

/// discovery.k8s.io/v1 EndpointConditions.
#[derive(Clone, Copy, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
pub struct EndpointConditions {
    #[prost(bool, optional, tag = "1")]
    pub ready: Option<bool>,
    #[prost(bool, optional, tag = "2")]
    pub serving: Option<bool>,
    #[prost(bool, optional, tag = "3")]
    pub terminating: Option<bool>,
}

/// discovery.k8s.io/v1 EndpointHints.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointHints {
    #[prost(message, repeated, tag = "1")]
    #[serde(deserialize_with = "null_as_default")]
    pub for_zones: Vec<Hint>,
    #[prost(message, repeated, tag = "2")]
    #[serde(deserialize_with = "null_as_default")]
    pub for_nodes: Vec<Hint>,
}

/// discovery.k8s.io/v1 ForZone and ForNode.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
pub struct Hint {
    /// `name` of a zone or a node.
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
}

/// discovery.k8s.io/v1 EndpointPort.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
pub struct EndpointPort {
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    #[prost(string, optional, tag = "2")]
    pub protocol: Option<String>,
    #[prost(int32, optional, tag = "3")]
    pub port: Option<i32>,
}

/// core/v1 Node.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
pub struct Node {
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<ObjectMeta>,
    #[prost(message, optional, tag = "2")]
    pub spec: Option<NodeSpec>,
    #[prost(message, optional, tag = "3")]
    pub status: Option<NodeStatus>,
}

/// core/v1 NodeSpec.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    #[prost(message, repeated, tag = "5")]
    #[serde(deserialize_with = "null_as_default")]
    pub taints: Vec<Taint>,
    #[prost(string, repeated, tag = "7")]
    #[serde(rename = "podCIDRs", deserialize_with = "null_as_default")]
    pub pod_cidrs: Vec<String>,
}

/// core/v1 Taint.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
pub struct Taint {
    #[prost(string, optional, tag = "1")]
    pub key: Option<String>,
}

/// core/v1 NodeStatus.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    #[prost(message, repeated, tag = "5")]
    #[serde(deserialize_with = "null_as_default")]
    pub addresses: Vec<NodeAddress>,
}

/// core/v1 NodeAddress.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    /// `type`: `InternalIP`, `ExternalIP`, `Hostname`.
    #[prost(string, optional, tag = "1")]
    pub r#type: Option<String>,
    #[prost(string, optional, tag = "2")]
    pub address: Option<String>,
}

/// networking.k8s.io/v1 ServiceCIDR.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
pub struct ServiceCidr {
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<ObjectMeta>,
    #[prost(message, optional, tag = "2")]
    pub spec: Option<ServiceCidrSpec>,
}

/// networking.k8s.io/v1 ServiceCIDRSpec.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
pub struct ServiceCidrSpec {
    #[prost(string, repeated, tag = "1")]
    #[serde(deserialize_with = "null_as_default")]
    pub cidrs: Vec<String>,
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        let time: jiff::Timestamp = text.parse().map_err(D::Error::custom)?;
        Ok(Time { seconds: Some(time.as_second()) })
    }
}

fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

fn wanted_pairs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Pair>, D::Error> {
    struct Pairs;
    impl<'de> Visitor<'de> for Pairs {
        type Value = Vec<Pair>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map of strings")
        }

        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(Vec::new())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut pairs = Vec::new();
            while let Some(key) = map.next_key::<Cow<'de, str>>()? {
                match WANTED_KEYS.into_iter().find(|wanted| *wanted == key) {
                    Some(wanted) => pairs.push(Pair {
                        key: Bytes::from_static(wanted.as_bytes()),
                        value: map.next_value::<String>()?.into(),
                    }),
                    None => {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
            }
            Ok(pairs)
        }
    }
    deserializer.deserialize_any(Pairs)
}
