//! The command line: which face of the program is meant, and with which arguments.
//!
//! Place in the flow: `main` calls [`parse`] first and either exits as told or carries out the
//! [`Command`]. Pure: arguments in, a value out; nothing is printed, read or ended here.
//!
//! Two faces. The agent is kube-proxy's own command line ([`proxy`]): by the program's name, by
//! `kubeweir proxy`, or when the first argument is a flag other than help. Everything else is a
//! sub-command for people ([`people`]).

pub mod people;
pub mod proxy;

use std::path::Path;

use clap::{CommandFactory, Parser};

/// What the process is to do.
#[derive(Debug, Clone)]
pub enum Command {
    /// Be kube-proxy.
    Proxy(Box<proxy::Parsed>),
    /// Do something for a person; never [`people::Command::Proxy`].
    People(Box<people::Command>),
}

/// What the process is to print, and its exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    pub stdout: String,
    pub stderr: String,
    pub code: u8,
}

/// Parses all arguments, the program's name first.
///
/// Errors: [`Exit`], for help and version as for mistakes. Mistakes of the agent's face exit 1, as
/// upstream's; those of a sub-command exit 2, so that `kubeweir diff` can mean something by 1.
pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Command, Exit> {
    let arguments: Vec<String> = arguments.into_iter().collect();
    let (program, rest) = match arguments.split_first() {
        Some((program, rest)) => (program.as_str(), rest),
        None => ("kubeweir", &[] as &[String]),
    };
    match agent_arguments(program, rest) {
        Some(flags) => proxy::parse(flags).map(|parsed| Command::Proxy(Box::new(parsed))),
        None => parse_people(rest),
    }
}

/// The agent's flags, if the agent's face is meant.
fn agent_arguments<'a>(program: &str, rest: &'a [String]) -> Option<&'a [String]> {
    let name = Path::new(program).file_name().and_then(|name| name.to_str()).unwrap_or(program);
    if name == "kube-proxy" {
        return Some(rest);
    }
    match rest.first().map(String::as_str) {
        Some("proxy") => Some(&rest[1..]),
        Some("--help" | "-h") | None => None,
        Some(first) => first.starts_with('-').then_some(rest),
    }
}

fn parse_people(rest: &[String]) -> Result<Command, Exit> {
    let arguments = ["kubeweir"].into_iter().chain(rest.iter().map(String::as_str));
    let people = people::People::try_parse_from(arguments).map_err(|error| {
        let text = error.render().to_string();
        if error.use_stderr() {
            Exit { stdout: String::new(), stderr: text, code: 2 }
        } else {
            Exit { stdout: text, stderr: String::new(), code: 0 }
        }
    })?;
    Ok(Command::People(Box::new(people.command)))
}

/// The whole command tree for people, for completions and the manual page.
pub fn command() -> clap::Command {
    people::People::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(arguments: &[&str]) -> Result<Command, Exit> {
        parse(arguments.iter().map(|argument| (*argument).to_owned()))
    }

    #[test]
    fn faces() {
        let agent: [&[&str]; 6] = [
            &["/usr/local/bin/kube-proxy"],
            &["kube-proxy", "--config=/x"],
            &["kubeweir", "--config=/x"],
            &["kubeweir", "-v4"],
            &["kubeweir", "proxy"],
            &["kubeweir", "proxy", "--config=/x"],
        ];
        for arguments in agent {
            let command = run(arguments);
            assert!(matches!(command, Ok(Command::Proxy(_))), "{arguments:?}: {command:?}");
        }
        let people: [&[&str]; 6] = [
            &["kubeweir", "run", "--manifests", "dir", "--node", "n"],
            &["kubeweir", "render", "-f", "-", "--service", "a/b"],
            &["kubeweir", "diff", "a", "b"],
            &["kubeweir", "explain", "10.0.0.1", "10.96.0.1:443/TCP"],
            &["kubeweir", "status", "-w", "-o", "json"],
            &["kubeweir", "completions", "zsh"],
        ];
        for arguments in people {
            let command = run(arguments);
            assert!(matches!(command, Ok(Command::People(_))), "{arguments:?}: {command:?}");
        }
    }

    #[test]
    fn people_get_help_and_exit_codes_of_their_own() {
        let help = run(&["kubeweir", "--help"]).expect_err("help");
        assert_eq!(help.code, 0);
        assert!(help.stdout.contains("explain"), "{}", help.stdout);
        let bare = run(&["kubeweir"]).expect_err("nothing to do");
        assert_eq!((bare.code, bare.stdout.as_str()), (2, ""));
        let unknown = run(&["kubeweir", "rnder"]).expect_err("no such command");
        assert_eq!(unknown.code, 2);
        assert!(unknown.stderr.contains("render"), "suggests: {}", unknown.stderr);
        let one_render = run(&["kubeweir", "diff", "a"]).expect_err("two files or none");
        assert_eq!(one_render.code, 2);
    }

    #[test]
    fn the_command_tree_is_sound() {
        command().debug_assert();
        proxy::command().debug_assert();
    }
}
