//! Time: the TSC, and where its frequency comes from.

use core::arch::x86_64::{__cpuid, _rdtsc};

use crate::{apic, gate};

/// Used where no frequency was found out yet.
pub const GUESS_HZ: u64 = 2_000_000_000;

/// Cycles since some start.
#[inline]
pub fn now() -> u64 {
    // SAFETY: `rdtsc` is allowed in ring 3: CR4.TSD is clear.
    unsafe { _rdtsc() }
}

/// Spins for that many cycles.
pub fn spin(cycles: u64) {
    let start = now();
    while now().saturating_sub(start) < cycles {
        core::hint::spin_loop();
    }
}

pub struct Tsc {
    pub khz: u64,
    /// Who said so, for the hello line.
    pub source: &'static str,
}

impl Tsc {
    pub fn hz(&self) -> u64 {
        self.khz * 1000
    }
}

/// The TSC's frequency: as given, else the first that knows. The local APIC's timer comes last:
/// that it counts nanoseconds holds under KVM only.
pub fn find(given: u64) -> Tsc {
    let ways: [(fn() -> u64, &str); 4] = [
        (from_hypervisor, "hypervisor"),
        (from_cpuid, "cpuid"),
        (from_pit, "pit"),
        (from_apic, "apic"),
    ];
    if given != 0 {
        return Tsc { khz: given, source: "cmdline" };
    }
    for (way, source) in ways {
        let khz = way();
        if (100_000..20_000_000).contains(&khz) {
            return Tsc { khz, source };
        }
    }
    Tsc { khz: GUESS_HZ / 1000, source: "guess" }
}

/// Leaf 0x40000010 of VMware, KVM and others: kHz in EAX.
fn from_hypervisor() -> u64 {
    let has_hypervisor = __cpuid(1).ecx >> 31 != 0;
    if has_hypervisor && (0x4000_0010..0x4001_0000).contains(&__cpuid(0x4000_0000).eax) {
        return u64::from(__cpuid(0x4000_0010).eax);
    }
    0
}

/// Leaf 0x15: crystal in ECX, ratio EBX / EAX.
fn from_cpuid() -> u64 {
    if __cpuid(0).eax < 0x15 {
        return 0;
    }
    let leaf = __cpuid(0x15);
    let product = u64::from(leaf.ecx) * u64::from(leaf.ebx);
    product.checked_div(u64::from(leaf.eax)).unwrap_or(0) / 1000
}

/// The least of three: whoever holds the vCPU up makes a measurement longer, nobody shorter.
fn from_pit() -> u64 {
    let mut least = u64::MAX;
    for _ in 0..3 {
        match by_pit() {
            0 => return 0,
            khz => least = least.min(khz),
        }
    }
    least
}

/// Channel 2 of the 8254 counts 20 ms down.
fn by_pit() -> u64 {
    const HZ: u64 = 1_193_182;
    const COUNT: u64 = HZ / 50;
    let speaker = gate::in8(0x61);
    gate::out8(0x61, speaker & !3 | 1);
    gate::out8(0x43, 0xb0);
    gate::out8(0x42, (COUNT & 0xff) as u8);
    let start = now();
    gate::out8(0x42, (COUNT >> 8) as u8);
    for polls in 0..5000_u32 {
        if gate::in8(0x61) & 0x20 != 0 {
            // At once: there is no such timer, the port reads as all ones.
            return if polls < 3 { 0 } else { now().saturating_sub(start) * 50 / 1000 };
        }
    }
    0
}

fn from_apic() -> u64 {
    let (ticks, cycles) = apic::measure(GUESS_HZ / 100);
    (cycles * 1_000_000).checked_div(ticks).unwrap_or(0)
}
