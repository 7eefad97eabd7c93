//! `kubeweir status`.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

use super::render::{print, print_json};
use super::{CommandError, agent_page, table};
use crate::agent::status::{PATH, Status};
use crate::cli::people::{Output, StatusArgs};
use crate::inspect::status::{COLUMNS, problems, remarks, rows};

/// Between two looks of `--watch`.
const REFRESH: Duration = Duration::from_secs(1);

/// Prints the agent's state, once or until it is interrupted; 1 if something is wrong.
pub fn run(args: &StatusArgs) -> Result<ExitCode, CommandError> {
    super::block_on(show(args))?
}

async fn show(args: &StatusArgs) -> Result<ExitCode, CommandError> {
    loop {
        let status = fetch(&args.address).await?;
        if args.watch {
            print(table::clear())?;
        }
        match args.output {
            Output::Json => print_json(&status)?,
            Output::Text => print(&text(&status))?,
        }
        if !args.watch {
            return Ok(ExitCode::from(u8::from(!problems(&status).is_empty())));
        }
        tokio::time::sleep(REFRESH).await;
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
    let mut text = format!("kubeweir {version} on {node}, mode {mode}, backlog {backlog}\n\n");
    text.push_str(&table::plain(&COLUMNS, rows(status)));
    let problems = problems(status);
    if !problems.is_empty() {
        text.push_str("\nproblems:\n");
    }
    for problem in problems {
        writeln!(text, "  {}", table::alarming(&problem)).expect("a String takes everything");
    }
    for remark in remarks(status) {
        writeln!(text, "\n{remark}").expect("a String takes everything");
    }
    text
}
