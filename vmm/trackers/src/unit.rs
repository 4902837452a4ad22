//! What tracking is made of, timed on this machine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use drogher_iommu::{HeapMemory, Memory};
use drogher_iommu_types::{Gpa, Oa, PAGE_SIZE};
use drogher_tracking::{ProviderKind, TrackingPageSize};
use serde::{Deserialize, Serialize};

use crate::clock::timed;
use crate::error::TrackersError;
use crate::link;
use crate::rig::Rig;
use crate::settings::Fixed;

/// The page sizes that are timed.
const SIZES: [TrackingPageSize; 4] =
    [TrackingPageSize::K4, TrackingPageSize::K16, TrackingPageSize::K64, TrackingPageSize::M2];
/// Bytes that there really are: what RAM is mapped to, again and again.
const MEMORY: u64 = 2 << 20;
/// The two sizes of RAM whose difference gives the cost of a page of it.
const SMALL: u64 = 8 << 20;
const LARGE: u64 = 64 << 20;
/// Pages between two that are written: each in another tracking page of 64K.
const STRIDE: u64 = 32;
/// Pages written: all of the large RAM, by the stride.
const WRITES: u64 = LARGE / PAGE_SIZE / STRIDE;
/// Each is timed so often, and the best taken: the others tell of caches and interrupts.
const TIMES: u32 = 5;
/// How long the link is timed.
const LINK: Duration = Duration::from_millis(20);

/// CPU time of one provider in one page size, in ns.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrackerCosts {
    /// The provider.
    pub provider: ProviderKind,
    /// The page size.
    pub page_size: TrackingPageSize,
    /// Starting and stopping, whatever the size of RAM.
    pub switch_ns: f64,
    /// The same, for each page of RAM.
    pub switch_ram_page_ns: f64,
    /// A harvest that finds something, whatever it finds.
    pub harvest_ns: f64,
    /// The same, for each page of RAM.
    pub harvest_ram_page_ns: f64,
    /// The same, for each page of 4 KiB that was written; with `pinned`, that is pinned.
    pub harvest_page_ns: f64,
    /// The same, for each tracking page that has to be widened to its 4 KiB pages.
    pub harvest_tracking_page_ns: f64,
    /// What the first write to a page after a harvest takes longer than an untracked one.
    pub first_write_ns: f64,
    /// What every write takes longer than an untracked one.
    pub write_ns: f64,
}

/// What tracking costs on this machine, apart from what is tracked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitCosts {
    /// Each provider in each page size; `pinned` and `all` have no size but 4K.
    pub trackers: Vec<TrackerCosts>,
    /// A pin for writing and its unpin, in ns.
    pub pin_ns: f64,
    /// Sending one page again over a socket pair, in ns.
    pub page_ns: f64,
    /// How long measuring this took, in us.
    pub took_us: u64,
}

impl UnitCosts {
    /// Measures. Takes well under 100 ms of CPU time, in an optimised build.
    ///
    /// # Errors
    /// Anything: there is nothing to measure with then.
    pub fn measure() -> Result<Self, TrackersError> {
        let begin = Instant::now();
        let memory = Arc::new(HeapMemory::new(MEMORY));
        memory.fill(Oa(0), 1, MEMORY)?;
        let mut trackers = Vec::new();
        for provider in ProviderKind::EACH {
            let sizes = match provider {
                ProviderKind::Pinned | ProviderKind::All => &SIZES[..1],
                _ => &SIZES[..],
            };
            let first = trackers.len();
            for page_size in sizes {
                let base = trackers.get(first).copied();
                trackers.push(tracker(&memory, Fixed { provider, page_size: *page_size }, base)?);
            }
        }
        Ok(Self {
            trackers,
            pin_ns: pin(&memory)?,
            page_ns: link::page_ns(LINK)?,
            took_us: u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX),
        })
    }
}

/// The best times of one provider, in ns.
struct Times {
    switch: f64,
    /// Untracked writes, the first after a harvest, the second.
    writes: [f64; 3],
    /// A harvest of what they wrote; then of a single page.
    harvests: [f64; 2],
}

