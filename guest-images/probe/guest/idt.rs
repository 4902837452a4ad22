//! The interrupt descriptor table, filled in ring 3 from the lists in `gates.S`.

use crate::fail::fail;

/// LAPIC timer of processor n: vector `TIMER + n`.
pub const TIMER: u8 = 0x30;
/// ndma device n: completion `DEVICE + 2n`, error `DEVICE + 2n + 1`.
pub const DEVICE: u8 = 0x40;
/// The local APIC's spurious interrupt.
pub const SPURIOUS: u8 = 0xff;
/// Devices that there are vectors for.
pub const DEVICES: usize = 4;
/// Processors that there are timer vectors for.
const TIMERS: usize = 8;

/// `int3`: ring 3 may use this gate.
const BREAKPOINT: usize = 3;
const FAULTS: usize = 32;
const STRAY: usize = 2 * DEVICES;

unsafe extern "C" {
    static mut idt: [[u64; 2]; 256];
    static breakpoint_entry: u64;
    static timer_entries: [u64; TIMERS];
    static device_entries: [u64; 2 * DEVICES + 1];
    static fault_entries: [u64; FAULTS];
    static spurious_entry: u64;
    static interrupt_counts: [u64; TIMERS + 2 * DEVICES + 1];
    static fault_vector: u64;
    static fault_error: u64;
    static fault_rip: u64;
    static fault_cr2: u64;
}

/// An interrupt gate into ring 0 at `entry`, to be called by software from ring `dpl` and below.
fn interrupt_gate(entry: u64, dpl: u64) -> [u64; 2] {
    let low = (entry & 0xffff) | 0x08 << 16 | (0x8e00 | dpl << 13) << 32;
    [low | (entry & 0xffff_0000) << 32, entry >> 32]
}

/// Fills the table. The first processor does it once, with interrupts off.
pub fn fill() {
    // SAFETY: nobody else runs; the lists are constants and have the lengths declared above.
    unsafe {
        let table = &mut *&raw mut idt;
        for gate in table.iter_mut() {
            *gate = interrupt_gate(device_entries[STRAY], 0);
        }
        let mut put = |first: usize, entries: &[u64], dpl| {
            for (gate, entry) in table[first..].iter_mut().zip(entries) {
                *gate = interrupt_gate(*entry, dpl);
            }
        };
        put(0, &fault_entries, 0);
        put(usize::from(TIMER), &timer_entries, 0);
        put(usize::from(DEVICE), &device_entries[..STRAY], 0);
        put(BREAKPOINT, &[breakpoint_entry], 3);
        put(usize::from(SPURIOUS), &[spurious_entry], 0);
    }
}

fn count(kind: usize) -> u64 {
    // SAFETY: an aligned word that handlers on processor 0 increment; bounds are checked.
    unsafe { (&raw const interrupt_counts[kind]).read_volatile() }
}

/// Completion interrupts of device `n` so far.
pub fn completions(n: usize) -> u64 {
    count(TIMERS + 2 * n)
}

/// Error interrupts of device `n` so far.
pub fn errors(n: usize) -> u64 {
    count(TIMERS + 2 * n + 1)
}

/// Interrupts on vectors that nobody was told of.
pub fn strays() -> u64 {
    count(TIMERS + STRAY)
}

/// Where a fault goes on, on the fault stack: it is a FAIL, and this processor is done.
#[unsafe(no_mangle)]
extern "C" fn fault_main() -> ! {
    // SAFETY: written by the fault's entry, before this.
    let (vector, error, rip, cr2) = unsafe { (fault_vector, fault_error, fault_rip, fault_cr2) };
    fail(format_args!("fault at rip={rip:#x} vector={vector} error={error:#x} cr2={cr2:#x}"));
    crate::control::after_fault()
}
