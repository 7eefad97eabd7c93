//! Looks how full the conntrack table is, and tells when it is nearly full.

use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use tracing::{info, warn};

use super::figures::Figures;
use super::note::Note;
use crate::conntrack::{Finding, Pressure, Statistics};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(10);

/// Looks until nobody listens any more.
pub async fn watch(figures: Figures, notes: UnboundedSender<Note>) {
    let mut pressure = Pressure::default();
    loop {
        let figures = figures.clone();
        let asked = tokio::task::spawn_blocking(move || figures.conntrack());
        let statistics = asked.await.ok().flatten();
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
