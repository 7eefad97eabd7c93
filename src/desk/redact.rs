//! Addresses taken out of a text: each gets a name of its own, so that it can still be told from others.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// Names given so far.
#[derive(Debug, Default)]
pub struct Redactor {
    names: BTreeMap<IpAddr, String>,
    count: BTreeMap<bool, usize>,
}

impl Redactor {
    /// The same text with a name for each address. Ports, prefix lengths and everything else stay; addresses
    /// that mean the same everywhere (unspecified, loopback) too.
    pub fn redact(&mut self, text: &str) -> String {
        let mut redacted = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(start) = rest.find(is_part) {
            let (before, from) = rest.split_at(start);
            let end = from.find(|c| !is_part(c)).unwrap_or(from.len());
            let (word, after) = from.split_at(end);
            redacted += before;
            // A word that goes on is no address.
            let is_joined = before.ends_with(is_letter) || after.starts_with(is_letter);
            redacted += &if is_joined { word.to_owned() } else { self.word(word) };
            rest = after;
        }
        redacted + rest
    }

    fn word(&mut self, word: &str) -> String {
        // What ends a sentence, or comes before what is said of the address.
        let mut bare = word;
        loop {
            let end = &word[bare.len()..];
            if let Ok(address) = bare.parse::<IpAddr>() {
                return self.name(address) + end;
            }
            if let Ok(SocketAddr::V4(socket)) = bare.parse::<SocketAddr>() {
                return format!("{}:{}{end}", self.name(IpAddr::V4(*socket.ip())), socket.port());
            }
            match bare.strip_suffix(['.', ':']) {
                Some(shorter) => bare = shorter,
                None => return word.to_owned(),
            }
        }
    }

    fn name(&mut self, address: IpAddr) -> String {
        if address.is_unspecified() || address.is_loopback() {
            return address.to_string();
        }
        if let Some(name) = self.names.get(&address) {
            return name.clone();
        }
        let count = self.count.entry(address.is_ipv6()).or_default();
        *count += 1;
        let name = format!("{}-{count}", if address.is_ipv6() { "ipv6" } else { "ipv4" });
        self.names.insert(address, name.clone());
        name
    }
}

fn is_part(c: char) -> bool {
    c.is_ascii_hexdigit() || c == '.' || c == ':'
}

fn is_letter(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_get_names_and_nothing_else_changes() {
        let mut redactor = Redactor::default();
        for (text, expected) in [
            ("10.96.0.10:80/tcp: endpoint 10.244.1.10:8080", "ipv4-1:80/tcp: endpoint ipv4-2:8080"),
            ("\"10.96.0.10\", 10.0.0.0/8.", "\"ipv4-1\", ipv4-3/8."),
            ("[fd00::1]:80 and fd00::1, fd00::2", "[ipv6-1]:80 and ipv6-1, ipv6-2"),
            ("10.96.0.10 . tcp . 80 : 10.244.1.10 . 80", "ipv4-1 . tcp . 80 : ipv4-2 . 80"),
            ("at 10.96.0.10: refused", "at ipv4-1: refused"),
            ("2026-11-28T10:00:00.5Z v1.37.0+kubeweir.0.1.0 0.0.0.0 ::1 127.0.0.1:10249", ""),
            ("a:b dead:beef shop/web:http I1128 10:00:00.000000 v10.0.0.1", ""),
            ("fd00:10:244::/56 fd00::3: node-10.244.1.10", "ipv6-3/56 ipv6-4: node-ipv4-2"),
        ] {
            let expected = if expected.is_empty() { text } else { expected };
            assert_eq!(redactor.redact(text), expected);
        }
    }
}
