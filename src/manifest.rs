//! Objects from manifests: files and directories, read once or followed.
//!
//! Place in the flow: stands where [`crate::api`] stands otherwise. [`load`] reads once, for
//! `kubeweir render`; [`Directory`] is read, followed, and delivers changes to a
//! [`crate::source::Sink`]. Decoding is [`crate::wire`]'s. Knows nothing of what objects are for.
//!
//! What is read: `*.yaml`, `*.yml` and `*.json` directly in the directory, symbolic links followed,
//! hidden files (a leading dot) and subdirectories not. A file holds any number of documents; a
//! document is an object or a List (`List`, `ServiceList` ..., as `kubectl get -o yaml` prints them).
//! Kinds that Kubeweir does not use are passed over, and so are objects that the API server's
//! selectors would keep back (B-069, B-070). A missing namespace is `default`.
//!
//! What is wrong is reported, and everything else is served ([`ManifestError`]):
//!
//! - A field that cannot be used is left out, its object is served without it.
//! - A file that does not parse, or with an object that cannot be used at all, is malformed. Its
//!   last good version stays in force as a whole; without one its good objects are served.
//! - Of objects with the same name, the one in the first file by name is served.
//!
//! A directory that is missing, cannot be read, or is replaced by an empty one deletes nothing.

mod file;
mod reader;
mod watch;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::model::{Kind, Object, ObjectName, Skip};
use crate::wire::{Decoder, Unreadable};
use file::Files;

pub use reader::list;
pub use watch::{Directory, WatchError, Watching, start};

/// Something to read manifests from.
#[derive(Debug, Clone)]
pub enum Input {
    /// A file of any name, or a directory.
    Path(PathBuf),
    /// Text that comes from elsewhere, such as standard input.
    Text {
        /// What reports call it.
        name: String,
        /// YAML or JSON.
        text: String,
    },
}

/// Reads a file or a directory once. See [`load_all`].
pub fn load(path: &Path, allow_external_ips: bool) -> (Vec<Object>, Vec<ManifestError>) {
    load_all(&[Input::Path(path.to_owned())], allow_external_ips)
}

/// Reads all inputs once; of objects with the same name the first input's is used.
///
/// `allow_external_ips`: feature gate AllowServiceExternalIPs. Shape of the result: objects sorted
/// by kind and name, without duplicates; what could not be read or used is among the errors.
pub fn load_all(inputs: &[Input], allow_external_ips: bool) -> (Vec<Object>, Vec<ManifestError>) {
    let mut decoder = Decoder::new(allow_external_ips);
    let mut files = Files::default();
    let mut errors = Vec::new();
    for (order, input) in inputs.iter().enumerate() {
        let mut add = |path: &Path, text: &str| {
            files.put((order, path.into()), file::parse(path, text, &mut decoder))
        };
        match input {
            Input::Text { name, text } => errors.extend(add(Path::new(name), text)),
            Input::Path(path) => {
                for file in files_of(path, &mut errors) {
                    match fs::read_to_string(&file) {
                        Ok(text) => errors.extend(add(&file, &text)),
                        Err(source) => errors.push(ManifestError::Read { path: file, source }),
                    }
                }
            }
        }
    }
    errors.extend(files.duplicates());
    (files.objects().cloned().collect(), errors)
}

/// The file itself, or the manifests of a directory.
fn files_of(path: &Path, errors: &mut Vec<ManifestError>) -> Vec<PathBuf> {
    if !path.is_dir() {
        return vec![path.to_owned()];
    }
    list(path).unwrap_or_else(|source| {
        errors.push(ManifestError::Read { path: path.to_owned(), source });
        Vec::new()
    })
}

