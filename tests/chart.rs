//! The Helm chart: every value does something, every rendered object is one that the API knows, the
//! configuration in it is one that the program takes, and the static manifest is what it renders.
//!
//! Needs Helm: `make helm`, or the program `helm` in PATH, or its path in the variable HELM; for the alerts
//! `promtool` alike, from `make promtool`.

#![allow(clippy::unwrap_used)] // a test binary, helpers included

#[path = "chart/alerts.rs"]
mod alerts;
#[path = "chart/golden.rs"]
mod golden;
#[path = "chart/helm.rs"]
mod helm;

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Container, PodSpec, Service};
use k8s_openapi::api::rbac::v1::ClusterRole;
use kubeweir::cli::{self, Command, proxy};
use kubeweir::config::{Config, KubeProxyConfiguration, ProxyMode, complete, resolve};
use serde_json::{Value, json};

use helm::{CHART, Rendered, refused, render, render_set};

/// What a user has to say at least.
const MINIMAL: &str = "apiServer: {url: 'https://192.168.10.5:6443'}\n";

/// Values documents as the README shows them; each is rendered and decoded.
const DOCUMENTED: [(&str, &str); 9] = [
    ("defaults", ""),
    ("as privileged as kubeadm's kube-proxy", "privileged: true"),
    (
        "dual-stack",
        "config: {clusterCIDR: '10.244.0.0/16,fd00:10:244::/56'}
metrics: {enabled: true, service: {ipFamilyPolicy: PreferDualStack}}",
    ),
    (
        "IPv6 alone",
        "config: {bindAddress: '::', clusterCIDR: 'fd00:10:244::/56', metricsBindAddress: '[::]:10249'}
metrics: {enabled: true}",
    ),
    (
        "observed",
        "metrics:
  enabled: true
  serviceMonitor: {enabled: true, labels: {release: prometheus}}
  prometheusRule: {enabled: true, labels: {release: prometheus}, runbooks: 'https://git.example/kubeweir/'}
  dashboards: {enabled: true}",
    ),
    (
        "on one node to try it",
        "nodeSelector: {kubeweir: 'yes'}
updateStrategy: {type: OnDelete, rollingUpdate: null}",
    ),
    (
        "a registry of one's own",
        "image: {repository: registry.example/net/kubeweir, digest: 'sha256:0000000000000000000000000000000000000000000000000000000000000000'}
imagePullSecrets: [{name: registry}]",
    ),
    (
        "as an iptables-mode kube-proxy behaves, with settings of one's own",
        "config:
  mode: iptables
  iptables: {masqueradeAll: true, minSyncPeriod: 1s}
  nodePortAddresses: [192.168.0.0/16]
  conntrack: {maxPerCore: 0}
  logging: {format: json, verbosity: 2}
extraArgs: [--v=4]
extraEnv: [{name: HTTPS_PROXY, value: 'http://proxy:3128'}]",
    ),
    (
        "objects that others made",
        "existingConfigMap: kube-proxy
serviceAccount: {create: false, name: kube-proxy}
rbac: {create: false}",
    ),
];

/// Every value with another setting than its default, as for `helm --set-json`.
const SETTINGS: [&str; 39] = [
    r#"image.repository="registry.example/kubeweir""#,
    r#"image.tag="v9""#,
    r#"image.digest="sha256:1111111111111111111111111111111111111111111111111111111111111111""#,
    r#"image.pullPolicy="Always""#,
    r#"imagePullSecrets=[{"name":"registry"}]"#,
    r#"apiServer.url="https://api.example:6443""#,
    r#"existingConfigMap="kube-proxy""#,
    r#"config.mode="iptables""#,
    r#"config.clusterCIDR="10.0.0.0/8""#,
    r#"privileged=true"#,
    r#"metrics.enabled=false"#,
    r#"metrics.port=9000"#,
    r#"metrics.service.annotations={"a":"b"}"#,
    r#"metrics.service.ipFamilyPolicy="PreferDualStack""#,
    r#"metrics.serviceMonitor.enabled=false"#,
    r#"metrics.serviceMonitor.interval="10s""#,
    r#"metrics.serviceMonitor.labels={"a":"b"}"#,
    r#"metrics.prometheusRule.enabled=false"#,
    r#"metrics.prometheusRule.labels={"a":"b"}"#,
    r#"metrics.prometheusRule.runbooks="https://git.example/kubeweir/""#,
    r#"metrics.dashboards.enabled=false"#,
    r#"metrics.dashboards.labels.grafana_dashboard="2""#,
    r#"serviceAccount.create=false"#,
    r#"serviceAccount.name="other""#,
    r#"serviceAccount.annotations={"a":"b"}"#,
    r#"rbac.create=false"#,
    r#"rbac.desk=true"#,
    r#"updateStrategy.type="OnDelete""#,
    r#"updateStrategy.rollingUpdate.maxUnavailable=1"#,
    r#"priorityClassName="high""#,
    r#"nodeSelector={"kubeweir":"yes"}"#,
    r#"affinity={"nodeAffinity":{}}"#,
    r#"tolerations=[{"key":"a","operator":"Exists"}]"#,
    r#"resources.requests.cpu="1""#,
    r#"healthzPort=0"#,
    r#"podAnnotations={"a":"b"}"#,
    r#"podLabels={"a":"b"}"#,
    r#"extraArgs=["--v=4"]"#,
    r#"extraEnv=[{"name":"A","value":"b"}]"#,
];

