//! What the agent can say to an operator, read out of its source: log lines from warning on, reasons of
//! Events, problems of `kubeweir status`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::{fs, iter};

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use serde::Deserialize;

/// How it is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Channel {
    Log,
    Event,
    Status,
}

/// Of messages.yaml.
#[derive(Debug, Deserialize)]
pub struct Section {
    pub section: String,
    pub messages: Vec<Explained>,
}

/// A message under the name of its channel, and what there is to know.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Explained {
    log: Option<String>,
    event: Option<String>,
    status: Option<String>,
    pub means: String,
    pub traffic: String,
    #[serde(rename = "do")]
    pub what_to_do: String,
}

impl Explained {
    pub fn key(&self) -> (Channel, String) {
        match (&self.log, &self.event, &self.status) {
            (Some(text), None, None) => (Channel::Log, text.clone()),
            (None, Some(text), None) => (Channel::Event, text.clone()),
            (None, None, Some(text)) => (Channel::Status, text.clone()),
            _ => panic!("one of log, event, status: {self:?}"),
        }
    }
}

/// Log lines that only pass on a text, and where such texts are born.
const PASSED_ON: [&str; 3] =
    ["src/agent/programming.rs", "src/config.rs", "src/manifest/reader.rs"];
const BORN: [(&str, [&str; 2], &str); 4] = [
    ("src/config/sanity.rs", ["fn", "wrong_family"], "error"),
    ("src/config/sanity.rs", ["fn", "nodeport_addresses"], "error"),
    ("src/node/nodeport.rs", ["for", "Hint"], "error"),
    ("src/manifest.rs", ["enum", "ManifestError"], "error"),
];

/// Each message with the level or the type it is said with. What is filled in is `…`.
pub fn of_the_source() -> BTreeMap<(Channel, String), BTreeSet<String>> {
    let mut found = Found::default();
    for (path, tokens) in sources(Path::new("src")) {
        found.log_lines(&path, &tokens);
    }
    assert_eq!(
        found.passed_on,
        PASSED_ON.map(str::to_owned).into(),
        "where do its texts come from?"
    );
    assert_eq!(found.by_path, ["src/config/sanity.rs".to_owned()].into(), "as above");
    for (path, place, level) in BORN {
        sentences(&block(path, place)).for_each(|text| found.add(Channel::Log, &text, level));
    }
    for place in [["fn", "problems"], ["fn", "of_family"]] {
        let block = block("src/inspect/status.rs", place);
        sentences(&block).for_each(|text| found.add(Channel::Status, &text, "problem"));
    }
    for texts in groups(&block("src/api/events.rs", ["fn", "texts"])) {
        if let [reason, kind, _action] = &strings(&texts)[..] {
            found.add(Channel::Event, reason, kind);
        }
    }
    found.messages
}

#[derive(Default)]
struct Found {
    messages: BTreeMap<(Channel, String), BTreeSet<String>>,
    passed_on: BTreeSet<String>,
    by_path: BTreeSet<String>,
}

impl Found {
    fn add(&mut self, channel: Channel, text: &str, level: &str) {
        self.messages.entry((channel, open(text))).or_default().insert(level.to_owned());
    }

    /// `warn!(…)` and `error!(…)`, whose message is the last text, and `Note::warning(…)`, `Note::error(…)`.
    fn log_lines(&mut self, path: &str, tokens: &[TokenTree]) {
        for (at, token) in tokens.iter().enumerate() {
            let TokenTree::Ident(name) = token else { continue };
            let level = match name.to_string().as_str() {
                "warn" | "warning" => "warning",
                "error" => "error",
                _ => continue,
            };
            let before: String =
                tokens[..at].iter().rev().take(3).map(ToString::to_string).collect();
            let is_note = before == "::Note";
            match &tokens[at + 1..] {
                [TokenTree::Punct(bang), TokenTree::Group(said), ..] if bang.as_char() == '!' => {
                    let said: Vec<TokenTree> = said.stream().into_iter().collect();
                    let message = said.iter().rev().find_map(string).expect("a message");
                    if says_something(&open(&message)) {
                        self.add(Channel::Log, &message, level);
                    } else {
                        self.passed_on.insert(path.to_owned());
                    }
                }
                [TokenTree::Group(said), ..] if is_note => {
                    let message = strings(&flat(said.stream())).first().cloned();
                    let message = message.unwrap_or_else(|| constant(path, &flat(said.stream())));
                    self.add(Channel::Log, &message, level);
                }
                _ if is_note => drop(self.by_path.insert(path.to_owned())),
                _ => {}
            }
        }
    }
}

