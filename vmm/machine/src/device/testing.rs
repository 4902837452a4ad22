//! A machine without KVM, and a device that fails at will.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use drogher_iommu::{Domain, DomainConfig, Gpa, HeapMemory, Iova, Oa, Perm, Requester};
use drogher_plugin_host::{
    DeviceInfo, Doorbell, HostServices, PrecopyInfo, Read, Region, State, StateFormat,
};
use vm_device::{DeviceMmio, DevicePio};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::endpoint::{Endpoint, PluginName, Shape};
use super::error::{DeviceError, Fault};
use super::life::Permit;
use super::set::{DeviceSet, Maker};
use crate::io_thread::{IoHandle, IoThread};
use crate::memory::GuestRam;
use crate::wiring::{DoorbellAt, MsiLine, MsiMessage, Wiring, WiringError};

/// RAM that devices can reach.
pub const RAM: u64 = 4 << 20;
/// Long enough for any thread to get its turn.
pub const PATIENCE: Duration = Duration::from_secs(20);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

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

/// What a fake device holds and was asked.
struct Inner {
    state: State,
    ndma: bool,
    broken: Option<String>,
    memory: Vec<u8>,
    /// What a pre-copy session has not sent yet.
    unsent: bool,
    loaded: Vec<u8>,
    doorbells: Vec<u32>,
    refuse: BTreeSet<&'static str>,
}

/// A device of 64 bytes of memory at offset 0 of its 4 KiB BAR 0, a doorbell at 0x800 and two
/// vectors. In pre-copy it sends its memory once, after the stop once more: the last 64 bytes of a
/// stream count. DMA and interrupts pass as the plugin host lets them.
pub struct Fake {
    shape: Shape,
    requester: Requester,
    services: Arc<dyn HostServices>,
    inner: Mutex<Inner>,
    /// Calls of all fakes of a set, in order: "1 RUNNING_P2P".
    calls: Arc<Mutex<Vec<String>>>,
    name: String,
}

pub const MEMORY: usize = 64;
pub const BELL: u64 = 0x800;

impl Fake {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    fn called(&self, what: &str) {
        lock(&self.calls).push(format!("{} {what}", self.name));
    }

    /// The device wants to write to guest memory; says whether it could.
    pub fn dma(&self) -> bool {
        self.requester.write(Iova(0x1000), b"dma!").is_ok()
    }

    /// The device wants to interrupt, as a worker of a plugin does.
    pub fn irq(&self, vector: u16) {
        let open = {
            let inner = self.inner();
            inner.state.runs() && !inner.ndma
        };
        if open {
            self.services.irq(vector);
        }
    }

    /// From now on `what` ("RUNNING", "reset", "ndma", "write") is refused, until forgiven.
    pub fn refuse(&self, what: &'static str) {
        self.inner().refuse.insert(what);
    }

    pub fn forgive(&self) {
        self.inner().refuse.clear();
    }

    /// The device goes to ERROR.
    pub fn break_down(&self, why: &str) {
        self.inner().broken = Some(why.into());
        self.requester.revoke().expect("nothing in flight");
    }

    pub fn state(&self) -> State {
        self.inner().state
    }

    pub fn in_ndma(&self) -> bool {
        self.inner().ndma
    }

    /// Doorbells that it was told of.
    pub fn rung(&self) -> Vec<u32> {
        self.inner().doorbells.clone()
    }

    pub fn memory(&self) -> Vec<u8> {
        self.inner().memory.clone()
    }

    fn allow(&self, what: &str) -> Result<MutexGuard<'_, Inner>, Fault> {
        let inner = self.inner();
        if let Some(why) = &inner.broken {
            return Err(why.clone().into());
        }
        if inner.refuse.contains(what) {
            return Err(format!("{what} refused").into());
        }
        Ok(inner)
    }

    fn gate(&self, inner: &Inner) {
        if inner.state.runs() && !inner.ndma {
            self.requester.restore();
        } else {
            self.requester.revoke().expect("nothing in flight");
        }
    }
}

impl Endpoint for Fake {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn region_read(&self, _region: u32, offset: u64, data: &mut [u8]) -> Result<(), Fault> {
        let inner = self.allow("read")?;
        let offset = usize::try_from(offset)?;
        let from = inner.memory.get(offset..offset + data.len()).ok_or("no register")?;
        data.copy_from_slice(from);
        Ok(())
    }

