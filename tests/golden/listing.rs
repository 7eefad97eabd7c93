//! Listings of nft, made comparable.

/// The table's own lines, then its blocks in order: nft lists objects in order of creation.
pub fn sorted_blocks(text: &str) -> Vec<String> {
    let mut blocks = vec![String::new()];
    for line in text.lines().filter(|line| *line != "}") {
        let indent = line.len() - line.trim_start_matches('\t').len();
        if indent == 1 && line.ends_with(" {") {
            blocks.push(String::new());
        }
        let block = blocks.last_mut().expect("there is always one");
        block.push_str(line);
        block.push('\n');
    }
    let mut blocks: Vec<String> = blocks.iter().map(|block| block.trim_end().to_owned()).collect();
    blocks[1..].sort();
    blocks
}
