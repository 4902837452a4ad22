//! A host that calls wrongly: each call is refused, and the device never sees it.

use super::*;
use crate::shim::{Tables, get_extension};
use crate::{DeviceInfo, Host, Params, Preference, Tracker};
use core::ffi::{CStr, c_char};
use core::ptr::{null, null_mut};
use std::sync::atomic::{AtomicU32, Ordering};

unsafe extern "C" fn nothing(_: *mut abi::HostCtx) {}

unsafe extern "C" fn none(_: *mut abi::HostCtx, _: *const c_char, _: u64) -> *const c_void {
    null()
}

static HOST: abi::HostTable = abi::HostTable {
    size: size_of::<abi::HostTable>() as u32,
    abi_major: 1,
    abi_minor: 0,
    flags: 0,
    host_name: abi::Str::EMPTY,
    retain: Some(nothing),
    release: Some(nothing),
    log: None,
    set_last_error: None,
    fail: None,
    irq: None,
    get_extension: Some(none),
};

/// Logs in pages of `CHOSEN` bytes, or of those asked for; counts the calls that come through.
struct Logger<const SHARED: bool, const CHOSEN: u64> {
    bitmap: Option<SharedBits>,
}

static CALLS: AtomicU32 = AtomicU32::new(0);

impl<const SHARED: bool, const CHOSEN: u64> Device for Logger<SHARED, CHOSEN> {
    fn create(host: Host, _: &Params) -> Result<Self, Failure> {
        assert!(!host.can_log());
        assert_eq!(host.mark_dirty(0, 1), Err(crate::PinError::Unsupported));
        Ok(Self { bitmap: None })
    }
    fn info(&self) -> DeviceInfo {
        DeviceInfo::new(0xD70E, 1, 0xFF_0000)
    }
    fn reset(&mut self) -> Result<(), Failure> {
        Ok(())
    }
    fn log_caps(&self) -> Option<LogCaps> {
        Some(LogCaps { shared: SHARED, max_page: 65536, ..LogCaps::ANY })
    }
    fn log_start(&mut self, start: LogStart) -> Result<u64, Failure> {
        self.bitmap = start.bitmap;
        Ok(if CHOSEN == 0 { start.page_size } else { CHOSEN })
    }
    fn log_report(&mut self, _: u64, report: &mut LogReport<'_>) -> Result<(), Failure> {
        CALLS.fetch_add(1, Ordering::SeqCst);
        report.set(report.pages() - 1);
        Ok(())
    }
    fn log_stop(&mut self) -> Result<(), Failure> {
        // Kept on purpose: the SDK has closed it.
        Ok(())
    }
    fn unmap(&mut self, _: u64, _: u64) -> Result<(), Failure> {
        if let Some(bitmap) = &self.bitmap {
            bitmap.mark(&(0..1));
        }
        Ok(())
    }
    fn preference(&self) -> Option<Preference> {
        let reason = String::from("it is so");
        Some(Preference {
            tracker: Tracker::Fault,
            page_size: Some(8192),
            cost_hint_ns: None,
            reason,
        })
    }
}

struct Dev {
    dev: *mut c_void,
    log: abi::DmaLog,
    destroy: unsafe extern "C" fn(*mut c_void),
}

impl Drop for Dev {
    fn drop(&mut self) {
        // SAFETY: made by `create`.
        unsafe { (self.destroy)(self.dev) }
    }
}

fn ask<D: Device>(dev: *mut c_void, id: &CStr) -> *const c_void {
    // SAFETY: an instance or NULL, and an id.
    unsafe { get_extension::<D>(dev, id.as_ptr(), id.count_bytes() as u64) }
}

fn make<D: Device>() -> Dev {
    let info = abi::CreateInfo {
        size: size_of::<abi::CreateInfo>() as u32,
        flags: 0,
        host: &HOST,
        host_ctx: null_mut(),
        name: abi::Str::EMPTY,
        params: null(),
        param_count: 0,
        requester: 0,
        reserved: 0,
    };
    let mut dev = null_mut();
    let ops = Tables::<D>::DEVICE;
    // SAFETY: all of it is valid.
    let status = unsafe { ops.create.expect("a function")(&info, &mut dev) };
    assert_eq!(status, abi::DROGHER_OK);
    assert!(ask::<D>(null_mut(), abi::DROGHER_EXT_DMA_LOG).is_null(), "only of an instance");
    let table = ask::<D>(dev, abi::DROGHER_EXT_DMA_LOG).cast::<abi::DmaLog>();
    assert_eq!(table, ask::<D>(dev, abi::DROGHER_EXT_DMA_LOG).cast(), "made once");
    // SAFETY: a table.
    let log = unsafe { *table };
    Dev { dev, log, destroy: ops.destroy.expect("a function") }
}

impl Dev {
    fn start(&self, ranges: &[(u64, u64)], page_size: u64, words: &mut [u64]) -> (i32, u64) {
        let ranges: Vec<_> = ranges.iter().map(|&(gpa, len)| abi::GpaRange { gpa, len }).collect();
        let mut info = abi::LogStart {
            size: size_of::<abi::LogStart>() as u32,
            flags: 0,
            ranges: ranges.as_ptr(),
            range_count: ranges.len() as u64,
            page_size,
            words: if words.is_empty() { null_mut() } else { words.as_mut_ptr() },
            word_count: words.len() as u64,
            first_gpa: 0,
            page_shift: page_size.trailing_zeros(),
            fd: -1,
        };
        // SAFETY: all of it is valid.
        let status = unsafe { self.log.start.expect("a function")(self.dev, &mut info) };
        (status, info.page_size)
    }

