//! Trying again what the kernel refuses for a moment only.
//!
//! Place in the flow: around the steps of the start that ask the kernel for something. Later the
//! worker's schedule does the same. A process that ended instead would be started again by the
//! kubelet after 10 s, 20 s, 40 s ...; what no retry helps against (a missing capability, a kernel
//! without nf_tables) ends it at once. Decides by errno alone and knows nothing of the steps.

use std::error::Error;
use std::io;
use std::time::Duration;

use tracing::warn;

use super::AgentError;
use crate::backoff::Backoff;
use crate::kernel::CommitError;
use crate::text::with_causes;

/// Pauses between tries.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
/// Retries before giving up.
const RETRIES: u32 = 14;

/// What says "not now" and nothing else: a signal, a lack of memory or of descriptors in the whole
/// system, somebody else at work.
const PASSING: [i32; 6] =
    [libc::EINTR, libc::EAGAIN, libc::ENOBUFS, libc::ENOMEM, libc::ENFILE, libc::EBUSY];

/// Tries `step` until it succeeds, fails for good, or has failed too often. `what` names it in the log.
pub async fn with_retries<T>(
    what: &'static str,
    step: impl AsyncFnMut() -> Result<T, AgentError>,
) -> Result<T, AgentError> {
    with_pauses(pauses(), what, step).await
}

async fn with_pauses<T>(
    mut pauses: impl Iterator<Item = Duration>,
    what: &'static str,
    mut step: impl AsyncFnMut() -> Result<T, AgentError>,
) -> Result<T, AgentError> {
    loop {
        let reason = match step().await {
            Err(reason) if is_passing(&reason) => reason,
            outcome => return outcome,
        };
        let Some(pause) = pauses.next() else { return Err(reason) };
        warn!(what, reason = with_causes(&reason), ?pause, "The kernel refused, trying again");
        tokio::time::sleep(pause).await;
    }
}

/// Doubling from the first to the longest, 19 s in sum.
fn pauses() -> impl Iterator<Item = Duration> {
    (1..=RETRIES).map(|failures| PAUSES.pause(failures))
}

/// Whether an error or one of its causes is one that passes.
fn is_passing(error: &(dyn Error + 'static)) -> bool {
    let errors = std::iter::successors(Some(error), |&error| error.source());
    let mut errnos = errors.filter_map(errno);
    errnos.any(|errno| PASSING.contains(&errno))
}

fn errno(error: &(dyn Error + 'static)) -> Option<i32> {
    if let Some(error) = error.downcast_ref::<io::Error>() {
        let interrupted = error.kind() == io::ErrorKind::Interrupted;
        return error.raw_os_error().or(interrupted.then_some(libc::EINTR));
    }
    if let Some(CommitError::Rejected(rejection)) = error.downcast_ref::<CommitError>() {
        return Some(rejection.errno);
    }
    match error.downcast_ref::<rtnetlink::Error>() {
        // The kernel's errno is negative in the message.
        Some(rtnetlink::Error::NetlinkError(message)) => Some(-message.raw_code()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{DumpError, Rejection};
    use crate::netlink::ProbeError;

    fn failure(errno: i32) -> AgentError {
        AgentError::Thread(io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn only_some_errors_pass() {
        let refused = |errno| {
            let rejection = Rejection { op: None, element: None, object: String::new(), errno };
            AgentError::Probe(ProbeError::Commit(CommitError::Rejected(rejection)))
        };
        let unsent = |errno| {
            let source = io::Error::from_raw_os_error(errno);
            AgentError::Probe(ProbeError::Commit(CommitError::Unsent { bytes: 1, source }))
        };
        for errno in PASSING {
            assert!(is_passing(&failure(errno)) && is_passing(&refused(errno)), "{errno}");
            assert!(is_passing(&unsent(errno)), "{errno}");
        }
        for errno in [libc::EPERM, libc::EACCES, libc::EPROTONOSUPPORT, libc::EOPNOTSUPP] {
            assert!(!is_passing(&failure(errno)) && !is_passing(&refused(errno)), "{errno}");
        }
        let interrupted = io::Error::new(io::ErrorKind::Interrupted, DumpError::Interrupted("ip"));
        assert!(is_passing(&AgentError::Thread(interrupted)));
    }

    #[tokio::test]
    async fn what_passes_is_tried_again_and_the_rest_ends_at_once() {
        for (errno, failures, tries, succeeds) in [
            (libc::ENOMEM, 0, 1, true),
            (libc::ENOMEM, 3, 4, true),
            (libc::ENOMEM, 14, 15, true),
            (libc::ENOMEM, 99, 15, false),
            (libc::EPERM, 1, 1, false),
        ] {
            let mut tried = 0;
            let at_once = pauses().map(|_| Duration::ZERO);
            let outcome = with_pauses(at_once, "a step", async || {
                tried += 1;
                if tried <= failures { Err(failure(errno)) } else { Ok(()) }
            });
            assert_eq!(outcome.await.is_ok(), succeeds, "{errno} {failures}");
            assert_eq!(tried, tries, "{errno} {failures}");
        }
        let sum: Duration = pauses().sum();
        assert!((15..25).contains(&sum.as_secs()), "{sum:?}");
    }
}
