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
use super::msrs::{self, MsrRefused};
use super::tsc::{self, TscState};
use crate::caps::Caps;
use crate::clock::Passage;
use crate::ioctls::{self, Sregs2};
use crate::record::{Reader, StateError, Tag, Writer};
use crate::vm::VmError;

/// Bytes of `kvm_xsave` without its extension.
const XSAVE_BASE: usize = 4096;

/// A buffer for KVM_GET_XSAVE2 where 4096 bytes do not suffice.
pub(crate) fn xsave_buffer(bytes: usize) -> Result<Option<Xsave>, VmError> {
    if bytes <= XSAVE_BASE {
        return Ok(None);
    }
    let words = (bytes - XSAVE_BASE).div_ceil(size_of::<u32>());
    Xsave::new(words).map(Some).map_err(|e| VmError::Refused {
        what: format!("hold {bytes} bytes of extended state"),
        source: std::io::Error::other(format!("{e:?}")),
    })
}

impl From<MsrRefused> for StateError {
    fn from(e: MsrRefused) -> Self {
        Self::Msr { index: e.index }
    }
}

macro_rules! ask {
    ($call:expr, $what:literal) => {
        $call.map_err(|e| StateError::errno($what, e))?
    };
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
        out.put(Tag::Sregs2, id, sregs.as_bytes());
    } else {
        out.put(Tag::Sregs, id, ask!(fd.get_sregs(), "get sregs").as_bytes());
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
            let xsave = buffer.as_fam_struct_ref();
            let mut bytes = Vec::with_capacity(caps.xsave_bytes);
            bytes.extend_from_slice(xsave.xsave.region.as_bytes());
            bytes.extend_from_slice(buffer.as_slice().as_bytes());
            out.put(Tag::Xsave, id, &bytes);
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

pub(crate) fn load(
    inner: &mut Inner,
    caps: &Caps,
    id: u16,
    state: &Reader<'_>,
    time: &Passage,
) -> Result<(), StateError> {
    let mp_state: kvm_mp_state = state.get(Tag::MpState, id)?;
    let regs: kvm_regs = state.get(Tag::Regs, id)?;
    let xcrs: kvm_xcrs = state.get(Tag::Xcrs, id)?;
    let debug: kvm_debugregs = state.get(Tag::DebugRegs, id)?;
    let lapic: kvm_lapic_state = state.get(Tag::Lapic, id)?;
    let events: kvm_vcpu_events = state.get(Tag::Events, id)?;
    let time_stamp: TscState = state.get(Tag::Tsc, id)?;

    tsc::load_frequency(inner, &time_stamp, caps.tsc_control)?;
    load_sregs(inner, caps, id, state)?;
    ask!(inner.fd.set_regs(&regs), "set the registers");
    ask!(inner.fd.set_xcrs(&xcrs), "set the XCRs");
    load_xsave(inner, id, state)?;
    ask!(inner.fd.set_debug_regs(&debug), "set the debug registers");
    let deadline = load_msrs(inner, id, state)?;
    ask!(inner.fd.set_lapic(&lapic), "set the local APIC");
    tsc::load(inner, &time_stamp, time)?;
    if let Some(at) = deadline_to_set(deadline, &lapic)
        && !msrs::set_one(&inner.fd, msrs::TSC_DEADLINE, at)
    {
        return Err(StateError::Msr { index: msrs::TSC_DEADLINE });
    }
    ask!(inner.fd.set_vcpu_events(&events), "set vcpu_events");
    ask!(inner.fd.set_mp_state(mp_state), "set mp_state");
    Ok(())
}

fn load_sregs(inner: &Inner, caps: &Caps, id: u16, state: &Reader<'_>) -> Result<(), StateError> {
    if state.find(Tag::Sregs2, id).is_some() && caps.sregs2 {
        let sregs: Sregs2 = state.get(Tag::Sregs2, id)?;
        return ioctls::set_sregs2(&inner.fd, &sregs).map_err(StateError::kvm("set sregs2"));
    }
    let sregs: kvm_sregs = state.get(Tag::Sregs, id)?;
    ask!(inner.fd.set_sregs(&sregs), "set sregs");
    Ok(())
}

fn load_xsave(inner: &mut Inner, id: u16, state: &Reader<'_>) -> Result<(), StateError> {
    let bytes = state.bytes(Tag::Xsave, id)?;
    let size =
        |expected| StateError::Size { tag: Tag::Xsave, vcpu: id, expected, found: bytes.len() };
    let mut base = kvm_xsave::default();
    match &mut inner.xsave {
        None => {
            if bytes.len() != XSAVE_BASE {
                return Err(size(XSAVE_BASE));
            }
            base.region.as_mut_bytes().copy_from_slice(bytes);
            // SAFETY: KVM_CAP_XSAVE2 says 4096 bytes on this host (or is absent, which means the
            // same), so KVM reads no further than the structure.
            ask!(unsafe { inner.fd.set_xsave(&base) }, "set the extended state");
        }
        Some(buffer) => {
            let extra = size_of_val(buffer.as_slice());
            let Some((head, tail)) = bytes.split_at_checked(XSAVE_BASE) else {
                return Err(size(XSAVE_BASE + extra));
            };
            if tail.len() != extra {
                return Err(size(XSAVE_BASE + extra));
            }
            base.region.as_mut_bytes().copy_from_slice(head);
            let words = tail.chunks_exact(size_of::<u32>());
            for (slot, word) in buffer.as_mut_slice().iter_mut().zip(words) {
                *slot = u32::read_from_bytes(word).unwrap_or(0);
            }
            // SAFETY: `xsave` is not the length of the flexible array member.
            unsafe { buffer.as_mut_fam_struct() }.xsave.region = base.region;
            // SAFETY: the buffer has the size that KVM_CAP_XSAVE2 announced for this VM.
            ask!(unsafe { inner.fd.set_xsave2(buffer) }, "set the extended state");
        }
    }
    Ok(())
}

fn load_msrs(inner: &mut Inner, id: u16, state: &Reader<'_>) -> Result<Option<u64>, StateError> {
    let bytes = state.bytes(Tag::Msrs, id)?;
    let each = size_of::<kvm_msr_entry>();
    let expected = each * inner.msrs.indices().len();
    let size = || StateError::Size { tag: Tag::Msrs, vcpu: id, expected, found: bytes.len() };
    if !bytes.len().is_multiple_of(each) || bytes.len() > expected.max(each * 1024) {
        return Err(size());
    }
    let mut entries = Vec::with_capacity(bytes.len() / each);
    for entry in bytes.chunks_exact(each) {
        entries.push(kvm_msr_entry::read_from_bytes(entry).map_err(|_| size())?);
    }
    Ok(inner.msrs.set(&inner.fd, &entries)?)
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
