//! Loading a PVH kernel (an ELF with Xen's PHYS32_ENTRY note) and what it is told.
//!
//! Protocol: Xen's docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h.

use std::fs::File;
use std::io::{Cursor, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use drogher_iommu_types::{Gpa, PAGE_MASK, PAGE_SIZE};
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::elf::start_info::{
    XEN_HVM_MEMMAP_TYPE_RAM, XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry,
    hvm_start_info,
};
use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::GuestAddress;

use crate::layout;
use crate::memory::{GuestRam, MemoryError};

/// Longest kernel file: what a vmlinux with all debug information may have.
pub const KERNEL_BYTES_MAX: u64 = 1 << 30;

/// Why a kernel cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file cannot be read.
    #[error("Cannot read the {what} {}", path.display())]
    Read {
        /// Kernel or initrd.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is something else than a file.
    #[error("The {what} {} is not a regular file", path.display())]
    NoFile {
        /// Kernel or initrd.
        what: &'static str,
        /// What is there.
        path: PathBuf,
    },
    /// The file is larger than it can be.
    #[error("The {what} {} has more than {max} bytes", path.display())]
    TooLong {
        /// Kernel or initrd.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The limit.
        max: u64,
    },
    /// It is no ELF for this architecture.
    #[error(
        "The kernel {name} is no 64-bit x86 ELF: {reason}. Give an uncompressed vmlinux or a PVH ELF"
    )]
    NoElf {
        /// File or name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// It has no PVH entry.
    #[error(
        "The kernel {name} has no PVH note (XEN_ELFNOTE_PHYS32_ENTRY): a Linux needs CONFIG_PVH=y"
    )]
    NoPvh {
        /// File or name.
        name: String,
    },
    /// Its segments do not fit RAM, or the ELF is damaged.
    #[error("The kernel {name} cannot be loaded into {ram} MiB of RAM")]
    Load {
        /// File or name.
        name: String,
        /// RAM in MiB.
        ram: u64,
        /// Why.
        #[source]
        source: linux_loader::loader::Error,
    },
    /// The command line is too long or has a NUL in it.
    #[error("The kernel command line of {len} bytes is not possible: at most {max}, without NUL", max = layout::CMDLINE_MAX - 1)]
    CommandLine {
        /// Its length.
        len: usize,
    },
    /// The initrd does not fit between kernel and end of low RAM.
    #[error("The initrd of {len} bytes does not fit above the kernel's end at {kernel_end:#x}")]
    Initrd {
        /// Its length.
        len: u64,
        /// First address after the kernel.
        kernel_end: u64,
    },
    /// The start info could not be written.
    #[error("Cannot write the start info")]
    StartInfo(#[source] linux_loader::configurator::Error),
    /// Guest RAM could not be accessed.
    #[error("Cannot write to guest RAM")]
    Memory(#[from] MemoryError),
}

/// Where the first vCPU begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// First instruction, 32-bit protected mode.
    pub rip: u64,
    /// Value of EBX: GPA of the start info.
    pub start_info: u64,
}

/// A kernel to load.
#[derive(Debug, Clone, Copy)]
pub struct Kernel<'a> {
    /// For messages: its file, or "probe".
    pub name: &'a str,
    /// The ELF.
    pub elf: &'a [u8],
    /// Command line, without NUL.
    pub cmdline: &'a str,
    /// Initial RAM disk, if any; becomes the first module.
    pub initrd: Option<&'a [u8]>,
}

/// Reads a kernel's file.
///
/// # Errors
/// As [`read_file`].
pub fn read_kernel(path: &Path) -> Result<Vec<u8>, BootError> {
    read_file("kernel", path, KERNEL_BYTES_MAX)
}

/// Reads the file of a kernel or initrd, `what`, of at most `max` bytes. Waits for nobody.
///
/// # Errors
/// `Read`, `NoFile` or `TooLong`, with its name.
pub fn read_file(what: &'static str, path: &Path, max: u64) -> Result<Vec<u8>, BootError> {
    let owned = || path.to_owned();
    let read = |source| BootError::Read { what, path: owned(), source };
    // A FIFO would wait for a writer, and a device might never end.
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(nonblock).open(path).map_err(read)?;
    let metadata = file.metadata().map_err(read)?;
    if !metadata.is_file() {
        return Err(BootError::NoFile { what, path: owned() });
    }
    let mut bytes = Vec::new();
    // What it says of its length is no promise.
    file.take(max.saturating_add(1)).read_to_end(&mut bytes).map_err(read)?;
    if bytes.len() as u64 > max {
        return Err(BootError::TooLong { what, path: owned(), max });
    }
    Ok(bytes)
}

