//! When connections to endpoints that are gone are ended: on request, after a time to drain.
//!
//! Place in the flow: the thread that deletes flows tells it of every turn's services, asks when there
//! is something to do and what, and does it. Pure: time is passed in as the age of the process.
//!
//! An endpoint is gone when it was serving at an earlier turn and is not any more. So a first sync ends
//! nothing, nor does a list that comes again as it was. What comes back in time is kept.
//!
//! A list that loses all it had in one turn may be a mistake of whoever wrote it, and ending every
//! connection would make an outage of it. It is believed where that is one pod, or what one other node
//! had; anything else waits until the list has an endpoint again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::ServedPort;
use crate::model::{Family, ObjectName};

/// At most so many endpoints are ended in a second, one after the other.
const PACE: Duration = Duration::from_millis(100);

/// One list of a service: what serves one of its ports.
pub type List = BTreeMap<SocketAddr, Option<Arc<str>>>;

/// A service in force whose connections are to be ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drained {
    /// The time to drain.
    pub after: Duration,
    /// Endpoints that serve, and their nodes, by the service's port.
    pub lists: BTreeMap<u16, List>,
    /// What clients dial.
    pub ports: Vec<ServedPort>,
}

/// Connections to end: those of a service's port that an endpoint answers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ending {
    pub service: ObjectName,
    pub port: u16,
    pub endpoint: SocketAddr,
}

/// When an ending is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    At(Duration),
    /// When the list has an endpoint again, and that much later.
    Held(Duration),
}

/// Endpoints that are gone, and when their connections end.
#[derive(Debug)]
pub struct Endings {
    node: Arc<str>,
    known: HashMap<(Family, ObjectName), Drained>,
    waiting: BTreeMap<Ending, Due>,
    /// Before that nothing more is ended.
    from: Duration,
}

impl Endings {
    /// Nothing is known yet.
    pub fn new(node: Arc<str>) -> Self {
        let (known, waiting) = (HashMap::new(), BTreeMap::new());
        Endings { node, known, waiting, from: Duration::ZERO }
    }

    /// A turn's services of a family; `None` if they are gone or do not ask for it.
    pub fn told(
        &mut self,
        now: Duration,
        family: Family,
        services: Vec<(ObjectName, Option<Drained>)>,
    ) {
        // Endpoints whose list lost all it had, and their nodes.
        let mut emptied: BTreeMap<IpAddr, Option<Arc<str>>> = BTreeMap::new();
        let mut gone: Vec<(Ending, Duration, bool)> = Vec::new();
        for (service, drained) in services {
            let key = (family, service);
            let Some(drained) = drained else {
                self.known.remove(&key);
                self.forget(family, &key.1);
                continue;
            };
            let before = self.known.insert(key.clone(), drained.clone());
            for (port, list) in &drained.lists {
                self.returned(&key.1, *port, list, now);
                let had = before.as_ref().and_then(|before| before.lists.get(port));
                let had = had.into_iter().flatten();
                for (endpoint, node) in had.filter(|(endpoint, _)| !list.contains_key(*endpoint)) {
                    if list.is_empty() {
                        emptied.insert(endpoint.ip(), node.clone());
                    }
                    let service = key.1.clone();
                    let ending = Ending { service, port: *port, endpoint: *endpoint };
                    gone.push((ending, drained.after, list.is_empty()));
                }
            }
        }
        let believed = self.is_believed(&emptied);
        for (ending, after, of_emptied) in gone {
            let due = match of_emptied && !believed {
                true => Due::Held(after),
                false => Due::At(now + after),
            };
            self.waiting.insert(ending, due);
        }
    }

    /// What is left out of `told` is as it was.
    fn is_believed(&self, emptied: &BTreeMap<IpAddr, Option<Arc<str>>>) -> bool {
        let nodes: BTreeSet<&Option<Arc<str>>> = emptied.values().collect();
        let one_other_node = nodes.len() == 1
            && nodes.iter().all(|node| node.as_ref().is_some_and(|node| *node != self.node));
        emptied.len() <= 1 || one_other_node
    }

