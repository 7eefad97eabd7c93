//! The sub-commands for people, carried out.
//!
//! Place in the flow: `main` hands over a parsed [`Command`]. The shell around [`crate::inspect`]:
//! reads files, the API, the kernel or the agent's metrics port, prints, and gives the exit code. 0
//! means yes, 1 means no where a command asks something, 2 means that it could not be done.

// They panic when nobody reads.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod agent_page;
mod check;
mod diff;
mod documents;
mod error;
mod explain;
mod pods;
mod release;
mod render;
mod setup;
mod source;
mod status;
mod table;
mod top;

use std::process::ExitCode;

pub use error::CommandError;
pub use render::tell;

use crate::cli::people::Command;
use crate::logging::with_causes;

/// Carries a sub-command out; what goes wrong is told on stderr.
pub fn run(command: &Command) -> ExitCode {
    let outcome = match command {
        Command::Render(args) => render::run(args),
        Command::Diff(args) => diff::run(args),
        Command::Explain(args) => explain::run(args),
        Command::Status(args) => status::run(args),
        Command::Top(args) => top::run(args),
        Command::Check(args) => check::run(args),
        Command::Release => release::run(),
        Command::Completions(args) => documents::completions(args),
        Command::Man => documents::man(),
        Command::Run(_) | Command::Proxy { .. } => unreachable!("the agent's faces end in main"),
    };
    outcome.unwrap_or_else(|error| {
        tell(&format!("error: {}\n", with_causes(&error)));
        if let Some(advice) = error.advice() {
            tell(&format!("{advice}\n"));
        }
        ExitCode::from(2)
    })
}

/// A runtime for one command.
fn block_on<F: Future>(future: F) -> Result<F::Output, CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CommandError::Runtime)?;
    Ok(runtime.block_on(future))
}
