//! `dma-log/1`, `dma-pin/1` and `prefers/1`.

use super::{answer, call};
use crate::tracking::SharedBits;
use crate::{Device, Failure, LogCaps, LogReport, LogStart, PinKind};
use core::ffi::c_void;
use core::sync::atomic::AtomicU64;
use drogher_plugin_abi as abi;
use std::sync::{Mutex, PoisonError};

/// Size of what `log_start` gets in version 1.1: no host gives less.
const LOG_START_FIRST: usize = 64;

/// The table for a log of these abilities, which is made once and lives for ever.
pub(super) fn log<D: Device>(caps: LogCaps) -> &'static abi::DmaLog {
    static MADE: Mutex<Vec<&'static abi::DmaLog>> = Mutex::new(Vec::new());
    let table = abi::DmaLog {
        size: size_of::<abi::DmaLog>() as u32,
        flags: if caps.shared { abi::DROGHER_DMA_LOG_SHARED } else { 0 },
        min_page: caps.min_page,
        max_page: caps.max_page,
        max_ranges: caps.max_ranges,
        reserved: 0,
        start: Some(log_start::<D>),
        report: if caps.shared { None } else { Some(log_report::<D>) },
        stop: Some(log_stop::<D>),
    };
    let key = |table: &abi::DmaLog| {
        let start = table.start.map(|start| start as usize);
        (table.flags, table.min_page, table.max_page, table.max_ranges, start)
    };
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    match made.iter().find(|other| key(other) == key(&table)) {
        Some(other) => other,
        None => {
            let table: &'static abi::DmaLog = Box::leak(Box::new(table));
            made.push(table);
            table
        }
    }
}

pub(super) const fn pin<D: Device>(kind: PinKind) -> abi::DmaPin {
    let flags = match kind {
        PinKind::Some => 0,
        PinKind::Only => abi::DROGHER_PIN_ONLY,
    };
    abi::DmaPin { size: size_of::<abi::DmaPin>() as u32, flags, unmap: Some(unmap::<D>) }
}

pub(super) const fn prefers<D: Device>() -> abi::Prefers {
    abi::Prefers { size: size_of::<abi::Prefers>() as u32, flags: 0, get: Some(prefers_get::<D>) }
}

unsafe extern "C" fn log_start<D: Device>(dev: *mut c_void, info: *mut abi::LogStart) -> i32 {
    // SAFETY: the host's promises for `dev` and `info`.
    unsafe {
        call::<D>(dev, |slot| {
            let given = super::known(info.cast_const(), LOG_START_FIRST)
                .ok_or_else(|| Failure::invalid("No place for what to log"))?;
            let chosen = slot.log_start(start(&given)?)?;
            (&raw mut (*info).page_size).write(chosen);
            Ok(abi::DROGHER_OK)
        })
    }
}

/// # Safety
/// What `given` points to is valid: the ranges during the call, the bitmap until the log ends.
unsafe fn start(given: &abi::LogStart) -> Result<LogStart, Failure> {
    let count = usize::try_from(given.range_count).unwrap_or(usize::MAX);
    let most = abi::DROGHER_DMA_LOG_RANGES_MAX as usize;
    if given.ranges.is_null() || count == 0 || count > most {
        return Err(Failure::invalid(format!("{count} ranges to log; 1 to {most} are possible")));
    }
    let size = given.page_size;
    let sizes = abi::DROGHER_DMA_LOG_PAGE_MIN..=abi::DROGHER_DMA_LOG_PAGE_MAX;
    if !size.is_power_of_two() || !sizes.contains(&size) {
        return Err(Failure::invalid(format!("A tracking page of {size} bytes")));
    }
    // SAFETY: not NULL, few, and the caller's promise.
    let raw = unsafe { core::slice::from_raw_parts(given.ranges, count) };
    let mut ranges = Vec::with_capacity(count);
    let mut before = 0;
    for range in raw {
        let end = range.gpa.checked_add(range.len).filter(|_| range.len != 0);
        let end = end.ok_or_else(|| {
            Failure::invalid(format!("Range {:#x}+{:#x} is empty or wraps", range.gpa, range.len))
        })?;
        if range.gpa < before || !range.gpa.is_multiple_of(size) || !end.is_multiple_of(size) {
            let (start, len) = (range.gpa, range.len);
            return Err(Failure::invalid(format!(
                "Range {start:#x}+{len:#x} is not in order, overlaps, or is not of whole pages of {size}"
            )));
        }
        ranges.push(range.gpa..end);
        before = end;
    }
    let bitmap = match (given.words.is_null(), usize::try_from(given.word_count)) {
        (true, _) => None,
        (false, Ok(count)) if count <= isize::MAX as usize / 8 && given.words.is_aligned() => {
            // SAFETY: not NULL, aligned, and the caller's promise; everybody's accesses are atomic. The
            // slot closes it before the log ends.
            let words =
                unsafe { core::slice::from_raw_parts(given.words.cast::<AtomicU64>(), count) };
            let needed = before.saturating_sub(given.first_gpa).div_ceil(size).div_ceil(64);
            if (count as u64) < needed || given.page_shift != size.trailing_zeros() {
                return Err(Failure::invalid(format!(
                    "A bitmap of {count} words for pages of 2^{} bytes is too short: {needed} are needed",
                    given.page_shift
                )));
            }
            let (first_gpa, shift, fd) = (given.first_gpa, given.page_shift, given.fd);
            Some(SharedBits::new(words, first_gpa, shift, fd))
        }
        _ => return Err(Failure::invalid("A bitmap that cannot be")),
    };
    Ok(LogStart { ranges, page_size: size, bitmap })
}

