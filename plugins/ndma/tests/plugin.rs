//! The built plugin in the real plugin host, doing DMA through the real IOMMU.
#![allow(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use drogher_iommu::{DirtyBitmap, Domain, DomainConfig, Gpa, HeapMemory, Memory, Oa, Perm, Rid};
use drogher_ndma::{descriptor, regs};
use drogher_plugin_host::{HostServices, Instance, InstanceConfig, LogLevel, Plugin, Read, State};
use drogher_tracking::{DeviceLog, PinBoard, TrackingPageSize};

const MEMORY: u64 = 4 << 20;
const RING: u64 = 0x1000;
const ENTRIES: u32 = 64;
const SRC: u64 = 0x10_0000;
const DST: u64 = 0x20_0000;
const DEADLINE: Duration = Duration::from_secs(20);

/// The library that this build made, beside this test.
fn library() -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.set_file_name("libdrogher_ndma.so");
    path
}

#[derive(Default)]
struct Services {
    irqs: Mutex<Vec<u16>>,
}

impl HostServices for Services {
    fn irq(&self, vector: u16) {
        self.irqs.lock().unwrap().push(vector);
    }

    fn log(&self, _: LogLevel, text: &str) {
        println!("log: {text}");
    }
}

/// A process of its own, so to speak: memory, address space, one device.
struct Machine {
    memory: Arc<HeapMemory>,
    domain: Domain,
    services: Arc<Services>,
    device: Instance,
}

impl Machine {
    /// A stopped device, tracking on; memory as `from` has it.
    fn new(from: Option<&Machine>) -> Self {
        Self::with(from, &[])
    }

