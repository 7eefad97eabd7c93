//! `kubectl kubeweir dump`: one archive for a bug report.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::LogParams;
use serde_json::Value;

use super::ask::Answer;
use super::cli::DumpArgs;
use super::cluster::{Agent, Site, within};
use super::error::DeskError;
use super::print::unreached;
use super::redact::Redactor;
use super::{Outcome, Room};
use crate::text::{is_read, json, with_causes};

/// What each node is asked, and the file that gets the answer.
const QUESTIONS: [(&str, &[&str]); 3] = [
    ("status.json", &["status", "--agent", "-o", "json"]),
    ("diff.json", &["diff", "--agent", "-o", "json"]),
    ("check.json", &["check", "-o", "json"]),
];

/// Lines of an agent's log.
const LINES: i64 = 5_000;

/// Files of the archive by name.
type Files = BTreeMap<String, String>;

/// Writes the archive and says where it is.
pub async fn run(room: &Room<'_>, args: &DumpArgs) -> Result<Outcome, DeskError> {
    let mut files = Files::new();
    let mut missing = String::new();
    for (name, question) in QUESTIONS {
        let answers = room.asker.ask::<Value>(room.sites().await?, question).await;
        for (why, nodes) in unreached(&answers) {
            missing += &format!("{name} of {}: {why}\n", nodes.join(", "));
        }
        files.extend(answers.iter().filter_map(|answer| told(answer, name)));
    }
    for site in room.sites().await? {
        if let Site { node, agent: Ok(agent) } = site {
            match pod(room, &agent).await {
                Ok(found) => {
                    files.extend(found.map(|(name, text)| (format!("{node}/{name}"), text)))
                }
                Err(error) => {
                    missing += &format!("pod and log of {node}: {}\n", with_causes(&error))
                }
            }
        }
    }
    let outcome = if missing.is_empty() { Outcome::Well } else { Outcome::Unknown };
    files.insert("missing.txt".to_owned(), missing.clone());
    files.insert(
        "version.txt".to_owned(),
        format!("kubectl-kubeweir {}\n", env!("CARGO_PKG_VERSION")),
    );
    if args.redact {
        let mut redactor = Redactor::default();
        files = files.into_iter().map(|(name, text)| (name, redactor.redact(&text))).collect();
    }
    let now = Timestamp::now();
    let path = args.file.clone().unwrap_or_else(|| named_by(now));
    write(&path, &files, now)
        .map_err(|source| DeskError::Archive { path: path.clone(), source })?;
    is_read(&format!("{missing}{}: {} files\n", path.display(), files.len()))
        .map_err(DeskError::Write)?;
    Ok(outcome)
}

fn told(answer: &Answer<Value>, name: &str) -> Option<(String, String)> {
    answer.answer().map(|value| (format!("{}/{name}", answer.node), json(value)))
}

/// The pod without what may be secret, and the end of its log.
async fn pod(room: &Room<'_>, agent: &Agent) -> Result<[(&'static str, String); 2], DeskError> {
    let api: Api<Pod> = Api::namespaced(room.asker.client.clone(), &agent.namespace);
    let patience = room.asker.patience;
    let what = format!("reading pod {}", agent.name());
    let mut pod = within(patience, &what, api.get(&agent.pod)).await?;
    pod.metadata.annotations = None;
    pod.metadata.managed_fields = None;
    for container in pod.spec.iter_mut().flat_map(|spec| &mut spec.containers) {
        for variable in container.env.iter_mut().flatten() {
            variable.value = variable.value.as_ref().map(|_| "(left out)".to_owned());
        }
    }
    let parameters = LogParams {
        container: Some(agent.container.clone()),
        tail_lines: Some(LINES),
        ..LogParams::default()
    };
    let what = format!("reading the log of pod {}", agent.name());
    let log = within(patience, &what, api.logs(&agent.pod, &parameters)).await?;
    Ok([("pod.json", json(&pod)), ("log.txt", log)])
}

fn named_by(now: Timestamp) -> PathBuf {
    format!("kubeweir-{}.tar", now.strftime("%Y%m%d-%H%M%S")).into()
}

fn write(path: &Path, files: &Files, now: Timestamp) -> io::Result<()> {
    let mut archive = tar::Builder::new(File::create_new(path)?);
    let folder = path.file_stem().unwrap_or_default();
    for (name, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(u64::try_from(now.as_second()).unwrap_or(0));
        archive.append_data(&mut header, Path::new(folder).join(name), text.as_bytes())?;
    }
    archive.into_inner()?.flush()
}
