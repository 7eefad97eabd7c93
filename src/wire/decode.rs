//! Envelopes, lists and events of both encodings.

use std::borrow::Cow;

use bytes::{Buf, Bytes, BytesMut};
use prost::Message;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::convert::{self, ToModel};
use super::message::{
    self, ANNOTATION_INITIAL_EVENTS_END, ListMeta, ObjectMeta, PartialObject, Status,
};
use super::{Decoded, Encoding, Event, Interner, List, Part, WireError};
use crate::model::{Kind, Skip, SkipLevel};

/// What precedes every protobuf body and every object in a protobuf watch event.
const MAGIC: &[u8] = b"k8s\0";

/// Decodes bodies and events. Keeps the strings they share, so use one for the life of a watch.
#[derive(Debug)]
pub struct Decoder {
    /// Feature gate AllowServiceExternalIPs; without it Services have no external IPs.
    allow_external_ips: bool,
    interner: Interner,
}

/// Why an object does not have the shape of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Unreadable {
    /// Path of the field, `.` for the object itself.
    pub field: String,
    pub reason: String,
}

#[derive(Clone, PartialEq, Message)]
struct Unknown {
    #[prost(message, optional, tag = "1")]
    type_meta: Option<TypeMeta>,
    #[prost(bytes = "bytes", optional, tag = "2")]
    raw: Option<Bytes>,
}

#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
struct TypeMeta {
    #[prost(string, optional, tag = "2")]
    kind: Option<String>,
}

/// The list of any kind; items stay encoded, so that one bad item does not spoil the others.
#[derive(Clone, PartialEq, Message)]
struct ProtobufList {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ListMeta>,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    items: Vec<Bytes>,
}

#[derive(Deserialize)]
struct JsonList<'a> {
    kind: Option<String>,
    metadata: Option<ListMeta>,
    #[serde(borrow)]
    items: Option<Vec<&'a RawValue>>,
}

/// meta/v1 WatchEvent.
#[derive(Clone, PartialEq, Message)]
struct ProtobufEvent {
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

#[derive(Deserialize)]
struct JsonEvent<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

impl Decoder {
    /// A decoder. `allow_external_ips`: feature gate AllowServiceExternalIPs.
    pub fn new(allow_external_ips: bool) -> Decoder {
        Decoder { allow_external_ips, interner: Interner::default() }
    }

    /// Decodes the body of a LIST of one kind.
    ///
    /// Errors: the body is unreadable or of another kind, or it is a Status
    /// ([`WireError::Refused`]).
    pub fn list(
        &mut self,
        kind: Kind,
        encoding: Encoding,
        body: &Bytes,
    ) -> Result<List, WireError> {
        let part = Part::List(kind);
        match encoding {
            Encoding::Json => {
                let list: JsonList<'_> = serde_json::from_slice(body)
                    .map_err(|source| WireError::Json { part, source })?;
                check_kind(part, encoding, list.kind, body)?;
                let items = list.items.unwrap_or_default();
                let items = items.into_iter().map(|item| body.slice_ref(item.get().as_bytes()));
                Ok(self.items(kind, encoding, list.metadata.unwrap_or_default(), items))
            }
            Encoding::Protobuf => {
                let raw = open(part, body)?;
                let list = ProtobufList::decode(raw)
                    .map_err(|source| WireError::Protobuf { part, source })?;
                let meta = list.metadata.unwrap_or_default();
                Ok(self.items(kind, encoding, meta, list.items.into_iter()))
            }
        }
    }

    /// Decodes one frame of a watch on one kind.
    ///
    /// Errors: the frame is unreadable, of unknown type, or its object has no readable metadata.
    pub fn event(
        &mut self,
        kind: Kind,
        encoding: Encoding,
        frame: &Bytes,
    ) -> Result<Event, WireError> {
        let part = Part::Event(kind);
        let (event_type, object) = open_event(part, encoding, frame)?;
        let metadata = || {
            read::<PartialObject>(encoding, &object)
                .map(|partial| partial.metadata.unwrap_or_default())
                .map_err(|source| WireError::Object { part, source })
        };
        match &*event_type {
            "ADDED" | "MODIFIED" => match self.object(kind, encoding, &object) {
                Ok(decoded) => Ok(Event::Applied(decoded)),
                Err(unreadable) => Ok(Event::Applied(self.unused(kind, metadata()?, unreadable))),
            },
            "DELETED" => {
                let metadata = metadata()?;
                Ok(Event::Deleted {
                    name: convert::object_name(kind, &metadata, &mut self.interner),
                    resource_version: metadata.resource_version.unwrap_or_default(),
                })
            }
            "BOOKMARK" => {
                let metadata = metadata()?;
                let end = metadata.annotation(ANNOTATION_INITIAL_EVENTS_END) == Some("true");
                Ok(Event::Bookmark {
                    resource_version: metadata.resource_version.unwrap_or_default(),
                    initial_events_end: end,
                })
            }
            "ERROR" => read::<Status>(encoding, &object)
                .map(Event::Error)
                .map_err(|source| WireError::Object { part, source }),
            other => Err(WireError::UnknownEvent(other.to_owned())),
        }
    }