    fn with(from: Option<&Machine>, params: &[(&str, &str)]) -> Self {
        let memory = Arc::new(HeapMemory::new(MEMORY));
        if let Some(from) = from {
            let mut bytes = vec![0; MEMORY as usize];
            from.memory.read(Oa(0), &mut bytes).unwrap();
            memory.write(Oa(0), &bytes).unwrap();
        }
        let domain = Domain::new(memory.clone(), DomainConfig::default()).unwrap();
        domain.map(Gpa(0)..Gpa(MEMORY), Oa(0), Perm::READ_WRITE).unwrap();
        domain.start_tracking().unwrap();
        let requester = domain.attach(Rid(8)).unwrap();
        let services = Arc::new(Services::default());
        let plugin = Plugin::open(&library()).unwrap();
        let mut all = vec![("scratch_kib".to_owned(), "32".to_owned())];
        all.extend(params.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let config =
            InstanceConfig { name: "ndma0".into(), params: all, ..InstanceConfig::default() };
        let device = Instance::create(&plugin, config, requester, services.clone()).unwrap();
        Self { memory, domain, services, device }
    }

    /// Running, ring enabled.
    fn started() -> Self {
        Self::started_with(&[])
    }

    fn started_with(params: &[(&str, &str)]) -> Self {
        let machine = Self::with(None, params);
        machine.device.set_state(State::Running).unwrap();
        machine.set(regs::RING_ENTRIES, &ENTRIES.to_le_bytes());
        machine.set(regs::RING_BASE, &RING.to_le_bytes());
        let control = regs::CONTROL_ENABLE | regs::CONTROL_IRQ_ENABLE;
        machine.set(regs::CONTROL, &control.to_le_bytes());
        machine
    }

    fn set(&self, offset: u64, value: &[u8]) {
        self.device.region_write(0, offset, value).unwrap();
    }

    fn get(&self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.device.region_read(0, offset, &mut data[..4]).unwrap();
        u64::from_le_bytes(data)
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(Oa(at), &mut bytes).unwrap();
        bytes
    }

    fn put(&self, index: u64, opcode: u16, operands: [u64; 4]) {
        let flags = descriptor::FLAG_OWN | descriptor::FLAG_IRQ;
        let head = u64::from(opcode) | u64::from(flags) << 16;
        let at = RING + index % u64::from(ENTRIES) * descriptor::SIZE;
        for (offset, value) in [8, 0x10, 0x18, 0x20].into_iter().zip(operands) {
            self.memory.write(Oa(at + offset), &value.to_le_bytes()).unwrap();
        }
        self.memory.write(Oa(at), &head.to_le_bytes()).unwrap();
    }

    fn settle(&self) {
        let begin = Instant::now();
        while self.get(regs::STATUS) & u64::from(regs::STATUS_BUSY) != 0 {
            assert!(begin.elapsed() < DEADLINE, "still busy");
            std::thread::yield_now();
        }
    }

    fn read_state(&self, limit: usize) -> Vec<u8> {
        let mut all = Vec::new();
        let mut piece = [0; 1500];
        while all.len() < limit {
            match self.device.read_state(&mut piece).unwrap() {
                Read::Bytes(n) => all.extend_from_slice(&piece[..n]),
                Read::NoMoreNow | Read::End => break,
            }
        }
        all
    }

    /// Stops, and goes on in another machine.
    fn migrate(self, mut state: Vec<u8>) -> Self {
        self.device.set_state(State::StopCopy).unwrap();
        let before = self.device.dma_stats();
        state.extend(self.read_state(usize::MAX));
        let other = Self::new(Some(&self));
        other.services.irqs.lock().unwrap().clone_from(&self.services.irqs.lock().unwrap());
        other.device.set_state(State::Resuming).unwrap();
        other.device.write_state(&state).unwrap();
        other.device.set_state(State::Running).unwrap();
        assert_eq!(self.device.dma_stats(), before, "DMA after STOP");
        let stats = self.device.stats();
        assert_eq!((stats.dma_refused, stats.irqs_refused), (0, 0), "the host had to step in");
        other
    }
}

#[test]
fn copies_then_moves_to_a_second_instance() {
    let machine = Machine::started();
    let text = b"carried from one ship to another";
    machine.memory.write(Oa(SRC), text).unwrap();
    machine.put(0, 1, [SRC, DST, 32, 0]);
    machine.put(1, 5, [SRC, 1000, 32, 0]);
    machine.device.doorbell(0).unwrap();
    machine.settle();
    assert_eq!(machine.bytes(DST, 32), text);
    assert_eq!(*machine.services.irqs.lock().unwrap(), [0, 0]);

    let dirty = DirtyBitmap::new(Gpa(0)..Gpa(MEMORY)).unwrap();
    machine.domain.read_and_clear_dirty(Gpa(0)..Gpa(MEMORY), &dirty).unwrap();
    assert!(dirty.test(Gpa(DST)) && dirty.test(Gpa(RING)));
    assert!(!dirty.test(Gpa(SRC)));
    assert_eq!(dirty.count().0, 2);

    machine.device.set_state(State::PreCopy).unwrap();
    assert!(machine.device.precopy_info().unwrap().initial_bytes > 32 << 10);
    let state = machine.read_state(usize::MAX);
    assert_eq!(machine.device.precopy_info().unwrap().initial_bytes, 0);
    // Dirtied again, and a doorbell that only the destination serves.
    machine.put(2, 5, [SRC + 8, 8000, 8, 0]);
    machine.device.doorbell(0).unwrap();
    machine.settle();
    machine.device.set_state(State::PreCopyP2p).unwrap();
    machine.put(3, 6, [1000, DST + 100, 32, 0]);
    machine.device.doorbell(0).unwrap();

    let other = machine.migrate(state);
    other.settle();
    assert_eq!(other.bytes(DST + 100, 32), text);
    assert_eq!(other.get(regs::COMPLETED), 4);
    other.put(4, 6, [8000, DST + 200, 8, 0]);
    other.device.doorbell(0).unwrap();
    other.settle();
    assert_eq!(other.bytes(DST + 200, 8), &text[8..16]);
    assert_eq!(*other.services.irqs.lock().unwrap(), [0; 5]);
}

#[test]
fn a_chain_of_moves_with_the_ring_in_flight_loses_nothing() {
    let mut machine = Machine::started();
    let mut done = 0;
    for round in 0..20_u64 {
        for index in 0..u64::from(ENTRIES) {
            let seed = round * 1000 + index;
            machine.put(index, 2, [0, DST + index * 0x2000, 0x2000, seed]);
        }
        machine.device.set_state(State::PreCopy).unwrap();
        machine.device.doorbell(0).unwrap();
        let state = machine.read_state((round * 3000) as usize);
        machine = machine.migrate(state);
        machine.settle();
        done += u64::from(ENTRIES);
        assert_eq!(machine.get(regs::COMPLETED), done);
        assert_eq!(machine.services.irqs.lock().unwrap().len() as u64, done);
        for index in 0..u64::from(ENTRIES) {
            let expected = (round * 1000 + index).to_le_bytes().repeat(0x400);
            assert!(machine.bytes(DST + index * 0x2000, 0x2000) == expected, "{round} {index}");
        }
    }
}

#[test]
fn ndma_ends_dma_while_the_device_runs() {
    let machine = Machine::started();
    machine.device.enter_ndma().unwrap();
    let before = machine.device.dma_stats();
    machine.put(0, 2, [0, DST, 8, 7]);
    machine.device.doorbell(0).unwrap();
    assert_eq!(machine.get(regs::ID), u64::from(regs::ID_VALUE));
    assert_ne!(machine.get(regs::STATUS) & u64::from(regs::STATUS_BUSY), 0);
    assert_eq!(machine.device.dma_stats(), before);
    machine.device.leave_ndma().unwrap();
    machine.settle();
    assert_eq!(machine.bytes(DST, 8), 7_u64.to_le_bytes());
    assert_eq!(machine.device.stats().dma_refused, 0);
}

#[test]
fn dma_outside_memory_is_the_guests_error() {
    let machine = Machine::started();
    machine.put(0, 2, [0, MEMORY - 8, 4096, 7]);
    machine.device.doorbell(0).unwrap();
    machine.settle();
    let at = RING + 4;
    assert_eq!(machine.bytes(at, 4), [descriptor::Status::DestinationFault as u8, 0, 0, 0]);
    assert_eq!(machine.get(regs::BYTES), 8);
    assert_eq!(machine.device.state(), State::Running);
}

#[test]
fn reset_and_bad_parameters() {
    let machine = Machine::started();
    machine.device.reset().unwrap();
    machine.device.set_state(State::Running).unwrap();
    assert_eq!(machine.get(regs::RING_ENTRIES), 0);
    assert_eq!(machine.device.param_get("scratch_kib").unwrap(), "32");

    let plugin = Plugin::open(&library()).unwrap();
    for (name, value) in [("scratch_kib", "5"), ("scratch_kib", "0"), ("scratch_mib", "1")] {
        let config = InstanceConfig {
            name: "ndma1".into(),
            params: vec![(name.into(), value.into())],
            ..InstanceConfig::default()
        };
        let requester = machine.domain.attach(Rid(16)).unwrap();
        let services = Arc::new(Services::default());
        let error = Instance::create(&plugin, config, requester, services).unwrap_err();
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        assert!(text.contains(name), "{text}");
    }
}

/// What copies memory by what the device's log or its pins say, and by nothing else.
struct Copier {
    log: Option<Arc<dyn DeviceLog>>,
    pins: Option<Arc<PinBoard>>,
    page_size: TrackingPageSize,
    copy: Vec<u8>,
}

impl Copier {
    /// The device's log, or else its pins, started; then everything is copied.
    fn start(machine: &Machine, page_size: TrackingPageSize) -> Self {
        let log = machine.device.device_log().map(|(_, log)| log);
        if let Some(log) = &log {
            assert_eq!(log.start(&[Gpa(0)..Gpa(MEMORY)], page_size).unwrap(), page_size);
        }
        let pins = machine.device.pin_board().filter(|_| log.is_none());
        if let Some(pins) = &pins {
            pins.start_recording().unwrap();
        }
        assert!(log.is_some() || pins.is_some());
        Self { log, pins, page_size, copy: machine.bytes(0, MEMORY as usize) }
    }