/// Puts the kernel and what it is told into RAM, which must be fresh (zeroed).
///
/// # Errors
/// See [`BootError`].
pub fn load(ram: &GuestRam, kernel: &Kernel<'_>) -> Result<Entry, BootError> {
    check_elf(kernel)?;
    let max = layout::CMDLINE_MAX - 1;
    if kernel.cmdline.len() > max || kernel.cmdline.contains('\0') {
        return Err(BootError::CommandLine { len: kernel.cmdline.len() });
    }
    let loaded = ram
        .with_guest_memory(|memory| Elf::load(memory, None, &mut Cursor::new(kernel.elf), None))?;
    let loaded = loaded.map_err(|source| BootError::Load {
        name: kernel.name.into(),
        ram: ram.bytes() >> 20,
        source,
    })?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(BootError::NoPvh { name: kernel.name.into() });
    };
    let modules = place_initrd(ram, kernel, loaded.kernel_end)?;
    write_gpa(ram, layout::CMDLINE, kernel.cmdline.as_bytes())?;
    write_gpa(ram, layout::CMDLINE + kernel.cmdline.len() as u64, &[0])?;
    write_start_info(ram, &modules)?;
    Ok(Entry { rip: entry.0, start_info: layout::START_INFO })
}

/// What the loader does not look at: class and machine (ELF gABI, e_ident and e_machine), and that
/// segments lie in the file (it adds their offsets without care).
fn check_elf(kernel: &Kernel<'_>) -> Result<(), BootError> {
    let no = |reason| Err(BootError::NoElf { name: kernel.name.into(), reason });
    match kernel.elf {
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

fn write_gpa(ram: &GuestRam, gpa: u64, bytes: &[u8]) -> Result<(), MemoryError> {
    let len = bytes.len() as u64;
    let oa = ram.oa(Gpa(gpa), len).ok_or(MemoryError::Bounds {
        what: "GPA",
        at: gpa,
        len,
        ram: ram.bytes(),
    })?;
    ram.write_at(oa, bytes)
}

/// The initrd goes to the end of low RAM, so that the kernel may unpack below it.
fn place_initrd(
    ram: &GuestRam,
    kernel: &Kernel<'_>,
    kernel_end: u64,
) -> Result<Vec<hvm_modlist_entry>, BootError> {
    let Some(initrd) = kernel.initrd else { return Ok(Vec::new()) };
    let len = initrd.len() as u64;
    let low_end = ram.ranges().first().map_or(0, |r| r.len);
    let at = low_end.checked_sub(len).map_or(0, |at| at & !PAGE_MASK);
    let floor = kernel_end.max(layout::HIMEM_START).next_multiple_of(PAGE_SIZE);
    if at < floor {
        return Err(BootError::Initrd { len, kernel_end });
    }
    write_gpa(ram, at, initrd)?;
    Ok(vec![hvm_modlist_entry { paddr: at, size: len, ..Default::default() }])
}

fn write_start_info(ram: &GuestRam, modules: &[hvm_modlist_entry]) -> Result<(), BootError> {
    let memmap = memory_map(ram);
    let count = |n: usize| u32::try_from(n).unwrap_or(0);
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        nr_modules: count(modules.len()),
        modlist_paddr: if modules.is_empty() { 0 } else { layout::MODLIST },
        cmdline_paddr: layout::CMDLINE,
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
        .map_err(BootError::StartInfo)
}

/// RAM without the legacy hole below 1 MiB.
fn memory_map(ram: &GuestRam) -> Vec<hvm_memmap_table_entry> {
    let entry = |addr: u64, end: u64| hvm_memmap_table_entry {
        addr,
        size: end - addr,
        type_: XEN_HVM_MEMMAP_TYPE_RAM,
        reserved: 0,
    };
    let mut map = vec![entry(0, layout::EBDA_START)];
    for range in ram.ranges() {
        let end = range.gpa.0 + range.len;
        map.push(entry(range.gpa.0.max(layout::HIMEM_START), end));
    }
    map
}

#[cfg(test)]
#[path = "boot_test.rs"]
mod tests;
