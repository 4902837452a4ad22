use super::*;

fn raw() -> abi::DeviceInfo {
    abi::DeviceInfo {
        size: size_of::<abi::DeviceInfo>() as u32,
        flags: 0,
        vendor_id: 0xD70E,
        device_id: 1,
        subsystem_vendor_id: 2,
        subsystem_id: 3,
        class_code: 0xFF_00_01,
        revision: 4,
        reserved: [0; 3],
        region_count: 0,
        vector_count: 0,
        doorbell_count: 0,
        config_offset: 0,
        config_len: 0,
        reserved2: 0,
    }
}

fn region(index: u32, flags: u32, length: u64) -> abi::RegionInfo {
    abi::RegionInfo {
        size: size_of::<abi::RegionInfo>() as u32,
        flags,
        index,
        map_flags: 0,
        length,
        map_offset: 0,
        map_length: 0,
        map_fd: 0,
        reserved: 0,
    }
}

fn doorbell(region: u32, offset: u64, width: u32) -> abi::DoorbellInfo {
    let size = size_of::<abi::DoorbellInfo>() as u32;
    abi::DoorbellInfo { size, flags: 0, region, width, offset, match_value: 0 }
}

const IO: u32 = abi::DROGHER_REGION_IO;
const WIDE: u32 = abi::DROGHER_REGION_64BIT;
const PREFETCH: u32 = abi::DROGHER_REGION_PREFETCH;

fn with(regions: &[abi::RegionInfo]) -> Result<DeviceInfo, InfoError> {
    let mut info = DeviceInfo::none();
    regions.iter().try_for_each(|raw| info.add_region(raw))?;
    Ok(info)
}

#[test]
fn a_head() {
    let (info, regions, doorbells) = head(&abi::DeviceInfo {
        region_count: 4,
        vector_count: 2048,
        doorbell_count: 1024,
        config_offset: 0xFFC,
        config_len: 4,
        ..raw()
    })
    .expect("the most that there can be");
    assert_eq!((regions, doorbells, info.vectors, info.config), (4, 1024, 2048, Some((0xFFC, 4))));
    assert_eq!((info.vendor_id, info.device_id, info.revision), (0xD70E, 1, 4));
    assert_eq!((info.subsystem_vendor_id, info.subsystem_id, info.class_code), (2, 3, 0xFF_00_01));
}

#[test]
fn impossible_heads() {
    let wrong = |raw: abi::DeviceInfo| head(&raw).expect_err("impossible").to_string();
    for vendor_id in [0, 0xFFFF] {
        assert!(wrong(abi::DeviceInfo { vendor_id, ..raw() }).contains("vendor"));
    }
    assert!(wrong(abi::DeviceInfo { class_code: 1 << 24, ..raw() }).contains("24 bits"));
    assert!(wrong(abi::DeviceInfo { flags: 1, ..raw() }).contains("device_info.flags"));
    assert!(wrong(abi::DeviceInfo { reserved: [0, 0, 1], ..raw() }).contains("reserved"));
    assert!(wrong(abi::DeviceInfo { reserved2: 1, ..raw() }).contains("reserved2"));
    for count in [5, u32::MAX] {
        assert!(wrong(abi::DeviceInfo { region_count: count, ..raw() }).contains("at most 4"));
    }
    for count in [2049, u32::MAX] {
        assert!(wrong(abi::DeviceInfo { vector_count: count, ..raw() }).contains("at most 2048"));
        let doorbells = abi::DeviceInfo { doorbell_count: count, ..raw() };
        assert!(wrong(doorbells).contains("at most 1024"));
    }
    for (config_offset, config_len) in [
        (0, 4),
        (0x100, 0),
        (0xFC, 4),
        (0x102, 4),
        (0x100, 3),
        (0x100, 0xF04),
        (0xFFFF_FFFC, 4),
        (0xFFFF_FFFC, 0xFFFF_FFFC),
    ] {
        let error = wrong(abi::DeviceInfo { config_offset, config_len, ..raw() });
        assert!(error.contains("Configuration area"), "{error}");
    }
}

#[test]
fn regions() {
    let info = with(&[region(2, IO, 16), region(0, WIDE | PREFETCH, 1 << 32)]).expect("both fit");
    let [first, second] = info.regions.as_slice() else { panic!("two") };
    assert_eq!((first.index, first.length), (0, 1 << 32), "by BAR index");
    assert!(first.wide && first.prefetch && !first.io && second.io && !second.wide);
    assert_eq!(info.region(2), Some(second));
    assert_eq!(info.region(1), None, "the upper half of a 64-bit BAR is no region");
    with(&[0, 1, 2, 3].map(|index| region(index, 0, 1 << 31))).expect("all four");
    with(&[region(0, WIDE, 4096), region(2, WIDE, 4096)]).expect("two pairs");
}