    fn round(&mut self, machine: &Machine) -> u64 {
        let all = Gpa(0)..Gpa(MEMORY);
        let dirty = DirtyBitmap::new(all.clone()).unwrap();
        if let Some(log) = &self.log {
            log.report(&all, self.page_size, &dirty).unwrap();
        }
        if let Some(pins) = &self.pins {
            pins.harvest(&all, &dirty).unwrap();
        }
        for run in dirty.runs() {
            let bytes = machine.bytes(run.start.0, (run.end.0 - run.start.0) as usize);
            self.copy[run.start.0 as usize..run.end.0 as usize].copy_from_slice(&bytes);
        }
        dirty.count().0
    }
}

/// Each part that the device can play: its DMA races with harvests, and in STOP the copy is memory.
#[test]
fn its_log_and_its_pins_miss_no_write() {
    let parts: [(&[(&str, &str)], TrackingPageSize); 6] = [
        (&[("log", "on")], TrackingPageSize::K4),
        (&[("log", "on"), ("log_min_kib", "64")], TrackingPageSize::K64),
        (&[("log", "shared")], TrackingPageSize::K4),
        (&[("log", "shared"), ("pin", "some")], TrackingPageSize::K16),
        (&[("pin", "all")], TrackingPageSize::K4),
        (&[("pin", "all"), ("log", "on")], TrackingPageSize::K4),
    ];
    for (params, page_size) in parts {
        let machine = Machine::started_with(params);
        let mut copier = Copier::start(&machine, page_size);
        for round in 0..12_u64 {
            for index in 0..u64::from(ENTRIES) {
                let seed = round * 1000 + index;
                let len = 8 * (1 + seed * 37 % 1000);
                machine.put(index, 2, [0, DST + index * 0x2000 + seed % 5 * 8, len, seed]);
            }
            machine.device.doorbell(0).unwrap();
            while machine.get(regs::STATUS) & u64::from(regs::STATUS_BUSY) != 0 {
                copier.round(&machine);
            }
        }
        assert_eq!(machine.get(regs::COMPLETED), 12 * u64::from(ENTRIES));
        machine.device.set_state(State::StopCopy).unwrap();
        copier.round(&machine);
        assert_eq!(copier.round(&machine), 0, "{params:?}: once in STOP");
        // The driver writes to the ring as well.
        let after = (RING + u64::from(ENTRIES) * descriptor::SIZE).next_multiple_of(4096) as usize;
        let memory = machine.bytes(0, MEMORY as usize);
        assert!(copier.copy[after..] == memory[after..], "{params:?}: a page was missed");
        let stats = machine.device.stats();
        assert_eq!((stats.dma_refused, stats.dma_faults), (0, 0), "{params:?}");
    }
}

#[test]
fn memory_can_be_unmapped_under_a_device_that_pins() {
    let machine = Machine::started_with(&[("pin", "all")]);
    for index in 0..u64::from(ENTRIES) {
        machine.put(index, 2, [0, DST, 0x10_0000, index]);
    }
    machine.device.doorbell(0).unwrap();
    let range = Gpa(DST)..Gpa(DST + 0x10_0000);
    let held = machine.device.unmapping(range.clone()).unwrap();
    machine.domain.unmap(range.clone()).unwrap();
    drop(held);
    let before = machine.bytes(DST, 0x10_0000);
    machine.settle();
    assert!(machine.bytes(DST, 0x10_0000) == before, "a write after the unmap");
    assert_eq!(machine.device.state(), State::Running);
    assert_eq!(machine.device.pin_board().unwrap().stats().pins, 0);
}
