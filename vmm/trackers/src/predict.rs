//! Unit costs times a workload: what each provider would cost a round.

use drogher_iommu_types::PageCount;
use drogher_tracking::{Costs, Measured, ProviderKind};

use crate::ROUNDS;
use crate::unit::{TrackerCosts, UnitCosts};
use crate::workload::{Pinned, Workload};

/// What one round as long as the sample would cost by each provider in each page size that has been
/// measured, in an address space with `ram` pages. Provider `pinned` is in it only if the sample
/// knows what is pinned. `device` is what a log in software costs: a device's own may do better.
#[must_use]
pub fn predict(unit: &UnitCosts, sample: &Workload, ram: PageCount) -> Costs {
    let one = |tracker: &TrackerCosts| round(unit, tracker, sample, ram);
    Costs { measured: unit.trackers.iter().filter_map(one).collect() }
}

fn round(
    unit: &UnitCosts,
    tracker: &TrackerCosts,
    sample: &Workload,
    ram: PageCount,
) -> Option<Measured> {
    let (provider, page_size) = (tracker.provider, tracker.page_size);
    let (written, groups) = (sample.pages().0 as f64, sample.tracking_pages(page_size) as f64);
    let rounds = f64::from(ROUNDS);
    let fixed = tracker.harvest_ns
        + tracker.harvest_ram_page_ns * ram.0 as f64
        + (tracker.switch_ns + tracker.switch_ram_page_ns * ram.0 as f64) / rounds;
    let (found, dma, reported) = match provider {
        ProviderKind::Iommu | ProviderKind::Fault | ProviderKind::Device => (
            tracker.harvest_page_ns * written + tracker.harvest_tracking_page_ns * groups,
            tracker.first_write_ns * written + tracker.write_ns * sample.page_writes() as f64,
            sample.reported(page_size, ram),
        ),
        ProviderKind::Pinned => {
            let Pinned { pages, ranges } = sample.pinned?;
            let pages = pages.min(ram);
            // A pin that lasts is made once.
            let pinning = unit.pin_ns * ranges as f64 / rounds;
            (tracker.harvest_page_ns * pages.0 as f64 + pinning, 0.0, pages)
        }
        ProviderKind::All => (0.0, 0.0, ram),
    };
    Some(Measured {
        provider,
        page_size,
        harvest_ns: whole(fixed + found),
        dma_ns: whole(dma),
        resend_ns: whole(unit.page_ns * reported.0 as f64),
    })
}

/// Measured in ns, so that below 0 there is noise only; a cast saturates.
fn whole(ns: f64) -> u64 {
    ns.max(0.0).round() as u64
}

#[cfg(test)]
#[path = "predict_test.rs"]
mod tests;