/// Values under which every other value can show.
const ALL_ON: &str = "apiServer: {url: 'https://192.168.10.5:6443'}
metrics: {enabled: true, serviceMonitor: {enabled: true}, prometheusRule: {enabled: true},
  dashboards: {enabled: true}}";

fn with(body: &str) -> Rendered {
    render(&format!("{MINIMAL}{body}"))
}

fn daemon_set(rendered: &Rendered) -> PodSpec {
    let set: DaemonSet = rendered.one("DaemonSet");
    set.spec.template.spec.unwrap()
}

fn main_container(pod: &PodSpec) -> Container {
    let [container] = pod.containers.as_slice() else { panic!("{:?}", pod.containers) };
    container.clone()
}

/// The flags of a container's command, as the program takes them.
fn flags(container: &Container) -> Box<proxy::Parsed> {
    match cli::parse(container.command.clone().unwrap()) {
        Ok(Command::Proxy(parsed)) => parsed,
        other => panic!("{:?}: {other:?}", container.command),
    }
}

/// The configuration with which the main container would run.
fn config(rendered: &Rendered) -> Config {
    let parsed = flags(&main_container(&daemon_set(rendered)));
    assert_eq!(parsed.flags.config, "/var/lib/kube-proxy/config.conf");
    assert_eq!(parsed.flags.hostname_override, "$(NODE_NAME)");
    let map: ConfigMap = rendered.one("ConfigMap");
    resolve(complete(&parsed.flags, Some(&map.data.unwrap()["config.conf"])).unwrap()).unwrap()
}

#[test]
fn every_documented_combination_renders_objects_that_the_api_knows() {
    for (name, body) in DOCUMENTED {
        let rendered = with(body);
        assert!(rendered.count("DaemonSet") == 1, "{name}");
        rendered.check_every_object();
    }
}

#[test]
fn every_value_changes_something() {
    let base = render(ALL_ON);
    for setting in SETTINGS {
        if setting.starts_with("metrics.dashboards") && base.dashboards().is_empty() {
            continue; // there is no dashboard that could change
        }
        let changed = render_set(ALL_ON, setting);
        changed.check_every_object();
        assert!(changed != base, "{setting} changes nothing");
    }
}

#[test]
fn every_value_of_values_yaml_is_among_the_settings() {
    let text = std::fs::read_to_string(format!("{CHART}/values.yaml")).unwrap();
    let values: Value = serde_saphyr::from_str(&text).unwrap();
    let mut leaves = BTreeSet::new();
    collect_leaves("", &values, &mut leaves);
    let set: Vec<&str> = SETTINGS.iter().map(|s| s.split_once('=').unwrap().0).collect();
    let covers = |leaf: &str| set.iter().any(|s| leaf == *s || leaf.starts_with(&format!("{s}.")));
    let missing: Vec<_> = leaves
        .iter()
        .filter(|leaf| !covers(leaf) && *leaf != "resources.requests.memory")
        .collect();
    assert!(missing.is_empty(), "no test sets {missing:?}");
}

fn collect_leaves(path: &str, value: &Value, leaves: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                let dot = if path.is_empty() { "" } else { "." };
                collect_leaves(&format!("{path}{dot}{name}"), value, leaves);
            }
        }
        _ => {
            leaves.insert(path.to_owned());
        }
    }
}

#[test]
fn values_that_cannot_be_meant_are_refused() {
    let refusals = [
        ("", "apiServer.url is required"),
        ("apiServer: {url: 'kubernetes.default'}", "url"),
        ("tolerance: []", "tolerance"),
        ("config: {clusterCidr: 10.0.0.0/8}", "clusterCidr"),
        ("config: {mode: eBPF}", "mode"),
        ("config: {oomScoreAdj: 2000}", "oomScoreAdj"),
        ("image: {digest: abc}", "digest"),
        ("metrics: {port: 0}", "port"),
        ("extraArgs: [v=4]", "extraArgs"),
        ("privileged: 'yes'", "privileged"),
    ];
    for (values, word) in refusals {
        let error = refused(values);
        assert!(error.contains(word), "{values:?}: {error}");
    }
}

