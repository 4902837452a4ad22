//! DMA and harvests against leaves that are split and merged: a write is in the copy, and where
//! tracking is exact no more than its page is reported.

use std::sync::Arc;

use shuttle::sync::atomic::{AtomicU64, Ordering};
use shuttle::thread;

use crate::spec::Perm;
use crate::tracking::{SplitPolicy, TrackConfig, TrackMode};
use crate::world::{LARGE, World, check, page, write};
use drogher_iommu_types::Oa;

fn config(split: SplitPolicy) -> TrackConfig {
    TrackConfig { split, reserve: 1, ..TrackConfig::default() }
}

/// The leaf that a write has just walked becomes a table.
#[test]
fn split_against_write() {
    check(1500, || {
        let mut world = World::large(config(SplitPolicy::Never));
        world.copy_all();
        let device = world.device.clone();
        let writer = thread::spawn(move || assert!(write(&device, 1, 7)));
        world.domain.split(LARGE).expect("tables are free");
        writer.join().expect("no panic");
        world.last_round();
    });
}

/// A harvest between the two steps of a write: first the whole leaf, then a page of it.
#[test]
fn split_against_write_and_harvest() {
    check(1500, || {
        let mut world = World::large(config(SplitPolicy::Never));
        world.copy_all();
        let (device, domain) = (world.device.clone(), world.domain.clone());
        let writer = thread::spawn(move || {
            assert!(write(&device, 1, 1));
            assert!(write(&device, 0, 2) && write(&device, 1, 3));
        });
        let splitter = thread::spawn(move || domain.split(LARGE).expect("tables are free"));
        world.round();
        writer.join().expect("no panic");
        splitter.join().expect("no panic");
        world.last_round();
    });
}

/// Two writes meet the same clean leaf, and each wants to split it, while a harvest goes on. What
/// is reported was written.
#[test]
fn writes_that_split_against_harvest() {
    check(1500, || {
        let mut world = World::large(config(SplitPolicy::OnFirstWrite));
        world.copy_all();
        let other = world.domain.attach(drogher_iommu_types::Rid(16)).expect("second");
        let ended = Arc::new(AtomicU64::new(0));
        let writers: Vec<_> = [(world.device.clone(), 0), (other, 1)]
            .into_iter()
            .map(|(device, number)| {
                let ended = ended.clone();
                thread::spawn(move || {
                    assert!(write(&device, number, 5));
                    ended.fetch_or(1 << number, Ordering::SeqCst);
                })
            })
            .collect();
        let before = ended.load(Ordering::SeqCst);
        world.harvest();
        for number in 0..2 {
            let reported = world.bitmap.test(page(number));
            assert!(before >> number & 1 == 0 || reported, "an ended write is not reported");
        }
        assert!(!world.bitmap.test(page(2)), "reported, and was not written");
        world.copy_reported();
        for writer in writers {
            writer.join().expect("no panic");
        }
        world.harvest();
        assert!(!world.bitmap.test(page(2)), "reported, and was not written");
        world.last_round();
    });
}

/// A write has walked down to a table that a merge takes out.
#[test]
fn merge_against_write() {
    for mode in [TrackMode::DBits, TrackMode::WriteFault] {
        let model = match mode {
            TrackMode::DBits => || merge_model(TrackMode::DBits),
            TrackMode::WriteFault => || merge_model(TrackMode::WriteFault),
        };
        check(700, model);
    }
}

fn merge_model(mode: TrackMode) {
    let track = TrackConfig { mode, ..config(SplitPolicy::Never) };
    let mut world = World::large(track);
    world.domain.split(LARGE).expect("tables are free");
    world.copy_all();
    let device = world.device.clone();
    let writer = thread::spawn(move || {
        assert!(write(&device, 1, 1));
        assert!(write(&device, 1, 2));
    });
    assert_eq!(world.domain.merge(LARGE), Ok(1));
    world.round();
    writer.join().expect("no panic");
    world.last_round();
}

/// A table that a merge took out is used again at once, for another mapping.
#[test]
fn a_merged_table_is_used_again_only_after_a_drain() {
    check(300, || {
        let world = World::large(config(SplitPolicy::Never));
        world.domain.split(LARGE).expect("tables are free");
        let device = world.device.clone();
        let writer = thread::spawn(move || assert!(write(&device, 1, 7)));
        world.domain.merge(LARGE).expect("drained");
        // The same place in a table of its own.
        let there = drogher_iommu_types::Gpa(LARGE.end.0 + page(1).0);
        let end = drogher_iommu_types::Gpa(LARGE.end.0 + page(2).0);
        world.domain.map(there..end, Oa(page(2).0), Perm::READ_WRITE).expect("free");
        writer.join().expect("no panic");
        assert_eq!((world.memory(1), world.memory(2)), (7, 0));
    });
}

/// Half of a leaf goes, and a write to either half is under way.
#[test]
fn partial_unmap_against_write() {
    check(1000, || {
        let mut world = World::large(config(SplitPolicy::Never));
        world.copy_all();
        let (one, other) = (world.device.clone(), world.device.clone());
        let gone = thread::spawn(move || write(&one, 1, 7));
        let stays = thread::spawn(move || assert!(write(&other, 0, 8)));
        world.domain.unmap(page(1)..page(2)).expect("drained");
        let at_return = world.memory(1);
        let written = gone.join().expect("no panic");
        stays.join().expect("no panic");
        assert_eq!(world.memory(1), at_return, "a write landed after unmap had returned");
        assert_eq!(at_return, if written { 7 } else { 0 });
        world.last_round();
    });
}

/// The mode changes while writes and a harvest go on.
#[test]
fn mode_switch_against_write_and_harvest() {
    check(1000, || {
        let mut world = World::tracked();
        world.copy_all();
        let (device, domain) = (world.device.clone(), world.domain.clone());
        let writer = thread::spawn(move || {
            for value in 1..=2 {
                assert!(write(&device, 0, value) && write(&device, 1, value));
            }
        });
        let switcher = thread::spawn(move || {
            domain.set_track_mode(TrackMode::WriteFault).expect("tracking is on");
            domain.set_track_mode(TrackMode::DBits).expect("tracking is on");
        });
        world.round();
        writer.join().expect("no panic");
        switcher.join().expect("no panic");
        world.last_round();
    });
}
