//! What a command prints: text, JSON, tables, screens that are drawn again.

use std::io::{IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};

use super::CommandError;
use crate::cli::people::Output;
use crate::logging::with_causes;

/// Writes to stdout; a reader that went away has seen enough.
pub fn print(text: &str) -> Result<(), CommandError> {
    is_read(text).map(drop)
}

/// The same; whether somebody still reads.
pub fn is_read(text: &str) -> Result<bool, CommandError> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(CommandError::Write(error)),
    }
}

/// Writes to stderr, whether or not somebody reads it.
pub fn tell(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// JSON for programs, which people can read too.
pub fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).expect("answers are plain data") + "\n"
}

/// The same, written to stdout.
pub fn print_json(value: &impl serde::Serialize) -> Result<(), CommandError> {
    print(&json(value))
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

/// Red on a terminal, plain anywhere else.
pub fn red(text: &str) -> String {
    let colourful = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    if colourful { format!("\x1b[31m{text}\x1b[0m") } else { text.to_owned() }
}

/// What a watching command writes each time: over the last screen of a terminal, after an empty line
/// anywhere else. Programs get one document after the other.
pub fn screen(text: &str, output: Output) -> String {
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
pub fn failure(error: &CommandError, output: Output) -> String {
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
    fn columns_are_aligned_under_an_empty_header_too() {
        let rows = [["a", "1"], ["long", "2"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&["", "B"], rows), "      B\na     1\nlong  2\n");
    }

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