    fn region_write(&self, _region: u32, offset: u64, data: &[u8]) -> Result<(), Fault> {
        let mut inner = self.allow("write")?;
        let offset = usize::try_from(offset)?;
        let to = inner.memory.get_mut(offset..offset + data.len()).ok_or("no register")?;
        to.copy_from_slice(data);
        inner.unsent = true;
        Ok(())
    }

    fn config_read(&self, _offset: u32, _data: &mut [u8]) -> Result<(), Fault> {
        Err("no area".into())
    }

    fn config_write(&self, _offset: u32, _data: &[u8]) -> Result<(), Fault> {
        Err("no area".into())
    }

    fn doorbell(&self, index: u32) -> Result<(), Fault> {
        self.allow("doorbell")?.doorbells.push(index);
        Ok(())
    }

    fn reset(&self) -> Result<(), Fault> {
        self.called("reset");
        let mut inner = self.inner();
        if inner.refuse.contains("reset") {
            inner.broken = Some("reset failed".into());
            return Err("reset failed".into());
        }
        inner.broken = None;
        inner.memory.fill(0);
        inner.loaded.clear();
        inner.doorbells.clear();
        inner.ndma = false;
        inner.state = State::Stop;
        self.gate(&inner);
        Ok(())
    }

    fn failed(&self) -> Option<String> {
        self.inner().broken.clone()
    }

    fn state(&self) -> State {
        let inner = self.inner();
        if inner.broken.is_some() { State::Error } else { inner.state }
    }

    fn go(&self, state: State) -> Result<(), Fault> {
        self.called(state.name());
        let mut inner = self.allow(state.name())?;
        let from = inner.state;
        match (from, state) {
            (State::Resuming, State::Stop) => {
                let len = inner.loaded.len();
                let last = len.checked_sub(MEMORY).ok_or("state too short")?;
                inner.memory = inner.loaded.split_off(last);
            }
            (State::Resuming | State::StopCopy, to) if to != from && to != State::Stop => {
                return Err(format!("no way from {from} to {to}").into());
            }
            (_, State::Resuming) => inner.loaded.clear(),
            _ => {}
        }
        let fresh = state.saves() && !from.saves();
        inner.unsent |= fresh || (state == State::StopCopy && from != state);
        inner.state = state;
        self.gate(&inner);
        Ok(())
    }

    fn set_ndma(&self, on: bool) -> Result<(), Fault> {
        self.called(if on { "NDMA" } else { "no NDMA" });
        let mut inner = self.allow("ndma")?;
        inner.ndma = on;
        self.gate(&inner);
        Ok(())
    }

    fn precopy_info(&self) -> Result<PrecopyInfo, Fault> {
        let inner = self.allow("info")?;
        let dirty_bytes = if inner.unsent { MEMORY as u64 } else { 0 };
        Ok(PrecopyInfo { initial_bytes: 0, dirty_bytes })
    }

    fn stop_copy_bytes(&self) -> Result<u64, Fault> {
        self.allow("size").map(|_| MEMORY as u64)
    }

    fn read_state(&self, buf: &mut [u8]) -> Result<Read, Fault> {
        let mut inner = self.allow("state")?;
        if !std::mem::take(&mut inner.unsent) {
            let stopped = inner.state == State::StopCopy;
            return Ok(if stopped { Read::End } else { Read::NoMoreNow });
        }
        let room = buf.get_mut(..MEMORY).ok_or("too little room")?;
        room.copy_from_slice(&inner.memory);
        Ok(Read::Bytes(MEMORY))
    }

    fn write_state(&self, data: &[u8]) -> Result<(), Fault> {
        self.allow("load")?.loaded.extend_from_slice(data);
        Ok(())
    }

    fn params(&self) -> Result<Vec<(String, String)>, Fault> {
        Ok(vec![("colour".into(), "blue".into())])
    }
}

/// A set of fakes, with all that is around it.
pub struct Rig {
    pub set: DeviceSet,
    pub fakes: Vec<Arc<Fake>>,
    pub wiring: Arc<FakeWiring>,
    pub memory: Arc<HeapMemory>,
    pub calls: Arc<Mutex<Vec<String>>>,
}

/// What a fake can do besides running.
#[derive(Clone, Copy)]
pub struct Can {
    pub migrate: bool,
    pub pre_copy: bool,
    pub p2p: bool,
    pub ndma: bool,
}

pub const ALL: Can = Can { migrate: true, pre_copy: true, p2p: true, ndma: true };

