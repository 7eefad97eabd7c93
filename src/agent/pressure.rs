//! Looks how full the conntrack table is, and tells when it is nearly full.

use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use tracing::{debug, info, warn};

use super::subscribers::Note;
use crate::conntrack::{Finding, Pressure, Statistics};
use crate::netlink::conntrack::Conntrack;
use crate::text::with_causes;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(10);

/// The kernel's figures of now; `None`, and why in the log, if it does not answer. Blocking, for some
/// microseconds; while somebody commits to nf_tables, until that is done, as [`super::drops`] says.
pub fn statistics() -> Option<Statistics> {
    let asked = Conntrack::open().and_then(|mut conntrack| conntrack.statistics());
    asked.inspect_err(|reason| debug!(reason = with_causes(reason), "No conntrack figures")).ok()
}

/// Looks until nobody listens any more.
pub async fn watch(notes: UnboundedSender<Note>) {
    let mut pressure = Pressure::default();
    loop {
        let statistics = tokio::task::spawn_blocking(statistics).await.ok().flatten();
        let found = statistics.and_then(|statistics| pressure.look(&statistics, Instant::now()));
        if let Some(note) = found.and_then(tell)
            && notes.send(note).is_err()
        {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Logs it; what is for an Event.
fn tell(finding: Finding) -> Option<Note> {
    match finding {
        Finding::Near { now, pushed_out } => {
            let Statistics { entries, limit, drop, .. } = now;
            warn!(entries, limit, drop, pushed_out, "The conntrack table is nearly full");
            let burst = match pushed_out {
                0 => String::new(),
                count => format!(", and was full: {count} flows were pushed out of it"),
            };
            Some(Note::ConntrackPressure(format!(
                "The conntrack table has {now}{burst}. When it is full, new connections fail. \
                 Raise conntrack.maxPerCore, or find who opens so many: kubeweir flows"
            )))
        }
        Finding::Eased(now) => {
            info!(entries = now.entries, limit = now.limit, "The conntrack table has room again");
            None
        }
    }
}
