//! The stop and the switch between two machines, with real KVM, and devices that do what they want.

use std::time::Duration;

use drogher_iommu_types::Oa;
use drogher_migrate::{DeviceRead, HeldLease, Lease, SourceHost, VmId};

use super::super::source::SourceGuest;
use super::*;
use crate::boot::Kernel;
use crate::common::{PORT, TestPort, asm, elf, peek, skipped, until};
use crate::device::DeviceSet;
use crate::device::fake::{ALL, BELL, Can, Fake, lock, makers};
use crate::device::testing::Driver;
use crate::memory::GuestRam;
use crate::record::{Reader, Tag};
use crate::wiring::Wiring;

/// Where the tests' guests have their tables: GDT, IDT, and what LGDT and LIDT are given.
const GDT: u32 = 0x3000;
const IDT: u32 = 0x4000;
const DESCRIPTORS: u32 = 0x3100;
/// The handler, from the code's start.
const HANDLER: usize = 0x100;
/// The vector of the device's first interrupt.
const VECTOR: u32 = 0x40;

/// A guest with one fake device, and the lease that it runs under.
struct Side {
    guest: Arc<Guest>,
    fake: Arc<Fake>,
    lease: HeldLease,
    _folder: tempfile::TempDir,
}

/// A machine with one device, loaded with nothing, running under nobody's permits yet.
fn side(can: Can, ram: Option<Arc<GuestRam>>, port: &Arc<TestPort>) -> Side {
    let fakes = Arc::default();
    let mut config = MachineConfig::new(16 << 20, 1);
    config.ram = ram;
    let make = |spaces: &_, wiring: &_| {
        DeviceSet::with_makers(makers(&[can], &fakes, &Arc::default()), spaces, wiring)
    };
    let machine = Machine::assemble(config, |_| {}, make).expect("a machine");
    machine.vm().claim_pio(PORT..PORT + 4, Arc::clone(port) as _).expect("a free port");
    let folder = tempfile::tempdir().expect("a folder");
    let (path, id) = (folder.path().join("lease"), VmId([7; 16]));
    let lease = Lease::acquire_new(&path, id).expect("a new lease");
    let fake = lock(&fakes).pop().expect("one device");
    Side { guest: Guest::new(machine, id, path), fake, lease, _folder: folder }
}

impl Side {
    fn boot(&self, code: &[u8]) {
        let kernel = Kernel { name: "test", image: &elf(code), cmdline: "", initrd: None };
        self.guest.machine().load_kernel(&kernel).expect("the kernel loads");
        self.guest.start(&self.lease.permits(), false).expect("it starts");
    }
}

/// Enables the local APIC and interrupts, says 1 at the port, spins; each interrupt says its vector.
fn listening() -> Vec<u8> {
    let mut code = [
        // mov esp, 0x8000; lgdt; lidt; mov [spurious vector], enable
        vec![0xBC, 0, 0x80, 0, 0],
        [&[0x0F, 0x01, 0x15], &DESCRIPTORS.to_le_bytes()[..]].concat(),
        [&[0x0F, 0x01, 0x1D], &(DESCRIPTORS + 8).to_le_bytes()[..]].concat(),
        vec![0xC7, 0x05, 0xF0, 0, 0xE0, 0xFE, 0xFF, 0x01, 0, 0],
        asm::mov_edx(PORT.into()),
        asm::mov_eax(1),
        asm::OUT_EAX.to_vec(),
        vec![0xFB],
        asm::SPIN.to_vec(),
    ]
    .concat();
    assert!(code.len() <= HANDLER);
    code.resize(HANDLER, 0x90);
    // mov [end of interrupt], 0; out dx, eax; then go on as if from the start: not every KVM that
    // emulates ring 0 has IRET without long mode.
    code.extend_from_slice(&[0xC7, 0x05, 0xB0, 0, 0xE0, 0xFE, 0, 0, 0, 0]);
    code.extend(asm::mov_eax(VECTOR));
    code.extend_from_slice(asm::OUT_EAX);
    code.extend_from_slice(&[0xBC, 0, 0x80, 0, 0, 0xFB]);
    code.extend_from_slice(asm::SPIN);
    code
}

