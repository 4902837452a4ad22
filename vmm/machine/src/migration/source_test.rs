use std::collections::BTreeSet;

use super::*;

/// Pages on both sides of the hole below 4 GiB, which lie side by side in the memory file.
const LOW: Range<u64> = (3 << 18) - 40..3 << 18;
const HIGH: Range<u64> = 4 << 18..(4 << 18) + 40;

/// Every page that holds something is among the data, and no hole is: whatever is written meanwhile, and
/// whatever is remembered of what was asked before.
#[test]
fn extents_are_right_on_both_sides_of_the_hole_and_while_ram_is_written() {
    let ram = GuestRam::new(5 << 30).expect("address space");
    let (mut extents, mut written) = (Extents::default(), BTreeSet::new());
    let mut draw = 0x1234_5678_9abc_def1_u64;
    let mut below = |limit: u64| {
        draw ^= draw << 13;
        draw ^= draw >> 7;
        draw ^= draw << 17;
        draw % limit
    };
    for _ in 0..40 {
        for region in [LOW, HIGH] {
            let mut at = region.start + below(8);
            while at < region.end {
                let extent = extents.of(&ram, at..region.end);
                let (is_data, count) = match extent {
                    Extent::Data(count) => (true, count),
                    Extent::Hole(count) => (false, count),
                };
                assert!(count > 0 && at + count <= region.end, "{extent:?} at {at:#x}");
                for page in at..at + count {
                    assert_eq!(
                        written.contains(&page),
                        is_data,
                        "{page:#x}: {extent:?} at {at:#x}"
                    );
                }
                at += count;
                if below(4) == 0 {
                    let page = [LOW, HIGH][usize::try_from(below(2)).unwrap()].start + below(40);
                    let oa = ram.oa(Gpa(page << 12), 4096).expect("RAM");
                    ram.write_unmapped(oa, &[1; 4096]).expect("inside");
                    written.insert(page);
                }
            }
        }
    }
    assert!(written.len() > 60, "{}", written.len());
}
