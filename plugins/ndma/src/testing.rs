//! For the tests: a bus over an array of bytes that can fault and block and that remembers every
//! access, and a driver.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use drogher_plugin_sdk::{Device, Params, Read, State};

use crate::bus::{Bus, Fault};
use crate::descriptor::{FLAG_IRQ, FLAG_OWN};
use crate::device::Ndma;
use crate::tracked::{Pinned, Port};
use crate::{params, regs};

/// Bytes of guest memory, at IOVA 0.
pub const MEMORY: usize = 4 << 20;
/// Where the tests' rings are.
pub const RING: u64 = 0x1000;
/// No wait in a test is longer.
pub const DEADLINE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read(u64, usize),
    Write(u64, usize),
    Irq(u16),
}

/// Something to be done.
#[derive(Clone)]
pub struct Act(pub Arc<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for Act {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Act")
    }
}

#[derive(Debug)]
pub struct World {
    pub memory: Vec<u8>,
    pub log: Vec<Access>,
    pub no_read: Range<u64>,
    pub no_write: Range<u64>,
    /// Accesses to this address block as long as it is set.
    pub block: Option<u64>,
    /// Accesses that are blocked now.
    pub blocked: usize,
    /// An access to this address panics.
    pub panic_at: Option<u64>,
    /// From now on every access is a violation.
    pub silent: bool,
    /// Pinned now, by IOVA.
    pub pins: Vec<Range<u64>>,
    /// Pinned before.
    pub unpinned: Vec<Range<u64>>,
    /// Called before each store, and once more after it, without a lock.
    pub around: Option<Act>,
    pub violations: Vec<Access>,
}

#[derive(Debug, Clone)]
pub struct TestBus(Arc<(Mutex<World>, Condvar)>);

impl TestBus {
    pub fn new() -> Self {
        Self::with_memory(vec![0; MEMORY])
    }

    pub fn with_memory(memory: Vec<u8>) -> Self {
        let world = World {
            memory,
            log: Vec::new(),
            no_read: 0..0,
            no_write: 0..0,
            block: None,
            blocked: 0,
            panic_at: None,
            silent: false,
            pins: Vec::new(),
            unpinned: Vec::new(),
            around: None,
            violations: Vec::new(),
        };
        Self(Arc::new((Mutex::new(world), Condvar::new())))
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.0.0.lock().unwrap()
    }

    pub fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        self.world().memory[at as usize..][..len].to_vec()
    }

    pub fn u64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.bytes(at, 8).try_into().unwrap())
    }

    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.world().memory[at as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    pub fn irqs(&self) -> Vec<u16> {
        let irq = |access: &Access| match access {
            Access::Irq(vector) => Some(*vector),
            _ => None,
        };
        self.world().log.iter().filter_map(irq).collect()
    }

    /// Waits until the worker blocks at the address in `block`.
    pub fn wait_blocked(&self) {
        let world = self.world();
        let waited = self.0.1.wait_timeout_while(world, DEADLINE, |world| world.blocked == 0);
        assert!(!waited.unwrap().1.timed_out(), "no access to the blocked address");
    }

    pub fn unblock(&self) {
        self.world().block = None;
        self.0.1.notify_all();
    }

    /// Enters an access into the books; `Err`: it faults after so many bytes.
    fn access(&self, access: Access) -> (MutexGuard<'_, World>, Result<(), Fault>) {
        let mut world = self.world();
        let (at, len, forbidden) = match access {
            Access::Read(at, len) => (at, len as u64, world.no_read.clone()),
            Access::Write(at, len) => (at, len as u64, world.no_write.clone()),
            Access::Irq(_) => (u64::MAX, 0, 0..0),
        };
        while world.block == Some(at) {
            world.blocked += 1;
            self.0.1.notify_all();
            let (woken, late) = self.0.1.wait_timeout(world, DEADLINE).unwrap();
            world = woken;
            // A test that failed meanwhile waits for this thread: let it end.
            if late.timed_out() {
                world.block = None;
            }
            world.blocked -= 1;
        }
        if world.panic_at == Some(at) {
            drop(world);
            panic!("the test wants a panic at {at:#x}");
        }
        world.log.push(access);
        if world.silent {
            world.violations.push(access);
        }
        // The first byte that cannot be accessed.
        let mut limit = (world.memory.len() as u64).max(at);
        if at < forbidden.end && at.saturating_add(len) > forbidden.start {
            limit = limit.min(forbidden.start.max(at));
        }
        let done = len.min(limit - at);
        let result = if done < len { Err(Fault { done }) } else { Ok(()) };
        (world, result)
    }
}

/// GPA of a byte: pages lie in pairs the other way round.
pub fn gpa(iova: u64) -> u64 {
    iova ^ 0x1000
}

