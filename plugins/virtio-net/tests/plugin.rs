//! The built plugin in the real plugin host, with a driver's part of both rings, over a loopback wire.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use drogher_iommu::{DirtyBitmap, Domain, DomainConfig, Gpa, HeapMemory, Memory, Oa, Perm, Rid};
use drogher_plugin_host::{
    HostServices, Instance, InstanceConfig, LogLevel, Plugin, Read, State, Wires,
};
use drogher_tracking::TrackingPageSize;
use drogher_virtio_net::regs::{FEATURES, NEEDS_RESET, RX, TX};
use drogher_wires::{Ports, WireSpec};

const MEMORY: u64 = 4 << 20;
const SIZE: u16 = 64;
/// Bytes of each buffer.
const BUFFER: u64 = 1600;
const HEADER: u64 = 12;
const PATIENCE: Duration = Duration::from_secs(20);
const EVENT_IDX: u64 = 1 << 29;

fn library() -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.set_file_name("libdrogher_virtio_net.so");
    path
}

struct Services {
    irqs: Mutex<[u64; 3]>,
    ports: Arc<Ports>,
}

impl HostServices for Services {
    fn irq(&self, vector: u16) {
        self.irqs.lock().unwrap()[usize::from(vector)] += 1;
    }

    fn log(&self, _: LogLevel, text: &str) {
        println!("log: {text}");
    }

    fn wires(&self) -> Option<Arc<dyn Wires>> {
        Some(Arc::clone(&self.ports) as _)
    }
}

/// A process of its own, so to speak: memory, address space, one device, its wire.
struct Machine {
    memory: Arc<HeapMemory>,
    domain: Domain,
    services: Arc<Services>,
    device: Instance,
}

impl Machine {
    fn new(from: Option<&Machine>, params: &[(&str, &str)]) -> Self {
        let memory = Arc::new(HeapMemory::new(MEMORY));
        if let Some(from) = from {
            memory.write(Oa(0), &from.bytes(0, MEMORY as usize)).unwrap();
        }
        let domain = Domain::new(memory.clone(), DomainConfig::default()).unwrap();
        domain.map(Gpa(0)..Gpa(MEMORY), Oa(0), Perm::READ_WRITE).unwrap();
        domain.start_tracking().unwrap();
        let requester = domain.attach(Rid(8)).unwrap();
        let ports = Arc::new(Ports::prepare(&[WireSpec::Loopback], None, false).unwrap());
        let services = Arc::new(Services { irqs: Mutex::default(), ports });
        let params = params.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        let config = InstanceConfig {
            name: "net0".into(),
            params: params.collect(),
            ..InstanceConfig::default()
        };
        let plugin = Plugin::open(&library()).unwrap();
        let device = Instance::create(&plugin, config, requester, services.clone()).unwrap();
        Self { memory, domain, services, device }
    }

    fn run(&self) {
        self.services.ports.activate();
        self.device.set_state(State::Running).unwrap();
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(Oa(at), &mut bytes).unwrap();
        bytes
    }

    fn u16(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.bytes(at, 2).try_into().unwrap())
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write(Oa(at), bytes).unwrap();
    }

    fn set(&self, offset: u64, value: &[u8]) {
        self.device.region_write(0, offset, value).unwrap();
    }

    fn get(&self, offset: u64) -> u8 {
        let mut data = [0];
        self.device.region_read(0, offset, &mut data).unwrap();
        data[0]
    }

    /// Stops as the machine does, and goes on in another one.
    fn migrate(self, params: &[(&str, &str)]) -> Self {
        self.device.set_state(State::RunningP2p).unwrap();
        self.device.enter_ndma().unwrap();
        self.device.set_state(State::StopCopy).unwrap();
        self.services.ports.deactivate();
        let before = self.device.dma_stats();
        let said = self.device.stop_copy_size().unwrap();
        let (mut state, mut piece) = (Vec::new(), [0; 999]);
        while let Read::Bytes(len) = self.device.read_state(&mut piece).unwrap() {
            state.extend_from_slice(&piece[..len]);
        }
        assert_eq!(said, state.len() as u64);
        let other = Self::new(Some(&self), params);
        *other.services.irqs.lock().unwrap() = *self.services.irqs.lock().unwrap();
        other.device.set_state(State::Resuming).unwrap();
        for piece in state.chunks(1000) {
            other.device.write_state(piece).unwrap();
        }
        other.device.set_state(State::Stop).unwrap();
        assert_eq!(self.device.dma_stats(), before, "DMA after STOP");
        let stats = self.device.stats();
        let refused = (stats.dma_refused, stats.irqs_refused, stats.frames_refused);
        assert_eq!(refused, (0, 0, 0), "the host had to step in");
        other.run();
        other
    }
}