    /// A list has these endpoints.
    fn returned(&mut self, service: &ObjectName, port: u16, list: &List, now: Duration) {
        if list.is_empty() {
            return;
        }
        let family = list.keys().next().map(|endpoint| Family::of(&endpoint.ip()));
        let of_list = |ending: &Ending| {
            ending.service == *service
                && ending.port == port
                && Some(Family::of(&ending.endpoint.ip())) == family
        };
        self.waiting.retain(|ending, _| !(of_list(ending) && list.contains_key(&ending.endpoint)));
        for (_, due) in self.waiting.iter_mut().filter(|(ending, _)| of_list(ending)) {
            if let Due::Held(after) = *due {
                *due = Due::At(now + after);
            }
        }
    }

    fn forget(&mut self, family: Family, service: &ObjectName) {
        self.waiting.retain(|ending, _| {
            ending.service != *service || Family::of(&ending.endpoint.ip()) != family
        });
    }

    /// When there is something to end.
    pub fn next(&self) -> Option<Duration> {
        let due = self.waiting.values().filter_map(|due| match due {
            Due::At(at) => Some(*at),
            Due::Held(_) => None,
        });
        due.min().map(|at| at.max(self.from))
    }

    /// The connections to end now, longest due first. It stays due until [`Endings::ended`].
    pub fn due(&self, now: Duration) -> Option<Ending> {
        if now < self.from {
            return None;
        }
        let due = self.waiting.iter().filter_map(|(ending, due)| match due {
            Due::At(at) if *at <= now => Some((*at, ending)),
            _ => None,
        });
        due.min().map(|(_, ending)| ending.clone())
    }

    /// What clients of these connections dialled.
    pub fn port(&self, ending: &Ending) -> Option<&ServedPort> {
        let family = Family::of(&ending.endpoint.ip());
        let drained = self.known.get(&(family, ending.service.clone()))?;
        drained.ports.iter().find(|port| port.port == ending.port)
    }

    /// Nothing is ended for this time: the last attempt failed, or there is more of it.
    pub fn pause(&mut self, now: Duration, time: Duration) {
        self.from = now + time.max(PACE);
    }

    /// They were ended.
    pub fn ended(&mut self, now: Duration, ending: &Ending) {
        self.waiting.remove(ending);
        self.from = now + PACE;
    }

