//! What tracking costs, as ratios measured side by side in one run: each round times every variant
//! once, in turn, and the medians of many rounds are compared. Lines of `key=value` follow.
//!
//! `cargo bench -p drogher-iommu --bench dirty`
#![forbid(unsafe_code)]

use std::error::Error;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use drogher_iommu::{
    DirtyBitmap, Domain, DomainConfig, Gpa, HeapMemory, Iova, Memory, MemoryError, Oa, PAGE_SIZE,
    Perm, Requester, Rid,
};

const GIB: u64 = 1 << 30;
const ROUNDS: usize = 201;
const D_BIT: u64 = 1 << 9;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Memory that takes no time: what remains is the IOMMU's own.
struct NoMemory(u64);

impl Memory for NoMemory {
    fn len(&self) -> u64 {
        self.0
    }
    fn read(&self, oa: Oa, _data: &mut [u8]) -> Result<(), MemoryError> {
        black_box(oa);
        Ok(())
    }
    fn write(&self, oa: Oa, _data: &[u8]) -> Result<(), MemoryError> {
        black_box(oa);
        Ok(())
    }
    fn fill(&self, oa: Oa, _byte: u8, _len: u64) -> Result<(), MemoryError> {
        black_box(oa);
        Ok(())
    }
    fn fetch_add_u32(&self, _oa: Oa, _value: u32) -> Result<u32, MemoryError> {
        Ok(0)
    }
    fn fetch_add_u64(&self, _oa: Oa, _value: u64) -> Result<u64, MemoryError> {
        Ok(0)
    }
    fn compare_swap_u32(&self, _oa: Oa, _old: u32, _new: u32) -> Result<u32, MemoryError> {
        Ok(0)
    }
    fn compare_swap_u64(&self, _oa: Oa, _old: u64, _new: u64) -> Result<u64, MemoryError> {
        Ok(0)
    }
}

struct Space {
    domain: Domain,
    device: Requester,
    bitmap: DirtyBitmap,
    end: Gpa,
}

impl Space {
    fn new(memory: Arc<dyn Memory>, tracked: bool) -> Outcome<Self> {
        let end = Gpa(memory.len());
        let domain = Domain::new(memory, DomainConfig::default())?;
        domain.map(Gpa(0)..end, Oa(0), Perm::READ_WRITE)?;
        if tracked {
            domain.start_tracking()?;
        }
        let device = domain.attach(Rid(8))?;
        Ok(Self { domain, device, bitmap: DirtyBitmap::new(Gpa(0)..end)?, end })
    }

    fn harvest(&self) -> Outcome<u64> {
        Ok(self.domain.read_and_clear_dirty(Gpa(0)..self.end, &self.bitmap)?.pages.0)
    }
}

fn time(mut work: impl FnMut() -> Outcome<()>) -> Outcome<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64() * 1e9)
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Times each variant once a round; returns the medians in nanoseconds.
fn side_by_side<const N: usize>(
    mut variants: [&mut dyn FnMut() -> Outcome<()>; N],
) -> Outcome<[f64; N]> {
    let mut samples: [Vec<f64>; N] = std::array::from_fn(|_| Vec::with_capacity(ROUNDS));
    for round in 0..ROUNDS {
        for step in 0..N {
            // A different one first each time, so that none always follows the same.
            let which = (round + step) % N;
            let taken = time(&mut variants[which])?;
            samples[which].push(taken);
        }
    }
    Ok(samples.map(median))
}

/// DMA writes of `size` bytes over a working set that the IOTLB holds.
fn writes(name: &str, size: u64) -> Outcome<()> {
    let set = 64 * PAGE_SIZE;
    let count = (256 << 10) / size.max(512);
    let memory = Arc::new(HeapMemory::new(set));
    let untracked = Space::new(memory.clone(), false)?;
    let tracked = Space::new(memory.clone(), true)?;
    let data = vec![0xa5u8; usize::try_from(size)?];
    let mut plain = vec![0u8; usize::try_from(set)?];
    // Small writes go to a new page each time, large ones one after another.
    let stride = size.max(PAGE_SIZE);
    let at = |step: u64| step * stride % set;

    let dma = |space: &Space| -> Outcome<()> {
        for step in 0..count {
            space.device.write(Iova(at(step)), black_box(&data))?;
        }
        Ok(())
    };
    let [none, with, direct, memcpy, first] = side_by_side([
        &mut || dma(&untracked),
        &mut || dma(&tracked),
        &mut || {
            for step in 0..count {
                memory.write(Oa(at(step)), black_box(&data))?;
            }
            Ok(())
        },
        &mut || {
            for step in 0..count {
                let to = usize::try_from(at(step))?;
                plain[to..to + data.len()].copy_from_slice(black_box(&data));
            }
            black_box(&mut plain);
            Ok(())
        },
        // The worst case: every page is written once between two harvests.
        &mut || {
            tracked.harvest()?;
            dma(&tracked)
        },
    ])?;
    let each = |total: f64| total / count as f64;
    println!(
        "write {name:>6}: tracked {:.1} ns, untracked {:.1} ns, the memory's own copy {:.1} ns, \
         memcpy {:.1} ns; with a harvest every {count} writes {:.1} ns",
        each(with),
        each(none),
        each(direct),
        each(memcpy),
        each(first),
    );
    println!("write_{name}_tracked_over_untracked_speed={:.3}", none / with);
    println!("write_{name}_tracked_over_direct_speed={:.3}", direct / with);
    println!("write_{name}_tracked_over_memcpy_speed={:.3}", memcpy / with);
    println!("write_{name}_tracked_ns={:.1}", each(with));
    println!("write_{name}_after_clear_ns={:.1}", each(first));
    Ok(())
}

