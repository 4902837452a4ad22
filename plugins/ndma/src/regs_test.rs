use super::*;
use proptest::prelude::*;

const SCRATCH: u64 = 65536;

fn read32(regs: &Registers, offset: u64) -> u32 {
    let mut data = [0; 4];
    regs.read(offset, &mut data, false, SCRATCH);
    u32::from_le_bytes(data)
}

fn read64(regs: &Registers, offset: u64) -> u64 {
    let mut data = [0; 8];
    regs.read(offset, &mut data, false, SCRATCH);
    u64::from_le_bytes(data)
}

fn write(regs: &mut Registers, offset: u64, data: &[u8]) {
    if let Some(write) = decode_write(offset, data) {
        regs.apply(write);
    }
}

fn write32(regs: &mut Registers, offset: u64, value: u32) {
    write(regs, offset, &value.to_le_bytes());
}

fn enabled(entries: u32) -> Registers {
    let mut regs = Registers::default();
    write32(&mut regs, RING_ENTRIES, entries);
    write(&mut regs, RING_BASE, &0x12340_u64.to_le_bytes());
    write32(&mut regs, CONTROL, CONTROL_ENABLE | CONTROL_IRQ_ENABLE);
    regs
}

#[test]
fn values_after_reset() {
    let regs = Registers::default();
    assert_eq!(read32(&regs, ID).to_le_bytes(), *b"NDMA");
    assert_eq!(read32(&regs, VERSION), 1);
    for offset in [CONTROL, STATUS, ERROR, RING_ENTRIES, RING_BASE, 0x1C, NEXT, 0x24, DOORBELL] {
        assert_eq!(read32(&regs, offset), 0, "at {offset:#x}");
    }
    for offset in [RING_BASE, COMPLETED, BYTES] {
        assert_eq!(read64(&regs, offset), 0, "at {offset:#x}");
    }
    assert_eq!(read64(&regs, SCRATCH_BYTES), SCRATCH);
    assert_eq!(read32(&regs, SCRATCH_BYTES), 65536);
    assert_eq!(read32(&regs, SCRATCH_BYTES + 4), 0);
    assert_eq!(regs.check(), Ok(()));
}

#[test]
fn other_accesses_read_all_ones_and_write_nothing() {
    let mut regs = enabled(8);
    let before = regs;
    for (offset, len) in [
        (ID, 1),
        (ID, 2),
        (ID, 3),
        (ID, 8),
        (ID + 2, 4),
        (RING_BASE + 4, 8),
        (NEXT, 8),
        (STATUS, 8),
        (COMPLETED + 1, 8),
        (COMPLETED, 5),
        (REGION_BYTES, 4),
        (DOORBELL, 8),
    ] {
        let mut data = vec![0; len];
        regs.read(offset, &mut data, false, SCRATCH);
        assert_eq!(data, vec![0xFF; len], "{len} bytes at {offset:#x}");
        write(&mut regs, offset, &vec![0; len]);
        assert_eq!(regs, before, "{len} bytes at {offset:#x}");
    }
}

#[test]
fn the_ring_is_set_in_halves_or_whole_while_disabled() {
    let mut regs = Registers::default();
    write32(&mut regs, RING_BASE, 0x8000_007F);
    write32(&mut regs, RING_BASE + 4, 0x12);
    assert_eq!(read64(&regs, RING_BASE), 0x12_8000_0040);
    write(&mut regs, RING_BASE, &0xFFFF_0000_0000_1000_u64.to_le_bytes());
    assert_eq!(read32(&regs, RING_BASE), 0x1000);
    assert_eq!(read32(&regs, RING_BASE + 4), 0xFFFF_0000);

    let mut regs = enabled(8);
    write32(&mut regs, RING_ENTRIES, 16);
    write32(&mut regs, RING_BASE, 0);
    write(&mut regs, RING_BASE, &[0; 8]);
    assert_eq!((regs.ring_entries, regs.ring_base), (8, 0x12340));
}

#[test]
fn ring_sizes_are_powers_of_two_from_2_to_4096() {
    let mut regs = Registers::default();
    for size in [0, 1, 3, 4097, 8192, u32::MAX, 1 << 31] {
        write32(&mut regs, RING_ENTRIES, size);
        assert_eq!(read32(&regs, RING_ENTRIES), 0);
    }
    for size in [2, 4, 4096] {
        write32(&mut regs, RING_ENTRIES, size);
        assert_eq!(read32(&regs, RING_ENTRIES), size);
    }
    write32(&mut regs, RING_ENTRIES, 5);
    assert_eq!(read32(&regs, RING_ENTRIES), 4096);
}