/// Something in a manifest that is not served, and why. Everything else is.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("reading {}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{}, document {document}", file.display())]
    Document {
        file: PathBuf,
        /// Counted from 1.
        document: usize,
        /// Where and why.
        #[source]
        source: DocumentError,
    },
    #[error("{}, document {document}, {object}", file.display())]
    Object {
        file: PathBuf,
        /// Counted from 1.
        document: usize,
        /// Kind, namespace and name as far as they are readable.
        object: String,
        /// The field and why.
        #[source]
        source: Unreadable,
    },
    #[error("{}, document {document}, {skip}", file.display())]
    Skipped {
        file: PathBuf,
        /// Counted from 1.
        document: usize,
        /// Object, field and reason.
        skip: Skip,
    },
    /// An object is there more than once; this one is not served.
    #[error("{}, document {document}, {kind} {object}: already in {}", file.display(), first.display())]
    Duplicate {
        file: PathBuf,
        /// Counted from 1.
        document: usize,
        kind: Kind,
        object: ObjectName,
        /// The file whose object is served.
        first: PathBuf,
    },
    /// The directory is not the one that was read, and has no manifests or is still being filled.
    #[error("{}: another directory is in its place, empty or being filled", directory.display())]
    Held { directory: PathBuf },
    /// A file has become malformed; the errors before this one say how.
    #[error("{}: malformed, its last good version stays in force", file.display())]
    Kept { file: PathBuf },
}

/// Why a document is no object.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    #[error("{0}")]
    Yaml(Box<serde_saphyr::Error>),
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// A field that every object has is missing or of the wrong type.
    #[error("{0}: missing, or of the wrong type")]
    Field(&'static str),
}