impl TestBus {
    fn around(&self) {
        let around = self.world().around.clone();
        around.iter().for_each(|act| (act.0)());
    }

    fn store(&self, iova: u64, data: &[u8]) -> Result<(), Fault> {
        self.around();
        let result = {
            let (mut world, result) = self.access(Access::Write(iova, data.len()));
            let done = result.map_or_else(|fault| fault.done as usize, |()| data.len());
            if done > 0 {
                world.memory[iova as usize..][..done].copy_from_slice(&data[..done]);
            }
            result
        };
        self.around();
        result
    }
}

struct TestPin {
    bus: TestBus,
    range: Range<u64>,
}

impl Pinned for TestPin {
    fn gpa(&self) -> u64 {
        gpa(self.range.start)
    }

    fn write(&self, data: &[u8]) {
        assert!(self.range.start + data.len() as u64 <= self.range.end, "more than was pinned");
        self.bus.store(self.range.start, data).unwrap();
    }
}

impl Drop for TestPin {
    fn drop(&mut self) {
        let mut world = self.bus.world();
        let at = world.pins.iter().position(|pin| *pin == self.range).expect("pinned once");
        let range = world.pins.swap_remove(at);
        world.unpinned.push(range);
    }
}

impl Port for TestBus {
    fn write_logged(
        &self,
        iova: u64,
        data: &[u8],
        landed: &mut dyn FnMut(Range<u64>),
    ) -> Result<(), Fault> {
        // A run for each page: as scattered as it can be.
        let mut done = 0;
        while done < data.len() {
            let at = iova + done as u64;
            let len = (data.len() - done).min(0x1000 - (at % 0x1000) as usize);
            let result = self.store(at, &data[done..done + len]);
            let stored = result.map_or_else(|fault| fault.done, |()| len as u64);
            if stored > 0 {
                landed(gpa(at)..gpa(at) + stored);
            }
            result.map_err(|fault| Fault { done: done as u64 + fault.done })?;
            done += len;
        }
        Ok(())
    }

    fn pin(&self, iova: u64, len: usize) -> Result<(Box<dyn Pinned>, usize), Fault> {
        let together = len.min(0x1000 - (iova % 0x1000) as usize);
        let range = iova..iova.saturating_add(together as u64);
        let mut world = self.world();
        let forbidden = world.no_write.clone();
        let meets = range.start < forbidden.end && forbidden.start < range.end;
        if meets || range.end > world.memory.len() as u64 {
            return Err(Fault { done: 0 });
        }
        world.pins.push(range.clone());
        drop(world);
        Ok((Box::new(TestPin { bus: self.clone(), range }), together))
    }
}

impl Bus for TestBus {
    fn read(&self, iova: u64, data: &mut [u8]) -> Result<(), Fault> {
        let (world, result) = self.access(Access::Read(iova, data.len()));
        let done = result.map_or_else(|fault| fault.done as usize, |()| data.len());
        if done > 0 {
            data[..done].copy_from_slice(&world.memory[iova as usize..][..done]);
        }
        result
    }

    fn write(&self, iova: u64, data: &[u8]) -> Result<(), Fault> {
        self.store(iova, data)
    }

    fn irq(&self, vector: u16) {
        drop(self.access(Access::Irq(vector)));
    }

    fn spawn(&self, name: &str, work: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
        Builder::new().name(name.to_owned()).spawn(work)
    }
}

/// A descriptor as a driver writes it.
#[derive(Debug, Clone, Copy)]
pub struct Desc {
    pub opcode: u16,
    pub flags: u16,
    pub src: u64,
    pub dst: u64,
    pub len: u64,
    pub arg: u64,
}

impl Desc {
    pub fn new(opcode: u16, src: u64, dst: u64, len: u64) -> Self {
        Self { opcode, flags: FLAG_OWN | FLAG_IRQ, src, dst, len, arg: 0 }
    }

    pub fn bytes(self) -> [u8; 64] {
        let head = u64::from(self.opcode) | u64::from(self.flags) << 16;
        let quads = [head, self.src, self.dst, self.len, self.arg, 0x5555, 0xC00C1E, 0];
        let mut bytes = [0; 64];
        for (to, quad) in bytes.chunks_mut(8).zip(quads) {
            to.copy_from_slice(&quad.to_le_bytes());
        }
        bytes
    }
}

/// A device, its bus, and the calls that a driver and a host make.
#[derive(Debug)]
pub struct Rig {
    pub bus: TestBus,
    pub device: Ndma,
    pub state: State,
}

impl Rig {
    /// Running, nothing set up.
    pub fn new() -> Self {
        Self::on(TestBus::new(), &[])
    }

