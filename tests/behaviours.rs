//! `tests/behaviour/kube-proxy.md` says what kube-proxy does. Every numbered behaviour there (B-001 to
//! B-263) is held by a test that cites it in a comment directly above itself, or is listed with a
//! reason in `tests/deviations.md`; and every number and section that is cited anywhere is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const LAST: u16 = 263;

const REFERENCE: &str = include_str!("behaviour/kube-proxy.md");

/// Where texts stand that may cite the reference.
const PLACES: [&str; 5] = ["src", "tests", "benches", "charts", "rules"];

fn files(directory: &Path, extensions: &[&str], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory of the crate") {
        let path = entry.expect("an entry").path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if path.is_dir() {
            files(&path, extensions, found);
        } else if extension.is_some_and(|extension| extensions.contains(&extension)) {
            found.push(path);
        }
    }
}

/// The numbers in a text, in order; `B-` without three digits is none.
fn numbers(text: &str) -> Vec<u16> {
    let after = text.split("B-").skip(1);
    after.filter_map(|rest| rest.get(..3).and_then(|digits| digits.parse().ok())).collect()
}

/// The comment blocks that stand directly above a test function, with the line each ends on.
fn citations(source: &str) -> Vec<(usize, String)> {
    let (mut comment, mut end, mut is_test) = (String::new(), 0, false);
    let mut cited = Vec::new();
    for (at, line) in source.lines().enumerate() {
        let line = line.trim_start();
        if let Some(text) = line.strip_prefix("//").filter(|_| !line.starts_with("//!")) {
            comment += text;
            comment += "\n";
            end = at + 1;
            continue;
        }
        if line.starts_with("#[") {
            // Other attributes may stand between.
            is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
            continue;
        }
        let is_function = line.starts_with("fn ") || line.starts_with("async fn ");
        if is_function && is_test && !comment.is_empty() {
            cited.push((end, std::mem::take(&mut comment)));
        }
        comment.clear();
        is_test = false;
    }
    cited
}

/// What tests cite: number to the places.
fn cited() -> BTreeMap<u16, Vec<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    for directory in ["src", "tests"] {
        files(&root.join(directory), &["rs"], &mut sources);
    }
    let mut cited: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    for file in sources {
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
        assert!(cells.len() == 4 && cells.iter().all(|cell| !cell.is_empty()), "{line}");
        let named = cells[1].split(", ").all(|release| ["1.36", "1.37"].contains(&release));
        assert!(named, "the releases that it speaks of: {line}");
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

/// What a text cites of the reference: behaviours, quirks, sections.
fn references(text: &str) -> BTreeSet<String> {
    let numbered = |kind: &'static str, digits: usize| {
        text.match_indices(kind).filter_map(move |(at, _)| {
            let alone = text[..at].chars().next_back().is_none_or(|c| !c.is_alphanumeric());
            let number = text.get(at + kind.len()..at + kind.len() + digits)?;
            let is_number = alone && number.chars().all(|c| c.is_ascii_digit());
            is_number.then(|| format!("{kind}{number}"))
        })
    };
    let mut found: BTreeSet<String> = numbered("B-", 3).chain(numbered("Q-", 2)).collect();
    // Comments are broken into lines anywhere.
    let words: Vec<&str> = text
        .split_whitespace()
        .filter(|word| !["//", "///", "//!", "and", "to"].contains(word))
        .collect();
    for (at, word) in words.iter().enumerate() {
        let word = word.trim_start_matches(|c: char| !c.is_alphabetic()).to_lowercase();
        if !["section", "sections", "table"].contains(&word.as_str()) {
            continue;
        }
        let number = |word: &&str| {
            let number = word.trim_end_matches(|c: char| !c.is_ascii_digit());
            let dotted = number.split('.').all(|part| part.parse::<u8>().is_ok());
            dotted.then(|| number.to_owned())
        };
        let numbers = words[at + 1..].iter().map_while(number);
        found.extend(numbers.take(if word == "sections" { 4 } else { 1 }));
    }
    found
}

/// What can be cited.
fn defined() -> BTreeSet<String> {
    let lines = REFERENCE.lines().filter_map(|line| {
        let behaviour = line.strip_prefix("- **").and_then(|rest| rest.get(..5));
        let quirk = line.strip_prefix("| Q-").and_then(|_| line.get(2..6));
        let heading = line.strip_prefix("### ").or_else(|| line.strip_prefix("## "));
        let section = heading.and_then(|heading| heading.split(' ').next());
        behaviour.or(quirk).or(section.map(|section| section.trim_end_matches('.')))
    });
    lines.map(str::to_owned).collect()
}

#[test]
fn what_is_cited_is_in_the_reference() {
    let defined = defined();
    let behaviours = (1..=LAST).map(|number| format!("B-{number:03}"));
    let absent: Vec<String> = behaviours.filter(|number| !defined.contains(number)).collect();
    assert!(absent.is_empty(), "not in the reference: {absent:?}");
    assert_eq!(defined.iter().filter(|name| name.starts_with("B-")).count(), usize::from(LAST));

    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut texts =
        ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|name| root.join(name)).to_vec();
    for directory in PLACES {
        files(&root.join(directory), &["rs", "md", "yaml"], &mut texts);
    }
    let mut cited = 0;
    for path in texts {
        // This file has examples.
        if path.ends_with("tests/behaviours.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("a text of the crate");
        for reference in references(&text) {
            cited += 1;
            let known = defined.contains(&reference);
            assert!(known, "{}: no {reference} in the reference", path.display());
        }
    }
    assert!(cited > 300, "{cited} references: they are not recognised");
}

#[test]
fn references_are_recognised() {
    let text =
        "// B-001, Q-07 (section 3.3); see sections 4.2 and\n// 4.3. AB-123, table\n/// 5.10).";
    let found: Vec<String> = references(text).into_iter().collect();
    assert_eq!(found, ["3.3", "4.2", "4.3", "5.10", "B-001", "Q-07"]);
}

#[test]
fn only_comments_above_tests_count() {
    let source = "// B-001: x\n#[test]\nfn a() {}\n\n// B-002\nfn b() {}\n\n// B-003,\n// B-004\n\
                  #[tokio::test]\n#[ignore]\nasync fn c() {}\n\n// B-005\n#[cfg(test)]\nmod tests {\n\
                  // B-006\n#[test]\n\nfn d() {}\n// B-007\n\n#[test]\nfn e() {}\n";
    let found: Vec<u16> = citations(source).iter().flat_map(|(_, text)| numbers(text)).collect();
    assert_eq!(found, [1, 3, 4]);
}
