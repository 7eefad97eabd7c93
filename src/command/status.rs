//! `kubeweir status`.

use std::process::ExitCode;
use std::time::Duration;

use super::render::{is_read, json, print};
use super::{CommandError, agent_page, table};
use crate::cli::people::{Output, StatusArgs};
use crate::inspect::status::{SYNC_COLUMNS, figures, problems, remarks, syncs};
use crate::status::{PATH, Status};

/// Between two looks of `--watch`.
const REFRESH: Duration = Duration::from_secs(1);

/// Prints the agent's state, once or until it is interrupted; 1 if something is wrong.
pub fn run(args: &StatusArgs) -> Result<ExitCode, CommandError> {
    super::block_on(show(args))?
}

async fn show(args: &StatusArgs) -> Result<ExitCode, CommandError> {
    let status = fetch(&args.address).await?;
    if !args.watch {
        print(&shown(&status, args.output))?;
        return Ok(ExitCode::from(u8::from(!problems(&status).is_empty())));
    }
    let mut picture = shown(&status, args.output);
    while is_read(&table::picture(&picture, args.output))? {
        tokio::time::sleep(REFRESH).await;
        picture = match fetch(&args.address).await {
            Ok(status) => shown(&status, args.output),
            Err(error) => table::trouble(&error, args.output),
        };
    }
    Ok(ExitCode::SUCCESS)
}

fn shown(status: &Status, output: Output) -> String {
    match output {
        Output::Json => json(status),
        Output::Text => text(status),
    }
}

async fn fetch(address: &str) -> Result<Status, CommandError> {
    let page = agent_page::fetch(address, PATH).await?;
    serde_json::from_str(&page).map_err(|source| CommandError::Agent {
        address: address.to_owned(),
        path: PATH.to_owned(),
        source: Box::new(source),
    })
}

fn text(status: &Status) -> String {
    let Status { version, node, mode, backlog, .. } = status;
    let mut text = format!("kubeweir {version} on {node}, mode {mode}, backlog {backlog}\n");
    let problems: Vec<String> = problems(status).iter().map(|p| table::alarming(p)).collect();
    for (title, sentences) in [("problems", problems), ("notes", remarks(status))] {
        if !sentences.is_empty() {
            text += &format!("\n{title}:\n  {}\n", sentences.join("\n  "));
        }
    }
    if !status.families.is_empty() {
        let (header, rows) = figures(status);
        text += &format!("\n{}", table::plain(&header, rows));
        text += &format!("\n{}", table::plain(&SYNC_COLUMNS, syncs(status)));
    }
    text
}