/// Flat segments, and a gate for [`VECTOR`].
fn write_tables(ram: &GuestRam) {
    let put = |at: u32, bytes: &[u8]| ram.write_at(Oa(at.into()), bytes).expect("inside RAM");
    for (n, entry) in (0..).zip([0_u64, 0x00CF_9A00_0000_FFFF, 0x00CF_9200_0000_FFFF]) {
        put(GDT + 8 * n, &entry.to_le_bytes());
    }
    let handler = crate::common::BASE + HANDLER as u32;
    let (low, high) = (8 << 16 | handler & 0xFFFF, handler & 0xFFFF_0000 | 0x8E00);
    put(IDT + 8 * VECTOR, &low.to_le_bytes());
    put(IDT + 8 * VECTOR + 4, &high.to_le_bytes());
    for (at, limit, base) in [(DESCRIPTORS, 23_u16, GDT), (DESCRIPTORS + 8, 0x7FF, IDT)] {
        put(at, &limit.to_le_bytes());
        put(at + 2, &base.to_le_bytes());
    }
}

/// Everything of the stopped device.
fn device_state(source: &mut SourceGuest) -> Vec<u8> {
    let (mut all, mut buf) = (Vec::new(), [0; 512]);
    loop {
        match source.device_state(0, &mut buf).expect("it is saved") {
            DeviceRead::Bytes(len) => all.extend_from_slice(&buf[..len]),
            DeviceRead::NoMoreNow => panic!("the device stands"),
            DeviceRead::End => return all,
        }
    }
}

/// True if the saved local APIC of vCPU 0 has `vector` in its interrupt request register.
fn requested(machine_state: &[u8], vector: usize) -> bool {
    let (cpu, _) = part(machine_state, "vCPU").expect("it is whole");
    let reader = Reader::new(cpu, 1).expect("it is well formed");
    let lapic = reader.bytes(Tag::Lapic, 0).expect("it is there");
    lapic[0x200 + vector / 32 * 16 + vector % 32 / 8] >> (vector % 8) & 1 == 1
}

/// The device finishes something while it is being stopped, and interrupts: the last moment at
/// which it may. The interrupt must be in the state that moves.
///
/// Caught mutant: `vcpu-state-before-last-device`.
#[test]
fn an_interrupt_of_the_last_device_to_stop_arrives() {
    if skipped("an_interrupt_of_the_last_device_to_stop_arrives") {
        return;
    }
    let port = TestPort::new(|_| {});
    // Under NDMA it could not interrupt any more.
    let can = Can { ndma: false, p2p: false, ..ALL };
    let from = side(can, None, &port);
    let ram = Arc::clone(from.guest.machine().ram());
    write_tables(&ram);
    from.boot(&listening());
    Driver(from.guest.machine().devices()).drive(1);
    assert_eq!(port.wait_writes(1), [1]);
    from.fake.irq(0);
    assert_eq!(port.wait_writes(2), [1, VECTOR], "interrupts work at all");

    from.fake.interrupt_at_stop(0);
    let mut source = SourceGuest::new(Arc::clone(&from.guest), Default::default());
    source.pause_vcpus().expect("they stop");
    source.quiesce().expect("it is quiet");
    source.stop().expect("all stands");
    assert_eq!(from.lease.permits().out(), 0, "nothing holds a permit any more");
    let device = device_state(&mut source);
    let mut state = Vec::new();
    source.machine_state(&mut state).expect("it is saved");
    assert!(requested(&state, VECTOR as usize), "the interrupt is not in the saved state");
    assert_eq!(port.writes(), [1, VECTOR], "nobody runs to take it");

    let to = side(can, Some(ram), &port);
    to.guest.machine().devices().begin_resume().expect("it is ready");
    let mut destination = DestinationGuest {
        setup: None,
        trial: Trial::default(),
        guest: Some(Arc::clone(&to.guest)),
        mapped: true,
        extents: Extents::default(),
        large_pages: false,
        running: false,
    };
    assert_places(&mut destination, to.guest.machine().ram());
    destination.load_device(0, &device).expect("it is taken");
    destination.finish_device(0).expect("it is complete");
    destination.load_machine(&state).expect("it is taken");
    destination.run(&to.lease.permits(), false).expect("it goes on");
    assert!(destination.ram_mut(PLACE).is_none(), "RAM is the guest's again");
    assert_eq!(port.wait_writes(3), [1, VECTOR, VECTOR]);
    to.fake.irq(0);
    assert_eq!(port.wait_writes(4).len(), 4, "and interrupts work on");
    to.guest.end().expect("it stops");
    assert_eq!(port.writes().len(), 4, "each exactly once");
}

