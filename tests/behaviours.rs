//! Every numbered behaviour of kube-proxy (B-001 to B-263) is held by a test that cites it in a
//! comment directly above itself, or is listed with a reason in `tests/deviations.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const LAST: u16 = 263;

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory of the crate") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The numbers in a text, in order; `B-` without three digits is none.
fn numbers(text: &str) -> Vec<u16> {
    let after = text.split("B-").skip(1);
    after.filter_map(|rest| rest.get(..3).and_then(|digits| digits.parse().ok())).collect()
}

/// The comment blocks that stand directly above a test, with the line each ends on.
fn citations(source: &str) -> Vec<(usize, String)> {
    let mut comment = String::new();
    let mut cited = Vec::new();
    for (at, line) in source.lines().enumerate() {
        let line = line.trim_start();
        if let Some(text) = line.strip_prefix("//").filter(|_| !line.starts_with("//!")) {
            comment += text;
            comment += "\n";
            continue;
        }
        if line.starts_with("#[") && line.contains("test") && !comment.is_empty() {
            cited.push((at, std::mem::take(&mut comment)));
        }
        // Other attributes may stand between.
        if !line.starts_with("#[") {
            comment.clear();
        }
    }
    cited
}

/// What tests cite: number to the places.
fn cited() -> BTreeMap<u16, Vec<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for directory in ["src", "tests"] {
        sources(&root.join(directory), &mut files);
    }
    let mut cited: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    for file in files {
        let source = fs::read_to_string(&file).expect("a source file");
        for (line, comment) in citations(&source) {
            let place = format!("{}:{line}", file.strip_prefix(root).expect("inside").display());
            let range = comment.match_indices("B-").any(|(at, _)| {
                let rest = comment.get(at + 5..).unwrap_or_default();
                [" to B-", "..B-", "-B-", "..=B-"].iter().any(|range| rest.starts_with(range))
            });
            assert!(!range, "{place}: a range cites what nobody looked at: {comment}");
            for number in numbers(&comment) {
                cited.entry(number).or_default().push(place.clone());
            }
        }
    }
    cited
}

/// The rows of the table of deviations.
fn deviations() -> BTreeSet<u16> {
    let text = include_str!("deviations.md");
    let rows = text.lines().filter(|line| line.starts_with("| B-"));
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        assert!(cells.len() == 3 && cells.iter().all(|cell| !cell.is_empty()), "{line}");
        numbers(cells[0])
    };
    rows.flat_map(row).collect()
}

#[test]
fn every_behaviour_is_held_or_a_named_deviation() {
    let (cited, deviations) = (cited(), deviations());
    let unknown: Vec<_> =
        cited.iter().filter(|(number, _)| !(1..=LAST).contains(*number)).collect();
    assert!(unknown.is_empty(), "no such behaviour: {unknown:?}");
    let open = |number: &u16| !cited.contains_key(number) && !deviations.contains(number);
    let missing: Vec<String> = (1..=LAST).filter(open).map(|n| format!("B-{n:03}")).collect();
    assert!(missing.is_empty(), "neither tested nor a deviation: {missing:?}");
}

#[test]
fn only_comments_above_tests_count() {
    let source = "// B-001: x\n#[test]\nfn a() {}\n\n// B-002\nfn b() {}\n\n// B-003,\n// B-004\n\
                  #[tokio::test]\n#[ignore]\nasync fn c() {}\n";
    let found: Vec<u16> = citations(source).iter().flat_map(|(_, text)| numbers(text)).collect();
    assert_eq!(found, [1, 3, 4]);
}
