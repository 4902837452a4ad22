//! Ways to end.

use crate::{apic, clock, gate};

/// PM1a control of our machine and of QEMU's PC machines: SLP_EN, sleep type 0.
const PM1_CONTROL: u16 = 0x604;
const SLEEP_ENABLE: u16 = 1 << 13;

/// Powers off. A machine without that port (QEMU's microvm) is reset instead, which ends it
/// under `-no-reboot`.
pub fn off(hz: u64) -> ! {
    gate::out16(PM1_CONTROL, SLEEP_ENABLE);
    clock::spin(hz);
    reset(hz)
}

/// Resets, through the PCI reset port, else the keyboard controller, else by a triple fault.
pub fn reset(hz: u64) -> ! {
    gate::out8(0xcf9, 0x02);
    gate::out8(0xcf9, 0x06);
    clock::spin(hz);
    gate::out8(0x64, 0xfe);
    clock::spin(hz);
    gate::crash()
}

/// Sleeps for ever, woken at times by nobody in particular.
pub fn rest(n: usize) -> ! {
    loop {
        apic::nap(n, apic::wakes(n), clock::GUESS_HZ);
    }
}
