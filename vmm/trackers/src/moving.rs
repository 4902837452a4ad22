//! A real migration of a tracked device at work, between two threads: how many rounds, how many
//! bytes, how long the blackout.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use drogher_iommu::{HeapMemory, Memory};
use drogher_iommu_types::{DirtyBitmap, Oa, PAGE_SIZE};
use drogher_migrate::config::{LeaseIdentity, MemoryRegion};
use drogher_migrate::{
    Blocker, ConfigBlock, Control, DestinationHost, DestinationOptions, DestinationOutcome,
    DevicePending, DeviceRead, Env, Harvest, Lease, NoHooks, Paused, Permit, Permits, SourceHost,
    SourceOptions, SourceOutcome, StateDigest, SystemClock, TimeoutStrategy, VmId, receive, send,
};
use serde::Serialize;

use crate::error::TrackersError;
use crate::link::links;
use crate::paired::{Load, Random};
use crate::rig::{DEVICE, Rig};

/// The downtime that the stop is timed for.
const DOWNTIME: Duration = Duration::from_millis(10);
/// After this long the guest is stopped whatever the forecast.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The device looks at the clock this often, and does what is due.
const TICK: Duration = Duration::from_micros(500);

/// What one migration took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Moved {
    /// Pages sent in each round, the bulk pass first.
    pub pages_by_round: Vec<u64>,
    /// Pages sent after the stop.
    pub final_pages: u64,
    /// Bytes sent after the bulk pass.
    pub resent_bytes: u64,
    /// From the stop until the destination ran, in microseconds.
    pub blackout_us: u64,
    /// All of it, in microseconds.
    pub total_us: u64,
}

impl Moved {
    /// Rounds after the bulk pass.
    #[must_use]
    pub fn rounds(&self) -> usize {
        self.pages_by_round.len().saturating_sub(1)
    }
}

/// Moves the guest of `rig` to `memory`, with the lease in `folder`, and compares every page.
pub(crate) fn migrate(
    rig: &Arc<Rig>,
    load: Load,
    memory: &HeapMemory,
    folder: &Path,
) -> Result<Moved, TrackersError> {
    let id = VmId([7; 16]);
    let lease = Lease::acquire_new(&folder.join("lease"), id)?;
    let options = SourceOptions {
        downtime: DOWNTIME,
        timeout: TIMEOUT,
        timeout_strategy: TimeoutStrategy::Ignore,
        ..SourceOptions::default()
    };
    let (mut here, mut there) = links()?;
    let mut source = Source::new(rig.clone(), load, id, lease.permits())?;
    let mut destination = Destination { memory, permit: None };
    let (sent, received) = thread::scope(|scope| {
        let received = scope.spawn(|| {
            let (mut hooks, control) = (NoHooks, Control::new());
            let env = Env { clock: &SystemClock, hooks: &mut hooks, control: &control };
            receive(&mut destination, &mut there, env, &DestinationOptions::default())
        });
        let (mut hooks, control) = (NoHooks, Control::new());
        let env = Env { clock: &SystemClock, hooks: &mut hooks, control: &control };
        let sent = send(&mut source, &mut here, lease, env, &options);
        // The destination need not wait for more.
        drop(here);
        (sent, received.join())
    });
    let what = rig.fixed.to_string();
    source.end()?;
    let received = received.map_err(|_| TrackersError::Panicked { who: "destination" })?;
    let moved = matches!(sent.outcome, SourceOutcome::Moved { .. })
        && matches!(received.outcome, DestinationOutcome::Runs { .. });
    if !moved {
        let why = format!("{:?}, {:?}", sent.outcome, received.outcome);
        return Err(TrackersError::Migration { what, why });
    }
    compare(rig, memory, what)?;
    if let Some(lease) = received.lease {
        drop(destination.permit.take());
        lease.finish(true)?;
    }
    let report = sent.report;
    let resent = |round: &drogher_migrate::report::Round| round.round > 0;
    Ok(Moved {
        pages_by_round: report.rounds.iter().map(|round| round.pages).collect(),
        final_pages: report.downtime.pages,
        resent_bytes: report
            .rounds
            .iter()
            .filter(|round| resent(round))
            .map(|r| r.bytes)
            .sum::<u64>()
            + report.downtime.bytes,
        blackout_us: report.downtime.total_us,
        total_us: report.total_us,
    })
}

