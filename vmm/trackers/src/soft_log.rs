//! A device's own log in software: one bit a tracking page, set after the store.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use drogher_iommu_types::{BitmapError, DirtyBitmap, Gpa, PAGE_SIZE};
use drogher_tracking::{DeviceLog, LogFailure, TrackingPageSize};

/// Off.
const OFF: u64 = 0;

pub(crate) struct SoftLog {
    /// Bytes of a tracking page while it logs, else [`OFF`].
    size: AtomicU64,
    /// Of each tracking page the bit of its first 4 KiB.
    bits: DirtyBitmap,
}

impl SoftLog {
    pub(crate) fn new(span: Range<Gpa>) -> Result<Self, BitmapError> {
        Ok(Self { size: AtomicU64::new(OFF), bits: DirtyBitmap::new(span)? })
    }

    /// The device has written `len` bytes, at least one, at `at`.
    pub(crate) fn mark(&self, at: Gpa, len: u64) -> Result<(), BitmapError> {
        let size = self.size.load(Ordering::Acquire);
        if size == OFF {
            return Ok(());
        }
        let (mut page, end) = (at.0 & !(size - 1), at.0 + len);
        while page < end {
            self.bits.set(Gpa(page).max(self.bits.range().start))?;
            page += size;
        }
        Ok(())
    }
}

impl DeviceLog for SoftLog {
    fn start(
        &self,
        _: &[Range<Gpa>],
        page_size: TrackingPageSize,
    ) -> Result<TrackingPageSize, LogFailure> {
        self.bits.take_words(|_, _| {});
        self.size.store(page_size.bytes(), Ordering::Release);
        Ok(page_size)
    }

    fn report(
        &self,
        range: &Range<Gpa>,
        _: TrackingPageSize,
        into: &DirtyBitmap,
    ) -> Result<(), LogFailure> {
        if *range == self.bits.range() {
            return Ok(self.bits.take_into(into)?);
        }
        for number in range.start.page()..range.end.page() {
            let page = Gpa(number * PAGE_SIZE);
            if self.bits.test(page) {
                self.bits.clear_range(page..Gpa(page.0 + PAGE_SIZE))?;
                into.set(page)?;
            }
        }
        Ok(())
    }

    fn stop(&self) -> Result<(), LogFailure> {
        self.size.store(OFF, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Range<Gpa> = Gpa(0)..Gpa(4 << 20);

    fn taken(log: &SoftLog, range: Range<Gpa>) -> Vec<u64> {
        let into = DirtyBitmap::new(SPAN).unwrap();
        log.report(&range, TrackingPageSize::K64, &into).unwrap();
        into.runs().flat_map(|run| run.start.page()..run.end.page()).collect()
    }

    #[test]
    fn one_bit_for_each_tracking_page_written_and_only_once() {
        let log = SoftLog::new(SPAN).unwrap();
        log.mark(Gpa(5), 1).unwrap();
        log.start(&[SPAN], TrackingPageSize::K64).unwrap();
        assert_eq!(taken(&log, SPAN), [0u64; 0], "what is written while it is off is not logged");
        log.mark(Gpa(0x1_fff0), 0x20).unwrap();
        log.mark(Gpa(0x30_5000), 1).unwrap();
        assert_eq!(taken(&log, Gpa(0)..Gpa(1 << 20)), [16, 32]);
        assert_eq!(taken(&log, SPAN), [0x300]);
        assert_eq!(taken(&log, SPAN), [0u64; 0]);
        assert!(log.mark(Gpa(4 << 20), 1).is_err(), "past the end");
        log.stop().unwrap();
        log.mark(Gpa(4 << 20), 1).unwrap();
    }
}
