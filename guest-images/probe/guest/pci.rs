//! PCI configuration space of bus 0, by ports 0xCF8 and 0xCFC.

use crate::gate;

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;

const ID: u8 = 0x00;
const COMMAND: u8 = 0x04;
const BAR0: u8 = 0x10;
const CAPABILITIES: u8 = 0x34;
const MSIX: u32 = 0x11;

const MEMORY: u32 = 1 << 1;
const BUS_MASTER: u32 = 1 << 2;
const INTX_OFF: u32 = 1 << 10;
const MSIX_ENABLE: u32 = 1 << 31;
const MSIX_MASK_ALL: u32 = 1 << 30;

/// A function on bus 0.
#[derive(Clone, Copy)]
pub struct Function {
    device: u8,
}

/// Functions with this vendor and device number, in the order of their slots.
pub fn find(vendor: u16, device: u16) -> impl Iterator<Item = Function> {
    let id = u32::from(device) << 16 | u32::from(vendor);
    (0..32).map(|device| Function { device }).filter(move |function| function.read(ID) == id)
}

impl Function {
    fn select(self, register: u8) {
        let device = u32::from(self.device) << 11;
        gate::out32(ADDRESS, 1 << 31 | device | u32::from(register & 0xfc));
    }

    fn read(self, register: u8) -> u32 {
        self.select(register);
        gate::in32(DATA)
    }

    fn write(self, register: u8, value: u32) {
        self.select(register);
        gate::out32(DATA, value);
    }

    /// Its slot on bus 0.
    pub fn slot(self) -> u8 {
        self.device
    }

    /// Base address of memory BAR `n`, as the machine or `move_bar0` has set it.
    pub fn bar(self, n: u8) -> Option<u64> {
        if n > 5 {
            return None;
        }
        let low = self.read(BAR0 + 4 * n);
        let high = if low & 6 == 4 && n < 5 { self.read(BAR0 + 4 * n + 4) } else { 0 };
        let base = u64::from(high) << 32 | u64::from(low & !0xf);
        (low & 1 == 0 && base != 0).then_some(base)
    }

    /// Memory decoding and bus mastering on, the interrupt pin off.
    pub fn enable(self) {
        // The upper half is the status register, whose bits are cleared by writing ones.
        let command = self.read(COMMAND) & 0xffff;
        self.write(COMMAND, command | MEMORY | BUS_MASTER | INTX_OFF);
    }

    /// Moves BAR 0 as a driver must: decoding is off in between. Returns what it reads as then.
    pub fn move_bar0(self, to: u32) -> u32 {
        let command = self.read(COMMAND) & 0xffff;
        self.write(COMMAND, command & !MEMORY);
        self.write(BAR0, to);
        self.write(COMMAND, command);
        self.read(BAR0) & !0xf
    }

    /// Where its MSI-X capability is.
    pub fn msix(self) -> Option<Msix> {
        let mut at = self.read(CAPABILITIES) & 0xfc;
        // A list that does not end would loop: there is room for 48.
        for _ in 0..48 {
            let place = u8::try_from(at).ok().filter(|at| *at >= 0x40)?;
            let header = self.read(place);
            if header & 0xff == MSIX {
                let table = self.read(place + 4);
                let base = self.bar((table & 7) as u8)? + u64::from(table & !7);
                let entries = (header >> 16 & 0x7ff) + 1;
                return Some(Msix { function: self, place, table: base, entries });
            }
            at = header >> 8 & 0xfc;
        }
        None
    }
}

/// A function's MSI-X capability and table.
#[derive(Clone, Copy)]
pub struct Msix {
    function: Function,
    place: u8,
    table: u64,
    entries: u32,
}

impl Msix {
    /// Sends table entry `entry` to `vector` of the processor with APIC id `to`. Memory decoding
    /// is on. `false` if there is no such entry.
    pub fn route(self, entry: u32, vector: u8, to: u32) -> bool {
        if entry >= self.entries {
            return false;
        }
        let words = [0xfee0_0000 | to << 12, 0, u32::from(vector), 0];
        for (n, word) in words.into_iter().enumerate() {
            let at = self.table + u64::from(entry) * 16 + 4 * n as u64;
            // SAFETY: inside the function's MSI-X table; an aligned 32-bit access.
            unsafe { (at as *mut u32).write_volatile(word) };
        }
        true
    }

    /// On, and nothing masked as a whole.
    pub fn enable(self) {
        let header = self.function.read(self.place);
        self.function.write(self.place, header & !MSIX_MASK_ALL | MSIX_ENABLE);
    }
}
