//! The full measurement: every provider in every page size, in every cell.

use std::sync::Arc;
use std::time::{Duration, Instant};

use drogher_iommu::{HeapMemory, Memory};
use drogher_iommu_types::{Oa, PAGE_SIZE};
use drogher_tracking::{Costs, Measured, ProviderKind, TrackingPageSize};
use serde::Serialize;

use crate::clock::median;
use crate::error::{TrackersError, system};
use crate::link;
use crate::moving::{Moved, migrate};
use crate::paired::{Load, Random, Run, run};
use crate::predict::predict;
use crate::rig::Rig;
use crate::settings::{Fixed, Settings};
use crate::unit::UnitCosts;
use crate::workload::{Pinned, Workload};

/// How long the link is timed.
const LINK: Duration = Duration::from_millis(200);
/// More than this part over the best is too much.
pub const NEAR: f64 = 1.25;
/// What a device has that has neither a log nor pins.
const PLAIN: [ProviderKind; 3] = [ProviderKind::Iommu, ProviderKind::Fault, ProviderKind::All];

/// One provider in one page size in one cell. Times in ns for one round of 10 ms of guest time,
/// medians of the paired runs.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Measurement {
    /// Which.
    pub fixed: Fixed,
    /// CPU time of a harvest.
    pub harvest_ns: f64,
    /// A round's share of the CPU time of starting and stopping.
    pub switch_ns: f64,
    /// What the device's writes took longer than untracked; noise may make it negative.
    pub dma_lost_ns: f64,
    /// Their time over that untracked.
    pub dma_slowdown: f64,
    /// Bytes reported, all of which are sent again.
    pub resent_bytes: f64,
    /// Sending them at the measured rate of the link.
    pub resend_ns: f64,
    /// All together, by run.
    pub totals_ns: Vec<f64>,
    /// The median of these.
    pub total_ns: f64,
    /// What `auto` expected it to cost; none for a page size that is not timed in short.
    pub expected_ns: Option<u64>,
    /// A real migration.
    pub moved: Moved,
}

/// What was chosen among some, and how good that was.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Verdict {
    /// The cheapest as measured.
    pub best: Fixed,
    /// The most expensive as measured.
    pub worst: Fixed,
    /// What `auto` takes.
    pub auto: Fixed,
    /// What it expected a round to cost, in ns.
    pub expected_ns: u64,
    /// What that costs as measured, over the best.
    pub ratio: f64,
}

impl Measurement {
    /// True if `auto` expected it to cost what it does, up to a quarter; none if it expected nothing.
    #[must_use]
    pub fn is_as_expected(&self) -> Option<bool> {
        let ratio = self.expected_ns? as f64 / self.total_ns.max(1.0);
        Some((1.0 / NEAR..=NEAR).contains(&ratio))
    }
}

impl Verdict {
    /// True if it is within a quarter of the best.
    #[must_use]
    pub fn is_near(&self) -> bool {
        self.ratio <= NEAR
    }

    /// True if it is the worst, and there was a choice.
    #[must_use]
    pub fn is_worst(&self) -> bool {
        self.auto == self.worst && self.best != self.worst
    }
}

/// One working set with one rate.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cell {
    /// In bytes.
    pub working_set: u64,
    /// Writes per second.
    pub rate: u64,
    /// In the order of [`Settings::choices`].
    pub measured: Vec<Measurement>,
    /// Of all of them. None if `auto` has no figures for any: sizes that are not timed in short.
    pub auto: Option<Verdict>,
    /// Of what a device has that has neither a log nor pins.
    pub auto_plain: Option<Verdict>,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Grid {
    /// What was measured.
    pub settings: Settings,
    /// Sending one page again, in ns.
    pub page_ns: f64,
    /// What `auto` has gone by.
    pub unit: UnitCosts,
    /// Rows of working sets, each with all rates.
    pub cells: Vec<Cell>,
    /// Processors that this process may use.
    pub processors: usize,
    /// How long it took, in ms.
    pub took_ms: u64,
}

