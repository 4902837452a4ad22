//! Which MSRs are a vCPU's state, and moving them in as few calls as KVM allows.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

use super::baseline;
use super::cpuid::CpuKind;
use crate::vm::{VmError, refused};

/// IA32_TIME_STAMP_COUNTER: moved by [`tsc`](super::tsc).
pub const TSC: u32 = 0x10;
/// IA32_TSC_DEADLINE: takes effect only once the local APIC's timer is in that mode.
pub const TSC_DEADLINE: u32 = 0x6E0;
/// MSR_KVM_WALL_CLOCK and its successor: a write makes KVM write to guest memory, at once and
/// once. It is a request, not state, and would change RAM that has been moved already.
const WALL_CLOCK: [u32; 2] = [0x11, 0x4B56_4D00];

/// Hyper-V's interface, which no guest of ours is offered: KVM lists its MSRs all the same, clocks
/// among them (HV_X64_MSR_VP_RUNTIME, HV_X64_MSR_TIME_REF_COUNT).
const HYPER_V: std::ops::Range<u32> = 0x4000_0000..0x4000_0200;
/// IA32_SYSENTER_ESP and IA32_SYSENTER_EIP. AMD's have 32 bits, and KVM takes no more there; a processor
/// to which the guest writes them without KVM may all the same give 64 back.
const SYSENTER: [u32; 2] = [0x175, 0x176];
/// MSRs that go on while a vCPU stands.
pub const CLOCKS: [u32; 2] = [TSC, TSC_DEADLINE];

/// State that KVM keeps and does not list (Intel SDM 3A, 12.11, and volume 4): the MTRRs (eight
/// variable ranges of two, the fixed ranges, the default type), IA32_DEBUGCTL, and the banks of machine
/// checks (control, status, address, miscellaneous).
const UNLISTED: [u32; 33] = [
    0x1D9, //
    0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207, //
    0x208, 0x209, 0x20A, 0x20B, 0x20C, 0x20D, 0x20E, 0x20F, //
    0x250, 0x258, 0x259, 0x268, 0x269, 0x26A, 0x26B, 0x26C, 0x26D, 0x26E, 0x26F, //
    0x2FF, //
    0x400, 0x401, 0x402, 0x403,
];

/// Most MSRs that KVM takes in one call: for more it says E2BIG, and looks at none.
const MOST_AT_ONCE: usize = 255;

/// Banks of machine checks that a vCPU has: the fewest that KVM gives. Nothing is ever reported in them,
/// but a guest's kernel complains of a processor without.
pub const MCE_BANKS: u64 = 1;

/// Why MSRs could not be moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MsrError {
    /// KVM refused one, or it is none that this host moves.
    #[error("MSR {0:#x} cannot be moved on this host")]
    Refused(u32),
    /// The saved state has one twice.
    #[error("The saved state has MSR {0:#x} twice")]
    Twice(u32),
    /// The saved state lacks one.
    #[error("The saved state lacks MSR {0:#x}: use the same kernel on both sides")]
    Missing(u32),
}

/// The MSRs that this KVM gives and takes, with buffers for all of them.
///
/// Which those are depends on the host's CPU. For the baseline only those that every host has are moved
/// always; the others if the guest has changed them, which the model gives it no reason to.
#[derive(Debug)]
pub struct MsrList {
    kind: CpuKind,
    /// Each as long as a call may be.
    buffers: Vec<Msrs>,
    /// What a fresh vCPU has in each.
    fresh: Vec<u64>,
    /// Those that are moved, of the last reading.
    moved: Vec<kvm_msr_entry>,
    /// Those of which KVM keeps the lower half only.
    halves: Vec<u32>,
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
    pub fn probe(kvm: &Kvm, fd: &VcpuFd, kind: CpuKind) -> Result<Self, VmError> {
        let listed = kvm.get_msr_index_list().map_err(refused("list its MSRs"))?;
        let mut wanted: Vec<kvm_msr_entry> = Vec::new();
        for &index in listed.as_slice().iter().chain(&UNLISTED) {
            let known = wanted.iter().any(|entry| entry.index == index);
            let asked_for = WALL_CLOCK.contains(&index) || HYPER_V.contains(&index);
            if !known && index != TSC && !asked_for {
                wanted.push(kvm_msr_entry { index, ..Default::default() });
            }
        }
        let read = without_refused(&wanted, |some| fd.get_msrs(some))?;
        let entries = without_refused(&read, |some| fd.set_msrs(some))?;
        let halves = SYSENTER.into_iter().filter(|&index| keeps_half(fd, index)).collect();
        Self::of(kind, &entries, halves)
    }

