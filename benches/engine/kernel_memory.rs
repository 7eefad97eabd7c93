//! What the tables cost the kernel.

use std::time::Duration;

use kubeweir::model::Family;
use kubeweir::netlink::NetlinkKernel;
use kubeweir::sync::Synchronizer;
use kubeweir::testing::lab::{KernelMemory, Netns};

use crate::load::SIZES;
use crate::report::Table;
use crate::rig::engine;

/// Prints the table.
pub fn run() {
    let mut table = Table::new(
        "Kernel memory of the tables",
        &["services x endpoints", "elements", "MiB", "bytes an element"],
    );
    for size in SIZES {
        let Some(group) = KernelMemory::of(std::process::id()) else {
            println!("\nKernel memory was not measured: there is no memory controller.");
            return;
        };
        let netns = Netns::new("memory").expect("a network namespace (root is needed)");
        let kernel = netns.visit(NetlinkKernel::open).expect("nf_tables");
        let mut synchronizer = Synchronizer::new(engine(), kernel);
        size.lists().into_iter().for_each(|list| drop(synchronizer.engine.apply(list)));
        let before = group.bytes().expect("it was readable");
        let mut elements = 0;
        for family in Family::BOTH {
            let report = synchronizer.sync(family, Duration::ZERO).expect("something to do");
            assert!(report.result.is_ok(), "{:?}", report.troubles);
            elements += report.commits.iter().map(|c| c.counts.elements_added).sum::<usize>();
        }
        let bytes = group.bytes().expect("it was readable").saturating_sub(before);
        table.row(&[
            size.to_string(),
            elements.to_string(),
            format!("{:.1}", bytes as f64 / f64::from(1 << 20)),
            (bytes / elements as u64).to_string(),
        ]);
    }
    table.print();
}
