//! The built plugin in the real plugin host, doing DMA through the real IOMMU.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use drogher_iommu::{DirtyBitmap, Domain, DomainConfig, Gpa, HeapMemory, Memory, Oa, Perm, Rid};
use drogher_ndma::{descriptor, regs};
use drogher_plugin_host::{HostServices, Instance, InstanceConfig, LogLevel, Plugin, Read, State};

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
        let config = InstanceConfig {
            name: "ndma0".into(),
            params: vec![("scratch_kib".into(), "32".into())],
            ..InstanceConfig::default()
        };
        let device = Instance::create(&plugin, config, requester, services.clone()).unwrap();
        Self { memory, domain, services, device }
    }

    /// Running, ring enabled.
    fn started() -> Self {
        let machine = Self::new(None);
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
