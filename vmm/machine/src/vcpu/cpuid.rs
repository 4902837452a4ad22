//! The CPU that a guest sees: what this host's KVM supports, less what cannot be moved, or of that the
//! baseline; with the topology of one socket and the hypervisor's leaves.

use std::fmt;
use std::str::FromStr;

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::Kvm;

use super::baseline::{NotBaseline, baseline};
use crate::caps::Caps;
use crate::vm::{VmError, refused};

/// First leaf of the hypervisor: highest leaf and signature.
const HYPERVISOR: u32 = 0x4000_0000;
/// Leaf by convention of several hypervisors: TSC and APIC bus frequency in kHz.
const TIMING: u32 = 0x4000_0010;
/// KVM's local APIC timer counts nanoseconds.
const APIC_BUS_KHZ: u32 = 1_000_000;

// Leaf 1, ECX.
const VMX: u32 = 1 << 5;
const PDCM: u32 = 1 << 15;
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const UNDER_HYPERVISOR: u32 = 1 << 31;
// Leaf 1, EDX.
const MCE: u32 = 1 << 7;
const MCA: u32 = 1 << 14;
const HTT: u32 = 1 << 28;
// Leaf 7/0: EBX, EBX, ECX, ECX.
const SGX: u32 = 1 << 2;
const INTEL_PT: u32 = 1 << 25;
const SHADOW_STACK: u32 = 1 << 7;
const SGX_LAUNCH: u32 = 1 << 30;
// Leaf 0x8000_0001, ECX.
const SVM: u32 = 1 << 2;
const PERF_CORE: u32 = 1 << 23;

/// Which CPU a guest is to see.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CpuKind {
    /// All that this host has and that can be moved: to hosts with the same CPU model.
    #[default]
    Host,
    /// x86-64-v2: to any host of the same vendor.
    Baseline,
}

/// A CPU model that there is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("There is no CPU model {0:?}; use host or baseline")]
pub struct UnknownCpu(pub String);

impl FromStr for CpuKind {
    type Err = UnknownCpu;

    fn from_str(text: &str) -> Result<Self, UnknownCpu> {
        match text {
            "host" => Ok(Self::Host),
            "baseline" => Ok(Self::Baseline),
            _ => Err(UnknownCpu(text.to_owned())),
        }
    }
}

impl fmt::Display for CpuKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Baseline => "baseline",
        })
    }
}

/// Why there is no table of CPUID.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// KVM does not say what it supports.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The host has less than the baseline.
    #[error(transparent)]
    NotBaseline(#[from] NotBaseline),
}

/// The CPUID table and TSC frequency that all vCPUs of a machine share.
#[derive(Debug, Clone)]
pub struct CpuModel {
    entries: Vec<kvm_cpuid_entry2>,
    tsc_khz: u32,
    kind: CpuKind,
}

impl CpuModel {
    /// The model on this host. `tsc_khz` is the guest's TSC frequency, 0 if
    /// it is not stable.
    ///
    /// # Errors
    /// KVM does not say what it supports, or that is less than the baseline.
    pub fn new(kvm: &Kvm, caps: &Caps, kind: CpuKind, tsc_khz: u32) -> Result<Self, ModelError> {
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(refused("say what CPUID it supports"))?;
        let mut entries: Vec<_> = supported
            .as_slice()
            .iter()
            .copied()
            // Topology is ours; leaf 0xB is made anew below.
            .filter(|e| !matches!(e.function, 0xB | 0x1F | TIMING))
            .collect();
        for entry in &mut entries {
            adjust(entry, caps);
        }
        if kind == CpuKind::Baseline {
            entries = baseline(&entries)?;
        }
        let highest = entries.iter().find(|e| e.function == 0).map_or(0, |e| e.eax);
        if highest >= 0xB {
            entries.extend((0..3).map(|index| kvm_cpuid_entry2 {
                function: 0xB,
                index,
                flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                ..Default::default()
            }));
        }
        if tsc_khz != 0 {
            entries.push(kvm_cpuid_entry2 {
                function: TIMING,
                eax: tsc_khz,
                ebx: APIC_BUS_KHZ,
                ..Default::default()
            });
        }
        Ok(Self { entries, tsc_khz, kind })
    }

