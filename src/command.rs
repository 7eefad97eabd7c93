//! The sub-commands for people, carried out.
//!
//! Place in the flow: `main` hands over a parsed [`Command`]. The shell around [`crate::inspect`]:
//! reads files, the API, the kernel or the agent's metrics port, prints, and gives the exit code. 0
//! means yes, 1 means no where a command asks something, 2 means that it could not be done.

// They panic when nobody reads.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod agent;
mod diff;
mod error;
mod explain;
mod flows;
mod input;
mod kernel;
mod print;
mod render;
mod running;

use std::process::ExitCode;

pub use error::CommandError;

use crate::cli::people::{Command, CompletionsArgs, Shell};
use crate::text::{manual, tell, with_causes};
use print::print;

/// Carries a sub-command out; what goes wrong is told on stderr.
pub fn run(command: &Command) -> ExitCode {
    let outcome = match command {
        Command::Render(args) => render::run(args),
        Command::Diff(args) => diff::run(args),
        Command::Explain(args) => explain::run(args),
        Command::Flows(args) => flows::run(args),
        Command::Status(args) => agent::status(args),
        Command::Top(args) => agent::top(args),
        Command::Check(args) => kernel::check(args),
        Command::Release => kernel::release(),
        Command::Completions(args) => completions(args),
        Command::Man => man(),
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

/// Prints a completion script.
fn completions(args: &CompletionsArgs) -> Result<ExitCode, CommandError> {
    let shell = match args.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut crate::cli::command(), "kubeweir", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the manual: the program's page, then one section for each sub-command.
fn man() -> Result<ExitCode, CommandError> {
    let text = manual(&crate::cli::command()).map_err(CommandError::Write)?;
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}
