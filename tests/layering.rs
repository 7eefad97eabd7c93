//! Who may know whom: the table in `src/lib.rs`, module by module.
//!
//! A new `use crate::…` between modules fails here until this table says that it is meant.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each module and those it uses.
#[rustfmt::skip]
const USES: &[(&str, &[&str])] = &[
    // model
    ("model", &[]),
    ("backoff", &[]),
    ("text", &[]),
    // core
    ("topology", &["model"]),
    ("ruleset", &["model"]),
    ("kernel", &["model", "ruleset"]),
    ("program", &["model", "ruleset", "topology"]),
    ("engine", &["model", "program", "ruleset", "topology", "kernel"]),
    // adapters
    ("source", &["model"]),
    ("wire", &["model"]),
    ("manifest", &["model", "source", "wire"]),
    ("api", &["backoff", "model", "source", "wire"]),
    ("netlink", &["conntrack", "model", "ruleset", "kernel"]),
    ("conntrack", &["model"]),
    ("node", &["model", "program"]),
    ("sysctl", &[]),
    ("cleanup", &["model", "netlink"]),
    ("http_server", &[]),
    ("localhost", &["http_server", "metrics", "model", "program", "topology"]),
    ("health", &["http_server", "metrics", "model"]),
    ("metrics", &["conntrack", "http_server", "model", "kernel"]),
    // what the agent tells
    ("status", &["conntrack", "engine", "source"]),
    // orchestration
    ("sync", &[
        "backoff", "engine", "model", "netlink", "program", "ruleset", "source", "text", "topology",
        "kernel",
    ]),
    ("agent", &[
        "api", "backoff", "cleanup", "config", "conntrack", "engine", "health", "http_server", "localhost",
        "logging", "manifest", "metrics", "model", "netlink", "node", "program", "ruleset", "source", "status", "sync",
        "sysctl", "text", "topology", "kernel",
    ]),
    // shell
    ("config", &["model", "node", "program"]),
    ("cli", &["config"]),
    ("logging", &["config", "text"]),
    ("inspect", &["conntrack", "engine", "model", "program", "ruleset", "status", "topology", "kernel"]),
    ("command", &[
        "api", "cli", "config", "conntrack", "inspect", "manifest", "model", "netlink", "node", "program", "ruleset",
        "source", "status", "sync", "text", "topology", "kernel",
    ]),
    ("desk", &["api", "inspect", "model", "status", "text"]),
    // what tests share; nobody else knows it
    ("testing", &["model", "program", "ruleset", "kernel", "wire"]),
];

/// What both programs have: everything but the agent's own modules, which `src/lib.rs` marks.
fn without_the_agent() -> Vec<&'static str> {
    let library = include_str!("../src/lib.rs");
    let mut mark = "";
    let mut modules = Vec::new();
    for line in library.lines() {
        let module = line.strip_prefix("pub mod ").and_then(|rest| rest.strip_suffix(';'));
        modules.extend(module.filter(|_| mark.is_empty() || mark.contains("\"desk\"")));
        mark = if line.starts_with("#[cfg(") { line } else { "" };
    }
    modules
}

/// What decides about traffic.
const CORE: [&str; 7] = ["model", "backoff", "topology", "ruleset", "kernel", "program", "engine"];

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

/// A file's code: no comments, no texts, no tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    bare(text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default())
}

/// Code without comments and with empty literals.
fn bare(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let word = code.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let raw = rest.strip_prefix('r').map(|rest| rest.trim_start_matches('#'));
        rest = if rest.starts_with("//") {
            &rest[rest.find('\n').unwrap_or(rest.len())..]
        } else if rest.starts_with("/*") {
            rest.split_once("*/").map_or("", |(_, rest)| rest)
        } else if let Some(quoted) = raw.filter(|raw| !word && raw.starts_with('"')) {
            let end = format!("\"{}", "#".repeat(rest.len() - quoted.len() - 1));
            code.push_str("\"\"");
            quoted[1..].split_once(&end).map_or("", |(_, rest)| rest)
        } else if c == '"' || is_char(rest) {
            code.push_str("\"\"");
            after_literal(&rest[1..], c)
        } else {
            code.push(c);
            &rest[c.len_utf8()..]
        };
    }
    code
}

/// Whether a character begins here, and not a lifetime.
fn is_char(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next() == Some('\'') && (chars.next() == Some('\\') || chars.next() == Some('\''))
}

fn after_literal(text: &str, quote: char) -> &str {
    let mut escaped = false;
    let end = text.find(|c| {
        let ends = c == quote && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    });
    end.map_or("", |end| &text[end + quote.len_utf8()..])
}

