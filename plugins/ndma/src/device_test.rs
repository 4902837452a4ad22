use super::*;
use crate::descriptor::{FLAG_OWN, Status};
use crate::regs::{CONTROL, CONTROL_ENABLE, CONTROL_IRQ_ENABLE, RingError};
use crate::testing::{Access, Desc, RING, Rig, TestBus, assert_same, noise};

const SRC: u64 = 0x10_0000;
const DST: u64 = 0x20_0000;

#[test]
fn each_operation_through_the_ring() {
    let mut rig = Rig::with_ring(8);
    let bytes = noise(200_000, 1);
    rig.bus.put(SRC, &bytes);
    assert_eq!(rig.run(Desc::new(1, SRC, DST, 200_000)), (1, 200_000));
    assert_same(&rig.bus.bytes(DST, 200_000), &bytes);
    let pattern = u64::from_le_bytes(*b"drogher!");
    assert_eq!(rig.run(Desc { arg: pattern, ..Desc::new(2, 0, DST, 10) }), (1, 10));
    assert_eq!(rig.bus.bytes(DST, 10), b"drogher!dr");
    rig.bus.put(SRC, &[1, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(rig.run(Desc::new(3, SRC, 0, 16)), (1, 7));
    rig.bus.put(0x8000, &(DST + 100).to_le_bytes());
    rig.bus.put(0x8008, &16_u64.to_le_bytes());
    assert_eq!(rig.run(Desc { arg: 1, ..Desc::new(4, SRC, 0x8000, 16) }), (1, 16));
    assert_eq!(rig.bus.bytes(DST + 100, 16), rig.bus.bytes(SRC, 16));
    assert_eq!(rig.run(Desc::new(5, SRC, 65520, 16)), (1, 16));
    assert_eq!(rig.run(Desc::new(6, 65520, DST + 200, 16)), (1, 16));
    assert_eq!(rig.bus.bytes(DST + 200, 16), rig.bus.bytes(SRC, 16));
    assert_eq!(rig.get64(regs::COMPLETED), 6);
    assert_eq!(rig.get64(regs::BYTES), 200_000 + 10 + 16 * 4);
    assert_eq!(rig.bus.irqs(), [0; 6]);
}

#[test]
fn bad_descriptors_come_back_and_the_ring_goes_on() {
    let mut rig = Rig::with_ring(4);
    let top = u64::MAX - 100;
    for (desc, status, result) in [
        (Desc::new(0, SRC, DST, 8), Status::BadOpcode, 0),
        (Desc::new(1, SRC, DST, 0), Status::BadLength, 0),
        (Desc::new(3, SRC + 1, DST, 8), Status::BadAlignment, 0),
        (Desc::new(1, top, DST, 8), Status::SourceFault, 0),
        (Desc::new(2, SRC, (4 << 20) - 5, 8), Status::DestinationFault, 5),
        (Desc::new(4, SRC, DST, 8), Status::BadList, 0),
        (Desc::new(5, SRC, 65536, 8), Status::BadLength, 0),
    ] {
        assert_eq!(rig.run(desc), (status as u32, result), "{desc:?}");
    }
    assert_eq!(rig.get64(regs::COMPLETED), 7);
    assert_eq!(rig.get64(regs::BYTES), 5);
    assert_eq!(rig.get(regs::ERROR), 0);
}

#[test]
fn the_ring_wraps_and_runs_dry() {
    let mut rig = Rig::with_ring(4);
    for round in 0..5_u64 {
        for index in 0..3 {
            let place = (round * 3 + index) % 4;
            rig.put(place, Desc { arg: round * 3 + index, ..Desc::new(2, 0, DST + index * 8, 8) });
        }
        rig.kick();
        for index in 0..3 {
            assert_eq!(rig.bus.u64(DST + index * 8), round * 3 + index);
        }
        assert_eq!(u64::from(rig.get(regs::NEXT)), (round + 1) * 3 % 4);
    }
    assert_eq!(rig.get64(regs::COMPLETED), 15);
}

#[test]
fn a_full_ring_is_taken_once() {
    let mut rig = Rig::with_ring(2);
    rig.put(0, Desc::new(2, 0, DST, 8));
    rig.put(1, Desc::new(2, 0, DST, 8));
    rig.kick();
    assert_eq!((rig.get(regs::NEXT), rig.get64(regs::COMPLETED)), (0, 2));
}

#[test]
fn interrupts_need_both_the_flag_and_the_register() {
    let mut rig = Rig::with_ring(8);
    rig.run(Desc { flags: FLAG_OWN, ..Desc::new(2, 0, DST, 8) });
    assert_eq!(rig.bus.irqs(), []);
    rig.set(CONTROL, CONTROL_ENABLE);
    rig.run(Desc::new(2, 0, DST, 8));
    assert_eq!(rig.bus.irqs(), []);
    rig.set(CONTROL, CONTROL_ENABLE | CONTROL_IRQ_ENABLE);
    rig.run(Desc::new(2, 0, DST, 8));
    assert_eq!(rig.bus.irqs(), [0]);
    let log = rig.bus.world().log.clone();
    let irq = log.iter().position(|access| *access == Access::Irq(0)).unwrap();
    assert_eq!(log[irq - 1], Access::Write(RING + 2 * 64, 8), "after OWN was cleared");
    assert_eq!(log[irq + 1], Access::Read(RING + 3 * 64, 8), "before the next look");
}

#[test]
fn a_ring_fault_halts_and_disable_enable_recovers() {
    let mut rig = Rig::with_ring(4);
    rig.put(0, Desc::new(2, 0, DST, 8));
    rig.bus.world().no_read = RING + 64..RING + 128;
    rig.kick();
    assert_eq!(rig.get(regs::STATUS), regs::STATUS_ENABLED | regs::STATUS_HALTED);
    assert_eq!((rig.get(regs::ERROR), rig.get(regs::NEXT)), (RingError::Read as u32, 1));
    assert_eq!(rig.bus.irqs(), [0, 1]);
    rig.bus.world().no_read = 0..0;
    let accesses = rig.bus.world().log.len();
    rig.kick();
    assert_eq!(rig.bus.world().log.len(), accesses, "halted");

    rig.set(CONTROL, 0);
    rig.set(regs::ERROR, 0);
    assert_eq!((rig.get(regs::STATUS), rig.get(regs::ERROR)), (0, 0));
    rig.set(CONTROL, CONTROL_ENABLE);
    assert_eq!(rig.run(Desc::new(2, 0, DST, 8)), (1, 8));
}

#[test]
fn the_error_vector_obeys_irq_enable() {
    let mut rig = Rig::with_ring(4);
    rig.set(CONTROL, CONTROL_ENABLE);
    rig.bus.world().no_read = RING..RING + 8;
    rig.kick();
    assert_eq!(rig.get(regs::ERROR), RingError::Read as u32);
    assert_eq!(rig.bus.irqs(), []);
}

#[test]
fn disable_waits_for_the_descriptor_at_hand() {
    let mut rig = Rig::with_ring(8);
    for index in 0..8 {
        rig.put(index, Desc::new(2, 0, DST + index * 8, 8));
    }
    rig.bus.world().block = Some(DST + 8);
    rig.device.doorbell(0).unwrap();
    rig.bus.wait_blocked();
    let bus = rig.bus.clone();
    let release = std::thread::spawn(move || bus.unblock());
    rig.set(CONTROL, CONTROL_IRQ_ENABLE);
    rig.bus.world().silent = true;
    release.join().unwrap();
    assert!(rig.get64(regs::COMPLETED) >= 2);
    assert_eq!(rig.get(regs::STATUS), 0);
    drop(rig.device);
    assert_eq!(rig.bus.world().violations, []);
}

#[test]
fn a_doorbell_rung_while_disabled_is_kept() {
    let mut rig = Rig::with_ring(8);
    rig.set(CONTROL, 0);
    rig.put(0, Desc::new(2, 0, DST, 8));
    rig.kick();
    assert!(rig.owned(0));
    rig.set(CONTROL, CONTROL_ENABLE);
    rig.settle();
    assert!(!rig.owned(0));
}

#[test]
fn guest_reset_clears_registers_and_memory_but_not_the_state() {
    let mut rig = Rig::with_ring(8);
    rig.bus.put(SRC, &[0xAA; 64]);
    assert_eq!(rig.run(Desc::new(5, SRC, 0, 64)), (1, 64));
    rig.set(CONTROL, regs::CONTROL_RESET);
    for offset in [CONTROL, regs::STATUS, regs::RING_ENTRIES, regs::NEXT, regs::COMPLETED] {
        assert_eq!(rig.get(offset), 0);
    }
    rig.enable(8);
    assert_eq!(rig.run(Desc::new(6, 0, DST, 64)), (1, 64));
    assert_eq!(rig.bus.bytes(DST, 64), [0; 64]);
}

#[test]
fn doorbells_by_register_write_work_too() {
    let mut rig = Rig::with_ring(8);
    rig.put(0, Desc::new(2, 0, DST, 8));
    rig.set(regs::DOORBELL, 0xFFFF_FFFF);
    rig.settle();
    assert!(!rig.owned(0));
}

#[test]
fn ndma_finishes_the_descriptor_and_latches_doorbells() {
    let mut rig = Rig::with_ring(8);
    for index in 0..4 {
        rig.put(index, Desc::new(2, 0, DST + index * 8, 8));
    }
    rig.bus.world().block = Some(DST + 8);
    rig.device.doorbell(0).unwrap();
    rig.bus.wait_blocked();
    let bus = rig.bus.clone();
    let release = std::thread::spawn(move || bus.unblock());
    rig.device.enter_ndma().unwrap();
    rig.bus.world().silent = true;
    release.join().unwrap();

    let done = u64::from(rig.get(regs::NEXT));
    assert!(done >= 2 && !rig.owned(done - 1));
    rig.put(4, Desc::new(2, 0, DST + 32, 8));
    rig.device.doorbell(0).unwrap();
    rig.set(regs::ERROR, 0);
    assert_eq!(rig.get(regs::ID), regs::ID_VALUE);
    rig.go(&[State::PreCopy, State::Running, State::RunningP2p, State::Running]);
    rig.go(&[State::RunningP2p, State::Stop, State::RunningP2p, State::Running]);
    assert_eq!(rig.bus.world().violations, []);
    assert_ne!(rig.get(regs::STATUS) & regs::STATUS_BUSY, 0, "the doorbell is latched");

    rig.bus.world().silent = false;
    rig.device.leave_ndma().unwrap();
    rig.settle();
    assert_eq!(rig.get64(regs::COMPLETED), 5);
    assert_eq!(rig.bus.irqs(), [0; 5]);
}

#[test]
fn host_reset_leaves_ndma_sessions_and_doorbells_behind() {
    let mut rig = Rig::with_ring(8);
    rig.go(&[State::PreCopy]);
    rig.device.enter_ndma().unwrap();
    rig.put(0, Desc::new(2, 0, DST, 8));
    rig.device.doorbell(0).unwrap();
    rig.device.reset().unwrap();
    rig.state = State::Stop;
    assert!(rig.device.precopy_info().is_err());
    rig.go(&[State::RunningP2p, State::Running]);
    rig.enable(8);
    rig.settle();
    assert!(rig.owned(0), "the doorbell was forgotten");
    rig.kick();
    assert!(!rig.owned(0), "NDMA was left");
}

#[test]
fn a_wide_device_says_so() {
    let mut rig = Rig::on(TestBus::new(), &[("scratch_kib", "65536")]);
    assert_eq!(rig.get64(regs::SCRATCH_BYTES), 64 << 20);
    rig.enable(2);
    assert_eq!(rig.run(Desc::new(5, SRC, (64 << 20) - 1, 1)), (1, 1));
}

#[test]
fn it_is_what_the_datasheet_says() {
    let rig = Rig::new();
    let info = rig.device.info();
    assert_eq!((info.vendor_id, info.device_id, info.class_code), (0xD70E, 1, 0x080100));
    assert_eq!((info.revision, info.vectors, info.regions.len()), (1, 2, 1));
    assert_eq!(info.regions[0], Region::memory(0, 4096));
    assert_eq!(info.doorbells, [Doorbell { region: 0, offset: 0x800, width: 4 }]);
}

#[test]
fn other_regions_and_doorbells_are_refused() {
    let mut rig = Rig::new();
    assert!(rig.device.region_read(1, 0, &mut [0; 4]).is_err());
    assert!(rig.device.region_write(4, 0, &[0; 4]).is_err());
    assert!(rig.device.doorbell(1).is_err());
}
