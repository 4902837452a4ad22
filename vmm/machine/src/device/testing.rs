//! A machine without KVM.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use drogher_iommu::{Gpa, HeapMemory, Oa};
use vm_device::{DeviceMmio, DevicePio};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::error::DeviceError;
pub use super::fake::{ALL, BELL, Can, Fake, LETTERS, letter_sum};
use super::fake::{lock, makers};
use super::life::Permit;
use super::set::DeviceSet;
use crate::io_thread::{IoHandle, IoThread};
use crate::memory::GuestRam;
use crate::tracking::{RamMap, Spaces};
use crate::wiring::{DoorbellAt, MsiLine, MsiMessage, Wiring, WiringError};

/// RAM that devices can reach.
pub const RAM: u64 = 4 << 20;
/// Long enough for any thread to get its turn.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `done` says so.
pub fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < until, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

struct Line {
    fd: EventFd,
    attached: bool,
    route: Option<MsiMessage>,
}

#[derive(Default)]
struct Wires {
    doorbells: BTreeMap<(u64, u32), EventFd>,
    /// Doorbells ever bound, in order.
    bound: Vec<u64>,
    lines: BTreeMap<u32, Line>,
    delivered: Vec<u32>,
    swallowed: usize,
}

impl Wires {
    /// What KVM does at once when an irqfd is written to.
    fn deliver(&mut self) {
        for line in self.lines.values_mut().filter(|line| line.attached) {
            if line.fd.read().is_ok() {
                match line.route {
                    Some(message) => self.delivered.push(message.data),
                    None => self.swallowed += 1,
                }
            }
        }
    }
}

/// Wiring over plain memory.
pub struct FakeWiring {
    wires: Mutex<Wires>,
    next_gsi: AtomicU32,
    io: IoThread,
    ram: Arc<GuestRam>,
}

impl FakeWiring {
    pub fn new() -> Arc<Self> {
        let io = IoThread::start().expect("a thread");
        io.handle().unpark();
        Arc::new(Self {
            wires: Mutex::default(),
            next_gsi: AtomicU32::new(24),
            io,
            ram: Arc::new(GuestRam::new(RAM).expect("a little RAM")),
        })
    }

    /// A guest's write: rings a doorbell as KVM would, and says whether one is there.
    pub fn ring(&self, address: u64, width: u32) -> bool {
        let wires = lock(&self.wires);
        let bell = wires.doorbells.get(&(address, width));
        bell.map(|fd| fd.write(1).expect("not full")).is_some()
    }

    /// Addresses of the doorbells bound now.
    pub fn doorbells(&self) -> Vec<u64> {
        lock(&self.wires).doorbells.keys().map(|(address, _)| *address).collect()
    }

    /// How often a doorbell was bound.
    pub fn bindings(&self) -> usize {
        lock(&self.wires).bound.len()
    }

    /// Data of the messages delivered since the last call.
    pub fn interrupts(&self) -> Vec<u32> {
        let mut wires = lock(&self.wires);
        wires.deliver();
        assert_eq!(wires.swallowed, 0, "an interrupt went into an unrouted irqfd");
        std::mem::take(&mut wires.delivered)
    }

    /// Interrupt lines in use.
    pub fn lines(&self) -> usize {
        lock(&self.wires).lines.len()
    }

    pub fn io_thread(&self) -> &IoHandle {
        self.io.handle()
    }
}

fn refused(what: &str) -> WiringError {
    WiringError::Kvm { what: what.into(), source: std::io::ErrorKind::AlreadyExists.into() }
}

impl Wiring for FakeWiring {
    fn register_ioeventfd(&self, at: DoorbellAt, fd: &EventFd) -> Result<(), WiringError> {
        let mut wires = lock(&self.wires);
        if wires.doorbells.contains_key(&(at.address, at.width)) {
            return Err(refused("register"));
        }
        let fd = fd.try_clone().expect("a descriptor");
        wires.doorbells.insert((at.address, at.width), fd);
        wires.bound.push(at.address);
        Ok(())
    }

    fn unregister_ioeventfd(&self, at: DoorbellAt, _fd: &EventFd) -> Result<(), WiringError> {
        let old = lock(&self.wires).doorbells.remove(&(at.address, at.width));
        old.map(drop).ok_or_else(|| refused("unregister"))
    }

