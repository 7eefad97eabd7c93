//! Comparing listings of tables.

/// The table's own lines, then its blocks by first line: nft lists in order of creation.
pub fn sorted(text: &str) -> Vec<String> {
    let mut blocks = vec![String::new()];
    for line in text.lines().filter(|line| *line != "}" && !line.trim().is_empty()) {
        let line = line.split(" # ").next().unwrap_or_default();
        let indent = line.len() - line.trim_start_matches('\t').len();
        if indent <= 1 && line.ends_with('{') {
            blocks.push(String::new());
        }
        let block = blocks.last_mut().expect("there is always one");
        block.push_str(line);
        block.push('\n');
    }
    blocks.sort();
    blocks
}
