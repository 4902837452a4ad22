//! The complete state of a parked vCPU, out and in, in the order that KVM needs.
//!
//! Out: `mp_state` first, as reading it lets pending INIT and SIPI take effect; `vcpu_events` last.
//! In: control registers before what they gate, the local APIC after the MSR with its base, the
//! TSC-deadline after the timer's mode, `mp_state` last.
#![expect(
    unsafe_code,
    reason = "KVM_GET_XSAVE2 and KVM_SET_XSAVE take buffers whose size KVM \
    announced"
)]

use kvm_bindings::{
    Xsave, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use zerocopy::{FromBytes, IntoBytes};

use super::Inner;
use super::msrs::{self, MsrError};
use super::tsc::{self, TscState};
use crate::caps::Caps;
use crate::clock::Passage;
use crate::ioctls::{self, Sregs2};
use crate::record::{Reader, StateError, Tag, Writer};
use crate::vm::VmError;

/// Bytes of `kvm_xsave` without its extension.
const XSAVE_BASE: usize = 4096;
/// CR4: VMX is on (Intel SDM 3A, 2.5).
const CR4_VMXE: u64 = 1 << 13;
/// EFER: SVM is on (AMD APM 2, 3.1.7).
const EFER_SVME: u64 = 1 << 12;

/// A buffer for KVM_GET_XSAVE2, if KVM has that; `bytes` is what KVM_CAP_XSAVE2 says.
pub(crate) fn xsave_buffer(bytes: usize) -> Result<Option<Xsave>, VmError> {
    if bytes == 0 {
        return Ok(None);
    }
    let words = bytes.saturating_sub(XSAVE_BASE).div_ceil(size_of::<u32>());
    Xsave::new(words).map(Some).map_err(|e| VmError::Refused {
        what: format!("hold {bytes} bytes of extended state"),
        source: std::io::Error::other(format!("{e:?}")),
    })
}

macro_rules! ask {
    ($call:expr, $what:literal) => {
        $call.map_err(|e| StateError::errno($what, e))?
    };
}

/// Guests of the guest have state that is not saved here. The CPU model does not offer them, so
/// this is a guest that KVM should not have let so far, or a peer that lies.
fn refuse_nested(vcpu: u16, cr4: u64, efer: u64) -> Result<(), StateError> {
    if cr4 & CR4_VMXE != 0 || efer & EFER_SVME != 0 {
        return Err(StateError::Nested { vcpu });
    }
    Ok(())
}

pub(crate) fn save(
    inner: &mut Inner,
    caps: &Caps,
    id: u16,
    out: &mut Writer<'_>,
) -> Result<(), StateError> {
    let fd = &inner.fd;
    out.put(Tag::MpState, id, ask!(fd.get_mp_state(), "get mp_state").as_bytes());
    out.put(Tag::Regs, id, ask!(fd.get_regs(), "get the registers").as_bytes());
    if caps.sregs2 {
        let sregs = ioctls::get_sregs2(fd).map_err(StateError::kvm("get sregs2"))?;
        refuse_nested(id, sregs.cr4, sregs.efer)?;
        out.put(Tag::Sregs2, id, sregs.as_bytes());
    } else {
        let sregs = ask!(fd.get_sregs(), "get sregs");
        refuse_nested(id, sregs.cr4, sregs.efer)?;
        out.put(Tag::Sregs, id, sregs.as_bytes());
    }
    match &mut inner.xsave {
        None => {
            let xsave = ask!(fd.get_xsave(), "get the extended state");
            out.put(Tag::Xsave, id, xsave.region.as_bytes());
        }
        Some(buffer) => {
            // SAFETY: the buffer has the size that KVM_CAP_XSAVE2 announced for this VM, and no
            // feature has been enabled for the process since.
            ask!(unsafe { fd.get_xsave2(buffer) }, "get the extended state");
            let base = buffer.as_fam_struct_ref().xsave.region.as_bytes();
            out.put_parts(Tag::Xsave, id, &[base, buffer.as_slice().as_bytes()]);
        }
    }
    out.put(Tag::Xcrs, id, ask!(fd.get_xcrs(), "get the XCRs").as_bytes());
    out.put(Tag::DebugRegs, id, ask!(fd.get_debug_regs(), "get the debug registers").as_bytes());
    out.put(Tag::Lapic, id, ask!(fd.get_lapic(), "get the local APIC").as_bytes());
    out.put(Tag::Msrs, id, inner.msrs.get(fd)?.as_bytes());
    out.put(Tag::Tsc, id, tsc::save(inner)?.as_bytes());
    let events = ask!(inner.fd.get_vcpu_events(), "get vcpu_events");
    out.put(Tag::Events, id, events.as_bytes());
    Ok(())
}

enum Sregs {
    New(Sregs2),
    Old(kvm_sregs),
}

/// One vCPU's saved state: every record is there and has the right size, nothing is set yet.
pub(crate) struct Saved<'a> {
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: Sregs,
    /// Base and extension.
    xsave: (&'a [u8], &'a [u8]),
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    time_stamp: TscState,
    events: kvm_vcpu_events,
}

