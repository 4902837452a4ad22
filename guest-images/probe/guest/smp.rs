//! The other processors: INIT, STARTUP, and the way through `tramp.S`.

use core::sync::atomic::{AtomicUsize, Ordering::Acquire, Ordering::Release};

use crate::cpu::{self, CPUS, MOST};
use crate::fail::fail;
use crate::logic::options::Options;
use crate::memory::Arena;
use crate::shared::SETUP;
use crate::{apic, clock, gate, power, worker};

/// Below 1 MiB; what the loader put there has been copied by now.
const TRAMPOLINE_PAGE: u8 = 0x08;
const STACK: u64 = 0x10000;
const TSS_BYTES: u64 = 104;
const RING0_STACK: u64 = 512;

unsafe extern "C" {
    static tramp_begin: u8;
    static tramp_end: u8;
    static mut start_rsp0: u64;
    static mut start_rsp3: u64;
    static mut start_rip: u64;
    static mut start_tr: u64;
    static mut tss_descriptors: [[u64; 2]; MOST];
    static task_states: u8;
    static ring0_stacks: u8;
}

/// The one that is being started.
static STARTING: AtomicUsize = AtomicUsize::new(0);

/// Stacks of the processors, by number; the first has its own in the image.
pub struct Stacks([u64; MOST]);

pub fn stacks(options: &Options, arena: &mut Arena) -> Stacks {
    let mut tops = [0; MOST];
    for top in tops.iter_mut().take(options.vcpus as usize).skip(1) {
        match arena.take(STACK) {
            Some(base) => *top = base + STACK - 8,
            None => fail(format_args!("memory at stacks")),
        }
    }
    Stacks(tops)
}

/// Starts all that the options ask for, one after the other.
pub fn start(stacks: &Stacks) {
    let setup = SETUP.get();
    let started = stacks.0.iter().enumerate().filter(|(_, top)| **top != 0);
    for (n, &top) in started.take(setup.options.vcpus as usize) {
        prepare(n, top);
        STARTING.store(n, Release);
        apic::start(n as u32, TRAMPOLINE_PAGE, setup.hz);
        let begin = clock::now();
        while !CPUS[n].online.load(Acquire) {
            if clock::now().saturating_sub(begin) > 5 * setup.hz {
                fail(format_args!("vcpu at n={n} what=does-not-start"));
                return;
            }
            cpu::beat(0);
        }
    }
}

fn prepare(n: usize, stack: u64) {
    let tss = (&raw const task_states) as u64 + TSS_BYTES * n as u64;
    let base = (tss & 0xff_ffff) << 16 | (tss & 0xff00_0000) << 32;
    // SAFETY: nobody else runs on, or is started through, these places now; the trampoline's
    // page is conventional memory of which the loader's data has been copied.
    unsafe {
        tss_descriptors[n] = [0x0000_8900_0000_0067 | base, tss >> 32];
        start_tr = 0x30 + 16 * n as u64;
        start_rsp0 = (&raw const ring0_stacks) as u64 + RING0_STACK * (n as u64 + 1);
        start_rsp3 = stack;
        start_rip = other_main as extern "C" fn() -> ! as u64;
        let from = &raw const tramp_begin;
        let len = (&raw const tramp_end).offset_from(from) as usize;
        let to = (u64::from(TRAMPOLINE_PAGE) * 4096) as *mut u8;
        to.copy_from_nonoverlapping(from, len);
    }
}

/// Where another processor enters ring 3, interrupts off.
extern "C" fn other_main() -> ! {
    let n = STARTING.load(Acquire);
    apic::init(n);
    gate::enable_interrupts();
    CPUS[n].online.store(true, Release);
    worker::run_other(n);
    power::rest(n)
}
