//! The local APIC, through its memory page, from ring 3: the wake-up timer and what starts others.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::clock;
use crate::cpu::MOST;
use crate::gate;
use crate::idt::{SPURIOUS, TIMER};

const BASE: u64 = 0xfee0_0000;
const ID: u64 = 0x20;
const SPURIOUS_VECTOR: u64 = 0xf0;
const COMMAND_LOW: u64 = 0x300;
const COMMAND_HIGH: u64 = 0x310;
const LVT_TIMER: u64 = 0x320;
const LVT_LINT0: u64 = 0x350;
const LVT_LINT1: u64 = 0x360;
const TIMER_INITIAL: u64 = 0x380;
const TIMER_CURRENT: u64 = 0x390;
const TIMER_DIVIDE: u64 = 0x3e0;

const ENABLED: u32 = 0x100;
const MASKED: u32 = 1 << 16;
const DIVIDE_BY_1: u32 = 0xb;
const INIT: u32 = 0x4500;
const STARTUP: u32 = 0x4600;
const SENDING: u32 = 1 << 12;

/// Timer ticks per 2^20 TSC cycles.
static RATIO: AtomicU64 = AtomicU64::new(0);

#[repr(C, align(64))]
struct Line {
    count: u64,
    rest: [u64; 7],
}

unsafe extern "C" {
    static wake_counts: [Line; MOST];
}

fn read(register: u64) -> u32 {
    // SAFETY: the local APIC's page, mapped; an aligned 32-bit access.
    unsafe { ((BASE + register) as *const u32).read_volatile() }
}

fn write(register: u64, value: u32) {
    // SAFETY: as `read`; what is written makes interrupts that the IDT has entries for.
    unsafe { ((BASE + register) as *mut u32).write_volatile(value) }
}

/// This processor's APIC id.
pub fn id() -> u32 {
    read(ID) >> 24
}

/// Ticks of the timer in about `cycles` TSC cycles, and in how many exactly. Who holds the vCPU up
/// between the two counters makes them disagree: the best of several tries. Only before `init`: it
/// leaves the timer stopped.
pub fn measure(cycles: u64) -> (u64, u64) {
    write(SPURIOUS_VECTOR, ENABLED | u32::from(SPURIOUS));
    write(LVT_TIMER, MASKED | u32::from(TIMER));
    write(TIMER_DIVIDE, DIVIDE_BY_1);
    let (mut best, mut least) = ((0, 1), u64::MAX);
    for _ in 0..8 {
        let before = clock::now();
        write(TIMER_INITIAL, u32::MAX);
        let begun = clock::now();
        clock::spin(cycles);
        let ending = clock::now();
        let left = read(TIMER_CURRENT);
        let ended = clock::now();
        write(TIMER_INITIAL, 0);
        let doubt = begun.saturating_sub(before) + ended.saturating_sub(ending);
        if doubt < least {
            let middle = |a: u64, b: u64| a + b.saturating_sub(a) / 2;
            let cycles = middle(ending, ended).saturating_sub(middle(before, begun));
            (best, least) = ((u64::from(u32::MAX - left), cycles.max(1)), doubt);
        }
        if least < cycles / 100 {
            break;
        }
    }
    best
}

/// Prepares the first processor: nothing but MSIs and the timer gets through to it.
pub fn init_first(hz: u64) {
    gate::out8(0x21, 0xff);
    gate::out8(0xa1, 0xff);
    // Only naps are reckoned with it: a millisecond is exact enough, and ten would be a third of a
    // fast start.
    let (ticks, cycles) = measure(hz / 1000);
    RATIO.store(((ticks << 20) / cycles).max(1), Relaxed);
    init(0);
}

/// Prepares the first processor if that was not done.
pub fn make_ready(hz: u64) {
    if RATIO.load(Relaxed) == 0 {
        init_first(hz);
    }
}

/// Prepares processor `n`, which calls it.
pub fn init(n: usize) {
    write(LVT_LINT0, MASKED);
    write(LVT_LINT1, MASKED);
    write(SPURIOUS_VECTOR, ENABLED | u32::from(SPURIOUS));
    write(TIMER_DIVIDE, DIVIDE_BY_1);
    write(LVT_TIMER, u32::from(TIMER) + n as u32);
}

/// Interrupts that processor `n` has had. Read this first, then look for work, then `nap`.
pub fn wakes(n: usize) -> u64 {
    // SAFETY: an aligned word that handlers increment; bounds are checked.
    unsafe { (&raw const wake_counts[n].count).read_volatile() }
}

/// Sleeps for about `cycles`, or until an interrupt later than the `seen`th.
pub fn nap(n: usize, seen: u64, cycles: u64) {
    let ticks = (u128::from(cycles) * u128::from(RATIO.load(Relaxed))) >> 20;
    write(TIMER_INITIAL, u32::try_from(ticks).unwrap_or(u32::MAX).max(1));
    gate::halt_unless_changed(&raw const (wakes_line(n)).count, seen);
}

fn wakes_line(n: usize) -> &'static Line {
    // SAFETY: a static; only its address is used.
    unsafe { &wake_counts[n] }
}

/// Sends INIT to the processor with APIC id `to`, then STARTUP at `page`.
pub fn start(to: u32, page: u8, hz: u64) {
    send(to, INIT);
    clock::spin(hz / 100);
    send(to, STARTUP | u32::from(page));
}

fn send(to: u32, what: u32) {
    write(COMMAND_HIGH, to << 24);
    write(COMMAND_LOW, what);
    for _ in 0..1000 {
        if read(COMMAND_LOW) & SENDING == 0 {
            break;
        }
    }
}