impl<'a> Saved<'a> {
    /// Takes the records of vCPU `id` out of `state`.
    ///
    /// # Errors
    /// One is not there, has the wrong size, or is one that this host cannot take.
    pub(crate) fn parse(
        inner: &Inner,
        caps: &Caps,
        id: u16,
        state: &Reader<'a>,
    ) -> Result<Self, StateError> {
        let (sregs, cr4, efer) = if caps.sregs2 && state.find(Tag::Sregs2, id).is_some() {
            let sregs: Sregs2 = state.get(Tag::Sregs2, id)?;
            (Sregs::New(sregs), sregs.cr4, sregs.efer)
        } else {
            let sregs: kvm_sregs = state.get(Tag::Sregs, id)?;
            (Sregs::Old(sregs), sregs.cr4, sregs.efer)
        };
        if [Tag::Sregs, Tag::Sregs2].iter().all(|&tag| state.find(tag, id).is_some()) {
            return Err(StateError::Superfluous { tag: Tag::Sregs, vcpu: id });
        }
        refuse_nested(id, cr4, efer)?;
        let time_stamp: TscState = state.get(Tag::Tsc, id)?;
        tsc::check(inner, id, &time_stamp)?;
        let msrs = parse_msrs(state.bytes(Tag::Msrs, id)?, id, inner.msrs.count())?;
        inner.msrs.check(&msrs)?;
        Ok(Self {
            mp_state: state.get(Tag::MpState, id)?,
            regs: state.get(Tag::Regs, id)?,
            sregs,
            xsave: parse_xsave(inner, state.bytes(Tag::Xsave, id)?, id)?,
            xcrs: state.get(Tag::Xcrs, id)?,
            debug: state.get(Tag::DebugRegs, id)?,
            lapic: state.get(Tag::Lapic, id)?,
            msrs,
            time_stamp,
            events: state.get(Tag::Events, id)?,
        })
    }

    /// Sets it.
    ///
    /// # Errors
    /// What KVM refuses; the vCPU must then not run.
    pub(crate) fn load(&self, inner: &mut Inner, time: &Passage) -> Result<(), StateError> {
        match &self.sregs {
            Sregs::New(sregs) => {
                ioctls::set_sregs2(&inner.fd, sregs).map_err(StateError::kvm("set sregs2"))?;
            }
            Sregs::Old(sregs) => ask!(inner.fd.set_sregs(sregs), "set sregs"),
        }
        ask!(inner.fd.set_regs(&self.regs), "set the registers");
        ask!(inner.fd.set_xcrs(&self.xcrs), "set the XCRs");
        self.load_xsave(inner)?;
        ask!(inner.fd.set_debug_regs(&self.debug), "set the debug registers");
        let deadline = inner.msrs.set(&inner.fd, &self.msrs)?;
        ask!(inner.fd.set_lapic(&self.lapic), "set the local APIC");
        tsc::load(inner, &self.time_stamp, time)?;
        if let Some(at) = deadline_to_set(deadline, &self.lapic)
            && !msrs::set_one(&inner.fd, msrs::TSC_DEADLINE, at)
        {
            return Err(MsrError::Refused(msrs::TSC_DEADLINE).into());
        }
        ask!(inner.fd.set_vcpu_events(&self.events), "set vcpu_events");
        ask!(inner.fd.set_mp_state(self.mp_state), "set mp_state");
        Ok(())
    }