fn compare(rig: &Rig, memory: &HeapMemory, what: String) -> Result<(), TrackersError> {
    let (mut here, mut there) = (vec![0; PAGE_SIZE as usize], vec![0; PAGE_SIZE as usize]);
    let (mut differ, mut first) = (0, 0);
    for page in 0..rig.pages().0 {
        rig.memory.read(Oa(page * PAGE_SIZE), &mut here)?;
        memory.read(Oa(page * PAGE_SIZE), &mut there)?;
        if here != there {
            first = if differ == 0 { page } else { first };
            differ += 1;
        }
    }
    match differ {
        0 => Ok(()),
        pages => Err(TrackersError::Differs { what, pages, first }),
    }
}

/// The device's thread: so many writes a second, for as long as it is let.
struct Worker {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<(), TrackersError>>,
}

impl Worker {
    fn start(rig: Arc<Rig>, load: Load, permit: Permit) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let _permit = permit;
            let (begin, mut done, mut random) = (Instant::now(), 0, Random(1));
            while !stopped.load(Ordering::Acquire) {
                let due = (begin.elapsed().as_secs_f64() * load.rate as f64) as u64;
                // What it has missed it does not make up for at once: it has to hear of the stop.
                let now = due.saturating_sub(done).min(load.writes().max(1));
                load.write(&rig, &mut random, now)?;
                done += now;
                thread::sleep(TICK);
            }
            Ok(())
        });
        Self { stop, thread }
    }

    fn stop(self) -> Result<(), TrackersError> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap_or(Err(TrackersError::Panicked { who: "device" }))
    }
}

/// A machine that is nothing but memory and one device.
struct Source {
    rig: Arc<Rig>,
    load: Load,
    id: VmId,
    worker: Option<Worker>,
    tracking: bool,
    pinned: bool,
    /// It is in NDMA.
    quiet: bool,
}

impl Source {
    fn new(rig: Arc<Rig>, load: Load, id: VmId, permits: Permits) -> Result<Self, TrackersError> {
        let (tracking, pinned, quiet) = (false, false, false);
        let mut source = Self { rig, load, id, worker: None, tracking, pinned, quiet };
        source.go(&permits)?;
        Ok(source)
    }

    fn go(&mut self, permits: &Permits) -> Result<(), TrackersError> {
        if self.rig.pins() && !self.pinned {
            self.rig.pin(self.load.range())?;
            self.pinned = true;
        }
        if std::mem::take(&mut self.quiet) {
            self.rig.tracked.ndma_left(DEVICE)?;
        }
        let permit = permits.borrow()?;
        self.worker = Some(Worker::start(self.rig.clone(), self.load, permit));
        Ok(())
    }

    /// Ends the device's DMA, and gives back what it has pinned.
    fn halt(&mut self) -> Result<(), TrackersError> {
        let worked = self.worker.take().map_or(Ok(()), Worker::stop);
        if std::mem::take(&mut self.pinned) {
            self.rig.unpin(self.load.range())?;
        }
        worked
    }

    /// Leaves the rig as it was.
    fn end(&mut self) -> Result<(), TrackersError> {
        let worked = self.halt();
        if std::mem::take(&mut self.quiet) {
            self.rig.tracked.ndma_left(DEVICE)?;
        }
        if std::mem::take(&mut self.tracking) {
            self.rig.stop()?;
        }
        worked
    }
}

impl SourceHost for Source {
    type Error = TrackersError;

    fn config(&mut self) -> Result<ConfigBlock, TrackersError> {
        Ok(ConfigBlock {
            vm_id: self.id,
            // The engine's to fill in.
            lease: LeaseIdentity { path: "/".into(), device: 0, inode: 0 },
            epoch: 0,
            page_size: 4096,
            memory: vec![MemoryRegion { gpa: 0, bytes: self.rig.ram.end.0 }],
            cpus: 1,
            tsc_khz: 1_000_000,
            cpu_model: "host".into(),
            cpuid: Vec::new(),
            machine_state_version: 1,
            machine_state_min_reader: 1,
            max_machine_state: 4096,
            devices: Vec::new(),
        })
    }

    fn track_start(&mut self) -> Result<(), TrackersError> {
        self.rig.start()?;
        self.tracking = true;
        Ok(())
    }

