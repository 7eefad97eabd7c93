//! The Grafana dashboard and the alerts: every metric and label in an expression is exported.

use std::collections::BTreeMap;
use std::path::Path;

use kubeweir::metrics::{MetricDoc, MetricKind, reference};
use serde_json::Value;

const SUFFIXES: [&str; 3] = ["_bucket", "_sum", "_count"];

/// A file of charts; JSON is YAML, too.
fn chart(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("charts").join(name);
    serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

const DASHBOARD: &str = "dashboards/kubeweir.json";

/// Everything in the file that Prometheus is asked.
fn expressions(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match (name.as_str(), value) {
                    ("expr" | "query", Value::String(text)) => found.push(text.clone()),
                    _ => expressions(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| expressions(item, found)),
        _ => {}
    }
}

fn words(expression: &str) -> impl Iterator<Item = &str> {
    expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
}

fn metric<'a>(word: &str, known: &'a BTreeMap<String, MetricDoc>) -> Option<&'a MetricDoc> {
    let base = SUFFIXES.iter().find_map(|suffix| known.get(word.strip_suffix(suffix)?));
    match base {
        Some(base) => (base.kind == MetricKind::Histogram).then_some(base),
        None => known.get(word).filter(|doc| doc.kind != MetricKind::Histogram),
    }
}

/// Names after `by (` and `without (`.
fn labels(expression: &str) -> Vec<&str> {
    let lists = ["by (", "without ("].iter().flat_map(|word| expression.split(word).skip(1));
    let names = lists.flat_map(|rest| rest.split(')').next().unwrap_or_default().split(','));
    names.map(str::trim).collect()
}

#[test]
fn every_expression_names_exported_metrics() {
    let known: BTreeMap<String, MetricDoc> =
        reference().into_iter().map(|doc| (doc.name.clone(), doc)).collect();
    let mut all = Vec::new();
    for file in [DASHBOARD, "kubeweir/alerts.yaml"] {
        expressions(&chart(file), &mut all);
    }
    let mut seen = 0;
    // The type of a data source, and the one metric that Prometheus has of its own.
    for expression in all.iter().filter(|text| *text != "prometheus" && !text.starts_with("up{")) {
        let prefixes = ["kubeproxy_", "kubeweir_", "rest_client_", "process_"];
        let named = words(expression).filter(|word| prefixes.iter().any(|p| word.starts_with(p)));
        let docs: Vec<&MetricDoc> = named
            .map(|word| metric(word, &known).unwrap_or_else(|| panic!("{word} in {expression}")))
            .collect();
        assert!(!docs.is_empty(), "no metric in {expression}");
        // Prometheus adds instance, a histogram's buckets le.
        for label in labels(expression).iter().filter(|label| !["instance", "le"].contains(label)) {
            let has = docs.iter().any(|doc| doc.labels.iter().any(|known| known == label));
            assert!(has, "no metric of {expression} has label {label}");
        }
        seen += docs.len();
    }
    assert!(seen > 50, "only {seen} metrics were found: does the test still read expressions?");
}

#[test]
fn panels_do_not_overlap_and_say_what_they_show() {
    let dashboard = chart(DASHBOARD);
    let mut taken = std::collections::BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        let at = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(x < 24 && taken.insert((x, y)), "{title} overlaps at {x},{y}");
            }
        }
        let described = panel["description"].as_str().is_some_and(|text| text.ends_with('.'));
        assert!(panel["type"] == "row" || described, "{title}");
    }
}
