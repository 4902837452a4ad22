//! The oracle of narrowing: four devices do DMA from several threads while plans are switched in
//! random order, devices enter and leave NDMA, are reset, detached and come back, and memory is
//! unmapped and mapped. A copy kept only from what harvests report must equal memory whenever the
//! devices stand still.
//!
//! DROGHER_SEED chooses the run, DROGHER_ORACLE_MS its length. Both are printed.

mod common;

use std::collections::BTreeMap;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::{Bench, Random, TestDevice, pages};
use drogher_iommu::{Oa, Perm};
use drogher_iommu_types::{Gpa, Iova, PAGE_SIZE};
use drogher_tracking::{DeviceLog, PinAccess, SpaceError};

/// Several leaf tables, and more than one tracking page of 2M.
const COUNT: u64 = 1200;
/// The part that is unmapped and mapped while devices run. The device that pins stays out of it.
const REMAPPED: std::ops::Range<u64> = 0..600;

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// A device and what holds it up: it writes under the read lock. In NDMA and while it is detached
/// the main thread says so, and waits for writes in flight by taking the write lock.
struct Running {
    device: TestDevice,
    quiet: RwLock<bool>,
    choices: &'static [&'static str],
}

impl Running {
    fn new(device: TestDevice, choices: &'static [&'static str]) -> Self {
        Self { device, quiet: RwLock::new(false), choices }
    }

    fn set_quiet(&self, quiet: bool) {
        *self.quiet.write().expect("no panic") = quiet;
    }

    fn is_quiet(&self) -> bool {
        *self.quiet.read().expect("no panic")
    }

    /// One random write, new content each time, so that a lost one shows. Faults are part of it:
    /// pages come and go.
    fn write(&self, random: &mut Random, done: &AtomicU64) {
        let quiet = self.quiet.read().expect("no panic");
        if *quiet {
            drop(quiet);
            thread::sleep(Duration::from_micros(200));
            return;
        }
        let seed = random.next();
        let len = if random.below(4) == 0 { random.below(12 << 10) } else { random.below(200) } + 1;
        let first = if self.device.pins.is_some() { REMAPPED.end * PAGE_SIZE } else { 0 };
        let at = first + random.below(COUNT * PAGE_SIZE - len - first);
        let data: Vec<u8> = seed.to_le_bytes().into_iter().cycle().take(len as usize).collect();
        let range = Gpa(at)..Gpa(at + len);
        if let Some(board) = &self.device.pins {
            board.pin(range.clone(), PinAccess::Write).expect("inside");
            self.device.memory.write(Oa(at), &data).expect("inside");
            board.unpin(range, PinAccess::Write).expect("pinned");
        } else {
            // What was written before a fault counts too.
            let _ = self.device.requester.write(Iova(at), &data);
            if let Some(log) = &self.device.log {
                log.mark(range);
            }
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
}

/// The destination: knows only what harvests reported.
struct Copy {
    bytes: Vec<u8>,
}

impl Copy {
    fn take(&mut self, bench: &Bench, start: u64, end: u64) {
        let size = |number: u64| usize::try_from(number * PAGE_SIZE).expect("small");
        let to = &mut self.bytes[size(start)..size(end)];
        bench.memory.read(Oa(start * PAGE_SIZE), to).expect("in bounds");
    }

    /// Harvests in two parts, cut anywhere, and copies what was reported.
    fn round(&mut self, bench: &Bench, random: &mut Random) {
        let cut = random.below(COUNT + 1);
        let bitmap = bench.bitmap();
        for range in [pages(0..cut), pages(cut..COUNT)] {
            bench.tracked.harvest(range, &bitmap).expect("harvested");
        }
        // Twice: of a tracking page that the cut has gone through the rest comes now.
        bench.tracked.harvest(pages(0..COUNT), &bitmap).expect("harvested");
        for run in bitmap.runs() {
            self.take(bench, run.start.page(), run.end.page());
        }
    }

    fn differing(&self, bench: &Bench) -> Vec<u64> {
        let mut now = vec![0; self.bytes.len()];
        bench.memory.read(Oa(0), &mut now).expect("in bounds");
        let size = usize::try_from(PAGE_SIZE).expect("small");
        let both = self.bytes.chunks(size).zip(now.chunks(size)).zip(0..);
        both.filter(|((old, new), _)| old != new).map(|(_, number)| number).collect()
    }
}

/// What the main thread does beside harvesting, counted by name.
struct World<'a> {
    bench: &'a Bench,
    devices: &'a [Running],
    detached: Vec<bool>,
    ndma: Vec<bool>,
    did: BTreeMap<&'static str, u64>,
}