// Texts in, objects and reports out.

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::file::{Files, Version, parse};
    use super::{Input, ManifestError, load_all};
    use crate::model::{Change, Object};
    use crate::wire::Decoder;

    const WEB: &str =
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.0.0.1}\n";

    fn read(file: &str, text: &str) -> Version {
        parse(Path::new(file), text, &mut Decoder::new(true))
    }

    fn names(version: &Version) -> Vec<String> {
        let objects = version.objects.iter();
        objects
            .map(|(document, object)| format!("{document}: {} {}", object.kind(), object.name()))
            .collect()
    }

    /// An error with its cause, as it is logged.
    fn told(error: &ManifestError) -> String {
        match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        }
    }

    #[test]
    fn shapes_of_files() {
        let node = r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}}"#;
        let cases = [
        ("one object", "a.yaml", WEB.to_owned(), vec!["1: Service default/web"]),
        ("documents", "a.yaml", format!("---\n{WEB}---\n---\n# nothing\n---\n{node}\n"), vec!["1: Service default/web", "2: Node n"]),
        ("JSON in YAML", "a.yml", node.to_owned(), vec!["1: Node n"]),
        ("JSON", "a.json", format!("{node}\n{}", node.replace("\"n\"", "\"m\"")), vec!["1: Node n", "2: Node m"]),
        ("List", "a.json", format!(r#"{{"apiVersion": "v1", "kind": "List", "items": [{node}]}}"#), vec!["1: Node n"]),
        (
            "typed list, items without kind",
            "a.yaml",
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSliceList\nitems:\n- addressType: IPv4\n  \
             metadata: {name: s, namespace: x, labels: {kubernetes.io/service-name: web}}\n".to_owned(),
            vec!["1: EndpointSlice x/s"],
        ),
        ("empty", "a.yaml", String::new(), vec![]),
        ("empty list", "a.yaml", "apiVersion: v1\nkind: List\nitems: []".to_owned(), vec![]),
        ("other kinds", "a.yaml", "apiVersion: apps/v1\nkind: Deployment\nspec: [1]".to_owned(), vec![]),
        ("other list", "a.yaml", "apiVersion: v1\nkind: PodList\nitems: [{a: b}]".to_owned(), vec![]),
        ("other group's Service", "a.yaml", WEB.replace("v1", "serving.knative.dev/v1"), vec![]),
    ];
        for (case, file, text, expected) in cases {
            let version = read(file, &text);
            assert_eq!(names(&version), expected, "{case}");
            assert!(version.errors.is_empty(), "{case}: {:?}", version.errors);
            assert!(!version.is_malformed, "{case}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_file_document_object_and_field() {
        let bad_port = WEB.replace("clusterIP: 10.0.0.1", "ports: [{port: http}]");
        let cases = [
            ("syntax", "kind: [", "a.yaml, document 2: "),
            ("no object", "just text", "a.yaml, document 2: kind: missing, or of the wrong type"),
            (
                "no kind",
                "apiVersion: v1",
                "a.yaml, document 2: kind: missing, or of the wrong type",
            ),
            (
                "no version",
                "kind: Service",
                "a.yaml, document 2: apiVersion: missing, or of the wrong type",
            ),
            (
                "no items",
                "apiVersion: v1\nkind: List\nitems: 1",
                "a.yaml, document 2: items: missing, or of the wrong type",
            ),
            (
                "type",
                &bad_port,
                "a.yaml, document 2, Service default/web: spec.ports[0].port: invalid type: string \"http\"",
            ),
            (
                "name",
                "apiVersion: v1\nkind: Service\nmetadata: {name: We b}",
                "a.yaml, document 2, Service default/We b: metadata.name: \"We b\" is no valid name",
            ),
            (
                "nameless",
                "apiVersion: v1\nkind: Node\nmetadata: 1",
                "a.yaml, document 2, Node without a readable name: metadata: ",
            ),
            ("duplicate key", "kind: a\nkind: b", "a.yaml, document 2: "),
        ];
        for (case, text, expected) in cases {
            let version = read("a.yaml", &format!("{}---\n{text}\n", WEB.replace("web", "first")));
            assert_eq!(names(&version), ["1: Service default/first"], "{case}");
            assert!(version.is_malformed, "{case}");
            let told: Vec<String> = version.errors.iter().map(told).collect();
            let [told] = &told[..] else { panic!("{case}: {told:?}") };
            assert!(told.starts_with(expected), "{case}: {told}");
            assert_eq!(told.lines().count(), 1, "{case}: {told}");
        }
    }

    #[test]
    fn a_field_that_is_left_out_does_not_make_a_file_malformed() {
        let version = read("a.yaml", &WEB.replace("clusterIP: 10.0.0.1", "externalIPs: [x]"));
        assert_eq!(names(&version), ["1: Service default/web"]);
        let expected =
            "a.yaml, document 1, Service default/web: spec.externalIPs[0]: \"x\" is no IP address";
        assert_eq!(version.errors.iter().map(told).collect::<Vec<_>>(), [expected]);
        assert!(!version.is_malformed);
    }

    #[test]
    fn depth_is_limited() {
        let version = read("a.yaml", &"[".repeat(100_000));
        assert!(version.is_malformed);
        let version = read("a.json", &"[".repeat(100_000));
        assert!(version.is_malformed);
    }

    #[test]
    fn the_first_input_has_the_object() {
        let text = |name: &str, ip: &str| Input::Text {
            name: name.to_owned(),
            text: WEB.replace("10.0.0.1", ip),
        };
        let (objects, errors) = load_all(&[text("z", "10.0.0.1"), text("a", "10.0.0.2")], true);
        let [Object::Service(service)] = &objects[..] else { panic!("{objects:?}") };
        assert_eq!(service.cluster_ips[0].to_string(), "10.0.0.1");
        let told: Vec<String> = errors.iter().map(told).collect();
        assert_eq!(told, ["a, document 1, Service default/web: already in z"]);
    }

    #[test]
    fn differences() {
        let mut files = Files::default();
        let mut put = |file: &str, objects: &[(&str, &str)]| {
            let texts =
                objects.iter().map(|(name, ip)| WEB.replace("web", name).replace("10.0.0.1", ip));
            let text = texts.collect::<Vec<_>>().join("---\n");
            files.put((0, Path::new(file).into()), read(file, &text));
            words(&files.changes())
        };
        let before = [("same", "10.0.0.1"), ("changed", "10.0.0.2"), ("gone", "10.0.0.3")];
        assert_eq!(put("a.yaml", &before).len(), 3);
        let after = [("same", "10.0.0.1"), ("changed", "10.0.0.9"), ("new", "10.0.0.4")];
        let expected =
            ["delete Service default/gone", "apply default/changed", "apply default/new"];
        assert_eq!(put("a.yaml", &after), expected);
        assert!(put("a.yaml", &after).is_empty());
        // Of another file, what the first one claims is not served until that one gives it up.
        assert_eq!(
            put("b.yaml", &[("new", "10.0.0.5"), ("own", "10.0.0.6")]),
            ["apply default/own"]
        );
        assert_eq!(put("a.yaml", &after[..2]), ["apply default/new"]);
    }

    fn words(changes: &[Change]) -> Vec<String> {
        let word = |change: &Change| match change {
            Change::Apply(object) => format!("apply {}", object.name()),
            Change::Delete(kind, name) => format!("delete {kind} {name}"),
            Change::Replace(..) => panic!("no Replace among differences"),
        };
        changes.iter().map(word).collect()
    }
}
