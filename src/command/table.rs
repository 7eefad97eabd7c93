//! Tables for terminals.

use std::io::IsTerminal;

use comfy_table::{ContentArrangement, Table, presets};

/// A table without lines, as kubectl prints them; as wide as it needs to be.
pub fn plain(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    let lines = table.lines().map(|line| line.trim().to_owned() + "\n");
    lines.collect()
}

/// Red on a terminal, plain anywhere else.
pub fn alarming(text: &str) -> String {
    let colourful = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    if colourful { format!("\x1b[31m{text}\x1b[0m") } else { text.to_owned() }
}

/// Clears a terminal for the next picture; nothing anywhere else.
pub fn clear() -> &'static str {
    if std::io::stdout().is_terminal() { "\x1b[2J\x1b[H" } else { "" }
}
