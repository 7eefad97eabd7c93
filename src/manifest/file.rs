//! One file: text in, objects out. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};
use tracing::debug;

use super::{DocumentError, ManifestError};
use crate::model::{Change, Kind, Object, ObjectName, SkipLevel};
use crate::wire::Decoder;

/// Namespace of objects that name none.
const DEFAULT_NAMESPACE: &str = "default";

/// One version of a file.
#[derive(Debug, Default)]
pub(super) struct Version {
    /// The usable objects in the file's order, with the number of their document.
    pub objects: Vec<(usize, Object)>,
    /// What is not used.
    pub errors: Vec<ManifestError>,
    /// Whether an object is missing for what it looks like, or text could not be read at all.
    pub is_malformed: bool,
}

/// Reads all documents of a file. JSON by the name's ending `.json`, YAML otherwise, of which JSON is
/// a subset.
pub(super) fn parse(file: &Path, text: &str, decoder: &mut Decoder) -> Version {
    let mut reader = Reader { file, document: 0, version: Version::default(), decoder };
    if file.extension().is_some_and(|extension| extension == "json") {
        let documents = serde_json::Deserializer::from_str(text).into_iter();
        reader.documents(documents.map(|document| document.map_err(DocumentError::from)));
    } else {
        let mut bytes = text.as_bytes();
        let documents = serde_saphyr::read_with_options(&mut bytes, yaml_options());
        let yaml = |error| DocumentError::Yaml(Box::new(error));
        reader.documents(documents.map(|document| document.map_err(yaml)));
    }
    reader.version
}

/// A whole cluster may stand in one file, so only depth is limited. Errors are one line for the log.
fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_reader_input_bytes: None,
            max_events: usize::MAX,
            max_documents: usize::MAX,
            max_nodes: usize::MAX,
            max_total_scalar_bytes: usize::MAX,
            max_total_comment_bytes: usize::MAX,
        },
    }
}

struct Reader<'a> {
    file: &'a Path,
    /// The current document's number, counted from 1.
    document: usize,
    version: Version,
    decoder: &'a mut Decoder,
}

impl Reader<'_> {
    fn documents(&mut self, documents: impl Iterator<Item = Result<Value, DocumentError>>) {
        for document in documents {
            self.document += 1;
            match document {
                Ok(Value::Null) => {}
                Ok(value) => self.value(value, None),
                Err(source) => self.malformed(source),
            }
        }
    }

    fn malformed(&mut self, source: DocumentError) {
        let (file, document) = (self.file.to_owned(), self.document);
        self.version.errors.push(ManifestError::Document { file, document, source });
        self.version.is_malformed = true;
    }

    /// An object or a List. Items of a typed list need not repeat its kind: `list` has it then.
    fn value(&mut self, value: Value, list: Option<Kind>) {
        let Value::Object(mut object) = value else {
            return self.malformed(DocumentError::Field("kind"));
        };
        let (kind, api_version) = (text(&object, "kind"), text(&object, "apiVersion"));
        match (kind, api_version, list) {
            (None, None, Some(kind)) => self.object(kind, object),
            (None, ..) => self.malformed(DocumentError::Field("kind")),
            (_, None, _) => self.malformed(DocumentError::Field("apiVersion")),
            (Some(kind), Some(api_version), _) => {
                let item_kind = kind.strip_suffix("List");
                if let Some(used) = used_kind(kind, api_version) {
                    self.object(used, object);
                } else if let (Some(item_kind), Some(items)) = (item_kind, object.get("items")) {
                    let used = used_kind(item_kind, api_version);
                    if item_kind.is_empty() || used.is_some() {
                        let items = items.is_array().then(|| object.remove("items")).flatten();
                        self.items(items, used);
                    }
                } else {
                    debug!(file = %self.file.display(), kind, api_version, "Passed over");
                }
            }
        }
    }

    fn items(&mut self, items: Option<Value>, kind: Option<Kind>) {
        let Some(Value::Array(items)) = items else {
            return self.malformed(DocumentError::Field("items"));
        };
        for item in items {
            self.value(item, kind);
        }
    }

    fn object(&mut self, kind: Kind, mut object: Map<String, Value>) {
        if matches!(kind, Kind::Service | Kind::EndpointSlice) {
            fill_namespace(&mut object);
        }
        let value = Value::Object(object);
        match self.decoder.document(kind, &value) {
            Ok(decoded) => {
                let is_wrong = decoded.skips.iter().any(|skip| skip.level == SkipLevel::Error);
                self.version.is_malformed |= decoded.object.is_none() && is_wrong;
                for skip in decoded.skips {
                    let (file, document) = (self.file.to_owned(), self.document);
                    self.version.errors.push(ManifestError::Skipped { file, document, skip });
                }
                self.version.objects.extend(decoded.object.map(|object| (self.document, object)));
            }
            Err(source) => {
                self.version.is_malformed = true;
                self.version.errors.push(ManifestError::Object {
                    file: self.file.to_owned(),
                    document: self.document,
                    object: describe(kind, &value),
                    source,
                });
            }
        }
    }
}

fn text<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    object.get(key).and_then(Value::as_str)
}

/// The kind, if it is one that Kubeweir uses: other groups have Services, too.
fn used_kind(kind: &str, api_version: &str) -> Option<Kind> {
    match (api_version, kind) {
        ("v1", "Service") => Some(Kind::Service),
        ("v1", "Node") => Some(Kind::Node),
        ("discovery.k8s.io/v1", "EndpointSlice") => Some(Kind::EndpointSlice),
        ("networking.k8s.io/v1", "ServiceCIDR") => Some(Kind::ServiceCidr),
        _ => None,
    }
}

