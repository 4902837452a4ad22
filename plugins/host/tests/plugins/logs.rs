//! A device's own log: what lands is in it, and each wrong call is an error that names it.

use crate::bed::{Bed, MEMORY, short, words};
use crate::tracked::{
    ADD, DONE, FIRST_RUN, IOVA, LAST_BIT, LEN, LOGGED, NO_ROOM, PAGE, RUNS, Tracked, gpas, harvest,
    plugin,
};
use drogher_iommu_types::{DirtyBitmap, Gpa};
use drogher_plugin_host::{InstanceError, State};
use drogher_tracking::{
    Class, Pins, Provider, ProviderKind, Sink, TrackingPageSize, providers::DeviceProvider,
};

const K4: TrackingPageSize = TrackingPageSize::K4;
const SHARED: &[&str] = &["LOG_FLAGS=1", "NO_REPORT"];
const WAYS: [&[&str]; 2] = [&[], SHARED];

fn write(device: &Tracked, iova: u64, len: u64) {
    assert_eq!(device.act(LOGGED, &[(IOVA, iova), (LEN, len)]), 0);
    assert_eq!(device.get(DONE), len);
}

#[test]
fn what_lands_is_reported_once() {
    for way in WAYS {
        let Some(device) = Tracked::running(way) else { return };
        write(&device, 0x1000, 1);
        let log = device.log(&[0..MEMORY], K4);
        assert_eq!(harvest(&*log, K4), [0; 0], "written before the start");
        write(&device, 0x3FFF, 2);
        write(&device, 70 * PAGE, 3 * PAGE);
        write(&device, MEMORY - 1, 1);
        assert_eq!(harvest(&*log, K4), [3, 4, 70, 71, 72, 255]);
        assert_eq!(harvest(&*log, K4), [0; 0]);
        assert_eq!(device.act(ADD, &[(IOVA, 9 * PAGE + 8)]), 0);
        assert_eq!(harvest(&*log, K4), [9]);
        log.stop().expect("stops");
        write(&device, 0x3FFF, 2);
        let log = device.log(&[0..MEMORY], K4);
        assert_eq!(harvest(&*log, K4), [0; 0], "written while it was off");
    }
}

#[test]
fn logging_goes_on_over_states_and_none_begins_it() {
    for way in WAYS {
        let Some(device) = Tracked::running(way) else { return };
        device.set_state(State::Stop).expect("stops");
        device.set_state(State::StopCopy).expect("saves");
        let (_, log) = device.device_log().expect("has one");
        let bitmap = DirtyBitmap::new(Gpa(0)..Gpa(MEMORY)).expect("aligned");
        let error = log.report(&(Gpa(0)..Gpa(MEMORY)), K4, &bitmap).expect_err("not started");
        assert!(error.to_string().contains("does not run"), "{error}");
        log.start(&gpas(&[0..MEMORY]), K4).expect("starts in any state");
        device.set_state(State::Running).expect("runs");
        write(&device, 0, 1);
        device.set_state(State::StopCopy).expect("stops");
        assert_eq!(harvest(&*log, K4), [0]);
    }
}

#[test]
fn large_tracking_pages_and_ranges_apart() {
    for way in WAYS {
        let Some(device) = Tracked::running(way) else { return };
        let ranges = [0x10000..0x30000, 0x40000..0x50000];
        let log = device.log(&ranges, TrackingPageSize::K64);
        for iova in [0, 0x10000, 0x2FFFF, 0x30000, 0x4FFFF, 0x50000] {
            write(&device, iova, 1);
        }
        let all: Vec<u64> = (0x10..0x30).chain(0x40..0x50).collect();
        assert_eq!(harvest(&*log, TrackingPageSize::K64), all);
    }
}

#[test]
fn a_part_of_the_range_and_a_bitmap_that_ends_in_a_tracking_page() {
    for way in WAYS {
        let Some(device) = Tracked::running(way) else { return };
        let log = device.log(&[0..MEMORY], TrackingPageSize::K64);
        write(&device, 0, 1);
        write(&device, 0x10000, 1);
        write(&device, 0x20000, 1);
        let bitmap = DirtyBitmap::new(Gpa(0)..Gpa(0x12000)).expect("aligned");
        log.report(&(Gpa(0x10000)..Gpa(0x12000)), TrackingPageSize::K64, &bitmap).expect("reports");
        assert_eq!(crate::tracked::pages(&bitmap), [0x10, 0x11]);
        let rest = harvest(&*log, TrackingPageSize::K64);
        assert_eq!(rest, (0..0x10).chain(0x20..0x30).collect::<Vec<_>>());
    }
}

