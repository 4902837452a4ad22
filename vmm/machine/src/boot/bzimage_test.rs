use super::*;
use crate::boot;
use crate::memory::GuestRam;
use drogher_iommu_types::Oa;

/// A bzImage of one setup sector and a page of payload, as far as a loader looks at it.
fn image() -> Vec<u8> {
    let mut file = vec![0u8; 0x400 + 4096];
    file[0x1F1] = 1;
    file[0x1FE..0x200].copy_from_slice(&[0x55, 0xAA]);
    file[MAGIC_AT..MAGIC_AT + 4].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x020Fu16.to_le_bytes());
    file[0x211] = 1;
    file[0x236..0x238].copy_from_slice(&KERNEL_64.to_le_bytes());
    file[0x258..0x260].copy_from_slice(&(16u64 << 20).to_le_bytes());
    file[0x260..0x264].copy_from_slice(&(32u32 << 20).to_le_bytes());
    file[0x400..].fill(0xC3);
    file
}

fn kernel(image: &[u8]) -> Kernel<'_> {
    Kernel { name: "dir/bzImage", image, cmdline: "a=1", initrd: None }
}

fn bytes<const N: usize>(ram: &GuestRam, at: u64) -> [u8; N] {
    let mut bytes = [0; N];
    ram.read_at(Oa(at), &mut bytes).expect("inside");
    bytes
}

#[test]
fn a_bzimage_is_entered_in_64_bit_mode_with_what_it_is_told() {
    let ram = GuestRam::new(64 << 20).expect("RAM");
    let (file, initrd) = (image(), [7u8; 5000]);
    let with = Kernel { initrd: Some(&initrd), ..kernel(&file) };
    let entry = boot::load(&ram, &with, 2).expect("it loads");
    assert_eq!(entry, Entry::Long { rip: 0x10_0200, zero_page: layout::ZERO_PAGE });
    assert_eq!(bytes::<2>(&ram, 0x10_0000), [0xC3; 2]);
    let zero = layout::ZERO_PAGE;
    assert_eq!(u64::from_le_bytes(bytes(&ram, zero + 0x70)), layout::ACPI_TABLES);
    assert_eq!(bytes::<8>(&ram, layout::ACPI_TABLES), *b"RSD PTR ");
    assert_eq!(bytes::<1>(&ram, zero + 0x210), [0xFF], "the loader");
    let at = u64::from(u32::from_le_bytes(bytes(&ram, zero + 0x218)));
    assert_eq!((at, bytes(&ram, zero + 0x21C)), ((64 << 20) - 8192, 5000u32.to_le_bytes()));
    assert_eq!(bytes::<5000>(&ram, at), initrd);
    let line = u64::from(u32::from_le_bytes(bytes(&ram, zero + 0x228)));
    assert_eq!(bytes::<4>(&ram, line), *b"a=1\0");
    // Low RAM, the hole, RAM, the PCI configuration space.
    assert_eq!(bytes::<1>(&ram, zero + 0x1E8), [4]);
    let map = |n: u64| {
        let at = zero + 0x2D0 + 20 * n;
        let word = |at| u64::from_le_bytes(bytes(&ram, at));
        (word(at), word(at + 8), u32::from_le_bytes(bytes(&ram, at + 16)))
    };
    assert_eq!(map(0), (0, 0x9_FC00, 1));
    assert_eq!(map(1), (0x9_FC00, 0x6_0400, 2));
    assert_eq!(map(2), (0x10_0000, 63 << 20, 1));
    assert_eq!(map(3), (0xFEB0_0000, 0x10_0000, 2));
}

#[test]
fn the_page_tables_map_the_first_4_gib_to_themselves() {
    let ram = GuestRam::new(64 << 20).expect("RAM");
    boot::load(&ram, &kernel(&image()), 1).expect("it loads");
    let entry =
        |table: u64, index: u64| u64::from_le_bytes(bytes(&ram, (table & !0xFFF) + 8 * index));
    for address in [0, 0x10_0000, 0x7654_3210, 0xFEE0_0000, 0xFFFF_FFFF_u64] {
        let gib = entry(layout::BOOT_TABLES.start, 0);
        let large = entry(entry(gib, address >> 30), address >> 21 & 511);
        assert_eq!(large, address & !0x1F_FFFF | 0x83, "{address:#x}");
    }
    assert_eq!(entry(layout::BOOT_TABLES.start, 1), 0);
}

#[test]
fn what_has_no_64_bit_entry_or_no_room_is_refused_by_name() {
    let ram = GuestRam::new(64 << 20).expect("RAM");
    for (at, value) in [(0x206, 0x0B), (0x236, 0)] {
        let mut file = image();
        file[at] = value;
        let error = boot::load(&ram, &kernel(&file), 1).expect_err("no entry");
        assert!(matches!(&error, BootError::NoEntry64 { name } if name == "dir/bzImage"));
    }
    let file = image();
    // 48 MiB are the kernel's: it unpacks to 16..48.
    let initrd = vec![1; 17 << 20];
    let with = Kernel { initrd: Some(&initrd), ..kernel(&file) };
    assert!(matches!(boot::load(&ram, &with, 1), Err(BootError::Initrd { .. })));
    // Every cut, and every byte of the header: an error or a kernel, never a panic.
    for cut in 0..0x410 {
        let _ = boot::load(&ram, &kernel(&file[..cut]), 1);
    }
    for at in 0x1F1..HEADER_END {
        let mut file = image();
        file[at] = 0xFF;
        let _ = boot::load(&ram, &kernel(&file), 1);
    }
}