    /// Which of the models it is.
    #[must_use]
    pub fn kind(&self) -> CpuKind {
        self.kind
    }

    /// Bits of the physical addresses that the guest can use (leaf 0x8000_0008; 36 without it).
    #[must_use]
    pub fn address_bits(&self) -> u32 {
        let leaf = self.entries.iter().find(|e| e.function == 0x8000_0008);
        leaf.map_or(36, |e| e.eax & 0xFF)
    }

    /// Frequency of the guest's TSC.
    #[must_use]
    pub fn tsc_khz(&self) -> u32 {
        self.tsc_khz
    }

    /// The table of vCPU `id` of `count`: all cores of one socket, one thread each.
    ///
    /// # Errors
    /// More entries than KVM takes.
    pub fn for_vcpu(&self, id: u8, count: u8) -> Result<CpuId, VmError> {
        let (id, count) = (u32::from(id), u32::from(count.max(1)));
        let core_bits = count.next_power_of_two().trailing_zeros();
        let entries: Vec<_> =
            self.entries.iter().map(|e| topology(*e, id, count, core_bits)).collect();
        CpuId::from_entries(&entries).map_err(|e| VmError::Refused {
            what: format!("take {} CPUID entries", entries.len()),
            source: std::io::Error::other(format!("{e:?}")),
        })
    }
}

/// Takes away what cannot be moved, and says what KVM supports without listing it.
fn adjust(e: &mut kvm_cpuid_entry2, caps: &Caps) {
    match e.function {
        1 => {
            // Nested guests have state that is not saved here; and PEBS, which comes with PDCM,
            // writes where no log sees it.
            e.ecx &= !(VMX | PDCM);
            if !caps.mce {
                e.edx &= !(MCE | MCA);
            }
            e.ecx |= UNDER_HYPERVISOR | X2APIC;
            e.ecx = if caps.tsc_deadline { e.ecx | TSC_DEADLINE } else { e.ecx & !TSC_DEADLINE };
        }
        // Enclaves cannot be moved, a processor trace is written where no log sees it, and the
        // shadow stack pointer is no MSR.
        7 if e.index == 0 => {
            e.ebx &= !(SGX | INTEL_PT);
            e.ecx &= !(SHADOW_STACK | SGX_LAUNCH);
        }
        // Performance counters, whose counts do not move; enclaves; processor trace; last branches.
        0xA | 0x12 | 0x14 | 0x1C => (e.eax, e.ebx, e.ecx, e.edx) = (0, 0, 0, 0),
        0x8000_0001 => e.ecx &= !(SVM | PERF_CORE),
        0x8000_000A | 0x8000_0022 => (e.eax, e.ebx, e.ecx, e.edx) = (0, 0, 0, 0),
        HYPERVISOR => e.eax = e.eax.max(TIMING),
        _ => {}
    }
}

fn topology(mut e: kvm_cpuid_entry2, id: u32, count: u32, core_bits: u32) -> kvm_cpuid_entry2 {
    match e.function {
        1 => {
            e.ebx = (e.ebx & 0x0000_FFFF) | (count << 16) | (id << 24);
            e.edx = if count > 1 { e.edx | HTT } else { e.edx & !HTT };
        }
        // Cache parameters: the last level is shared by all cores, the others by none.
        4 if e.eax & 0x1F != 0 => {
            let shared = if (e.eax >> 5) & 7 >= 3 { count - 1 } else { 0 };
            e.eax = (e.eax & 0x3FFF) | (shared << 14) | (((1 << core_bits) - 1) << 26);
        }
        0xB => {
            e.edx = id;
            (e.eax, e.ebx, e.ecx) = match e.index {
                0 => (0, 1, 1 << 8),
                1 => (core_bits, count, (2 << 8) | 1),
                other => (0, 0, other),
            };
        }
        0x8000_0008 => e.ecx = (e.ecx & !0xF0FF) | (count - 1) | (core_bits << 12),
        0x8000_001E => {
            e.eax = id;
            e.ebx = (e.ebx & !0xFFFF) | id;
            e.ecx = 0;
        }
        _ => {}
    }
    e
}

#[cfg(test)]
#[path = "cpuid_test.rs"]
mod tests;
