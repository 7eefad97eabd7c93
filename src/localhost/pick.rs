//! Which endpoint a new client gets. Pure: time and chance are arguments.

use std::time::Duration;

use crate::program::LocalhostPort;
use crate::topology::Backend;

/// Endpoints that one client tries at most: each may take the whole dial time-out.
const TRIES: usize = 4;

/// The endpoints of one listener, and the one that affinity holds on to.
#[derive(Debug)]
pub struct Picker {
    backends: Vec<Backend>,
    affinity: Option<Duration>,
    pinned: Option<(Backend, Duration)>,
}

impl Picker {
    /// Nothing is pinned yet.
    pub fn new(port: &LocalhostPort) -> Self {
        let affinity = affinity(port);
        Picker { backends: port.backends.clone(), affinity, pinned: None }
    }

    /// Takes other endpoints or another affinity; a pin stays while both still admit it.
    pub fn replace(&mut self, port: &LocalhostPort) {
        let affinity = affinity(port);
        if self.affinity != affinity {
            self.pinned = None;
        }
        self.affinity = affinity;
        self.backends.clone_from(&port.backends);
    }

    /// Endpoints in the order in which a new client tries them: the pinned one, or any, and then the
    /// following ones. `chance` is evenly distributed.
    pub fn candidates(&self, now: Duration, chance: u32) -> Vec<Backend> {
        let count = self.backends.len();
        let Some(any) = (chance as usize).checked_rem(count) else { return Vec::new() };
        let first = self.held(now).unwrap_or(any);
        (0..count.min(TRIES)).map(|step| self.backends[(first + step) % count]).collect()
    }

    /// A client got this endpoint: with affinity the next ones do, too, until none comes for its time.
    pub fn chosen(&mut self, backend: Backend, now: Duration) {
        self.pinned = self.affinity.map(|_| (backend, now));
    }

    /// Whether an endpoint may still be used.
    pub fn serves(&self, backend: Backend) -> bool {
        self.backends.contains(&backend)
    }

    fn held(&self, now: Duration) -> Option<usize> {
        let (backend, used) = self.pinned?;
        let fresh = now.saturating_sub(used) <= self.affinity?;
        fresh.then(|| self.backends.iter().position(|known| *known == backend)).flatten()
    }
}

fn affinity(port: &LocalhostPort) -> Option<Duration> {
    port.affinity.map(|seconds| Duration::from_secs(seconds.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    fn backend(port: u16) -> Backend {
        Backend { address: [10, 244, 0, 1].into(), port }
    }

    fn port(backends: &[u16], affinity: Option<u32>) -> LocalhostPort {
        let backends = backends.iter().map(|port| backend(*port)).collect();
        LocalhostPort { protocol: Protocol::Tcp, port: 30080, backends, affinity }
    }

    const START: Duration = Duration::ZERO;

    fn first(picker: &Picker, now: Duration, chance: u32) -> u16 {
        picker.candidates(now, chance)[0].port
    }

    #[test]
    fn chance_decides_and_the_following_are_tried_next() {
        let picker = Picker::new(&port(&[1, 2, 3], None));
        let ports = |chance| -> Vec<u16> {
            picker.candidates(START, chance).iter().map(|backend| backend.port).collect()
        };
        assert_eq!([ports(0), ports(4)], [vec![1, 2, 3], vec![2, 3, 1]]);
        let many: Vec<u16> = (1..100).collect();
        let picker = Picker::new(&port(&many, None));
        assert_eq!(picker.candidates(START, 98).len(), TRIES, "a client does not wait for all");
        assert_eq!(Picker::new(&port(&[], None)).candidates(START, 5), []);
    }

    // KEP-6032: ClientIP holds the whole listener to one endpoint, for its time after the last client.
    #[test]
    fn affinity_holds_the_listener() {
        let mut picker = Picker::new(&port(&[1, 2, 3], Some(60)));
        let at = Duration::from_secs;
        picker.chosen(backend(2), at(0));
        assert_eq!(first(&picker, at(60), 0), 2);
        picker.chosen(backend(2), at(60));
        assert_eq!(first(&picker, at(120), 0), 2, "each client renews it");
        assert_eq!(first(&picker, at(121), 0), 1, "its time is over");
        picker.replace(&port(&[2, 3, 4], Some(60)));
        assert_eq!(first(&picker, at(120), 2), 2, "other endpoints may come and go");
        picker.replace(&port(&[3, 4], Some(60)));
        assert_eq!(first(&picker, at(120), 0), 3, "it is gone");
        picker.chosen(backend(4), at(120));
        picker.replace(&port(&[3, 4], Some(30)));
        assert_eq!(first(&picker, at(120), 0), 3, "another affinity starts anew");
        picker.replace(&port(&[3, 4], None));
        picker.chosen(backend(4), at(120));
        assert_eq!(first(&picker, at(120), 0), 3, "none holds nothing");
    }
}
