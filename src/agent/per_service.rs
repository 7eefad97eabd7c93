//! What elements counted, added up by service port.

use std::cmp::Ordering;
use std::ops::Range;

use crate::kernel::DumpError;
use crate::metrics::ServiceCount;
use crate::model::{Family, Protocol};
use crate::netlink::{Counted, Counters};
use crate::program::{FrontendSpace, SetId};
use crate::ruleset::{Key, Name};

/// How often sets are read that change meanwhile.
const ATTEMPTS: usize = 3;

/// The counters of some sets of frontends, of both families.
///
/// Shape: two vectors, whatever the number of frontends: they are made and freed with every scrape.
#[derive(Debug, Default)]
pub struct PerService {
    labels: String,
    frontends: Vec<Frontend>,
}

#[derive(Debug)]
struct Frontend {
    /// Where its label, `namespace/service:port`, is in the labels.
    label: Range<u32>,
    protocol: Protocol,
    family: Family,
    key: Key,
    packets: u64,
}

impl PerService {
    /// Reads some sets of frontends.
    ///
    /// A frontend that is missed would be a counter that went back, which Prometheus takes for one that
    /// began again: so sets are read until an answer has each frontend once, and at last everything
    /// that any answer had counts.
    ///
    /// Errors: if the kernel does not answer.
    pub fn read(counters: &mut Counters, sets: &[SetId]) -> Result<PerService, DumpError> {
        let named = sets.iter().filter_map(|set| Some((set.space()?, set.name())));
        let sets: Vec<(FrontendSpace, Name)> = named.collect();
        PerService::whole(|found| {
            let mut undisturbed = true;
            for family in Family::BOTH {
                for (space, name) in &sets {
                    let add = |element: Counted<'_>| found.add(family, *space, element);
                    undisturbed &= counters.elements(family, name, add)?;
                }
            }
            Ok(undisturbed)
        })
    }

    /// Reads until an answer is whole: `read` adds what is there, and tells whether nobody changed
    /// anything meanwhile.
    fn whole(
        mut read: impl FnMut(&mut PerService) -> Result<bool, DumpError>,
    ) -> Result<PerService, DumpError> {
        let mut found = PerService::default();
        for _ in 0..ATTEMPTS {
            let before = found.frontends.len();
            let undisturbed = read(&mut found)?;
            let delivered = found.frontends.len() - before;
            found.settle();
            if undisturbed && found.frontends.len() == delivered {
                break;
            }
        }
        Ok(found)
    }

    fn add(&mut self, family: Family, space: FrontendSpace, element: Counted<'_>) {
        let Counted { key, comment, packets } = element;
        let protocol_at = match space {
            FrontendSpace::Services => family.address_len(),
            FrontendSpace::NodePorts => 0,
        };
        let Some(protocol) = key.protocol_at(protocol_at) else { return };
        let start = self.labels.len() as u32;
        self.labels.push_str(comment);
        let label = start..self.labels.len() as u32;
        self.frontends.push(Frontend { label, protocol, family, key, packets });
    }

    /// Puts them in order, each once, with what it counted last.
    fn settle(&mut self) {
        let PerService { labels, frontends } = self;
        frontends.sort_unstable_by(|a, b| {
            a.port(labels, b).then_with(|| a.key.cmp(&b.key)).then(b.packets.cmp(&a.packets))
        });
        frontends.dedup_by(|a, b| a.port(labels, b).is_eq() && a.key == b.key);
    }

    /// Says each service port's sum, by label, protocol and family; why it is, of drops.
    pub fn each(&self, reason: Option<&'static str>, each: &mut dyn FnMut(ServiceCount<'_>)) {
        let same = |a: &Frontend, b: &Frontend| a.port(&self.labels, b).is_eq();
        for frontends in self.frontends.chunk_by(same) {
            let first = &frontends[0];
            let Some((namespace, rest)) = first.label(&self.labels).split_once('/') else {
                continue;
            };
            let (service, port_name) = rest.split_once(':').unwrap_or((rest, ""));
            each(ServiceCount {
                namespace,
                service,
                port_name,
                protocol: first.protocol,
                family: first.family,
                reason,
                count: frontends.iter().map(|frontend| frontend.packets).sum(),
            });
        }
    }
}

impl Frontend {
    fn label<'a>(&self, labels: &'a str) -> &'a str {
        &labels[self.label.start as usize..self.label.end as usize]
    }

    /// Compares service ports.
    fn port(&self, labels: &str, other: &Frontend) -> Ordering {
        self.label(labels)
            .cmp(other.label(labels))
            .then(self.protocol.cmp(&other.protocol))
            .then(self.family.cmp(&other.family))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn element(last: u8, comment: &str, packets: u64) -> Counted<'_> {
        let address = Ipv4Addr::new(10, 0, 0, last).into();
        let key = Key::new().address(address).protocol(Protocol::Tcp).port(80);
        Counted { key, comment, packets }
    }

    /// What is said after these answers of the kernel, and how many it was asked for.
    fn said(answers: &[(&[Counted<'_>], bool)]) -> (Vec<(String, u64)>, usize) {
        let mut asked = 0;
        let found = PerService::whole(|found| {
            let (elements, undisturbed) = answers[asked];
            for &element in elements {
                found.add(Family::V4, FrontendSpace::Services, element);
            }
            asked += 1;
            Ok(undisturbed)
        });
        let mut said = Vec::new();
        found.expect("the kernel answers").each(None, &mut |count| {
            let ServiceCount { namespace, service, port_name, count, .. } = count;
            said.push((format!("{namespace} {service} {port_name}"), count));
        });
        (said, asked)
    }

    #[test]
    fn frontends_are_added_up_in_order() {
        let elements =
            [element(3, "b/web", 1), element(1, "a/web:http", 5), element(2, "a/web:http", 6)];
        let sums = vec![("a web http".to_owned(), 11), ("b web ".to_owned(), 1)];
        assert_eq!(said(&[(&elements, true)]), (sums, 1));
    }

    // To Prometheus a sum without one of its frontends is a counter that began again.
    #[test]
    fn an_answer_that_is_not_whole_is_asked_for_again() {
        let [one, two] = [element(1, "a/web", 5), element(2, "a/web", 7)];
        let whole = vec![("a web ".to_owned(), 12)];
        let later = [element(1, "a/web", 6), two];
        let interrupted = [(&[one][..], false), (&[two, one], true)];
        assert_eq!(said(&interrupted), (whole.clone(), 2), "something was committed meanwhile");
        let pushed_out = [(&[one, one][..], true), (&[one, two], true)];
        assert_eq!(said(&pushed_out), (whole, 2), "one came twice, so another was pushed out");
        let grown = [(&[one, two][..], false), (&later, true)];
        assert_eq!(said(&grown), (vec![("a web ".to_owned(), 13)], 2), "the later count");
        let never = [(&[one][..], false), (&[two], false), (&[one], false)];
        assert_eq!(said(&never), (vec![("a web ".to_owned(), 12)], 3), "all that any had");
    }
}
