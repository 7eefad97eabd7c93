//! First programming: from objects in memory to rules in force.

use crate::cluster::Size;
use crate::report::{Table, ms, percentile, ratio};
use crate::rig::Rig;

pub const SIZES: [Size; 5] = [
    Size { services: 1_000, endpoints: 10 },
    Size { services: 10_000, endpoints: 10 },
    Size { services: 45_000, endpoints: 1 },
    Size { services: 5_000, endpoints: 50 },
    Size { services: 100_000, endpoints: 10 },
];

/// How often each size is loaded. Whoever comes first finds colder caches, so the two sides take turns
/// in that; an odd number of runs has a median.
const RUNS: usize = 5;

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
        let (mut sample, mut batches) = Rig::load(size);
        let (mut totals, mut kernels, mut floors) = (Vec::new(), Vec::new(), Vec::new());
        for run in 0..RUNS {
            let first = (run % 2 == 0).then(|| Rig::floor(&batches));
            (sample, batches) = Rig::load(size);
            floors.push(first.unwrap_or_else(|| Rig::floor(&batches)));
            totals.push(sample.total);
            kernels.push(sample.kernel);
        }
        sample.total = percentile(&mut totals, 50);
        sample.kernel = percentile(&mut kernels, 50);
        sample.floor = percentile(&mut floors, 50);
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
