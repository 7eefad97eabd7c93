//! Each line of the tables in `tests/faults/README.md` that say what happens when ..., and which faults
//! were found, names the tests that hold it, and each of them exists.

use std::fs;
use std::path::Path;

const TABLE: &str = include_str!("faults/README.md");

/// Heads of the tables, and how many rows each has at least.
const TABLES: [(&str, usize); 2] = [
    ("| Event | Service traffic | What Kubeweir does | What you see | Held by |", 23),
    ("| Fault | Broken by | What it said | Held by |", 28),
];

/// The cells of each row.
fn rows(head: &str) -> Vec<Vec<&'static str>> {
    let table = TABLE.lines().skip_while(|line| *line != head).skip(2);
    let rows = table.take_while(|line| line.starts_with('|'));
    rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

/// What stands between backticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// Whether a source has a test function of that name.
fn has_test(source: &str, name: &str) -> bool {
    let mut is_test = false;
    for line in source.lines().map(str::trim_start) {
        if line.starts_with("#[") {
            is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
            continue;
        }
        let function = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
        if is_test && function.is_some_and(|rest| rest.starts_with(&format!("{name}("))) {
            return true;
        }
        is_test &= line.starts_with("//");
    }
    false
}

#[test]
fn each_line_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let all = TABLES.iter().flat_map(|(head, least)| {
        let rows = rows(head);
        assert!(rows.len() >= *least, "{} rows below {head}", rows.len());
        rows
    });
    for row in all {
        let [event, .., held_by] = row[..] else { panic!("cells: {row:?}") };
        let tests = quoted(held_by);
        assert!(!tests.is_empty(), "nothing holds: {event}");
        for test in tests {
            let (path, name) = test.split_once("::").expect("path/file.rs::test");
            let source = fs::read_to_string(root.join(path));
            let source = source.unwrap_or_else(|reason| panic!("{path}, of {event}: {reason}"));
            assert!(has_test(&source, name), "{event}: no test {name} in {path}");
        }
    }
}

#[test]
fn only_test_functions_count() {
    let source = "#[test]\n#[cfg(x)]\nfn a() {}\nfn b() {}\n// fn c()\n#[tokio::test(x)]\n\
                  async fn d() {}\n#[cfg(test)]\nfn e() {}\n#[test]\n\nfn f() {}\n";
    let found = ["a", "b", "c", "d", "e", "f"].map(|name| has_test(source, name));
    assert_eq!(found, [true, false, false, true, false, false]);
}
