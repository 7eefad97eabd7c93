//! Who is served, and who makes room when everybody's place is taken.
//!
//! Place in the flow: [`super::serve`] asks for a place for each connection it has accepted. The
//! connection that has waited longest for its request makes room for a newcomer, and only where all
//! have sent theirs the oldest of those. A prober sends its request at once, so silent connections
//! take a port from nobody, however many there are. What was accepted a moment ago is left alone: in
//! a burst, a prober's request may not have crossed the network yet.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::{AbortHandle, Abortable};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Limits;

/// How long a connection may be silent even if others want its place.
const FOR_A_REQUEST: Duration = Duration::from_millis(50);

/// How long an answer may take even if others want its place.
const FOR_AN_ANSWER: Duration = Duration::from_secs(1);

/// The places of one listener, or of several that share them.
#[derive(Debug, Clone)]
pub struct Places {
    pub(super) limits: Limits,
    free: Arc<Semaphore>,
    taken: Arc<Mutex<Taken>>,
}

/// Connections in the order in which they came.
#[derive(Debug, Default)]
struct Taken {
    next: u64,
    /// Whose request has not arrived.
    silent: BTreeMap<u64, Connection>,
    /// Who is being answered.
    answering: BTreeMap<u64, Connection>,
}

#[derive(Debug)]
struct Connection {
    accepted: Instant,
    task: AbortHandle,
}

/// How a newcomer gets a place.
#[derive(Debug)]
enum Room {
    /// This connection goes.
    Of(AbortHandle),
    /// Nobody has to go before then.
    Later(Duration),
}

/// One connection's place, free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    number: u64,
    taken: Arc<Mutex<Taken>>,
    _permit: OwnedSemaphorePermit,
}

impl Places {
    /// As many as the limits say, all free.
    pub fn new(limits: Limits) -> Self {
        let free = Arc::new(Semaphore::new(limits.connections));
        Places { limits, free, taken: Arc::default() }
    }

    /// Serves a connection in a task of its own. Returns once it has a place.
    pub(super) async fn serve<F>(&self, connection: impl FnOnce(Arc<Place>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let permit = self.permit().await;
        let (task, registration) = AbortHandle::new_pair();
        let number = lock(&self.taken).silent(task, Instant::now());
        let place = Place { number, taken: Arc::clone(&self.taken), _permit: permit };
        tokio::spawn(Abortable::new(connection(Arc::new(place)), registration));
    }

    async fn permit(&self) -> OwnedSemaphorePermit {
        if let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() {
            return permit;
        }
        let mut permit = std::pin::pin!(Arc::clone(&self.free).acquire_owned());
        loop {
            let room = lock(&self.taken).make_room(Instant::now());
            let timeout = match room {
                Room::Of(task) => {
                    task.abort();
                    FOR_A_REQUEST
                }
                Room::Later(wait) => wait,
            };
            if let Ok(permit) = tokio::time::timeout(timeout, &mut permit).await {
                return permit.expect("the semaphore is never closed");
            }
        }
    }
}

impl Taken {
    /// Notes a newcomer and returns its number.
    fn silent(&mut self, task: AbortHandle, accepted: Instant) -> u64 {
        let number = self.next;
        self.next += 1;
        self.silent.insert(number, Connection { accepted, task });
        number
    }

    /// Takes out who has to go.
    fn make_room(&mut self, now: Instant) -> Room {
        let (oldest, time) = match self.silent.first_entry() {
            Some(oldest) => (oldest, FOR_A_REQUEST),
            None => match self.answering.first_entry() {
                Some(oldest) => (oldest, FOR_AN_ANSWER),
                // All have been told to go.
                None => return Room::Later(FOR_A_REQUEST),
            },
        };
        let left = time.saturating_sub(now.saturating_duration_since(oldest.get().accepted));
        if left.is_zero() { Room::Of(oldest.remove().task) } else { Room::Later(left) }
    }
}

impl Place {
    /// The request has arrived.
    pub(super) fn answer(&self) {
        let mut taken = lock(&self.taken);
        if let Some(connection) = taken.silent.remove(&self.number) {
            taken.answering.insert(self.number, connection);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        taken.silent.remove(&self.number);
        taken.answering.remove(&self.number);
    }
}

fn lock(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    // Nothing can panic half-way through a change, so it is whole even if poisoned.
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_silent_one_goes_first_and_then_the_oldest() {
        let (mut taken, start) = (Taken::default(), Instant::now());
        let handles = [(); 4].map(|()| AbortHandle::new_pair().0);
        for (handle, age) in handles.iter().zip(0..) {
            taken.silent(handle.clone(), start + Duration::from_millis(age));
        }
        for number in [0, 2] {
            let connection = taken.silent.remove(&number).expect("noted");
            taken.answering.insert(number, connection);
        }
        let cases = [(51, 1), (53, 3), (1_000, 0), (1_002, 2)];
        for (milliseconds, expected) in cases {
            let due = start + Duration::from_millis(milliseconds);
            let early = taken.make_room(due - Duration::from_millis(1));
            let Room::Later(left) = early else { panic!("{early:?} before {milliseconds} ms") };
            assert_eq!(left, Duration::from_millis(1), "{expected}");
            let room = taken.make_room(due);
            let Room::Of(task) = room else { panic!("{room:?} at {milliseconds} ms") };
            task.abort();
            assert!(handles[expected].is_aborted(), "{expected}");
        }
    }
}
