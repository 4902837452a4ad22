use super::*;

const SCRATCH: u64 = 65536;

fn check(opcode: u16, flags: u16, fields: [u64; 4], reserved: u64) -> Result<Op, Status> {
    let [src, dst, len, arg] = fields;
    let head = Head(u64::from(opcode) | u64::from(flags) << 16);
    let descriptor = Descriptor::new(head, [src, dst, len, arg, 0, 0, reserved]);
    descriptor.check(SCRATCH).map(|work| {
        assert_eq!(work.len, len);
        work.op
    })
}

#[test]
fn every_opcode_has_its_operands() {
    let fields = [16, 24, 8, 0x0807_0605_0403_0201];
    assert_eq!(check(1, 1, fields, 0), Ok(Op::Copy { src: 16, dst: 24 }));
    assert_eq!(check(2, 1, fields, 0), Ok(Op::Fill { pattern: [1, 2, 3, 4, 5, 6, 7, 8], dst: 24 }));
    assert_eq!(check(3, 1, fields, 0), Ok(Op::Checksum { src: 16 }));
    let scatter = Op::Scatter { src: 16, list: 24, count: 2 };
    assert_eq!(check(4, 1, [16, 24, 8, 2], 0), Ok(scatter));
    assert_eq!(check(5, 1, fields, 0), Ok(Op::Store { src: 16, scratch: 24 }));
    assert_eq!(check(6, 1, fields, 0), Ok(Op::Load { scratch: 16, dst: 24 }));
    for opcode in [0, 7, 0x0100, 0xFFFF] {
        assert_eq!(check(opcode, 1, fields, 0), Err(Status::BadOpcode));
    }
}

#[test]
fn length_is_1_to_1_mib() {
    for (len, ok) in
        [(0, false), (1, true), (MAX_LEN, true), (MAX_LEN + 1, false), (u64::MAX, false)]
    {
        let expected = if ok { Ok(Op::Copy { src: 0, dst: 0 }) } else { Err(Status::BadLength) };
        assert_eq!(check(1, 1, [0, 0, len, 0], 0), expected);
    }
}

#[test]
fn scratch_ranges_end_inside() {
    for (at, len, ok) in [
        (0, SCRATCH, true),
        (SCRATCH - 1, 1, true),
        (SCRATCH - 1, 2, false),
        (SCRATCH, 1, false),
        (u64::MAX, 1, false),
        (u64::MAX - 7, 16, false),
    ] {
        assert_eq!(check(5, 1, [0, at, len, 0], 0).is_ok(), ok, "store at {at:#x}");
        assert_eq!(check(6, 1, [at, 0, len, 0], 0).is_ok(), ok, "load at {at:#x}");
    }
    assert_eq!(check(5, 1, [0, SCRATCH, 1, 0], 0), Err(Status::BadLength));
}

#[test]
fn reserved_bits_are_zero() {
    assert_eq!(check(1, 1, [0, 0, 1, 0], 1), Err(Status::BadAlignment));
    assert_eq!(check(1, 1 | 4, [0, 0, 1, 0], 0), Err(Status::BadAlignment));
    assert_eq!(check(1, 1 | 0x8000, [0, 0, 1, 0], 0), Err(Status::BadAlignment));
    assert_eq!(check(1, 3, [0, 0, 1, 0], 0), Ok(Op::Copy { src: 0, dst: 0 }));
}

#[test]
fn a_checksum_is_8_byte_aligned() {
    assert_eq!(check(3, 1, [4, 0, 8, 0], 0), Err(Status::BadAlignment));
    assert_eq!(check(3, 1, [8, 0, 12, 0], 0), Err(Status::BadAlignment));
    assert_eq!(check(3, 1, [8, 1, 16, 0], 0), Ok(Op::Checksum { src: 8 }));
}

#[test]
fn a_list_has_1_to_256_entries() {
    for (count, ok) in [(0, false), (1, true), (256, true), (257, false), (u64::MAX, false)] {
        let outcome = check(4, 1, [0, 0, 1, count], 0);
        assert_eq!(outcome.is_ok(), ok);
        assert!(ok || outcome == Err(Status::BadList));
    }
}

#[test]
fn the_first_fault_in_the_order_of_the_datasheet_counts() {
    assert_eq!(check(9, 0xFF, [1, 1, 0, 0], 1), Err(Status::BadOpcode));
    assert_eq!(check(3, 0xFF, [1, 1, 0, 0], 1), Err(Status::BadAlignment));
    assert_eq!(check(3, 1, [1, 1, 0, 0], 0), Err(Status::BadLength));
    assert_eq!(check(4, 1, [1, 1, 0, 0], 0), Err(Status::BadLength));
}

#[test]
fn handing_back_clears_own_and_keeps_the_rest() {
    let head = Head(0xDEAD_BEEF_0003_0004);
    assert!(head.is_owned() && head.wants_irq());
    let back = head.handed_back(Status::BadList);
    assert_eq!(back, Head(0x0000_0007_0002_0004));
    assert!(!back.is_owned());
}
