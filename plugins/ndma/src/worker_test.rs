use super::*;
use crate::regs::{CONTROL_ENABLE, Write};
use crate::testing::{Access, Desc, RING, TestBus};

/// A running device with an enabled ring of 8, without the calls around it.
fn engine(bus: &TestBus) -> (Arc<Shared>, Worker) {
    let shared = Arc::new(Shared::new(1));
    shared.with(|inner| {
        inner.running = true;
        inner.regs.apply(Write::RingEntries(8));
        inner.regs.apply(Write::RingBase { value: RING, mask: u64::MAX });
        inner.regs.apply(Write::Control(CONTROL_ENABLE));
    });
    let worker = Worker::start(Arc::clone(&shared), bus.clone()).unwrap();
    (shared, worker)
}

fn fill(index: u64) -> [u8; 64] {
    Desc::new(2, 0, 0x9000 + index * 8, 8).bytes()
}

/// Bounded wait for a condition on the registers.
fn wait(shared: &Shared, what: &str, until: impl Fn(&Inner) -> bool) {
    let begin = std::time::Instant::now();
    while !shared.peek(&until) {
        assert!(begin.elapsed() < crate::testing::DEADLINE, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_doorbell_rung_during_the_last_look_is_not_lost() {
    let bus = TestBus::new();
    // The look at an empty ring blocks in the middle: OWN is about to be read.
    bus.world().block = Some(RING);
    let (shared, _worker) = engine(&bus);
    shared.with(|inner| inner.regs.apply(Write::Doorbell));
    bus.wait_blocked();
    shared.with(|inner| inner.regs.apply(Write::Doorbell));
    bus.unblock();
    wait(&shared, "second look", |inner| !inner.busy && !inner.regs.doorbell);
    assert_eq!(bus.world().log, [Access::Read(RING, 8), Access::Read(RING, 8)]);
}

#[test]
fn idle_is_after_the_descriptor_at_hand_and_before_the_next() {
    let bus = TestBus::new();
    for index in 0..4 {
        bus.put(RING + index * 64, &fill(index));
    }
    bus.world().block = Some(0x9008);
    let (shared, _worker) = engine(&bus);
    shared.with(|inner| inner.regs.apply(Write::Doorbell));
    bus.wait_blocked();
    let stopper = std::thread::spawn({
        let (shared, bus) = (Arc::clone(&shared), bus.clone());
        move || {
            shared.while_idle(|inner| {
                inner.running = false;
                bus.world().silent = true;
                inner.regs
            })
        }
    });
    wait(&shared, "hold", |inner| inner.hold);
    bus.unblock();
    let regs = stopper.join().unwrap().unwrap();
    assert_eq!((regs.next, regs.completed, regs.bytes), (2, 2, 16));
    assert!(regs.doorbell, "the rest of the ring is still to be looked at");
    assert_eq!(bus.world().violations, []);

    bus.world().silent = false;
    shared.with(|inner| inner.running = true);
    wait(&shared, "the rest", |inner| inner.regs.completed == 4 && !inner.busy);
}

#[test]
fn a_worker_that_hangs_is_reported_and_changes_nothing() {
    let bus = TestBus::new();
    bus.put(RING, &fill(0));
    bus.world().block = Some(0x9000);
    let (shared, worker) = engine(&bus);
    shared.with(|inner| inner.regs.apply(Write::Doorbell));
    bus.wait_blocked();
    let error = shared.while_idle(|inner| inner.running = false).unwrap_err();
    assert_eq!(error, NotParked { next: 0 });
    assert!(error.to_string().contains("descriptor 0"), "{error}");
    assert!(shared.peek(|inner| inner.running && !inner.hold));
    bus.unblock();
    drop(worker);
    assert_eq!(shared.peek(|inner| inner.regs.completed), 1);
}

#[test]
fn between_paced_descriptors_the_worker_is_idle_and_a_new_rate_wakes_it() {
    let bus = TestBus::new();
    for index in 0..2 {
        bus.put(RING + index * 64, &Desc::new(2, 0, 0x9000, 4096).bytes());
    }
    let (shared, worker) = engine(&bus);
    // The second would come in an hour.
    shared.pace(1);
    shared.with(|inner| inner.regs.apply(Write::Doorbell));
    wait(&shared, "the first", |inner| inner.regs.completed == 1 && !inner.busy);
    let next = shared.while_idle(|inner| inner.regs.next).unwrap();
    assert_eq!((next, shared.peek(|inner| inner.regs.wants_work())), (1, true));
    shared.pace(0);
    wait(&shared, "the second", |inner| inner.regs.completed == 2);
    shared.pace(1);
    bus.put(RING + 128, &Desc::new(2, 0, 0x9000, 4096).bytes());
    bus.put(RING + 192, &Desc::new(2, 0, 0x9000, 4096).bytes());
    shared.with(|inner| inner.regs.apply(Write::Doorbell));
    wait(&shared, "the third", |inner| inner.regs.completed == 3 && !inner.busy);
    drop(worker);
    assert_eq!(shared.peek(|inner| inner.regs.completed), 3, "it ended in its wait");
}

#[test]
fn dropping_the_worker_ends_it() {
    let bus = TestBus::new();
    let (shared, worker) = engine(&bus);
    drop(worker);
    assert_eq!(Arc::strong_count(&shared), 1);
}

#[test]
fn a_worker_that_panicked_never_looks_parked() {
    let bus = TestBus::new();
    bus.put(RING, &fill(0));
    bus.world().block = Some(0x9000);
    let (shared, worker) = engine(&bus);
    shared.with(|inner| inner.regs.apply(Write::Doorbell));
    bus.wait_blocked();
    bus.world().panic_at = Some(0x9000);
    bus.unblock();
    drop(worker);
    assert_eq!(shared.while_idle(|_| ()), Err(NotParked { next: 0 }));
}
