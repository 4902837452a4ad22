//! Pins: only where DMA may be, counted as dirty, and gone when they have to be.

use crate::bed::{MEMORY, short, words};
use crate::tracked::{
    DONE, HANDLE, IOVA, LEN, LOGGED, MARK, PAGE, PLAIN, READ, STORE, Tracked, UNMAPS, UNPIN, WRITE,
    pages,
};
use drogher_iommu::{Oa, Perm};
use drogher_iommu_types::{DirtyBitmap, Gpa};
use drogher_plugin_host::{InstanceError, State};
use drogher_tracking::{PinBoard, Pins};

/// What a board reports of the first MiB.
fn harvest(board: &PinBoard) -> Vec<u64> {
    let all = Gpa(0)..Gpa(MEMORY);
    let bitmap = DirtyBitmap::new(all.clone()).expect("aligned");
    board.harvest(&all, &bitmap).expect("covered");
    pages(&bitmap)
}

fn board(device: &Tracked) -> std::sync::Arc<PinBoard> {
    let board = device.pin_board().expect("it pins");
    board.start_recording().expect("starts");
    board
}

#[test]
fn a_pinned_store_is_reported_while_it_is_pinned_and_once_more() {
    let Some(device) = Tracked::running(&[]) else { return };
    let board = board(&device);
    assert_eq!(device.pin(3 * PAGE + 8, PAGE, WRITE), 0);
    assert_eq!(harvest(&board), [3, 4], "before the store");
    assert_eq!(device.act(STORE, &[]), 0);
    assert_eq!(device.bed.u64(3 * PAGE + 8), u64::from_ne_bytes([0x77; 8]));
    assert_eq!(device.bed.u64(3 * PAGE), 0);
    assert_eq!(harvest(&board), [3, 4]);
    assert_eq!(device.act(UNPIN, &[]), 0);
    assert_eq!(harvest(&board), [3, 4]);
    assert_eq!(harvest(&board), [0; 0]);
    assert_eq!(device.act(UNPIN, &[]), -2, "twice");
    assert_eq!(device.pin(PAGE, PAGE, READ), 0);
    assert_eq!(device.act(UNPIN, &[]), 0);
    assert_eq!(harvest(&board), [0; 0], "read");
    assert_eq!(device.stats().dma_refused, 0);
}

#[test]
fn a_mark_counts_once_and_in_the_domain_too() {
    let Some(device) = Tracked::running(&[]) else { return };
    let board = board(&device);
    device.bed.domain.start_tracking().expect("starts");
    assert_eq!(device.act(MARK, &[(IOVA, 7 * PAGE - 1), (LEN, 2)]), 0);
    assert_eq!(harvest(&board), [6, 7]);
    assert_eq!(harvest(&board), [0; 0]);
    let all = Gpa(0)..Gpa(MEMORY);
    let bitmap = DirtyBitmap::new(all.clone()).expect("aligned");
    device.bed.domain.read_and_clear_dirty(all, &bitmap).expect("drains");
    assert_eq!(pages(&bitmap), [6, 7]);
    assert_eq!(device.act(MARK, &[(IOVA, 0), (LEN, 0)]), -22);
    assert_eq!(device.act(MARK, &[(IOVA, MEMORY), (LEN, 1)]), -14);
    assert_eq!(device.act(MARK, &[(IOVA, u64::MAX), (LEN, 2)]), -22);
}

