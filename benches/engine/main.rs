//! Figures of the whole engine in front of the real kernel; `benches/README.md` shows a run.
//!
//! ```text
//! cargo bench --bench engine               # everything
//! cargo bench --bench engine -- load       # only sections whose name starts like this
//! ```
//!
//! Needs root: everything happens in network namespaces of its own, which end with the process.

mod change;
mod cluster;
mod counters;
mod drain;
mod flows;
mod kernel_memory;
mod load;
mod packets;
mod plot;
mod process;
mod report;
mod rig;

/// A part of the results.
type Section = (&'static str, fn());

const SECTIONS: [Section; 13] = [
    ("load", load::run),
    ("change", change::run),
    ("kernel", kernel_memory::run),
    ("memory", process::memory),
    ("api", process::api),
    ("churn", process::churn),
    ("drain", drain::run),
    ("flows", flows::run),
    ("packets", packets::run),
    ("within", packets::within),
    ("refusals", counters::refusals),
    ("counters-flows", counters::flows),
    ("counters-scrapes", counters::scrapes),
];

fn main() {
    // Cargo itself adds `--bench`.
    let chosen: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    for (name, run) in SECTIONS {
        if chosen.is_empty() || chosen.iter().any(|prefix| name.starts_with(prefix)) {
            run();
        }
    }
}