    fn report(&self, gpa: u64, len: u64, words: &mut [u64], count: u64) -> i32 {
        let at = if words.is_empty() { null_mut() } else { words.as_mut_ptr() };
        // SAFETY: `count` is what there is, or too few to be used.
        unsafe { self.log.report.expect("a function")(self.dev, gpa, len, at, count) }
    }

    fn stop(&self) -> i32 {
        // SAFETY: an instance.
        unsafe { self.log.stop.expect("a function")(self.dev) }
    }
}

const INVAL: i32 = abi::DROGHER_ERR_INVAL;
const PERM: i32 = abi::DROGHER_ERR_PERM;
const FATAL: i32 = abi::DROGHER_ERR_FATAL;

#[test]
fn wrong_calls_are_refused() {
    let dev = make::<Logger<false, 0>>();
    for (ranges, page_size, why) in [
        (&[][..], 4096, "no range"),
        (&[(0, 4095)], 4096, "misaligned end"),
        (&[(1, 4096)], 4096, "misaligned"),
        (&[(0, 8192), (4096, 4096)], 4096, "overlap"),
        (&[(8192, 4096), (0, 4096)], 4096, "not in order"),
        (&[(u64::MAX - 4095, 8192)], 4096, "wraps"),
        (&[(0, 0)], 4096, "empty"),
        (&[(0, 3072)], 3072, "3 KiB"),
        (&[(0, 1 << 22)], 1 << 22, "4 MiB"),
        (&[(0, 2048)], 2048, "2 KiB"),
        (&[(0, 4096); 257], 4096, "too many"),
    ] {
        assert_eq!(dev.start(ranges, page_size, &mut []).0, INVAL, "{why}");
    }
    assert_eq!(
        dev.start(&[(0, 4096)], 4096, &mut [0]).0,
        INVAL,
        "a bitmap for a log with a report"
    );
    let mut words = [0; 2];
    assert_eq!(dev.report(0, 4096, &mut words, 2), PERM, "not started");
    assert_eq!(dev.stop(), PERM, "not started");
    assert_eq!(dev.start(&[(0, 1 << 20)], 4096, &mut []), (abi::DROGHER_OK, 4096));
    assert_eq!(dev.start(&[(0, 1 << 20)], 4096, &mut []).0, PERM, "twice");
    for (gpa, len, count, why) in [
        (1, 4096, 2, "misaligned"),
        (0, 4097, 2, "misaligned length"),
        (0, 0, 2, "empty"),
        (u64::MAX - 4095, 8192, 2, "wraps"),
        (0, 65 * 4096, 1, "too short"),
    ] {
        assert_eq!(dev.report(gpa, len, &mut words, count), INVAL, "{why}");
    }
    assert_eq!(dev.report(0, 4096, &mut [], 1), INVAL, "NULL");
    assert_eq!(CALLS.load(Ordering::SeqCst), 0, "the device sees none of it");
    assert_eq!(dev.report(0, 65 * 4096, &mut words, 2), abi::DROGHER_OK);
    assert_eq!((words, CALLS.load(Ordering::SeqCst)), ([0, 1], 1));
    assert_eq!(dev.stop(), abi::DROGHER_OK);
    assert_eq!(dev.stop(), PERM, "twice");
}

#[test]
fn a_bitmap_that_is_too_short_or_missing_is_refused() {
    let dev = make::<Logger<true, 0>>();
    assert!(dev.log.report.is_none());
    assert_eq!(dev.start(&[(0, 65 * 4096)], 4096, &mut [0]).0, INVAL, "a word is missing");
    assert_eq!(dev.start(&[(0, 4096)], 4096, &mut []).0, INVAL, "none at all");
    let mut words = [0_u64; 2];
    assert_eq!(dev.start(&[(0, 65 * 4096)], 4096, &mut words), (abi::DROGHER_OK, 4096));
    let mark = || {
        // SAFETY: an instance.
        let status = unsafe { unmap::<Logger<true, 0>>(dev.dev, 0, 1) };
        assert_eq!(status, abi::DROGHER_OK);
    };
    mark();
    assert_eq!(std::mem::take(&mut words[0]), 1);
    assert_eq!(dev.stop(), abi::DROGHER_OK);
    mark();
    assert_eq!(words, [0, 0], "closed when the log stops, though the device has kept it");
}

#[test]
fn a_page_size_that_is_not_offered_breaks_the_device() {
    assert_eq!(make::<Logger<false, 3072>>().start(&[(0, 65536)], 4096, &mut []).0, FATAL);
    assert_eq!(make::<Logger<false, 131_072>>().start(&[(0, 65536)], 4096, &mut []).0, FATAL);
    assert_eq!(make::<Logger<false, 8192>>().start(&[(0, 65536)], 4096, &mut []), (0, 8192));
    let mut words = [0];
    assert_eq!(make::<Logger<true, 8192>>().start(&[(0, 65536)], 4096, &mut words).0, FATAL);
}

#[test]
fn a_preference_as_its_table_says_it() {
    let dev = make::<Logger<false, 0>>();
    let table = ask::<Logger<false, 0>>(dev.dev, abi::DROGHER_EXT_PREFERS).cast::<abi::Prefers>();
    let mut out = abi::Preference {
        size: size_of::<abi::Preference>() as u32,
        tracker: 0,
        page_size: 0,
        cost_hint_ns: 9,
        reason: abi::Str::EMPTY,
    };
    // SAFETY: a table, an instance, a place.
    let status = unsafe { (*table).get.expect("a function")(dev.dev, &mut out) };
    assert_eq!(status, abi::DROGHER_OK);
    assert_eq!((out.tracker, out.page_size, out.cost_hint_ns), (4, 8192, 0));
    assert_eq!(out.reason.len, 8);
    assert!(ask::<Logger<false, 0>>(dev.dev, abi::DROGHER_EXT_DMA_PIN).is_null());
}
