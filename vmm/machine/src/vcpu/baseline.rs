//! The CPU model that two hosts share: x86-64-v2 (System V ABI, AMD64 supplement, chapter 3.1.1) and what
//! every KVM adds to it, with nothing in it that differs from one host of a vendor to the next.
//!
//! Intel and AMD stay apart, as kernels take different ways on them; so does the TSC's frequency.

use kvm_bindings::kvm_cpuid_entry2;
use thiserror::Error;

/// Leaf 1, ECX: SSE3, SSSE3, CMPXCHG16B, SSE4.1, SSE4.2, POPCNT.
const ONE_ECX: u32 = 1 | 1 << 9 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 23;
/// Leaf 1, ECX, that are there if KVM offers them, which `adjust` has said: x2APIC, the TSC deadline timer,
/// and that there is a hypervisor.
const ONE_ECX_HOST: u32 = 1 << 21 | 1 << 24 | 1 << 31;
/// Leaf 1, EDX: x87, debugging extensions, PSE, TSC, MSRs, PAE, CMPXCHG8B, APIC, SYSENTER, MTRRs, PGE,
/// CMOV, PAT, PSE-36, CLFLUSH, MMX, FXSR, SSE, SSE2.
const ONE_EDX: u32 = 0x078B_BB7D;
/// Leaf 1, EDX, if KVM offers them: machine checks.
const ONE_EDX_HOST: u32 = 1 << 7 | 1 << 14;
/// Leaf 0x8000_0001, ECX: LAHF in 64-bit mode.
const EXTENDED_ECX: u32 = 1;
/// Leaf 0x8000_0001, EDX: SYSCALL, no-execute, long mode.
const EXTENDED_EDX: u32 = 1 << 11 | 1 << 20 | 1 << 29;
/// The same, where AMD repeats leaf 1.
const AMD_REPEATS: u32 = 0x0183_F3FF & ONE_EDX;
/// Leaf 0x4000_0001, EAX: clock, I/O delays, second clock, and that it is stable.
const KVM_EAX: u32 = 1 | 1 << 1 | 1 << 3 | 1 << 24;
/// Leaf 6, EAX: the APIC timer does not stop.
const ARAT: u32 = 1 << 2;
/// Leaf 0x8000_0007, EDX: the TSC does not change its frequency.
const INVARIANT_TSC: u32 = 1 << 8;
/// Family 6, model 44, stepping 1: the first of Intel's with all of it (Westmere).
const INTEL: u32 = 0x0002_06C1;
/// Family 16, model 2, stepping 3: AMD's of the same time.
const AMD: u32 = 0x0010_0F23;
/// Physical and virtual address bits: what all have.
const ADDRESS_BITS: u32 = 39 | 48 << 8;
/// Highest leaves: of the CPU (topology), of KVM, and the extended ones.
const HIGHEST: u32 = 0xB;
const HIGHEST_EXTENDED: u32 = 0x8000_0008;
const NAME: &[u8; 48] = b"x86-64-v2 (drogher baseline)\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// MSRs that the model has (Intel SDM, volume 4), or that a guest may read on any KVM: APIC timer's deadline,
/// SYSENTER, PAT, the default memory type and the ranges, debugging, one bank of machine checks, SYSCALL; and
/// microcode's revision, platform, miscellaneous; and KVM's second clock.
const MSRS: [std::ops::Range<u32>; 14] = [
    0x8B..0x8C,
    0xCE..0xCF,
    0x140..0x141,
    0x174..0x177,
    0x17A..0x17C,
    0x1A0..0x1A1,
    0x1D9..0x1DA,
    0x200..0x210,
    0x250..0x300,
    0x400..0x404,
    0x6E0..0x6E1,
    0xC000_0081..0xC000_0085,
    0xC000_0102..0xC000_0103,
    0x4B56_4D01..0x4B56_4D02,
];

/// True if every host that can be the baseline has this MSR.
pub(super) fn has_msr(index: u32) -> bool {
    MSRS.iter().any(|range| range.contains(&index))
}

/// This host cannot be the baseline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "This host's KVM lacks {missing:#x} of register {register} of CPUID leaf {leaf:#x}, so it cannot offer the \
     CPU model baseline (x86-64-v2); use host"
)]
pub struct NotBaseline {
    /// Leaf.
    pub leaf: u32,
    /// Register.
    pub register: &'static str,
    /// Its bits that are not there.
    pub missing: u32,
}

/// Makes the model of what this host supports, `adjust`ed.
///
/// # Errors
/// The first leaf that lacks something.
pub(super) fn baseline(
    supported: &[kvm_cpuid_entry2],
) -> Result<Vec<kvm_cpuid_entry2>, NotBaseline> {
    let intel = supported.iter().any(|e| e.function == 0 && e.ebx.to_le_bytes() == *b"Genu");
    supported.iter().filter(|e| e.index == 0).filter_map(|e| leaf(*e, intel).transpose()).collect()
}

fn leaf(mut e: kvm_cpuid_entry2, intel: bool) -> Result<Option<kvm_cpuid_entry2>, NotBaseline> {
    let needs = |register, has: u32, wanted: u32| match wanted & !has {
        0 => Ok(()),
        missing => Err(NotBaseline { leaf: e.function, register, missing }),
    };
    let kept = match e.function {
        0 => [HIGHEST, e.ebx, e.ecx, e.edx],
        1 => {
            needs("ECX", e.ecx, ONE_ECX)?;
            needs("EDX", e.edx, ONE_EDX)?;
            let (ecx, edx) = (ONE_ECX | e.ecx & ONE_ECX_HOST, ONE_EDX | e.edx & ONE_EDX_HOST);
            // Lines of 64 bytes to flush; the rest is of each vCPU.
            [if intel { INTEL } else { AMD }, 8 << 8, ecx, edx]
        }
        6 => [e.eax & ARAT, 0, 0, 0],
        0x4000_0000 => [e.eax, e.ebx, e.ecx, e.edx],
        0x4000_0001 => {
            needs("EAX", e.eax, KVM_EAX)?;
            [KVM_EAX, 0, 0, 0]
        }
        0x8000_0000 => [HIGHEST_EXTENDED, e.ebx, e.ecx, e.edx],
        0x8000_0001 => {
            let edx = EXTENDED_EDX | if intel { 0 } else { AMD_REPEATS };
            needs("ECX", e.ecx, EXTENDED_ECX)?;
            needs("EDX", e.edx, edx)?;
            [0, 0, EXTENDED_ECX, edx]
        }
        0x8000_0002..=0x8000_0004 => name(e.function - 0x8000_0002),
        0x8000_0007 => [0, 0, 0, e.edx & INVARIANT_TSC],
        0x8000_0008 => [ADDRESS_BITS, 0, 0, 0],
        // Features and numbers that are not in it: as on a CPU without these leaves.
        _ => return Ok(None),
    };
    [e.eax, e.ebx, e.ecx, e.edx] = kept;
    Ok(Some(e))
}

/// A third of the CPU's name.
fn name(third: u32) -> [u32; 4] {
    let words = NAME.as_chunks::<4>().0;
    let mut registers = [0; 4];
    let first = third as usize * 4;
    for (register, word) in registers.iter_mut().zip(words.iter().skip(first)) {
        *register = u32::from_le_bytes(*word);
    }
    registers
}

#[cfg(test)]
#[path = "baseline_test.rs"]
mod tests;