unsafe extern "C" fn log_report<D: Device>(
    dev: *mut c_void,
    gpa: u64,
    len: u64,
    words: *mut u64,
    word_count: u64,
) -> i32 {
    // SAFETY: the host's promises for `dev` and `words`.
    unsafe {
        call::<D>(dev, |slot| {
            let size = slot.log_page_size()?;
            if len == 0 || !gpa.is_multiple_of(size) || !len.is_multiple_of(size) {
                return Err(Failure::invalid(format!(
                    "A report of {gpa:#x}+{len:#x} is not of whole pages of {size} bytes"
                )));
            }
            if gpa.checked_add(len).is_none() {
                return Err(Failure::invalid(format!("A report of {gpa:#x}+{len:#x} wraps")));
            }
            let (pages, given) = (len / size, word_count);
            let count = usize::try_from(pages.div_ceil(64)).unwrap_or(usize::MAX);
            if words.is_null() || given < pages.div_ceil(64) || count > isize::MAX as usize / 8 {
                return Err(Failure::invalid(format!(
                    "A bitmap of {given} words is too short for {pages} pages"
                )));
            }
            let words = core::slice::from_raw_parts_mut(words, count);
            slot.device()?.log_report(gpa, &mut LogReport::new(words, pages))?;
            Ok(abi::DROGHER_OK)
        })
    }
}

unsafe extern "C" fn log_stop<D: Device>(dev: *mut c_void) -> i32 {
    // SAFETY: the host's promises for `dev`.
    unsafe { call::<D>(dev, |slot| slot.log_stop().map(|()| abi::DROGHER_OK)) }
}

unsafe extern "C" fn unmap<D: Device>(dev: *mut c_void, iova: u64, len: u64) -> i32 {
    // SAFETY: the host's promises for `dev`.
    unsafe { call::<D>(dev, |slot| slot.device()?.unmap(iova, len).map(|()| abi::DROGHER_OK)) }
}

unsafe extern "C" fn prefers_get<D: Device>(dev: *mut c_void, out: *mut abi::Preference) -> i32 {
    // SAFETY: the host's promises for `dev` and `out`.
    unsafe {
        call::<D>(dev, |slot| {
            let wish = slot.preference.as_ref();
            let wish = wish.ok_or_else(|| Failure::unsupported("No preference"))?;
            let value = abi::Preference {
                size: 0,
                tracker: wish.number(),
                page_size: wish.page_size.unwrap_or(0),
                cost_hint_ns: wish.cost_hint_ns.unwrap_or(0),
                // The slot keeps it until `destroy`.
                reason: abi::Str {
                    ptr: wish.reason.as_ptr().cast(),
                    len: wish.reason.len() as u64,
                },
            };
            answer(out, &value)
        })
    }
}

#[cfg(test)]
#[path = "tracking_test.rs"]
mod tests;
