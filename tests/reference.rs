//! The reference pages under charts/reference: written from the code, and held against it.
//!
//! Each message to an operator has its explanation in reference/messages.yaml.
//!
//! UPDATE_GOLDEN=1 cargo test --test reference

#![allow(clippy::unwrap_used)] // a test binary, helpers included

#[path = "reference/fields.rs"]
mod fields;
#[path = "chart/golden.rs"]
mod golden;
#[path = "reference/messages.rs"]
mod messages;

use std::fmt::Write;

use kubeweir::cli::proxy;
use kubeweir::config::FeatureGates;
use kubeweir::metrics::{self, MetricDoc, Mode};

const WRITTEN: &str =
    "<!-- Written by tests/reference.rs: UPDATE_GOLDEN=1 cargo test --test reference -->\n";

#[test]
fn the_configuration_page_is_current() {
    let mut page = format!("{WRITTEN}# Configuration\n\n");
    page += "The agent is configured as kube-proxy: by a file (`--config`) or by flags. With a file, flags\n\
             are ignored except `--master`, `--hostname-override`, the logging flags, the actions\n\
             (`--cleanup`, `--init-only`, `--write-config-to`, `--version`) and those of Kubeweir's own\n\
             (`--service-counters`, `--table-ownership`, `--drop-invalid`, `--end-connections-after`).\n\n";
    page += "## Fields of the file\n\n`apiVersion: kubeproxy.config.k8s.io/v1alpha1`, `kind: KubeProxyConfiguration`. \
             A default is what an absent field, or\none with its zero value, becomes.\n\n";
    page += "| field | default | meaning |\n| --- | --- | --- |\n";
    for field in fields::of_the_file() {
        writeln!(page, "| `{}` | {} | {} |", field.path, code(&field.default), cell(&field.doc))
            .unwrap();
    }
    page += "\nDefaults that depend on others: in mode `nftables` an empty `nodePortAddresses` becomes\n\
             `[primary]`; with an IPv6 `bindAddress` the servers' default addresses are IPv6; an empty `mode`\n\
             is `iptables`, whose behaviour is then had with nftables rules.\n";
    page += "\n## Flags\n\n| flag | default | meaning |\n| --- | --- | --- |\n";
    for flag in proxy::command().get_arguments() {
        let Some(name) = flag.get_long() else { continue };
        let defaults = flag.get_default_values().iter().map(|value| value.to_string_lossy());
        let default = defaults.collect::<Vec<_>>().join(",");
        let help = flag.get_help().map(ToString::to_string).unwrap_or_default();
        writeln!(page, "| `--{name}` | {} | {} |", code(&default), cell(&help)).unwrap();
    }
    page += "\n## Feature gates\n\nA name that is not here is reported and has no effect.\n\n\
             | gate | stage | default |\n| --- | --- | --- |\n";
    let mut gates: Vec<_> = FeatureGates::default().iter().collect();
    gates.sort_by_key(|(name, ..)| *name);
    for (name, stage, enabled) in gates {
        writeln!(page, "| `{name}` | {} | {enabled} |", stage_name(stage)).unwrap();
    }
    golden::check("charts/reference/configuration.md", &page);
}

fn stage_name(stage: kubeweir::config::feature_gates::Stage) -> &'static str {
    use kubeweir::config::feature_gates::Stage;
    match stage {
        Stage::Alpha => "alpha",
        Stage::Beta => "beta",
        Stage::Ga { locked: true } => "GA, locked",
        Stage::Ga { locked: false } => "GA",
        Stage::Deprecated => "deprecated",
    }
}

#[test]
fn the_metrics_page_is_current() {
    let mut page = format!("{WRITTEN}# Metrics\n\n");
    page += "`/metrics` and `/metrics/slis` on `metricsBindAddress`, as text or as protobuf. Names that start\n\
             with `kubeweir_` are this program's own; all others are upstream's, with upstream's labels and\n\
             buckets. A metric with labels appears with its first observation.\n";
    let (own, upstream): (Vec<_>, Vec<_>) =
        metrics::reference().into_iter().partition(|doc| doc.name.starts_with("kubeweir_"));
    for (title, docs) in [("Kubeweir's own", own), ("Upstream's", upstream)] {
        write!(page, "\n## {title}\n\n").unwrap();
        page += "| metric | type | labels | stability | modes | meaning |\n";
        page += "| --- | --- | --- | --- | --- | --- |\n";
        docs.iter().for_each(|doc| page += &metric_row(doc));
    }
    golden::check("charts/reference/metrics.md", &page);
}

#[test]
fn the_messages_page_has_every_message_and_is_current() {
    const EXPLAINED: &str = include_str!("reference/messages.yaml");
    let said = messages::of_the_source();
    let sections: Vec<messages::Section> = serde_saphyr::from_str(EXPLAINED).unwrap();
    let explained: Vec<_> = sections.iter().flat_map(|section| &section.messages).collect();
    let missing: Vec<_> =
        said.keys().filter(|key| explained.iter().all(|e| e.key() != **key)).collect();
    assert!(missing.is_empty(), "tests/reference/messages.yaml does not explain {missing:#?}");

    let mut page = format!("{WRITTEN}# Messages\n\n");
    page += "Every log line at warning or above, every Event and every problem of `kubeweir status`: what it means,\n\
             what it does to traffic, what to do. `…` stands for what is filled in; a log line's words in code are\n\
             the fields that follow it. Alerts have [a page of their own](../alerts.md).\n";
    for section in &sections {
        write!(page, "\n## {}\n\n", section.section).unwrap();
        page += "| message | level | meaning | traffic | what to do |\n";
        page += "| --- | --- | --- | --- | --- |\n";
        for explained in &section.messages {
            let key = explained.key();
            let levels = said.get(&key).unwrap_or_else(|| panic!("nobody says {key:?}"));
            let levels = levels.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            let cells = [&explained.means, &explained.traffic, &explained.what_to_do];
            assert!(cells.iter().all(|text| text.ends_with('.')), "no sentence: {explained:?}");
            let cells = cells.map(|text| cell(text)).join(" | ");
            writeln!(page, "| {} | {levels} | {cells} |", verbatim(&key.1)).unwrap();
        }
    }
    golden::check("charts/reference/messages.md", &page);
}

/// As code, also with code in it.
fn verbatim(text: &str) -> String {
    if text.contains('`') { format!("`` {} ``", cell(text)) } else { code(&cell(text)) }
}

fn metric_row(doc: &MetricDoc) -> String {
    let text = |value: serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let kind = text(serde_json::to_value(doc.kind).unwrap());
    let modes: Vec<String> =
        doc.modes.iter().map(|mode| text(serde_json::to_value(mode).unwrap())).collect();
    let modes =
        if doc.modes.len() == Mode::ALL.len() { "all".to_owned() } else { modes.join(", ") };
    let labels: Vec<String> = doc.labels.iter().map(|label| format!("`{label}`")).collect();
    format!(
        "| `{}` | {kind} | {} | {} | {modes} | {} |\n",
        doc.name,
        labels.join(", "),
        doc.stability.map_or("", |stability| stability.as_str()),
        cell(&doc.help),
    )
}

fn code(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("`{text}`") }
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