#[test]
fn it_is_a_provider_of_the_tracking() {
    for way in WAYS {
        let Some(device) = Tracked::running(way) else { return };
        let (caps, log) = device.device_log().expect("has one");
        assert_eq!((caps.min_page_size, caps.max_page_size), (K4, TrackingPageSize::K64));
        assert_eq!(caps.max_ranges, 4);
        let ram = gpas(&[0..MEMORY]);
        let mut provider = DeviceProvider::new(drogher_iommu_types::Rid(8), log, ram.clone(), K4);
        provider.start().expect("starts");
        assert_eq!((provider.class(), provider.kind()), (Class::Exact, ProviderKind::Device));
        write(&device, 5 * PAGE, 1);
        let all = || DirtyBitmap::new(Gpa(0)..Gpa(MEMORY)).expect("aligned");
        let (into, rest, scratch) = (all(), all(), all());
        let range = Gpa(4 * PAGE)..Gpa(6 * PAGE);
        provider.harvest(&Sink::new(range, &ram, &into, &rest, &scratch)).expect("reports");
        assert_eq!(crate::tracked::pages(&into), [5]);
        provider.stop().expect("stops");
    }
}

#[test]
fn a_part_of_a_tracking_page_is_not_taken_where_there_is_room_for_all() {
    for way in WAYS {
        let Some(device) = Tracked::running(way) else { return };
        let log = device.log(&[0..MEMORY], TrackingPageSize::K64);
        write(&device, 15 * PAGE, 1);
        let all = DirtyBitmap::new(Gpa(0)..Gpa(MEMORY)).expect("aligned");
        let part = Gpa(0)..Gpa(8 * PAGE);
        let error = log.report(&part, TrackingPageSize::K64, &all).expect_err("half a page");
        assert!(error.to_string().contains("whole pages of"), "{error}");
        assert_eq!(harvest(&*log, TrackingPageSize::K64), (0..16).collect::<Vec<_>>());
    }
}

#[test]
fn a_write_that_lands_in_pieces_says_all_of_them() {
    let Some(device) = Tracked::running(&[]) else { return };
    // Pages 8 to 12 of IOVA lie every other page of memory: there is room for two runs.
    let domain = &device.bed.domain;
    domain.unmap(Gpa(8 * PAGE)..Gpa(13 * PAGE)).expect("unmaps");
    for (gpa, oa) in [(8, 0), (9, 2), (10, 4), (11, 6)] {
        let (range, oa) = (Gpa(gpa * PAGE)..Gpa((gpa + 1) * PAGE), drogher_iommu::Oa(oa * PAGE));
        domain.map(range, oa, drogher_iommu::Perm::READ_WRITE).expect("maps");
    }
    let log = device.log(&[0..MEMORY], K4);
    // GPA go on, so it is one run however memory lies.
    assert_eq!(device.act(LOGGED, &[(IOVA, 8 * PAGE), (LEN, 4 * PAGE)]), 0);
    assert_eq!(
        (device.get(DONE), device.get(RUNS), device.get(FIRST_RUN)),
        (4 * PAGE, 1, 8 * PAGE)
    );
    assert_eq!(harvest(&*log, K4), [8, 9, 10, 11]);
    // A fault: what was written before is in the log.
    assert_eq!(device.act(LOGGED, &[(IOVA, 11 * PAGE), (LEN, 2 * PAGE)]), -14);
    assert_eq!((device.get(DONE), device.get(RUNS)), (PAGE, 1));
    assert_eq!(harvest(&*log, K4), [11]);
    assert_eq!(device.act(NO_ROOM, &[(IOVA, 0), (LEN, 1)]), -22);
    assert_eq!(device.act(LOGGED, &[(IOVA, u64::MAX), (LEN, 2)]), -14, "wraps");
    assert_eq!(device.act(LOGGED, &[(IOVA, 1 << 48), (LEN, 1)]), -14, "beyond the width");
    assert_eq!(device.act(ADD, &[(IOVA, 4)]), -22, "misaligned");
    assert_eq!(harvest(&*log, K4), [0; 0]);
}