    fn new_msi_vector(&self) -> Result<MsiLine, WiringError> {
        let gsi = self.next_gsi.fetch_add(1, Ordering::Relaxed);
        let fd = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).expect("a descriptor");
        let clone = fd.try_clone().expect("a descriptor");
        let line = Line { fd: clone, attached: false, route: None };
        lock(&self.wires).lines.insert(gsi, line);
        Ok(MsiLine { gsi, fd })
    }

    fn set_msi_routes(&self, routes: &[(u32, Option<MsiMessage>)]) -> Result<(), WiringError> {
        let mut wires = lock(&self.wires);
        wires.deliver();
        for (gsi, message) in routes {
            wires.lines.get_mut(gsi).ok_or(WiringError::UnknownGsi(*gsi))?.route = *message;
        }
        Ok(())
    }

    fn attach_msi(&self, line: &MsiLine) -> Result<(), WiringError> {
        let mut wires = lock(&self.wires);
        let line = wires.lines.get_mut(&line.gsi).ok_or(WiringError::UnknownGsi(line.gsi))?;
        assert!(!line.attached, "attached twice");
        line.attached = true;
        wires.deliver();
        Ok(())
    }

    fn detach_msi(&self, line: &MsiLine) -> Result<(), WiringError> {
        let mut wires = lock(&self.wires);
        wires.deliver();
        let line = wires.lines.get_mut(&line.gsi).ok_or(WiringError::UnknownGsi(line.gsi))?;
        line.attached = false;
        Ok(())
    }

    fn remove_msi_vector(&self, line: MsiLine) -> Result<(), WiringError> {
        let old = lock(&self.wires).lines.remove(&line.gsi);
        old.map(drop).ok_or(WiringError::UnknownGsi(line.gsi))
    }

    fn claim_mmio(
        &self,
        _range: Range<u64>,
        _device: Arc<dyn DeviceMmio + Send + Sync>,
    ) -> Result<(), WiringError> {
        Ok(())
    }

    fn move_mmio(&self, _from: u64, _to: u64) -> Result<(), WiringError> {
        Ok(())
    }

    fn release_mmio(&self, _base: u64) -> Result<(), WiringError> {
        Ok(())
    }

    fn claim_pio(
        &self,
        _range: Range<u16>,
        _device: Arc<dyn DevicePio + Send + Sync>,
    ) -> Result<(), WiringError> {
        Ok(())
    }

    fn io(&self) -> &IoHandle {
        self.io.handle()
    }

    fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }
}

/// What a guest's driver does, without a guest.
pub struct Driver<'a>(pub &'a DeviceSet);

