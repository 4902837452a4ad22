//! What a source tells of its machine before anything moves, and what a destination makes of it.

use std::path::PathBuf;

use drogher_migrate::config::{CpuidLeaf, LeaseIdentity};
use drogher_migrate::{Blocker, BlockerCode, ConfigBlock, MemoryRegion};

use super::error::HostError;
use super::guest::Guest;
use super::offer::Offer;
use crate::device::{self, DeviceSpec};
use crate::machine::{MAX_CPUS, Machine, MachineError};
use crate::memory::{self, RamRange};
use crate::record;
use crate::vcpu::cpuid::{CpuKind, CpuModel, ModelError, UnknownCpu};

/// What the user of a destination expects; a guest that is otherwise is refused.
#[derive(Debug, Clone, Default)]
pub struct Expectations {
    /// Guest RAM in bytes.
    pub memory_bytes: Option<u64>,
    /// Number of vCPUs.
    pub cpus: Option<u8>,
    /// The devices, in slot order; a parameter that is not named may be anything.
    pub devices: Option<Vec<DeviceSpec>>,
}

/// RAM as the configuration block has it.
pub(super) fn regions(machine: &Machine) -> Vec<MemoryRegion> {
    machine.ram().ranges().iter().map(region).collect()
}

fn region(range: &RamRange) -> MemoryRegion {
    MemoryRegion { gpa: range.gpa.0, bytes: range.len }
}

fn cpuid(machine: &Machine) -> Result<Vec<CpuidLeaf>, HostError> {
    let table = machine.model().for_vcpu(0, machine.cpus())?;
    let leaves = table.as_slice().iter().map(|entry| CpuidLeaf {
        function: entry.function,
        index: entry.index,
        flags: entry.flags,
        registers: [entry.eax, entry.ebx, entry.ecx, entry.edx],
    });
    Ok(leaves.collect())
}

/// The configuration block of a guest. The engine fills in lease and epoch.
pub(super) fn config(guest: &Guest) -> Result<ConfigBlock, HostError> {
    let machine = guest.machine();
    let state = machine.state_buffer().capacity() + machine.devices().saved_len();
    Ok(ConfigBlock {
        vm_id: guest.vm_id(),
        lease: LeaseIdentity { path: guest.lease_path().to_owned(), device: 0, inode: 0 },
        epoch: 0,
        page_size: 4096,
        memory: regions(machine),
        cpus: machine.cpus().into(),
        tsc_khz: machine.model().tsc_khz(),
        cpu_model: machine.model().kind().to_string(),
        cpuid: cpuid(machine)?,
        machine_state_version: record::VERSION.into(),
        machine_state_min_reader: record::VERSION.into(),
        max_machine_state: 2 * state as u64,
        devices: machine.devices().describe()?,
    })
}

/// Every reason why the guest that `config` describes cannot arrive here; empty if it can.
pub(super) fn blockers(
    config: &ConfigBlock,
    expected: &Expectations,
    plugin_dirs: &[PathBuf],
    offer: Result<Offer, MachineError>,
) -> Vec<Blocker> {
    let mut found = unexpected(config, expected);
    found.extend(memory_blocker(config));
    if config.cpus > u32::from(MAX_CPUS) {
        let reason = format!("{} vCPUs; at most {MAX_CPUS} are possible here", config.cpus);
        found.push(Blocker::new(BlockerCode::Cpu, reason, "use fewer vCPUs"));
    }
    let version = u32::from(record::VERSION);
    if config.machine_state_min_reader > version {
        let reason = format!(
            "the machine state is of version {}, for readers from {} on; this one is {version}",
            config.machine_state_version, config.machine_state_min_reader
        );
        let hint = "use a newer build here";
        found.push(Blocker::new(BlockerCode::MachineState, reason, hint));
    }
    match config.cpu_model.parse() {
        Ok(kind) => match offer.and_then(|offer| Ok(offer.model(kind)?)) {
            Ok(ours) => found.extend(other_cpu(config, &ours)),
            Err(error) => found.push(no_machine(&error)),
        },
        Err(unknown) => {
            let unknown: UnknownCpu = unknown;
            let hint = "use the same release of drogher on both sides";
            found.push(Blocker::new(BlockerCode::Cpu, unknown.to_string(), hint));
        }
    }
    found.extend(device::check(&config.devices, plugin_dirs));
    found
}

/// Why there is no machine, or no such CPU, to compare with.
fn no_machine(error: &MachineError) -> Blocker {
    let (code, hint) = match error {
        MachineError::Model(ModelError::NotBaseline(_)) => {
            (BlockerCode::Cpu, "use a host that has all of the guest's CPU model")
        }
        _ => (BlockerCode::Host, "see that a guest can be run here at all, with drogher run"),
    };
    Blocker::new(code, drogher_migrate::error::chain(error), hint)
}

/// What stands against RAM as `config` has it: another layout, or too much of it.
fn memory_blocker(config: &ConfigBlock) -> Option<Blocker> {
    let say = |reason, hint| Some(Blocker::new(BlockerCode::Memory, reason, hint));
    let bytes = bytes_of(config);
    let here: Vec<_> = memory::split(bytes).iter().map(region).collect();
    if memory::check_size(bytes).is_err() || here != config.memory {
        let reason = format!("{bytes} bytes of RAM are laid out as this build does not have them");
        return say(reason, "use the same release of drogher on both sides");
    }
    // The peer's word alone must not make the kernel look for processes to kill.
    let free = available_bytes()?;
    if bytes > free {
        let reason = format!("{} MiB of RAM; {} MiB are free here", bytes >> 20, free >> 20);
        return say(reason, "free memory on this host");
    }
    None
}

