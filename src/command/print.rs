//! What a command prints: text, JSON, screens that are drawn again.

use super::CommandError;
use crate::cli::people::Output;
use crate::text::{self, json, tell, with_causes};

/// Writes to stdout; a reader that went away has seen enough.
pub fn print(text: &str) -> Result<(), CommandError> {
    is_read(text).map(drop)
}

/// The same; whether somebody still reads.
pub fn is_read(text: &str) -> Result<bool, CommandError> {
    text::is_read(text).map_err(CommandError::Write)
}

/// JSON, written to stdout.
pub fn print_json(value: &impl serde::Serialize) -> Result<(), CommandError> {
    print(&json(value))
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
