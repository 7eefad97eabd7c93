//! The scripted server's objects, their history and the selectors of requests.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::model::Kind;

/// One change of one object.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) version: u64,
    pub(super) kind: Kind,
    /// The object before, with `version` as its resourceVersion as deletions carry it.
    before: Option<Value>,
    after: Option<Value>,
}

/// Objects by kind, namespace and name, and every change since the start.
#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) version: u64,
    objects: BTreeMap<(Kind, String, String), Value>,
    log: Vec<Entry>,
    /// Watches from before this version are refused with 410.
    pub(super) oldest: u64,
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The kind of an object by its `kind` field.
pub(super) fn kind_of(object: &Value) -> Option<Kind> {
    Kind::ALL.into_iter().find(|kind| kind.to_string() == text(object, "/kind"))
}

fn stamp(object: &mut Value, version: u64) {
    object["metadata"]["resourceVersion"] = json!(version.to_string());
}

impl Store {
    pub(super) fn put(&mut self, kind: Kind, mut object: Value) {
        self.version += 1;
        stamp(&mut object, self.version);
        let metadata = &mut object["metadata"];
        if metadata["creationTimestamp"].is_null() {
            metadata["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        let key = (
            kind,
            text(&object, "/metadata/namespace").to_owned(),
            text(&object, "/metadata/name").to_owned(),
        );
        let before = self.objects.insert(key, object.clone());
        self.append(kind, before, Some(object));
    }

    /// Returns whether the object existed.
    pub(super) fn delete(&mut self, kind: Kind, namespace: &str, name: &str) -> bool {
        let Some(before) = self.objects.remove(&(kind, namespace.to_owned(), name.to_owned()))
        else {
            return false;
        };
        self.version += 1;
        self.append(kind, Some(before), None);
        true
    }

    fn append(&mut self, kind: Kind, mut before: Option<Value>, after: Option<Value>) {
        if let Some(before) = &mut before {
            stamp(before, self.version);
        }
        self.log.push(Entry { version: self.version, kind, before, after });
    }

    pub(super) fn drop_history(&mut self) {
        self.log.clear();
    }

    pub(super) fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<Value> {
        self.objects.get(&(kind, namespace.to_owned(), name.to_owned())).cloned()
    }

    pub(super) fn list(&self, kind: Kind, selector: &Selector) -> Vec<Value> {
        let of_kind = self.objects.iter().filter(|((k, ..), _)| *k == kind);
        of_kind
            .map(|(_, object)| object)
            .filter(|object| selector.matches(object))
            .cloned()
            .collect()
    }

    /// The first entry of a kind after a version.
    pub(super) fn after(&self, version: u64, kind: Kind) -> Option<&Entry> {
        let start = self.log.partition_point(|entry| entry.version <= version);
        self.log[start..].iter().find(|entry| entry.kind == kind)
    }
}

impl Entry {
    /// The event that a watch with this selector sees: an object that leaves the selector is
    /// DELETED, one that enters it ADDED.
    pub(super) fn event(&self, selector: &Selector) -> Option<(&'static str, &Value)> {
        let seen = |object: &Option<Value>| object.as_ref().is_some_and(|o| selector.matches(o));
        match (seen(&self.before), seen(&self.after)) {
            (false, true) => Some(("ADDED", self.after.as_ref()?)),
            (true, true) => Some(("MODIFIED", self.after.as_ref()?)),
            (true, false) => Some(("DELETED", self.before.as_ref()?)),
            (false, false) => None,
        }
    }
}

/// The selectors of a request, as far as they are used.
#[derive(Debug, Clone, Default)]
pub(super) struct Selector {
    /// Labels that must be absent.
    absent: Vec<String>,
    /// Labels that must have a value.
    labels: Vec<(String, String)>,
    /// Field path, wanted value, and whether it must be equal.
    fields: Vec<(String, String, bool)>,
}

impl Selector {
    /// Reads both selector parameters. `Err` names what is not supported.
    pub(super) fn parse(labels: Option<&str>, fields: Option<&str>) -> Result<Selector, String> {
        let mut selector = Selector::default();
        for term in labels.unwrap_or_default().split(',').filter(|term| !term.is_empty()) {
            match (term.strip_prefix('!'), term.split_once('=')) {
                (Some(label), _) => selector.absent.push(label.to_owned()),
                (None, Some((label, value))) => {
                    selector.labels.push((label.to_owned(), value.to_owned()));
                }
                (None, None) => return Err(term.to_owned()),
            }
        }
        for term in fields.unwrap_or_default().split(',').filter(|term| !term.is_empty()) {
            let (path, value) = term.split_once('=').ok_or_else(|| term.to_owned())?;
            let (path, equal) = match path.strip_suffix('!') {
                Some(path) => (path, false),
                None => (path, true),
            };
            let path = format!("/{}", path.replace('.', "/"));
            selector.fields.push((path, value.to_owned(), equal));
        }
        Ok(selector)
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        self.absent.iter().all(|label| labels.get(label).is_none())
            && self.labels.iter().all(|(label, value)| labels[label] == **value)
            && self
                .fields
                .iter()
                .all(|(path, value, equal)| (text(object, path) == value) == *equal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_become_events_of_the_selector() {
        let selector = Selector::parse(Some("!hidden"), Some("spec.clusterIP!=None")).unwrap();
        let service = |hidden: bool, ip: &str| {
            let labels = if hidden { json!({ "hidden": "" }) } else { json!({}) };
            json!({ "metadata": { "name": "a", "labels": labels }, "spec": { "clusterIP": ip } })
        };
        let mut store = Store::default();
        let mut events = Vec::new();
        for object in [
            service(true, "10.0.0.1"),
            service(false, "10.0.0.1"),
            service(false, "10.0.0.2"),
            service(true, "10.0.0.2"),
            service(false, "10.0.0.2"),
        ] {
            store.put(Kind::Service, object);
        }
        store.delete(Kind::Service, "", "a");
        let mut version = 0;
        while let Some(entry) = store.after(version, Kind::Service) {
            version = entry.version;
            if let Some((event, object)) = entry.event(&selector) {
                events.push((event, text(object, "/metadata/resourceVersion").to_owned()));
            }
        }
        let want =
            [("ADDED", "2"), ("MODIFIED", "3"), ("DELETED", "4"), ("ADDED", "5"), ("DELETED", "6")];
        assert_eq!(events, want.map(|(event, version)| (event, version.to_owned())));
        assert!(Selector::parse(Some("app in (web)"), None).is_err());
    }
}
