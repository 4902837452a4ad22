use std::sync::Arc;

use super::*;
use drogher_iommu::Memory;

fn ram() -> GuestRam {
    GuestRam::new(4 << 20).expect("4 MiB")
}

#[test]
fn sizes_are_checked() {
    for bad in [0, 1, GRANULE - 1, GRANULE + 4096, MAX_BYTES + GRANULE] {
        assert!(matches!(GuestRam::new(bad), Err(MemoryError::Size(b)) if b == bad), "{bad}");
    }
}

#[test]
fn ranges_leave_the_hole_free() {
    assert_eq!(split(1 << 30), [RamRange { gpa: Gpa(0), oa: Oa(0), len: 1 << 30 }]);
    assert_eq!(
        split(5 << 30),
        [
            RamRange { gpa: Gpa(0), oa: Oa(0), len: 3 << 30 },
            RamRange { gpa: Gpa(4 << 30), oa: Oa(3 << 30), len: 2 << 30 },
        ]
    );
    // Only reserved, not populated: no memory is used.
    let ram = GuestRam::new(5 << 30).expect("5 GiB of address space");
    assert_eq!(ram.oa(Gpa((3 << 30) - 1), 1), Some(Oa((3 << 30) - 1)));
    assert_eq!(ram.oa(Gpa((3 << 30) - 1), 2), None, "not across the end");
    assert_eq!(ram.oa(Gpa(3 << 30), 1), None, "the hole");
    assert_eq!(ram.oa(Gpa(4 << 30), 8), Some(Oa(3 << 30)));
    assert_eq!(ram.oa(Gpa(u64::MAX), 8), None);
    assert_eq!(ram.gpa(Oa(3 << 30)), Some(Gpa(4 << 30)));
    assert_eq!(ram.gpa(Oa((5 << 30) - 1)), Some(Gpa((6 << 30) - 1)));
    assert_eq!(ram.gpa(Oa(5 << 30)), None);
    assert_eq!(ram.end_page(), 6 << 18);
    ram.write_at(Oa((3 << 30) - 4), &[1, 2, 3, 4, 5, 6, 7, 8]).expect("one mapping");
    let mut high = [0; 4];
    ram.read_at(Oa(3 << 30), &mut high).expect("inside");
    assert_eq!(high, [5, 6, 7, 8]);
}

#[test]
fn accesses_of_every_size_and_alignment_arrive() {
    let ram = ram();
    for len in 1..=40usize {
        for at in 0..16u64 {
            let data: Vec<u8> = (0..len).map(|i| (i as u8) ^ (at as u8) ^ 0x5A).collect();
            ram.fill_at(Oa(0), 0xEE, 64).expect("inside");
            ram.write_at(Oa(at), &data).expect("inside");
            let mut all = [0; 64];
            ram.read_at(Oa(0), &mut all).expect("inside");
            let mut expected = [0xEE; 64];
            expected[at as usize..at as usize + len].copy_from_slice(&data);
            assert_eq!(all, expected, "{len} bytes at {at}");
            let mut back = vec![0; len];
            ram.read_at(Oa(at), &mut back).expect("inside");
            assert_eq!(back, data, "{len} bytes at {at}");
        }
    }
}

#[test]
fn bounds_and_alignment_hold() {
    let ram = ram();
    let end = ram.bytes();
    let mut eight = [0; 8];
    for at in [end - 7, end, end + 1, u64::MAX - 3, u64::MAX] {
        assert!(ram.read_at(Oa(at), &mut eight).is_err(), "{at:#x}");
        assert!(ram.write_at(Oa(at), &eight).is_err(), "{at:#x}");
        assert!(ram.fill_at(Oa(at), 0, 8).is_err(), "{at:#x}");
        assert!(ram.hva(Oa(at), 8).is_err(), "{at:#x}");
        assert!(Memory::fetch_add_u64(&ram, Oa(at), 1).is_err(), "{at:#x}");
    }
    assert!(ram.fill_at(Oa(0), 0, u64::MAX).is_err());
    ram.read_at(Oa(end - 8), &mut eight).expect("the last bytes");
    ram.read_at(Oa(end), &mut []).expect("no bytes at the end");
    assert_eq!(
        Memory::compare_swap_u32(&ram, Oa(2), 0, 1),
        Err(drogher_iommu::MemoryError::Misaligned { oa: Oa(2), size: 4 })
    );
    assert_eq!(
        Memory::read(&ram, Oa(end - 1), &mut eight),
        Err(drogher_iommu::MemoryError::OutOfBounds { oa: Oa(end - 1), len: 8, size: end })
    );
}

#[test]
fn atomics_answer_the_old_value() {
    let ram = ram();
    assert_eq!(Memory::fetch_add_u64(&ram, Oa(8), u64::MAX), Ok(0));
    assert_eq!(Memory::fetch_add_u64(&ram, Oa(8), 2), Ok(u64::MAX));
    assert_eq!(Memory::compare_swap_u64(&ram, Oa(8), 1, 7), Ok(1));
    assert_eq!(Memory::compare_swap_u64(&ram, Oa(8), 1, 9), Ok(7));
    assert_eq!(Memory::fetch_add_u32(&ram, Oa(8), 1), Ok(7));
    assert_eq!(Memory::compare_swap_u32(&ram, Oa(12), 0, 3), Ok(0));
    assert_eq!(Memory::len(&ram), 4 << 20);
}