#[test]
fn wrong_starts_are_refused_with_words() {
    for way in WAYS {
        let Some(device) = Tracked::running(way) else { return };
        let (_, log) = device.device_log().expect("has one");
        let top = 1 << 48;
        let cases: [(&[std::ops::Range<u64>], &str); 8] = [
            (&[], "no range"),
            (&[0..PAGE + 1], "whole tracking pages"),
            (&[0..2 * PAGE, PAGE..3 * PAGE], "begins inside"),
            (&[2 * PAGE..3 * PAGE, 0..PAGE], "sort them"),
            (&[2 * PAGE..PAGE], "ends before it starts"),
            (&[PAGE..PAGE], "is empty"),
            (&[top - PAGE..top + PAGE], "48 address bits"),
            (
                &[
                    0..PAGE,
                    2 * PAGE..3 * PAGE,
                    4 * PAGE..5 * PAGE,
                    6 * PAGE..7 * PAGE,
                    8 * PAGE..9 * PAGE,
                ],
                "5 ranges are more than the 4",
            ),
        ];
        for (ranges, expected) in cases {
            let error = log.start(&gpas(ranges), K4).expect_err(expected);
            assert!(words(&*error).contains(expected), "{}", words(&*error));
        }
        // The log has no pages as large, but that is how it was asked.
        let error = log.start(&gpas(&[0..0x10000]), TrackingPageSize::M2).expect_err("misaligned");
        assert!(words(&*error).contains("whole tracking pages"), "{}", words(&*error));
        // Grown to the smallest page that it has, the range is none.
        assert_eq!(log.start(&gpas(&[0..PAGE]), K4).expect("a page"), K4);
        let twice = log.start(&gpas(&[0..PAGE]), K4).expect_err("twice");
        assert!(twice.to_string().contains("runs already"), "{twice}");
        log.stop().expect("stops");
        let twice = log.stop().expect_err("twice");
        assert!(twice.to_string().contains("does not run"), "{twice}");
        assert_eq!(device.state(), State::Running);
    }
}

#[test]
fn wrong_reports_are_refused_with_words() {
    for way in WAYS {
        let Some(device) = Tracked::running(way) else { return };
        let log = device.log(&[0..MEMORY], TrackingPageSize::K16);
        let bitmap = DirtyBitmap::new(Gpa(0)..Gpa(0x8000)).expect("aligned");
        let cases = [
            (0..0x8000, K4, "pages of 16K, not 4K"),
            (0..0xC000, TrackingPageSize::K16, "0x8000"),
            (0x1000..0x8000, TrackingPageSize::K16, "whole pages of 16K"),
            (0x4000..0x4000, TrackingPageSize::K16, "whole pages of 16K"),
            (0x8000..0x4000, TrackingPageSize::K16, "whole pages of 16K"),
        ];
        for (range, page_size, expected) in cases {
            let range = Gpa(range.start)..Gpa(range.end);
            let error = log.report(&range, page_size, &bitmap).expect_err(expected);
            assert!(words(&*error).contains(expected), "{}", words(&*error));
        }
        assert!(bitmap.is_clean());
    }
}

#[test]
fn impossible_tables_make_no_device() {
    let cases = [
        ("LOG_SIZE=48", "drogher_dma_log says it has 48 bytes"),
        ("LOG_FLAGS=2", "drogher_dma_log.flags is 0x2"),
        ("LOG_MIN=3072", "min_page is 0xc00"),
        ("LOG_MIN=2048", "min_page is 0x800"),
        ("LOG_MAX=0x400000", "max_page is 0x400000"),
        ("LOG_MIN=131072", "must be >= min_page"),
        ("LOG_RANGES=0", "max_ranges is 0x0"),
        ("LOG_RANGES=257", "max_ranges is 0x101"),
        ("NO_REPORT", "no function report"),
        ("PIN_FLAGS=2", "drogher_dma_pin.flags is 0x2"),
        ("NO_UNMAP", "no function unmap"),
        ("NO_MIGRATION", "drogher_migration, which drogher_dma_pin needs"),
        ("TRACKER=6", "tracker is 0x6"),
        ("PREFERS_PAGE=3072", "page_size is 0xc00"),
        ("REASON_NULL", "8 bytes at NULL"),
    ];
    let bed = Bed::new();
    for (define, expected) in cases {
        let Some(plugin) = plugin(&[define]) else { return };
        let error = bed.create(&plugin, &[]).expect_err(define);
        assert!(words(&error).contains(expected), "{define}: {}", words(&error));
    }
}

#[test]
fn what_it_says_of_itself() {
    let Some(device) = Tracked::running(&[]) else { return };
    let wish = device.preference().expect("has one");
    assert_eq!(
        (wish.provider, wish.page_size),
        (ProviderKind::Device, Some(TrackingPageSize::K64))
    );
    assert_eq!((wish.cost_hint_ns, wish.reason.as_str()), (Some(7), "it\u{FFFD}knows"));
    assert_eq!(device.pins(), Pins::Some);
    assert!(device.pin_board().is_some());
    let Some(none) = Tracked::running(&["NO_LOG", "NO_PINS", "TRACKER=0"]) else { return };
    assert!(none.device_log().is_none() && none.pin_board().is_none());
    assert_eq!((none.pins(), none.preference()), (Pins::None, None));
    assert!(none.unmapping(Gpa(0)..Gpa(MEMORY)).is_ok(), "nothing to ask");
}