#[test]
fn the_schema_knows_the_fields_of_the_configuration() {
    let text = std::fs::read_to_string(format!("{CHART}/values.schema.json")).unwrap();
    let schema: Value = serde_json::from_str(&text).unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    let known = keys(&schema["properties"]["config"]["properties"]);
    let mut object = KubeProxyConfiguration::default();
    object.kubeweir.service_counters = true; // a section that is left out while it is empty
    let mut fields = keys(&serde_json::to_value(object).unwrap());
    // The chart writes these two itself.
    assert!(fields.remove("apiVersion") && fields.remove("kind"));
    assert_eq!(known, fields);
}

#[test]
fn the_program_takes_the_configuration_without_a_word() {
    let defaults = config(&with(""));
    assert_eq!(defaults.notes, []);
    assert_eq!(defaults.mode, ProxyMode::Nftables);
    assert_eq!(defaults.oom_score_adj, -997);
    assert_eq!(
        defaults.client.kubeconfig.unwrap().to_str(),
        Some("/var/lib/kube-proxy/kubeconfig.conf")
    );
    assert_eq!(defaults.servers.metrics.to_string(), "127.0.0.1:10249");

    assert_eq!(config(&with("privileged: true")).oom_score_adj, -999);
    let observed = config(&with("metrics: {enabled: true, port: 9000}"));
    assert_eq!(observed.servers.metrics.to_string(), "0.0.0.0:9000");
    assert_eq!(config(&with("config: {oomScoreAdj: 5}")).oom_score_adj, 5);
    for (name, body) in DOCUMENTED {
        let rendered = with(body);
        if rendered.count("ConfigMap") == 0 {
            continue; // existingConfigMap
        }
        let config = config(&rendered);
        let expected = usize::from(config.mode != ProxyMode::Nftables);
        assert_eq!(config.notes.len(), expected, "{name}: {:?}", config.notes);
    }
    let dual = config(&with("config: {clusterCIDR: '10.244.0.0/16,fd00:10:244::/56'}"));
    assert!(dual.cluster_cidrs.v4.is_some() && dual.cluster_cidrs.v6.is_some());
}

#[test]
fn the_kubeconfig_names_the_given_server_and_the_service_account() {
    let map: ConfigMap = with("").one("ConfigMap");
    let text = &map.data.unwrap()["kubeconfig.conf"];
    let kubeconfig: kube::config::Kubeconfig = serde_saphyr::from_str(text).unwrap();
    let cluster = kubeconfig.clusters[0].cluster.clone().unwrap();
    assert_eq!(cluster.server.as_deref(), Some("https://192.168.10.5:6443"));
    let user = kubeconfig.auth_infos[0].auth_info.clone().unwrap();
    let account = "/var/run/secrets/kubernetes.io/serviceaccount";
    assert_eq!(cluster.certificate_authority, Some(format!("{account}/ca.crt")));
    assert_eq!(user.token_file, Some(format!("{account}/token")));
    assert_eq!(kubeconfig.current_context.as_deref(), Some("default"));
}

// B-072: only the permissions of section 10.4.
#[test]
fn permissions_are_those_of_node_proxier() {
    let role: ClusterRole = with("").one("ClusterRole");
    let expected = json!([
        {"apiGroups": [""], "resources": ["services", "endpoints"], "verbs": ["list", "watch"]},
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["", "events.k8s.io"], "resources": ["events"],
         "verbs": ["create", "patch", "update"]},
        {"apiGroups": ["networking.k8s.io"], "resources": ["servicecidrs"],
         "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"],
         "verbs": ["list", "watch"]},
    ]);
    assert_eq!(serde_json::to_value(role.rules).unwrap(), expected);
}

