//! The ndma device's registers and ring, by its datasheet.

use core::sync::atomic::{Ordering, fence};

use crate::clock;
use crate::pci::{Function, Msix};

pub const VENDOR: u16 = 0xd70e;
pub const DEVICE: u16 = 0x0001;
/// Descriptors in the ring; a batch is at most half of it.
pub const RING_ENTRIES: usize = 128;
pub const DESCRIPTOR_BYTES: usize = 64;

const ID_VALUE: u32 = 0x414d_444e;

const ID: u64 = 0x000;
const CONTROL: u64 = 0x008;
const STATUS: u64 = 0x00c;
const ERROR: u64 = 0x010;
const ENTRIES: u64 = 0x014;
const RING_BASE: u64 = 0x018;
const NEXT: u64 = 0x020;
const COMPLETED: u64 = 0x028;
const SCRATCH_BYTES: u64 = 0x038;
const DOORBELL: u64 = 0x800;

const ENABLE: u32 = 1;
const RESET: u32 = 2;
const IRQ_ENABLE: u32 = 4;
const STATUS_BUSY: u32 = 2;
const OWN: u64 = 1 << 16;
const IRQ: u64 = 1 << 17;

/// A descriptor; qword 0 is opcode, flags and status.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Descriptor {
    head: u64,
    src: u64,
    dst: u64,
    len: u64,
    arg: u64,
    /// What the device must answer: kept by the guest, 0 when posted.
    pub result: u64,
    cookie: u64,
    reserved: u64,
}

impl Descriptor {
    pub fn new(src: u64, dst: u64, len: u64, arg: u64, cookie: u64) -> Self {
        Self { src, dst, len, arg, cookie, ..Self::default() }
    }
}

/// What a finished descriptor's first qword must be: the opcode, the flags without OWN, "ok".
fn finished(opcode: u16, last: bool) -> u64 {
    u64::from(opcode) | if last { IRQ } else { 0 } | 1 << 32
}

pub struct Ndma {
    pub function: Function,
    pub msix: Msix,
    registers: u64,
    ring: u64,
    /// Ring index of the next descriptor to post.
    next: usize,
    /// Posted since the device was last reset.
    posted: u64,
}

