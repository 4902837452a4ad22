//! The configuration block: what the destination must build, accepted or refused before RAM moves.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::lease::VmId;

/// One range of guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryRegion {
    /// Where it begins in guest physical memory; a multiple of 256 KiB (64 pages).
    pub gpa: u64,
    /// Its size in bytes; a multiple of the page size.
    pub bytes: u64,
}

impl MemoryRegion {
    /// The region's guest page numbers.
    #[must_use]
    pub const fn pages(&self) -> std::ops::Range<u64> {
        self.gpa >> 12..(self.gpa >> 12) + (self.bytes >> 12)
    }
}

/// Which lease file decides who runs this VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseIdentity {
    /// Absolute path.
    pub path: PathBuf,
    /// Device number of its file system.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
}

/// One CPUID leaf as the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuidLeaf {
    /// EAX at the request.
    pub function: u32,
    /// ECX at the request, where it matters.
    pub index: u32,
    /// KVM's flags: whether the index matters.
    pub flags: u32,
    /// The answer: EAX, EBX, ECX, EDX.
    pub registers: [u32; 4],
}

/// A parameter and its effective value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Param {
    /// Its name.
    pub key: String,
    /// Its value, also when it is the default: defaults may change.
    pub value: String,
}

/// One BAR region of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionShape {
    /// Region index.
    pub index: u32,
    /// Size in bytes.
    pub bytes: u64,
    /// Flags of the plugin ABI.
    pub flags: u32,
}

/// One device of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceConfig {
    /// Where it sits: its RID.
    pub slot: u16,
    /// The plugin's id. Never a path: the destination finds the plugin itself.
    pub plugin: String,
    /// The plugin's own version, for messages.
    pub plugin_version: String,
    /// Plugin ABI it was built for.
    pub abi_major: u32,
    /// Plugin ABI it was built for.
    pub abi_minor: u32,
    /// Version of its state as the source writes it.
    pub state_version: u32,
    /// Oldest version of a reader that understands that state.
    pub state_min_reader: u32,
    /// Most bytes of state that this device will send, pre-copy included.
    pub max_state: u64,
    /// Every effective parameter.
    pub params: Vec<Param>,
    /// Its BAR regions.
    pub regions: Vec<RegionShape>,
    /// Its MSI-X vectors.
    pub vectors: u16,
}

impl DeviceConfig {
    /// How messages name the device.
    #[must_use]
    pub fn label(&self) -> String {
        let (bus, dev, func) = (self.slot >> 8, (self.slot >> 3) & 31, self.slot & 7);
        format!("{bus:02x}:{dev:02x}.{func} {}", self.plugin)
    }
}

/// Everything that both sides must agree on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigBlock {
    /// The VM.
    pub vm_id: VmId,
    /// Its lease; filled in by the engine.
    pub lease: LeaseIdentity,
    /// The epoch in which the source runs; filled in by the engine.
    pub epoch: u64,
    /// Bytes in a page, 4096.
    pub page_size: u32,
    /// RAM, by ascending GPA, not overlapping.
    pub memory: Vec<MemoryRegion>,
    /// vCPUs.
    pub cpus: u32,
    /// TSC frequency that the guest sees.
    pub tsc_khz: u32,
    /// Name of the CPU model that the destination is to make.
    pub cpu_model: String,
    /// CPUID of vCPU 0, without the topology leaves' APIC ids.
    pub cpuid: Vec<CpuidLeaf>,
    /// Version of the machine state (vCPUs, irqchip, clock, PCI) as the source writes it.
    pub machine_state_version: u32,
    /// Oldest version of a reader that understands it.
    pub machine_state_min_reader: u32,
    /// Most bytes of machine state.
    pub max_machine_state: u64,
    /// The devices.
    pub devices: Vec<DeviceConfig>,
}

impl ConfigBlock {
    /// Nothing yet.
    pub(crate) fn empty() -> Self {
        Self {
            vm_id: VmId([0; 16]),
            lease: LeaseIdentity { path: PathBuf::new(), device: 0, inode: 0 },
            epoch: 0,
            page_size: 4096,
            memory: Vec::new(),
            cpus: 0,
            tsc_khz: 0,
            cpu_model: String::new(),
            cpuid: Vec::new(),
            machine_state_version: 0,
            machine_state_min_reader: 0,
            max_machine_state: 0,
            devices: Vec::new(),
        }
    }

    /// Pages of RAM, all regions together.
    #[must_use]
    pub fn total_pages(&self) -> u64 {
        self.memory.iter().fold(0u64, |sum, r| sum.saturating_add(r.bytes >> 12))
    }
}
