//! The dirty oracle: several threads do DMA while others map, unmap, split, merge, change the mode
//! and harvest, in every format; a copy kept only from what harvests report must equal memory, byte
//! for byte, whenever the devices stand still.
//!
//! DROGHER_SEED chooses the run, DROGHER_ORACLE_MS its length, or DROGHER_ORACLE_WRITES how many
//! writes it has. All are printed.

mod common;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::{Random, config, page};
use drogher_iommu::{
    DirtyBitmap, Domain, Gpa, HeapMemory, Iova, Memory, Oa, PAGE_SIZE, Perm, Requester, Rid,
    SplitPolicy, TableFormat, TrackConfig, TrackMode,
};

const WRITERS: u64 = 4;
/// Writes between two looks at whether it is time to end.
const BATCH: u64 = 32;

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Memory lies in GPA in three slices, each at the start of a unit of the format, so that
/// operations on one run beside those on another. Pages are counted in memory.
#[derive(Clone, Copy)]
struct Layout {
    slice: u64,
    unit: u64,
}

impl Layout {
    fn of(format: TableFormat) -> Self {
        let unit = format.leaf_sizes()[2] / PAGE_SIZE;
        // 4 MiB: several leaf tables; or, of the small format, one unit of three.
        Self { slice: unit.min(1024), unit }
    }

    fn count(self) -> u64 {
        3 * self.slice
    }

    fn gpa(self, number: u64) -> Gpa {
        // One past the end of a slice begins the next.
        page(number / self.slice * self.unit + number % self.slice)
    }

    fn end(self) -> Gpa {
        page(3 * self.unit)
    }

    /// Of one slice, or empty.
    fn range(self, pages: &Range<u64>) -> Range<Gpa> {
        let start = self.gpa(pages.start);
        start..Gpa(start.0 + (pages.end - pages.start) * PAGE_SIZE)
    }

    fn memory(self, gpa: Gpa) -> u64 {
        gpa.page() / self.unit * self.slice + gpa.page() % self.unit
    }

    /// Up to `longest` pages of one slice.
    fn choose(self, random: &mut Random, longest: u64) -> Range<u64> {
        let start = random.below(self.count());
        let end = (start / self.slice + 1) * self.slice;
        start..(start + 1 + random.below(longest)).min(end)
    }
}

/// A handful of random accesses. Faults are part of the game: pages come and go, devices are
/// revoked. Returns how many writes there were.
fn access(device: &Requester, layout: Layout, random: &mut Random, data: &mut [u8]) -> u64 {
    let mut writes = 0;
    for _ in 0..BATCH {
        let (choice, seed) = (random.next(), random.next() | 1);
        let pages = layout.choose(random, 26);
        let offset = choice >> 32 & (PAGE_SIZE - 8);
        let at = Iova(layout.gpa(pages.start).0 + offset);
        let longest = (pages.end - pages.start) * PAGE_SIZE - offset;
        let len = match choice % 256 {
            0 => longest,
            1..12 => 2 + seed % 5000,
            _ => 8,
        };
        let len = len.min(longest);
        // New content each time, so that a lost write shows.
        let part = &mut data[..usize::try_from(len).expect("small")];
        let result = match choice >> 8 & 63 {
            0 => device.read(at, part),
            1 => device.fill(at, seed.to_le_bytes()[1], len),
            2 => device.fetch_add_u64(at, seed).map(|_| ()),
            3 => device.compare_swap_u32(at, 0, 1).map(|_| ()),
            _ => {
                let seed = seed.to_le_bytes();
                part.chunks_mut(8).for_each(|to| to.copy_from_slice(&seed[..to.len()]));
                device.write(at, part)
            }
        };
        match result {
            Ok(()) => writes += u64::from(choice >> 8 & 63 != 0),
            Err(_) if device.is_revoked() => thread::sleep(Duration::from_micros(200)),
            Err(_) => {}
        }
    }
    writes
}

/// Unmaps a random range and maps it again, a little later.
fn remap(domain: &Domain, layout: Layout, random: &mut Random) {
    let pages = layout.choose(random, 700);
    domain.unmap(layout.range(&pages)).expect("drained");
    if random.below(2) == 0 {
        thread::yield_now();
    }
    let output = Oa(pages.start * PAGE_SIZE);
    domain.map(layout.range(&pages), output, Perm::READ_WRITE).expect("free");
}

