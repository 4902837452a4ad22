//! DMA against map and unmap: a write reaches its page or faults, and is never silently lost.

use shuttle::thread;

use crate::spec::Perm;
use crate::world::{World, check, page, write};
use drogher_iommu_types::Oa;

/// A write that succeeded is in memory by the time unmap returns, and its page is reported; one
/// that faulted has changed nothing.
#[test]
fn unmap_against_write() {
    check(4000, || {
        let mut world = World::tracked();
        let device = world.device.clone();
        let writer = thread::spawn(move || write(&device, 1, 7));
        world.domain.unmap(page(1)..page(2)).expect("drained");
        let at_return = world.memory(1);
        let written = writer.join().expect("no panic");
        assert_eq!(world.memory(1), at_return, "a write landed after unmap had returned");
        assert_eq!(at_return, if written { 7 } else { 0 });
        world.last_round();
    });
}

/// The IOTLB knows the page, with D set, when it is unmapped and mapped to other memory.
#[test]
fn a_remapped_page_is_never_written_through_the_old_translation() {
    check(3000, || {
        let world = World::tracked();
        assert!(write(&world.device, 1, 1));
        let device = world.device.clone();
        let writer = thread::spawn(move || write(&device, 1, 7));
        world.domain.unmap(page(1)..page(2)).expect("drained");
        let old = world.memory(1);
        world.domain.map(page(1)..page(2), Oa(page(2).0), Perm::READ_WRITE).expect("free");
        let written = writer.join().expect("no panic");
        assert_eq!(world.memory(1), old);
        let reached = old == 7 || world.memory(2) == 7;
        assert_eq!(reached, written);
        // Page 1 is dirty in any case; its memory is now elsewhere.
        world.harvest();
        assert!(world.bitmap.test(page(1)));
    });
}

/// Unmapping the last pages unlinks the tables, and the next mapping uses them again: a walk
/// under way must not come out at the new mapping.
#[test]
fn a_table_is_used_again_only_after_a_drain() {
    check(250, || {
        let world = World::tracked();
        let device = world.device.clone();
        let writer = thread::spawn(move || write(&device, 1, 7));
        world.domain.unmap(page(0)..page(2)).expect("drained");
        // Same index in the leaf table, another branch of the tree.
        let far = 1 << 39;
        let there = drogher_iommu_types::Gpa(far + page(1).0);
        let end = drogher_iommu_types::Gpa(far + page(2).0);
        world.domain.map(there..end, Oa(page(2).0), Perm::READ_WRITE).expect("tables are free");
        writer.join().expect("no panic");
        assert_eq!(world.memory(2), 0, "a stale walk reached another mapping");
        assert_eq!(world.domain.stats().tables, 4);
    });
}

/// A harvest and an unmap of the same page at once: the D bit goes to one of them.
#[test]
fn harvest_against_unmap() {
    check(3000, || {
        let mut world = World::tracked();
        let device = world.device.clone();
        let writer = thread::spawn(move || {
            write(&device, 1, 1);
            write(&device, 1, 2);
        });
        let domain = world.domain.clone();
        let unmapper = thread::spawn(move || {
            domain.unmap(page(1)..page(2)).expect("drained");
        });
        world.round();
        writer.join().expect("no panic");
        unmapper.join().expect("no panic");
        world.last_round();
    });
}