fn fill_namespace(object: &mut Map<String, Value>) {
    if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
        let namespace = metadata.entry("namespace").or_insert(Value::Null);
        if namespace.is_null() || *namespace == "" {
            *namespace = DEFAULT_NAMESPACE.into();
        }
    }
}

/// Kind, namespace and name of an object that could not be decoded.
fn describe(kind: Kind, object: &Value) -> String {
    let of = |key: &str| object["metadata"][key].as_str();
    match (of("namespace"), of("name")) {
        (_, None) => format!("{kind} without a readable name"),
        (Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
        (None, Some(name)) => format!("{kind} {name}"),
    }
}

// The objects of files, and which of them are in force. Pure.

type Key = (Kind, ObjectName);

/// Where a file stands among others: the input it belongs to, and its path.
pub(super) type Place = (usize, Arc<Path>);

/// Where an object stands: its file, and its number there.
type Position = (Place, usize);

/// Files in the order in which they claim objects.
#[derive(Debug, Default)]
pub(super) struct Files {
    files: BTreeMap<Place, File>,
    /// Of the claims of one object, the first is in force.
    claims: BTreeMap<Key, BTreeMap<Position, Claim>>,
    /// What was in force of the objects whose claims changed.
    before: BTreeMap<Key, Option<Object>>,
}

#[derive(Debug)]
struct Claim {
    document: usize,
    object: Object,
}

#[derive(Debug)]
struct File {
    keys: Vec<Key>,
    /// Whether this is a version without fault.
    is_good: bool,
}

impl Files {
    /// Takes a new version of a file, unless it is malformed and there is a good one. Returns what is
    /// to be reported.
    pub fn put(&mut self, place: Place, version: Version) -> Vec<ManifestError> {
        let Version { objects, mut errors, is_malformed } = version;
        if is_malformed && self.files.get(&place).is_some_and(|current| current.is_good) {
            errors.push(ManifestError::Kept { file: place.1.to_path_buf() });
            return errors;
        }
        self.remove(&place);
        let mut keys = Vec::with_capacity(objects.len());
        for (number, (document, object)) in objects.into_iter().enumerate() {
            let key = (object.kind(), object.name().clone());
            self.note(&key);
            let claims = self.claims.entry(key.clone()).or_default();
            claims.insert((place.clone(), number), Claim { document, object });
            keys.push(key);
        }
        self.files.insert(place, File { keys, is_good: !is_malformed });
        errors
    }

    /// Forgets all files but these.
    pub fn retain(&mut self, existing: &BTreeSet<PathBuf>) {
        let gone = self.files.keys().filter(|(_, path)| !existing.contains(&**path));
        let gone: Vec<Place> = gone.cloned().collect();
        gone.iter().for_each(|place| self.remove(place));
    }

    fn remove(&mut self, place: &Place) {
        let Some(file) = self.files.remove(place) else { return };
        for (number, key) in file.keys.into_iter().enumerate() {
            self.note(&key);
            if let Some(claims) = self.claims.get_mut(&key) {
                claims.remove(&(place.clone(), number));
                if claims.is_empty() {
                    self.claims.remove(&key);
                }
            }
        }
    }

    fn note(&mut self, key: &Key) {
        if !self.before.contains_key(key) {
            self.before.insert(key.clone(), self.in_force(key).cloned());
        }
    }

    fn in_force(&self, key: &Key) -> Option<&Object> {
        Some(&self.claims.get(key)?.first_key_value()?.1.object)
    }

    /// The changes since the last call: deletions first, Services last, so that none is ever there
    /// without the endpoints that came with it.
    pub fn changes(&mut self) -> Vec<Change> {
        let (mut gone, mut new) = (Vec::new(), Vec::new());
        for (key, before) in std::mem::take(&mut self.before) {
            match self.in_force(&key) {
                now if now == before.as_ref() => {}
                Some(object) => new.push(Change::Apply(object.clone())),
                None => gone.push(Change::Delete(key.0, key.1)),
            }
        }
        new.sort_by_key(|change| matches!(change, Change::Apply(Object::Service(_))));
        gone.append(&mut new);
        gone
    }

    /// The complete state, kind by kind in the order of a cold start. Counts as all changes so far.
    pub fn complete(&mut self) -> Vec<Change> {
        self.before.clear();
        let of_kind =
            |kind| self.objects().filter(|object| object.kind() == kind).cloned().collect();
        Kind::ALL.map(|kind| Change::Replace(kind, of_kind(kind))).into()
    }

    /// What all files say together, by kind and name.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.claims.values().filter_map(|claims| Some(&claims.first_key_value()?.1.object))
    }

    /// The objects that lose against an earlier one.
    pub fn duplicates(&self) -> Vec<ManifestError> {
        let mut duplicates = Vec::new();
        for ((kind, object), claims) in &self.claims {
            let Some((((_, first), _), _)) = claims.first_key_value() else { continue };
            for (((_, file), _), claim) in claims.iter().skip(1) {
                duplicates.push(ManifestError::Duplicate {
                    file: file.to_path_buf(),
                    document: claim.document,
                    kind: *kind,
                    object: object.clone(),
                    first: first.to_path_buf(),
                });
            }
        }
        duplicates
    }
}
