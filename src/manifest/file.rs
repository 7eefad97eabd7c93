//! One file: documents, lists, objects.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::model::{Kind, Object, ObjectName, Skip};
use crate::wire::Decoder;

/// Something in a file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestError {
    /// The file.
    pub file: PathBuf,
    /// Which document of it, from 1; 0 for the file as a whole.
    pub document: usize,
    /// `Service default/web`, as far as it can be read.
    pub object: Option<String>,
    /// Path of the field, as a user would write it.
    pub field: Option<String>,
    /// What is wrong.
    pub reason: String,
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.document > 0 {
            write!(f, ": document {}", self.document)?;
        }
        for part in [&self.object, &self.field].into_iter().flatten() {
            write!(f, ": {part}")?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// What a file contains.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FileContent {
    /// Usable objects, in the file's order.
    pub objects: Vec<Object>,
    /// Parts of objects that are not used; the rest of each object is.
    pub skips: Vec<Skip>,
    /// Documents and objects that cannot be read at all.
    pub errors: Vec<ManifestError>,
}

/// Reads the text of a file: YAML with any number of documents, or JSON, which is YAML too.
pub fn parse(file: &Path, text: &str, decoder: &mut Decoder) -> FileContent {
    let mut content = FileContent::default();
    let documents: Vec<Value> = match serde_saphyr::from_multiple(text) {
        Ok(documents) => documents,
        Err(error) => {
            content.errors.push(ManifestError {
                file: file.to_owned(),
                document: 0,
                object: None,
                field: None,
                reason: error.to_string(),
            });
            return content;
        }
    };
    for (index, document) in documents.iter().enumerate() {
        let mut reader = Reader { file, document: index + 1, decoder, content: &mut content };
        reader.value(document);
    }
    content
}

struct Reader<'a> {
    file: &'a Path,
    document: usize,
    decoder: &'a mut Decoder,
    content: &'a mut FileContent,
}

/// What every object has.
#[derive(Deserialize)]
struct Head {
    kind: String,
}

impl Reader<'_> {
    fn value(&mut self, value: &Value) {
        if value.is_null() {
            return;
        }
        let head = match Head::deserialize(value) {
            Ok(head) => head,
            Err(error) => return self.error(value, None, format!("no Kubernetes object: {error}")),
        };
        if let Some(items) = value.get("items").and_then(Value::as_array)
            && head.kind.ends_with("List")
        {
            items.iter().for_each(|item| self.value(item));
            return;
        }
        if let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.to_string() == head.kind) {
            self.object(kind, value);
        }
    }

    fn object(&mut self, kind: Kind, value: &Value) {
        let mut value = std::borrow::Cow::Borrowed(value);
        let namespaced = matches!(kind, Kind::Service | Kind::EndpointSlice);
        if namespaced && value.pointer("/metadata/namespace").is_none() {
            // As kubectl applies it.
            if let Some(metadata) =
                value.to_mut().get_mut("metadata").and_then(Value::as_object_mut)
            {
                metadata.insert("namespace".to_owned(), "default".into());
            }
        }
        match self.decoder.document(kind, &value) {
            Err(unreadable) => self.error(&value, Some(unreadable.field), unreadable.reason),
            Ok(decoded) => {
                self.content.objects.extend(decoded.object);
                self.content.skips.extend(decoded.skips);
            }
        }
    }

    fn error(&mut self, value: &Value, field: Option<String>, reason: String) {
        self.content.errors.push(ManifestError {
            file: self.file.to_owned(),
            document: self.document,
            object: describe(value),
            field: field.filter(|field| field != "."),
            reason,
        });
    }
}

/// `Service default/web`, as far as it can be read.
fn describe(value: &Value) -> Option<String> {
    let kind = value.get("kind")?.as_str()?;
    let text = |field: &str| value.pointer(field).and_then(Value::as_str).unwrap_or_default();
    let name = ObjectName::new(text("/metadata/namespace"), text("/metadata/name"));
    Some(format!("{kind} {name}"))
}