fn word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// What follows each `prefix` in some code.
fn after(code: &str, prefix: &str) -> BTreeSet<String> {
    code.split(prefix).skip(1).map(|rest| word(rest).to_owned()).collect()
}

/// A path of the crate, as code names it from its root.
#[derive(Debug, PartialEq, Eq)]
struct Named {
    path: Vec<String>,
    /// It is given on under a name of the module's own.
    exported: bool,
}

/// The paths that code in a module names: `crate::…` and `super::…`, with what stands in braces.
fn named(code: &str, module: &[String]) -> Vec<Named> {
    let tokens = tokens(code);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let begins = ["crate", "super"].contains(&tokens[at])
            && tokens.get(at + 1) == Some(&"::")
            && (at == 0 || tokens[at - 1] != "::");
        if !begins {
            at += 1;
            continue;
        }
        let before = &tokens[at.saturating_sub(5)..at];
        let exported = before.ends_with(&["pub", "use"]) || before.ends_with(&[")", "use"]);
        let mut paths = Vec::new();
        at = tree(&tokens, at, &[], &mut paths);
        found.extend(
            paths.into_iter().map(|path| Named { path: from_root(&path, module), exported }),
        );
    }
    found
}

fn tokens(code: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let len = match word(rest).len() {
            0 if rest.starts_with("::") => 2,
            0 => first.len_utf8(),
            len => len,
        };
        tokens.push(&rest[..len]);
        rest = rest[len..].trim_start();
    }
    tokens
}

/// One path, or as many as its braces hold; where it ends.
fn tree<'a>(
    tokens: &[&'a str],
    start: usize,
    prefix: &[&'a str],
    paths: &mut Vec<Vec<&'a str>>,
) -> usize {
    let mut path = prefix.to_vec();
    let mut at = start;
    loop {
        match tokens.get(at) {
            Some(&"{") => {
                at += 1;
                while tokens.get(at).is_some_and(|token| *token != "}") {
                    at = tree(tokens, at, &path, paths);
                    while tokens.get(at).is_some_and(|token| !["}", ","].contains(token)) {
                        at += 1;
                    }
                    at += usize::from(tokens.get(at) == Some(&","));
                }
                return at + 1;
            }
            Some(segment) if !word(segment).is_empty() => path.push(*segment),
            _ => break,
        }
        at += 1;
        if tokens.get(at) != Some(&"::") {
            break;
        }
        at += 1;
    }
    paths.push(path);
    at
}

fn from_root(path: &[&str], module: &[String]) -> Vec<String> {
    let up = path.iter().take_while(|segment| **segment == "super").count();
    let base: &[String] = match up {
        0 => &[],
        _ => &module[..module.len().saturating_sub(up)],
    };
    let rest = &path[up.max(1)..];
    base.iter().cloned().chain(rest.iter().map(|segment| (*segment).to_owned())).collect()
}

/// The path of a file's module.
fn module_of(file: &Path) -> Vec<String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let relative = file.strip_prefix(source).expect("below src").with_extension("");
    relative.iter().map(|part| part.to_string_lossy().into_owned()).collect()
}

