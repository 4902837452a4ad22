//! A bzImage by Linux's 64-bit boot protocol (Documentation/arch/x86/boot.rst).

use std::io::Cursor;

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{BzImage, KernelLoader};
use vm_memory::GuestAddress;

use super::{BootError, Entry, Kernel, does_not_load, memory_map, place_initrd, write_gpa};
use crate::layout;
use crate::memory::GuestRam;

/// Where a bzImage has "HdrS", and end of the header that is looked at.
const MAGIC_AT: usize = 0x202;
const HEADER_END: usize = 0x270;
/// Protocol with `xloadflags`.
const VERSION_MIN: u16 = 0x020C;
/// XLF_KERNEL_64: the entry 0x200 bytes after the start is there.
const KERNEL_64: u16 = 1;
const ENTRY_64: u64 = 0x200;
/// A loader without a number of its own.
const LOADER_UNKNOWN: u8 = 0xFF;
/// KEEP_SEGMENTS and CAN_USE_HEAP are for other entries; QUIET is the command line's matter.
const LOADED_HIGH: u8 = 1;

/// Present and writable; and a page of 2 MiB.
const TABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7 | TABLE;

/// True for a file that has the magic number of a bzImage.
pub(super) fn is_one(image: &[u8]) -> bool {
    image.len() >= HEADER_END && image.get(MAGIC_AT..MAGIC_AT + 4) == Some(b"HdrS")
}

/// Loads the protected-mode part, the initrd, the boot parameters and page tables.
pub(super) fn load(ram: &GuestRam, kernel: &Kernel<'_>) -> Result<Entry, BootError> {
    let start = GuestAddress(layout::HIMEM_START);
    let loaded = ram
        .with_guest_memory(|memory| {
            BzImage::load(memory, Some(start), &mut Cursor::new(kernel.image), None)
        })?
        .map_err(does_not_load(ram, kernel))?;
    let no_entry = || BootError::NoEntry64 { name: kernel.name.into() };
    let mut header = loaded.setup_header.ok_or_else(no_entry)?;
    if header.version < VERSION_MIN || header.xloadflags & KERNEL_64 == 0 {
        return Err(no_entry());
    }
    // It moves itself to its preferred address before it unpacks, and needs room there.
    let unpacked = header.pref_address.saturating_add(header.init_size.into());
    let initrd = place_initrd(ram, kernel, loaded.kernel_end.max(unpacked))?;
    header.type_of_loader = LOADER_UNKNOWN;
    header.loadflags = LOADED_HIGH;
    // Both lie below 4 GiB: low RAM ends at 3.
    let low = |address: u64| u32::try_from(address).unwrap_or(0);
    header.cmd_line_ptr = low(layout::CMDLINE);
    header.cmdline_size = low(kernel.cmdline.len() as u64);
    (header.ramdisk_image, header.ramdisk_size) =
        initrd.map_or((0, 0), |(at, len)| (low(at), low(len)));
    write_zero_page(ram, header)?;
    write_page_tables(ram)?;
    Ok(Entry::Long { rip: layout::HIMEM_START + ENTRY_64, zero_page: layout::ZERO_PAGE })
}

fn write_zero_page(ram: &GuestRam, hdr: setup_header) -> Result<(), BootError> {
    let mut params = boot_params { hdr, acpi_rsdp_addr: layout::ACPI_TABLES, ..Default::default() };
    for (range, kind) in memory_map(ram) {
        let at = usize::from(params.e820_entries);
        let (addr, size) = (range.start, range.end - range.start);
        // The map has five entries at most, the table 128.
        if let Some(entry) = params.e820_table.get_mut(at) {
            *entry = boot_e820_entry { addr, size, r#type: kind as u32 };
            params.e820_entries += 1;
        }
    }
    let params = BootParams::new(&params, GuestAddress(layout::ZERO_PAGE));
    ram.with_guest_memory(|memory| LinuxBootConfigurator::write_bootparams(&params, memory))?
        .map_err(BootError::Parameters)
}

/// The first 4 GiB, each address at itself: a top table, a table of GiB, four of 2 MiB.
fn write_page_tables(ram: &GuestRam) -> Result<(), BootError> {
    let top = layout::BOOT_TABLES.start;
    let gib = top + 0x1000;
    let mut tables = [0u8; 6 << 12];
    let mut put = |at: u64, value: u64| {
        let at = usize::try_from(at - top).unwrap_or(0);
        if let Some(slot) = tables.get_mut(at..at + 8) {
            slot.copy_from_slice(&value.to_le_bytes());
        }
    };
    put(top, gib | TABLE);
    for n in 0..4 {
        put(gib + 8 * n, (gib + 0x1000 * (n + 1)) | TABLE);
    }
    for n in 0..4 * 512 {
        put(gib + 0x1000 + 8 * n, (n << 21) | LARGE);
    }
    Ok(write_gpa(ram, top, &tables)?)
}

#[cfg(test)]
#[path = "bzimage_test.rs"]
mod tests;