impl Ndma {
    /// Finds the device's parts. Its memory decoding is switched on.
    pub fn open(function: Function, ring: u64) -> Result<Self, &'static str> {
        let registers = function.bar(0).ok_or("no-bar0")?;
        let msix = function.msix().ok_or("no-msix")?;
        function.enable();
        let device = Self { function, msix, registers, ring, next: 0, posted: 0 };
        if device.read(ID) == ID_VALUE { Ok(device) } else { Err("wrong-id") }
    }

    fn read(&self, register: u64) -> u32 {
        // SAFETY: a register of the device's BAR, mapped; an aligned 32-bit access.
        unsafe { ((self.registers + register) as *const u32).read_volatile() }
    }

    fn read64(&self, register: u64) -> u64 {
        // SAFETY: as `read`; the datasheet allows 64 bits in one access.
        unsafe { ((self.registers + register) as *const u64).read_volatile() }
    }

    fn write(&self, register: u64, value: u32) {
        // SAFETY: as `read`. DMA that this begins goes to memory set aside for it.
        unsafe { ((self.registers + register) as *mut u32).write_volatile(value) }
    }

    /// Resets the device and starts it on an empty ring. It writes nothing older after this.
    pub fn reset(&mut self, hz: u64) -> Result<(), &'static str> {
        self.write(CONTROL, RESET);
        let begin = clock::now();
        while self.read(CONTROL) & RESET != 0 || self.read(STATUS) & STATUS_BUSY != 0 {
            if clock::now().saturating_sub(begin) > 5 * hz {
                return Err("reset-does-not-end");
            }
        }
        (self.next, self.posted) = (0, 0);
        for n in 0..RING_ENTRIES {
            // SAFETY: the ring, which an idle device does not touch.
            unsafe { self.descriptor(n).write_volatile(Descriptor::default()) };
        }
        self.write(ENTRIES, RING_ENTRIES as u32);
        self.write(RING_BASE, self.ring as u32);
        self.write(RING_BASE + 4, (self.ring >> 32) as u32);
        self.write(CONTROL, ENABLE | IRQ_ENABLE);
        Ok(())
    }

    /// Bytes of the device's own memory.
    pub fn scratch_bytes(&self) -> u64 {
        self.read64(SCRATCH_BYTES)
    }

    fn descriptor(&self, index: usize) -> *mut Descriptor {
        (self.ring as *mut Descriptor).wrapping_add(index % RING_ENTRIES)
    }

    /// Gives the device one descriptor; the last of a batch asks for an interrupt. Returns the
    /// ring index.
    pub fn post(&mut self, opcode: u16, last: bool, mut descriptor: Descriptor) -> usize {
        let index = self.next;
        let place = self.descriptor(index);
        descriptor.head = 0;
        // SAFETY: the guest owns this descriptor until OWN is set, which is written last, whole.
        unsafe {
            place.write_volatile(descriptor);
            fence(Ordering::Release);
            let head = u64::from(opcode) | OWN | if last { IRQ } else { 0 };
            (&raw mut (*place).head).write_volatile(head);
        }
        self.next = (index + 1) % RING_ENTRIES;
        self.posted += 1;
        index
    }

    /// "Look at the ring."
    pub fn ring_doorbell(&self) {
        fence(Ordering::Release);
        self.write(DOORBELL, 1);
    }

    /// Whether the device has given back descriptor `index`.
    pub fn is_done(&self, index: usize) -> bool {
        // SAFETY: an aligned word of the ring, which the device writes whole.
        let head = unsafe { (&raw const (*self.descriptor(index)).head).read_volatile() };
        fence(Ordering::Acquire);
        head & OWN == 0
    }

    /// Compares a finished descriptor with what was posted and what its result must be. Names
    /// the first field that differs, what it should be, and what it is.
    pub fn compare(
        &self,
        index: usize,
        (opcode, last): (u16, bool),
        posted: &Descriptor,
    ) -> Result<(), (&'static str, u64, u64)> {
        // SAFETY: the device is done with it.
        let got = unsafe { self.descriptor(index).read_volatile() };
        let fields = [
            ("head", finished(opcode, last), got.head),
            ("result", posted.result, got.result),
            ("cookie", posted.cookie, got.cookie),
            ("src", posted.src, got.src),
            ("dst", posted.dst, got.dst),
            ("len", posted.len, got.len),
            ("arg", posted.arg, got.arg),
            ("reserved", 0, got.reserved),
        ];
        fields.into_iter().find(|(_, want, got)| want != got).map_or(Ok(()), Err)
    }

    /// Compares the registers with what they must hold while no descriptor is in flight.
    pub fn check_registers(&self) -> Result<(), (&'static str, u64, u64)> {
        let fields = [
            ("control", u64::from(ENABLE | IRQ_ENABLE), u64::from(self.read(CONTROL))),
            ("error", 0, u64::from(self.read(ERROR))),
            ("ring_entries", RING_ENTRIES as u64, u64::from(self.read(ENTRIES))),
            ("ring_base", self.ring, self.read64(RING_BASE)),
            ("next", self.next as u64, u64::from(self.read(NEXT))),
            ("completed", self.posted, self.read64(COMPLETED)),
        ];
        fields.into_iter().find(|(_, want, got)| want != got).map_or(Ok(()), Err)
    }

    /// STATUS and ERROR, for a FAIL line.
    pub fn condition(&self) -> (u32, u32) {
        (self.read(STATUS), self.read(ERROR))
    }

    /// Moves the register window. The device may be in the middle of anything.
    pub fn move_bar(&mut self, to: u32) -> Result<(), &'static str> {
        if self.function.move_bar0(to) != to {
            return Err("bar0-does-not-move");
        }
        self.registers = u64::from(to);
        if self.read(ID) == ID_VALUE { Ok(()) } else { Err("not-at-new-bar0") }
    }
}