/// What each module uses in truth: also what another one only gives on.
fn uses() -> BTreeMap<&'static str, BTreeSet<String>> {
    let mut named_by: BTreeMap<&str, Vec<Named>> = BTreeMap::new();
    for (module, _) in USES {
        for file in files(module) {
            let names = named(&code(&file), &module_of(&file));
            named_by.entry(module).or_default().extend(names);
        }
    }
    let mut given_on: BTreeMap<(String, String), String> = BTreeMap::new();
    for (module, names) in &named_by {
        let others = names.iter().filter(|named| named.exported && named.path[0] != *module);
        for Named { path, .. } in others {
            let name = path.last().expect("a path has segments").clone();
            given_on.insert(((*module).to_owned(), name), path[0].clone());
        }
    }
    let used = |module: &str, names: &[Named]| -> BTreeSet<String> {
        let origin = |path: &[String]| {
            let name = (path[0].clone(), path.get(1)?.clone());
            given_on.get(&name).cloned()
        };
        let direct = names.iter().map(|named| named.path[0].clone());
        let all = direct.chain(names.iter().filter_map(|named| origin(&named.path)));
        all.filter(|used| used != module).collect()
    };
    named_by.iter().map(|(module, names)| (*module, used(module, names))).collect()
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
    let mut wrong = Vec::new();
    for (module, used) in uses() {
        let table = USES.iter().find(|(name, _)| *name == module).map(|(_, allowed)| *allowed);
        let allowed: BTreeSet<String> =
            table.unwrap_or_default().iter().map(|name| (*name).to_owned()).collect();
        let more = used.difference(&allowed).map(|used| format!("{module} may not know {used}"));
        // A table that allows what nobody does forbids nothing.
        let less = allowed.difference(&used).map(|used| format!("{module} does not know {used}"));
        wrong.extend(more.chain(less));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Those of a graph that use themselves through others, with what they use there.
fn circles(mut left: BTreeMap<String, BTreeSet<String>>) -> BTreeMap<String, BTreeSet<String>> {
    loop {
        let used: BTreeSet<String> = left.values().flatten().cloned().collect();
        let there: BTreeSet<String> = left.keys().cloned().collect();
        let before = left.len();
        // Who uses nobody, or is used by nobody, is in none.
        left.retain(|module, uses| used.contains(module) && !uses.is_disjoint(&there));
        if left.len() == before {
            return left;
        }
    }
}

// Floors: a module uses only what lies below it.
#[test]
fn no_module_uses_itself_through_others() {
    let uses = uses().into_iter().map(|(module, used)| (module.to_owned(), used)).collect();
    assert_eq!(circles(uses), BTreeMap::new());
}

// The same within each module: of two files beside each other, one is below. A file and those below its
// own folder are one story, and may name each other.
#[test]
fn no_file_uses_itself_through_its_neighbours() {
    let all: Vec<PathBuf> = USES.iter().flat_map(|(module, _)| files(module)).collect();
    let modules: BTreeSet<Vec<String>> = all.iter().map(|file| module_of(file)).collect();
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in &all {
        let from = module_of(file);
        for Named { path, .. } in named(&code(file), &from) {
            let to =
                (1..=path.len()).rev().map(|len| &path[..len]).find(|to| modules.contains(*to));
            let Some(to) = to.filter(|to| to[0] == from[0]) else { continue };
            let common = from.iter().zip(to).take_while(|(one, other)| one == other).count();
            if common < from.len().min(to.len()) {
                let beside = |path: &[String]| path[..=common].join("::");
                uses.entry(beside(&from)).or_default().insert(beside(to));
            }
        }
    }
    assert!(uses.len() > 50, "files use each other: {}", uses.len());
    assert_eq!(circles(uses), BTreeMap::new());
}

#[test]
fn paths_are_seen_however_they_are_written() {
    let module = ["a".to_owned(), "b".to_owned()];
    let paths = |text: &str| -> Vec<String> {
        named(&bare(text), &module).iter().map(|named| named.path.join("::")).collect()
    };
    for (text, seen) in [
        ("use crate::x::Y;", &["x::Y"][..]),
        ("use crate::{x::{Y, self}, z as w};", &["x::Y", "x::self", "z"]),
        ("super::super::x::y()", &["x::y"]),
        ("use super::c::{D, E};", &["a::c::D", "a::c::E"]),
        ("f(\"http://x\"); crate::x::y()", &["x::y"]),
        ("// crate::x\n/* crate::y */ \"crate::z\" r#\"\" crate::w\"#", &[]),
        ("let c = '\"'; crate::x::y(); '\\''; fn f<'a>() { crate::z::w }", &["x::y", "z::w"]),
    ] {
        assert_eq!(paths(text), seen, "{text}");
    }
    let given_on = named("pub use crate::x::Y; pub(crate) use crate::z; use crate::w;", &module);
    let exported: Vec<bool> = given_on.iter().map(|named| named.exported).collect();
    assert_eq!(exported, [true, true, false]);
}

#[test]
fn the_table_is_complete() {
    let library = include_str!("../src/lib.rs");
    let declared: BTreeSet<&str> = library
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'))
        .collect();
    let listed: BTreeSet<&str> = USES.iter().map(|(module, _)| *module).collect();
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

// `kubectl kubeweir` runs wherever kubectl does. `make lint` builds it so.
#[test]
fn the_desk_knows_nothing_of_linux() {
    let modules = without_the_agent();
    assert!(modules.contains(&"desk") && modules.contains(&"model"), "{modules:?}");
    assert!(!modules.contains(&"netlink") && !modules.contains(&"agent"), "{modules:?}");
    for (module, used) in uses() {
        let beyond = used.iter().find(|used| !modules.contains(&used.as_str()));
        assert!(beyond.is_none() || !modules.contains(&module), "{module} uses {beyond:?}");
    }
    let linux = [
        "nix::",
        "nftnl",
        "rtnetlink",
        "rustix::",
        "std::os::unix",
        "std::os::linux",
        "libc::socket",
    ];
    for file in modules.iter().flat_map(|module| files(module)) {
        let code = code(&file);
        let word = linux.iter().find(|word| code.contains(**word));
        assert!(word.is_none(), "{}: {word:?}", file.display());
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