impl Times {
    fn of(rig: &Rig) -> Result<Self, TrackersError> {
        let mut best = Self {
            switch: f64::INFINITY,
            writes: [f64::INFINITY; 3],
            harvests: [f64::INFINITY; 2],
        };
        let pages = rig.pages().0 / STRIDE;
        let write =
            || (0..pages).try_for_each(|page| rig.write(page * STRIDE * PAGE_SIZE, &[1; 8]));
        let everything = Gpa(0)..Gpa(pages * STRIDE * PAGE_SIZE);
        for _ in 0..TIMES {
            if rig.pins() {
                rig.pin(everything.clone())?;
            }
            let untracked = timed(write)?.0;
            let start = timed(|| rig.start())?.0;
            rig.harvest()?;
            let (first, second) = (timed(write)?.0, timed(write)?.0);
            let many = timed(|| rig.harvest())?.0;
            if rig.pins() {
                rig.unpin(everything.clone())?;
                rig.harvest()?;
            }
            rig.write(0, &[1])?;
            let single = timed(|| rig.harvest())?.0;
            let stop = timed(|| rig.stop())?.0;
            rig.reported();
            best.switch = best.switch.min(start + stop);
            for (best, now) in best.writes.iter_mut().zip([untracked, first, second]) {
                *best = best.min(now);
            }
            for (best, now) in best.harvests.iter_mut().zip([many, single]) {
                *best = best.min(now);
            }
        }
        Ok(best)
    }
}

/// `base` is the same provider at 4K, if this is another size.
fn tracker(
    memory: &Arc<HeapMemory>,
    fixed: Fixed,
    base: Option<TrackerCosts>,
) -> Result<TrackerCosts, TrackersError> {
    let of = |bytes| Times::of(&Rig::new(memory.clone(), bytes, fixed)?);
    let (small, large) = (of(SMALL)?, of(LARGE)?);
    let Fixed { provider, page_size } = fixed;
    let writes = WRITES as f64;
    // Noise must not become a negative cost.
    let split = |small: f64, large: f64| {
        let by_page = (large - small).max(0.0) / ((LARGE - SMALL) / PAGE_SIZE) as f64;
        ((small - by_page * (SMALL / PAGE_SIZE) as f64).max(0.0), by_page)
    };
    let (switch_ns, switch_ram_page_ns) = split(small.switch, large.switch);
    let (harvest_ns, harvest_ram_page_ns) = split(small.harvests[1], large.harvests[1]);
    let found = (large.harvests[0] - large.harvests[1]).max(0.0);
    let (page, group) = match base {
        Some(base) => {
            let groups = (WRITES * STRIDE / page_size.pages()).min(WRITES) as f64;
            let widened = (found - base.harvest_page_ns * writes).max(0.0);
            (base.harvest_page_ns, widened / groups)
        }
        // All of it was pinned, not a page here and there.
        None if provider == ProviderKind::Pinned => (found / (LARGE / PAGE_SIZE) as f64, 0.0),
        None => (found / writes, 0.0),
    };
    let [untracked, first, second] = large.writes;
    Ok(TrackerCosts {
        provider,
        page_size,
        switch_ns,
        switch_ram_page_ns,
        harvest_ns,
        harvest_ram_page_ns,
        harvest_page_ns: page,
        harvest_tracking_page_ns: group,
        first_write_ns: (first - second).max(0.0) / writes,
        write_ns: (second - untracked).max(0.0) / writes,
    })
}

/// A pin and its unpin, beside some others.
fn pin(memory: &Arc<HeapMemory>) -> Result<f64, TrackersError> {
    let fixed = Fixed { provider: ProviderKind::Pinned, page_size: TrackingPageSize::K4 };
    let rig = Rig::new(memory.clone(), SMALL, fixed)?;
    let ranges = || (0..64).map(|at| Gpa(at * 4 * PAGE_SIZE)..Gpa((at * 4 + 2) * PAGE_SIZE));
    rig.start()?;
    let mut best = f64::INFINITY;
    for _ in 0..TIMES {
        let both = || {
            ranges()
                .try_for_each(|r| rig.pin(r))
                .and_then(|()| ranges().try_for_each(|r| rig.unpin(r)))
        };
        best = best.min(timed(both)?.0);
    }
    rig.stop()?;
    Ok(best / ranges().count() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_provider_has_its_costs_and_none_is_absurd() {
        let unit = UnitCosts::measure().unwrap();
        assert_eq!(unit.trackers.len(), 3 * SIZES.len() + 2);
        for tracker in &unit.trackers {
            let TrackerCosts { provider, page_size, .. } = *tracker;
            let all = [
                tracker.switch_ns,
                tracker.switch_ram_page_ns,
                tracker.harvest_ns,
                tracker.harvest_ram_page_ns,
                tracker.harvest_page_ns,
                tracker.harvest_tracking_page_ns,
                tracker.first_write_ns,
                tracker.write_ns,
            ];
            assert!(
                all.iter().all(|ns| (0.0..1e9).contains(ns)),
                "{provider} {page_size}: {all:?}"
            );
            assert!(tracker.harvest_ns + tracker.harvest_ram_page_ns > 0.0, "{provider}");
        }
        assert!(unit.pin_ns > 0.0 && unit.page_ns > 0.0);
        let json = serde_json::to_string(&unit).unwrap();
        assert_eq!(
            serde_json::from_str::<UnitCosts>(&json).unwrap().trackers.len(),
            unit.trackers.len()
        );
        println!("{unit:#?}");
    }
}
