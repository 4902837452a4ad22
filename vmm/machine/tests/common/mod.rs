//! Small guests made by hand, and machines to run them.
//!
//! The guests run in 32-bit protected mode without paging, as PVH starts them, at [`BASE`].
#![allow(dead_code, reason = "each test file uses a part of this")]

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use drogher_iommu_types::{Gpa, Oa};
use drogher_machine::boot::Kernel;
use drogher_machine::caps::Caps;
use drogher_machine::console::ConsoleConfig;
use drogher_machine::machine::{Machine, MachineConfig};
use drogher_machine::memory::GuestRam;
use drogher_machine::vm::open_kvm;
use vm_device::bus::{MmioAddress, MmioAddressOffset, PioAddress, PioAddressOffset};
use vm_device::{DeviceMmio, DevicePio};

/// Where guests are loaded.
pub const BASE: u32 = 0x10_0000;
/// Port of the test device.
pub const PORT: u16 = 0x500;
/// Far beyond anything that a healthy machine needs, however busy the host.
pub const LONG: Duration = Duration::from_secs(60);

/// True if there is no KVM to test with; says so on standard error, past the test runner's
/// capture: a skipped test must be seen.
pub fn skipped(test: &str) -> bool {
    let absent = open_kvm().err();
    if let Some(why) = &absent {
        say_skipped(test, &format!("no usable /dev/kvm: {why}"));
    }
    absent.is_some()
}

/// One line that no capture swallows.
pub fn say_skipped(test: &str, why: &str) {
    // Whoever has closed standard error does not want to know.
    let _ = std::io::stderr().lock().write_all(format!("SKIPPED: {test}: {why}\n").as_bytes());
}

/// A PVH ELF of one segment: `code` at [`BASE`], entered at its first byte.
pub fn elf(code: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [4u32, 4, 18] {
        note.extend_from_slice(&word.to_le_bytes());
    }
    note.extend_from_slice(b"Xen\0");
    note.extend_from_slice(&BASE.to_le_bytes());
    let (header, each) = (64u64, 56u64);
    let note_at = header + 2 * each;
    let code_at = 0x1000u64;
    let mut elf = Vec::new();
    elf.extend_from_slice(b"\x7FELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    for half in [2u16, 62] {
        elf.extend_from_slice(&half.to_le_bytes());
    }
    elf.extend_from_slice(&1u32.to_le_bytes());
    for quad in [u64::from(BASE), header, 0] {
        elf.extend_from_slice(&quad.to_le_bytes());
    }
    elf.extend_from_slice(&0u32.to_le_bytes());
    for half in [64u16, 56, 2, 0, 0, 0] {
        elf.extend_from_slice(&half.to_le_bytes());
    }
    let mut phdr = |kind: u32, at: u64, address: u64, size: u64| {
        for word in [kind, 7] {
            elf.extend_from_slice(&word.to_le_bytes());
        }
        for quad in [at, address, address, size, size, 4] {
            elf.extend_from_slice(&quad.to_le_bytes());
        }
    };
    phdr(1, code_at, BASE.into(), code.len() as u64);
    phdr(4, note_at, 0, note.len() as u64);
    elf.extend_from_slice(&note);
    elf.resize(code_at as usize, 0);
    elf.extend_from_slice(code);
    elf
}

/// The few instructions that the guests are made of.
pub mod asm {
    pub fn mov_eax(value: u32) -> Vec<u8> {
        [&[0xB8], &value.to_le_bytes()[..]].concat()
    }
    pub fn mov_ebx(value: u32) -> Vec<u8> {
        [&[0xBB], &value.to_le_bytes()[..]].concat()
    }
    pub fn mov_edx(value: u32) -> Vec<u8> {
        [&[0xBA], &value.to_le_bytes()[..]].concat()
    }
    /// `out dx, al`
    pub const OUT_AL: &[u8] = &[0xEE];
    /// `out dx, ax`
    pub const OUT_AX: &[u8] = &[0x66, 0xEF];
    /// `out dx, eax`
    pub const OUT_EAX: &[u8] = &[0xEF];
    /// `in eax, dx`
    pub const IN_EAX: &[u8] = &[0xED];
    /// `jmp` to itself
    pub const SPIN: &[u8] = &[0xEB, 0xFE];
    /// `cli; hlt; jmp` back
    pub const HALT: &[u8] = &[0xFA, 0xF4, 0xEB, 0xFC];
    /// Turns the machine off.
    pub fn power_off() -> Vec<u8> {
        [mov_edx(0x604), mov_eax(0x2000), OUT_AX.to_vec(), SPIN.to_vec()].concat()
    }
    /// Writes text to COM1.
    pub fn print(text: &str) -> Vec<u8> {
        let mut code = mov_edx(0x3F8);
        for byte in text.bytes() {
            code.extend_from_slice(&[0xB0, byte]);
            code.extend_from_slice(OUT_AL);
        }
        code
    }
}

/// What a running vCPU holds; counts how many are held.
pub struct Permit(Arc<AtomicUsize>);

/// Counts the permits that are out.
#[derive(Clone, Default)]
pub struct Permits(Arc<AtomicUsize>);

impl Permits {
    pub fn give(&self, count: u8) -> Vec<Permit> {
        (0..count)
            .map(|_| {
                self.0.fetch_add(1, Ordering::SeqCst);
                Permit(Arc::clone(&self.0))
            })
            .collect()
    }

