//! What providers cost on this host for what the devices do now: unit costs, measured once a process
//! when they are first asked for, times a sample of the devices' DMA.

use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use drogher_iommu_types::{PAGE_SIZE, PageCount};
use drogher_trackers::{Pinned, UnitCosts, Workload, predict};
use drogher_tracking::{Costs, Measured};

use super::spaces::Space;
use crate::device::DeviceSet;

/// How long devices are sampled.
const SAMPLE: Duration = Duration::from_millis(5);

/// RAM of a machine that is not there yet: 256 MiB.
const RAM: PageCount = PageCount(1 << 16);

/// Pages written in a round by devices that are not there yet, and that lie apart.
const WRITTEN: u64 = 256;

/// `None` if nothing could be measured: then the planner goes by its order.
fn unit() -> Option<&'static UnitCosts> {
    static UNIT: OnceLock<Option<UnitCosts>> = OnceLock::new();
    let measured = UNIT.get_or_init(|| match UnitCosts::measure() {
        Ok(unit) => Some(unit),
        Err(error) => {
            tracing::warn!("What tracking costs here could not be measured: {error}");
            None
        }
    });
    measured.as_ref()
}

/// The costs of a round for devices that are not there, or cannot be sampled.
pub(super) fn typical() -> Costs {
    unit().map_or_else(Costs::default, |unit| predict(unit, &load(), RAM))
}

/// Some hundred pages, here and there.
fn load() -> Workload {
    Workload {
        accesses: WRITTEN,
        bytes: WRITTEN * PAGE_SIZE,
        written: (0..WRITTEN).map(|page| page * 64..page * 64 + 1).collect(),
        pinned: None,
    }
}

/// The costs of a round as long as a sample, of all `spaces` together, for what `devices` do now.
/// Takes some ms for each, and must not be called while one is tracked or is about to be.
pub(super) fn now(devices: &DeviceSet, spaces: &[Arc<Space>]) -> Costs {
    if spaces.is_empty() {
        // Nothing to track: the unit costs take a tenth of a second.
        return Costs::default();
    }
    let Some(unit) = unit() else { return Costs::default() };
    let mut all = Costs::default();
    for space in spaces {
        let range = space.tracked().span();
        let ram = PageCount(range.end.page() - range.start.page());
        let pinned = pinned(devices, space);
        let wait = || {
            thread::sleep(SAMPLE);
            Ok(())
        };
        match Workload::sample(space.domain(), &[], range, pinned, wait) {
            Ok(sample) => add(&mut all, predict(unit, &sample, ram)),
            Err(error) => {
                tracing::warn!("The DMA of {} could not be sampled: {error}", space.label());
                add(&mut all, predict(unit, &load(), ram));
            }
        }
    }
    all
}

/// Adds what one address space costs to what the others do.
fn add(all: &mut Costs, costs: Costs) {
    for cost in costs.measured {
        let same = |other: &&mut Measured| {
            (other.provider, other.page_size) == (cost.provider, cost.page_size)
        };
        match all.measured.iter_mut().find(same) {
            Some(sum) => {
                sum.harvest_ns = sum.harvest_ns.saturating_add(cost.harvest_ns);
                sum.dma_ns = sum.dma_ns.saturating_add(cost.dma_ns);
                sum.resend_ns = sum.resend_ns.saturating_add(cost.resend_ns);
            }
            None => all.measured.push(cost),
        }
    }
}

/// What the devices of this address space have pinned for writing; none if none of them pins.
fn pinned(devices: &DeviceSet, space: &Arc<Space>) -> Option<Pinned> {
    let own = devices.devices().iter().filter(|device| Arc::ptr_eq(device.space(), space));
    let boards: Vec<_> = own.filter_map(|device| device.pin_board()).collect();
    let mut all = Pinned::default();
    for board in &boards {
        let stats = board.stats();
        all.ranges += stats.write_pins;
        all.pages += stats.write_pages;
    }
    (!boards.is_empty()).then_some(all)
}

#[cfg(test)]
mod tests {
    use drogher_tracking::{ProviderKind, TrackingPageSize};

    use super::*;

    #[test]
    fn a_wide_report_of_devices_that_are_not_there_costs_more_than_an_exact_one() {
        let costs = typical();
        let total = |kind, size| costs.get(kind, size).expect("measured").total_ns();
        let iommu = total(ProviderKind::Iommu, TrackingPageSize::K4);
        assert!(iommu < total(ProviderKind::All, TrackingPageSize::K4));
        assert!(iommu < total(ProviderKind::Iommu, TrackingPageSize::M2));
    }

    #[test]
    fn address_spaces_add_up() {
        let mut all = typical();
        let one = all.measured[0];
        add(&mut all, Costs { measured: vec![one] });
        let sum = all.get(one.provider, one.page_size).expect("measured");
        assert_eq!(sum.total_ns(), 2 * one.total_ns());
        let mut none = Costs::default();
        add(&mut none, Costs { measured: vec![one] });
        assert_eq!(none.measured, [one]);
    }
}