    fn track_stop(&mut self) -> Result<(), TrackersError> {
        if std::mem::take(&mut self.tracking) { self.rig.stop() } else { Ok(()) }
    }

    fn harvest_vcpus(
        &mut self,
        _: Harvest,
        _: usize,
        _: &DirtyBitmap,
    ) -> Result<(), TrackersError> {
        Ok(())
    }

    fn harvest_dma(&mut self, _: usize, into: &DirtyBitmap) -> Result<(), TrackersError> {
        self.rig.tracked.harvest(self.rig.ram.clone(), into)?;
        Ok(())
    }

    fn clear_vcpu_log(&mut self, _: usize, _: Range<u64>) -> Result<(), TrackersError> {
        Ok(())
    }

    fn read_ram(&mut self, first: u64, buf: &mut [u8]) -> Result<(), TrackersError> {
        Ok(self.rig.memory.read(Oa(first * PAGE_SIZE), buf)?)
    }

    fn device_pending(&mut self) -> Result<DevicePending, TrackersError> {
        Ok(DevicePending::default())
    }

    fn device_precopy(&mut self, _: usize, _: &mut [u8]) -> Result<DeviceRead, TrackersError> {
        Ok(DeviceRead::NoMoreNow)
    }

    fn pause_vcpus(&mut self) -> Result<Paused, TrackersError> {
        Ok(Paused { by_user: false, ended: None })
    }

    /// The device's DMA ends here: what only a wide report covers is reported once more, and then
    /// no longer.
    fn quiesce(&mut self) -> Result<(), TrackersError> {
        self.halt()?;
        self.rig.tracked.ndma_entered(DEVICE)?;
        self.quiet = true;
        Ok(())
    }

    fn stop(&mut self) -> Result<(), TrackersError> {
        Ok(())
    }

    fn device_state(&mut self, _: usize, _: &mut [u8]) -> Result<DeviceRead, TrackersError> {
        Ok(DeviceRead::End)
    }

    fn machine_state(&mut self, out: &mut Vec<u8>) -> Result<(), TrackersError> {
        out.push(1);
        Ok(())
    }

    fn state_digests(&mut self, _: &mut Vec<StateDigest>) -> Result<(), TrackersError> {
        Ok(())
    }

    fn resume(&mut self, permits: &Permits) -> Result<(), TrackersError> {
        self.go(permits)
    }
}

struct Destination<'a> {
    memory: &'a HeapMemory,
    permit: Option<Permit>,
}

impl DestinationHost for Destination<'_> {
    type Error = TrackersError;

    fn check(&mut self, _: &ConfigBlock) -> Vec<Blocker> {
        Vec::new()
    }

    /// Not zeroes, as there should be: what is not sent shows.
    fn prepare(&mut self, _: &ConfigBlock) -> Result<(), TrackersError> {
        Ok(self.memory.fill(Oa(0), 0xee, self.memory.len())?)
    }

    fn write_ram(&mut self, first: u64, data: &[u8]) -> Result<(), TrackersError> {
        Ok(self.memory.write(Oa(first * PAGE_SIZE), data)?)
    }

    fn zero_ram(&mut self, pages: Range<u64>) -> Result<(), TrackersError> {
        let bytes = (pages.end - pages.start) * PAGE_SIZE;
        Ok(self.memory.fill(Oa(pages.start * PAGE_SIZE), 0, bytes)?)
    }

    fn round_done(&mut self, _: u32) -> Result<(), TrackersError> {
        Ok(())
    }

    fn load_device(&mut self, _: usize, _: &[u8]) -> Result<(), TrackersError> {
        Ok(())
    }

    fn finish_device(&mut self, _: usize) -> Result<(), TrackersError> {
        Ok(())
    }

    fn load_machine(&mut self, _: &[u8]) -> Result<(), TrackersError> {
        Ok(())
    }

    fn read_ram(&mut self, first: u64, buf: &mut [u8]) -> Result<(), TrackersError> {
        Ok(self.memory.read(Oa(first * PAGE_SIZE), buf)?)
    }

    fn state_digests(&mut self, _: &mut Vec<StateDigest>) -> Result<(), TrackersError> {
        Ok(())
    }

    fn run(&mut self, permits: &Permits, _: bool) -> Result<(), TrackersError> {
        self.permit = Some(permits.borrow()?);
        Ok(())
    }
}

#[cfg(test)]
#[path = "moving_test.rs"]
mod tests;