    pub fn on(bus: TestBus, given: &[(&str, &str)]) -> Self {
        let mut rig = Self::stopped(bus, given);
        rig.go(&[State::RunningP2p, State::Running]);
        rig
    }

    pub fn stopped(bus: TestBus, given: &[(&str, &str)]) -> Self {
        let params = Params::new(params::SPECS, given).unwrap();
        let device = Ndma::new(bus.clone(), &params).unwrap();
        Self { bus, device, state: State::Stop }
    }

    /// Running, with an enabled ring of `entries` at [`RING`] and interrupts on.
    pub fn with_ring(entries: u32) -> Self {
        let mut rig = Self::new();
        rig.enable(entries);
        rig
    }

    pub fn enable(&mut self, entries: u32) {
        self.set(regs::RING_ENTRIES, entries);
        self.device.region_write(0, regs::RING_BASE, &RING.to_le_bytes()).unwrap();
        self.set(regs::CONTROL, regs::CONTROL_ENABLE | regs::CONTROL_IRQ_ENABLE);
        assert_eq!(self.get(regs::STATUS) & regs::STATUS_ENABLED, 1);
    }

    pub fn get(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.device.region_read(0, offset, &mut data).unwrap();
        u32::from_le_bytes(data)
    }

    pub fn get64(&mut self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.device.region_read(0, offset, &mut data).unwrap();
        u64::from_le_bytes(data)
    }

    pub fn set(&mut self, offset: u64, value: u32) {
        self.device.region_write(0, offset, &value.to_le_bytes()).unwrap();
    }

    pub fn put(&self, index: u64, desc: Desc) {
        self.bus.put(RING + index * 64, &desc.bytes());
    }

    pub fn status(&self, index: u64) -> u32 {
        (self.bus.u64(RING + index * 64) >> 32) as u32
    }

    pub fn owned(&self, index: u64) -> bool {
        self.bus.u64(RING + index * 64) >> 16 & u64::from(FLAG_OWN) != 0
    }

    pub fn result(&self, index: u64) -> u64 {
        self.bus.u64(RING + index * 64 + 0x28)
    }

    /// Rings, and waits until the ring has run dry.
    pub fn kick(&mut self) {
        self.device.doorbell(0).unwrap();
        self.settle();
    }

    pub fn settle(&mut self) {
        let begin = Instant::now();
        while self.get(regs::STATUS) & regs::STATUS_BUSY != 0 {
            assert!(begin.elapsed() < DEADLINE, "still busy");
            std::thread::yield_now();
        }
    }

    /// Does one descriptor at the place where NEXT is; `(status, result)`.
    pub fn run(&mut self, desc: Desc) -> (u32, u64) {
        let index = u64::from(self.get(regs::NEXT));
        self.put(index, desc);
        self.kick();
        assert!(!self.owned(index), "not handed back");
        (self.status(index), self.result(index))
    }

    pub fn go(&mut self, path: &[State]) {
        for to in path {
            self.device.set_state(self.state, *to).unwrap();
            self.state = *to;
        }
    }

    /// Reads up to `limit` bytes of state, in pieces of `piece`.
    pub fn read_state(&mut self, limit: usize, piece: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < limit {
            let mut data = vec![0; piece.min(limit - all.len())];
            match self.device.read_state(&mut data).unwrap() {
                Read::Bytes(n) => all.extend_from_slice(&data[..n]),
                Read::NoMoreNow | Read::End => break,
            }
        }
        all
    }

    /// From any running state through STOP_COPY; returns what is left of the stream.
    pub fn stop_and_save(&mut self) -> Vec<u8> {
        match self.state {
            State::Running => self.go(&[State::RunningP2p, State::Stop, State::StopCopy]),
            State::PreCopy => self.go(&[State::PreCopyP2p, State::StopCopy]),
            State::Stop => self.go(&[State::StopCopy]),
            state => panic!("not from {state:?}"),
        }
        self.read_state(usize::MAX, 5000)
    }

    /// Loads a state into this (stopped) device and lets it run.
    pub fn load_and_run(&mut self, state: &[u8]) {
        self.go(&[State::Resuming]);
        for piece in state.chunks(3001) {
            self.device.write_state(piece).unwrap();
        }
        self.go(&[State::Stop, State::RunningP2p, State::Running]);
    }
}

/// As `assert_eq!`, without printing megabytes.
#[track_caller]
pub fn assert_same(left: &[u8], right: &[u8]) {
    assert_eq!(left.len(), right.len());
    let first = left.iter().zip(right).position(|(left, right)| left != right);
    assert_eq!(first, None, "first byte that differs");
}

/// Bytes that differ everywhere.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}
