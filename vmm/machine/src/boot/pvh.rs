//! An ELF with Xen's PHYS32_ENTRY note: Xen's docs/misc/pvh.pandoc and
//! public/arch-x86/hvm/start_info.h.

use std::io::Cursor;

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::GuestAddress;

use super::{BootError, Entry, Kernel, does_not_load, memory_map, place_initrd};
use crate::layout;
use crate::memory::GuestRam;

/// Loads the segments, the initrd and the start info.
pub(super) fn load(ram: &GuestRam, kernel: &Kernel<'_>) -> Result<Entry, BootError> {
    check_elf(kernel)?;
    let loaded = ram
        .with_guest_memory(|memory| Elf::load(memory, None, &mut Cursor::new(kernel.image), None))?
        .map_err(does_not_load(ram, kernel))?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(BootError::NoPvh { name: kernel.name.into() });
    };
    let initrd = place_initrd(ram, kernel, loaded.kernel_end)?;
    let module = |(paddr, size)| hvm_modlist_entry { paddr, size, ..Default::default() };
    let modules: Vec<_> = initrd.map(module).into_iter().collect();
    write_start_info(ram, &modules)?;
    Ok(Entry::Protected { rip: entry.0, start_info: layout::START_INFO })
}

/// What the loader does not look at: class and machine (ELF gABI, e_ident and e_machine), and that
/// segments lie in the file (it adds their offsets without care).
fn check_elf(kernel: &Kernel<'_>) -> Result<(), BootError> {
    let no = |reason| Err(BootError::NoElf { name: kernel.name.into(), reason });
    match kernel.image {
        e if e.len() < 64 => no("it is shorter than an ELF header"),
        e if !e.starts_with(b"\x7FELF") => no("it does not begin with ELF's magic number"),
        e if e.get(4) != Some(&2) => no("it is not of class ELF64"),
        e if e.get(18..20) != Some(&[62, 0]) => no("it is for another architecture"),
        e if !segments_inside(e) => no("a segment lies outside of the file"),
        _ => Ok(()),
    }
}

/// True if no program header (ELF gABI, Elf64_Phdr) names bytes that the file does not have.
fn segments_inside(elf: &[u8]) -> bool {
    const SIZE: usize = 56;
    let u64_at = |bytes: &[u8], at: usize| -> Option<usize> {
        let bytes = bytes.get(at..)?.first_chunk::<8>()?;
        usize::try_from(u64::from_le_bytes(*bytes)).ok()
    };
    let headers = || {
        let count = u16::from_le_bytes(*elf.get(56..)?.first_chunk()?);
        let start = u64_at(elf, 32)?;
        elf.get(start..start.checked_add(SIZE * usize::from(count))?)
    };
    let inside = |header: &[u8]| {
        let end = u64_at(header, 8)?.checked_add(u64_at(header, 32)?)?;
        (end <= elf.len()).then_some(())
    };
    headers().is_some_and(|all| all.chunks_exact(SIZE).all(|header| inside(header).is_some()))
}

fn write_start_info(ram: &GuestRam, modules: &[hvm_modlist_entry]) -> Result<(), BootError> {
    let entry = |(range, kind): (std::ops::Range<u64>, super::Kind)| hvm_memmap_table_entry {
        addr: range.start,
        size: range.end - range.start,
        type_: kind as u32,
        reserved: 0,
    };
    let memmap: Vec<_> = memory_map(ram).into_iter().map(entry).collect();
    let count = |n: usize| u32::try_from(n).unwrap_or(0);
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        nr_modules: count(modules.len()),
        modlist_paddr: if modules.is_empty() { 0 } else { layout::MODLIST },
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: layout::ACPI_TABLES,
        memmap_paddr: layout::MEMMAP,
        memmap_entries: count(memmap.len()),
        ..Default::default()
    };
    let mut params = BootParams::new(&info, GuestAddress(layout::START_INFO));
    params.set_sections(&memmap, GuestAddress(layout::MEMMAP));
    if !modules.is_empty() {
        params.set_modules(modules, GuestAddress(layout::MODLIST));
    }
    ram.with_guest_memory(|memory| PvhBootConfigurator::write_bootparams(&params, memory))?
        .map_err(BootError::Parameters)
}
