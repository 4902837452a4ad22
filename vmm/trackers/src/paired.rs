//! One paired run: the same writes with a tracker and without, on the same device.
//!
//! Guest time is compressed: a round is as many writes as the rate has in [`ROUND`], done at once,
//! and the harvest of a round runs beside the writes of the next. CPU time is what is counted.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use drogher_iommu_types::{Gpa, PAGE_SIZE, PageCount};

use crate::ROUNDS;
use crate::clock::timed;
use crate::error::TrackersError;
use crate::rig::{PATIENCE, Rig};

/// Guest time from harvest to harvest.
pub(crate) const ROUND: Duration = Duration::from_millis(10);
/// Bytes of one write: a frame's worth.
pub(crate) const WRITE: usize = 1024;
/// Times that tracking is switched on, for [`ROUNDS`] rounds each, in one run.
const REPEATS: u32 = 3;

/// What the device does: writes to pages of its working set at random.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// First page of the working set.
    pub(crate) first: u64,
    /// Its pages.
    pub(crate) pages: u64,
    /// Writes per second.
    pub(crate) rate: u64,
}

impl Load {
    /// In the middle of `memory`, both in bytes.
    pub(crate) fn new(memory: u64, working_set: u64, rate: u64) -> Self {
        let first = (memory - working_set) / 2 / PAGE_SIZE;
        Self { first, pages: working_set / PAGE_SIZE, rate }
    }

    pub(crate) fn range(&self) -> std::ops::Range<Gpa> {
        Gpa(self.first * PAGE_SIZE)..Gpa((self.first + self.pages) * PAGE_SIZE)
    }

    /// Writes of one round.
    pub(crate) fn writes(&self) -> u64 {
        self.rate * u64::from(ROUND.subsec_millis()) / 1000
    }

    /// Does the next `count` writes of `random`.
    pub(crate) fn write(
        &self,
        rig: &Rig,
        random: &mut Random,
        count: u64,
    ) -> Result<(), TrackersError> {
        let mut data = [0; WRITE];
        for _ in 0..count {
            let draw = random.next();
            let page = self.first + ((u128::from(draw) * u128::from(self.pages)) >> 64) as u64;
            // No two writes are alike, so that a lost one shows.
            if let Some(stamp) = data.first_chunk_mut() {
                *stamp = draw.to_le_bytes();
            }
            rig.write(page * PAGE_SIZE, &data)?;
        }
        Ok(())
    }
}

/// Small, seeded (splitmix64).
#[derive(Clone, Copy)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// What one run has found, for a round each, in ns of CPU time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Run {
    /// A round's share of starting and stopping.
    pub(crate) switch: f64,
    pub(crate) harvest: f64,
    /// The device's writes, tracked.
    pub(crate) tracked: f64,
    /// The same, untracked.
    pub(crate) untracked: f64,
    /// Pages of 4 KiB reported.
    pub(crate) pages: f64,
}

/// One paired run. `tracked_first` should alternate, so that neither always finds the caches warm.
pub(crate) fn run(
    rig: &Rig,
    load: &Load,
    seed: u64,
    tracked_first: bool,
) -> Result<Run, TrackersError> {
    let (mut run, mut pages) = (Run::default(), PageCount(0));
    for repeat in 0..REPEATS {
        let random = Random(seed ^ u64::from(repeat) << 32);
        for tracked in [tracked_first, !tracked_first] {
            if !tracked {
                run.untracked += rounds(rig, load, random, || Ok(()))?;
                continue;
            }
            run.switch += timed(|| {
                if rig.pins() {
                    rig.pin(load.range())?;
                }
                rig.start()
            })?
            .0;
            let harvest = &mut run.harvest;
            let written = rounds(rig, load, random, || {
                *harvest += timed(|| rig.harvest())?.0;
                pages += rig.reported();
                Ok(())
            });
            run.switch += timed(|| rig.stop())?.0;
            if rig.pins() {
                rig.unpin(load.range())?;
            }
            run.tracked += written?;
        }
    }
    let rounds = f64::from(REPEATS * ROUNDS);
    Ok(Run {
        switch: run.switch / rounds,
        harvest: run.harvest / rounds,
        tracked: run.tracked / rounds,
        untracked: run.untracked / rounds,
        pages: pages.0 as f64 / rounds,
    })
}

/// [`ROUNDS`] rounds of writes on a thread of their own, with `harvest` at the end of each; returns
/// the CPU time of the writes.
fn rounds(
    rig: &Rig,
    load: &Load,
    mut random: Random,
    mut harvest: impl FnMut() -> Result<(), TrackersError>,
) -> Result<f64, TrackersError> {
    let gate = Gate::default();
    thread::scope(|scope| {
        let device = scope.spawn(|| {
            let _over = Over(&gate, DEVICE);
            let mut cpu = 0.0;
            for round in 0..ROUNDS {
                // One round ahead of the harvest, no more.
                gate.wait(HARVEST, round.saturating_sub(1))?;
                cpu += timed(|| load.write(rig, &mut random, load.writes()))?.0;
                gate.pass(DEVICE, round + 1);
            }
            Ok(cpu)
        });
        let over = Over(&gate, HARVEST);
        let harvested = (0..ROUNDS).try_for_each(|round| {
            gate.wait(DEVICE, round + 1)?;
            harvest()?;
            gate.pass(HARVEST, round + 1);
            Ok(())
        });
        drop(over);
        let written = device.join().unwrap_or(Err(TrackersError::Panicked { who: "device" }));
        harvested.and(written)
    })
}

const DEVICE: usize = 0;
const HARVEST: usize = 1;

/// How many rounds the device and the harvest have done.
#[derive(Default)]
struct Gate {
    done: Mutex<[u32; 2]>,
    moved: Condvar,
}

impl Gate {
    fn pass(&self, who: usize, rounds: u32) {
        if let Some(done) = self.lock().get_mut(who) {
            *done = rounds;
        }
        self.moved.notify_all();
    }

    fn wait(&self, who: usize, rounds: u32) -> Result<(), TrackersError> {
        let behind = |done: &mut [u32; 2]| done.get(who).is_some_and(|done| *done < rounds);
        let waited = self.moved.wait_timeout_while(self.lock(), PATIENCE, behind);
        let (guard, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        drop(guard);
        if timeout.timed_out() {
            let who = if who == DEVICE { "device" } else { "harvest" };
            return Err(TrackersError::Stalled { who, seconds: PATIENCE.as_secs() });
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, [u32; 2]> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// However a side ends, the other need not wait for it.
struct Over<'a>(&'a Gate, usize);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.pass(self.1, u32::MAX);
    }
}

#[cfg(test)]
#[path = "paired_test.rs"]
mod tests;