    /// Decodes one object of a parsed document, JSON or YAML.
    ///
    /// Errors: a field has the wrong type.
    pub fn document(
        &mut self,
        kind: Kind,
        document: &serde_json::Value,
    ) -> Result<Decoded, Unreadable> {
        match kind {
            Kind::Service => self.parsed::<message::Service>(document),
            Kind::EndpointSlice => self.parsed::<message::EndpointSlice>(document),
            Kind::Node => self.parsed::<message::Node>(document),
            Kind::ServiceCidr => self.parsed::<message::ServiceCidr>(document),
        }
    }

    fn parsed<M: ToModel + DeserializeOwned>(
        &mut self,
        document: &serde_json::Value,
    ) -> Result<Decoded, Unreadable> {
        let message: M = serde_path_to_error::deserialize(document).map_err(|error| {
            Unreadable { field: error.path().to_string(), reason: error.inner().to_string() }
        })?;
        Ok(convert::decoded(&message, self.allow_external_ips, &mut self.interner))
    }

    fn items(
        &mut self,
        kind: Kind,
        encoding: Encoding,
        meta: ListMeta,
        items: impl ExactSizeIterator<Item = Bytes>,
    ) -> List {
        let mut list = List {
            resource_version: meta.resource_version.unwrap_or_default(),
            continue_token: meta.r#continue.filter(|token| !token.is_empty()),
            remaining_item_count: meta.remaining_item_count,
            objects: Vec::with_capacity(items.len()),
            skips: Vec::new(),
        };
        for item in items {
            let decoded = self.object(kind, encoding, &item).unwrap_or_else(|unreadable| {
                let partial = read::<PartialObject>(encoding, &item).unwrap_or_default();
                self.unused(kind, partial.metadata.unwrap_or_default(), unreadable)
            });
            list.objects.extend(decoded.object);
            list.skips.extend(decoded.skips);
        }
        list
    }

    fn object(
        &mut self,
        kind: Kind,
        encoding: Encoding,
        object: &Bytes,
    ) -> Result<Decoded, Unreadable> {
        match kind {
            Kind::Service => self.message::<message::Service>(encoding, object),
            Kind::EndpointSlice => self.message::<message::EndpointSlice>(encoding, object),
            Kind::Node => self.message::<message::Node>(encoding, object),
            Kind::ServiceCidr => self.message::<message::ServiceCidr>(encoding, object),
        }
    }

    fn message<M: ToModel + DeserializeOwned>(
        &mut self,
        encoding: Encoding,
        object: &Bytes,
    ) -> Result<Decoded, Unreadable> {
        let message: M = read(encoding, object)?;
        Ok(convert::decoded(&message, self.allow_external_ips, &mut self.interner))
    }

