//! Is a configuration block one that a machine could have at all? Both sides ask before they
//! believe any of its numbers.

use std::collections::HashSet;

use crate::blocker::{Blocker, BlockerCode};
use crate::config::ConfigBlock;
use crate::host::PAGE_SIZE;

/// Regions begin at multiples of this: 64 pages, a word of a dirty bitmap.
const REGION_ALIGN: u64 = 64 * PAGE_SIZE as u64;
const MAX_RAM: u64 = 1 << 42;
const MAX_GPA: u64 = 1 << 52;
const MAX_CPUS: u32 = 1024;
const MAX_DEVICES: usize = 256;
const MAX_MACHINE_STATE: u64 = 64 << 20;
const MAX_DEVICE_STATE: u64 = 1 << 40;

impl ConfigBlock {
    /// Everything in it that cannot be, apart from what only a machine can judge.
    #[must_use]
    pub fn problems(&self) -> Vec<Blocker> {
        let mut found = Vec::new();
        let mut say = |code, reason: String| {
            found.push(Blocker::new(code, reason, "the source is broken or newer than this side"));
        };
        if self.page_size as usize != PAGE_SIZE {
            say(
                BlockerCode::Memory,
                format!("the page size is {}, not {PAGE_SIZE}", self.page_size),
            );
        }
        self.check_memory(&mut say);
        if self.cpus == 0 || self.cpus > MAX_CPUS {
            say(BlockerCode::Cpu, format!("{} vCPUs are not 1 to {MAX_CPUS}", self.cpus));
        }
        if self.machine_state_min_reader > self.machine_state_version {
            say(
                BlockerCode::MachineState,
                format!(
                    "machine state version {} asks for a reader of version {}",
                    self.machine_state_version, self.machine_state_min_reader
                ),
            );
        }
        if self.max_machine_state > MAX_MACHINE_STATE {
            say(
                BlockerCode::MachineState,
                format!(
                    "{} bytes of machine state are more than {MAX_MACHINE_STATE}",
                    self.max_machine_state
                ),
            );
        }
        if !self.lease.path.is_absolute() {
            say(
                BlockerCode::Lease,
                format!("lease path {} is not absolute", self.lease.path.display()),
            );
        }
        self.check_devices(&mut found);
        found
    }

    fn check_memory(&self, say: &mut impl FnMut(BlockerCode, String)) {
        if self.memory.is_empty() {
            say(BlockerCode::Memory, "there is no RAM".into());
        }
        let mut end = 0u64;
        let mut total = 0u64;
        for region in &self.memory {
            let (gpa, bytes) = (region.gpa, region.bytes);
            let whole = gpa % REGION_ALIGN == 0 && bytes % PAGE_SIZE as u64 == 0 && bytes > 0;
            match gpa.checked_add(bytes).filter(|end| *end <= MAX_GPA) {
                Some(next) if whole && gpa >= end => end = next,
                _ => say(
                    BlockerCode::Memory,
                    format!(
                        "RAM of {bytes:#x} bytes at {gpa:#x} is misaligned, out of order or out of range"
                    ),
                ),
            }
            total = total.saturating_add(bytes);
        }
        if total > MAX_RAM {
            say(BlockerCode::Memory, format!("{total} bytes of RAM are more than {MAX_RAM}"));
        }
    }

    fn check_devices(&self, found: &mut Vec<Blocker>) {
        let hint = "the source is broken or newer than this side";
        if self.devices.len() > MAX_DEVICES {
            found.push(Blocker::new(
                BlockerCode::DeviceShape,
                format!("{} devices are more than {MAX_DEVICES}", self.devices.len()),
                hint,
            ));
        }
        let mut slots = HashSet::new();
        for device in &self.devices {
            let mut say = |code, reason: String| {
                found.push(Blocker::new(code, reason, hint).about(device.label()));
            };
            if !slots.insert(device.slot) {
                say(BlockerCode::DeviceShape, "its slot is taken twice".into());
            }
            if device.state_min_reader > device.state_version {
                say(
                    BlockerCode::DeviceState,
                    format!(
                        "state version {} asks for a reader of version {}",
                        device.state_version, device.state_min_reader
                    ),
                );
            }
            if device.max_state > MAX_DEVICE_STATE {
                say(
                    BlockerCode::DeviceState,
                    format!("{} bytes of state are more than {MAX_DEVICE_STATE}", device.max_state),
                );
            }
        }
    }
}

#[cfg(test)]
#[path = "config_check_test.rs"]
mod tests;
