//! An ndma device for tests: it works inside the doorbell's exit, and can do one thing wrong.

use kvm_bindings::kvm_msi;
use kvm_ioctls::VmFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const SLOT: u32 = 3;
const BAR0: u32 = 0xe000_0000;
const BAR4: u32 = 0xe010_0000;
const SCRATCH: usize = 64 << 10;

/// What the device does wrong, from its hundredth descriptor on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Writes one byte more than asked.
    Overrun,
    /// Leaves out the last byte.
    ShortWrite,
    /// Gives a wrong result.
    WrongResult,
    /// Sends no interrupt from then on.
    LostInterrupt,
    /// Takes no descriptor from then on.
    Stuck,
    /// Sends an interrupt when COMPLETED is read.
    ExtraInterrupt,
    /// Sends an error interrupt.
    Error,
    /// Reports a descriptor more than it did in COMPLETED.
    WrongCount,
}

/// The device, its configuration space and its MSI-X table.
pub struct Ndma {
    fault: Fault,
    address: u32,
    config: [u32; 64],
    table: [u32; 8],
    control: u32,
    entries: u32,
    ring: u64,
    next: u32,
    completed: u64,
    seen: u64,
    scratch: Vec<u8>,
}

impl Ndma {
    pub fn new(fault: Fault) -> Self {
        let mut config = [0; 64];
        config[0] = 0x0001_d70e;
        config[2] = 0x0801_0001;
        config[4] = BAR0;
        config[8] = BAR4;
        config[0x34 / 4] = 0x40;
        config[0x40 / 4] = 0x0001_0011;
        config[0x44 / 4] = 4;
        config[0x48 / 4] = 4 | 0x800;
        let (address, control, entries, ring, next) = (0, 0, 0, 0, 0);
        let (table, scratch) = ([0, 0, 0, 1, 0, 0, 0, 1], vec![0; SCRATCH]);
        let (completed, seen) = (0, 0);
        Self {
            fault,
            address,
            config,
            table,
            control,
            entries,
            ring,
            next,
            completed,
            seen,
            scratch,
        }
    }

    fn register(&mut self) -> Option<&mut u32> {
        let ours = self.address & 0x80ff_ff00 == 0x8000_0000 | SLOT << 11;
        ours.then(|| &mut self.config[usize::try_from(self.address & 0xff).unwrap_or(0) / 4])
    }

    pub fn config_read(&mut self, data: &mut [u8]) {
        let value = self.register().map_or(u32::MAX, |register| *register);
        data.copy_from_slice(&value.to_le_bytes()[..data.len()]);
    }

    pub fn config_write(&mut self, port: u16, data: &[u8]) {
        let value = u32::from_le_bytes(data.try_into().expect("The probe writes 32 bits"));
        if port == 0xcf8 {
            self.address = value;
            return;
        }
        let mask = match self.address & 0xff {
            0x04 => 0x0000_0406,
            0x10 => 0xffff_f000,
            0x40 => 0xc000_0000,
            _ => 0,
        };
        if let Some(register) = self.register() {
            *register = *register & !mask | value & mask;
        }
    }

    /// Offset in a BAR, while memory decoding is on.
    fn offset(&self, at: u64, bar: usize) -> Option<u64> {
        let decoding = self.config[1] & 2 != 0;
        at.checked_sub(u64::from(self.config[bar])).filter(|offset| decoding && *offset < 4096)
    }

    pub fn read(&mut self, at: u64, data: &mut [u8], vm: &VmFd) {
        data.fill(0xff);
        let Some(offset) = self.offset(at, 4) else { return };
        let wrong = self.fault == Fault::WrongCount && self.completed >= 100;
        if offset == 0x28 && self.fault == Fault::ExtraInterrupt && self.seen >= 100 {
            self.fault = Fault::None;
            self.interrupt(0, vm);
        }
        let value = match offset {
            0x00 => 0x414d_444e,
            0x04 => 1,
            0x08 => u64::from(self.control),
            0x0c => u64::from(self.control & 1),
            0x14 => u64::from(self.entries),
            0x18 => self.ring,
            0x20 => u64::from(self.next),
            0x28 => self.completed + u64::from(wrong),
            0x38 => SCRATCH as u64,
            _ => 0,
        };
        data.copy_from_slice(&value.to_le_bytes()[..data.len()]);
    }