#[test]
fn aligned_words_never_tear() {
    let ram = Arc::new(ram());
    let writer = Arc::clone(&ram);
    let thread = std::thread::spawn(move || {
        for i in 0..200_000u64 {
            let half = i & 0xFFFF_FFFF;
            let _ = writer.write_at(Oa(64), &(half << 32 | half).to_le_bytes());
        }
    });
    let mut word = [0; 8];
    while !thread.is_finished() {
        ram.read_at(Oa(64), &mut word).expect("inside");
        let value = u64::from_le_bytes(word);
        assert_eq!(value >> 32, value & 0xFFFF_FFFF);
    }
    thread.join().expect("the writer ends");
}

#[test]
fn a_second_mapping_shares_and_a_wrong_file_is_refused() {
    let ram = ram();
    ram.populate().expect("populated");
    ram.write_at(Oa(4096), b"shared").expect("inside");
    let file = || ram.file().try_clone().expect("a descriptor");
    let other = GuestRam::from_file(file(), 4 << 20).expect("the same size");
    let mut seen = [0; 6];
    other.read_at(Oa(4096), &mut seen).expect("inside");
    assert_eq!(&seen, b"shared");
    let wrong = GuestRam::from_file(file(), 2 << 20);
    assert!(matches!(wrong, Err(MemoryError::FileSize { expected: 0x20_0000, found: 0x40_0000 })));
    let unsealed = rustix::fs::memfd_create("x", MemfdFlags::ALLOW_SEALING).expect("a memfd");
    rustix::fs::ftruncate(&unsealed, 2 << 20).expect("sized");
    assert!(GuestRam::from_file(unsealed.into(), 2 << 20).is_err(), "it could shrink under us");
    assert!(ram.file().set_len(0).is_err(), "ours cannot");
}

#[test]
fn holes_are_known_without_filling_them() {
    const MIB: u64 = 1 << 20;
    let ram = GuestRam::new(4 * MIB).expect("RAM");
    let blocks = || rustix::fs::fstat(ram.file()).expect("a file").st_blocks;
    assert_eq!(ram.hole_at(Oa(0), 4 * MIB), 4 * MIB);
    assert_eq!(ram.hole_at(Oa(MIB), MIB), MIB, "at most what was asked for");
    ram.write_at(Oa(MIB + 5), &[1]).expect("inside");
    ram.write_unmapped(Oa(3 * MIB), &[0; 4096]).expect("inside");
    let before = blocks();
    assert_eq!(ram.hole_at(Oa(0), 4 * MIB), MIB);
    assert_eq!(ram.hole_at(Oa(MIB), MIB), 0, "a page that holds something");
    assert_eq!(ram.hole_at(Oa(MIB + 4096), 3 * MIB), 2 * MIB - 4096);
    assert_eq!(ram.hole_at(Oa(3 * MIB), MIB), 0, "zeroes that were written are no hole");
    assert_eq!(ram.hole_at(Oa(3 * MIB + 4096), MIB), MIB - 4096, "to the end");
    assert_eq!(ram.data_at(Oa(MIB)), 4096, "up to the next hole");
    ram.write_unmapped(Oa(MIB + 4096), &[1; 8192]).expect("inside");
    assert_eq!((ram.data_at(Oa(MIB)), ram.data_at(Oa(MIB + 4096))), (12288, 8192));
    ram.write_unmapped(Oa(4 * MIB - 1), &[1]).expect("inside");
    assert_eq!(ram.data_at(Oa(4 * MIB - 4096)), 4096, "to the end");
    assert_eq!(blocks(), before + 3 * 8, "only what was written");
}

#[test]
fn mapping_what_was_written_saves_faults_and_fills_no_holes() {
    const MIB: u64 = 1 << 20;
    fn faults() -> u64 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("procfs");
        let after_name = stat.rsplit(") ").next().expect("fields");
        after_name.split(' ').nth(7).expect("minor faults").parse().expect("a number")
    }
    let ram = GuestRam::new(4 * MIB).expect("RAM");
    let blocks = || rustix::fs::fstat(ram.file()).expect("a file").st_blocks;
    // Two extents: 1 MiB at 1 MiB, and the last page.
    ram.write_unmapped(Oa(MIB), &[7; MIB as usize]).expect("inside");
    ram.write_unmapped(Oa(4 * MIB - 1), &[7]).expect("inside");
    let before = blocks();
    ram.map_written().expect("mapped");
    assert_eq!(blocks(), before, "holes stay holes");
    let before = faults();
    for page in 0..256 {
        ram.write_at(Oa(MIB + page * 4096), &[8]).expect("inside");
    }
    let taken = faults() - before;
    assert!(taken < 16, "{taken} faults for 256 pages that are mapped");
    let mut bytes = [0; 2];
    ram.read_at(Oa(MIB), &mut bytes).expect("inside");
    assert_eq!(bytes, [8, 7], "contents stay");
    GuestRam::new(2 * MIB).expect("RAM").map_written().expect("nothing to map");
}