impl Driver<'_> {
    pub fn config_read(&self, slot: u32, register: u32) -> u32 {
        self.0.ports().write(0xcf8, &(0x8000_0000 | slot << 11 | register).to_le_bytes());
        let mut data = [0; 4];
        self.0.ports().read(0xcfc, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn config_write(&self, slot: u32, register: u32, value: u32) {
        self.0.ports().write(0xcf8, &(0x8000_0000 | slot << 11 | register).to_le_bytes());
        self.0.ports().write(0xcfc, &value.to_le_bytes());
    }

    /// Base of a BAR.
    pub fn bar(&self, slot: u32, bar: u32) -> u64 {
        u64::from(self.config_read(slot, 0x10 + 4 * bar) & !0xf)
    }

    pub fn read32(&self, address: u64) -> u32 {
        let mut data = [0; 4];
        self.0.mmio().read(address, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write32(&self, address: u64, value: u32) {
        self.0.mmio().write(address, &value.to_le_bytes());
    }

    /// Memory decoding and bus master on, MSI-X on, vector n = message 0x40 + n, unmasked.
    pub fn drive(&self, slot: u32) {
        self.config_write(slot, 4, 0x6);
        self.config_write(slot, 0x40, 0x8000_0000);
        let table = self.bar(slot, 4);
        for vector in 0..2 {
            self.write32(table + 16 * vector, 0xfee0_0000);
            self.write32(table + 16 * vector + 8, 0x40 + vector as u32);
            self.write32(table + 16 * vector + 12, 0);
        }
    }

    /// Masks or unmasks a vector.
    pub fn mask(&self, slot: u32, vector: u64, masked: bool) {
        self.write32(self.bar(slot, 4) + 16 * vector + 12, masked.into());
    }
}

/// A set of fakes, with all that is around it.
pub struct Rig {
    pub set: DeviceSet,
    pub fakes: Vec<Arc<Fake>>,
    pub wiring: Arc<FakeWiring>,
    pub memory: Arc<HeapMemory>,
    pub calls: Arc<Mutex<Vec<String>>>,
    pub spaces: Spaces,
}

/// Address spaces over plain memory of [`RAM`] bytes.
pub fn spaces() -> (Arc<HeapMemory>, Spaces) {
    let memory = Arc::new(HeapMemory::new(RAM));
    let map = RamMap { gpa: Gpa(0)..Gpa(RAM), oa: Oa(0) };
    let spaces = Spaces::new(Arc::clone(&memory) as _, vec![map]).expect("a small domain");
    (memory, spaces)
}

impl Rig {
    pub fn new(devices: &[Can]) -> Self {
        Self::with_keys(devices, &[])
    }

    /// The same, with keys of the VMM, as on the command line, for the first of them.
    pub fn with_keys(devices: &[Can], keys: &[&str]) -> Self {
        Self::try_with_keys(devices, keys).expect("good devices")
    }

    pub fn try_with_keys(devices: &[Can], keys: &[&str]) -> Result<Self, DeviceError> {
        let wiring = FakeWiring::new();
        let (memory, spaces) = spaces();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let fakes = Arc::default();
        let mut makers = makers(devices, &fakes, &calls);
        for (made, text) in makers.iter_mut().zip(keys).filter(|(_, text)| !text.is_empty()) {
            made.0 = format!("x,{text}").parse::<super::DeviceSpec>().expect("good keys").keys;
        }
        let as_wiring: Arc<dyn Wiring> = Arc::clone(&wiring) as _;
        let set = DeviceSet::with_makers(makers, &spaces, &as_wiring)?;
        let fakes = std::mem::take(&mut *lock(&fakes));
        Ok(Self { set, fakes, wiring, memory, calls, spaces })
    }

    /// Real plugins, made by `make` on a new machine.
    pub fn with(
        make: impl FnOnce(&Spaces, &Arc<dyn Wiring>) -> Result<DeviceSet, DeviceError>,
    ) -> Result<Self, DeviceError> {
        let wiring = FakeWiring::new();
        let (memory, spaces) = spaces();
        let set = make(&spaces, &(Arc::clone(&wiring) as _))?;
        Ok(Self { set, fakes: Vec::new(), wiring, memory, calls: Arc::default(), spaces })
    }

    /// One device that can all, running, its registers set up as by a driver.
    pub fn running() -> Self {
        let rig = Self::new(&[ALL]);
        rig.run();
        rig.drive(1);
        rig
    }

    /// Runs the set; permits are counted by the returned value's clones.
    pub fn run(&self) -> Arc<()> {
        let lease = Arc::new(());
        let down = self.set.run(&mut |_| Ok(Box::new(Arc::clone(&lease)) as Permit));
        assert!(down.expect("permits are free").is_empty());
        lease
    }

    /// Runs the set, some of it in ERROR.
    pub fn run_all_but_failed(&self) {
        self.set.run(&mut |_| Ok(Box::new(()) as Permit)).expect("permits are free");
    }

    /// Calls into the fakes since the last time.
    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.calls))
    }

    fn driver(&self) -> Driver<'_> {
        Driver(&self.set)
    }

    pub fn config_read(&self, slot: u32, register: u32) -> u32 {
        self.driver().config_read(slot, register)
    }

    pub fn config_write(&self, slot: u32, register: u32, value: u32) {
        self.driver().config_write(slot, register, value);
    }

    pub fn bar(&self, slot: u32, bar: u32) -> u64 {
        self.driver().bar(slot, bar)
    }

    pub fn read32(&self, address: u64) -> u32 {
        self.driver().read32(address)
    }

    pub fn write32(&self, address: u64, value: u32) {
        self.driver().write32(address, value);
    }

    pub fn drive(&self, slot: u32) {
        self.driver().drive(slot);
    }

    pub fn mask(&self, slot: u32, vector: u64, masked: bool) {
        self.driver().mask(slot, vector, masked);
    }

    /// The source's part of a switchover, up to where state is read. The vCPUs stand.
    pub fn stop(&self) {
        self.set.to_p2p_and_ndma().expect("quiesced");
        self.set.to_stop().expect("stopped");
        self.wiring.io_thread().park(PATIENCE).expect("parked");
        self.set.drain_doorbells();
        self.set.irqfds_off().expect("off");
    }

    /// All state of all devices, as frames.
    pub fn state(&self) -> Vec<Vec<u8>> {
        let read = |index| {
            let (mut state, mut buf) = (Vec::new(), [0; 256]);
            loop {
                match self.set.stop_copy_read(index, &mut buf).expect("readable") {
                    super::StateRead::Bytes(len) => state.extend_from_slice(&buf[..len]),
                    super::StateRead::NoMoreNow => panic!("only before the stop"),
                    super::StateRead::End => return state,
                }
            }
        };
        (0..self.set.len()).map(read).collect()
    }

    /// What pre-copy gives now.
    pub fn precopy(&self, index: usize) -> Vec<u8> {
        let (mut state, mut buf) = (Vec::new(), [0; 256]);
        while let super::StateRead::Bytes(len) =
            self.set.precopy_read(index, &mut buf).expect("readable")
        {
            state.extend_from_slice(&buf[..len]);
        }
        state
    }

    /// The destination: loads frames and host-owned state, up to where it may run.
    pub fn arrive(&self, states: &[Vec<u8>], host: &[u8]) {
        self.set.begin_resume().expect("ready to load");
        for (index, state) in states.iter().enumerate() {
            for piece in state.chunks(7) {
                self.set.load_chunk(index, piece).expect("good state");
            }
        }
        self.set.commit().expect("taken");
        self.set.load(host).expect("good registers");
    }
}
