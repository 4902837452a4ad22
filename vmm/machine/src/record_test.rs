use super::*;

fn state() -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = Writer::new(&mut out, 2);
    writer.put(Tag::Regs, 0, &[1; 16]);
    writer.put(Tag::Regs, 1, &[2; 16]);
    writer.put(Tag::Cmos, 0, &[]);
    out
}

#[test]
fn records_come_back() {
    let bytes = state();
    let reader = Reader::new(&bytes, 2).expect("well formed");
    assert_eq!(reader.get::<[u8; 16]>(Tag::Regs, 1).expect("there"), [2; 16]);
    assert!(reader.bytes(Tag::Cmos, 0).expect("there").is_empty());
    assert!(matches!(
        reader.get::<[u8; 8]>(Tag::Regs, 0),
        Err(StateError::Size { tag: Tag::Regs, vcpu: 0, expected: 8, found: 16 })
    ));
    assert!(matches!(
        reader.bytes(Tag::Lapic, 1),
        Err(StateError::Missing { tag: Tag::Lapic, vcpu: 1 })
    ));
    let mut small = [0; 4];
    assert!(matches!(reader.copy_to(Tag::Regs, 0, &mut small), Err(StateError::Size { .. })));
    assert_eq!(reader.find(Tag::Pit, 0), None);
}

#[test]
fn every_cut_is_an_error_or_lacks_a_record() {
    let bytes = state();
    for cut in 0..bytes.len() {
        match Reader::new(&bytes[..cut], 2) {
            Err(StateError::Truncated(n)) => assert_eq!(n, cut),
            Ok(reader) => assert!(reader.bytes(Tag::Cmos, 0).is_err(), "cut at {cut}"),
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn the_header_is_checked() {
    let good = state();
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        Reader::new(&bytes, 2).map(drop)
    };
    assert!(matches!(with(0, 0), Err(StateError::Magic(_))));
    assert!(matches!(with(4, 9), Err(StateError::Version(9))));
    assert!(matches!(with(6, 3), Err(StateError::Cpus { expected: 2, found: 3 })));
    assert!(matches!(with(8, 0xEE), Err(StateError::UnknownTag(0xEE))));
    assert!(matches!(with(10, 2), Err(StateError::Superfluous { tag: Tag::Regs, vcpu: 2 })));
    assert!(matches!(with(15, 0xFF), Err(StateError::Truncated(_))));
    let twice = [&good[..], &good[8..32]].concat();
    assert!(matches!(
        Reader::new(&twice, 2),
        Err(StateError::Superfluous { tag: Tag::Regs, vcpu: 0 })
    ));
}

#[test]
fn what_runs_with_time_is_not_compared() {
    let mut out = Vec::new();
    let mut writer = Writer::new(&mut out, 1);
    writer.put(Tag::Clock, 0, &[1; 64]);
    writer.put(Tag::Lapic, 0, &[3; 1024]);
    writer.put(Tag::Serial, 0, &[4; 9]);
    let mut msr = [0u8; 32];
    msr[..4].copy_from_slice(&0x6E0u32.to_le_bytes());
    msr[16..20].copy_from_slice(&0x174u32.to_le_bytes());
    msr[24] = 5;
    writer.put(Tag::Msrs, 0, &msr);
    let parts = stable_parts(&out, 1).expect("well formed");
    let names: Vec<_> = parts.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names.len(), 63 + 2, "each of the APIC's registers but one");
    assert!(!names.contains(&"vcpu0.Lapic 0xa0"), "it follows from others");
    assert_eq!((names[0], names[56]), ("vcpu0.Lapic 0x0", "vcpu0.Lapic 0x390"));
    assert_eq!(names[63..], ["vm.Serial", "vcpu0.MSR 0x174"]);
    for (at, (_, register)) in parts[..63].iter().enumerate() {
        let counts = if at == 56 { 0 } else { 3 };
        assert_eq!(register[..4], [counts; 4], "{at}");
        assert_eq!(register[4..], [3; 12], "{at}");
    }
    assert_eq!(parts[64].1[..], msr[16..]);
}
