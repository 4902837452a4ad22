use super::*;
use drogher_iommu_types::Oa;

const NAME: &str = "dir/kernel";

fn ram(mib: u64) -> GuestRam {
    GuestRam::new(mib << 20).expect("RAM")
}

fn kernel(image: &[u8]) -> Kernel<'_> {
    Kernel { name: NAME, image, cmdline: "a=1 b", initrd: None }
}

fn u32_at(ram: &GuestRam, at: u64) -> u32 {
    let mut bytes = [0; 4];
    ram.read_at(Oa(at), &mut bytes).expect("inside");
    u32::from_le_bytes(bytes)
}

fn u64_at(ram: &GuestRam, at: u64) -> u64 {
    u64::from(u32_at(ram, at)) | u64::from(u32_at(ram, at + 4)) << 32
}

#[test]
fn the_probe_loads_and_is_told_its_memory() {
    let ram = ram(64);
    let initrd = [7u8; 5000];
    let with = Kernel { initrd: Some(&initrd), ..kernel(drogher_probe::ELF) };
    let entry = load(&ram, &with, 1).expect("it loads");
    let Entry::Protected { rip, start_info } = entry else { panic!("by PVH, not {entry:?}") };
    assert_eq!(start_info, layout::START_INFO);
    assert!(rip >= 0x10_0000, "{rip:#x}");
    let info = layout::START_INFO;
    assert_eq!((u32_at(&ram, info), u32_at(&ram, info + 4)), (0x336E_C578, 1));
    assert_eq!(u32_at(&ram, info + 12), 1, "one module");
    assert_eq!(u64_at(&ram, info + 16), layout::MODLIST);
    assert_eq!(u64_at(&ram, info + 24), layout::CMDLINE);
    assert_eq!((u64_at(&ram, info + 40), u32_at(&ram, info + 48)), (layout::MEMMAP, 4));
    assert_eq!(u64_at(&ram, info + 32), layout::ACPI_TABLES);
    let entry = |i: u64| {
        let at = layout::MEMMAP + 24 * i;
        (u64_at(&ram, at), u64_at(&ram, at + 8), u32_at(&ram, at + 16))
    };
    assert_eq!(entry(0), (0, 0x9_FC00, 1));
    assert_eq!(entry(1), (0x9_FC00, 0x6_0400, 2));
    assert_eq!(entry(2), (0x10_0000, 63 << 20, 1));
    assert_eq!(entry(3), (0xFEB0_0000, 0x10_0000, 2));
    let mut text = [0xFF; 6];
    ram.read_at(Oa(layout::CMDLINE), &mut text).expect("inside");
    assert_eq!(&text, b"a=1 b\0");
    let mut reset = [0; 9];
    ram.read_at(Oa(0xF_FFF0), &mut reset).expect("inside");
    assert_eq!(reset, [0xBA, 0xF9, 0x0C, 0xB0, 0x06, 0xEE, 0xF4, 0xEB, 0xFD]);
    let at = u64_at(&ram, layout::MODLIST);
    assert_eq!((at, u64_at(&ram, layout::MODLIST + 8)), ((64 << 20) - 8192, 5000));
    let mut found = [0; 5001];
    ram.read_at(Oa(at), &mut found).expect("inside");
    assert_eq!((&found[..5000], found[5000]), (&initrd[..], 0));
}

#[test]
fn memory_above_4_gib_is_a_third_entry() {
    let ram = GuestRam::new(4 << 30).expect("address space");
    let map: Vec<_> = memory_map(&ram).into_iter().filter(|e| e.1 == Kind::Ram).collect();
    let ram = |range| (range, Kind::Ram);
    let high = 4 << 30..5 << 30;
    assert_eq!(map, [ram(0..0x9_FC00), ram(1 << 20..3 << 30), ram(high)]);
}

#[test]
fn what_is_no_kernel_is_refused_by_name() {
    let ram = ram(16);
    let elf = drogher_probe::ELF;
    let broken = |at: usize, value: u8| {
        let mut bytes = elf.to_vec();
        bytes[at] = value;
        bytes
    };
    let files =
        [vec![], b"#!/bin/sh\n".to_vec(), vec![0; 100], broken(0, 0), broken(4, 1), broken(18, 3)];
    for file in files {
        let error = load(&ram, &kernel(&file), 1).expect_err("no ELF of ours");
        assert!(matches!(error, BootError::NoElf { .. }), "{error}");
        assert!(error.to_string().contains(NAME), "{error}");
    }
    // Every cut and every byte of the headers: an error or a kernel, never a panic.
    for cut in (64..elf.len()).step_by(97) {
        let _ = load(&ram, &kernel(&elf[..cut]), 1);
    }
    for at in 0..400.min(elf.len()) {
        let _ = load(&ram, &kernel(&broken(at, 0xFF)), 1);
    }
    // Offset and length of each segment, so large that their sum is none.
    let (phoff, phnum) = (usize::from(elf[32]), usize::from(elf[56]));
    assert!(phnum > 1, "segments and a note");
    for header in (0..phnum).map(|n| phoff + 56 * n) {
        for field in [header + 8, header + 32] {
            let mut bytes = elf.to_vec();
            bytes[field..field + 8].fill(0xFF);
            let error = load(&ram, &kernel(&bytes), 1).expect_err("outside of the file");
            assert!(error.to_string().contains("outside of the file"), "{error}");
        }
    }
}

#[test]
fn an_elf_without_pvh_note_or_without_room() {
    let ram = ram(2);
    // Note type 19 instead of 18.
    let mut elf = drogher_probe::ELF.to_vec();
    let note = elf.windows(4).position(|w| w == b"Xen\0").expect("it has the note");
    elf[note - 4] = 19;
    let error =
        load(&GuestRam::new(64 << 20).expect("RAM"), &kernel(&elf), 1).expect_err("no note");
    assert!(matches!(&error, BootError::NoPvh { name } if name == NAME), "{error}");
    let big = vec![0u8; 3 << 20];
    let with = Kernel { initrd: Some(&big), ..kernel(drogher_probe::ELF) };
    assert!(load(&ram, &with, 1).is_err(), "no room");
    let long = "x".repeat(layout::CMDLINE_MAX);
    for cmdline in [&long[..], "a\0b"] {
        let error = load(&ram, &Kernel { cmdline, ..kernel(drogher_probe::ELF) }, 1);
        assert!(matches!(error, Err(BootError::CommandLine { .. })), "{error:?}");
    }
    let error = read_kernel(Path::new("/nonexistent/vmlinux")).expect_err("no file");
    assert!(error.to_string().contains("/nonexistent/vmlinux"), "{error}");
}

#[test]
fn a_file_is_read_up_to_its_limit_and_nothing_else_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("kernel");
    std::fs::write(&path, [7; 10]).expect("a file");
    assert_eq!(read_file("kernel", &path, 10).expect("it fits"), [7; 10]);
    let error = read_file("kernel", &path, 9).expect_err("it does not");
    assert!(matches!(error, BootError::TooLong { max: 9, .. }), "{error}");
    for other in ["/dev/zero", "/"] {
        let error = read_kernel(Path::new(other)).expect_err("no file");
        assert!(matches!(error, BootError::NoFile { .. }), "{error}");
    }
    let fifo = folder.path().join("fifo");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0)
        .expect("a FIFO");
    assert!(matches!(read_kernel(&fifo), Err(BootError::NoFile { .. })));
}
