//! The device's own log of the pages that it writes to, by GPA, while one runs.

use std::ops::Range;
use std::sync::{PoisonError, RwLock};

use drogher_plugin_sdk::{Failure, LogReport, LogStart, OwnBits, SharedBits};

#[derive(Debug)]
enum Bits {
    Own(OwnBits),
    Shared(SharedBits),
}

/// Off, or a bitmap. Writers mark after the store; a write that a report misses is in the next one.
#[derive(Debug, Default)]
pub struct Log(RwLock<Option<Bits>>);

impl Log {
    /// From the return on, every run that is stored to is marked: a writer that comes from its store
    /// now looks here after it.
    pub fn start(&self, start: LogStart) -> u64 {
        let page_size = start.page_size;
        let bits = match start.bitmap {
            Some(shared) => Bits::Shared(shared),
            None => Bits::Own(OwnBits::new(&start, page_size)),
        };
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(bits);
        page_size
    }

    /// Off; what was not reported is forgotten.
    pub fn stop(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// These bytes of GPA were stored to.
    pub fn mark(&self, run: &Range<u64>) {
        match &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
            Some(Bits::Own(bits)) => bits.mark(run),
            Some(Bits::Shared(bits)) => bits.mark(run),
            None => {}
        }
    }

    /// Moves what was marked into a report.
    ///
    /// # Errors
    /// There is no bitmap of its own.
    pub fn report(&self, gpa: u64, report: &mut LogReport<'_>) -> Result<(), Failure> {
        match &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
            Some(Bits::Own(bits)) => {
                bits.take(gpa, report);
                Ok(())
            }
            _ => Err(Failure::not_allowed("No log of its own runs")),
        }
    }
}