    /// Those of `entries`, which are as on a fresh vCPU.
    fn of(kind: CpuKind, entries: &[kvm_msr_entry], halves: Vec<u32>) -> Result<Self, VmError> {
        let fresh = entries.iter().map(|entry| entry.data).collect();
        let moved = Vec::with_capacity(entries.len());
        let buffers = entries.chunks(MOST_AT_ONCE).map(buffer).collect::<Result<_, _>>()?;
        Ok(Self { kind, buffers, fresh, moved, halves })
    }

    fn is_needed(&self, index: u32) -> bool {
        self.kind == CpuKind::Host || baseline::has_msr(index)
    }

    fn entries(&self) -> impl Iterator<Item = &kvm_msr_entry> {
        self.buffers.iter().flat_map(|some| some.as_slice())
    }

    /// How many MSRs are moved at most, without the TSC.
    #[must_use]
    pub fn count(&self) -> usize {
        self.fresh.len()
    }

    /// Reads all, and gives those that are moved.
    ///
    /// # Errors
    /// The one that KVM refused.
    pub fn get(&mut self, fd: &VcpuFd) -> Result<&[kvm_msr_entry], MsrError> {
        for some in &mut self.buffers {
            let done = fd.get_msrs(some).unwrap_or(0);
            all_done(some, done)?;
            cut(some.as_mut_slice(), &self.halves);
        }
        Ok(self.choose())
    }

    /// Those of the buffers that are moved.
    fn choose(&mut self) -> &[kvm_msr_entry] {
        let mut moved = std::mem::take(&mut self.moved);
        moved.clear();
        let read = self.entries().zip(&self.fresh);
        let chosen =
            read.filter(|(entry, fresh)| self.is_needed(entry.index) || entry.data != **fresh);
        moved.extend(chosen.map(|(entry, _)| *entry));
        self.moved = moved;
        &self.moved
    }

    /// True if `entries` are MSRs that are moved here, in any order, and none that is needed lacks.
    ///
    /// # Errors
    /// The first that is not one of them, comes twice, or does not come.
    pub fn check(&self, entries: &[kvm_msr_entry]) -> Result<(), MsrError> {
        let mut seen = vec![false; self.count()];
        for &kvm_msr_entry { index, .. } in entries {
            let at = self.entries().position(|entry| entry.index == index);
            let slot = at.and_then(|at| seen.get_mut(at)).ok_or(MsrError::Refused(index))?;
            if std::mem::replace(slot, true) {
                return Err(MsrError::Twice(index));
            }
        }
        let unseen = self.entries().zip(&seen).filter(|(_, seen)| !**seen);
        let missing = unseen.map(|(entry, _)| entry.index).find(|&index| self.is_needed(index));
        missing.map_or(Ok(()), |index| Err(MsrError::Missing(index)))
    }

