//! DMA against the harvest: no write is lost.

use std::sync::Arc;

use shuttle::sync::atomic::{AtomicU64, Ordering};
use shuttle::thread;

use crate::world::{World, check, page, write};

/// A device writes while rounds go on: after the last round the copy is what memory holds.
#[test]
fn clear_drain_copy_loses_no_write() {
    check(4000, || {
        let mut world = World::tracked();
        world.copy_all();
        let device = world.device.clone();
        let writer = thread::spawn(move || {
            for value in 1..=3 {
                assert!(write(&device, 0, value));
            }
            assert!(write(&device, 1, 9));
        });
        world.round();
        world.round();
        writer.join().expect("no panic");
        world.last_round();
    });
}

/// The device's IOTLB knows that D is set. Its next write meets a harvest: it must either be
/// waited for, or see the new generation and set D again.
#[test]
fn guard_is_published_before_the_generation_is_read() {
    check(4000, || {
        let mut world = World::tracked();
        assert!(write(&world.device, 0, 1));
        let device = world.device.clone();
        let writer = thread::spawn(move || {
            assert!(write(&device, 0, 2));
        });
        world.round();
        writer.join().expect("no panic");
        world.last_round();
    });
}

/// Two accesses in flight by one device, each with an IOTLB of its own.
#[test]
fn every_iotlb_is_stale_after_a_harvest() {
    check(3000, || {
        let mut world = World::tracked();
        let writers: Vec<_> = (1..=2)
            .map(|writer| {
                let device = world.device.clone();
                thread::spawn(move || {
                    for value in 1..=2 {
                        assert!(write(&device, 0, 10 * writer + value));
                    }
                })
            })
            .collect();
        world.round();
        world.round();
        for writer in writers {
            writer.join().expect("no panic");
        }
        world.last_round();
    });
}

/// Two devices write one page: the second may find D set by the first, which has not come to the
/// hints yet. A write that has ended is in the next harvest all the same.
#[test]
fn a_write_that_ended_is_in_the_next_harvest() {
    check(4000, || {
        let world = World::tracked();
        let ended = Arc::new(AtomicU64::new(0));
        let other = world.domain.attach(drogher_iommu_types::Rid(16)).expect("second");
        let writers: Vec<_> = [world.device.clone(), other]
            .into_iter()
            .map(|device| {
                let ended = ended.clone();
                thread::spawn(move || {
                    assert!(write(&device, 1, 5));
                    ended.store(1, Ordering::SeqCst);
                })
            })
            .collect();
        let before = ended.load(Ordering::SeqCst);
        world.harvest();
        assert!(before == 0 || world.bitmap.test(page(1)), "an ended write is not reported");
        for writer in writers {
            writer.join().expect("no panic");
        }
    });
}

/// Two harvests of different ranges at once, each by a thread of its own.
#[test]
fn harvests_of_neighbouring_ranges_share_nothing() {
    check(3000, || {
        let mut world = World::tracked();
        let (device, domain) = (world.device.clone(), world.domain.clone());
        let writer = thread::spawn(move || {
            for value in 1..=2 {
                assert!(write(&device, 0, value) && write(&device, 1, value));
            }
        });
        let second =
            Arc::new(drogher_iommu_types::DirtyBitmap::new(page(1)..page(2)).expect("aligned"));
        let taken = second.clone();
        let harvester = thread::spawn(move || {
            domain.read_and_clear_dirty(page(1)..page(2), &taken).expect("drained");
        });
        world.domain.read_and_clear_dirty(page(0)..page(1), &world.bitmap).expect("drained");
        writer.join().expect("no panic");
        harvester.join().expect("no panic");
        second.take_into(&world.bitmap).expect("covered");
        world.last_round();
    });
}

/// A write that began before tracking did is in the bulk copy, a later one in a round.
#[test]
fn tracking_starts_before_the_bulk_copy() {
    check(4000, || {
        let mut world = World::new();
        assert!(write(&world.device, 0, 1));
        let device = world.device.clone();
        let writer = thread::spawn(move || {
            assert!(write(&device, 0, 2));
            assert!(write(&device, 1, 3));
        });
        world.domain.start_tracking().expect("drained");
        world.copy_all();
        writer.join().expect("no panic");
        world.last_round();
    });
}

/// After `revoke` has returned nothing changes, and the last harvest has all that did.
#[test]
fn nothing_is_written_after_revoke() {
    check(4000, || {
        let mut world = World::tracked();
        let device = world.device.clone();
        let writer = thread::spawn(move || {
            for value in 1..=3 {
                write(&device, 0, value);
            }
        });
        world.device.revoke().expect("drained");
        let (value, accesses) = (world.memory(0), world.device.accesses());
        world.last_round();
        writer.join().expect("no panic");
        assert_eq!((world.memory(0), world.device.accesses()), (value, accesses));
    });
}