    pub fn write(&mut self, at: u64, data: &[u8], memory: &GuestMemoryMmap, vm: &VmFd) {
        let Ok(data) = data.try_into() else { return };
        let value = u32::from_le_bytes(data);
        if let Some(offset) = self.offset(at, 8) {
            if let Some(word) = usize::try_from(offset / 4).ok().and_then(|n| self.table.get_mut(n))
            {
                *word = value;
            }
            return;
        }
        let Some(offset) = self.offset(at, 4) else { return };
        match offset {
            0x08 if value & 2 != 0 => {
                (self.control, self.next, self.completed) = (0, 0, 0);
                self.scratch.fill(0xab);
            }
            0x08 => self.control = value,
            0x14 => self.entries = value,
            0x18 => self.ring = self.ring & !0xffff_ffff | u64::from(value),
            0x1c => self.ring = self.ring & 0xffff_ffff | u64::from(value) << 32,
            0x800 => self.work(memory, vm),
            _ => {}
        }
    }

    fn interrupt(&self, vector: usize, vm: &VmFd) {
        let entry = &self.table[4 * vector..];
        if self.config[0x10] >> 31 != 0 && entry[3] & 1 == 0 {
            let (address_lo, address_hi, data) = (entry[0], entry[1], entry[2]);
            let msi = kvm_msi { address_lo, address_hi, data, ..kvm_msi::default() };
            vm.signal_msi(msi).expect("KVM takes the MSI");
        }
    }

    fn work(&mut self, memory: &GuestMemoryMmap, vm: &VmFd) {
        let bus_master = self.config[1] & 4 != 0;
        while bus_master && self.control & 1 != 0 {
            let at = GuestAddress(self.ring + 64 * u64::from(self.next));
            let mut words: [u64; 8] = memory.read_obj(at).expect("The ring is in RAM");
            if words[0] & 1 << 16 == 0 {
                break;
            }
            self.seen += 1;
            let wrong = |fault| self.fault == fault && self.seen >= 100;
            if wrong(Fault::Stuck) {
                break;
            }
            let now = self.seen == 100;
            let lost = wrong(Fault::LostInterrupt);
            let (error, result) = (now && wrong(Fault::Error), now && wrong(Fault::WrongResult));
            words[5] = self.execute(&words, memory) ^ u64::from(result);
            words[0] = words[0] & !(1 << 16) | 1 << 32;
            memory.write_obj(words, at).expect("The ring is in RAM");
            self.completed += 1;
            self.next = (self.next + 1) % self.entries;
            if words[0] & 1 << 17 != 0 && self.control & 4 != 0 && !lost {
                self.interrupt(0, vm);
            }
            if error {
                self.interrupt(1, vm);
            }
        }
    }

    /// Does one descriptor and returns its result.
    fn execute(&mut self, words: &[u64; 8], memory: &GuestMemoryMmap) -> u64 {
        let [head, src, dst, len, arg, ..] = *words;
        let (opcode, size) = (head & 0xffff, usize::try_from(len).expect("64 bits"));
        let get = |from, size| {
            let mut bytes = vec![0; size];
            memory.read_slice(&mut bytes, GuestAddress(from)).expect("The source is in RAM");
            bytes
        };
        let put = |mut bytes: Vec<u8>, to| {
            // Of the faults on data, the first write from the hundredth descriptor on is hit.
            match self.fault {
                Fault::Overrun if self.seen >= 100 => bytes.push(0x5a),
                Fault::ShortWrite if self.seen >= 100 => drop(bytes.pop()),
                _ => {}
            }
            memory.write_slice(&bytes, GuestAddress(to)).expect("The target is in RAM");
        };
        let own = |at: u64| usize::try_from(at).expect("64 bits");
        match opcode {
            1 => put(get(src, size), dst),
            2 => put(arg.to_le_bytes().into_iter().cycle().take(size).collect(), dst),
            3 => return drogher_probe::logic::checksum::checksum(&get(src, size)),
            4 => {
                let mut from = src;
                for n in 0..arg {
                    let entry = GuestAddress(dst + 16 * n);
                    let [to, piece]: [u64; 2] = memory.read_obj(entry).expect("The list is in RAM");
                    put(get(from, own(piece)), to);
                    from += piece;
                }
                assert_eq!(from - src, len, "A scatter's list adds up");
            }
            5 => self.scratch[own(dst)..][..size].copy_from_slice(&get(src, size)),
            6 => put(self.scratch[own(src)..][..size].to_vec(), dst),
            other => panic!("The probe posts opcode {other}"),
        }
        len
    }
}
