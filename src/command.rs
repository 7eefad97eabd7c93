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
mod render;

use std::process::ExitCode;

pub use error::CommandError;

use crate::cli::people::{Command, CompletionsArgs, Output, Shell};
use crate::text::{self, json, manual, tell, with_causes};

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

fn block_on<F: Future>(future: F) -> Result<F::Output, CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CommandError::Runtime)?;
    Ok(runtime.block_on(future))
}

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

// What a command prints: text, JSON, screens that are drawn again.

/// Writes to stdout; a reader that went away has seen enough.
fn print(text: &str) -> Result<(), CommandError> {
    is_read(text).map(drop)
}

/// The same; whether somebody still reads.
fn is_read(text: &str) -> Result<bool, CommandError> {
    text::is_read(text).map_err(CommandError::Write)
}

/// JSON, written to stdout.
fn print_json(value: &impl serde::Serialize) -> Result<(), CommandError> {
    print(&json(value))
}

/// What a watching command writes each time: over the last screen of a terminal, after an empty line
/// anywhere else. Programs get one document after the other.
fn screen(text: &str, output: Output) -> String {
    match output {
        Output::Json => text.to_owned(),
        Output::Text => match rustix::termios::tcgetwinsize(std::io::stdout()) {
            Ok(size) => {
                let (rows, columns) = (size.ws_row.into(), size.ws_col.into());
                format!("\x1b[H\x1b[2J{}", clipped(text, rows, columns))
            }
            Err(_) => format!("\n{text}"),
        },
    }
}

/// The lines that fit: what scrolls away at the top would be the most important. A terminal of no
/// size does not tell its size.
fn clipped(text: &str, rows: usize, columns: usize) -> String {
    let mut left = if rows == 0 { usize::MAX } else { rows.saturating_sub(1) };
    let fits = |line: &&str| {
        let height = line.chars().count().div_ceil(columns.max(1)).max(1);
        let fits = height <= left;
        left = left.saturating_sub(height);
        fits
    };
    text.split_inclusive('\n').take_while(fits).collect()
}

/// The screen when the agent does not answer: it may be restarting, so that watching goes on.
fn failure(error: &CommandError, output: Output) -> String {
    let told = format!("error: {}\n", with_causes(error));
    match output {
        Output::Text => told + "trying again\n",
        Output::Json => {
            tell(&told);
            String::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_is_not_higher_than_the_terminal() {
        let text = "one\ntwo and more\nthree\nfour\n";
        let cases = [
            (4, 80, "one\ntwo and more\nthree\n"),
            (4, 8, "one\ntwo and more\n"),
            (3, 8, "one\n"),
            (0, 0, text),
        ];
        for (rows, columns, expected) in cases {
            assert_eq!(clipped(text, rows, columns), expected, "{rows} x {columns}");
        }
    }
}
