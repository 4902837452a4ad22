//! A plugin's descriptor out of its file, without running any of it.

use crate::descriptor::Descriptor;
use crate::load_error::{DescriptorError, LoadError};
use object::elf::{self, FileHeader64};
use object::read::elf::{FileHeader, ProgramHeader, Sym};
use object::{Endianness, read::elf::SectionHeader};
use std::fs::{Metadata, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The symbol that every plugin exports.
pub(crate) const SYMBOL: &str = "drogher_plugin_entry";

/// The largest plugin file.
const LARGEST: u64 = 1 << 30;

#[cfg(target_arch = "x86_64")]
const MACHINE: (u16, &str) = (elf::EM_X86_64, "x86-64");
#[cfg(target_arch = "aarch64")]
const MACHINE: (u16, &str) = (elf::EM_AARCH64, "AArch64");
#[cfg(target_arch = "riscv64")]
const MACHINE: (u16, &str) = (elf::EM_RISCV, "RISC-V");

fn machine_name(machine: u16) -> String {
    match machine {
        elf::EM_386 => "32-bit x86".to_owned(),
        elf::EM_X86_64 => "x86-64".to_owned(),
        elf::EM_ARM => "32-bit ARM".to_owned(),
        elf::EM_AARCH64 => "AArch64".to_owned(),
        elf::EM_RISCV => "RISC-V".to_owned(),
        other => format!("ELF machine {other}"),
    }
}

/// Reads the file and checks all that can be checked without loading it.
pub(crate) fn inspect(path: &Path) -> Result<Descriptor, LoadError> {
    let data = read(path)?;
    let entry = entry(path, &data)?;
    Descriptor::parse(entry)
        .map_err(|source| LoadError::Descriptor { path: path.to_owned(), source })
}

fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => LoadError::NotFound { path: path.to_owned() },
        _ => LoadError::Read { path: path.to_owned(), source: std::sync::Arc::new(source) },
    };
    let not_a_file = |what| LoadError::NotAFile { path: path.to_owned(), what };
    let check = |metadata: Metadata| match metadata {
        metadata if metadata.is_dir() => Err(not_a_file("a folder")),
        metadata if !metadata.is_file() => Err(not_a_file("no regular file")),
        metadata if metadata.len() > LARGEST => Err(not_a_file("larger than 1 GiB")),
        _ => Ok(()),
    };
    check(std::fs::metadata(path).map_err(failed)?)?;
    // Should it have become a pipe meanwhile, opening must not wait for a writer.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = file.map_err(failed)?;
    check(file.metadata().map_err(failed)?)?;
    let mut data = Vec::new();
    file.take(LARGEST).read_to_end(&mut data).map_err(failed)?;
    Ok(data)
}

/// The bytes from the entry symbol on, as far as they are in the file.
fn entry<'a>(path: &Path, data: &'a [u8]) -> Result<&'a [u8], LoadError> {
    let not_elf = |what: String| LoadError::NotElf { path: path.to_owned(), what };
    if data.get(..4) != Some(&elf::ELFMAG) {
        return Err(not_elf("it does not begin with the ELF magic number".to_owned()));
    }
    match data.get(4..6) {
        Some(&[elf::ELFCLASS64, elf::ELFDATA2LSB]) => {}
        Some(_) => return Err(not_elf("its class is not 64-bit little endian".to_owned())),
        None => return Err(not_elf("it is cut short".to_owned())),
    }
    let broken = |error: object::read::Error| not_elf(format!("broken: {error}"));
    let header = FileHeader64::<Endianness>::parse(data).map_err(broken)?;
    let endian = header.endian().map_err(broken)?;
    let machine = header.e_machine(endian);
    if machine != MACHINE.0 {
        return Err(LoadError::WrongMachine {
            path: path.to_owned(),
            found: machine_name(machine),
            expected: MACHINE.1,
        });
    }
    if header.e_type(endian) != elf::ET_DYN {
        return Err(not_elf("it is a program or an object file".to_owned()));
    }
    let no_symbol = || LoadError::NoSymbol { path: path.to_owned() };
    let sections = header.sections(endian, data).map_err(broken)?;
    let symbols = sections.symbols(endian, data, elf::SHT_DYNSYM).map_err(broken)?;
    let symbol = symbols
        .iter()
        .find(|symbol| {
            let name = symbols.symbol_name(endian, *symbol);
            name.is_ok_and(|name| name == SYMBOL.as_bytes()) && !symbol.is_undefined(endian)
        })
        .ok_or_else(no_symbol)?;
    let address = symbol.st_value(endian);
    let section = symbol.st_shndx(endian);
    // A descriptor that was declared without `const` and initialised with zeros is in .bss.
    if let Ok(section) = sections.section(object::SectionIndex(section.into()))
        && section.sh_type(endian) == elf::SHT_NOBITS
    {
        let source = DescriptorError::Magic { found: 0 };
        return Err(LoadError::Descriptor { path: path.to_owned(), source });
    }
    let segments = header.program_headers(endian, data).map_err(broken)?;
    segments
        .iter()
        .filter(|segment| segment.p_type(endian) == elf::PT_LOAD)
        .find_map(|segment| {
            let offset = address.checked_sub(segment.p_vaddr(endian))?;
            let bytes = segment.data(endian, data).ok()?;
            bytes.get(usize::try_from(offset).ok()?..)
        })
        .filter(|bytes| !bytes.is_empty())
        .ok_or_else(|| not_elf(format!("{SYMBOL} is at {address:#x}, in no loaded part of it")))
}

#[cfg(test)]
#[path = "elf_test.rs"]
mod tests;