/// Splits, merges, or changes how writes are recorded.
fn reshape(domain: &Domain, layout: Layout, random: &mut Random) {
    let pages = layout.choose(random, 1200);
    match random.below(8) {
        0..3 => domain.split(layout.range(&pages)).expect("tables are free"),
        3..6 => drop(domain.merge(layout.range(&pages)).expect("drained")),
        // Tracking may be off at the moment.
        6 => drop(domain.set_track_mode(TrackMode::WriteFault)),
        _ => drop(domain.set_track_mode(TrackMode::DBits)),
    }
}

/// The destination: knows only what harvests reported.
struct Copy {
    layout: Layout,
    bytes: Vec<u8>,
    bitmap: DirtyBitmap,
}

/// Pages that a round reported, and how many of them were as the copy has them.
#[derive(Clone, Copy, Default)]
struct Reported {
    pages: u64,
    unchanged: u64,
}

fn bytes(pages: u64) -> usize {
    usize::try_from(pages * PAGE_SIZE).expect("small")
}

impl Copy {
    fn new(layout: Layout) -> Self {
        let bitmap = DirtyBitmap::new(Gpa(0)..layout.end()).expect("aligned");
        Self { layout, bytes: vec![0; bytes(layout.count())], bitmap }
    }

    fn take_all(&mut self, memory: &dyn Memory) {
        memory.read(Oa(0), &mut self.bytes).expect("in bounds");
    }

    /// Harvests in two parts, cut anywhere, and copies what was reported.
    fn round(&mut self, domain: &Domain, random: &mut Random) -> Reported {
        let cut = self.layout.gpa(random.below(self.layout.count()));
        for range in [Gpa(0)..cut, cut..self.layout.end()] {
            domain.read_and_clear_dirty(range, &self.bitmap).expect("drained");
        }
        let (mut reported, mut now) = (Reported::default(), vec![0; bytes(1)]);
        for run in self.bitmap.take().runs() {
            for number in run.start.page()..run.end.page() {
                let at = self.layout.memory(page(number));
                domain.memory().read(Oa(at * PAGE_SIZE), &mut now).expect("in bounds");
                let copy = &mut self.bytes[bytes(at)..bytes(at + 1)];
                reported.pages += 1;
                reported.unchanged += u64::from(copy == now);
                copy.copy_from_slice(&now);
            }
        }
        reported
    }

    fn differing(&self, memory: &dyn Memory) -> Vec<u64> {
        let mut now = vec![0; self.bytes.len()];
        memory.read(Oa(0), &mut now).expect("in bounds");
        let both = self.bytes.chunks(bytes(1)).zip(now.chunks(bytes(1))).zip(0..);
        both.filter(|((old, new), _)| old != new).map(|(_, number)| number).collect()
    }
}

/// Ends the other threads however the test ends.
struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// How long a run goes on.
#[derive(Clone, Copy)]
enum Length {
    Time(Duration),
    Writes(u64),
}

/// What one run came to.
#[derive(Default)]
struct Outcome {
    writes: u64,
    rounds: u64,
    checks: u64,
    /// Pages that differed at a check.
    missed: Vec<u64>,
    /// Rounds with all devices at rest since before the last, tracking exact.
    exact: Reported,
    /// The same where large leaves stay.
    coarse: Reported,
}

