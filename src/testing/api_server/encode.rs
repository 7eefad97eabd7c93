//! Bodies and frames in both encodings.
//!
//! JSON is what the store holds. Protobuf is encoded from [`crate::wire::message`], so it has only
//! the fields that Kubeweir reads; captured bytes of a real server test the decoder elsewhere.

use bytes::Bytes;
use prost::Message;
use serde_json::{Value, json};

use crate::model::Kind;
use crate::wire::message::{EndpointSlice, ListMeta, Node, PartialObject, Service, ServiceCidr};
use crate::wire::{Encoding, Status};

#[derive(Clone, PartialEq, Message)]
struct Unknown {
    #[prost(message, optional, tag = "1")]
    type_meta: Option<TypeMeta>,
    #[prost(bytes = "bytes", optional, tag = "2")]
    raw: Option<Bytes>,
}

#[derive(Clone, PartialEq, Message)]
struct TypeMeta {
    #[prost(string, optional, tag = "1")]
    api_version: Option<String>,
    #[prost(string, optional, tag = "2")]
    kind: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct List {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ListMeta>,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    items: Vec<Bytes>,
}

#[derive(Clone, PartialEq, Message)]
struct WatchEvent {
    #[prost(string, optional, tag = "1")]
    r#type: Option<String>,
    #[prost(message, optional, tag = "2")]
    object: Option<RawExtension>,
}

#[derive(Clone, PartialEq, Message)]
struct RawExtension {
    #[prost(bytes = "bytes", optional, tag = "1")]
    raw: Option<Bytes>,
}

fn api_version(kind: Kind) -> &'static str {
    match kind {
        Kind::Node | Kind::Service => "v1",
        Kind::EndpointSlice => "discovery.k8s.io/v1",
        Kind::ServiceCidr => "networking.k8s.io/v1",
    }
}

fn envelope(api_version: &str, kind: &str, raw: Vec<u8>) -> Bytes {
    let type_meta =
        TypeMeta { api_version: Some(api_version.to_owned()), kind: Some(kind.to_owned()) };
    let unknown = Unknown { type_meta: Some(type_meta), raw: Some(raw.into()) };
    [b"k8s\0", unknown.encode_to_vec().as_slice()].concat().into()
}

/// The message of an object; what does not fit the trimmed shape is a mistake in the test.
fn message(kind: Kind, object: &Value) -> Vec<u8> {
    fn encode<M: Message + serde::de::DeserializeOwned>(object: &Value) -> Vec<u8> {
        let message: M = serde_json::from_value(object.clone())
            .expect("objects given to the scripted server have the shape of their kind");
        message.encode_to_vec()
    }
    if object.pointer("/spec").is_none() && object.pointer("/addressType").is_none() {
        // A bookmark: it has metadata only.
        return encode::<PartialObject>(object);
    }
    match kind {
        Kind::Node => encode::<Node>(object),
        Kind::Service => encode::<Service>(object),
        Kind::EndpointSlice => encode::<EndpointSlice>(object),
        Kind::ServiceCidr => encode::<ServiceCidr>(object),
    }
}

/// One page of a list.
pub(super) fn list(
    encoding: Encoding,
    kind: Kind,
    items: &[Value],
    version: u64,
    token: Option<String>,
) -> Bytes {
    let list_kind = format!("{kind}List");
    match encoding {
        Encoding::Json => {
            let metadata = json!({ "resourceVersion": version.to_string(), "continue": token });
            let list = json!({
                "apiVersion": api_version(kind), "kind": list_kind,
                "metadata": metadata, "items": items,
            });
            list.to_string().into()
        }
        Encoding::Protobuf => {
            let metadata = ListMeta {
                resource_version: Some(version.to_string()),
                r#continue: token,
                ..Default::default()
            };
            let items = items.iter().map(|item| message(kind, item).into()).collect();
            let list = List { metadata: Some(metadata), items };
            envelope(api_version(kind), &list_kind, list.encode_to_vec())
        }
    }
}

/// One frame of a watch.
pub(super) fn event(encoding: Encoding, kind: Kind, event: &str, object: &Value) -> Bytes {
    match encoding {
        Encoding::Json => json_frame(event, object),
        Encoding::Protobuf => {
            let name = kind.to_string();
            protobuf_frame(event, envelope(api_version(kind), &name, message(kind, object)))
        }
    }
}

/// A BOOKMARK, at the end of the initial events or later.
pub(super) fn bookmark(encoding: Encoding, kind: Kind, version: u64, initial_end: bool) -> Bytes {
    let annotations =
        if initial_end { json!({ "k8s.io/initial-events-end": "true" }) } else { json!({}) };
    let metadata = json!({ "resourceVersion": version.to_string(), "annotations": annotations });
    let object = json!({
        "apiVersion": api_version(kind), "kind": kind.to_string(), "metadata": metadata,
    });
    event(encoding, kind, "BOOKMARK", &object)
}

/// An ERROR event.
pub(super) fn error(encoding: Encoding, status: &Status) -> Bytes {
    match encoding {
        Encoding::Json => json_frame("ERROR", &status_json(status)),
        Encoding::Protobuf => protobuf_frame("ERROR", self::status(encoding, status)),
    }
}

/// A Status as a whole body.
pub(super) fn status(encoding: Encoding, status: &Status) -> Bytes {
    match encoding {
        Encoding::Json => status_json(status).to_string().into(),
        Encoding::Protobuf => envelope("v1", "Status", status.encode_to_vec()),
    }
}

fn status_json(status: &Status) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure",
        "code": status.code, "reason": status.reason, "message": status.message,
    })
}

fn json_frame(event: &str, object: &Value) -> Bytes {
    format!("{}\n", json!({ "type": event, "object": object })).into()
}

fn protobuf_frame(event: &str, object: Bytes) -> Bytes {
    let event = WatchEvent {
        r#type: Some(event.to_owned()),
        object: Some(RawExtension { raw: Some(object) }),
    };
    let event = event.encode_to_vec();
    let length = u32::try_from(event.len()).expect("test objects are small");
    [length.to_be_bytes().as_slice(), &event].concat().into()
}