#[test]
fn wrong_pins_are_refused_and_pin_nothing() {
    let Some(device) = Tracked::running(&[]) else { return };
    let domain = &device.bed.domain;
    domain.unmap(Gpa(8 * PAGE)..Gpa(12 * PAGE)).expect("unmaps");
    domain.map(Gpa(8 * PAGE)..Gpa(9 * PAGE), Oa(0), Perm::READ).expect("maps");
    domain.map(Gpa(10 * PAGE)..Gpa(12 * PAGE), Oa(3 * PAGE), Perm::READ_WRITE).expect("maps");
    let cases = [
        (0, 0, WRITE, -22, "no byte"),
        (u64::MAX, 2, WRITE, -22, "wraps"),
        (1 << 48, 1, WRITE, -14, "beyond the width"),
        (0, 1, 0, -22, "no access"),
        (0, 1, 4, -22, "an unknown access"),
        (8 * PAGE, 1, WRITE, -14, "read only"),
        (8 * PAGE, 1, 3, -14, "read only, for both"),
        (9 * PAGE, 1, READ, -14, "not mapped"),
        (MEMORY, 1, READ, -14, "beyond memory"),
    ];
    for (iova, len, access, expected, why) in cases {
        assert_eq!(device.pin(iova, len, access), expected, "{why}");
        assert_eq!(device.get(DONE), 0, "{why}");
    }
    // Pages 11 and 12 do not lie together; the answer says how much does.
    assert_eq!(device.pin(10 * PAGE + 16, 4 * PAGE, WRITE), -34);
    assert_eq!(device.get(DONE), 2 * PAGE - 16);
    assert_eq!(device.pin(10 * PAGE + 16, 2 * PAGE - 16, WRITE), 0);
    assert_eq!(device.pin_board().expect("pins").stats().pins, 1);
    assert_eq!(device.act(UNPIN, &[]), 0);
    assert_eq!(device.pin_board().expect("pins").stats().pins, 0);
    assert_eq!(device.act(UNPIN, &[(HANDLE, 99)]), -2);
    assert_eq!(device.act(UNPIN, &[(HANDLE, u64::MAX)]), -2);
}

#[test]
fn without_the_extension_nothing_is_pinned() {
    let Some(device) = Tracked::running(&["NO_PINS"]) else { return };
    assert_eq!(device.pin(0, PAGE, READ), -95);
    assert_eq!(device.act(UNPIN, &[]), -95);
    assert_eq!(device.act(MARK, &[(IOVA, 0), (LEN, 1)]), -95);
}

#[test]
fn in_ndma_nothing_new_is_pinned_and_what_is_counts() {
    let Some(device) = Tracked::running(&[]) else { return };
    let board = board(&device);
    assert_eq!(device.pin(PAGE, PAGE, WRITE), 0);
    device.enter_ndma().expect("enters");
    assert_eq!(device.pin(2 * PAGE, PAGE, WRITE), -1);
    assert_eq!(device.act(MARK, &[(IOVA, 0), (LEN, 1)]), -1);
    assert_eq!(device.stats().dma_refused, 2);
    assert_eq!(harvest(&board), [1]);
    assert_eq!(device.act(UNPIN, &[]), 0, "giving back is always possible");
    assert_eq!(harvest(&board), [1]);
    device.leave_ndma().expect("leaves");
    assert_eq!(device.pin(2 * PAGE, PAGE, WRITE), 0);
}

#[test]
fn a_write_pin_left_in_stop_is_an_error_by_name() {
    for state in [State::Stop, State::StopCopy, State::Resuming] {
        let Some(device) = Tracked::running(&["STOP_KEEPS"]) else { return };
        let board = board(&device);
        assert_eq!(device.pin(0, PAGE, READ), 0);
        assert_eq!(device.pin(PAGE, PAGE, WRITE), 0);
        assert_eq!(device.pin(2 * PAGE, PAGE, WRITE), 0);
        let error = device.set_state(state).expect_err("pins are left");
        let text = error.to_string();
        assert!(text.contains("2 pins for writing are left in STOP"), "{text}");
        assert!(text.contains(device.name()), "{text}");
        assert_eq!(device.state(), State::Error);
        assert_eq!(harvest(&board), [1, 2], "it may still write there");
        device.reset().expect("gives them back");
        assert_eq!(harvest(&board), [1, 2]);
        assert_eq!((harvest(&board), board.stats().pins), (vec![], 0));
    }
}

#[test]
fn a_read_pin_may_stay_in_stop_and_a_tidy_device_is_fine() {
    let Some(device) = Tracked::running(&["STOP_KEEPS"]) else { return };
    assert_eq!(device.pin(0, PAGE, READ), 0);
    device.set_state(State::StopCopy).expect("stops");
    let Some(device) = Tracked::running(&[]) else { return };
    assert_eq!(device.pin(0, PAGE, WRITE), 0);
    device.set_state(State::StopCopy).expect("stops");
    assert_eq!(device.pin_board().expect("pins").stats().pins, 0);
}