/// `read_and_clear_dirty` of 1 GiB against a scan of as many entries in one piece.
fn harvest(name: &str, every: Option<u64>) -> Outcome<()> {
    let space = Space::new(Arc::new(NoMemory(GIB)), true)?;
    let pages = GIB / PAGE_SIZE;
    let plain: Vec<AtomicU64> = (0..pages).map(|_| AtomicU64::new(3)).collect();
    let dirty: Vec<u64> = every.map_or(Vec::new(), |every| {
        // Spread, but not evenly: one page in each group of `every`.
        (0..pages / every).map(|group| group * every + group * 7919 % every).collect()
    });
    let (mut harvests, mut scans) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS / 3 {
        for page in &dirty {
            space.device.write(Iova(page * PAGE_SIZE), &[1])?;
            plain[usize::try_from(*page)?].fetch_or(D_BIT, Ordering::Relaxed);
        }
        space.bitmap.take_words(|_, _| {});
        let mut found = 0;
        harvests.push(time(|| {
            found = space.harvest()?;
            Ok(())
        })?);
        let mut scanned = 0;
        scans.push(time(|| {
            for entry in &plain {
                if entry.load(Ordering::Relaxed) & D_BIT != 0 {
                    entry.fetch_and(!D_BIT, Ordering::AcqRel);
                    scanned += 1;
                }
            }
            Ok(())
        })?);
        if found != scanned || scanned != u64::try_from(dirty.len())? {
            return Err(format!("harvest found {found} pages, the scan {scanned}").into());
        }
    }
    let (harvest, scan) = (median(harvests), median(scans));
    let per_page = harvest / (dirty.len().max(1) as f64);
    println!(
        "harvest of 1 GiB, {name}: {:.2} us ({} pages, {per_page:.2} ns each), plain scan {:.2} us",
        harvest / 1e3,
        dirty.len(),
        scan / 1e3
    );
    println!("harvest_{name}_us_per_gib={:.3}", harvest / 1e3);
    println!("harvest_{name}_ns_per_dirty_page={per_page:.2}");
    println!("harvest_{name}_time_over_scan={:.4}", harvest / scan);
    Ok(())
}

/// What one small access costs without the copy.
fn iotlb() -> Outcome<()> {
    let space = Space::new(Arc::new(NoMemory(GIB)), false)?;
    let count = 4096u64;
    let mut data = [0u8; 8];
    let mut read = |stride: u64| -> Outcome<()> {
        for step in 0..count {
            space.device.read(Iova(step * stride % GIB), black_box(&mut data))?;
        }
        Ok(())
    };
    let mut samples = [Vec::new(), Vec::new()];
    let before = space.device.stats().iotlb_misses;
    for _ in 0..ROUNDS {
        samples[0].push(time(|| read(0))?);
        // Never the same page before the whole cache has been replaced.
        samples[1].push(time(|| read(PAGE_SIZE))?);
    }
    let misses = space.device.stats().iotlb_misses - before;
    let expected = count * u64::try_from(ROUNDS)?;
    if misses < expected {
        return Err(format!("{misses} IOTLB misses where {expected} were to be").into());
    }
    let [hit, miss] = samples.map(|samples| median(samples) / count as f64);
    println!("access without a copy: IOTLB hit {hit:.1} ns, miss {miss:.1} ns");
    println!("iotlb_hit_ns={hit:.2}");
    println!("iotlb_miss_ns={miss:.2}");
    Ok(())
}

fn main() -> Outcome<()> {
    // Let the clock come up first.
    let warm = Instant::now();
    while warm.elapsed() < Duration::from_millis(200) {
        black_box(Instant::now());
    }
    for (name, size) in [("64B", 64), ("4KiB", 4 << 10), ("64KiB", 64 << 10)] {
        writes(name, size)?;
    }
    harvest("empty", None)?;
    harvest("1pct", Some(100))?;
    harvest("all", Some(1))?;
    iotlb()
}