/// The driver's part of one ring: one buffer for each descriptor.
struct Ring {
    queue: usize,
    base: u64,
    next_avail: u16,
    next_used: u16,
}

impl Ring {
    fn new(queue: usize) -> Self {
        Self { queue, base: 0x10_0000 * (1 + queue as u64), next_avail: 0, next_used: 0 }
    }

    fn avail(&self) -> u64 {
        self.base + 0x1000
    }

    fn used(&self) -> u64 {
        self.base + 0x2000
    }

    fn buffer(&self, head: u16) -> u64 {
        self.base + 0x4000 + BUFFER * u64::from(head)
    }

    fn enable(&self, machine: &Machine) {
        machine.set(0x16, &(self.queue as u16).to_le_bytes());
        machine.set(0x18, &SIZE.to_le_bytes());
        machine.set(0x1a, &(1 + self.queue as u16).to_le_bytes());
        machine.set(0x20, &self.base.to_le_bytes());
        machine.set(0x28, &self.avail().to_le_bytes());
        machine.set(0x30, &self.used().to_le_bytes());
        machine.set(0x1c, &1_u16.to_le_bytes());
    }

    /// Makes descriptor `head` available, `len` bytes; rings if the device wants that.
    fn offer(&mut self, machine: &Machine, head: u16, len: u32, event_idx: bool) {
        let mut raw = self.buffer(head).to_le_bytes().to_vec();
        raw.extend(len.to_le_bytes());
        raw.extend((if self.queue == RX { 2_u16 } else { 0 }).to_le_bytes());
        raw.extend([0; 2]);
        machine.put(self.base + 16 * u64::from(head), &raw);
        let slot = u64::from(self.next_avail % SIZE);
        machine.put(self.avail() + 4 + 2 * slot, &head.to_le_bytes());
        let old = self.next_avail;
        self.next_avail = old.wrapping_add(1);
        machine.put(self.avail() + 2, &self.next_avail.to_le_bytes());
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let event = machine.u16(self.used() + 4 + 8 * u64::from(SIZE));
        if !event_idx || self.next_avail.wrapping_sub(event).wrapping_sub(1) < 1 {
            machine.device.doorbell(self.queue as u32).unwrap();
        }
    }

    /// The next used entry: descriptor and bytes written. Asks for an interrupt for the next.
    fn take(&mut self, machine: &Machine) -> Option<(u16, usize)> {
        machine.put(self.avail() + 4 + 2 * u64::from(SIZE), &self.next_used.to_le_bytes());
        if machine.u16(self.used() + 2) == self.next_used {
            return None;
        }
        let slot = u64::from(self.next_used % SIZE);
        let entry = machine.bytes(self.used() + 4 + 8 * slot, 8);
        self.next_used = self.next_used.wrapping_add(1);
        let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
        Some((word(0) as u16, word(4) as usize))
    }
}

/// A driver that sends numbered frames and checks that each comes back, once and in order.
struct Driver {
    rx: Ring,
    tx: Ring,
    free: Vec<u16>,
    sent: u64,
    received: u64,
    event_idx: bool,
}

fn frame(number: u64) -> Vec<u8> {
    let len = 60 + (number * 131 % 1455) as usize;
    let mut frame = vec![number as u8; len];
    frame[14..22].copy_from_slice(&number.to_le_bytes());
    frame
}

