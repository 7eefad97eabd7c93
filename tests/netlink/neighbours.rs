//! Tables are read while others write.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use kubeweir::kernel::{Kernel, Op};
use kubeweir::model::Family;
use kubeweir::netlink::NetlinkKernel;
use kubeweir::ruleset::{Element, Field, Key, Ownership, Set, Table};

use crate::commit::commit;
use crate::netns::in_netns;
use crate::shapes::{chain, table};

const FAMILY: Family = Family::V4;

/// Elements of a large node.
const MANY: u32 = 100_000;

fn numbers(range: std::ops::Range<u32>) -> Vec<Element> {
    range.map(|number| Element::member(Key::new().slot(number))).collect()
}

fn slots(name: &str) -> Op {
    Op::AddSet(Set { size: Some(200_000), ..Set::plain(name, vec![Field::Mark]) })
}

/// Ends the writing, also of a test that fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `read` while another thread has its own kernel written to over and over; how often that was.
fn meanwhile(write: impl Fn(&mut NetlinkKernel, usize) + Sync, read: impl FnOnce()) -> usize {
    let (over, written) = (AtomicBool::new(false), AtomicUsize::new(0));
    scope(|scope| {
        let writing = scope.spawn(|| {
            let mut kernel = NetlinkKernel::open().unwrap();
            while !over.load(Ordering::Relaxed) {
                write(&mut kernel, written.fetch_add(1, Ordering::Relaxed));
            }
        });
        while written.load(Ordering::Relaxed) < 3 && !writing.is_finished() {
            std::thread::yield_now();
        }
        let _over = Over(&over);
        read();
    });
    written.into_inner()
}

// B13: what counts is whether our table changed, not whether anything in the namespace did.
#[test]
fn a_large_table_is_read_while_a_neighbour_commits_every_few_milliseconds() {
    in_netns(|| {
        let owned = Table { comment: None, owner: Ownership::Ours, persist: true };
        for own in [table(), Op::AddTable(owned)] {
            let mut kernel = NetlinkKernel::open().unwrap();
            let add = Op::AddElements("slots".into(), numbers(0..MANY));
            let ops = vec![own, chain("services"), slots("slots"), add];
            commit(&mut kernel, FAMILY, ops).unwrap();
            let undisturbed = kernel.dump(FAMILY).unwrap();
            assert_eq!(undisturbed.sets["slots"].1.len(), MANY as usize);
            // The neighbour's tables are the other family's, and come and go with their chains.
            let start = Instant::now();
            let commits = meanwhile(
                |neighbour, turn| {
                    let ops = match turn % 2 {
                        0 => vec![table(), chain("a"), chain("b")],
                        _ => vec![Op::DeleteTable],
                    };
                    commit(neighbour, Family::V6, ops).unwrap();
                    sleep(Duration::from_millis(2));
                },
                || {
                    for _ in 0..3 {
                        assert!(kernel.dump(FAMILY).unwrap() == undisturbed, "another table");
                        let found = kernel.dump_set(FAMILY, &"slots".into()).unwrap();
                        assert_eq!(found.len(), MANY as usize);
                    }
                },
            );
            println!("{commits} foreign commits in {:?}", start.elapsed());
            assert!(commits > 50, "the neighbour was busy: {commits} commits");
            commit(&mut kernel, FAMILY, vec![Op::DeleteTable]).unwrap();
        }
    });
}
