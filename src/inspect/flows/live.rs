//! Flows as they come and go.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::net::SocketAddr;

use crate::conntrack::{Change, Entry};

/// A flow as the kernel finds it.
type Key = (u8, SocketAddr, SocketAddr, Option<u16>);

/// The flows that are there, from a list and what was heard since.
///
/// A list now and then puts right what was lost, and tells the end of flows that the kernel never
/// speaks of: those that are older than the first watcher.
#[derive(Debug, Default)]
pub struct Live(BTreeMap<Key, Entry>);

fn key(entry: &Entry) -> Key {
    let original = entry.original;
    (entry.protocol.number(), original.source, original.destination, entry.zone)
}

impl Live {
    /// Takes a change; what is to be told of it. A message leaves out what did not change.
    pub fn hear(&mut self, change: Change, mut entry: Entry) -> Option<(Change, Entry)> {
        let slot = self.0.entry(key(&entry));
        if let Slot::Occupied(known) = &slot {
            entry.tcp = entry.tcp.or(known.get().tcp);
            entry.started = entry.started.or(known.get().started);
            entry.counts = entry.counts.or(known.get().counts);
        }
        match (slot, change) {
            (Slot::Occupied(known), Change::Ended) => {
                known.remove();
                Some((Change::Ended, entry))
            }
            (Slot::Vacant(_), Change::Ended) => None,
            (Slot::Occupied(mut known), Change::New | Change::Updated) => {
                let before = known.insert(entry.clone());
                differs(&before, &entry).then_some((Change::Updated, entry))
            }
            // The beginning was lost, or is older than the watcher.
            (Slot::Vacant(slot), Change::New | Change::Updated) => {
                slot.insert(entry.clone());
                Some((Change::New, entry))
            }
        }
    }

    /// Takes a complete list; what is to be told that nobody spoke of.
    pub fn relist(&mut self, entries: Vec<Entry>) -> Vec<(Change, Entry)> {
        let mut before = std::mem::take(&mut self.0);
        let mut told = Vec::new();
        for entry in entries {
            let key = key(&entry);
            match before.remove(&key) {
                None => told.push((Change::New, entry.clone())),
                Some(known) if differs(&known, &entry) => {
                    told.push((Change::Updated, entry.clone()));
                }
                Some(_) => {}
            }
            self.0.insert(key, entry);
        }
        told.extend(before.into_values().map(|entry| (Change::Ended, entry)));
        told
    }
}

/// Whether people would see a difference; counts and times change all the time.
fn differs(a: &Entry, b: &Entry) -> bool {
    let shown = |entry: &Entry| (entry.reply, entry.tcp, entry.replied, entry.assured);
    shown(a) != shown(b)
}
