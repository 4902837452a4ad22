//! What the loader left: the command line and the memory map, copied before anything is written
//! below 1 MiB, where both of them lie.

use core::cell::UnsafeCell;

const MAGIC: u32 = 0x336e_c578;
const LINE_MAX: usize = 2048;
const REGIONS_MAX: usize = 16;
const RAM: u32 = 1;

unsafe extern "C" {
    static start_info: u64;
}

/// `struct hvm_start_info`, version 1.
#[repr(C)]
#[derive(Clone, Copy)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    module_count: u32,
    modules: u64,
    command_line: u64,
    rsdp: u64,
    map: u64,
    map_entries: u32,
    reserved: u32,
}

/// `struct hvm_memmap_table_entry`.
#[repr(C)]
#[derive(Clone, Copy)]
struct MapEntry {
    base: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

/// RAM, as half-open ranges of addresses.
pub type Regions = [(u64, u64); REGIONS_MAX];

pub struct Boot {
    pub command_line: &'static str,
    pub memory: Regions,
}

struct LineBuffer(UnsafeCell<[u8; LINE_MAX]>);

// SAFETY: `read` alone writes it, once, on the first processor before others run.
unsafe impl Sync for LineBuffer {}

static LINE: LineBuffer = LineBuffer(UnsafeCell::new([0; LINE_MAX]));

/// Reads all of it. Called once.
pub fn read() -> Result<Boot, &'static str> {
    // SAFETY: set by the entry code; the identity mapping has all addresses below 8 GiB, and a
    // loader that passes others gets the fault reported.
    let info = unsafe { (start_info as *const StartInfo).read_unaligned() };
    if info.magic != MAGIC {
        return Err("magic");
    }
    if info.version < 1 || info.map == 0 {
        return Err("no-memory-map");
    }
    let mut memory = [(0, 0); REGIONS_MAX];
    let mut places = memory.iter_mut();
    for n in 0..info.map_entries as usize {
        // SAFETY: as above.
        let entry = unsafe { (info.map as *const MapEntry).add(n).read_unaligned() };
        if entry.kind == RAM {
            let Some(place) = places.next() else { break };
            *place = (entry.base, entry.base.saturating_add(entry.size));
        }
    }
    Ok(Boot { command_line: copy_line(info.command_line)?, memory })
}

fn copy_line(from: u64) -> Result<&'static str, &'static str> {
    if from == 0 {
        return Ok("");
    }
    // SAFETY: nobody else has the buffer: called once.
    let buffer = unsafe { &mut *LINE.0.get() };
    let mut used = 0;
    for (n, place) in buffer.iter_mut().enumerate() {
        // SAFETY: as in `read`; the loader ends the line with a zero.
        let byte = unsafe { (from as *const u8).add(n).read() };
        if byte == 0 {
            return str::from_utf8(&buffer[..used]).map_err(|_| "command-line-not-utf8");
        }
        (*place, used) = (byte, n + 1);
    }
    Err("command-line-too-long")
}
