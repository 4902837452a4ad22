//! What tracking costs, as ratios measured side by side in one run: each round times every variant
//! once, in turn, and the medians of many rounds are compared. Lines of `key=value`, and at the end
//! a table of what is asked for and what came out.
//!
//! `cargo bench -p drogher-iommu --bench dirty`
#![forbid(unsafe_code)]

use std::error::Error;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use drogher_iommu::{
    DirtyBitmap, Domain, DomainConfig, Gpa, HeapMemory, Iova, Memory, MemoryError, Oa, PAGE_SIZE,
    Perm, Requester, Rid, SplitPolicy, TrackConfig, TrackMode,
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

/// Memory that is written to by the memcpy that it is compared with: what remains is the IOMMU's.
struct Plain(Mutex<Box<[u8]>>);

impl Plain {
    fn part<T>(&self, oa: Oa, len: usize, act: impl FnOnce(&mut [u8]) -> T) -> Option<T> {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let start = usize::try_from(oa.0).ok()?;
        bytes.get_mut(start..start + len).map(act)
    }
}

impl Memory for Plain {
    fn len(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len() as u64
    }
    fn read(&self, oa: Oa, data: &mut [u8]) -> Result<(), MemoryError> {
        self.part(oa, data.len(), |from| data.copy_from_slice(from));
        Ok(())
    }
    fn write(&self, oa: Oa, data: &[u8]) -> Result<(), MemoryError> {
        self.part(oa, data.len(), |to| to.copy_from_slice(data));
        Ok(())
    }
    fn fill(&self, _oa: Oa, _byte: u8, _len: u64) -> Result<(), MemoryError> {
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

/// A figure that is asked for.
struct Row {
    what: String,
    unit: &'static str,
    value: f64,
    wanted: Wanted,
}

#[derive(Clone, Copy)]
enum Wanted {
    AtMost(f64),
    AtLeast(f64),
    /// For comparison.
    Shown,
}

/// What has been measured so far.
#[derive(Default)]
struct Table(Vec<Row>);

impl Table {
    fn add(&mut self, what: impl Into<String>, unit: &'static str, value: f64, wanted: Wanted) {
        self.0.push(Row { what: what.into(), unit, value, wanted });
    }

    fn print(&self) {
        println!("\n{:<58} {:>10} {:<8} {:>10}", "what", "measured", "unit", "wanted");
        for Row { what, unit, value, wanted } in &self.0 {
            let (wanted, verdict) = match wanted {
                Wanted::AtMost(limit) => (format!("<= {limit}"), *value <= *limit),
                Wanted::AtLeast(limit) => (format!(">= {limit}"), *value >= *limit),
                Wanted::Shown => (String::new(), true),
            };
            let verdict = if verdict { "" } else { "  MISSED" };
            println!("{what:<58} {value:>10.2} {unit:<8} {wanted:>10}{verdict}");
        }
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
        Self::with(memory, PAGE_SIZE, tracked.then(TrackConfig::default))
    }

    fn with(memory: Arc<dyn Memory>, leaf: u64, track: Option<TrackConfig>) -> Outcome<Self> {
        let end = Gpa(memory.len());
        let config = DomainConfig { largest_leaf: leaf, ..DomainConfig::default() };
        let domain = Domain::new(memory, config)?;
        domain.map(Gpa(0)..end, Oa(0), Perm::READ_WRITE)?;
        if let Some(track) = track {
            domain.start_tracking_with(track)?;
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
fn writes(table: &mut Table, name: &str, size: u64, wanted: f64) -> Outcome<()> {
    let set = 64 * PAGE_SIZE;
    let count = (256 << 10) / size.max(512);
    let memory = Arc::new(HeapMemory::new(set));
    let untracked = Space::new(memory.clone(), false)?;
    let tracked = Space::new(memory.clone(), true)?;
    let bytes = vec![0; usize::try_from(set)?].into_boxed_slice();
    let over_memcpy = Space::new(Arc::new(Plain(Mutex::new(bytes))), true)?;
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
    let [none, with, copied, direct, memcpy, first] = side_by_side([
        &mut || dma(&untracked),
        &mut || dma(&tracked),
        &mut || dma(&over_memcpy),
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
    println!("write_{name}_tracked_over_memcpy_speed={:.3}", memcpy / copied);
    println!("write_{name}_tracked_ns={:.1}", each(with));
    println!("write_{name}_after_clear_ns={:.1}", each(first));
    let what = format!("write of {name}: speed tracked / untracked");
    table.add(what, "", none / with, Wanted::AtLeast(wanted));
    let limit = if size == 64 << 10 { Wanted::AtLeast(0.8) } else { Wanted::Shown };
    table.add(format!("write of {name}: speed tracked DMA / memcpy"), "", memcpy / copied, limit);
    Ok(())
}

/// One kind of tracking, for comparison.
struct Kind {
    name: &'static str,
    leaf: u64,
    track: TrackConfig,
}

/// `read_and_clear_dirty` of 1 GiB against a scan of as many entries in one piece.
fn harvest(
    table: &mut Table,
    kind: &Kind,
    (name, every): (&str, Option<u64>),
    wanted: Wanted,
) -> Outcome<()> {
    let space = Space::with(Arc::new(NoMemory(GIB)), kind.leaf, Some(kind.track))?;
    let leaves = GIB / kind.leaf;
    let each = kind.leaf / PAGE_SIZE;
    let plain: Vec<AtomicU64> = (0..leaves).map(|_| AtomicU64::new(3)).collect();
    let dirty: Vec<u64> = every.map_or(Vec::new(), |every| {
        // Spread, but not evenly: one leaf in each group of `every`.
        (0..leaves / every).map(|group| group * every + group * 7919 % every).collect()
    });
    let (mut harvests, mut scans, mut writes) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS / 3 {
        writes.push(time(|| {
            for leaf in &dirty {
                space.device.write(Iova(leaf * kind.leaf), &[1])?;
            }
            Ok(())
        })?);
        for leaf in &dirty {
            plain[usize::try_from(*leaf)?].fetch_or(D_BIT, Ordering::Relaxed);
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
        if found != scanned * each || scanned != u64::try_from(dirty.len())? {
            return Err(format!("harvest found {found} pages, the scan {scanned}").into());
        }
    }
    let (harvest, scan, write) = (median(harvests), median(scans), median(writes));
    let count = dirty.len().max(1) as f64;
    let key = format!("harvest_{}_{name}", kind.name.replace([' ', ','], "_"));
    println!("{key}_us_per_gib={:.3}", harvest / 1e3);
    println!("{key}_ns_per_dirty_leaf={:.2}", harvest / count);
    println!("{key}_time_over_scan={:.4}", harvest / scan);
    println!("{key}_first_write_ns={:.2}", write / count);
    let what = format!("harvest of 1 GiB, {}, {name} dirty", kind.name);
    if every == Some(1) && kind.leaf == PAGE_SIZE {
        table.add(what, "ns/page", harvest / count, wanted);
    } else {
        table.add(what, "us", harvest / 1e3, wanted);
    }
    if every == Some(1) && each > 1 {
        // Most of it is the caller's bitmap: one locked OR for 64 pages.
        let bitmap = &space.bitmap;
        let report = median(
            (0..ROUNDS / 3)
                .map(|_| {
                    bitmap.take_words(|_, _| {});
                    time(|| {
                        for leaf in 0..leaves {
                            let first = black_box(leaf * kind.leaf);
                            bitmap.or_range(Gpa(first)..Gpa(first + kind.leaf))?;
                        }
                        Ok(())
                    })
                })
                .collect::<Outcome<_>>()?,
        );
        let what = format!("  without setting the {} bits of the bitmap", leaves * each);
        table.add(what, "us", (harvest - report) / 1e3, wanted);
    }
    if every == Some(1) {
        let what = format!("  first write to a leaf after it, {}", kind.name);
        table.add(what, "ns", write / count, Wanted::Shown);
    }
    Ok(())
}

/// Unmapping 1 GiB of 4 KiB leaves, every page dirty, against the same without tracking; and what
/// the other operations on a GiB take.
fn reshaping(table: &mut Table) -> Outcome<()> {
    let memory = || Arc::new(NoMemory(GIB));
    let (plain, tracked) = (Space::new(memory(), false)?, Space::new(memory(), true)?);
    let large = Space::with(memory(), GIB, None)?;
    // Not at the edge of a table, so that nothing is taken whole.
    let ragged = || Gpa(PAGE_SIZE)..Gpa((1 << 20) + PAGE_SIZE);
    let mut samples: [Vec<f64>; 9] = std::array::from_fn(|_| Vec::new());
    for round in 0..ROUNDS / 3 {
        for space in [&plain, &tracked] {
            for page in 0..GIB / PAGE_SIZE {
                space.device.write(Iova(page * PAGE_SIZE), &[1])?;
            }
        }
        let mut spaces = [(&plain, 0), (&tracked, 1)];
        spaces.rotate_left(round % 2);
        for (space, at) in spaces {
            samples[at + 6].push(time(|| {
                space.domain.unmap(ragged())?;
                Ok(())
            })?);
            space.domain.map(ragged(), Oa(PAGE_SIZE), Perm::READ_WRITE)?;
        }
        for (space, at) in spaces {
            samples[at].push(time(|| {
                space.domain.unmap(Gpa(0)..space.end)?;
                Ok(())
            })?);
        }
        samples[2]
            .push(time(|| Ok(plain.domain.map(Gpa(0)..plain.end, Oa(0), Perm::READ_WRITE)?))?);
        tracked.harvest()?;
        tracked.bitmap.take_words(|_, _| {});
        tracked.domain.map(Gpa(0)..tracked.end, Oa(0), Perm::READ_WRITE)?;
        samples[3].push(time(|| Ok(large.domain.start_tracking()?))?);
        samples[4].push(time(|| {
            large.domain.stop_tracking();
            Ok(())
        })?);
        samples[5].push(time(|| {
            plain.domain.mapped_writable(Gpa(0)..plain.end, &plain.bitmap)?;
            Ok(())
        })?);
    }
    let [unmap, unmap_dirty, map, start, stop, writable, part, part_dirty, _] = samples.map(median);
    let ratio = Wanted::AtMost(1.5);
    table.add("unmap of 1 GiB: time all dirty / untracked", "", unmap_dirty / unmap, ratio);
    table.add("unmap of 1 MiB, leaf by leaf: the same", "", part_dirty / part, ratio);
    println!("unmap_dirty_time_over_plain={:.3}", unmap_dirty / unmap);
    println!("unmap_leaves_dirty_time_over_plain={:.3}", part_dirty / part);
    for (what, value) in [
        ("  unmap of 1 GiB, untracked", unmap),
        ("  map of 1 GiB in 4 KiB leaves", map),
        ("  start, splitting 1 GiB to 4 KiB leaves", start),
        ("  stop, merging 1 GiB again", stop),
        ("  mapped_writable of 1 GiB in 4 KiB leaves", writable),
    ] {
        table.add(what, "us", value / 1e3, Wanted::Shown);
    }
    Ok(())
}

/// What one small access costs without the copy.
fn iotlb(table: &mut Table) -> Outcome<()> {
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
    table.add("access without a copy, IOTLB hit", "ns", hit, Wanted::AtMost(20.0));
    table.add("access without a copy, IOTLB miss", "ns", miss, Wanted::Shown);
    Ok(())
}

fn main() -> Outcome<()> {
    // Let the clock come up first.
    let warm = Instant::now();
    while warm.elapsed() < Duration::from_millis(200) {
        black_box(Instant::now());
    }
    let mut table = Table::default();
    for (name, size, wanted) in
        [("64B", 64, 0.8), ("4KiB", 4 << 10, 0.9), ("64KiB", 64 << 10, 0.95)]
    {
        writes(&mut table, name, size, wanted)?;
    }
    let small = Kind { name: "4 KiB leaves", leaf: PAGE_SIZE, track: TrackConfig::default() };
    let shares = [("none", None), ("1pct", Some(100)), ("all", Some(1))];
    let limits = [Wanted::AtMost(1.0), Wanted::AtMost(50.0), Wanted::AtMost(4.0)];
    for (share, limit) in shares.into_iter().zip(limits) {
        harvest(&mut table, &small, share, limit)?;
    }
    let track = TrackConfig { split: SplitPolicy::Never, ..TrackConfig::default() };
    let large = Kind { name: "2 MiB leaves", leaf: 2 << 20, track };
    for share in shares {
        harvest(&mut table, &large, share, Wanted::AtMost(4.0))?;
    }
    let track = TrackConfig { mode: TrackMode::WriteFault, ..TrackConfig::default() };
    let faults = Kind { name: "4 KiB leaves, write faults", leaf: PAGE_SIZE, track };
    for share in shares {
        harvest(&mut table, &faults, share, Wanted::Shown)?;
    }
    reshaping(&mut table)?;
    iotlb(&mut table)?;
    table.print();
    Ok(())
}
