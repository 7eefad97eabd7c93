//! `kubectl kubeweir`: asks the agents of a whole cluster, from where people sit.
//!
//! Place in the flow: the `kubectl-kubeweir` binary. It finds the agents' pods, runs `kubeweir` in each
//! through the API server, as `kubectl exec` does, reads JSON, and says of which node it is true. What an
//! answer means is [`crate::inspect`]'s. Must not know Linux: it runs wherever kubectl does.

// They panic when nobody reads.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod ask;
mod cli;
mod cluster;
mod complete;
mod diff;
mod dump;
mod error;
mod explain;
mod flows;
mod names;
mod print;
mod redact;
mod status;
mod top;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::api::Person;
use crate::text::{is_read, manual, tell, with_causes};
use ask::{Answer, Asker};
use cli::{Command, Desk, Output, Reach};
use cluster::Site;
use error::DeskError;

/// What a command found, and the exit code that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    Well = 0,
    /// A problem or a difference.
    Ill = 1,
    /// A node was not reached: whether all is well is not known.
    Unknown = 2,
}

impl Outcome {
    /// Of all nodes together.
    fn of<T>(answers: &[Answer<T>], is_well: impl Fn(&T) -> bool) -> Outcome {
        let of = |answer: &Answer<T>| match answer.answer() {
            None => Outcome::Unknown,
            Some(said) if is_well(said) => Outcome::Well,
            Some(_) => Outcome::Ill,
        };
        answers.iter().map(of).max().unwrap_or(Outcome::Well)
    }
}

/// The whole program: arguments in, exit code out.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let program = arguments.first().and_then(|program| Path::new(program).file_stem());
    if program.is_some_and(|program| program == complete::NAME) {
        let words = arguments.iter().skip(1).map(|word| word.to_string_lossy().into_owned());
        let text = complete::candidates(&Desk::command(), &words.collect::<Vec<_>>());
        return ExitCode::from(u8::from(is_read(&text).is_err()));
    }
    let desk = match Desk::try_parse_from(arguments) {
        Ok(desk) => desk,
        Err(told) => {
            // It is printed where it belongs: help to stdout, mistakes to stderr.
            let _ = told.print();
            return ExitCode::from(if told.use_stderr() { Outcome::Unknown as u8 } else { 0 });
        }
    };
    carried_out(&desk).map_or_else(
        |error| {
            tell(&format!("error: {}\n", with_causes(&error)));
            if let Some(advice) = error.advice() {
                tell(&format!("{advice}\n"));
            }
            ExitCode::from(Outcome::Unknown as u8)
        },
        |outcome| ExitCode::from(outcome as u8),
    )
}

fn carried_out(desk: &Desk) -> Result<Outcome, DeskError> {
    if let Some(text) = own(&desk.command).transpose()? {
        return is_read(&text).map(|_| Outcome::Well).map_err(DeskError::Write);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(DeskError::Runtime)?;
    runtime.block_on(async {
        let room = Room::enter(&desk.reach)?;
        match &desk.command {
            Command::Status => status::run(&room).await,
            Command::Diff(args) => diff::run(&room, args).await,
            Command::Explain(args) => explain::run(&room, args).await,
            Command::Flows(args) => flows::run(&room, args).await,
            Command::Top(args) => top::run(&room, args).await,
            Command::Dump(args) => dump::run(&room, args).await,
            Command::Completions { .. } | Command::Man => unreachable!("nobody is asked for these"),
        }
    })
}

/// What the program says of itself.
fn own(command: &Command) -> Option<Result<String, DeskError>> {
    match command {
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Desk::command(), "kubectl-kubeweir", &mut script);
            Some(Ok(String::from_utf8_lossy(&script).into_owned()))
        }
        Command::Man => Some(manual(&Desk::command()).map_err(DeskError::Write)),
        _ => None,
    }
}

/// What every command needs.
struct Room<'a> {
    reach: &'a Reach,
    asker: Asker,
}

impl Room<'_> {
    fn enter(reach: &Reach) -> Result<Room<'_>, DeskError> {
        let person = Person {
            kubeconfig: reach.kubeconfig.clone(),
            context: reach.context.clone(),
            user_agent: format!("kubectl-kubeweir/{}", env!("CARGO_PKG_VERSION")),
        };
        let asker = Asker {
            client: person.client()?,
            parallel: reach.parallel.get(),
            patience: reach.timeout,
        };
        Ok(Room { reach, asker })
    }

    async fn sites(&self) -> Result<Vec<Site>, DeskError> {
        cluster::sites(&self.asker.client, self.reach).await
    }

    fn output(&self) -> Option<Output> {
        self.reach.output
    }
}
