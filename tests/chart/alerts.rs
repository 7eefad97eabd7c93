//! The alerts: promtool's unit tests, each alert's page, and the PrometheusRule that the chart makes of them.

use std::process::Command;

use serde_json::Value;

use crate::ALL_ON;
use crate::helm::{CHART, program, render, render_set};

fn read(name: &str) -> String {
    std::fs::read_to_string(format!("{CHART}/{name}")).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn rules(file: &Value) -> Vec<Value> {
    let groups = file["groups"].as_array().unwrap();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

fn the_files_rules() -> Vec<Value> {
    rules(&serde_saphyr::from_str(&read("alerts.yaml")).unwrap())
}

fn promtool(args: &[&str]) {
    let program = program("promtool");
    let output = Command::new(&program)
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap_or_else(|e| panic!("{}: {e}; `make promtool` fetches it", program.display()));
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(output.status.success(), "promtool {args:?}: {}", said.concat());
}

#[test]
fn alerts_fire_for_what_stays_and_not_for_what_passes() {
    promtool(&["check", "rules", "charts/kubeweir/alerts.yaml"]);
    promtool(&["test", "rules", "tests/chart/alerts.yaml"]);
}

#[test]
fn every_alert_has_a_unit_test_and_a_page_that_says_what_to_do() {
    let tests = read("../../tests/chart/alerts.yaml");
    let page = read("../alerts.md");
    let sections: Vec<(&str, &str)> =
        page.split("\n## ").skip(1).map(|section| section.split_once('\n').unwrap()).collect();
    let rules = the_files_rules();
    for rule in &rules {
        let name = rule["alert"].as_str().unwrap();
        assert!(
            tests.contains(&format!("{{alertname=\"{name}\",")),
            "{name} never fires in a test"
        );
        let link = format!("charts/alerts.md#{}", name.to_lowercase());
        assert_eq!(rule["annotations"]["runbook_url"], link.as_str());
        let text = sections.iter().find(|(title, _)| *title == name);
        let (_, text) = text.unwrap_or_else(|| panic!("charts/alerts.md has no section {name}"));
        for part in ["**Means.**", "**Traffic.**", "**Do.**"] {
            assert!(text.contains(part), "{name} has no {part}");
        }
    }
    assert_eq!(sections.len(), rules.len(), "a section without an alert");
}

#[test]
fn the_prometheus_rule_is_the_file_with_links_to_where_the_pages_are() {
    let made = |rendered: crate::helm::Rendered| rules(&rendered.find("PrometheusRule")["spec"]);
    let mut expected = the_files_rules();
    assert_eq!(made(render(ALL_ON)), expected);

    let base = "https://git.example/kubeweir/";
    for rule in &mut expected {
        let link = format!("{base}{}", rule["annotations"]["runbook_url"].as_str().unwrap());
        rule["annotations"]["runbook_url"] = link.into();
    }
    let setting = format!("metrics.prometheusRule.runbooks={base:?}");
    assert_eq!(made(render_set(ALL_ON, &setting)), expected);
}