fn run(format: TableFormat, seed: u64, length: Length) -> Outcome {
    let layout = Layout::of(format);
    let memory: Arc<dyn Memory> = Arc::new(HeapMemory::new(layout.count() * PAGE_SIZE));
    let domain = Domain::new(memory.clone(), config(format)).expect("valid");
    for slice in 0..3 {
        let pages = slice * layout.slice..(slice + 1) * layout.slice;
        let output = Oa(pages.start * PAGE_SIZE);
        domain.map(layout.range(&pages), output, Perm::READ_WRITE).expect("free");
    }
    // Two threads share each device.
    let devices = [Rid(8), Rid(16)].map(|rid| domain.attach(rid).expect("new"));
    let (end, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mut copy, mut outcome) = (Copy::new(layout), Outcome::default());
    thread::scope(|scope| {
        let _end = EndOnDrop(&end);
        for writer in 0..WRITERS {
            let device = devices[usize::from(writer % 2 == 1)].clone();
            let (end, done) = (&end, &done);
            scope.spawn(move || {
                let mut random = Random(seed.wrapping_mul(31).wrapping_add(writer));
                let mut data = vec![0; 26 * bytes(1)];
                while !end.load(Ordering::Relaxed) {
                    let writes = access(&device, layout, &mut random, &mut data);
                    done.fetch_add(writes, Ordering::Relaxed);
                }
            });
        }
        for (salt, change) in
            [(0x5555, remap as fn(&Domain, Layout, &mut Random)), (0xaaaa, reshape)]
        {
            let (domain, end) = (domain.clone(), &end);
            scope.spawn(move || {
                let mut random = Random(seed ^ salt);
                while !end.load(Ordering::Relaxed) {
                    change(&domain, layout, &mut random);
                    thread::sleep(Duration::from_micros(300));
                }
            });
        }

        let mut random = Random(!seed);
        let start = Instant::now();
        let more = || match length {
            Length::Time(limit) => start.elapsed() < limit,
            Length::Writes(count) => done.load(Ordering::Relaxed) < count,
        };
        while more() && outcome.missed.is_empty() {
            let policies = [SplitPolicy::Eager, SplitPolicy::OnFirstWrite, SplitPolicy::Never];
            let split = policies[usize::try_from(random.below(3)).expect("small")];
            let track = TrackConfig { split, ..TrackConfig::default() };
            domain.start_tracking_with(track).expect("drained");
            copy.take_all(memory.as_ref());
            for check in 0..20 {
                let rounds = random.below(4);
                for _ in 0..rounds {
                    copy.round(&domain, &mut random);
                }
                thread::sleep(Duration::from_micros(500));
                // All devices at rest: one more harvest, then nothing may differ.
                devices.iter().for_each(|device| device.revoke().expect("drained"));
                let at_rest = devices.each_ref().map(Requester::accesses);
                let reported = copy.round(&domain, &mut random);
                outcome.missed = copy.differing(memory.as_ref());
                outcome.rounds += rounds + 1;
                outcome.checks += 1;
                let still = devices.each_ref().map(Requester::accesses);
                assert_eq!(still, at_rest, "DMA after revoke");
                if !outcome.missed.is_empty() {
                    break;
                }
                if rounds == 0 && check > 0 {
                    let sum = match split {
                        SplitPolicy::Never => &mut outcome.coarse,
                        _ => &mut outcome.exact,
                    };
                    sum.pages += reported.pages;
                    sum.unchanged += reported.unchanged;
                }
                devices.iter().for_each(Requester::restore);
            }
            domain.stop_tracking();
        }
    });
    outcome.writes = done.load(Ordering::Relaxed);
    outcome
}

#[test]
fn no_write_is_missed_under_load() {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs());
    let seed = from_env("DROGHER_SEED").unwrap_or_else(now);
    let milliseconds = from_env("DROGHER_ORACLE_MS").unwrap_or(4500);
    let writes = from_env("DROGHER_ORACLE_WRITES");
    println!("DROGHER_SEED={seed}");
    let length = match writes {
        Some(count) => {
            println!("DROGHER_ORACLE_WRITES={count}");
            Length::Writes(count / 3)
        }
        None => {
            println!("DROGHER_ORACLE_MS={milliseconds}");
            Length::Time(Duration::from_millis(milliseconds / 3))
        }
    };
    for format in TableFormat::ALL {
        let start = Instant::now();
        let outcome = run(format, seed, length);
        let Outcome { writes, rounds, checks, missed, exact, coarse } = outcome;
        println!(
            "{format:?}: writes={writes} writes_per_s={:.0} rounds={rounds} checks={checks} \
             missed={} exact={}/{} coarse={}/{} (reported unchanged/reported)",
            writes as f64 / start.elapsed().as_secs_f64(),
            missed.len(),
            exact.unchanged,
            exact.pages,
            coarse.unchanged,
            coarse.pages,
        );
        assert!(missed.is_empty(), "seed {seed}: pages {missed:?} written and not reported");
        assert!(checks > 0 && writes > 0);
        assert!(
            exact.unchanged * 20 <= exact.pages,
            "seed {seed}: {} of {} pages reported and not written",
            exact.unchanged,
            exact.pages
        );
    }
}
