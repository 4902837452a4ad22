//! What all processors read: set by the first one before it starts the others.

use core::cell::UnsafeCell;

use crate::clock;
use crate::logic::options::Options;
use crate::memory::Extents;

/// The run's fixed facts.
pub struct Setup {
    pub options: Options,
    /// TSC cycles per second.
    pub hz: u64,
    /// Where the working set lies.
    pub extents: Extents,
}

/// A value that is replaced at most once, before anybody else reads it.
pub struct SetOnce<T>(UnsafeCell<T>);

// SAFETY: `set` runs on the first processor, before any other is started; then all only read.
unsafe impl<T> Sync for SetOnce<T> {}

impl<T> SetOnce<T> {
    /// Only the first processor calls this, once, before it reads it or starts others.
    pub fn set(&self, value: T) {
        // SAFETY: nobody else runs yet, and no reference was given out.
        unsafe { *self.0.get() = value };
    }

    pub fn get(&self) -> &T {
        // SAFETY: it does not change once it is read.
        unsafe { &*self.0.get() }
    }
}

/// What holds until the options are known is enough to report a fault by.
pub static SETUP: SetOnce<Setup> = SetOnce(UnsafeCell::new(Setup {
    options: Options::DEFAULT,
    hz: clock::GUESS_HZ,
    extents: Extents::none(),
}));
