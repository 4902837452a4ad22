//! The dirty oracle: several threads do DMA while others map, unmap and harvest; a copy kept only
//! from what harvests report must equal memory whenever the devices stand still.
//!
//! DROGHER_SEED chooses the run, DROGHER_ORACLE_MS its length. Both are printed.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::{Random, page, pages};
use drogher_iommu::{
    DirtyBitmap, Domain, DomainConfig, HeapMemory, Iova, Memory, Oa, PAGE_SIZE, Perm, Requester,
    Rid,
};

/// 12 MiB: several leaf tables, and many pages share a word of hints.
const COUNT: u64 = 3072;
const WRITERS: u64 = 4;

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// One random access. Faults are part of the game: pages come and go, devices are revoked.
fn access(device: &Requester, random: &mut Random, data: &mut [u8], done: &AtomicU64) {
    let (kind, seed) = (random.below(16), random.next());
    let at = Iova(random.below(COUNT * PAGE_SIZE));
    let len = match random.below(8) {
        0 => random.below(100 << 10),
        1..4 => random.below(8 << 10),
        _ => random.below(200),
    };
    let len = len.min(COUNT * PAGE_SIZE - at.0);
    let part = &mut data[..usize::try_from(len).expect("small")];
    let result = match kind {
        0 => device.read(at, part),
        1 => device.fill(at, seed.to_le_bytes()[0], len),
        2 => device.fetch_add_u64(Iova(at.0 & !7), seed).map(|_| ()),
        3 => device.compare_swap_u32(Iova(at.0 & !3), 0, 1).map(|_| ()),
        _ => {
            // New content each time, so that a lost write shows.
            part.iter_mut().zip(seed.to_le_bytes().iter().cycle()).for_each(|(to, b)| *to = *b);
            device.write(at, part)
        }
    };
    match result {
        Ok(()) => drop(done.fetch_add(1, Ordering::Relaxed)),
        Err(_) if device.is_revoked() => thread::sleep(Duration::from_micros(200)),
        Err(_) => {}
    }
}

/// Unmaps a random range and maps it again, a little later.
fn remap(domain: &Domain, random: &mut Random) {
    let start = random.below(COUNT);
    let end = (start + 1 + random.below(700)).min(COUNT);
    domain.unmap(pages(start..end)).expect("drained");
    if random.below(2) == 0 {
        thread::yield_now();
    }
    domain.map(pages(start..end), Oa(start * PAGE_SIZE), Perm::READ_WRITE).expect("free");
    thread::sleep(Duration::from_micros(300));
}

/// The destination: knows only what harvests reported.
struct Copy {
    bytes: Vec<u8>,
    bitmap: DirtyBitmap,
    copied: u64,
}

impl Copy {
    fn take(&mut self, memory: &dyn Memory, start: u64, end: u64) {
        let size = |number: u64| usize::try_from(number * PAGE_SIZE).expect("small");
        let to = &mut self.bytes[size(start)..size(end)];
        memory.read(Oa(start * PAGE_SIZE), to).expect("in bounds");
        self.copied += end - start;
    }

    /// Harvests in two parts, cut anywhere, and copies what was reported.
    fn round(&mut self, domain: &Domain, random: &mut Random) {
        let cut = random.below(COUNT + 1);
        for range in [pages(0..cut), pages(cut..COUNT)] {
            domain.read_and_clear_dirty(range, &self.bitmap).expect("drained");
        }
        for run in self.bitmap.take().runs() {
            self.take(domain.memory().as_ref(), run.start.page(), run.end.page());
        }
    }

    fn differing(&self, memory: &dyn Memory) -> Vec<u64> {
        let mut now = vec![0; self.bytes.len()];
        memory.read(Oa(0), &mut now).expect("in bounds");
        let size = usize::try_from(PAGE_SIZE).expect("small");
        let both = self.bytes.chunks(size).zip(now.chunks(size)).zip(0..);
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

#[test]
fn no_write_is_missed_under_load() {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs());
    let seed = from_env("DROGHER_SEED").unwrap_or_else(now);
    let length = Duration::from_millis(from_env("DROGHER_ORACLE_MS").unwrap_or(4000));
    println!("DROGHER_SEED={seed} DROGHER_ORACLE_MS={}", length.as_millis());

    let memory: Arc<dyn Memory> = Arc::new(HeapMemory::new(COUNT * PAGE_SIZE));
    let config = DomainConfig { drain_deadline: common::PATIENCE, ..DomainConfig::default() };
    let domain = Domain::new(memory.clone(), config).expect("valid");
    domain.map(pages(0..COUNT), Oa(0), Perm::READ_WRITE).expect("free");
    // Two threads share each device.
    let devices = [Rid(8), Rid(16)].map(|rid| domain.attach(rid).expect("new"));
    let (end, done) = (AtomicBool::new(false), AtomicU64::new(0));

    let mut copy = Copy {
        bytes: vec![0; usize::try_from(COUNT * PAGE_SIZE).expect("small")],
        bitmap: DirtyBitmap::new(page(0)..page(COUNT)).expect("aligned"),
        copied: 0,
    };
    let (mut rounds, mut checks, mut missed) = (0u64, 0u64, Vec::new());
    thread::scope(|scope| {
        let _end = EndOnDrop(&end);
        for writer in 0..WRITERS {
            let device = devices[usize::from(writer % 2 == 1)].clone();
            let (end, done) = (&end, &done);
            scope.spawn(move || {
                let mut random = Random(seed.wrapping_mul(31).wrapping_add(writer));
                let mut data = vec![0; 100 << 10];
                while !end.load(Ordering::Relaxed) {
                    access(&device, &mut random, &mut data, done);
                }
            });
        }
        let (end_ref, mapped) = (&end, domain.clone());
        scope.spawn(move || {
            let mut random = Random(seed ^ 0x5555);
            while !end_ref.load(Ordering::Relaxed) {
                remap(&mapped, &mut random);
            }
        });

        let mut random = Random(!seed);
        let start = Instant::now();
        while start.elapsed() < length && missed.is_empty() {
            domain.start_tracking().expect("drained");
            copy.take(memory.as_ref(), 0, COUNT);
            for _ in 0..20 {
                for _ in 0..1 + random.below(4) {
                    copy.round(&domain, &mut random);
                    rounds += 1;
                }
                // All devices at rest: one more harvest, then nothing may differ.
                devices.iter().for_each(|device| device.revoke().expect("drained"));
                let at_rest = devices.each_ref().map(Requester::accesses);
                copy.round(&domain, &mut random);
                missed = copy.differing(memory.as_ref());
                checks += 1;
                let still = devices.each_ref().map(Requester::accesses);
                assert_eq!(still, at_rest, "DMA after revoke");
                if !missed.is_empty() {
                    break;
                }
                devices.iter().for_each(Requester::restore);
            }
            domain.stop_tracking();
        }
    });
    println!(
        "accesses={} rounds={rounds} checks={checks} copied={} missed={}",
        done.load(Ordering::Relaxed),
        copy.copied,
        missed.len()
    );
    assert!(missed.is_empty(), "seed {seed}: pages {missed:?} were written and not reported");
    assert!(checks > 0 && done.load(Ordering::Relaxed) > 0);
}
