//! The fields of the configuration file: names and meanings from the types' source, defaults from
//! the program.

use std::collections::BTreeMap;

use kubeweir::cli::{self, Command};
use kubeweir::config::complete;
use serde_json::Value;

const SOURCE: &str = include_str!("../../src/config/v1alpha1.rs");
const ROOT: &str = "KubeProxyConfiguration";

/// A field that is no section.
pub struct Field {
    pub path: String,
    pub default: String,
    pub doc: String,
}

/// A field as it is declared.
struct Declared {
    name: String,
    of: String,
    doc: String,
}

/// Fields in order of declaration, sections in depth.
pub fn of_the_file() -> Vec<Field> {
    let structs = declared();
    let mut fields = Vec::new();
    walk(&structs, ROOT, "", &defaults(), &mut fields);
    // Both are fixed, and stand above the table.
    fields.retain(|field| field.path != "apiVersion" && field.path != "kind");
    fields
}

/// The object that an empty file becomes. Sync periods of the inactive modes are cleared in it, so
/// those come from a file of each mode.
fn defaults() -> Value {
    let mut all = completed("");
    for mode in ["ipvs", "nftables"] {
        all[mode] = completed(&format!("mode: {mode}"))[mode].clone();
    }
    all["kubeweir"] = serde_json::json!({"serviceCounters": false, "tableOwnership": true});
    all
}

fn completed(body: &str) -> Value {
    let parsed = match cli::parse(["kube-proxy", "--config=file"].map(str::to_owned)) {
        Ok(Command::Proxy(parsed)) => parsed,
        other => panic!("{other:?}"),
    };
    let file = format!("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: {ROOT}\n{body}\n");
    serde_json::to_value(complete(&parsed.flags, Some(&file)).unwrap().object).unwrap()
}

fn walk(
    structs: &BTreeMap<String, Vec<Declared>>,
    of: &str,
    prefix: &str,
    defaults: &Value,
    fields: &mut Vec<Field>,
) {
    for declared in &structs[of] {
        let path = format!("{prefix}{}", declared.name);
        let default = &defaults[&declared.name];
        if structs.contains_key(&declared.of) {
            walk(structs, &declared.of, &format!("{path}."), default, fields);
        } else {
            fields.push(Field { path, default: shown(default), doc: declared.doc.clone() });
        }
    }
}

fn shown(default: &Value) -> String {
    match default {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => String::new(),
        Value::Object(fields) if fields.is_empty() => String::new(),
        other => other.to_string(),
    }
}

/// Reads the declarations: a struct's public fields, the doc comment and the serde name before each.
fn declared() -> BTreeMap<String, Vec<Declared>> {
    let mut structs: BTreeMap<String, Vec<Declared>> = BTreeMap::new();
    let (mut current, mut doc, mut renamed) = (String::new(), Vec::new(), None);
    for line in SOURCE.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("/// ") {
            doc.push(text);
        } else if let Some(rest) = line.strip_prefix("pub struct ") {
            current = rest.trim_end_matches(" {").to_owned();
            doc.clear();
        } else if let Some((_, rest)) = line.split_once("rename = \"") {
            renamed = rest.split('"').next().map(str::to_owned);
        } else if let Some((name, of)) =
            line.strip_prefix("pub ").and_then(|rest| rest.trim_end_matches(',').split_once(": "))
        {
            let name = renamed.take().unwrap_or_else(|| camel_case(name));
            let field = Declared { name, of: of.to_owned(), doc: doc.join(" ") };
            structs.entry(current.clone()).or_default().push(field);
            doc.clear();
        } else if !line.starts_with("#[") {
            doc.clear();
        }
    }
    structs
}

/// As serde's `rename_all = "camelCase"`.
fn camel_case(name: &str) -> String {
    let mut words = name.split('_');
    let mut text = words.next().unwrap_or_default().to_owned();
    for word in words {
        let (first, rest) = word.split_at(1);
        text += &first.to_uppercase();
        text += rest;
    }
    text
}
