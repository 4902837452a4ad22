//! DMA against map and unmap: a write reaches its page or faults, and is never silently lost.

use std::ops::Range;

use shuttle::thread;

use crate::spec::Perm;
use crate::world::{World, check, page, write};
use drogher_iommu_types::{DirtyBitmap, Gpa, Oa, PAGE_SIZE};

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
    check(1500, || {
        let world = World::tracked();
        let device = world.device.clone();
        let writer = thread::spawn(move || write(&device, 1, 7));
        world.domain.unmap(page(0)..page(2)).expect("drained");
        // Same index in the leaf table, another branch of the tree.
        let far = 1 << 20;
        let there = Gpa(far + page(1).0);
        let end = Gpa(far + page(2).0);
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
        assert_eq!(world.domain.resolve(page(1)), None, "unmapped, and there again");
        world.last_round();
    });
}

/// Bytes of a unit in the format of the models.
const UNIT: u64 = 1 << 17;

/// The first page of the second unit.
fn next_unit() -> Range<Gpa> {
    Gpa(UNIT)..Gpa(UNIT + PAGE_SIZE)
}

/// Two units share the table above. One is unmapped, which would unlink that table were it not for
/// the other, which is being mapped.
#[test]
fn unlinking_against_map_in_the_next_unit() {
    check(1500, || {
        let world = World::new();
        let domain = world.domain.clone();
        let mapper = thread::spawn(move || {
            domain.map(next_unit(), Oa(page(2).0), Perm::READ_WRITE).expect("free");
            domain.unmap(next_unit()).expect("drained");
            domain.map(next_unit(), Oa(page(3).0), Perm::READ_WRITE).expect("free");
        });
        world.domain.unmap(page(0)..page(2)).expect("drained");
        assert_eq!(world.domain.resolve(page(0)), None);
        world.domain.map(page(0)..page(1), Oa(0), Perm::READ_WRITE).expect("free");
        mapper.join().expect("no panic");
        let at = |gpa| world.domain.resolve(gpa).map(|(oa, _)| oa);
        assert_eq!(at(next_unit().start), Some(Oa(page(3).0)));
        assert_eq!(at(page(0)), Some(Oa(0)));
        assert_eq!(world.domain.stats().tables, 6);
    });
}

/// A harvest waits in its drain, and a map and a harvest of the next unit go on beside it.
#[test]
fn harvest_against_unmap_in_the_next_unit() {
    check(1000, || {
        let mut world = World::tracked();
        world.domain.map(next_unit(), Oa(page(2).0), Perm::READ_WRITE).expect("free");
        world.copy_all();
        let (device, other) = (world.device.clone(), world.device.clone());
        let domain = world.domain.clone();
        let near = thread::spawn(move || assert!(write(&device, 0, 1) && write(&device, 0, 2)));
        let far = thread::spawn(move || write(&other, UNIT / PAGE_SIZE, 9));
        let unmapper = thread::spawn(move || {
            domain.unmap(next_unit()).expect("drained");
            domain.memory().read(Oa(page(2).0), &mut [0; 8]).expect("in bounds");
        });
        world.round();
        near.join().expect("no panic");
        let written = far.join().expect("no panic");
        unmapper.join().expect("no panic");
        let bitmap = DirtyBitmap::new(next_unit()).expect("aligned");
        world.domain.read_and_clear_dirty(next_unit(), &bitmap).expect("drained");
        assert_eq!(bitmap.test(next_unit().start), written);
        if written {
            world.copy[2] = world.memory(2);
        }
        world.last_round();
    });
}
