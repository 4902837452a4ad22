//! The guest's TSC runs on through a move.
//!
//! A TSC of another frequency is refused, beforehand by the configuration block and once more
//! here: a guest knows the frequency from its start on. Where KVM has KVM_VCPU_TSC_OFFSET, the offset to the host's TSC is the state: on the same host
//! it is carried as it is, on another one it is computed from the clocks of both (KVM's
//! documentation of that attribute has the formula). Else IA32_TSC is written, moved on by the
//! ticks that have passed.
#![expect(unsafe_code, reason = "the RDTSC instruction")]

use kvm_ioctls::VcpuFd;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Inner;
use super::msrs::{self, MsrError};
use crate::clock::Passage;
use crate::ioctls;
use crate::record::{StateError, Tag};

/// The TSC of one vCPU at the save.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct TscState {
    /// Guest TSC minus host TSC, if `has_offset`.
    pub offset: u64,
    /// IA32_TSC.
    pub value: u64,
    /// The host's TSC at the moment that `value` was read.
    pub host: u64,
    /// Frequency in kHz; 0 if KVM does not know it.
    pub khz: u32,
    /// 1 if `offset` holds.
    pub has_offset: u32,
}

/// The host's time stamp counter.
#[must_use]
pub fn host_tsc() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and user space may use it on Linux
    // unless a process has asked for the opposite, which this one has not.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// True if this KVM has the offset attribute.
pub(crate) fn has_offset(fd: &VcpuFd) -> bool {
    ioctls::has_tsc_offset(fd)
}

pub(crate) fn save(inner: &Inner) -> Result<TscState, StateError> {
    let offset = if inner.tsc_offset {
        ioctls::get_tsc_offset(&inner.fd).map_err(StateError::kvm("get KVM_VCPU_TSC_OFFSET"))?
    } else {
        0
    };
    let host = host_tsc();
    let value = msrs::get_one(&inner.fd, msrs::TSC).ok_or(MsrError::Refused(msrs::TSC))?;
    Ok(TscState {
        offset,
        value,
        host,
        khz: inner.fd.get_tsc_khz().unwrap_or(0),
        has_offset: u32::from(inner.tsc_offset),
    })
}

/// Refuses what this host cannot go on with, before anything is set.
pub(crate) fn check(inner: &Inner, vcpu: u16, state: &TscState) -> Result<(), StateError> {
    let here = inner.fd.get_tsc_khz().unwrap_or(0);
    if state.khz != here {
        return Err(StateError::TscFrequency { saved: state.khz, here });
    }
    if state.has_offset > 1 {
        let (found, expected) = (state.has_offset.into(), "0 or 1");
        let what = "whether there is an offset";
        return Err(StateError::Value { tag: Tag::Tsc, vcpu, what, found, expected });
    }
    Ok(())
}

pub(crate) fn load(inner: &Inner, state: &TscState, time: &Passage) -> Result<(), StateError> {
    if inner.tsc_offset && state.has_offset == 1 {
        let offset = time.offset(state.offset, state.khz);
        return ioctls::set_tsc_offset(&inner.fd, offset)
            .map_err(StateError::kvm("set KVM_VCPU_TSC_OFFSET"));
    }
    let value = state.value.wrapping_add(time.ticks_since(state.host, state.khz));
    if msrs::set_one(&inner.fd, msrs::TSC, value) {
        Ok(())
    } else {
        Err(MsrError::Refused(msrs::TSC).into())
    }
}