impl Driver {
    fn start(machine: &Machine, features: u64) -> Self {
        for (select, half) in [(0_u32, features as u32), (1, (features >> 32) as u32)] {
            machine.set(0x08, &select.to_le_bytes());
            machine.set(0x0c, &half.to_le_bytes());
        }
        machine.set(0x10, &0_u16.to_le_bytes());
        machine.set(0x14, &[3]);
        machine.set(0x14, &[11]);
        assert_eq!(machine.get(0x14), 11, "features agreed on");
        let (rx, tx) = (Ring::new(RX), Ring::new(TX));
        rx.enable(machine);
        tx.enable(machine);
        machine.set(0x14, &[15]);
        let event_idx = features & EVENT_IDX != 0;
        let free = (0..SIZE).collect();
        let mut driver = Self { rx, tx, free, sent: 0, received: 0, event_idx };
        for head in 0..SIZE {
            driver.rx.offer(machine, head, BUFFER as u32, event_idx);
        }
        driver
    }

    /// Sends as much as there is room for, at most `count`.
    fn send(&mut self, machine: &Machine, count: u64) -> u64 {
        while let Some((head, written)) = self.tx.take(machine) {
            assert_eq!(written, 0);
            assert!(!self.free.contains(&head), "given back twice");
            self.free.push(head);
        }
        let before = self.sent;
        // What is under way has room in the port's inbox.
        while self.sent - before < count && self.sent - self.received < 200 {
            let Some(head) = self.free.pop() else { break };
            let frame = frame(self.sent);
            machine.put(self.tx.buffer(head), &[0; HEADER as usize]);
            machine.put(self.tx.buffer(head) + HEADER, &frame);
            self.tx.offer(machine, head, HEADER as u32 + frame.len() as u32, self.event_idx);
            self.sent += 1;
        }
        self.sent - before
    }

    /// Takes what has come, at most `count`.
    fn receive(&mut self, machine: &Machine, count: u64) {
        for _ in 0..count {
            let Some((head, written)) = self.rx.take(machine) else { break };
            let expected = frame(self.received);
            assert_eq!(written, HEADER as usize + expected.len(), "frame {}", self.received);
            let found = machine.bytes(self.rx.buffer(head) + HEADER, expected.len());
            assert!(found == expected, "frame {}", self.received);
            self.received += 1;
            self.rx.offer(machine, head, BUFFER as u32, self.event_idx);
        }
    }

    fn settle(&mut self, machine: &Machine) {
        let begin = Instant::now();
        while self.received < self.sent {
            let (sent, received) = (self.sent, self.received);
            assert!(begin.elapsed() < PATIENCE, "{received} of {sent} came back");
            self.receive(machine, u64::MAX);
            std::thread::yield_now();
        }
        self.send(machine, 0);
    }
}

#[test]
fn frames_go_round_under_every_agreement() {
    for features in [1 << 32, 1 << 32 | EVENT_IDX, FEATURES] {
        let machine = Machine::new(None, &[]);
        machine.run();
        let mut driver = Driver::start(&machine, features);
        while driver.sent < 1000 {
            driver.send(&machine, 50);
            driver.receive(&machine, 40);
        }
        driver.settle(&machine);
        let irqs = *machine.services.irqs.lock().unwrap();
        assert!(irqs[0] == 0 && irqs[1] > 0 && irqs[2] > 0, "{irqs:?}");
        assert_eq!(machine.get(0x14) & NEEDS_RESET, 0);
        let dirty = DirtyBitmap::new(Gpa(0)..Gpa(MEMORY)).unwrap();
        machine.domain.read_and_clear_dirty(Gpa(0)..Gpa(MEMORY), &dirty).unwrap();
        assert!(dirty.test(Gpa(driver.rx.used())) && dirty.test(Gpa(driver.rx.buffer(0))));
        assert!(!dirty.test(Gpa(driver.rx.avail())) && !dirty.test(Gpa(driver.rx.base)));
    }
}

