//! Structs of the host's, which begin with their size and grow at the end.

/// Copies a struct of the host's, as much of it as both sides know; the rest is zero. `None` if it is
/// NULL or shorter than `first`, its size in version 1.0.
///
/// # Safety
/// `T` begins with a `u32` size, and all zero bytes are a value of it, also where they begin in the
/// middle. `ptr` is NULL or readable for as many bytes as its size field says.
pub(crate) unsafe fn known<T: Copy>(ptr: *const T, first: usize) -> Option<T> {
    if ptr.is_null() {
        return None;
    }
    // SAFETY: the size field is there in every version.
    let there = unsafe { ptr.cast::<u32>().read() } as usize;
    if there < first {
        return None;
    }
    let mut value = core::mem::MaybeUninit::<T>::zeroed();
    // SAFETY: so many bytes are there on both sides; the rest is zero.
    unsafe {
        let len = there.min(size_of::<T>());
        core::ptr::copy_nonoverlapping(ptr.cast::<u8>(), value.as_mut_ptr().cast(), len);
        Some(value.assume_init())
    }
}

/// Copies `value` to a struct of the host's, whose first field says how large it is there; that
/// field stays.
///
/// # Safety
/// `T` begins with a `u32` size; `out` is NULL or writable for as many bytes as its size field says.
pub(super) unsafe fn fill<T>(out: *mut T, value: &T) -> bool {
    if out.is_null() {
        return false;
    }
    // SAFETY: the size field is there in every version.
    let there = unsafe { out.cast::<u32>().read() } as usize;
    let head = size_of::<u32>();
    let len = there.min(size_of::<T>()).saturating_sub(head);
    // SAFETY: both are `len` bytes long behind their first field, and do not overlap.
    unsafe {
        let from = core::ptr::from_ref(value).cast::<u8>().add(head);
        core::ptr::copy_nonoverlapping(from, out.cast::<u8>().add(head), len);
    }
    true
}

#[cfg(test)]
#[path = "sized_test.rs"]
mod tests;