    fn load_xsave(&self, inner: &mut Inner) -> Result<(), StateError> {
        let mut base = kvm_xsave::default();
        base.region.as_mut_bytes().copy_from_slice(self.xsave.0);
        let Some(buffer) = &mut inner.xsave else {
            // SAFETY: without KVM_CAP_XSAVE2 the extended state is 4096 bytes, so KVM reads no
            // further than the structure.
            ask!(unsafe { inner.fd.set_xsave(&base) }, "set the extended state");
            return Ok(());
        };
        let words = self.xsave.1.chunks_exact(size_of::<u32>());
        for (slot, word) in buffer.as_mut_slice().iter_mut().zip(words) {
            *slot = u32::read_from_bytes(word).unwrap_or(0);
        }
        // SAFETY: `xsave` is not the length of the flexible array member.
        unsafe { buffer.as_mut_fam_struct() }.xsave.region = base.region;
        // SAFETY: the buffer has the size that KVM_CAP_XSAVE2 announced for this VM.
        ask!(unsafe { inner.fd.set_xsave2(buffer) }, "set the extended state");
        Ok(())
    }
}

fn parse_xsave<'a>(
    inner: &Inner,
    bytes: &'a [u8],
    vcpu: u16,
) -> Result<(&'a [u8], &'a [u8]), StateError> {
    let extra = inner.xsave.as_ref().map_or(0, |buffer| size_of_val(buffer.as_slice()));
    let expected = XSAVE_BASE + extra;
    let parts = bytes.split_at_checked(XSAVE_BASE).filter(|_| bytes.len() == expected);
    let found = bytes.len();
    parts.ok_or(StateError::Size { tag: Tag::Xsave, vcpu, expected, found })
}

fn parse_msrs(bytes: &[u8], vcpu: u16, count: usize) -> Result<Vec<kvm_msr_entry>, StateError> {
    let each = size_of::<kvm_msr_entry>();
    let size = || {
        let (expected, found) = (count * each, bytes.len());
        StateError::Size { tag: Tag::Msrs, vcpu, expected, found }
    };
    // One too many or too few is better said by the MSR's number.
    if !bytes.len().is_multiple_of(each) || bytes.len() > (count + 64) * each {
        return Err(size());
    }
    let entries = bytes.chunks_exact(each).map(kvm_msr_entry::read_from_bytes);
    entries.collect::<Result<_, _>>().map_err(|_| size())
}

/// The value for IA32_TSC_DEADLINE. KVM reads it as 0 from when the timer has expired, also if
/// the interrupt has not reached the local APIC yet; such a one must not be lost, so it expires
/// once more. An interrupt too many is what an operating system must bear.
fn deadline_to_set(saved: Option<u64>, lapic: &kvm_lapic_state) -> Option<u64> {
    // Local vector table, timer (Intel SDM 3A, 11.5.1): mode in bits 18:17, mask in bit 16.
    let byte = |at: usize| lapic.regs.get(at).map_or(0, |b| u32::from(b.to_ne_bytes()[0]));
    let lvt = (0..4).fold(0, |word, i| word | byte(0x320 + i) << (8 * i));
    let armed = (lvt >> 17) & 3 == 2 && lvt & (1 << 16) == 0;
    match saved {
        Some(0) if armed => Some(1),
        Some(0) | None => None,
        other => other,
    }
}

#[cfg(test)]
#[path = "state_test.rs"]
mod tests;
