//! Which nodes there are, and which pod to ask on each.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStatus, Node, Pod};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use super::cli::Reach;
use super::error::{DeskError, Unreached, is_forbidden};
use crate::text::tell;

/// The chart's labels, and those of the DaemonSet that kubeadm makes: its image may be ours.
const USUAL_SELECTORS: [&str; 2] = ["app.kubernetes.io/name=kubeweir", "k8s-app=kube-proxy"];

/// Name of the agent's container in both.
const CONTAINER: &str = "kube-proxy";

/// A node, and whom to ask there.
#[derive(Debug)]
pub struct Site {
    pub node: String,
    pub agent: Result<Agent, Unreached>,
}

/// A running agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    pub namespace: String,
    pub pod: String,
    pub container: String,
}

impl Agent {
    /// `namespace/name`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.namespace, self.pod)
    }
}

/// Every node that should have an agent, by name.
///
/// Errors: no answer, or nobody to ask.
pub async fn sites(client: &Client, reach: &Reach) -> Result<Vec<Site>, DeskError> {
    let nodes = nodes(client, reach);
    let (nodes, pods) = futures::try_join!(nodes, pods(client, reach))?;
    Ok(placed(nodes, &pods))
}

/// Names of the Linux nodes that are meant; `None` if the user may not list nodes.
async fn nodes(client: &Client, reach: &Reach) -> Result<Option<BTreeSet<String>>, DeskError> {
    let api: Api<Node> = Api::all(client.clone());
    let mut parameters = ListParams::default();
    parameters.label_selector.clone_from(&reach.selector);
    let listed = within(reach.timeout, "listing the nodes", api.list_metadata(&parameters)).await;
    match listed {
        Ok(nodes) => {
            let is_ours = |labels: &BTreeMap<String, String>| {
                labels.get("kubernetes.io/os").is_none_or(|os| os == "linux")
            };
            let ours = nodes.items.iter().filter(|node| is_ours(node.labels()));
            Ok(Some(ours.map(ResourceExt::name_any).collect()))
        }
        Err(DeskError::Api { source, .. }) if is_forbidden(&source) && reach.selector.is_none() => {
            tell("note: not allowed to list nodes: those without an agent's pod are not seen\n");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

async fn pods(client: &Client, reach: &Reach) -> Result<Vec<Pod>, DeskError> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &reach.agents_namespace);
    let selectors: Vec<&str> = match &reach.agents_selector {
        Some(selector) => vec![selector],
        None => USUAL_SELECTORS.to_vec(),
    };
    for selector in &selectors {
        let parameters = ListParams::default().labels(selector);
        let what = format!("listing the agents' pods in namespace {}", reach.agents_namespace);
        let pods = within(reach.timeout, &what, api.list(&parameters)).await?;
        if !pods.items.is_empty() {
            return Ok(pods.items);
        }
    }
    Err(DeskError::NoAgents {
        namespace: reach.agents_namespace.clone(),
        selector: selectors.join(" or "),
    })
}

/// Waits for one answer of the API server.
pub async fn within<T>(
    patience: Duration,
    what: &str,
    answer: impl Future<Output = kube::Result<T>>,
) -> Result<T, DeskError> {
    match tokio::time::timeout(patience, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(DeskError::Api { what: what.to_owned(), source: Box::new(source) }),
        Err(_) => Err(DeskError::Late { what: what.to_owned(), patience }),
    }
}

/// A site for each node that is meant; without their list, for each that has a pod.
fn placed(nodes: Option<BTreeSet<String>>, pods: &[Pod]) -> Vec<Site> {
    let mut by_node: BTreeMap<&str, Vec<&Pod>> = BTreeMap::new();
    for pod in pods {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        if let Some(node) = node {
            by_node.entry(node).or_default().push(pod);
        }
    }
    let nodes = nodes.unwrap_or_else(|| by_node.keys().map(|node| (*node).to_owned()).collect());
    let site = |node: String| {
        let pods = by_node.get(node.as_str()).map_or(&[][..], Vec::as_slice);
        Site { agent: of_node(pods), node }
    };
    nodes.into_iter().map(site).collect()
}

/// The pod that runs: while pods are replaced a node may have two.
fn of_node(pods: &[&Pod]) -> Result<Agent, Unreached> {
    let mut answers = pods.iter().map(|pod| agent(pod));
    let first = answers.next().unwrap_or(Err(Unreached::NoPod));
    if first.is_ok() { first } else { answers.find(Result::is_ok).unwrap_or(first) }
}

fn agent(pod: &Pod) -> Result<Agent, Unreached> {
    let namespace = pod.namespace().unwrap_or_default();
    let containers = pod.spec.as_ref().map_or(&[][..], |spec| &spec.containers);
    let container = containers.iter().find(|container| container.name == CONTAINER);
    let container = container.or(containers.first()).map_or(CONTAINER, |found| &found.name);
    let agent = Agent { namespace, pod: pod.name_any(), container: container.to_owned() };
    match why_not_running(pod, container) {
        None => Ok(agent),
        Some(why) => Err(Unreached::NotRunning { pod: agent.name(), why }),
    }
}

fn why_not_running(pod: &Pod, container: &str) -> Option<String> {
    if pod.metadata.deletion_timestamp.is_some() {
        return Some("it is being deleted".to_owned());
    }
    let status = pod.status.clone().unwrap_or_default();
    let phase = status.phase.unwrap_or_else(|| "of no phase yet".to_owned());
    let containers = status.container_statuses.unwrap_or_default();
    let Some(found) = containers.into_iter().find(|status| status.name == container) else {
        return (phase != "Running").then(|| format!("it is {phase}"));
    };
    let state = found.state.clone().unwrap_or_default();
    if state.running.is_some() {
        return None;
    }
    let waiting = state.waiting.and_then(|waiting| waiting.reason);
    let ended = state.terminated.map(|ended| ended.reason.unwrap_or_else(|| "ended".to_owned()));
    let reason = waiting.or(ended).unwrap_or(phase);
    Some(format!("{reason}{}", history(&found)))
}

/// How the container ended last, and how often it was started again.
fn history(status: &ContainerStatus) -> String {
    let ended = [&status.state, &status.last_state].into_iter().flatten();
    let ended = ended.filter_map(|state| state.terminated.as_ref()).next();
    let code = ended.map(|ended| format!(", exit code {}", ended.exit_code)).unwrap_or_default();
    match status.restart_count {
        0 => code,
        count => format!("{code}, restarted {count} times"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, node: &str, state: Value) -> Pod {
        let status = json!({ "name": "kube-proxy", "state": state, "restartCount": 7, "ready": false,
            "image": "", "imageID": "", "lastState": { "terminated": { "exitCode": 1 } } });
        let pod = json!({
            "metadata": { "namespace": "kube-system", "name": name },
            "spec": { "nodeName": node, "containers": [{ "name": "sidecar" }, { "name": "kube-proxy" }] },
            "status": { "phase": "Running", "containerStatuses": [status] },
        });
        serde_json::from_value(pod).expect("a pod")
    }

    fn running(name: &str, node: &str) -> Pod {
        pod(name, node, json!({ "running": {} }))
    }

    fn told(sites: &[Site]) -> Vec<String> {
        let agent = |site: &Site| match &site.agent {
            Ok(agent) => format!("{} {}", agent.name(), agent.container),
            Err(why) => why.to_string(),
        };
        sites.iter().map(|site| format!("{}: {}", site.node, agent(site))).collect()
    }

    #[test]
    fn each_node_has_its_agent_or_the_reason_why_not() {
        let waiting = json!({ "waiting": { "reason": "CrashLoopBackOff" } });
        let mut leaving = running("old", "node-a");
        leaving.metadata.deletion_timestamp =
            serde_json::from_value(json!("2026-11-28T10:00:00Z")).expect("a time");
        let pods = [
            leaving,
            running("new", "node-a"),
            pod("crashes", "node-b", waiting),
            running("elsewhere", "node-d"),
        ];
        let nodes = ["node-a", "node-b", "node-c"].map(str::to_owned).into();
        assert_eq!(
            told(&placed(Some(nodes), &pods)),
            [
                "node-a: kube-system/new kube-proxy",
                "node-b: its agent does not run: pod kube-system/crashes: CrashLoopBackOff, exit code 1, \
                 restarted 7 times",
                "node-c: no pod of an agent is on this node",
            ]
        );
        assert_eq!(told(&placed(None, &pods)).len(), 3, "by pods alone: a, b and d");
    }
}
