use super::{
    DRIVER_OK, FEATURES, FEATURES_OK, NEEDS_RESET, NO_VECTOR, REGION_BYTES, RX, Registers, TX,
};

fn regs() -> Registers {
    Registers::new(256, [2, 0, 0, 0, 0, 9])
}

fn get(regs: &mut Registers, offset: u64, len: usize) -> u64 {
    let mut data = vec![0xaa; len];
    regs.read(offset, &mut data);
    data.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte))
}

fn set16(regs: &mut Registers, offset: u64, value: u16) {
    regs.write(offset, &value.to_le_bytes());
}

/// As a driver comes up, with these features.
fn drive(regs: &mut Registers, features: u64) {
    for (select, half) in [(0_u32, features as u32), (1, (features >> 32) as u32)] {
        regs.write(8, &select.to_le_bytes());
        regs.write(0xc, &half.to_le_bytes());
    }
    regs.write(0x14, &[3 | FEATURES_OK]);
}

fn enable(regs: &mut Registers, queue: u16) {
    set16(regs, 0x16, queue);
    regs.write(0x20, &0x1000_u32.to_le_bytes());
    regs.write(0x24, &1_u32.to_le_bytes());
    regs.write(0x28, &0x2000_u64.to_le_bytes());
    regs.write(0x30, &0x3000_u64.to_le_bytes());
    set16(regs, 0x1c, 1);
}

#[test]
fn a_driver_comes_up() {
    let mut regs = regs();
    assert_eq!(get(&mut regs, 4, 4), FEATURES & 0xffff_ffff);
    regs.write(0, &1_u32.to_le_bytes());
    assert_eq!(get(&mut regs, 4, 4), FEATURES >> 32);
    regs.write(0, &2_u32.to_le_bytes());
    assert_eq!(get(&mut regs, 4, 4), 0);
    drive(&mut regs, FEATURES);
    assert_eq!(get(&mut regs, 0x14, 1), u64::from(3 | FEATURES_OK));
    assert_eq!((get(&mut regs, 0x12, 2), get(&mut regs, 0x18, 2)), (2, 256));
    enable(&mut regs, 1);
    assert_eq!(get(&mut regs, 0x20, 8), 0x1_0000_1000);
    assert_eq!((get(&mut regs, 0x1c, 2), get(&mut regs, 0x1e, 2)), (1, 1));
    assert!(!regs.is_live(TX), "not before DRIVER_OK");
    regs.write(0x14, &[7 | FEATURES_OK]);
    assert!(regs.is_live(TX) && !regs.is_live(RX));
    assert!(regs.options().event_idx && regs.options().merge);
    set16(&mut regs, 0x18, 8);
    regs.write(0x20, &0_u64.to_le_bytes());
    assert_eq!((get(&mut regs, 0x18, 2), get(&mut regs, 0x20, 4)), (256, 0x1000), "in use");
    regs.write(0x14, &[0]);
    assert_eq!(regs, super::Registers::new(256, [2, 0, 0, 0, 0, 9]));
}

#[test]
fn features_are_agreed_on_or_not() {
    for (features, good) in [
        (FEATURES, true),
        (1 << 32, true),
        (FEATURES & !(1 << 32), false),
        (1 << 32 | 1, false),
        (1 << 32 | 1 << 34, false),
    ] {
        let mut regs = regs();
        drive(&mut regs, features);
        assert_eq!(regs.status & FEATURES_OK != 0, good, "{features:#x}");
        regs.write(0x14, &[7 | FEATURES_OK]);
        assert_eq!(regs.status & NEEDS_RESET == 0, good);
    }
    let mut regs = regs();
    drive(&mut regs, 1 << 32);
    regs.write(0xc, &0_u32.to_le_bytes());
    assert_eq!(regs.driver_features, 1 << 32, "agreed is agreed");
    regs.write(0x14, &[3]);
    regs.write(0xc, &0_u32.to_le_bytes());
    assert_eq!(regs.driver_features, 1 << 32, "and cannot be taken back but by a reset");
}

#[test]
fn a_queue_that_cannot_be_breaks_the_device() {
    let mut regs = regs();
    drive(&mut regs, FEATURES);
    set16(&mut regs, 0x10, 0);
    regs.write(0x14, &[7 | FEATURES_OK]);
    set16(&mut regs, 0x18, 3);
    assert_eq!(regs.write(0x1c, &1_u16.to_le_bytes()), Some(0), "an interrupt says so");
    assert_eq!(get(&mut regs, 0x14, 1), u64::from(7 | FEATURES_OK | NEEDS_RESET));
    assert_eq!((get(&mut regs, 0x15, 1), get(&mut regs, 0x1000, 1)), (1, 2));
    assert_eq!(get(&mut regs, 0x1000, 1), 0, "reading clears");
    regs.write(0x14, &[DRIVER_OK]);
    assert_eq!(regs.status, 7 | FEATURES_OK | NEEDS_RESET, "not the driver's to clear");
    regs.write(0x14, &[0]);
    assert_eq!(regs.status, 0);
}

#[test]
fn odd_accesses_do_no_harm() {
    let mut regs = regs();
    set16(&mut regs, 0x1a, 3);
    assert_eq!(get(&mut regs, 0x1a, 2), u64::from(NO_VECTOR), "there is no vector 3");
    set16(&mut regs, 0x1a, 2);
    assert_eq!(get(&mut regs, 0x1a, 2), 2);
    set16(&mut regs, 0x16, 7);
    assert_eq!((get(&mut regs, 0x18, 2), get(&mut regs, 0x1a, 2)), (0, 0xffff), "no queue 7");
    enable(&mut regs, 7);
    assert_eq!(get(&mut regs, 0x2000, 8), 0x0001_0900_0000_0002, "address and link");
    assert_eq!(get(&mut regs, 0x2004, 2), 0x0900);
    let before = regs.clone();
    for len in 1..=8 {
        for offset in (0x12..0x14).chain(0x1e..0x20).chain(0x36..0x50).chain(0x1000..0x2100) {
            if !(len >= 4 && offset == 0x34) {
                regs.write(offset, &vec![0xff; len]);
            }
        }
        for offset in 0..REGION_BYTES {
            get(&mut regs, offset, len);
        }
    }
    assert_eq!(regs, before);
}