impl World<'_> {
    fn plan(&self, random: &mut Random) -> drogher_tracking::Plan {
        // A space records in one way: one of the two is not to be had this time.
        let banned = if random.below(2) == 0 { "fault" } else { "iommu" };
        let pick = |running: &Running, random: &mut Random| loop {
            let len = running.choices.len() as u64;
            let choice = running.choices[usize::try_from(random.below(len)).expect("small")];
            if !choice.contains(banned) {
                return choice;
            }
        };
        let attached = self.devices.iter().zip(&self.detached).filter(|(_, gone)| !**gone);
        let rules: Vec<(String, &str)> = attached
            .map(|(running, _)| (running.device.caps.label.clone(), pick(running, random)))
            .collect();
        let rules: Vec<_> = rules.iter().map(|(label, choice)| (label.as_str(), *choice)).collect();
        self.bench.plan("", &rules)
    }

    fn act(&mut self, random: &mut Random) {
        let which = usize::try_from(random.below(self.devices.len() as u64)).expect("small");
        let running = &self.devices[which];
        let (rid, tracked) = (running.device.rid(), &self.bench.tracked);
        let name = match random.below(9) {
            0..4 => {
                tracked.switch(&self.plan(random)).expect("a good plan");
                "switch"
            }
            4 if self.detached[which] => {
                tracked.attach(running.device.device()).expect("it was detached");
                self.bench.caps.lock().expect("no panic").push(running.device.caps.clone());
                self.detached[which] = false;
                running.set_quiet(false);
                "attach"
            }
            4 if !self.ndma[which] => {
                running.set_quiet(true);
                tracked.detach(rid).expect("attached");
                self.bench.caps.lock().expect("no panic").retain(|caps| caps.rid != rid);
                self.detached[which] = true;
                "detach"
            }
            5 | 6 if !self.detached[which] => {
                if self.ndma[which] {
                    tracked.ndma_left(rid).expect("in NDMA");
                    running.set_quiet(false);
                } else {
                    running.set_quiet(true);
                    tracked.ndma_entered(rid).expect("not in NDMA");
                    let again = tracked.ndma_entered(rid);
                    assert!(matches!(again, Err(SpaceError::InNdma { .. })));
                }
                self.ndma[which] = !self.ndma[which];
                "ndma"
            }
            7 => {
                let start = random.below(REMAPPED.end);
                let range = pages(start..(start + 1 + random.below(200)).min(REMAPPED.end));
                tracked.unmap(range.clone()).expect("drained");
                thread::yield_now();
                let to = Oa(range.start.0);
                self.bench.space.domain.map(range, to, Perm::READ_WRITE).expect("free");
                "remap"
            }
            8 if running.device.log.is_some() => {
                // As a reset that the guest asks for; it may have ended already.
                let log = running.device.log.as_ref().expect("it has one");
                let _ = DeviceLog::stop(log.as_ref());
                "reset"
            }
            _ => return,
        };
        *self.did.entry(name).or_default() += 1;
    }
}

/// Ends the other threads however the test ends.
struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn no_write_is_missed_whatever_tracks_it() {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs());
    let seed = from_env("DROGHER_SEED").unwrap_or_else(now);
    let length = Duration::from_millis(from_env("DROGHER_ORACLE_MS").unwrap_or(4000));
    println!("DROGHER_SEED={seed} DROGHER_ORACLE_MS={}", length.as_millis());

    let bench = Bench::new(COUNT);
    let recorder: &[&str] =
        &["provider=iommu", "provider=fault", "provider=iommu,page-size=64K", "provider=all"];
    let log: &[&str] =
        &["provider=device", "provider=device,page-size=2M", "provider=all", "provider=iommu"];
    let pins: &[&str] = &["provider=pinned", "provider=all", "provider=pinned,page-size=16K"];
    let devices = [
        Running::new(bench.plain(1), recorder),
        Running::new(bench.logging(2), log),
        Running::new(bench.pinning(3), pins),
        Running::new(bench.plain(4), recorder),
    ];
    let (end, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut copy = Copy { bytes: vec![0; usize::try_from(COUNT * PAGE_SIZE).expect("small")] };
    let mut world = World {
        bench: &bench,
        devices: &devices,
        detached: vec![false; devices.len()],
        ndma: vec![false; devices.len()],
        did: BTreeMap::new(),
    };
    let (mut checks, mut missed) = (0u64, Vec::new());
    thread::scope(|scope| {
        let _end = EndOnDrop(&end);
        for (number, running) in devices.iter().enumerate() {
            let (end, done) = (&end, &done);
            scope.spawn(move || {
                let mut random = Random(seed.wrapping_mul(31).wrapping_add(number as u64));
                while !end.load(Ordering::Relaxed) {
                    running.write(&mut random, done);
                }
            });
        }
        let mut random = Random(!seed);
        let start = Instant::now();
        while start.elapsed() < length && missed.is_empty() {
            bench.tracked.start(&world.plan(&mut random)).expect("a good plan");
            copy.take(&bench, 0, COUNT);
            for _ in 0..10 {
                for _ in 0..1 + random.below(6) {
                    world.act(&mut random);
                    if random.below(2) == 0 {
                        copy.round(&bench, &mut random);
                    }
                }
                // All devices at rest: one more harvest, then nothing may differ.
                let quiet: Vec<bool> = devices.iter().map(Running::is_quiet).collect();
                devices.iter().for_each(|running| running.set_quiet(true));
                copy.round(&bench, &mut random);
                missed = copy.differing(&bench);
                checks += 1;
                if !missed.is_empty() {
                    break;
                }
                devices.iter().zip(quiet).for_each(|(running, quiet)| running.set_quiet(quiet));
            }
            bench.tracked.stop().expect("it runs");
        }
    });
    println!("accesses={} checks={checks} did={:?}", done.load(Ordering::Relaxed), world.did);
    assert!(missed.is_empty(), "seed {seed}: pages {missed:?} were written and not reported");
    assert!(checks > 0 && done.load(Ordering::Relaxed) > 0);
}