/// The source without its tests, each file's tokens in one row: a group, then what is in it.
fn sources(directory: &Path) -> Vec<(String, Vec<TokenTree>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(directory)).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let path = directory.join(&name);
        match name.as_str() {
            "testing" | "testing.rs" | "tests" | "tests.rs" => {}
            name if name.ends_with(".rs") => {
                let path = path.to_str().unwrap().to_owned();
                files.push((path.clone(), tokens(&path)));
            }
            _ => files.extend(sources(&path)),
        }
    }
    files
}

/// The tests of a module are at its end.
fn tokens(path: &str) -> Vec<TokenTree> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    flat(text.parse().unwrap_or_else(|error| panic!("{path}: {error}")))
}

fn flat(tokens: TokenStream) -> Vec<TokenTree> {
    let with_inner = |token: TokenTree| {
        let inner = match &token {
            TokenTree::Group(group) => flat(group.stream()),
            _ => Vec::new(),
        };
        iter::once(token).chain(inner)
    };
    tokens.into_iter().flat_map(with_inner).collect()
}

/// All tokens in the first braces behind two words.
fn block(path: &str, words: [&str; 2]) -> Vec<TokenTree> {
    let tokens = tokens(path);
    let is_there = |pair: &[TokenTree]| words.iter().zip(pair).all(|(w, t)| t.to_string() == *w);
    let at = tokens.windows(2).position(is_there).unwrap_or_else(|| panic!("{path}: no {words:?}"));
    let braces = tokens[at..].iter().find_map(|token| match token {
        TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => Some(group),
        _ => None,
    });
    flat(braces.unwrap().stream())
}

/// The text of the constant that is named first.
fn constant(path: &str, named: &[TokenTree]) -> String {
    let (name, tokens) = (named[0].to_string(), tokens(path));
    let at =
        tokens.windows(2).position(|t| t[0].to_string() == "const" && t[1].to_string() == name);
    tokens[at.unwrap_or_else(|| panic!("{path}: no text in Note({name})"))..]
        .iter()
        .find_map(string)
        .unwrap()
}

fn groups(tokens: &[TokenTree]) -> impl Iterator<Item = Vec<TokenTree>> {
    tokens.iter().filter_map(|token| match token {
        TokenTree::Group(group) => Some(group.stream().into_iter().collect()),
        _ => None,
    })
}

fn string(token: &TokenTree) -> Option<String> {
    let TokenTree::Literal(literal) = token else { return None };
    match syn::Lit::new(literal.clone()) {
        syn::Lit::Str(text) => Some(text.value()),
        _ => None,
    }
}

fn strings(tokens: &[TokenTree]) -> Vec<String> {
    tokens.iter().filter_map(string).collect()
}

/// Of several words: the others are names, and what is put between sentences. A doc comment begins with a space.
fn sentences(tokens: &[TokenTree]) -> impl Iterator<Item = String> {
    let texts = strings(tokens).into_iter();
    texts.filter(|text| {
        text.trim_start() == text && text.contains(' ') && says_something(&open(text))
    })
}

fn says_something(text: &str) -> bool {
    text.chars().any(char::is_alphanumeric)
}

/// With `…` for each `{…}`.
fn open(text: &str) -> String {
    let mut parts = text.split('{');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |open, part| open + "…" + part.split_once('}').map_or("", |(_, rest)| rest))
}
