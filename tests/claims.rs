//! Each line of the table in `tests/faults/README.md` that says what happens when ... names the tests
//! that hold it, and each of them exists.

use std::fs;
use std::path::Path;

const TABLE: &str = include_str!("faults/README.md");

const HEAD: &str = "| Event | Service traffic | What Kubeweir does | What you see | Held by |";

/// The cells of each row.
fn rows() -> Vec<Vec<&'static str>> {
    let table = TABLE.lines().skip_while(|line| *line != HEAD).skip(2);
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
    let rows = rows();
    assert!(rows.len() > 20, "the table was not found");
    for row in rows {
        let [event, _, _, _, held_by] = row[..] else { panic!("five cells: {row:?}") };
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
