use super::*;
use crate::testing::{Access, Desc, RING, TestBus, noise};
use proptest::prelude::*;

fn look(bus: &TestBus) -> Step {
    let scratch = Mutex::new(Scratch::new(16));
    step(bus, &scratch, &mut Bounce::default(), RING)
}

#[test]
fn a_descriptor_of_the_driver_is_left_alone() {
    let bus = TestBus::new();
    let mut desc = Desc::new(1, 0x8000, 0x9000, 16);
    desc.flags = 2;
    bus.put(RING, &desc.bytes());
    assert_eq!(look(&bus), Step::Idle);
    assert_eq!(bus.world().log, [Access::Read(RING, 8)]);
    assert_eq!(bus.bytes(RING, 64), desc.bytes());
}

#[test]
fn payload_then_result_then_own() {
    let bus = TestBus::new();
    bus.put(RING, &Desc::new(1, 0x8000, 0x9000, 16).bytes());
    bus.put(0x8000, b"sixteen bytes ok");
    assert_eq!(look(&bus), Step::Completed { moved: 16, irq: true });
    let expected = [
        Access::Read(RING, 8),
        Access::Read(RING + 8, 56),
        Access::Read(0x8000, 16),
        Access::Write(0x9000, 16),
        Access::Write(RING + 0x28, 8),
        Access::Write(RING, 8),
    ];
    assert_eq!(bus.world().log, expected);
    assert_eq!(bus.bytes(0x9000, 16), b"sixteen bytes ok");
}

#[test]
fn only_head_and_result_change() {
    let bus = TestBus::new();
    let before = Desc::new(99, 1, 2, 3).bytes();
    bus.put(RING, &before);
    assert_eq!(look(&bus), Step::Completed { moved: 0, irq: true });
    let after = bus.bytes(RING, 64);
    assert_eq!(after[..8], [99, 0, 2, 0, 2, 0, 0, 0]);
    assert_eq!(after[8..0x28], before[8..0x28]);
    assert_eq!(after[0x28..0x30], [0; 8]);
    assert_eq!(after[0x30..], before[0x30..]);
}

#[test]
fn a_ring_that_faults_halts() {
    let bus = TestBus::new();
    bus.put(RING, &Desc::new(2, 0, 0x9000, 16).bytes());
    for hole in [RING..RING + 8, RING + 8..RING + 64] {
        bus.world().no_read = hole;
        assert_eq!(look(&bus), Step::Halted(RingError::Read));
    }
    bus.world().no_read = 0..0;
    for hole in [RING + 0x28..RING + 0x30, RING..RING + 8] {
        bus.world().no_write = hole;
        assert_eq!(look(&bus), Step::Halted(RingError::Write));
    }
    assert_eq!(bus.bytes(RING, 8), &Desc::new(2, 0, 0x9000, 16).bytes()[..8]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever the guest puts into the ring: no panic, bounded accesses, and a descriptor that was
    /// the device's comes back with a status.
    #[test]
    fn any_descriptor_is_handed_back(
        opcode in prop_oneof![0_u16..9, any::<u16>()],
        flags in prop_oneof![Just(1_u16), Just(3), any::<u16>()],
        src in address(), dst in address(),
        len in prop_oneof![0_u64..300, 65_000_u64..66_000, Just(1 << 20), any::<u64>()],
        arg in prop_oneof![0_u64..300, any::<u64>()],
        seed in any::<u64>(),
    ) {
        let bus = TestBus::with_memory(noise(1 << 18, seed));
        let desc = Desc { opcode, flags, src, dst, len, arg };
        bus.put(RING, &desc.bytes());
        // Keep the ring out of the payload's way, so that it can be looked at afterwards.
        bus.world().no_write = RING - 0x1000..RING;
        let step = look(&bus);
        prop_assert!(bus.world().log.len() <= 6 + 2 * (256 + 16));
        if flags & 1 == 0 {
            prop_assert_eq!(step, Step::Idle);
        } else if !overlaps_ring(dst, len) && opcode != 4 {
            prop_assert!(matches!(step, Step::Completed { .. }), "{:?}", step);
            let head = Head(bus.u64(RING));
            prop_assert!(!head.is_owned());
            prop_assert!((1..=7).contains(&(head.0 >> 32)));
        }
    }
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![0_u64..1 << 18, 0_u64..1 << 19, any::<u64>(), u64::MAX - 70_000..=u64::MAX]
}

fn overlaps_ring(dst: u64, len: u64) -> bool {
    dst < RING + 64 && dst.saturating_add(len) > RING
}
