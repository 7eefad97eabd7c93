//! What the rules refused or dropped: so far, from the kernel's counters, and in the last minute, for
//! which the agent looks at them every few seconds.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::figures::Figures;
use super::per_service::PerService;
use crate::kernel::DumpError;
use crate::metrics::RuleCounts;
use crate::model::Family;
use crate::netlink::Counters;
use crate::program::{CounterId, FrontendSpace, SetId};
use crate::status::Dropped;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(10);

/// How far back is remembered.
const MINUTE: Duration = Duration::from_secs(60);

/// Packets by counter.
type Packets = BTreeMap<(Family, CounterId), u64>;

fn packets(counters: &mut Counters) -> Result<Packets, DumpError> {
    let mut packets = Packets::new();
    for family in Family::BOTH {
        let counters = counters.named(family)?;
        packets.extend(counters.iter().filter_map(|(name, counter)| {
            Some(((family, CounterId::from_name(name.as_str())?), counter.packets))
        }));
    }
    Ok(packets)
}

/// For a scrape.
pub fn rule_counts(figures: &Figures) -> Option<RuleCounts> {
    let packets = figures.counters(packets)?;
    let sum = |id| packets.iter().filter(|((_, of), _)| *of == id).map(|(_, count)| count).sum();
    let reasons = packets.iter().filter(|((_, id), _)| CounterId::REASONS.contains(id));
    Some(RuleCounts {
        dropped: reasons.map(|((family, id), count)| (*family, id.as_str(), *count)).collect(),
        invalid: sum(CounterId::Invalid),
        accepted_on_localhost: sum(CounterId::AcceptedOnLocalhost),
    })
}

/// What was not let through to each service port, as long as it has the reason; nothing where service
/// ports are not counted.
pub fn by_service(counters: &mut Counters) -> Result<Vec<(CounterId, PerService)>, DumpError> {
    let sets = [
        (CounterId::NoEndpoints, FrontendSpace::BOTH.map(SetId::Refused).to_vec()),
        (CounterId::NoLocalEndpoints, FrontendSpace::BOTH.map(SetId::Dropped).to_vec()),
        (CounterId::SourceRanges, vec![SetId::OutsideRanges]),
    ];
    let read = |(reason, sets): (_, Vec<SetId>)| Ok((reason, PerService::read(counters, &sets)?));
    sets.into_iter().map(read).collect()
}

/// The counters of the last minute, which one task fills and others read.
#[derive(Debug, Clone, Default)]
pub struct LastMinute(Arc<Mutex<Looks>>);

impl LastMinute {
    /// Looks until the process ends.
    pub async fn watch(self, figures: Figures) {
        loop {
            let figures = figures.clone();
            let asked = tokio::task::spawn_blocking(move || figures.counters(packets));
            if let Some(packets) = asked.await.ok().flatten() {
                self.0.lock().unwrap_or_else(PoisonError::into_inner).add(Instant::now(), packets);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What is refused and dropped as of now, by family and reason; `None` if the kernel does not answer.
    /// Blocking.
    pub fn drops(&self, figures: &Figures) -> Option<BTreeMap<Family, BTreeMap<String, Dropped>>> {
        let now = figures.counters(packets)?;
        Some(self.0.lock().unwrap_or_else(PoisonError::into_inner).until(Instant::now(), &now))
    }
}

/// Looks at the counters, oldest first.
#[derive(Debug, Default)]
struct Looks(VecDeque<(Instant, Packets)>);

impl Looks {
    fn add(&mut self, at: Instant, packets: Packets) {
        self.forget(at);
        self.0.push_back((at, packets));
    }

    fn forget(&mut self, now: Instant) {
        while self.0.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > MINUTE) {
            self.0.pop_front();
        }
    }

    /// What came since the oldest look. A counter that went back was made anew and counts from 0.
    fn until(&mut self, at: Instant, now: &Packets) -> BTreeMap<Family, BTreeMap<String, Dropped>> {
        self.forget(at);
        let oldest = self.0.front();
        let mut drops: BTreeMap<Family, BTreeMap<String, Dropped>> = BTreeMap::new();
        for (key @ (family, id), &packets) in now {
            if !CounterId::REASONS.contains(id) {
                continue;
            }
            let since = |(_, before): &(Instant, Packets)| {
                packets - before.get(key).copied().filter(|&start| start <= packets).unwrap_or(0)
            };
            let last_minute = oldest.map_or(0, since);
            let dropped = Dropped { packets, last_minute };
            drops.entry(*family).or_default().insert(id.to_string(), dropped);
        }
        drops
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: (Family, CounterId) = (Family::V4, CounterId::NoEndpoints);

    fn last_minute(looks: &mut Looks, at: Instant, packets: u64) -> u64 {
        looks.until(at, &Packets::from([(KEY, packets)]))[&Family::V4]["no-endpoints"].last_minute
    }

    #[test]
    fn what_is_older_than_a_minute_is_forgotten() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut looks = Looks::default();
        assert_eq!(last_minute(&mut looks, start, 412), 0, "nothing is known of the time before");
        for second in (0..=120).step_by(10) {
            looks.add(at(second), Packets::from([(KEY, second * 2)]));
        }
        // The oldest look of the minute is that of second 60.
        assert_eq!(last_minute(&mut looks, at(120), 250), 130);
        assert_eq!(looks.0.len(), 7);
        assert_eq!(last_minute(&mut looks, at(125), 250), 250 - 140);
        assert_eq!(last_minute(&mut looks, at(300), 250), 0);
    }

    // The table was replaced.
    #[test]
    fn a_counter_that_went_back_counts_from_0() {
        let start = Instant::now();
        let mut looks = Looks::default();
        looks.add(start, Packets::from([(KEY, 1000)]));
        assert_eq!(last_minute(&mut looks, start, 7), 7);
    }
}
