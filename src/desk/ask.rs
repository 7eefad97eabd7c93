//! Runs `kubeweir` beside the agents, on many nodes at a time.

use std::io::IsTerminal;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::AttachParams;
use kube::{Api, Client};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncReadExt;

use super::cluster::{Agent, Site};
use super::error::Unreached;
use crate::text::tell;

/// After so long progress is shown.
const QUIET: Duration = Duration::from_secs(1);

/// What a node said.
#[derive(Debug, Serialize)]
pub struct Answer<T> {
    pub node: String,
    /// `namespace/name` of the pod that was asked.
    pub pod: Option<String>,
    #[serde(flatten)]
    pub said: Said<T>,
}

/// An answer, or why there is none.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Said<T> {
    Answer(T),
    Unreached(Unreached),
}

impl<T> Answer<T> {
    /// The answer, if there is one.
    pub fn answer(&self) -> Option<&T> {
        match &self.said {
            Said::Answer(answer) => Some(answer),
            Said::Unreached(_) => None,
        }
    }

    /// Why there is none.
    pub fn unreached(&self) -> Option<&Unreached> {
        match &self.said {
            Said::Answer(_) => None,
            Said::Unreached(why) => Some(why),
        }
    }

    /// The same with another answer.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Answer<U> {
        let said = match self.said {
            Said::Answer(answer) => Said::Answer(change(answer)),
            Said::Unreached(why) => Said::Unreached(why),
        };
        Answer { node: self.node, pod: self.pod, said }
    }
}

/// How nodes are asked.
pub struct Asker {
    pub client: Client,
    /// How many at a time.
    pub parallel: usize,
    /// How long each may take.
    pub patience: Duration,
}

impl Asker {
    /// Runs `kubeweir` with these arguments everywhere and reads JSON from each; by node.
    pub async fn ask<T: DeserializeOwned>(
        &self,
        sites: Vec<Site>,
        arguments: &[&str],
    ) -> Vec<Answer<T>> {
        let total = sites.len();
        let ask = |site: Site| async {
            let Site { node, agent } = site;
            let pod = agent.as_ref().ok().map(Agent::name);
            let said = match agent {
                Ok(agent) => self.ask_one(&agent, arguments).await,
                Err(why) => Err(why),
            };
            let said = said.map_or_else(Said::Unreached, Said::Answer);
            Answer { node, pod, said }
        };
        let asked = futures::stream::iter(sites).map(ask).buffer_unordered(self.parallel);
        let mut asked = std::pin::pin!(asked);
        let mut answers = Vec::with_capacity(total);
        let mut progress = Progress::new();
        loop {
            tokio::select! {
                answer = asked.next() => match answer {
                    Some(answer) => answers.push(answer),
                    None => break,
                },
                () = progress.is_due() => progress.show(answers.len(), total),
            }
        }
        progress.clear();
        answers.sort_by(|a: &Answer<T>, b| a.node.cmp(&b.node));
        answers
    }

    async fn ask_one<T: DeserializeOwned>(
        &self,
        agent: &Agent,
        arguments: &[&str],
    ) -> Result<T, Unreached> {
        let command = arguments.first().copied().unwrap_or_default().to_owned();
        let patience = self.patience;
        let done = tokio::time::timeout(patience, self.run(agent, arguments)).await;
        let Done { code, stdout, stderr } =
            done.map_err(|_| Unreached::Late { pod: agent.name(), patience })??;
        // By the agent's convention 1 answers a question with no.
        if code > 1 {
            return Err(Unreached::Failed { command, said: said(&stderr, code) });
        }
        serde_json::from_slice(&stdout).map_err(|source| Unreached::Strange { command, source })
    }

    async fn run(&self, agent: &Agent, arguments: &[&str]) -> Result<Done, Unreached> {
        let refused = |source: Box<dyn std::error::Error + Send + Sync>| Unreached::Refused {
            pod: agent.name(),
            source,
        };
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &agent.namespace);
        let parameters = AttachParams::default().container(&agent.container).stdin(false);
        let command = std::iter::once("kubeweir").chain(arguments.iter().copied());
        let command: Vec<&str> = command.collect();
        let mut process =
            api.exec(&agent.pod, command, &parameters).await.map_err(|e| refused(e.into()))?;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let ended = process.take_status().expect("it is taken once");
        let mut streams = (
            process.stdout().expect("it was asked for"),
            process.stderr().expect("it was asked for"),
        );
        let read = futures::try_join!(
            streams.0.read_to_end(&mut stdout),
            streams.1.read_to_end(&mut stderr)
        );
        read.map_err(|source| refused(source.into()))?;
        match ended.await {
            Some(status) => match exit_code(&status) {
                Some(code) => Ok(Done { code, stdout, stderr }),
                None => Err(refused(status.message.unwrap_or_default().into())),
            },
            None => Err(refused("the connection ended before the command did".into())),
        }
    }
}

/// A command that ended.
struct Done {
    code: u8,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// How the command ended; `None` if it was not run.
fn exit_code(status: &Status) -> Option<u8> {
    if status.status.as_deref() == Some("Success") {
        return Some(0);
    }
    let causes = status.details.as_ref()?.causes.as_deref().unwrap_or_default();
    let code = causes.iter().find(|cause| cause.reason.as_deref() == Some("ExitCode"))?;
    code.message.as_ref()?.parse().ok()
}

/// The command's error: its first line, without what to do where it ran.
fn said(stderr: &[u8], code: u8) -> String {
    let text = String::from_utf8_lossy(stderr);
    let error = text.lines().find_map(|line| line.strip_prefix("error: "));
    match error.or_else(|| text.lines().next()) {
        Some(line) => line.to_owned(),
        None => format!("it ended with exit code {code}"),
    }
}

/// One line on a terminal, for those who wait.
struct Progress {
    is_terminal: bool,
    next: tokio::time::Instant,
    shown: bool,
}

impl Progress {
    fn new() -> Progress {
        let is_terminal = std::io::stderr().is_terminal();
        Progress { is_terminal, next: tokio::time::Instant::now() + QUIET, shown: false }
    }

    async fn is_due(&self) {
        match self.is_terminal {
            true => tokio::time::sleep_until(self.next).await,
            false => std::future::pending().await,
        }
    }

    fn show(&mut self, done: usize, total: usize) {
        tell(&format!("\r\x1b[K{done} of {total} nodes have answered"));
        (self.shown, self.next) = (true, tokio::time::Instant::now() + QUIET);
    }

    fn clear(&self) {
        if self.shown {
            tell("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_exit_code_is_a_cause_of_the_status() {
        let code = |status: Value| exit_code(&serde_json::from_value(status).expect("a Status"));
        let ended = |causes| json!({ "status": "Failure", "details": { "causes": causes } });
        assert_eq!(code(json!({ "status": "Success" })), Some(0));
        assert_eq!(code(ended(json!([{ "reason": "ExitCode", "message": "1" }]))), Some(1));
        assert_eq!(code(ended(json!([{ "reason": "Other", "message": "1" }]))), None);
        assert_eq!(code(json!({ "status": "Failure", "message": "no such container" })), None);
    }

    #[test]
    fn of_an_error_the_advice_is_left_out() {
        assert_eq!(said(b"note: x\nerror: no answer\nIs it running?\n", 2), "no answer");
        assert_eq!(said(b"exec failed\n", 127), "exec failed");
        assert_eq!(said(b"", 137), "it ended with exit code 137");
    }
}