/// Pages that nothing here uses.
const PLACE: Range<u64> = 0x300..0x302;

/// A destination gives RAM away to be written once that is cheap, where it is, and no more of it.
fn assert_places(destination: &mut DestinationGuest, ram: &GuestRam) {
    let place = destination.ram_mut(PLACE).expect("it is mapped");
    assert_eq!(place.len(), 8192);
    place.fill(0x5A);
    let mut bytes = [0; 3 * 4096];
    ram.read_at(Oa(PLACE.start << 12), &mut bytes).expect("inside");
    assert!(bytes[..8192].iter().all(|b| *b == 0x5A) && bytes[8192..].iter().all(|b| *b == 0));
    assert!(destination.ram_mut(1 << 30..(1 << 30) + 1).is_none(), "no RAM there");
    destination.mapped = false;
    assert!(destination.ram_mut(PLACE).is_none(), "each page would be a fault");
    destination.mapped = true;
}

/// Where the storming guest counts.
const COUNTER: u32 = 0x20_0000;

#[test]
fn a_doorbell_storm_keeps_nothing_from_standing_still() {
    if skipped("a_doorbell_storm_keeps_nothing_from_standing_still") {
        return;
    }
    let port = TestPort::new(|_| {});
    let side = side(ALL, None, &port);
    let driver = Driver(side.guest.machine().devices());
    driver.config_write(1, 4, 6);
    let bell = u32::try_from(driver.bar(1, 0) + BELL).expect("below 4 GiB");
    // again: mov [bell], eax; inc eax; mov [COUNTER], eax; jmp again
    let code =
        [&[0xA3][..], &bell.to_le_bytes(), &[0x40, 0xA3], &COUNTER.to_le_bytes(), &[0xEB, 0xF3]];
    side.boot(&code.concat());
    let ram = Arc::clone(side.guest.machine().ram());
    for round in 0..10 {
        let (rung, counted) = (side.fake.rung().len(), peek(&ram, COUNTER));
        until("the storm", || {
            side.fake.rung().len() > rung && peek(&ram, COUNTER) > counted.saturating_add(1000)
        });
        let mut source = SourceGuest::new(Arc::clone(&side.guest), Default::default());
        source.pause_vcpus().expect("they stop");
        source.quiesce().expect("it is quiet");
        source.stop().expect("all stands");
        let (rung, counted) = (side.fake.rung().len(), peek(&ram, COUNTER));
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(side.fake.rung().len(), rung, "round {round}: a doorbell after the stop");
        assert_eq!(peek(&ram, COUNTER), counted, "round {round}: the guest runs");
        assert_eq!(side.lease.permits().out(), 0);
        source.resume(&side.lease.permits()).expect("it goes on");
    }
    side.guest.end().expect("it stops");
}

#[test]
fn a_migration_that_ends_in_its_setup_has_no_figures_of_an_earlier_one() {
    if skipped("a_migration_that_ends_in_its_setup_has_no_figures_of_an_earlier_one") {
        return;
    }
    let port = TestPort::new(|_| {});
    let side = side(ALL, None, &port);
    let mut first = SourceGuest::new(Arc::clone(&side.guest), Default::default());
    first.config().expect("it can move");
    first.track_start().expect("it starts");
    first.track_stop().expect("it was given up");
    assert!(side.guest.tracking_report().is_some());
    let mut second = SourceGuest::new(Arc::clone(&side.guest), Default::default());
    second.config().expect("it can move");
    assert_eq!(side.guest.tracking_report(), None);
}
