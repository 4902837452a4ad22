//! Which MSRs are a vCPU's state, and moving them in one call each way.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

use crate::vm::{VmError, refused};

/// IA32_TIME_STAMP_COUNTER: moved by [`tsc`](super::tsc).
pub const TSC: u32 = 0x10;
/// IA32_TSC_DEADLINE: takes effect only once the local APIC's timer is in that mode.
pub const TSC_DEADLINE: u32 = 0x6E0;
/// MSR_KVM_WALL_CLOCK and its successor: a write makes KVM write to guest memory, at once and
/// once. It is a request, not state, and would change RAM that has been moved already.
const WALL_CLOCK: [u32; 2] = [0x11, 0x4B56_4D00];

/// The MSRs that this KVM lists, gives and takes, with a buffer for all of them.
#[derive(Debug)]
pub struct MsrList {
    buffer: Msrs,
    indices: Vec<u32>,
}

/// How far a call over all MSRs came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsrRefused {
    /// The first MSR that KVM refused.
    pub index: u32,
}

fn buffer(entries: &[kvm_msr_entry]) -> Result<Msrs, VmError> {
    Msrs::from_entries(entries).map_err(|e| VmError::Refused {
        what: format!("take {} MSRs", entries.len()),
        source: std::io::Error::other(format!("{e:?}")),
    })
}

impl MsrList {
    /// Asks KVM for its list and tries each on a fresh vCPU: some KVMs list what they then refuse,
    /// and a call for many ends at the first refusal.
    ///
    /// # Errors
    /// KVM has no list.
    pub fn probe(kvm: &Kvm, fd: &VcpuFd) -> Result<Self, VmError> {
        let listed = kvm.get_msr_index_list().map_err(refused("list its MSRs"))?;
        let mut indices = Vec::new();
        for &index in listed.as_slice() {
            if index == TSC || WALL_CLOCK.contains(&index) {
                continue;
            }
            let mut one = buffer(&[kvm_msr_entry { index, ..Default::default() }])?;
            let moves =
                matches!(fd.get_msrs(&mut one), Ok(1)) && matches!(fd.set_msrs(&one), Ok(1));
            if moves {
                indices.push(index);
            } else {
                tracing::debug!("KVM lists MSR {index:#x} but does not let it be moved");
            }
        }
        let entries: Vec<_> =
            indices.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
        Ok(Self { buffer: buffer(&entries)?, indices })
    }

    /// The MSRs that are moved, without the TSC.
    #[must_use]
    pub fn indices(&self) -> &[u32] {
        &self.indices
    }

    /// Reads all.
    ///
    /// # Errors
    /// The one that KVM refused.
    pub fn get(&mut self, fd: &VcpuFd) -> Result<&[kvm_msr_entry], MsrRefused> {
        let done = fd.get_msrs(&mut self.buffer).unwrap_or(0);
        match self.indices.get(done) {
            None => Ok(self.buffer.as_slice()),
            Some(&index) => Err(MsrRefused { index }),
        }
    }

    /// Writes `entries`, which must be of [`indices`](Self::indices), but for
    /// [`TSC_DEADLINE`]; its value is returned instead.
    ///
    /// # Errors
    /// One that is not in the list, or that KVM refused.
    pub fn set(
        &mut self,
        fd: &VcpuFd,
        entries: &[kvm_msr_entry],
    ) -> Result<Option<u64>, MsrRefused> {
        let mut deadline = None;
        // The buffer keeps its length. MSRs that do not come keep the value they have now.
        let mut known = fd.get_msrs(&mut self.buffer).unwrap_or(0);
        if let Some(&index) = self.indices.get(known) {
            return Err(MsrRefused { index });
        }
        for entry in entries {
            let slot = self.buffer.as_mut_slice().iter_mut().find(|s| s.index == entry.index);
            let slot = slot.ok_or(MsrRefused { index: entry.index })?;
            if entry.index == TSC_DEADLINE {
                deadline = Some(entry.data);
            } else {
                slot.data = entry.data;
            }
        }
        known = fd.set_msrs(&self.buffer).unwrap_or(0);
        match self.indices.get(known) {
            None => Ok(deadline),
            Some(&index) => Err(MsrRefused { index }),
        }
    }
}

/// Reads one MSR.
pub(crate) fn get_one(fd: &VcpuFd, index: u32) -> Option<u64> {
    let mut one = buffer(&[kvm_msr_entry { index, ..Default::default() }]).ok()?;
    let done = fd.get_msrs(&mut one).ok()?;
    one.as_slice().first().filter(|_| done == 1).map(|e| e.data)
}

/// Writes one MSR; false if KVM refuses.
pub(crate) fn set_one(fd: &VcpuFd, index: u32, data: u64) -> bool {
    buffer(&[kvm_msr_entry { index, data, ..Default::default() }])
        .is_ok_and(|one| matches!(fd.set_msrs(&one), Ok(1)))
}