#[test]
fn the_pod_has_the_privileges_that_are_documented_and_no_more() {
    let pod = daemon_set(&with(""));
    assert_eq!(pod.host_network, Some(true));
    let [init] = pod.init_containers.as_deref().unwrap() else { panic!("one init container") };
    assert!(flags(init).flags.init_only);
    assert_eq!(init.security_context.clone().unwrap().privileged, Some(true));
    let main = main_container(&pod);
    assert!(!flags(&main).flags.init_only);
    let security = serde_json::to_value(main.security_context).unwrap();
    let expected = json!({
        "readOnlyRootFilesystem": true,
        "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    assert_eq!(security, expected);
    assert_eq!(main.volume_mounts, init.volume_mounts);

    let pod = daemon_set(&with("privileged: true"));
    assert_eq!(pod.init_containers, None);
    assert_eq!(main_container(&pod).security_context.unwrap().privileged, Some(true));
}

#[test]
fn the_metrics_service_finds_the_pods_and_the_monitor_finds_the_service() {
    let rendered = render(ALL_ON);
    let service: Service = rendered.one("Service");
    let spec = service.spec.unwrap();
    assert_eq!(spec.cluster_ip.as_deref(), Some("None"));
    let set: DaemonSet = rendered.one("DaemonSet");
    let labels = set.spec.template.metadata.unwrap().labels.unwrap();
    for (name, value) in spec.selector.unwrap() {
        assert_eq!(labels.get(&name), Some(&value));
    }
    let monitor = rendered.find("ServiceMonitor");
    let wanted = monitor["spec"]["selector"]["matchLabels"].as_object().unwrap().clone();
    let labels = service.metadata.labels.unwrap();
    for (name, value) in wanted {
        assert_eq!(labels.get(&name).map(String::as_str), value.as_str());
    }
    assert_eq!(monitor["spec"]["endpoints"][0]["port"], "metrics");
    assert_eq!(spec.ports.unwrap()[0].name.as_deref(), Some("metrics"));
}

#[test]
fn every_dashboard_is_in_a_config_map() {
    let directory = std::fs::read_dir(format!("{CHART}/dashboards")).unwrap();
    let mut files: Vec<Value> = directory
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "json"))
        .map(|path| serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap())
        .collect();
    let rendered = render(ALL_ON);
    for map in rendered.dashboards() {
        let data = map.data.unwrap();
        let [text] = data.values().collect::<Vec<_>>()[..] else { panic!("one file each") };
        let dashboard: Value = serde_json::from_str(text).unwrap();
        let before = files.len();
        files.retain(|file| *file != dashboard);
        assert_eq!(files.len() + 1, before, "{:?} is none of the files", map.metadata.name);
    }
    assert!(files.is_empty(), "not in a ConfigMap: {files:?}");
}

#[test]
fn the_chart_passes_helms_own_lint() {
    helm::lint(MINIMAL);
}

/// For kubeadm: its ConfigMap is used as it is.
const STATIC: &str = "existingConfigMap: kube-proxy\n";

#[test]
fn the_static_manifest_is_what_the_chart_renders() {
    let head = "# Kubeweir beside or instead of kubeadm's kube-proxy, whose ConfigMap it uses.\n\
                # Written by tests/chart.rs from the chart: UPDATE_GOLDEN=1 cargo test --test chart\n";
    let rendered = render(STATIC);
    rendered.check_every_object();
    golden::check("charts/static/kubeweir.yaml", &format!("{head}{}", rendered.text));
}

#[test]
fn the_chart_installs_this_version() {
    let text = std::fs::read_to_string(format!("{CHART}/Chart.yaml")).unwrap();
    let chart: Value = serde_saphyr::from_str(&text).unwrap();
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn the_guides_helm_commands_and_values_render() {
    let guides = ["../../README.md", "../README.md"]
        .map(|name| std::fs::read_to_string(format!("{CHART}/{name}")).unwrap());
    let blocks: Vec<&str> =
        guides.iter().flat_map(|guide| guide.split("```").skip(1).step_by(2)).collect();
    let values: Vec<&str> = blocks
        .iter()
        .filter_map(|block| {
            block.strip_prefix("yaml\n").filter(|text| text.contains("# values.yaml"))
        })
        .collect();
    let [values] = values[..] else { panic!("one values.yaml, not {}", values.len()) };
    render(values).check_every_object();

    let commands =
        blocks.iter().flat_map(|block| block.split("$ ")).filter(|c| c.starts_with("helm"));
    let mut installs = 0;
    for command in commands.filter(|command| command.contains(" install ")) {
        let settings: Vec<&str> = command.split("--set ").skip(1).map(word).collect();
        let file = if command.contains("--values values.yaml") { values } else { "" };
        helm::render_with(file, &settings).check_every_object();
        installs += 1;
    }
    assert_eq!(installs, 4, "the short one, a trial, a new cluster, kind");
}

// N7: what the guide says for each distribution renders.
#[test]
fn the_guides_values_for_distributions_render() {
    let guide = std::fs::read_to_string(format!("{CHART}/../README.md")).unwrap();
    let blocks = guide.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let values: Vec<&str> = blocks.filter(|block| block.starts_with("# chart values\n")).collect();
    for values in &values {
        render(values).check_every_object();
    }
    assert_eq!(values.len(), 7, "kops, OpenShift, EKS, AKS, RKE2, k0s, Talos");
}

/// Up to the first white space.
fn word(text: &str) -> &str {
    text.split_whitespace().next().unwrap_or_default()
}