fn domain() -> (Arc<HeapMemory>, Domain) {
    let memory = Arc::new(HeapMemory::new(RAM));
    let as_memory = Arc::clone(&memory) as _;
    let domain = Domain::new(as_memory, DomainConfig::default()).expect("a small domain");
    domain.map(Gpa(0)..Gpa(RAM), Oa(0), Perm::READ_WRITE).expect("nothing is mapped yet");
    (memory, domain)
}

fn shape(can: Can) -> Shape {
    Shape {
        plugin: PluginName {
            id: "test.fake".into(),
            version: "1.0".into(),
            abi_major: 1,
            abi_minor: 0,
        },
        info: DeviceInfo {
            vendor_id: 0xd70e,
            device_id: 0x7e57,
            subsystem_vendor_id: 0,
            subsystem_id: 0,
            class_code: 0xff_0000,
            revision: 1,
            regions: vec![Region {
                index: 0,
                length: 0x1000,
                io: false,
                wide: false,
                prefetch: false,
            }],
            vectors: 2,
            doorbells: vec![Doorbell { region: 0, offset: BELL, width: 4 }],
            config: None,
        },
        migration: can.migrate.then_some(StateFormat {
            version: 2,
            min_reader: 2,
            oldest_read: 1,
            p2p: can.p2p,
            pre_copy: can.pre_copy,
        }),
        ndma: can.ndma,
    }
}

impl Rig {
    pub fn new(devices: &[Can]) -> Self {
        let wiring = FakeWiring::new();
        let (memory, domain) = domain();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let fakes = Mutex::new(Vec::new());
        let (made, log) = (&fakes, &calls);
        let maker = |(number, can): (usize, &Can)| -> Maker<'_> {
            let (shape, calls) = (shape(*can), Arc::clone(log));
            Box::new(move |_, requester, services| {
                requester.revoke().expect("nothing in flight");
                let fake = Arc::new(Fake {
                    shape,
                    requester,
                    services,
                    inner: Mutex::new(Inner {
                        state: State::Stop,
                        ndma: false,
                        broken: None,
                        memory: vec![0; MEMORY],
                        unsent: false,
                        loaded: Vec::new(),
                        doorbells: Vec::new(),
                        refuse: BTreeSet::new(),
                    }),
                    calls,
                    name: (number + 1).to_string(),
                });
                lock(made).push(Arc::clone(&fake));
                Ok::<Arc<dyn Endpoint>, DeviceError>(fake)
            })
        };
        let makers = devices.iter().enumerate().map(maker).collect();
        let as_wiring: Arc<dyn Wiring> = Arc::clone(&wiring) as _;
        let set = DeviceSet::with_makers(makers, &domain, &as_wiring).expect("good devices");
        let fakes = fakes.into_inner().expect("no panic");
        Self { set, fakes, wiring, memory, calls }
    }

    /// Real plugins, made by `make` on a new machine.
    pub fn with(
        make: impl FnOnce(&Domain, &Arc<dyn Wiring>) -> Result<DeviceSet, DeviceError>,
    ) -> Result<Self, DeviceError> {
        let wiring = FakeWiring::new();
        let (memory, domain) = domain();
        let set = make(&domain, &(Arc::clone(&wiring) as _))?;
        Ok(Self { set, fakes: Vec::new(), wiring, memory, calls: Arc::default() })
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

    /// Calls into the fakes since the last time.
    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.calls))
    }

    pub fn config_read(&self, slot: u32, register: u32) -> u32 {
        self.set.ports().write(0xcf8, &(0x8000_0000 | slot << 11 | register).to_le_bytes());
        let mut data = [0; 4];
        self.set.ports().read(0xcfc, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn config_write(&self, slot: u32, register: u32, value: u32) {
        self.set.ports().write(0xcf8, &(0x8000_0000 | slot << 11 | register).to_le_bytes());
        self.set.ports().write(0xcfc, &value.to_le_bytes());
    }

    /// Base of a BAR.
    pub fn bar(&self, slot: u32, bar: u32) -> u64 {
        u64::from(self.config_read(slot, 0x10 + 4 * bar) & !0xf)
    }

    pub fn read32(&self, address: u64) -> u32 {
        let mut data = [0; 4];
        self.set.mmio().read(address, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write32(&self, address: u64, value: u32) {
        self.set.mmio().write(address, &value.to_le_bytes());
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
