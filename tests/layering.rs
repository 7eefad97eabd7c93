//! Who may know whom: the table in `src/lib.rs`, module by module.
//!
//! A new `use crate::…` between modules fails here until this table says that it is meant.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each module and those it uses.
#[rustfmt::skip]
const USES: &[(&str, &[&str])] = &[
    // model
    ("model", &[]),
    ("backoff", &[]),
    // core
    ("topology", &["model"]),
    ("ruleset", &["model"]),
    ("transaction", &["model", "ruleset"]),
    ("program", &["model", "ruleset", "topology"]),
    ("engine", &["model", "program", "ruleset", "topology", "transaction"]),
    // adapters
    ("source", &["model"]),
    ("wire", &["model"]),
    ("manifest", &["model", "source", "wire"]),
    ("api", &["model", "source", "wire"]),
    ("netlink", &["model", "ruleset", "transaction"]),
    ("conntrack", &["model", "node"]),
    ("node", &["model", "program"]),
    ("sysctl", &[]),
    ("cleanup", &["model", "netlink", "node"]),
    ("http_server", &[]),
    ("localhost", &["http_server", "metrics", "model", "program", "topology"]),
    ("health", &["http_server", "metrics", "model"]),
    ("metrics", &["http_server", "model", "transaction"]),
    // what the agent tells
    ("status", &["engine"]),
    // orchestration
    ("sync", &[
        "backoff", "engine", "logging", "model", "netlink", "program", "ruleset", "source", "topology",
        "transaction",
    ]),
    ("agent", &[
        "api", "backoff", "cleanup", "config", "conntrack", "engine", "health", "http_server", "localhost",
        "logging", "manifest", "metrics", "model", "netlink", "node", "program", "source", "status", "sync",
        "sysctl", "topology", "transaction",
    ]),
    // shell
    ("config", &["cli", "model", "node", "program"]),
    ("cli", &["config"]),
    ("logging", &["config"]),
    ("inspect", &["engine", "model", "program", "ruleset", "status", "topology", "transaction"]),
    ("command", &[
        "api", "cli", "config", "inspect", "logging", "manifest", "model", "netlink", "node", "program", "ruleset",
        "source", "status", "sync", "topology", "transaction",
    ]),
];

/// What decides about traffic.
const CORE: [&str; 7] =
    ["model", "backoff", "topology", "ruleset", "transaction", "program", "engine"];

/// The other crates that the core may use: values, and nothing that does anything.
const CORE_CRATES: [&str; 8] =
    ["foldhash", "ipnet", "libc", "serde", "serde_json", "sha2", "smallvec", "thiserror"];

/// I/O, clocks, threads and logging: never in the core.
#[rustfmt::skip]
const FORBIDDEN: [&str; 12] = [
    "std::fs", "std::env", "std::process", "std::thread", "std::net::Tcp", "std::net::Udp", "std::io::Read",
    "Instant::now", "SystemTime", "Timestamp::now", "println!", "async fn",
];

fn files(module: &str) -> Vec<PathBuf> {
    fn below(directory: &Path, found: &mut Vec<PathBuf>) {
        let Ok(entries) = fs::read_dir(directory) else { return };
        for path in entries.map(|entry| entry.expect("an entry").path()) {
            let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
            if name == "tests" {
                continue;
            }
            match path.is_dir() {
                true => below(&path, found),
                false => found.push(path),
            }
        }
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = vec![source.join(format!("{module}.rs"))];
    below(&source.join(module), &mut found);
    found
}

/// A file's code: no comments, no tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = code.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

fn word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// What follows each `prefix` in some code.
fn after(code: &str, prefix: &str) -> BTreeSet<String> {
    code.split(prefix).skip(1).map(|rest| word(rest).to_owned()).collect()
}

/// The dependencies of Cargo.toml as code writes them.
fn dependencies() -> BTreeSet<String> {
    let manifest = include_str!("../Cargo.toml");
    let section = manifest.split("\n[dependencies]\n").nth(1).expect("dependencies");
    let section = section.split("\n[").next().expect("a section");
    let lines = section.lines().filter_map(|line| line.split_once(" = "));
    lines.map(|(name, _)| name.replace('-', "_")).collect()
}

#[test]
fn modules_use_what_the_table_says() {
    for (module, allowed) in USES {
        for file in files(module) {
            for used in after(&code(&file), "crate::") {
                let known = used == *module || allowed.contains(&used.as_str());
                assert!(known, "{}: {module} may not know {used}", file.display());
            }
        }
    }
}

#[test]
fn the_table_is_complete() {
    let library = include_str!("../src/lib.rs");
    let declared: BTreeSet<&str> = library
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'))
        .collect();
    let mut listed: BTreeSet<&str> = USES.iter().map(|(module, _)| *module).collect();
    listed.insert("testing");
    assert_eq!(declared, listed);
    for module in declared {
        assert!(library.contains(&format!("[`{module}`]")) || module == "testing", "{module}");
    }
}

#[test]
fn the_core_is_pure() {
    let dependencies = dependencies();
    for module in CORE {
        for file in files(module) {
            let code = code(&file);
            for forbidden in FORBIDDEN {
                assert!(!code.contains(forbidden), "{}: {forbidden}", file.display());
            }
            for name in dependencies.iter().filter(|name| !CORE_CRATES.contains(&name.as_str())) {
                let uses = [format!("use {name}::"), format!(" {name}::"), format!("({name}::")];
                let used = uses.iter().any(|pattern| code.contains(pattern.as_str()));
                assert!(!used, "{}: the core may not use {name}", file.display());
            }
            for name in after(&code, "libc::") {
                let constant = !name.chars().any(|c| c.is_ascii_lowercase()) || name == "c_int";
                assert!(constant, "{}: libc::{name} is a system call", file.display());
            }
        }
    }
}

// The one place for `unsafe`, and the one for errors without a type.
#[test]
fn unsafe_and_anyhow_have_one_place_each() {
    for (module, _) in USES {
        for file in files(module) {
            let code = code(&file);
            assert!(!code.contains("anyhow"), "{}", file.display());
            let is_unsafe = code.contains("unsafe {") || code.contains("unsafe impl");
            assert!(!is_unsafe || *module == "netlink", "{}", file.display());
        }
    }
}
