//! Registers of a vCPU before its first instruction.

use kvm_bindings::{kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;

use crate::boot::Entry;
use crate::layout;
use crate::vm::{VmError, refused};

// Local vector table entries in the local APIC's page (Intel SDM 3A, 11.5.1).
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVER_NMI: u32 = 4 << 8;
const DELIVER_EXTINT: u32 = 7 << 8;

/// IA32_MTRR_DEF_TYPE: MTRRs on, everything write-back.
const MTRR_DEF_TYPE: u32 = 0x2FF;
const MTRR_WRITE_BACK: u64 = (1 << 11) | 6;

/// What firmware would have set on every vCPU: the two local interrupt pins, and cacheable memory.
pub(crate) fn reset_state(fd: &VcpuFd) -> Result<(), VmError> {
    let mut lapic = fd.get_lapic().map_err(refused("get the local APIC"))?;
    set_lapic(&mut lapic.regs, LVT_LINT0, DELIVER_EXTINT);
    set_lapic(&mut lapic.regs, LVT_LINT1, DELIVER_NMI);
    fd.set_lapic(&lapic).map_err(refused("set the local APIC"))?;
    // A KVM without MTRRs has nothing to be told.
    if !super::msrs::set_one(fd, MTRR_DEF_TYPE, MTRR_WRITE_BACK) {
        tracing::debug!("KVM does not take IA32_MTRR_DEF_TYPE");
    }
    Ok(())
}

fn set_lapic(regs: &mut [std::os::raw::c_char; 1024], at: usize, value: u32) {
    for (slot, byte) in regs.iter_mut().skip(at).zip(value.to_le_bytes()) {
        *slot = std::os::raw::c_char::from_ne_bytes([byte]);
    }
}

fn flat(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xFFFF_FFFF,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    }
}

/// The first instruction of a kernel, and the registers that its protocol wants.
pub(crate) fn enter(fd: &VcpuFd, entry: &Entry) -> Result<(), VmError> {
    match *entry {
        Entry::Protected { rip, start_info } => pvh_entry(fd, rip, start_info),
        Entry::Long { rip, zero_page } => long_entry(fd, rip, zero_page),
    }
}

/// Registers for Linux's 64-bit entry: paging on, flat segments with the selectors that it names, RSI
/// the boot parameters (Documentation/arch/x86/boot.rst, "64-bit boot protocol").
fn long_entry(fd: &VcpuFd, entry: u64, zero_page: u64) -> Result<(), VmError> {
    let mut sregs = fd.get_sregs().map_err(refused("get the segment registers"))?;
    sregs.cs = kvm_segment { db: 0, l: 1, ..flat(0x10, 0xB) };
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.ss, &mut sregs.fs, &mut sregs.gs] {
        *segment = flat(0x18, 0x3);
    }
    sregs.tr =
        kvm_segment { limit: 0x67, selector: 0x20, type_: 0xB, present: 1, ..Default::default() };
    // PE, ET, PG; PAE; LME and LMA.
    sregs.cr0 = 0x8000_0011;
    sregs.cr3 = layout::BOOT_TABLES.start;
    sregs.cr4 = 1 << 5;
    sregs.efer = 1 << 8 | 1 << 10;
    fd.set_sregs(&sregs).map_err(refused("set the segment registers"))?;
    let regs = kvm_regs { rip: entry, rsi: zero_page, rflags: 2, ..Default::default() };
    fd.set_regs(&regs).map_err(refused("set the registers"))
}

/// Registers for a PVH entry: 32-bit protected mode, flat segments, no paging, EBX the start info
/// (Xen's docs/misc/pvh.pandoc, "CPU state").
fn pvh_entry(fd: &VcpuFd, entry: u64, start_info: u64) -> Result<(), VmError> {
    let mut sregs = fd.get_sregs().map_err(refused("get the segment registers"))?;
    sregs.cs = flat(0x08, 0xB);
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.ss, &mut sregs.fs, &mut sregs.gs] {
        *segment = flat(0x10, 0x3);
    }
    sregs.tr =
        kvm_segment { limit: 0x67, selector: 0x18, type_: 0xB, present: 1, ..Default::default() };
    // PE, ET.
    sregs.cr0 = 0x11;
    sregs.cr3 = 0;
    sregs.cr4 = 0;
    sregs.efer = 0;
    fd.set_sregs(&sregs).map_err(refused("set the segment registers"))?;
    let regs = kvm_regs { rip: entry, rbx: start_info, rflags: 2, ..Default::default() };
    fd.set_regs(&regs).map_err(refused("set the registers"))
}