    /// How many wait for their time, and how many until a list has an endpoint again.
    pub fn waiting(&self) -> (usize, usize) {
        let held = self.waiting.values().filter(|due| matches!(due, Due::Held(_))).count();
        (self.waiting.len() - held, held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(30);

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("a literal address")
    }

    fn service(name: &str) -> ObjectName {
        ObjectName::new("shop", name)
    }

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    /// A service with one list, of addresses and their nodes.
    fn with(name: &str, endpoints: &[(&str, &str)]) -> (ObjectName, Option<Drained>) {
        let list: List = endpoints
            .iter()
            .map(|(endpoint, node)| (at(endpoint), Some(Arc::from(*node))))
            .collect();
        let lists = BTreeMap::from([(80, list)]);
        (service(name), Some(Drained { after: WINDOW, lists, ports: Vec::new() }))
    }

    fn ending(name: &str, endpoint: &str) -> Ending {
        Ending { service: service(name), port: 80, endpoint: at(endpoint) }
    }

    fn endings() -> Endings {
        Endings::new("here".into())
    }

    const A: (&str, &str) = ("10.1.0.1:8080", "a");
    const B: (&str, &str) = ("10.1.1.1:8080", "b");
    const A2: (&str, &str) = ("10.1.0.2:8080", "a");
    const HERE: (&str, &str) = ("10.1.9.1:8080", "here");
    const HERE2: (&str, &str) = ("10.1.9.2:8080", "here");

    fn told(endings: &mut Endings, now: u64, services: &[(&str, &[(&str, &str)])]) {
        let services = services.iter().map(|(name, list)| with(name, list)).collect();
        endings.told(secs(now), Family::V4, services);
    }

    #[test]
    fn an_endpoint_that_leaves_is_ended_after_its_window() {
        let mut endings = endings();
        told(&mut endings, 0, &[("web", &[A, B])]);
        assert_eq!(endings.next(), None, "a first sync ends nothing");
        told(&mut endings, 5, &[("web", &[A, B])]);
        assert_eq!(endings.next(), None, "nor does the same list again");
        told(&mut endings, 10, &[("web", &[B])]);
        assert_eq!(endings.next(), Some(secs(40)));
        assert_eq!(endings.due(secs(39)), None);
        assert_eq!(endings.due(secs(40)), Some(ending("web", A.0)));
        assert_eq!(endings.due(secs(41)), Some(ending("web", A.0)), "due until it was done");
        endings.ended(secs(41), &ending("web", A.0));
        assert_eq!((endings.next(), endings.due(secs(99))), (None, None));
    }

    #[test]
    fn an_endpoint_that_comes_back_in_time_is_kept() {
        let mut endings = endings();
        told(&mut endings, 0, &[("web", &[A, B])]);
        told(&mut endings, 1, &[("web", &[B])]);
        told(&mut endings, 2, &[("web", &[A, B])]);
        assert_eq!(endings.next(), None);
    }

    #[test]
    fn a_service_that_is_gone_or_does_not_ask_any_more_is_left_alone() {
        let mut endings = endings();
        told(&mut endings, 0, &[("web", &[A, B])]);
        told(&mut endings, 1, &[("web", &[B])]);
        endings.told(secs(2), Family::V4, vec![(service("web"), None)]);
        assert_eq!(endings.next(), None);
        told(&mut endings, 3, &[("web", &[])]);
        assert_eq!(endings.next(), None, "as at a first sync");
    }

    #[test]
    fn never_faster_than_the_pace() {
        let mut endings = endings();
        told(&mut endings, 0, &[("web", &[A, A2, B])]);
        told(&mut endings, 0, &[("web", &[B])]);
        assert_eq!(endings.due(WINDOW), Some(ending("web", A.0)));
        endings.ended(WINDOW, &ending("web", A.0));
        assert_eq!(endings.due(WINDOW), None);
        assert_eq!(endings.next(), Some(WINDOW + PACE));
        assert_eq!(endings.due(WINDOW + PACE), Some(ending("web", A2.0)));
    }

    #[test]
    fn a_list_that_is_lost_as_a_whole_is_held_until_it_has_an_endpoint_again() {
        let mut endings = endings();
        told(&mut endings, 0, &[("web", &[A, B])]);
        told(&mut endings, 1, &[("web", &[])]);
        assert_eq!((endings.next(), endings.waiting()), (None, (0, 2)));
        told(&mut endings, 9, &[("web", &[A])]);
        assert_eq!((endings.next(), endings.waiting()), (Some(secs(39)), (1, 0)));
        assert_eq!(endings.due(secs(39)), Some(ending("web", B.0)));
    }

    #[test]
    fn what_is_believed() {
        type Lists<'a> = &'a [(&'a str, &'a [(&'a str, &'a str)])];
        let cases: [(&str, Lists<'_>, bool); 5] = [
            ("a list of one", &[("web", &[A])], true),
            (
                "the only endpoint of each of two services, on one node",
                &[("x", &[A]), ("y", &[A2])],
                true,
            ),
            ("a list of two on one node", &[("web", &[A, A2])], true),
            ("two nodes", &[("x", &[A]), ("y", &[B])], false),
            ("two pods of this node, which is alive", &[("x", &[HERE]), ("y", &[HERE2])], false),
        ];
        for (name, lists, believed) in cases {
            let mut endings = endings();
            told(&mut endings, 0, lists);
            let emptied: Vec<(&str, &[(&str, &str)])> =
                lists.iter().map(|(service, _)| (*service, &[][..])).collect();
            told(&mut endings, 1, &emptied);
            assert_eq!(endings.next().is_some(), believed, "{name}");
            assert_eq!(endings.waiting().1 == 0, believed, "{name}");
        }
    }

    // Families do not know each other.
    #[test]
    fn families() {
        let mut endings = endings();
        told(&mut endings, 0, &[("web", &[A, B])]);
        told(&mut endings, 1, &[("web", &[B])]);
        let v6: (&str, &str) = ("[fd01::1]:8080", "a");
        endings.told(secs(2), Family::V6, vec![with("web", &[v6])]);
        endings.told(secs(3), Family::V6, vec![(service("web"), None)]);
        assert_eq!(endings.due(secs(31)), Some(ending("web", A.0)));
    }
}
