//! A listing from a file, taken apart: what `kubeweir render` and `nft list table` print.
//!
//! Place in the flow: `kubeweir diff` compares files through it; tables of the kernel never become
//! text. Knows the shape of the text, and no more of the program than its sets' names.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::view::{Frontends, Member, Property, RuleView, View};
use crate::model::Protocol;
use crate::program::{Extension, FrontendAt, FrontendKey, FrontendSpace, SetId};
use crate::ruleset::Table;

/// One table.
///
/// Shape: everything as it is printed; sets, maps and chains by name, rules in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// nft's name of the family: `ip`, `ip6`.
    pub family: String,
    pub comment: Option<String>,
    pub sets: BTreeMap<String, ListedSet>,
    /// The lines within.
    pub chains: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ListedSet {
    pub declaration: Vec<String>,
    pub elements: Vec<ListedElement>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ListedElement {
    /// The key: `10.96.0.1 . tcp . 80`.
    pub key: String,
    pub value: Option<String>,
    pub comment: Option<String>,
}

/// A text that is no listing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: expected {expected}, found {found:?}")]
pub struct NoListing {
    /// From 1.
    pub line: usize,
    pub expected: &'static str,
    pub found: String,
}

/// Reads a listing: the tables named kube-proxy in it, others are passed over.
///
/// Errors: the first line that does not fit.
pub fn parse(text: &str) -> Result<Vec<Listing>, NoListing> {
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

    fn table(&mut self, family: &str) -> Result<Listing, NoListing> {
        let mut table = Listing { family: family.to_owned(), ..Listing::default() };
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

    fn set(&mut self) -> Result<ListedSet, NoListing> {
        let mut set = ListedSet::default();
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
            set.elements = split_items(text).map(element).collect();
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

/// A comment may have anything in it but a quote.
fn element(text: &str) -> ListedElement {
    let (head, comment, tail) = match text.split_once(" comment \"") {
        Some((head, rest)) => {
            let (comment, tail) = rest.split_once('"').unwrap_or((rest, ""));
            (head, Some(comment.to_owned()), tail)
        }
        None => (text, None, text),
    };
    let value = tail.rsplit_once(" : ").map(|(_, value)| value.to_owned());
    let ends = [" counter ", " timeout ", " expires ", " : "];
    let end = ends.iter().filter_map(|word| head.find(word)).min().unwrap_or(head.len());
    ListedElement { key: head[..end].to_owned(), value, comment }
}

impl Listing {
    /// The same for a comparison.
    pub fn view(&self) -> View {
        let mut view = View { frontends: self.frontends(), ..View::default() };
        for (name, set) in &self.sets {
            view.sets.insert(name.clone());
            if let Some(id) = SetId::from_name(name).filter(|id| id.space().is_none()) {
                view.addresses.insert(id, set.elements.iter().map(member).collect());
            }
        }
        for (name, rules) in &self.chains {
            view.chains.insert(name.clone(), rules.iter().map(|text| rule(text)).collect());
        }
        view
    }

    fn frontends(&self) -> Frontends {
        let mut frontends = Frontends::new();
        for (name, set) in &self.sets {
            let Some(id) = SetId::from_name(name) else { continue };
            let Some(space) = id.space() else { continue };
            for element in &set.elements {
                let Some(key) = frontend_key(&element.key, space) else { continue };
                let frontend = frontends.entry(key).or_default();
                if let Some(comment) = &element.comment {
                    frontend.label = Some(comment.as_str().into());
                }
                match (id, element.value.as_deref()) {
                    (SetId::Endpoints(_, scope, _), Some(value)) => {
                        frontend.endpoints.entry(scope).or_default().extend(endpoint(value));
                    }
                    (SetId::Restricted, Some(value)) => {
                        frontend.properties.extend(self.source_ranges(target(value)));
                    }
                    (SetId::Remember(_), Some(value)) => {
                        let timeout = self.affinity_timeout(target(value));
                        frontend.properties.insert(Property::Affinity(timeout));
                    }
                    _ => frontend.properties.extend(Property::of(id)),
                }
            }
        }
        frontends
    }

    fn source_ranges(&self, set: &str) -> impl Iterator<Item = Property> {
        let elements = self.sets.get(set).into_iter().flat_map(|set| &set.elements);
        elements.map(|range| Property::SourceRange(range.key.clone()))
    }

    fn affinity_timeout(&self, chain: &str) -> Option<String> {
        let mut todo = vec![chain];
        while let Some(chain) = todo.pop() {
            for rule in self.chains.get(chain)? {
                if let Some((_, after)) = rule.split_once(" timeout ") {
                    return after.split(' ').next().map(str::to_owned);
                }
                let last = ["jump ", "goto "].iter().find_map(|verdict| rule.split_once(verdict));
                todo.extend(last.map(|(_, chain)| chain.trim()));
            }
        }
        None
    }
}

/// The chain of `jump CHAIN` or `goto CHAIN`.
fn target(verdict: &str) -> &str {
    verdict.trim_start_matches("jump ").trim_start_matches("goto ")
}

fn rule(text: &str) -> RuleView {
    let mut sets = text.split(' ').filter_map(|word| SetId::from_name(word.strip_prefix('@')?));
    RuleView { text: text.to_owned(), extension: sets.find_map(Extension::of) }
}

fn member(element: &ListedElement) -> Member {
    let address = element.key.split(" . ").next().and_then(|first| first.parse().ok());
    Member { text: element.key.clone(), address }
}

fn frontend_key(key: &str, space: FrontendSpace) -> Option<FrontendKey> {
    let mut fields = key.split(" . ");
    let at = match space {
        FrontendSpace::Services => FrontendAt::Address(fields.next()?.parse().ok()?),
        FrontendSpace::NodePorts => FrontendAt::NodePort,
    };
    let protocol = Protocol::from_api(&fields.next()?.to_uppercase())?;
    Some(FrontendKey { at, protocol, port: fields.next()?.parse().ok()? })
}

/// `10.244.0.5 . 8080`.
fn endpoint(value: &str) -> Option<SocketAddr> {
    let (address, port) = value.split_once(" . ")?;
    Some(SocketAddr::new(address.parse::<IpAddr>().ok()?, port.parse().ok()?))
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
            \t\t\t     10.96.0.2 . udp . 53 counter packets 3 bytes 0 comment \"d, e : f\" }\n\t}\n\n\
            \tmap clients {\n\t\telements = { 10.0.0.1 timeout 3h expires 2h59m : 10.244.0.1 . 80 }\n\t}\n\
            \n\tchain services {\n\t\tip daddr @x jump y\n\t}\n}\n";
        let tables = parse(text).expect("a listing");
        assert_eq!(tables.len(), 1);
        let table = &tables[0];
        assert_eq!((table.family.as_str(), table.comment.as_deref()), ("ip", Some("rules")));
        let item = |key: &str, value: Option<&str>, comment: Option<&str>| ListedElement {
            key: key.into(),
            value: value.map(str::to_owned),
            comment: comment.map(str::to_owned),
        };
        assert_eq!(
            table.sets["refused"].elements,
            [
                item("10.96.0.1 . tcp . 80", None, Some("a/b:c")),
                item("10.96.0.2 . udp . 53", None, Some("d, e : f")),
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
