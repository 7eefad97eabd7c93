//! Running Helm, and what it rendered.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role};
use serde::de::DeserializeOwned;
use serde_json::Value;

pub const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/kubeweir");

/// What one run of `helm template` printed.
#[derive(Debug, Clone, PartialEq)]
pub struct Rendered {
    pub text: String,
    objects: Vec<Value>,
}

/// The variable that is called as the program in capitals, what `make` put below target, or the one in PATH.
pub fn program(name: &str) -> PathBuf {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools").join(name);
    match std::env::var_os(name.to_uppercase()) {
        Some(path) => path.into(),
        None if installed.exists() => installed,
        None => name.into(),
    }
}

fn run(args: &[&str], values: &str) -> Output {
    let program = program("helm");
    let mut child = Command::new(&program)
        .args(args)
        .args(["--values", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}; `make helm` installs it", program.display()));
    child.stdin.take().unwrap().write_all(values.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn template(values: &str, more: &[&str]) -> Output {
    let mut args = vec!["template", "kubeweir", CHART, "--namespace", "kube-system"];
    args.extend(more);
    run(&args, values)
}

fn rendered(output: &Output, about: &str) -> Rendered {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{about}: {errors}");
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let objects: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    Rendered { text, objects: objects.into_iter().filter(|object| !object.is_null()).collect() }
}

pub fn render(values: &str) -> Rendered {
    rendered(&template(values, &[]), values)
}

pub fn render_set(values: &str, setting: &str) -> Rendered {
    rendered(&template(values, &["--set-json", setting]), setting)
}

/// As `helm install` with these `--set`.
pub fn render_with(values: &str, settings: &[&str]) -> Rendered {
    let flags: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    rendered(&template(values, &flags), &flags.join(" "))
}

/// What Helm says to values that it does not render.
pub fn refused(values: &str) -> String {
    let output = template(values, &[]);
    assert!(!output.status.success(), "{values:?} is rendered");
    String::from_utf8(output.stderr).unwrap()
}

pub fn lint(values: &str) {
    let output = run(&["lint", "--strict", CHART], values);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// Decodes an object, every field of which the type has to know.
fn decode<T: DeserializeOwned>(object: &Value) -> T {
    let mut unknown = Vec::new();
    let decoded = serde_ignored::deserialize(object, |path| unknown.push(path.to_string()));
    let decoded = decoded.unwrap_or_else(|error| panic!("{error}: {object}"));
    assert!(unknown.is_empty(), "unknown fields {unknown:?} in {object}");
    decoded
}

impl Rendered {
    pub fn count(&self, kind: &str) -> usize {
        self.objects.iter().filter(|object| object["kind"] == kind).count()
    }

    /// The first object of a kind.
    pub fn find(&self, kind: &str) -> &Value {
        let found = self.objects.iter().find(|object| object["kind"] == kind);
        found.unwrap_or_else(|| panic!("no {kind} in {}", self.text))
    }

    pub fn one<T: DeserializeOwned>(&self, kind: &str) -> T {
        decode(self.find(kind))
    }

    pub fn dashboards(&self) -> Vec<ConfigMap> {
        let maps = self.objects.iter().filter(|object| object["kind"] == "ConfigMap");
        let maps = maps.map(decode::<ConfigMap>);
        maps.filter(|map| map.metadata.name.as_deref() != Some("kubeweir")).collect()
    }

    /// Every object is of a kind that is expected and has only fields that its kind knows.
    pub fn check_every_object(&self) {
        for object in &self.objects {
            match object["kind"].as_str() {
                Some("DaemonSet") => drop(decode::<DaemonSet>(object)),
                Some("ConfigMap") => drop(decode::<ConfigMap>(object)),
                Some("Service") => drop(decode::<Service>(object)),
                Some("ServiceAccount") => drop(decode::<ServiceAccount>(object)),
                Some("ClusterRole") => drop(decode::<ClusterRole>(object)),
                Some("Role") => drop(decode::<Role>(object)),
                Some("ClusterRoleBinding") => drop(decode::<ClusterRoleBinding>(object)),
                // No objects of Kubernetes itself: no type to hold them against.
                Some("ServiceMonitor" | "PrometheusRule") => {}
                kind => panic!("unexpected kind {kind:?}"),
            }
        }
    }
}
