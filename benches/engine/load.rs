//! First programming: from objects in memory to rules in force.

use crate::cluster::Size;
use crate::report::{Table, ms, ratio};
use crate::rig::Rig;

const SIZES: [Size; 5] = [
    Size { services: 1_000, endpoints: 10 },
    Size { services: 10_000, endpoints: 10 },
    Size { services: 45_000, endpoints: 1 },
    Size { services: 5_000, endpoints: 50 },
    Size { services: 100_000, endpoints: 10 },
];

/// How often each size is loaded; the median of the totals is shown.
const RUNS: usize = 3;

/// Prints the table.
pub fn run() {
    let mut table = Table::new(
        "First programming",
        &[
            "services x endpoints",
            "total ms",
            "in the kernel ms",
            "floor ms",
            "total / floor",
            "elements",
            "MB",
            "batches' messages",
        ],
    );
    for size in SIZES {
        let mut samples: Vec<_> = (0..RUNS).map(|_| Rig::loaded(size).1).collect();
        samples.sort_by_key(|sample| sample.total);
        let sample = samples[RUNS / 2];
        table.row(&[
            size.to_string(),
            ms(sample.total),
            ms(sample.kernel),
            ms(sample.floor),
            ratio(sample.total, sample.floor),
            sample.elements.to_string(),
            format!("{:.1}", sample.bytes as f64 / 1e6),
            sample.messages.to_string(),
        ]);
    }
    table.print();
}