    pub fn out(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The guest's serial output, collected by a thread.
pub struct Console {
    lines: Receiver<u8>,
    text: String,
}

impl Console {
    pub fn pipe() -> (Self, ConsoleConfig) {
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            let mut byte = [0];
            while matches!(reader.read(&mut byte), Ok(1)) && sender.send(byte[0]).is_ok() {}
        });
        let output = OwnedFd::from(writer);
        (Self { lines, text: String::new() }, ConsoleConfig::Fds { input: None, output })
    }

    /// Everything printed so far, once it contains `needle`; panics after [`LONG`].
    pub fn wait_for(&mut self, needle: &str) -> &str {
        let until = Instant::now() + LONG;
        while !self.text.contains(needle) {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(byte) => self.text.push(char::from(byte)),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("no {needle:?} on the console, only {:?}", self.text)
                }
            }
        }
        &self.text
    }
}

/// One vCPU, 16 MiB, the guest loaded; the console's output if `console`.
pub fn machine(code: &[u8], console: ConsoleConfig) -> Machine {
    limited(code, console, |_| {})
}

/// The same on a KVM that has less.
pub fn limited(code: &[u8], console: ConsoleConfig, limit: fn(&mut Caps)) -> Machine {
    let mut config = MachineConfig::new(16 << 20, 1);
    config.console = console;
    let machine = Machine::create_limited(config, limit).expect("a machine");
    machine
        .load_kernel(&Kernel { name: "test", image: &elf(code), cmdline: "", initrd: None })
        .expect("the kernel loads");
    machine.unpark_io().expect("I/O goes on");
    machine
}

/// A machine like [`machine`]'s over RAM that another one has used, nothing loaded.
pub fn over(ram: &Arc<GuestRam>, cpus: u8, console: ConsoleConfig) -> Machine {
    limited_over(ram, cpus, console, |_| {})
}

/// The same on a KVM that has less.
pub fn limited_over(
    ram: &Arc<GuestRam>,
    cpus: u8,
    console: ConsoleConfig,
    limit: fn(&mut Caps),
) -> Machine {
    let mut config = MachineConfig::new(ram.bytes(), cpus);
    config.console = console;
    config.ram = Some(Arc::clone(ram));
    Machine::create_limited(config, limit).expect("a second machine")
}

/// The u32 at a GPA below 3 GiB.
pub fn peek(ram: &GuestRam, gpa: u32) -> u32 {
    let mut bytes = [0; 4];
    let oa = ram.oa(Gpa(gpa.into()), 4).unwrap_or(Oa(u64::MAX));
    ram.read_at(oa, &mut bytes).expect("inside RAM");
    u32::from_le_bytes(bytes)
}

/// Waits until `done`; panics after [`LONG`].
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < end, "waited {LONG:?} for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A device at [`PORT`]: counts what is read, keeps what is written, and calls a function at
/// each access first.
pub struct TestPort {
    reads: Mutex<u32>,
    writes: Mutex<Vec<u32>>,
    changed: Condvar,
    on_read: Box<dyn Fn(u32) + Send + Sync>,
}

impl TestPort {
    /// `on_read` is called on the vCPU's thread before the read with that number is answered.
    pub fn new(on_read: impl Fn(u32) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            reads: Mutex::new(0),
            writes: Mutex::new(Vec::new()),
            changed: Condvar::new(),
            on_read: Box::new(on_read),
        })
    }

    pub fn writes(&self) -> Vec<u32> {
        self.writes.lock().expect("not poisoned").clone()
    }

    pub fn reads(&self) -> u32 {
        *self.reads.lock().expect("not poisoned")
    }

    /// Waits until `count` values have been written.
    pub fn wait_writes(&self, count: usize) -> Vec<u32> {
        let guard = self.writes.lock().expect("not poisoned");
        let (guard, result) = self
            .changed
            .wait_timeout_while(guard, LONG, |writes| writes.len() < count)
            .expect("not poisoned");
        assert!(!result.timed_out(), "the guest wrote only {:?}", *guard);
        guard.clone()
    }
}

impl TestPort {
    fn read(&self, data: &mut [u8]) {
        let number = {
            let mut reads = self.reads.lock().expect("not poisoned");
            *reads += 1;
            *reads
        };
        (self.on_read)(number);
        for (slot, byte) in data.iter_mut().zip(number.to_le_bytes()) {
            *slot = byte;
        }
    }

    fn write(&self, data: &[u8]) {
        let mut word = [0; 4];
        word.iter_mut().zip(data).for_each(|(slot, &byte)| *slot = byte);
        self.writes.lock().expect("not poisoned").push(u32::from_le_bytes(word));
        self.changed.notify_all();
    }
}

impl DevicePio for TestPort {
    fn pio_read(&self, _base: PioAddress, _offset: PioAddressOffset, data: &mut [u8]) {
        self.read(data);
    }

    fn pio_write(&self, _base: PioAddress, _offset: PioAddressOffset, data: &[u8]) {
        self.write(data);
    }
}

impl DeviceMmio for TestPort {
    fn mmio_read(&self, _base: MmioAddress, _offset: MmioAddressOffset, data: &mut [u8]) {
        self.read(data);
    }

    fn mmio_write(&self, _base: MmioAddress, _offset: MmioAddressOffset, data: &[u8]) {
        self.write(data);
    }
}