    /// Writes what passed [`check`](Self::check), and to the others what a fresh vCPU has; but for
    /// [`TSC_DEADLINE`]: its value is returned instead, if it is among them, and 0 is written.
    ///
    /// # Errors
    /// The one that KVM refused.
    pub fn set(&mut self, fd: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<Option<u64>, MsrError> {
        let mut deadline = None;
        let slots = self.buffers.iter_mut().flat_map(|some| some.as_mut_slice());
        for (slot, fresh) in slots.zip(&self.fresh) {
            let entry = entries.iter().find(|entry| entry.index == slot.index);
            slot.data = entry.map_or(*fresh, |entry| entry.data);
            if slot.index == TSC_DEADLINE && entry.is_some() {
                deadline = Some(std::mem::take(&mut slot.data));
            }
        }
        for some in &self.buffers {
            all_done(some, fd.set_msrs(some).unwrap_or(0))?;
        }
        Ok(deadline)
    }
}

/// Of `some`, KVM has done the first `done`: the next one is what it refused.
fn all_done(some: &Msrs, done: usize) -> Result<(), MsrError> {
    some.as_slice().get(done).map_or(Ok(()), |entry| Err(MsrError::Refused(entry.index)))
}

/// Those of `wanted` that `call` takes, as it leaves them. It stops at the first that it refuses: that one is
/// left out, and those behind it are tried again.
fn without_refused(
    wanted: &[kvm_msr_entry],
    call: impl Fn(&mut Msrs) -> Result<usize, kvm_ioctls::Error>,
) -> Result<Vec<kvm_msr_entry>, VmError> {
    let mut taken = Vec::with_capacity(wanted.len());
    let mut rest = wanted;
    while !rest.is_empty() {
        let (first, _) = rest.split_at(rest.len().min(MOST_AT_ONCE));
        let mut some = buffer(first)?;
        let done = call(&mut some).unwrap_or(0).min(first.len());
        taken.extend(some.as_slice().iter().take(done));
        if let Some(refused) = first.get(done) {
            tracing::debug!("KVM does not let MSR {:#x} be moved", refused.index);
        }
        let behind = if done < first.len() { done + 1 } else { done };
        rest = rest.get(behind..).unwrap_or_default();
    }
    Ok(taken)
}

/// Takes away what cannot be loaded again: the upper half of MSRs of which KVM keeps the lower.
fn cut(entries: &mut [kvm_msr_entry], halves: &[u32]) {
    for entry in entries.iter_mut().filter(|entry| halves.contains(&entry.index)) {
        entry.data &= 0xFFFF_FFFF;
    }
}

/// True if KVM drops the upper half of what is written to an MSR, tried on a fresh vCPU.
fn keeps_half(fd: &VcpuFd, index: u32) -> bool {
    let Some(before) = get_one(fd, index) else { return false };
    let tried = set_one(fd, index, 1 << 32) && get_one(fd, index) == Some(0);
    // What was read can be written.
    let _ = set_one(fd, index, before);
    tried
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common;
    use crate::vm::open_kvm;

    #[test]
    fn an_upper_half_that_kvm_does_not_take_is_no_state() {
        let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
        let mut entries = [entry(0x174, u64::MAX), entry(0x175, u64::MAX), entry(0x176, 1 << 32)];
        cut(&mut entries, &[]);
        assert_eq!(entries[1].data, u64::MAX);
        cut(&mut entries, &SYSENTER);
        assert_eq!(entries.map(|e| e.data), [u64::MAX, 0xFFFF_FFFF, 0]);
    }

    #[test]
    fn what_is_refused_is_left_out_and_the_rest_is_tried() {
        let entry = |index| kvm_msr_entry { index, ..Default::default() };
        let wanted: Vec<_> = (0..600).map(entry).collect();
        let refuses = |index: u32| [0, 7, 8, 255, 256, 599].contains(&index);
        let calls = std::cell::Cell::new(0);
        let taken = without_refused(&wanted, |some| {
            calls.set(calls.get() + 1);
            assert!(some.as_slice().len() <= MOST_AT_ONCE);
            let done = some.as_slice().iter().take_while(|e| !refuses(e.index)).count();
            some.as_mut_slice().iter_mut().take(done).for_each(|e| e.data = 5);
            Ok(done)
        });
        let taken = taken.unwrap();
        let expected: Vec<_> = (0..600).filter(|index| !refuses(*index)).collect();
        assert_eq!(taken.iter().map(|e| e.index).collect::<Vec<_>>(), expected);
        assert!(taken.iter().all(|e| e.data == 5), "as the call left them");
        assert!(calls.get() < 12, "{} calls", calls.get());
        let none = without_refused(&wanted, |_| Err(kvm_ioctls::Error::new(libc::EINVAL)));
        assert!(none.unwrap().is_empty());
    }

    #[test]
    fn kvm_takes_so_many_at_once() {
        if common::skipped("kvm_takes_so_many_at_once") {
            return;
        }
        let fd = open_kvm().unwrap().create_vm().unwrap().create_vcpu(0).unwrap();
        let one = kvm_msr_entry { index: SYSENTER[0], ..Default::default() };
        let mut some = buffer(&[one; MOST_AT_ONCE]).unwrap();
        assert_eq!(fd.get_msrs(&mut some).ok(), Some(MOST_AT_ONCE));
        assert_eq!(fd.set_msrs(&some).ok(), Some(MOST_AT_ONCE));
    }

    #[test]
    fn more_than_one_call_takes_are_moved_and_the_refused_one_is_named() {
        if common::skipped("more_than_one_call_takes_are_moved_and_the_refused_one_is_named") {
            return;
        }
        let fd = open_kvm().unwrap().create_vm().unwrap().create_vcpu(0).unwrap();
        let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
        let mut entries = vec![entry(SYSENTER[0], 0); 2 * MOST_AT_ONCE + 3];
        let last = entries.len() - 1;
        entries[last] = entry(0xC000_0082, 0);
        let mut list = MsrList::of(CpuKind::Host, &entries, Vec::new()).unwrap();
        list.set(&fd, &[entry(0xC000_0082, 0x1234)]).unwrap();
        let read = list.get(&fd).unwrap();
        assert_eq!((read.len(), read[last]), (entries.len(), entry(0xC000_0082, 0x1234)));
        // One that no processor has.
        entries[last].index = 0x4242_4242;
        let mut list = MsrList::of(CpuKind::Host, &entries, Vec::new()).unwrap();
        assert_eq!(list.get(&fd), Err(MsrError::Refused(0x4242_4242)));
        assert_eq!(list.set(&fd, &[]), Err(MsrError::Refused(0x4242_4242)));
    }

    /// IA32_SPEC_CTRL and IA32_XSS, which not all hosts have, and IA32_LSTAR.
    #[test]
    fn the_baseline_moves_to_hosts_that_list_other_msrs() {
        let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
        let (all, few) =
            ([entry(0x48, 0), entry(0xDA0, 5), entry(0xC000_0082, 0)], [entry(0xC000_0082, 0)]);
        let list = |kind, entries: &[_]| MsrList::of(kind, entries, Vec::new()).unwrap();
        let mut rich = list(CpuKind::Baseline, &all);
        let poor = list(CpuKind::Baseline, &few);
        rich.buffers[0].as_mut_slice()[2].data = 0x1234;
        let saved = rich.choose().to_vec();
        assert_eq!(saved, [entry(0xC000_0082, 0x1234)]);
        assert_eq!((poor.check(&saved), rich.check(&few)), (Ok(()), Ok(())));
        assert_eq!(rich.check(&[]), Err(MsrError::Missing(0xC000_0082)));
        // What the guest has changed is not lost without a word.
        rich.buffers[0].as_mut_slice()[0].data = 4;
        let saved = rich.choose().to_vec();
        assert_eq!((saved.len(), poor.check(&saved)), (2, Err(MsrError::Refused(0x48))));
        // The model host has all of them, or none has it.
        let mut host = list(CpuKind::Host, &all);
        assert_eq!(host.choose().len(), 3);
        assert_eq!(host.check(&few), Err(MsrError::Missing(0x48)));
    }
}