#[test]
fn a_pin_left_by_a_reset_is_an_error() {
    let Some(device) = Tracked::running(&["RESET_KEEPS"]) else { return };
    assert_eq!(device.pin(0, PAGE, READ), 0);
    let error = device.reset().expect_err("a pin is left");
    assert!(error.to_string().contains("1 pins are left after it"), "{error}");
    assert_eq!(device.state(), State::Error);
}

#[test]
fn what_is_left_at_the_end_is_given_back() {
    let Some(device) = Tracked::running(&[]) else { return };
    let board = board(&device);
    assert_eq!(device.pin(0, PAGE, WRITE), 0);
    let Tracked { device, .. } = device;
    device.destroy().expect("ends");
    assert_eq!(board.stats().pins, 0);
    assert_eq!(harvest(&board), [0]);
}

#[test]
fn before_an_unmap_pins_are_given_back() {
    let Some(device) = Tracked::running(&[]) else { return };
    for iova in [PAGE, 3 * PAGE, 3 * PAGE] {
        assert_eq!(device.pin(iova, 2 * PAGE, WRITE), 0);
    }
    // Nothing there: the plugin is not asked.
    drop(device.unmapping(Gpa(8 * PAGE)..Gpa(9 * PAGE)).expect("nothing"));
    assert_eq!(device.get(UNMAPS), 0);
    let range = Gpa(2 * PAGE)..Gpa(4 * PAGE);
    let held = device.unmapping(range.clone()).expect("gives them back");
    assert_eq!(device.get(UNMAPS), 2, "each part once");
    assert_eq!(device.pin_board().expect("pins").stats().pins, 0);
    assert_eq!(device.pin(3 * PAGE, 1, READ), -16, "until it is unmapped");
    assert_eq!(device.pin(4 * PAGE, 1, READ), 0, "beside it");
    device.bed.domain.unmap(range).expect("unmaps");
    drop(held);
    assert_eq!(device.pin(3 * PAGE, 1, READ), -14);
}

#[test]
fn a_pin_kept_over_an_unmap_is_an_error_by_name() {
    let cases = [
        ("UNMAP_KEEPS", "1 pins are left in"),
        ("UNMAP_REFUSES", "refused with status -16: I want to keep it; 1 pins are left"),
        ("UNMAP_HANGS", "dma-pin.unmap did not return within"),
    ];
    for (define, expected) in cases {
        let Some(device) = Tracked::with(&[define], short()) else { return };
        let board = board(&device);
        assert_eq!(device.pin(PAGE, PAGE, WRITE), 0);
        let error = device.unmapping(Gpa(0)..Gpa(MEMORY)).expect_err(define);
        assert!(words(&error).contains(expected), "{}", words(&error));
        assert!(words(&error).contains(device.name()));
        assert!(matches!(error, InstanceError::Broken { .. }), "{error}");
        assert_eq!(device.state(), State::Error);
        assert_eq!(harvest(&board), [1], "it may still write there");
    }
}

#[test]
fn a_device_that_writes_to_pins_only_is_held_to_it() {
    let Some(device) = Tracked::running(&["PIN_FLAGS=1"]) else { return };
    assert_eq!(device.pins(), Pins::All);
    assert_eq!(device.act(PLAIN, &[(IOVA, 0), (LEN, 8)]), -1);
    assert_eq!(device.act(LOGGED, &[(IOVA, 0), (LEN, 8)]), -1);
    assert_eq!((device.bed.u64(0), device.stats().dma_refused), (0, 2));
    assert_eq!(device.pin(0, 8, WRITE), 0);
    assert_eq!(device.act(STORE, &[]), 0);
    assert_eq!(device.bed.u64(0), u64::from_ne_bytes([0x77; 8]));
    assert_eq!(device.state(), State::Running);
    let Some(device) = Tracked::running(&[]) else { return };
    assert_eq!(device.act(PLAIN, &[(IOVA, 0), (LEN, 8)]), 0);
}

#[test]
fn a_pin_that_is_too_long_says_what_is_possible() {
    let Some(device) = Tracked::running(&[]) else { return };
    assert_eq!(device.pin(16, 1 << 40, READ), -34);
    assert_eq!(device.get(DONE), MEMORY - 16);
}