/// Measures. `go_on` is told what comes next, and ends it by returning false.
///
/// # Errors
/// `Interrupted`; anything else means that a figure could not be had, or that a migration lost
/// pages.
pub fn measure(
    settings: &Settings,
    go_on: &mut dyn FnMut(&str) -> bool,
) -> Result<Grid, TrackersError> {
    let begin = Instant::now();
    let mut step = |text: String| {
        if go_on(&text) { Ok(()) } else { Err(TrackersError::Interrupted) }
    };
    step("what tracking is made of, and the link".into())?;
    let unit = UnitCosts::measure()?;
    let page_ns = link::page_ns(LINK)?;
    let mut bench = Bench::new(settings, unit.clone(), page_ns)?;
    let count = settings.working_sets.len() * settings.rates.len();
    let mut cells = Vec::new();
    for working_set in &settings.working_sets {
        for rate in &settings.rates {
            let load = Load::new(settings.memory, *working_set, *rate);
            let place = format!(
                "cell {} of {count}: {} at {rate} writes/s",
                cells.len() + 1,
                crate::report::bytes(*working_set as f64)
            );
            cells.push(bench.cell(load, &mut |what| step(format!("{place}, {what}")))?);
        }
    }
    Ok(Grid {
        settings: settings.clone(),
        page_ns,
        unit,
        cells,
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        took_ms: u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}

/// What all cells share.
struct Bench<'a> {
    settings: &'a Settings,
    unit: UnitCosts,
    page_ns: f64,
    /// Where guests move to.
    destination: HeapMemory,
    rigs: Vec<Arc<Rig>>,
    /// What is sampled for `auto`.
    sampled: Rig,
    folder: tempfile::TempDir,
}

impl<'a> Bench<'a> {
    fn new(settings: &'a Settings, unit: UnitCosts, page_ns: f64) -> Result<Self, TrackersError> {
        let memory = Arc::new(HeapMemory::new(settings.memory));
        // No page is like another, and none is zero: those would not be sent.
        for page in 0..settings.memory / PAGE_SIZE {
            memory.fill(Oa(page * PAGE_SIZE), 0x11, PAGE_SIZE)?;
            memory.write(Oa(page * PAGE_SIZE), &page.to_le_bytes())?;
        }
        let rig = |fixed| Rig::new(memory.clone(), settings.memory, fixed);
        let rigs = settings.choices().into_iter().map(|fixed| rig(fixed).map(Arc::new));
        let plain = Fixed { provider: ProviderKind::Iommu, page_size: TrackingPageSize::K4 };
        Ok(Self {
            settings,
            unit,
            page_ns,
            rigs: rigs.collect::<Result<_, _>>()?,
            sampled: rig(plain)?,
            destination: HeapMemory::new(settings.memory),
            folder: tempfile::tempdir().map_err(system("make a temporary folder"))?,
        })
    }

    fn cell(
        &mut self,
        load: Load,
        step: &mut dyn FnMut(&str) -> Result<(), TrackersError>,
    ) -> Result<Cell, TrackersError> {
        let costs = self.sample(load)?;
        let mut runs: Vec<Vec<Run>> = vec![Vec::new(); self.rigs.len()];
        for number in 0..self.settings.runs {
            step(&format!("paired run {} of {}", number + 1, self.settings.runs))?;
            // In turn, and a different one first each time.
            let mut both: Vec<_> = self.rigs.iter().zip(&mut runs).collect();
            let count = both.len();
            both.rotate_left(number as usize % count);
            for (rig, runs) in both {
                // All do the same writes in one run.
                runs.push(run(rig, &load, number.into(), number.is_multiple_of(2))?);
            }
        }
        let mut measured = Vec::new();
        for (rig, runs) in self.rigs.iter().zip(&runs) {
            step(&format!("migration with {}", rig.fixed))?;
            let moved = migrate(rig, load, &self.destination, self.folder.path())?;
            let mut one = summary(rig.fixed, runs, self.page_ns, moved);
            let Fixed { provider, page_size } = rig.fixed;
            one.expected_ns = costs.get(provider, page_size).map(Measured::total_ns);
            measured.push(one);
        }
        let among = |providers: &[ProviderKind]| verdict(&measured, &costs, providers);
        Ok(Cell {
            working_set: load.pages * PAGE_SIZE,
            rate: load.rate,
            auto: among(&ProviderKind::EACH),
            auto_plain: among(&PLAIN),
            measured,
        })
    }

    /// What `auto` knows: a round of the device, and the unit costs.
    fn sample(&self, load: Load) -> Result<Costs, TrackersError> {
        let Rig { domain, requester, ram, .. } = &self.sampled;
        let pinned = Pinned { pages: drogher_iommu_types::PageCount(load.pages), ranges: 1 };
        let requesters = std::slice::from_ref(requester);
        let sample = Workload::sample(domain, requesters, ram.clone(), Some(pinned), || {
            load.write(&self.sampled, &mut Random(u64::MAX), load.writes())
        })?;
        Ok(predict(&self.unit, &sample, self.sampled.pages()))
    }
}

fn summary(fixed: Fixed, runs: &[Run], page_ns: f64, moved: Moved) -> Measurement {
    let of = |figure: fn(&Run) -> f64| median(runs.iter().map(figure));
    let lost = |run: &Run| run.tracked - run.untracked;
    let total = |run: &Run| run.harvest + run.switch + lost(run) + run.pages * page_ns;
    let totals_ns: Vec<f64> = runs.iter().map(total).collect();
    let pages = of(|run| run.pages);
    Measurement {
        fixed,
        harvest_ns: of(|run| run.harvest),
        switch_ns: of(|run| run.switch),
        dma_lost_ns: of(lost),
        dma_slowdown: of(|run| run.tracked / run.untracked.max(1.0)),
        resent_bytes: pages * PAGE_SIZE as f64,
        resend_ns: pages * page_ns,
        total_ns: median(totals_ns.iter().copied()),
        totals_ns,
        expected_ns: None,
        moved,
    }
}

/// What `auto` takes of `providers`, against what they were measured to cost.
fn verdict(measured: &[Measurement], costs: &Costs, providers: &[ProviderKind]) -> Option<Verdict> {
    let among = || measured.iter().filter(|one| providers.contains(&one.fixed.provider));
    let of = |cost: &Measured| {
        let fixed = Fixed { provider: cost.provider, page_size: cost.page_size };
        among().find(|one| one.fixed == fixed)
    };
    let chosen = costs.best(|cost| of(cost).map(|_| cost.total_ns()))?;
    let auto = of(chosen)?;
    let best = among().min_by(|a, b| a.total_ns.total_cmp(&b.total_ns))?;
    let worst = among().max_by(|a, b| a.total_ns.total_cmp(&b.total_ns))?;
    Some(Verdict {
        best: best.fixed,
        worst: worst.fixed,
        auto: auto.fixed,
        expected_ns: chosen.total_ns(),
        ratio: auto.total_ns / best.total_ns.max(1.0),
    })
}

#[cfg(test)]
#[path = "grid_test.rs"]
mod tests;
