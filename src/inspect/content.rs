//! A table as text: what `kubeweir render` and `nft list table` print, taken apart.
//!
//! Place in the flow: `kubeweir diff` and `explain` look at tables through it, be they the kernel's,
//! wanted ones or files. Knows the shape of the text and nothing of services.

use std::collections::BTreeMap;

use crate::ruleset::{Ruleset, Table, render};

/// One table.
///
/// Shape: everything as it is printed; sets, maps and chains by name, rules in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Content {
    /// nft's name of the family: `ip`, `ip6`.
    pub family: String,
    /// The table's comment.
    pub comment: Option<String>,
    /// Sets and maps.
    pub sets: BTreeMap<String, SetContent>,
    /// Chains: the lines within.
    pub chains: BTreeMap<String, Vec<String>>,
}

/// One set or map.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SetContent {
    /// The lines of its declaration.
    pub declaration: Vec<String>,
    /// Its elements.
    pub elements: Vec<Item>,
}

/// One element.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Item {
    /// The key: `10.96.0.1 . tcp . 80`.
    pub key: String,
    /// What it leads to.
    pub value: Option<String>,
    /// Its comment.
    pub comment: Option<String>,
}

/// A text that is no listing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: expected {expected}, found {found:?}")]
pub struct NoListing {
    /// Line, from 1.
    pub line: usize,
    /// What ought to be there.
    pub expected: &'static str,
    /// What is there.
    pub found: String,
}

impl Content {
    /// What a table contains; `None` without a table.
    pub fn of(ruleset: &Ruleset) -> Option<Content> {
        let tables = parse(&render(ruleset)).expect("what is rendered can be read");
        tables.into_iter().next()
    }
}

/// Reads a listing: the tables named kube-proxy in it, others are passed over.
///
/// Errors: the first line that does not fit.
pub fn parse(text: &str) -> Result<Vec<Content>, NoListing> {
    let mut reader = Reader { lines: text.lines().enumerate().collect(), at: 0 };
    let mut tables = Vec::new();
    while let Some(line) = reader.next() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut words = line.split(' ');
        match (words.next(), words.next(), words.next()) {
            (Some("table"), Some(family), Some(name)) => {
                let table = reader.table(family)?;
                if name == Table::NAME {
                    tables.push(table);
                }
            }
            _ => return Err(reader.misfit("a table")),
        }
    }
    Ok(tables)
}

struct Reader<'a> {
    lines: Vec<(usize, &'a str)>,
    at: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Option<&'a str> {
        let (_, line) = self.lines.get(self.at)?;
        self.at += 1;
        Some(line.trim())
    }

    fn misfit(&self, expected: &'static str) -> NoListing {
        let (line, found) = self.at.checked_sub(1).map_or((0, ""), |last| self.lines[last]);
        NoListing { line: line + 1, expected, found: found.trim().to_owned() }
    }

    fn table(&mut self, family: &str) -> Result<Content, NoListing> {
        let mut table = Content { family: family.to_owned(), ..Content::default() };
        loop {
            let line = self.next().ok_or_else(|| self.misfit("the end of the table"))?;
            if line == "}" {
                return Ok(table);
            }
            let mut words = line.split(' ');
            match (words.next(), words.next(), words.next()) {
                (Some("set" | "map"), Some(name), Some("{")) => {
                    let set = self.set()?;
                    table.sets.insert(name.to_owned(), set);
                }
                (Some("chain"), Some(name), Some("{")) => {
                    let chain = self.block()?;
                    table.chains.insert(name.to_owned(), chain);
                }
                (Some(_), Some(_), Some("{")) => drop(self.block()?),
                (Some("comment"), ..) => table.comment = Some(quoted(line).to_owned()),
                _ => {}
            }
        }
    }

    fn block(&mut self) -> Result<Vec<String>, NoListing> {
        let mut lines = Vec::new();
        loop {
            match self.next().ok_or_else(|| self.misfit("the end of the block"))? {
                "}" => return Ok(lines),
                line => lines.push(line.to_owned()),
            }
        }
    }

    fn set(&mut self) -> Result<SetContent, NoListing> {
        let mut set = SetContent::default();
        loop {
            let line = self.next().ok_or_else(|| self.misfit("the end of the set"))?;
            if line == "}" {
                return Ok(set);
            }
            let Some(first) = line.strip_prefix("elements = {") else {
                set.declaration.push(line.to_owned());
                continue;
            };
            let mut text = first.to_owned();
            while !text.trim_end().ends_with('}') {
                let more = self.next().ok_or_else(|| self.misfit("more elements"))?;
                text.push(' ');
                text.push_str(more);
            }
            let text = text.trim_end().trim_end_matches('}');
            set.elements = split_items(text).map(item).collect();
        }
    }
}

