//! `kubeweir completions` and `kubeweir man`: both from the command line's own description.

use std::process::ExitCode;

use super::CommandError;
use super::render::print;
use crate::cli::people::{CompletionsArgs, Shell};

/// Prints a completion script.
pub fn completions(args: &CompletionsArgs) -> Result<ExitCode, CommandError> {
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
pub fn man() -> Result<ExitCode, CommandError> {
    let mut text = Vec::new();
    let command = crate::cli::command();
    clap_mangen::Man::new(command.clone()).render(&mut text).map_err(CommandError::Write)?;
    for sub in command.get_subcommands() {
        let name = format!("kubeweir-{}", sub.get_name());
        let page = clap_mangen::Man::new(sub.clone().display_name(name));
        page.render(&mut text).map_err(CommandError::Write)?;
    }
    print(&String::from_utf8_lossy(&text))?;
    Ok(ExitCode::SUCCESS)
}