    /// The place of an object that cannot be read beyond its metadata.
    fn unused(&mut self, kind: Kind, metadata: ObjectMeta, unreadable: Unreadable) -> Decoded {
        let name = convert::object_name(kind, &metadata, &mut self.interner);
        let skip = Skip {
            kind,
            object: name.clone(),
            field: unreadable.field,
            reason: unreadable.reason,
            level: SkipLevel::Error,
        };
        let resource_version = metadata.resource_version.unwrap_or_default();
        Decoded { name, resource_version, object: None, skips: vec![skip] }
    }
}

impl Status {
    /// Decodes the body of an answer that is no success.
    ///
    /// Errors: the body is no Status.
    pub fn from_body(encoding: Encoding, body: &Bytes) -> Result<Status, WireError> {
        let part = Part::Status;
        let raw = match encoding {
            Encoding::Json => {
                let type_meta: TypeMeta = serde_json::from_slice(body)
                    .map_err(|source| WireError::Json { part, source })?;
                check_kind(part, encoding, type_meta.kind, body)?;
                body.clone()
            }
            Encoding::Protobuf => open(part, body)?,
        };
        read_status(encoding, &raw)
    }
}

/// Fails unless a body is of the kind it should be; `raw` is the body without an envelope.
fn check_kind(
    part: Part,
    encoding: Encoding,
    found: Option<String>,
    raw: &Bytes,
) -> Result<(), WireError> {
    let found = found.unwrap_or_default();
    if found == part.to_string() {
        Ok(())
    } else if found == "Status" {
        Err(WireError::Refused { expected: part, source: read_status(encoding, raw)? })
    } else {
        Err(WireError::UnexpectedKind { expected: part, found })
    }
}

fn read_status(encoding: Encoding, raw: &Bytes) -> Result<Status, WireError> {
    read(encoding, raw).map_err(|source| WireError::Object { part: Part::Status, source })
}

/// Type and bare object of a watch event.
fn open_event(part: Part, encoding: Encoding, frame: &Bytes) -> Result<(String, Bytes), WireError> {
    match encoding {
        Encoding::Json => {
            let event: JsonEvent<'_> =
                serde_json::from_slice(frame).map_err(|source| WireError::Json { part, source })?;
            let object = frame.slice_ref(event.object.get().as_bytes());
            Ok((event.r#type.into_owned(), object))
        }
        Encoding::Protobuf => {
            let event = ProtobufEvent::decode(frame.clone())
                .map_err(|source| WireError::Protobuf { part, source })?;
            let raw = event.object.and_then(|object| object.raw).unwrap_or_default();
            let object = envelope(part, &raw)?.raw.unwrap_or_default();
            Ok((event.r#type.unwrap_or_default(), object))
        }
    }
}

/// Takes off the envelope of a protobuf body, which is to be of the right kind.
fn open(part: Part, body: &Bytes) -> Result<Bytes, WireError> {
    let Unknown { type_meta, raw } = envelope(part, body)?;
    let raw = raw.unwrap_or_default();
    check_kind(part, Encoding::Protobuf, type_meta.unwrap_or_default().kind, &raw)?;
    Ok(raw)
}

/// The envelope behind the magic, around a protobuf body or the object of an event.
fn envelope(part: Part, body: &Bytes) -> Result<Unknown, WireError> {
    if !body.starts_with(MAGIC) {
        return Err(WireError::NoEnvelope { part });
    }
    Unknown::decode(body.slice(MAGIC.len()..))
        .map_err(|source| WireError::Protobuf { part, source })
}

/// Reads a bare message. JSON paths are traced only once reading has failed, for they cost time.
fn read<M: Message + Default + DeserializeOwned>(
    encoding: Encoding,
    bytes: &Bytes,
) -> Result<M, Unreadable> {
    match encoding {
        Encoding::Protobuf => M::decode(bytes.clone())
            .map_err(|error| Unreadable { field: ".".to_owned(), reason: error.to_string() }),
        Encoding::Json => serde_json::from_slice(bytes).or_else(|_| {
            let mut json = serde_json::Deserializer::from_slice(bytes);
            serde_path_to_error::deserialize(&mut json).map_err(|error| Unreadable {
                field: error.path().to_string(),
                reason: error.inner().to_string(),
            })
        }),
    }
}

// Cuts the body of a watch into frames, one per event, as its chunks arrive.
//
// JSON: one event per line. Protobuf: a 4-byte big-endian length before each event. Knows nothing
// of what a frame contains, nor where chunks come from.

/// The longest frame that is accepted by default, in bytes: well above etcd's 1.5 MiB per object,
/// which can grow when it is printed as JSON.
pub const MAX_FRAME: usize = 16 << 20;

/// Bytes of a protobuf frame's length.
const LENGTH: usize = 4;

/// Splits one stream. Holds at most one incomplete frame and the chunks not yet taken.
#[derive(Debug)]
pub struct Frames {
    encoding: Encoding,
    limit: usize,
    buffer: BytesMut,
    /// Bytes at the buffer's start that hold no newline; not searched again.
    searched: usize,
}

impl Frames {
    /// A splitter for a stream that has just begun. `limit`: the longest frame, in bytes.
    pub fn new(encoding: Encoding, limit: usize) -> Frames {
        Frames { encoding, limit, buffer: BytesMut::new(), searched: 0 }
    }

    /// Adds the next chunk of the body. Take all frames before adding another one.
    pub fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// The next complete frame; `None` until more chunks arrive. Empty lines are passed over.
    ///
    /// Errors: [`WireError::FrameTooLong`]; the stream is of no use after it.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, WireError> {
        match self.encoding {
            Encoding::Json => self.next_line(),
            Encoding::Protobuf => self.next_delimited(),
        }
    }

    /// Whether nothing is left over: false at the end of a body means that it was cut off.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    fn next_line(&mut self) -> Result<Option<Bytes>, WireError> {
        loop {
            let rest = &self.buffer[self.searched..];
            let Some(found) = rest.iter().position(|&byte| byte == b'\n') else {
                self.searched = self.buffer.len();
                self.check(self.searched)?;
                return Ok(None);
            };
            let length = self.searched + found;
            self.check(length)?;
            let line = self.buffer.split_to(length + 1).freeze().slice(..length);
            self.searched = 0;
            if !line.trim_ascii().is_empty() {
                return Ok(Some(line));
            }
        }
    }

    fn next_delimited(&mut self) -> Result<Option<Bytes>, WireError> {
        let Some(prefix) = self.buffer.first_chunk::<LENGTH>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*prefix) as usize;
        self.check(length)?;
        if self.buffer.len() - LENGTH < length {
            return Ok(None);
        }
        self.buffer.advance(LENGTH);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }

    fn check(&self, length: usize) -> Result<(), WireError> {
        if length > self.limit {
            return Err(WireError::FrameTooLong { length, limit: self.limit });
        }
        Ok(())
    }
}