/// Whatever is in the rings, at the port or in the device's hands at the moment of the move, each frame
/// comes back once.
#[test]
fn a_chain_of_moves_in_the_middle_of_traffic_loses_nothing() {
    for features in [1 << 32, FEATURES] {
        let mut machine = Machine::new(None, &[]);
        machine.run();
        let mut driver = Driver::start(&machine, features);
        for hop in 0..40_u64 {
            driver.send(&machine, 1 + hop * 7 % 60);
            driver.receive(&machine, hop * 5 % 30);
            driver.send(&machine, hop * 3 % 50);
            if hop % 3 == 0 {
                std::thread::sleep(Duration::from_micros(50 * hop));
            }
            machine = machine.migrate(&[]);
        }
        driver.settle(&machine);
        assert!(driver.sent > 500, "{}", driver.sent);
        assert_eq!(machine.get(0x14) & NEEDS_RESET, 0);
    }
}

#[test]
fn frames_wait_in_the_device_while_the_guest_has_no_buffers() {
    let machine = Machine::new(None, &[]);
    machine.run();
    let mut driver = Driver::start(&machine, FEATURES);
    let begin = Instant::now();
    while driver.sent < 200 {
        assert!(begin.elapsed() < PATIENCE);
        driver.send(&machine, 200);
    }
    // All but those in buffers wait: at the port, then in hand.
    while machine.services.ports.counts()[0].arrived < 200 {
        assert!(begin.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
    let machine = machine.migrate(&[]);
    driver.settle(&machine);
}

#[test]
fn ndma_and_stop_hold_everything() {
    let machine = Machine::new(None, &[]);
    machine.run();
    let mut driver = Driver::start(&machine, FEATURES);
    machine.device.enter_ndma().unwrap();
    let before = machine.device.dma_stats();
    driver.send(&machine, 20);
    assert_eq!(machine.get(0x14), 15, "registers answer");
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(machine.device.dma_stats(), before);
    machine.device.leave_ndma().unwrap();
    driver.settle(&machine);
    machine.device.set_state(State::Stop).unwrap();
    let before = machine.device.dma_stats();
    driver.send(&machine, 20);
    machine.device.set_state(State::RunningP2p).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(machine.device.dma_stats(), before, "P2P starts nothing");
    machine.device.set_state(State::Running).unwrap();
    driver.settle(&machine);
    let stats = machine.device.stats();
    assert_eq!((stats.dma_refused, stats.irqs_refused, stats.frames_refused), (0, 0, 0));
}

#[test]
fn a_broken_ring_costs_the_device_until_the_driver_resets_it() {
    let machine = Machine::new(None, &[]);
    machine.run();
    let mut driver = Driver::start(&machine, FEATURES);
    driver.send(&machine, 3);
    driver.settle(&machine);
    let at = driver.tx.avail() + 2;
    machine.put(at, &(driver.tx.next_avail.wrapping_add(SIZE + 1)).to_le_bytes());
    machine.device.doorbell(TX as u32).unwrap();
    let begin = Instant::now();
    while machine.get(0x14) & NEEDS_RESET == 0 || machine.services.irqs.lock().unwrap()[0] == 0 {
        assert!(begin.elapsed() < PATIENCE, "it is not said");
        std::thread::yield_now();
    }
    let before = machine.device.dma_stats();
    machine.device.doorbell(RX as u32).unwrap();
    let machine = machine.migrate(&[]);
    assert_ne!(machine.get(0x14) & NEEDS_RESET, 0, "it moves as it is");
    assert_eq!(machine.device.state(), State::Running);
    machine.set(0x14, &[0]);
    assert_eq!(machine.get(0x14), 0);
    machine.put(0x10_0000, &vec![0; (MEMORY - 0x10_0000) as usize]);
    let mut driver = Driver::start(&machine, FEATURES);
    driver.send(&machine, 30);
    driver.settle(&machine);
    assert!(before.accesses > 0);
}

#[test]
fn what_came_for_a_driver_before_a_reset_is_not_the_next_one_s() {
    let machine = Machine::new(None, &[]);
    machine.run();
    let mut driver = Driver::start(&machine, FEATURES);
    let begin = Instant::now();
    while driver.sent < 150 || machine.services.ports.counts()[0].arrived < driver.sent {
        assert!(begin.elapsed() < PATIENCE);
        driver.send(&machine, 150 - driver.sent);
    }
    machine.set(0x14, &[0]);
    machine.put(0x10_0000, &vec![0; (MEMORY - 0x10_0000) as usize]);
    // It checks that its own frames come first.
    let mut driver = Driver::start(&machine, FEATURES);
    driver.send(&machine, 30);
    driver.settle(&machine);
}

/// What copies memory by the device's own log alone has all of it, once the device has stopped.
#[test]
fn its_log_misses_no_write() {
    let machine = Machine::new(None, &[("log", "on")]);
    machine.run();
    let (_, log) = machine.device.device_log().unwrap();
    let mut driver = Driver::start(&machine, FEATURES);
    let all = Gpa(0)..Gpa(MEMORY);
    log.start(std::slice::from_ref(&all), TrackingPageSize::K4).unwrap();
    let mut copy = machine.bytes(0, MEMORY as usize);
    let mut round = || {
        let dirty = DirtyBitmap::new(all.clone()).unwrap();
        log.report(&all, TrackingPageSize::K4, &dirty).unwrap();
        for run in dirty.runs() {
            let bytes = machine.bytes(run.start.0, (run.end.0 - run.start.0) as usize);
            copy[run.start.0 as usize..run.end.0 as usize].copy_from_slice(&bytes);
        }
        dirty.count().0
    };
    while driver.sent < 500 {
        driver.send(&machine, 40);
        driver.receive(&machine, 40);
        round();
    }
    driver.settle(&machine);
    machine.device.set_state(State::Stop).unwrap();
    round();
    assert_eq!(round(), 0, "once in STOP");
    // The device writes to these alone: frames that came, and the used rings.
    for (start, end) in
        [(driver.rx.used(), driver.rx.buffer(SIZE)), (driver.tx.used(), driver.tx.used() + 0x1000)]
    {
        let (start, end) = (start as usize, end as usize);
        let memory = machine.bytes(0, MEMORY as usize);
        assert!(copy[start..end] == memory[start..end], "a page was missed");
    }
}

#[test]
fn its_capabilities_name_its_structures() {
    let machine = Machine::new(None, &[("mac", "02:00:00:00:00:07")]);
    let info = machine.device.info();
    assert_eq!((info.vendor_id, info.device_id, info.ports), (0x1af4, 0x1041, 1));
    let kinds: Vec<_> = info.caps.iter().map(|cap| (cap.id, cap.body[1], cap.length())).collect();
    assert_eq!(kinds, [(9, 1, 16), (9, 2, 20), (9, 3, 16), (9, 4, 16), (9, 5, 20)]);
    machine.run();
    // The window in configuration space reads what the BAR would.
    machine.device.cap_write(4, 8, &0x2000_u32.to_le_bytes()).unwrap();
    machine.device.cap_write(4, 12, &4_u32.to_le_bytes()).unwrap();
    let mut data = [0; 4];
    machine.device.cap_read(4, 16, &mut data).unwrap();
    assert_eq!(data, [2, 0, 0, 0]);
    machine.device.cap_write(4, 8, &0x14_u32.to_le_bytes()).unwrap();
    machine.device.cap_write(4, 12, &1_u32.to_le_bytes()).unwrap();
    machine.device.cap_write(4, 16, &[3]).unwrap();
    assert_eq!(machine.get(0x14), 3);
    let machine = machine.migrate(&[("mac", "02:00:00:00:00:07")]);
    machine.device.cap_read(4, 16, &mut data).unwrap();
    assert_eq!(data[0], 3, "the window moves too");
}
