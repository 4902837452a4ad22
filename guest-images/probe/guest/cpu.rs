//! What each processor keeps of itself and shows to the others.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use crate::clock;
use crate::logic::heartbeat::{Gaps, Heartbeat, Outlier};
use crate::logic::options::MAX_VCPUS;

pub const MOST: usize = MAX_VCPUS as usize;

pub struct Cpu {
    heart: UnsafeCell<Heartbeat>,
    pub gaps: Gaps,
    pub pages: AtomicU64,
    pub checked: AtomicU64,
    pub sweeps: AtomicU64,
    /// It runs.
    pub online: AtomicBool,
    /// Its share of the working set is filled.
    pub filled: AtomicBool,
    /// It has checked its share for the last time and does nothing more.
    pub done: AtomicBool,
}

// SAFETY: a heart is touched by its own processor only; the rest is atomic.
unsafe impl Sync for Cpu {}

impl Cpu {
    const fn new() -> Self {
        Self {
            heart: UnsafeCell::new(Heartbeat::new()),
            gaps: Gaps::new(),
            pages: AtomicU64::new(0),
            checked: AtomicU64::new(0),
            sweeps: AtomicU64::new(0),
            online: AtomicBool::new(false),
            filled: AtomicBool::new(false),
            done: AtomicBool::new(false),
        }
    }
}

pub static CPUS: [Cpu; MOST] = [const { Cpu::new() }; MOST];
/// The load runs: all shares are filled.
pub static GO: AtomicBool = AtomicBool::new(false);
/// The end: each processor checks its share once more.
pub static STOP: AtomicBool = AtomicBool::new(false);

fn with_heart<T>(n: usize, use_it: impl FnOnce(&mut Heartbeat) -> T) -> T {
    // SAFETY: processor n calls this for itself only, never from within `use_it`, and handlers
    // in ring 0 do not touch it.
    use_it(unsafe { &mut *CPUS[n].heart.get() })
}

/// Starts the calling processor's heart. Before, `beat` measures nothing worth having.
pub fn start_heart(n: usize, hz: u64) {
    with_heart(n, |heart| heart.start(clock::now(), hz));
    CPUS[n].gaps.reset();
}

/// One beat of the calling processor's heart, which is number `n`; returns the time.
#[inline]
pub fn beat(n: usize) -> u64 {
    let now = clock::now();
    with_heart(n, |heart| heart.beat(now, &CPUS[n].gaps));
    now
}

/// Running time of the calling processor, in cycles.
pub fn running(n: usize) -> u64 {
    with_heart(n, |heart| heart.running())
}

/// A gap of the calling processor that stands out, since this was last asked.
pub fn take_outlier(n: usize) -> Option<Outlier> {
    with_heart(n, Heartbeat::take_outlier)
}

/// Adds up a count over all processors.
pub fn sum(count: impl Fn(&Cpu) -> &AtomicU64) -> u64 {
    CPUS.iter().map(|cpu| count(cpu).load(Relaxed)).sum()
}

/// The processors in use.
pub fn used(vcpus: u32) -> impl Iterator<Item = &'static Cpu> {
    CPUS.iter().zip(0..vcpus).map(|(cpu, _)| cpu)
}