fn quoted(line: &str) -> &str {
    line.split('"').nth(1).unwrap_or_default()
}

/// At commas outside quotes.
fn split_items(text: &str) -> impl Iterator<Item = &str> {
    let mut within = false;
    let parts = text.split(move |c| {
        within ^= c == '"';
        c == ',' && !within
    });
    parts.map(str::trim).filter(|part| !part.is_empty())
}

fn item(text: &str) -> Item {
    let (head, value) = match text.rsplit_once(" : ") {
        Some((head, value)) => (head, Some(value.to_owned())),
        None => (text, None),
    };
    let comment = head.split_once(" comment \"").map(|(_, rest)| rest.trim_end_matches('"'));
    let ends = [" counter ", " timeout ", " expires ", " comment "];
    let end = ends.iter().filter_map(|word| head.find(word)).min().unwrap_or(head.len());
    Item { key: head[..end].to_owned(), value, comment: comment.map(str::to_owned) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listings_are_taken_apart() {
        let text = "table ip other {\n\tchain a {\n\t}\n}\n\
            table ip kube-proxy { # progname kubeweir\n\tcomment \"rules\"\n\n\tset refused {\n\
            \t\ttype ipv4_addr . inet_proto . inet_service\n\t\tcomment \"no endpoints, anywhere\"\n\
            \t\telements = { 10.96.0.1 . tcp . 80 comment \"a/b:c\",\n\
            \t\t\t     10.96.0.2 . udp . 53 counter packets 3 bytes 0 comment \"d, e\" }\n\t}\n\n\
            \tmap clients {\n\t\telements = { 10.0.0.1 timeout 3h expires 2h59m : 10.244.0.1 . 80 }\n\t}\n\
            \n\tchain services {\n\t\tip daddr @x jump y\n\t}\n}\n";
        let tables = parse(text).expect("a listing");
        assert_eq!(tables.len(), 1);
        let table = &tables[0];
        assert_eq!((table.family.as_str(), table.comment.as_deref()), ("ip", Some("rules")));
        let item = |key: &str, value: Option<&str>, comment: Option<&str>| Item {
            key: key.into(),
            value: value.map(str::to_owned),
            comment: comment.map(str::to_owned),
        };
        assert_eq!(
            table.sets["refused"].elements,
            [
                item("10.96.0.1 . tcp . 80", None, Some("a/b:c")),
                item("10.96.0.2 . udp . 53", None, Some("d, e")),
            ]
        );
        assert_eq!(table.sets["refused"].declaration.len(), 2);
        assert_eq!(
            table.sets["clients"].elements,
            [item("10.0.0.1", Some("10.244.0.1 . 80"), None)]
        );
        assert_eq!(table.chains["services"], ["ip daddr @x jump y"]);
    }

    #[test]
    fn what_is_no_listing_is_named() {
        let error = parse("table ip kube-proxy {\n}\nkind: Service\n").expect_err("YAML");
        assert_eq!(error.to_string(), "line 3: expected a table, found \"kind: Service\"");
    }
}