#[test]
fn enable_is_refused_without_a_ring_that_fits() {
    let mut regs = Registers::default();
    write32(&mut regs, CONTROL, CONTROL_ENABLE);
    assert_eq!((read32(&regs, CONTROL), read32(&regs, ERROR)), (0, RingError::Setup as u32));
    write32(&mut regs, ERROR, 0xFFFF_FFFF);
    assert_eq!(read32(&regs, ERROR), 0);

    write32(&mut regs, RING_ENTRIES, 4);
    write(&mut regs, RING_BASE, &(u64::MAX - 127).to_le_bytes());
    write32(&mut regs, CONTROL, CONTROL_ENABLE | CONTROL_IRQ_ENABLE);
    assert_eq!(read32(&regs, CONTROL), CONTROL_IRQ_ENABLE);
    assert_eq!(read32(&regs, ERROR), RingError::Setup as u32);

    write32(&mut regs, RING_ENTRIES, 2);
    write32(&mut regs, CONTROL, CONTROL_ENABLE);
    assert_eq!((read32(&regs, CONTROL), read32(&regs, STATUS)), (CONTROL_ENABLE, STATUS_ENABLED));
}

#[test]
fn completions_wrap_and_count() {
    let mut regs = enabled(4);
    for _ in 0..9 {
        regs.complete(1000);
    }
    assert_eq!((read32(&regs, NEXT), read64(&regs, COMPLETED), read64(&regs, BYTES)), (1, 9, 9000));
    assert_eq!(regs.next_descriptor(), 0x12340 + 64);
    (regs.completed, regs.bytes) = (u64::MAX, u64::MAX);
    regs.complete(1);
    assert_eq!((regs.completed, regs.bytes), (0, 0));
}

#[test]
fn a_halt_ends_with_disable() {
    let mut regs = enabled(4);
    regs.apply(Write::Doorbell);
    regs.complete(1);
    regs.halt(RingError::Write);
    assert_eq!(read32(&regs, STATUS), STATUS_ENABLED | STATUS_HALTED);
    assert!(!regs.wants_work());
    write32(&mut regs, CONTROL, CONTROL_ENABLE);
    assert!(regs.halted, "no change of ENABLE");
    write32(&mut regs, CONTROL, 0);
    assert_eq!((read32(&regs, STATUS), read32(&regs, ERROR)), (0, RingError::Write as u32));
    assert_eq!(read32(&regs, NEXT), 1);
    write32(&mut regs, CONTROL, CONTROL_ENABLE);
    assert_eq!(read32(&regs, NEXT), 0);
}

#[test]
fn reset_wins_over_the_other_bits() {
    let mut regs = enabled(4);
    regs.complete(5);
    regs.apply(Write::Doorbell);
    write32(&mut regs, CONTROL, CONTROL_RESET | CONTROL_ENABLE | CONTROL_IRQ_ENABLE);
    assert_eq!(regs, Registers::default());
}

#[test]
fn impossible_values_are_named() {
    let good = enabled(8);
    assert_eq!(good.check(), Ok(()));
    for (field, bad) in [
        ("ring_entries", Registers { ring_entries: 7, ..good }),
        ("ring_entries", Registers { ring_entries: 1, ..good }),
        ("ring_entries", Registers { ring_entries: 8192, ..good }),
        ("ring_base", Registers { ring_base: 0x20, ..good }),
        ("ring_base", Registers { ring_base: u64::MAX - 63, ..good }),
        ("enabled", Registers { ring_entries: 0, ..good }),
        ("halted", Registers { enabled: false, halted: true, ..good }),
        ("error", Registers { error: 4, ..good }),
        ("next", Registers { next: 8, ..good }),
        ("next", Registers { enabled: false, next: 4096, ..good }),
    ] {
        assert_eq!(bad.check().unwrap_err().field, field);
    }
}

fn guest_write() -> impl Strategy<Value = (u64, Vec<u8>)> {
    let offset = prop_oneof![(0_u64..0x10).prop_map(|i| i * 4), Just(DOORBELL), 0_u64..4096];
    let value = prop_oneof![0_u64..8, (0_u32..64).prop_map(|bit| 1 << bit), any::<u64>()];
    let len = prop_oneof![Just(4_usize), Just(8), 1_usize..9];
    (offset, value, len)
        .prop_map(|(offset, value, len)| (offset, value.to_le_bytes()[..len].to_vec()))
}

proptest! {
    /// What a driver can bring about is exactly what a saved state may hold.
    #[test]
    fn no_driver_leaves_the_checked_values(
        steps in prop::collection::vec((guest_write(), any::<bool>(), any::<bool>()), 1..60)
    ) {
        let mut regs = Registers::default();
        for ((offset, data), work, fault) in steps {
            write(&mut regs, offset, &data);
            if work && regs.wants_work() {
                regs.doorbell = false;
                if fault { regs.halt(RingError::Read) } else { regs.complete(64) }
            }
            prop_assert_eq!(regs.check(), Ok(()));
        }
    }
}
