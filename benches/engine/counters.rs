//! What counters cost: of what is refused, by reason; `--service-counters`: a new flow, the kernel's
//! memory, a scrape.
//!
//! The same cluster without and with counters; flows take turns as in [`crate::packets`].

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use kubeweir::testing::lab::KernelMemory;

use crate::cluster::Size;
use crate::packets::{Place, Scene, new_flows, refused};
use crate::process::Site;
use crate::report::{Table, ms, percentile};
use crate::rig::bare_dump;

const SIZE: Size = Size { services: 10_000, endpoints: 10 };
const SCRAPES: u32 = 100;
/// kube-proxy's port.
const METRICS_PORT: u16 = 10_249;

/// Prints what a refused packet takes; one that is let through meets no counter.
pub fn refusals() {
    let mut table = Table::new(
        "Counters of refusals: a refused packet",
        &["place", "counters", "lowest tenth ns", "median ns"],
    );
    for (name, place) in [("forwarded", Place::Forwarded), ("within", Place::Within)] {
        for (counters, times) in ["as they are", "without"].into_iter().zip(refused(place)) {
            let [tenth, median] = times.map(|time| format!("{time:.0}"));
            table.row(&[name.to_owned(), counters.to_owned(), tenth, median]);
        }
    }
    table.print();
}

/// Prints what a flow and a table take with `--service-counters`.
pub fn flows() {
    let group = KernelMemory::of(std::process::id());
    let kernel_bytes = || group.as_ref().and_then(KernelMemory::bytes);
    let mut memory = Vec::new();
    let mut scenes = [false, true].map(|counters| {
        let before = kernel_bytes();
        let scene = Scene::counting(counters);
        let bytes = kernel_bytes().zip(before).map(|(after, before)| after.saturating_sub(before));
        memory.push(bytes);
        scene
    });
    let mut table = Table::new(
        "Service counters: new flows and the kernel's memory at 10000 x 10",
        &["counters", "lowest tenth ns", "median ns", "memory of the table MiB"],
    );
    let times = new_flows(&mut scenes);
    for (name, (times, memory)) in ["off", "on"].into_iter().zip(times.into_iter().zip(memory)) {
        let memory = memory.map_or_else(
            || "no memory controller".to_owned(),
            |bytes| format!("{:.1}", bytes as f64 / f64::from(1 << 20)),
        );
        let [tenth, median] = times.map(|time| format!("{time:.0}"));
        table.row(&[name.to_owned(), tenth, median, memory]);
    }
    table.print();
}

/// Prints what a scrape takes with them.
pub fn scrapes() {
    let mut table = Table::new(
        "Service counters: a scrape at 10000 x 10",
        &[
            "counters",
            "p50 ms",
            "CPU ms of the agent",
            "of it the kernel's share ms",
            "page kB",
            "resident MiB before",
            "after",
        ],
    );
    for (name, flag) in [("off", "--service-counters=false"), ("on", "--service-counters=true")] {
        let site = Site::start_with(SIZE, &[flag]);
        let (mut times, mut bytes) = (Vec::new(), 0);
        let before = site.memory("VmRSS");
        let cpu = site.cpu();
        for _ in 0..SCRAPES {
            let start = Instant::now();
            bytes = site.netns.run(scrape);
            times.push(start.elapsed());
        }
        let cpu = (site.cpu() - cpu) / SCRAPES;
        let share = match name {
            "on" => ms(site.netns.run(kernels_share)),
            _ => "-".to_owned(),
        };
        table.row(&[
            name.to_owned(),
            ms(percentile(&mut times, 50)),
            ms(cpu),
            share,
            format!("{:.0}", bytes as f64 / 1e3),
            before,
            site.memory("VmRSS"),
        ]);
    }
    table.print();
}

/// CPU of a bare loop that has the kernel say every counter and does nothing with them.
fn kernels_share() -> Duration {
    let used = || {
        let text = fs::read_to_string("/proc/thread-self/schedstat").expect("CONFIG_SCHED_INFO");
        let nanoseconds = text.split(' ').next().and_then(|text| text.parse().ok());
        Duration::from_nanos(nanoseconds.expect("nanoseconds on a CPU"))
    };
    let before = used();
    for _ in 0..SCRAPES {
        assert!(bare_dump("connections-services") > 10_000, "counters are there");
    }
    (used() - before) / SCRAPES
}

/// Bytes of the page.
fn scrape() -> usize {
    let mut stream =
        TcpStream::connect((Ipv4Addr::LOCALHOST, METRICS_PORT)).expect("the agent listens");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("not zero");
    let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request).expect("sent");
    let mut page = Vec::new();
    stream.read_to_end(&mut page).expect("a page");
    assert!(page.starts_with(b"HTTP/1.1 200"), "the agent answers");
    page.len()
}
