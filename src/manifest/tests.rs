//! Texts in, objects and reports out.

use std::path::Path;

use super::file::{Version, parse};
use super::files::Files;
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
        ("no kind", "apiVersion: v1", "a.yaml, document 2: kind: missing, or of the wrong type"),
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
    let expected = ["delete Service default/gone", "apply default/changed", "apply default/new"];
    assert_eq!(put("a.yaml", &after), expected);
    assert!(put("a.yaml", &after).is_empty());
    // Of another file, what the first one claims is not served until that one gives it up.
    assert_eq!(put("b.yaml", &[("new", "10.0.0.5"), ("own", "10.0.0.6")]), ["apply default/own"]);
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