/// Bytes of RAM, all regions together.
pub(super) fn bytes_of(config: &ConfigBlock) -> u64 {
    config.total_pages().saturating_mul(4096)
}

/// Memory that the kernel can give away, if it says so.
fn available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What is otherwise than the user of this side expects.
fn unexpected(config: &ConfigBlock, expected: &Expectations) -> Vec<Blocker> {
    let mut found = strange_paths(config, expected);
    let mut say = |code, reason: String| {
        let hint = "start both sides with the same settings";
        found.push(Blocker::new(code, reason, hint));
    };
    let bytes = bytes_of(config);
    if let Some(ours) = expected.memory_bytes.filter(|&ours| ours != bytes) {
        let (theirs, ours) = (bytes >> 20, ours >> 20);
        say(BlockerCode::Memory, format!("the guest has {theirs} MiB of RAM, not {ours} MiB"));
    }
    if let Some(ours) = expected.cpus.filter(|&ours| u32::from(ours) != config.cpus) {
        say(BlockerCode::Cpu, format!("the guest has {} vCPUs, not {ours}", config.cpus));
    }
    let Some(devices) = &expected.devices else { return found };
    if devices.len() != config.devices.len() {
        let (theirs, ours) = (config.devices.len(), devices.len());
        say(BlockerCode::DeviceShape, format!("the guest has {theirs} devices, not {ours}"));
    }
    for (ours, theirs) in devices.iter().zip(&config.devices) {
        for (key, value) in &ours.params {
            let their = theirs.params.iter().find(|param| param.key == *key);
            if their.is_none_or(|param| param.value != *value) {
                let their = their.map_or("not there", |param| param.value.as_str());
                let reason = format!("{}: parameter {key} is {their}, not {value}", theirs.label());
                say(BlockerCode::DeviceParams, reason);
            }
        }
        // A wrong key of theirs is a blocker of its own.
        let their = device::keys_of(theirs).unwrap_or_default();
        for (key, value) in ours.keys.entries() {
            let their = their.effective(key);
            if their != value {
                let their = if their.is_empty() { "not there" } else { &their };
                let reason = format!("{}: {key} is {their}, not {value}", theirs.label());
                say(BlockerCode::DeviceParams, reason);
            }
        }
    }
    found
}

/// Files and sockets that the source names and the user of this side has not: a peer must not choose
/// what is opened here.
fn strange_paths(config: &ConfigBlock, expected: &Expectations) -> Vec<Blocker> {
    let mut found = Vec::new();
    for (index, theirs) in config.devices.iter().enumerate() {
        let ours = expected.devices.as_ref().and_then(|devices| devices.get(index));
        let ours = ours.map(|spec| spec.keys.entries()).unwrap_or_default();
        let named = device::keys_of(theirs).unwrap_or_default().paths();
        for (key, value) in named.into_iter().filter(|pair| !ours.contains(pair)) {
            let reason = format!("{key}={value} is of this host, and only its user may name it");
            let hint = "give receive the same --device as the source has";
            let blocker = Blocker::new(BlockerCode::DeviceParams, reason, hint);
            found.push(blocker.about(theirs.label()));
        }
    }
    found
}

/// What the guest's CPU has that this host's model of it has not.
fn other_cpu(config: &ConfigBlock, model: &CpuModel) -> Vec<Blocker> {
    let mut found = Vec::new();
    let khz = model.tsc_khz();
    if config.tsc_khz != khz {
        let reason =
            format!("the guest's TSC runs at {} kHz, this host's at {khz} kHz", config.tsc_khz);
        found.push(Blocker::new(BlockerCode::Tsc, reason, "use a host of the same frequency"));
    }
    let cpus = u8::try_from(config.cpus).unwrap_or(MAX_CPUS);
    let Ok(ours) = model.for_vcpu(0, cpus) else { return found };
    let differing: Vec<_> = config
        .cpuid
        .iter()
        .filter(|leaf| !ours.as_slice().iter().any(|entry| is_same(leaf, entry)))
        .map(|leaf| format!("{:#x}/{:#x}", leaf.function, leaf.index))
        .collect();
    if !differing.is_empty() || config.cpuid.len() != ours.as_slice().len() {
        let reason = format!(
            "the CPU that the guest sees is not this host's: CPUID leaves {} differ",
            if differing.is_empty() { "of its own".into() } else { differing.join(", ") }
        );
        let hint = match model.kind() {
            CpuKind::Host => "use a host with the same CPU, or run the guest with --cpu baseline",
            CpuKind::Baseline => "use a host of the same vendor, and the same release of drogher",
        };
        found.push(Blocker::new(BlockerCode::Cpu, reason, hint));
    }
    found
}

fn is_same(leaf: &CpuidLeaf, entry: &kvm_bindings::kvm_cpuid_entry2) -> bool {
    /// TSC frequency: compared apart, as KVM may scale it.
    const TIMING: [u32; 2] = [0x15, 0x4000_0010];
    if (leaf.function, leaf.index) != (entry.function, entry.index) {
        return false;
    }
    if TIMING.contains(&leaf.function) {
        return true;
    }
    let [eax, ebx, ecx, edx] = leaf.registers;
    // In these, EBX says on which CPU KVM was asked, and what was enabled at that moment. In the other
    // subleaves of 0xD it is where a part of the extended state lies, which moves as it is.
    let ebx_counts = !matches!((leaf.function, leaf.index), (1, _) | (0xD, 0 | 1));
    (eax, ecx, edx) == (entry.eax, entry.ecx, entry.edx) && (!ebx_counts || ebx == entry.ebx)
}

#[cfg(test)]
#[path = "describe_test.rs"]
mod tests;
