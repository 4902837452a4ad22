use super::*;

const BASE: u64 = 0xE_0000;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"))
}

/// The table at a GPA; its sum is checked.
fn table(all: &[u8], gpa: u64) -> &[u8] {
    let from = &all[usize::try_from(gpa - BASE).expect("inside")..];
    let table = &from[..u32_at(from, 4) as usize];
    assert_eq!(table.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0, "{:?}", &table[..4]);
    table
}

/// All tables by signature, found as a guest finds them.
fn walk(all: &[u8]) -> Vec<&[u8]> {
    assert_eq!(&all[..8], b"RSD PTR ");
    for part in [20, 36] {
        assert_eq!(all[..part].iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0);
    }
    let root = table(all, u64_at(all, 24));
    assert_eq!(&root[..4], b"XSDT");
    let mut found: Vec<_> = root[36..].chunks(8).map(|at| table(all, u64_at(at, 0))).collect();
    let dsdt = u64_at(found[0], 140);
    found.push(table(all, dsdt));
    found
}

#[test]
fn a_guest_finds_all_tables_from_the_root_pointer() {
    for cpus in [1, 8] {
        let all = tables(BASE, cpus);
        let found = walk(&all);
        let names: Vec<_> = found.iter().map(|t| &t[..4]).collect();
        assert_eq!(names, [b"FACP", b"APIC", b"MCFG", b"DSDT"]);
        let ports = [(116, 0xCF9u64), (244, 0x600), (256, 0x601)];
        for (at, port) in ports {
            // System I/O, 8 bits.
            assert_eq!((&found[0][at..at + 2], u64_at(found[0], at + 4)), (&[1, 8][..], port));
        }
        assert_eq!(found[0][128], 6, "the value that resets");
        let flags = u32_at(found[0], 112);
        assert_eq!(
            flags & (1 << 20 | 1 << 10),
            1 << 20 | 1 << 10,
            "reduced, with a reset register"
        );
        assert_eq!((u64_at(found[2], 44), &found[2][52..56]), (0xFEB0_0000, &[0; 4][..]));
        assert!(all.len() < 0x1_0000, "they fit below 1 MiB: {}", all.len());
    }
}

#[test]
fn each_cpu_is_in_both_tables() {
    let all = tables(BASE, 8);
    let found = walk(&all);
    assert_eq!(u32_at(found[1], 36), 0xFEE0_0000);
    let mut entries = &found[1][44..];
    let mut ids = Vec::new();
    while let [kind, len, ..] = *entries {
        match kind {
            // Processor's unique id, APIC id, enabled.
            0 => ids.push((entries[2], entries[3], u32_at(entries, 4))),
            1 => assert_eq!((u32_at(entries, 4), u32_at(entries, 8)), (0xFEC0_0000, 0)),
            other => panic!("a structure of type {other}"),
        }
        entries = &entries[usize::from(len)..];
    }
    assert_eq!(ids, (0..8).map(|id| (id, id, 1)).collect::<Vec<_>>());
    for id in 0..8 {
        let name = format!("C{id:03}");
        assert!(found[3].windows(4).any(|w| w == name.as_bytes()), "{name}");
    }
    assert!(!found[3].windows(4).any(|w| w == b"C008"));
}
