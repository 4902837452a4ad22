//! Loading a kernel, and what it is told: command line, initrd, memory map, ACPI tables.
//!
//! An ELF is entered by PVH ([`pvh`]), a bzImage by Linux's 64-bit protocol ([`bzimage`]).

mod bzimage;
mod pvh;

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use drogher_iommu_types::{Gpa, PAGE_MASK, PAGE_SIZE};

use crate::acpi;
use crate::layout;
use crate::memory::{GuestRam, MemoryError};
use crate::power;

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
    /// It is no ELF for this architecture, and no bzImage.
    #[error(
        "The kernel {name} is no 64-bit x86 ELF: {reason}. Give a vmlinux, a bzImage or a PVH ELF"
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
    /// A bzImage that cannot be entered in 64-bit mode.
    #[error(
        "The bzImage {name} has no 64-bit entry: it needs boot protocol 2.12 and a 64-bit kernel"
    )]
    NoEntry64 {
        /// File or name.
        name: String,
    },
    /// Its segments do not fit RAM, or the ELF is damaged.
    #[error(
        "The kernel {name} cannot be loaded into {ram} MiB of RAM: give the guest more memory, or the file is damaged"
    )]
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
    /// What it is told could not be written.
    #[error("Cannot write what the kernel is told at its start")]
    Parameters(#[source] linux_loader::configurator::Error),
    /// Guest RAM could not be accessed.
    #[error("Cannot write to guest RAM")]
    Memory(#[from] MemoryError),
}

/// Where the first vCPU begins, and in which mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// 32-bit protected mode, by PVH.
    Protected {
        /// First instruction.
        rip: u64,
        /// Value of EBX: GPA of the start info.
        start_info: u64,
    },
    /// 64-bit mode on the page tables at [`layout::BOOT_TABLES`], by Linux's protocol.
    Long {
        /// First instruction.
        rip: u64,
        /// Value of RSI: GPA of the boot parameters.
        zero_page: u64,
    },
}

/// A kernel to load.
#[derive(Debug, Clone, Copy)]
pub struct Kernel<'a> {
    /// For messages: its file, or "probe".
    pub name: &'a str,
    /// The file: an ELF or a bzImage.
    pub image: &'a [u8],
    /// Command line, without NUL.
    pub cmdline: &'a str,
    /// Initial RAM disk, if any.
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

/// Puts the kernel and what it is told into RAM, which must be fresh (zeroed), for a machine of `cpus`
/// vCPUs.
///
/// # Errors
/// See [`BootError`].
pub fn load(ram: &GuestRam, kernel: &Kernel<'_>, cpus: u8) -> Result<Entry, BootError> {
    let max = layout::CMDLINE_MAX - 1;
    if kernel.cmdline.len() > max || kernel.cmdline.contains('\0') {
        return Err(BootError::CommandLine { len: kernel.cmdline.len() });
    }
    let entry = if bzimage::is_one(kernel.image) {
        bzimage::load(ram, kernel)?
    } else {
        pvh::load(ram, kernel)?
    };
    write_gpa(ram, layout::CMDLINE, kernel.cmdline.as_bytes())?;
    write_gpa(ram, layout::CMDLINE + kernel.cmdline.len() as u64, &[0])?;
    write_gpa(ram, layout::ACPI_TABLES, &acpi::tables(layout::ACPI_TABLES, cpus))?;
    write_gpa(ram, layout::RESET_VECTOR, &RESET_CODE)?;
    Ok(entry)
}

/// What firmware has at the reset vector, in real mode: it writes the value that resets to the reset
/// port, and halts. With reduced ACPI hardware and without EFI, Linux restarts by a jump there.
#[rustfmt::skip]
const RESET_CODE: [u8; 9] = [
    0xBA, layout::RESET_PORT.to_le_bytes()[0], layout::RESET_PORT.to_le_bytes()[1], // mov dx, port
    0xB0, power::RESET_VALUE, // mov al, value
    0xEE,                     // out dx, al
    0xF4, 0xEB, 0xFD,         // hlt; jmp back to it
];

fn does_not_load(
    ram: &GuestRam,
    kernel: &Kernel<'_>,
) -> impl FnOnce(linux_loader::loader::Error) -> BootError {
    let (name, ram) = (kernel.name.into(), ram.bytes() >> 20);
    move |source| BootError::Load { name, ram, source }
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

/// Puts the initrd, if there is one, at the end of low RAM, so that the kernel may unpack below it:
/// GPA and length. The kernel needs all up to `kernel_end`.
fn place_initrd(
    ram: &GuestRam,
    kernel: &Kernel<'_>,
    kernel_end: u64,
) -> Result<Option<(u64, u64)>, BootError> {
    let Some(initrd) = kernel.initrd else { return Ok(None) };
    let len = initrd.len() as u64;
    let low_end = ram.ranges().first().map_or(0, |r| r.len);
    let at = low_end.checked_sub(len).map_or(0, |at| at & !PAGE_MASK);
    let floor = kernel_end.max(layout::HIMEM_START).next_multiple_of(PAGE_SIZE);
    if at < floor {
        return Err(BootError::Initrd { len, kernel_end });
    }
    write_gpa(ram, at, initrd)?;
    Ok(Some((at, len)))
}

/// What is at a range of GPAs. The numbers are those of PVH and of Linux's e820.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ram = 1,
    Reserved = 2,
}

/// The guest's memory map: RAM without the legacy hole below 1 MiB, where the ACPI tables are, and the
/// PCI configuration space.
fn memory_map(ram: &GuestRam) -> Vec<(std::ops::Range<u64>, Kind)> {
    let mut map = vec![
        (0..layout::EBDA_START, Kind::Ram),
        (layout::EBDA_START..layout::HIMEM_START, Kind::Reserved),
    ];
    for range in ram.ranges() {
        let end = range.gpa.0 + range.len;
        map.push((range.gpa.0.max(layout::HIMEM_START)..end, Kind::Ram));
    }
    // Linux trusts MCFG only where this or the DSDT says that it is no RAM.
    map.push((layout::ECAM, Kind::Reserved));
    map.sort_by_key(|(range, _)| range.start);
    map
}

#[cfg(test)]
#[path = "mod_test.rs"]
mod tests;
