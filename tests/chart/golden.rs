//! Generated files that are part of the repository.

use std::path::Path;

/// Compares a file with what it should be; with UPDATE_GOLDEN=1 in the environment, writes it.
pub fn check(path: &str, expected: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1") {
        std::fs::write(&file, expected).unwrap();
        return;
    }
    let actual = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(actual == expected, "{path} is not current: run this test with UPDATE_GOLDEN=1");
}
