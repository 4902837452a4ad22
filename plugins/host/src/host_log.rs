//! `drogher.dma-log/1`, the host's side: writes that say where they landed.
//!
//! The invariant is that of `host_table.rs`.
#![expect(unsafe_code, reason = "C functions with raw pointers from plugins")]

use crate::host_table::{Way, bytes, dma};
use core::ffi::c_void;
use core::ops::Range;
use drogher_iommu::{DmaError, Landed, Requester};
use drogher_iommu_types::{Gpa, Iova};
use drogher_plugin_abi as abi;

pub(crate) static TABLE: abi::DmaLogHost = abi::DmaLogHost {
    size: size_of::<abi::DmaLogHost>() as u32,
    flags: 0,
    write: Some(write),
    fill: Some(fill),
    fetch_add_u32: Some(fetch_add_u32),
    fetch_add_u64: Some(fetch_add_u64),
    compare_swap_u32: Some(compare_swap_u32),
    compare_swap_u64: Some(compare_swap_u64),
};

/// The plugin's room for runs. Neighbours become one.
struct Runs {
    out: *mut abi::GpaRuns,
    room: *mut abi::GpaRange,
    capacity: usize,
    used: usize,
    last: Range<Gpa>,
}

impl Runs {
    /// `None`: there is no room for one.
    ///
    /// # Safety
    /// `out` is NULL or readable and writable, and its `runs` NULL or writable for its `capacity`,
    /// while this lives.
    unsafe fn new(out: *mut abi::GpaRuns) -> Option<Runs> {
        if out.is_null() {
            return None;
        }
        // SAFETY: the caller's promise.
        let given = unsafe { out.read_unaligned() };
        let mut runs = Runs {
            out,
            room: given.runs,
            capacity: usize::try_from(given.capacity).unwrap_or(usize::MAX),
            used: 0,
            last: Gpa(0)..Gpa(0),
        };
        runs.set_count();
        (!runs.room.is_null() && runs.capacity > 0).then_some(runs)
    }

    fn set_count(&mut self) {
        // SAFETY: `new`'s promise.
        unsafe { (&raw mut (*self.out).count).write_unaligned(self.used as u64) }
    }
}

impl Landed for Runs {
    fn has_room(&mut self, gpa: Gpa) -> bool {
        self.used < self.capacity || self.last.end == gpa
    }

    fn landed(&mut self, run: Range<Gpa>) {
        if self.used > 0 && self.last.end == run.start {
            self.last.end = run.end;
        } else {
            self.last = run;
            self.used += 1;
        }
        let range =
            abi::GpaRange { gpa: self.last.start.0, len: self.last.end.0 - self.last.start.0 };
        // SAFETY: `new`'s promise: `has_room` has kept `used` within the capacity.
        unsafe { self.room.add(self.used - 1).write_unaligned(range) };
        self.set_count();
    }
}

unsafe extern "C" fn write(
    ctx: *mut abi::HostCtx,
    requester: u32,
    iova: u64,
    data: *const c_void,
    len: u64,
    done: *mut u64,
    runs: *mut abi::GpaRuns,
) -> i32 {
    // SAFETY: the plugin's promises: `data` is readable for `len` bytes, `runs` as it says.
    unsafe {
        let (Some(data), Some(mut runs)) = (bytes(data, len), Runs::new(runs)) else {
            return abi::DROGHER_ERR_INVAL;
        };
        dma(ctx, requester, Way::Write, done, |requester| {
            requester.write_logged(Iova(iova), data, &mut runs)
        })
    }
}

unsafe extern "C" fn fill(
    ctx: *mut abi::HostCtx,
    requester: u32,
    iova: u64,
    byte: u8,
    len: u64,
    done: *mut u64,
    runs: *mut abi::GpaRuns,
) -> i32 {
    // SAFETY: the plugin's promises.
    unsafe {
        let Some(mut runs) = Runs::new(runs) else { return abi::DROGHER_ERR_INVAL };
        dma(ctx, requester, Way::Write, done, |requester| {
            requester.fill_logged(Iova(iova), byte, len, &mut runs)
        })
    }
}

/// One atomic operation of `size` bytes; `old` gets the value before.
///
/// # Safety
/// As [`dma`]; `old` is NULL or writable; `runs` as for [`Runs::new`].
unsafe fn atomic<T>(
    ctx: *mut abi::HostCtx,
    requester: u32,
    size: u64,
    old: *mut T,
    runs: *mut abi::GpaRuns,
    access: impl FnOnce(&Requester) -> Result<(T, Gpa), DmaError>,
) -> i32 {
    // SAFETY: the caller's promises.
    unsafe {
        let Some(mut runs) = Runs::new(runs) else { return abi::DROGHER_ERR_INVAL };
        dma(ctx, requester, Way::Write, core::ptr::null_mut(), |requester| {
            let (value, gpa) = access(requester)?;
            runs.landed(gpa..Gpa(gpa.0 + size));
            if !old.is_null() {
                old.write_unaligned(value);
            }
            Ok(size)
        })
    }
}

unsafe extern "C" fn fetch_add_u32(
    ctx: *mut abi::HostCtx,
    requester: u32,
    iova: u64,
    add: u32,
    old: *mut u32,
    runs: *mut abi::GpaRuns,
) -> i32 {
    // SAFETY: the plugin's promises.
    unsafe {
        atomic(ctx, requester, size_of::<u32>() as u64, old, runs, |requester| {
            requester.fetch_add_u32_at(Iova(iova), add)
        })
    }
}

unsafe extern "C" fn fetch_add_u64(
    ctx: *mut abi::HostCtx,
    requester: u32,
    iova: u64,
    add: u64,
    old: *mut u64,
    runs: *mut abi::GpaRuns,
) -> i32 {
    // SAFETY: the plugin's promises.
    unsafe {
        atomic(ctx, requester, size_of::<u64>() as u64, old, runs, |requester| {
            requester.fetch_add_u64_at(Iova(iova), add)
        })
    }
}

unsafe extern "C" fn compare_swap_u32(
    ctx: *mut abi::HostCtx,
    requester: u32,
    iova: u64,
    expected: u32,
    new: u32,
    old: *mut u32,
    runs: *mut abi::GpaRuns,
) -> i32 {
    // SAFETY: the plugin's promises.
    unsafe {
        atomic(ctx, requester, size_of::<u32>() as u64, old, runs, |requester| {
            requester.compare_swap_u32_at(Iova(iova), expected, new)
        })
    }
}

unsafe extern "C" fn compare_swap_u64(
    ctx: *mut abi::HostCtx,
    requester: u32,
    iova: u64,
    expected: u64,
    new: u64,
    old: *mut u64,
    runs: *mut abi::GpaRuns,
) -> i32 {
    // SAFETY: the plugin's promises.
    unsafe {
        atomic(ctx, requester, size_of::<u64>() as u64, old, runs, |requester| {
            requester.compare_swap_u64_at(Iova(iova), expected, new)
        })
    }
}
