//! Tables for terminals.

use std::io::IsTerminal;

use comfy_table::{ContentArrangement, Table, presets};

use super::CommandError;
use crate::agent::with_causes;
use crate::cli::people::Output;

/// A table without lines, as kubectl prints them; as wide as it needs to be.
pub fn plain(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    // Each cell has a space on both sides.
    let line = |line: String| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned() + "\n";
    table.lines().map(line).collect()
}

/// Red on a terminal, plain anywhere else.
pub fn alarming(text: &str) -> String {
    let colourful = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    if colourful { format!("\x1b[31m{text}\x1b[0m") } else { text.to_owned() }
}

/// What a watching command writes each time: over the last picture on a terminal, after an empty line
/// anywhere else. Programs get one document after the other.
pub fn picture(text: &str, output: Output) -> String {
    match output {
        Output::Json => text.to_owned(),
        Output::Text if std::io::stdout().is_terminal() => format!("\x1b[H\x1b[2J{text}"),
        Output::Text => format!("\n{text}"),
    }
}

/// The picture when the agent does not answer: it may be restarting, so that watching goes on.
pub fn trouble(error: &CommandError, output: Output) -> String {
    let told = format!("error: {}\n", with_causes(error));
    match output {
        Output::Text => told,
        Output::Json => {
            eprint!("{told}");
            String::new()
        }
    }
}