#[test]
fn a_log_that_lies_is_in_error() {
    for (define, expected) in
        [("LOG_CHOOSES=3072", "3072 bytes"), ("LOG_CHOOSES=0x100000", "1048576 bytes")]
    {
        let Some(device) = Tracked::running(&[define]) else { return };
        let (_, log) = device.device_log().expect("has one");
        let error = log.start(&gpas(&[0..MEMORY]), K4).expect_err("a lie");
        assert!(words(&*error).contains(expected), "{}", words(&*error));
        assert_eq!(device.state(), State::Error);
    }
    let Some(device) = Tracked::running(&["LOG_CHOOSES=65536", "LOG_FLAGS=1"]) else { return };
    let (_, log) = device.device_log().expect("has one");
    log.start(&gpas(&[0..MEMORY]), K4).expect_err("the bitmap is for another size");
    assert_eq!(device.state(), State::Error);

    let Some(device) = Tracked::running(&["REPORT_BEYOND"]) else { return };
    let log = device.log(&[0..MEMORY - PAGE], K4);
    let bitmap = DirtyBitmap::new(Gpa(0)..Gpa(MEMORY)).expect("aligned");
    let error = log.report(&(Gpa(0)..Gpa(MEMORY)), K4, &bitmap).expect_err("a lie");
    assert!(words(&*error).contains("bits beyond the 255 pages"), "{}", words(&*error));
    assert_eq!(device.state(), State::Error);
}

#[test]
fn a_chosen_page_size_is_the_plugins() {
    let Some(device) = Tracked::running(&["LOG_CHOOSES=16384"]) else { return };
    let (_, log) = device.device_log().expect("has one");
    // The last tracking page is cut by the range's end.
    let chosen = log.start(&gpas(&[0..5 * PAGE]), K4).expect("starts");
    assert_eq!(chosen, TrackingPageSize::K16);
    write(&device, 4 * PAGE, 1);
    assert_eq!(harvest(&*log, TrackingPageSize::K16), [4, 5, 6, 7]);
}

#[test]
fn refusals_leave_things_as_they_were() {
    let Some(device) = Tracked::running(&["START_REFUSES"]) else { return };
    let (_, log) = device.device_log().expect("has one");
    for _ in 0..2 {
        let error = log.start(&gpas(&[0..MEMORY]), K4).expect_err("refused");
        assert!(error.to_string().contains("dma-log.start with status -16"), "{error}");
    }
    assert_eq!(device.state(), State::Running);
    let Some(device) = Tracked::running(&["REPORT_REFUSES"]) else { return };
    let log = device.log(&[0..MEMORY], K4);
    let bitmap = DirtyBitmap::new(Gpa(0)..Gpa(MEMORY)).expect("aligned");
    log.report(&(Gpa(0)..Gpa(MEMORY)), K4, &bitmap).expect_err("refused");
    log.stop().expect("runs still");
    // One that does not stop keeps its bitmap, so that nothing is written over.
    let Some(device) = Tracked::running(&["STOP_REFUSES", "LOG_FLAGS=1"]) else { return };
    let log = device.log(&[0..MEMORY], K4);
    log.stop().expect_err("refused");
    device.act(LAST_BIT, &[(IOVA, 0)]);
    let twice = log.stop().expect_err("not asked again");
    assert!(twice.to_string().contains("does not run"), "{twice}");
}

#[test]
fn a_report_that_hangs_costs_the_device() {
    let Some(device) = Tracked::with(&["REPORT_HANGS"], short()) else { return };
    let log = device.log(&[0..MEMORY], K4);
    let bitmap = DirtyBitmap::new(Gpa(0)..Gpa(MEMORY)).expect("aligned");
    let error = log.report(&(Gpa(0)..Gpa(MEMORY)), K4, &bitmap).expect_err("late");
    assert!(error.to_string().contains("dma-log.report did not return within"), "{error}");
    assert_eq!(device.state(), State::Error);
}

#[test]
fn a_reset_and_the_end_end_it() {
    for way in WAYS {
        let Some(device) = Tracked::running(way) else { return };
        let log = device.log(&[0..MEMORY], K4);
        device.reset().expect("resets");
        log.stop().expect_err("ended");
        log.start(&gpas(&[0..MEMORY]), K4).expect("starts anew");
        let Tracked { device, .. } = device;
        device.destroy().expect("ends");
        let error = log.stop().expect_err("gone");
        let error = error.downcast::<drogher_plugin_host::LogError>().expect("of the log");
        let gone =
            matches!(*error, drogher_plugin_host::LogError::Call(InstanceError::Gone { .. }));
        assert!(gone, "{error}");
    }
}
