//! What both programs print: errors with their causes, tables, documents.
//!
//! Place in the flow: [`crate::command`] and the desk print with it; the log takes its errors from it.
//! Must not know what is printed.

// They panic when nobody reads.
#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::io::{self, ErrorKind, IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};

/// An error and its causes in one line: the text of an error leaves its causes to `source`.
pub fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Writes to stdout; whether somebody still reads. A reader that went away has seen enough.
pub fn is_read(text: &str) -> io::Result<bool> {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes to stderr, whether or not somebody reads it.
pub fn tell(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// JSON for programs, which people can read too.
pub fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).expect("answers are plain data") + "\n"
}

/// A table without lines, as kubectl prints them; as wide as it needs to be.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
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

/// The manual: the program's page, then one section for each sub-command.
///
/// Errors: none that memory does not bring.
pub fn manual(command: &clap::Command) -> io::Result<String> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut text)?;
    for sub in command.get_subcommands() {
        let name = format!("{}-{}", command.get_name(), sub.get_name());
        clap_mangen::Man::new(sub.clone().display_name(name)).render(&mut text)?;
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Red on a terminal, plain anywhere else.
pub fn red(text: &str) -> String {
    let colourful = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    if colourful { format!("\x1b[31m{text}\x1b[0m") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_under_an_empty_header_too() {
        let rows = [["a", "1"], ["long", "2"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&["", "B"], rows), "      B\na     1\nlong  2\n");
    }
}