#[test]
fn impossible_regions() {
    let index = |regions: &[abi::RegionInfo]| {
        let error = with(regions).expect_err("impossible");
        assert!(matches!(error, InfoError::RegionIndex { .. }), "{error}");
    };
    index(&[region(4, 0, 4096)]);
    index(&[region(u32::MAX, 0, 4096)]);
    index(&[region(u32::MAX, WIDE, 4096)]);
    index(&[region(3, WIDE, 4096)]);
    index(&[region(1, 0, 4096), region(1, 0, 4096)]);
    index(&[region(1, 0, 4096), region(0, WIDE, 4096)]);
    index(&[region(0, WIDE, 4096), region(1, 0, 4096)]);
    index(&[region(0, WIDE, 4096), region(1, WIDE, 4096)]);
    for (flags, length) in [
        (0, 0),
        (0, 8),
        (0, 4097),
        (0, 1 << 32),
        (0, u64::MAX),
        (0, 1 << 63),
        (WIDE, 1 << 33),
        (IO, 8),
        (IO, 512),
    ] {
        let error = with(&[region(0, flags, length)]).expect_err("impossible");
        assert!(matches!(error, InfoError::RegionLength { .. }), "{flags} {length:#x}: {error}");
    }
    for flags in [IO | WIDE, IO | PREFETCH] {
        let error = with(&[region(0, flags, 16)]).expect_err("impossible");
        assert!(matches!(error, InfoError::RegionFlags { .. }), "{error}");
    }
    let good = region(0, 0, 4096);
    for reserved in [
        abi::RegionInfo { flags: 8, ..good },
        abi::RegionInfo { map_flags: 1, ..good },
        abi::RegionInfo { map_offset: 1, ..good },
        abi::RegionInfo { map_length: 1, ..good },
        abi::RegionInfo { map_fd: i32::MIN, ..good },
        abi::RegionInfo { reserved: 1, ..good },
    ] {
        let error = with(&[reserved]).expect_err("reserved");
        assert!(matches!(error, InfoError::Reserved { .. }), "{error}");
    }
}

#[test]
fn doorbells() {
    let mut info = with(&[region(1, 0, 4096)]).expect("a region");
    for (offset, width) in [(0, 8), (8, 4), (12, 1), (13, 1), (4088, 8)] {
        info.add_doorbell(&doorbell(1, offset, width)).expect("neighbours");
    }
    let numbered: Vec<_> = info.doorbells.iter().map(|doorbell| doorbell.offset).collect();
    assert_eq!(numbered, [0, 8, 12, 13, 4088], "a number is a place");
    let mut wrong = |raw: abi::DoorbellInfo| match info.add_doorbell(&raw) {
        Err(InfoError::Doorbell { number: 5, problem, .. }) => problem,
        other => panic!("{raw:?}: {other:?}"),
    };
    for width in [0, 3, 16, u32::MAX] {
        assert_eq!(wrong(doorbell(1, 16, width)), "has no width of 1, 2, 4 or 8");
    }
    assert_eq!(wrong(doorbell(1, 18, 4)), "is misaligned");
    assert_eq!(wrong(doorbell(0, 16, 4)), "is in no region");
    assert_eq!(wrong(doorbell(u32::MAX, 16, 4)), "is in no region");
    for offset in [4096, u64::MAX - 3, 1 << 63] {
        assert_eq!(wrong(doorbell(1, offset, 4)), "ends outside its region");
    }
    for (offset, width) in [(0, 8), (0, 1), (7, 1), (4, 4), (8, 8), (12, 2), (4095, 1)] {
        assert_eq!(wrong(doorbell(1, offset, width)), "lies over another one", "{offset} {width}");
    }
    for reserved in [
        abi::DoorbellInfo { flags: 1, ..doorbell(1, 16, 4) },
        abi::DoorbellInfo { match_value: 1, ..doorbell(1, 16, 4) },
    ] {
        let error = info.add_doorbell(&reserved).expect_err("reserved");
        assert!(matches!(error, InfoError::Reserved { .. }), "{error}");
    }
    assert_eq!(info.doorbells.len(), 5);
}

fn capability(length: u8) -> abi::PciCap {
    let mut data = [0; 64];
    data.iter_mut().take(length.into()).skip(Capability::OWN).for_each(|byte| *byte = 0xAB);
    let size = size_of::<abi::PciCap>() as u32;
    let id = abi::DROGHER_PCI_CAP_VENDOR;
    abi::PciCap { size, flags: 0, id, length, reserved: [0; 6], data }
}

#[test]
fn a_vendor_capability_is_taken_with_its_length_in_front() {
    let mut info = DeviceInfo::none();
    info.add_capability(&capability(5)).unwrap();
    let flags = abi::DROGHER_PCI_CAP_ACCESS;
    info.add_capability(&abi::PciCap { flags, ..capability(64) }).unwrap();
    assert_eq!(info.caps[0], Capability { id: 9, body: vec![5, 0xAB, 0xAB], access: false });
    assert_eq!((info.caps[1].length(), info.caps[1].access), (64, true));
}

#[test]
fn impossible_capabilities_are_refused() {
    let good = capability(8);
    let (mut head, mut tail, mut reserved) = (good, good, good);
    (head.data[2], tail.data[8], reserved.reserved[5]) = (1, 1, 1);
    let bad = [
        abi::PciCap { id: 0x11, ..good },
        abi::PciCap { length: 3, ..capability(0) },
        abi::PciCap { length: 65, ..good },
        abi::PciCap { flags: 2, ..good },
        head,
        tail,
        reserved,
    ];
    let mut info = DeviceInfo::none();
    for raw in &bad {
        assert!(info.add_capability(raw).is_err(), "{raw:?}");
    }
    assert!(info.caps.is_empty());
    for _ in 0..abi::DROGHER_PCI_CAPS_MAX {
        info.add_capability(&good).unwrap();
    }
    assert!(info.add_capability(&good).is_err(), "one too many");
}

#[test]
fn a_plugin_with_ports_has_one_to_eight() {
    let mut info = DeviceInfo::none();
    for count in [0, 9, u32::MAX] {
        assert_eq!(info.set_ports(count), Err(InfoError::Ports { count, max: 8 }));
    }
    assert_eq!(info.set_ports(8), Ok(()));
    assert_eq!(info.ports, 8);
}
