//! Pins that have to end: before memory is unmapped, in STOP, at a reset, at the end.

use super::Instance;
use super::line::Line;
use crate::context::Context;
use crate::instance_error::InstanceError;
use drogher_iommu_types::Gpa;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// A range that is about to be unmapped: until this is dropped, after the unmapping, the device pins
/// nothing there.
#[must_use = "hold it until the range is unmapped: the device may pin there again afterwards"]
pub struct Unmapping {
    context: Arc<Context>,
    key: Option<u64>,
}

impl Drop for Unmapping {
    fn drop(&mut self) {
        if let (Some(key), Some(pins)) = (self.key, self.context.pins.get()) {
            pins.unmapped(key);
        }
    }
}

impl std::fmt::Debug for Unmapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unmapping").finish_non_exhaustive()
    }
}

impl Instance {
    /// Has the device give back whatever it has pinned in `range`, which is then to be unmapped. The
    /// plugin is only asked if there is such a pin; all of it within the deadline of a state change.
    ///
    /// # Errors
    /// `Broken`: it is in ERROR, and was so before, or refused, or kept a pin, or was late. The range can
    /// be unmapped all the same: what is still pinned stays in this process, and counts as dirty, but
    /// is no longer the memory that the guest sees there.
    pub fn unmapping(&self, range: Range<Gpa>) -> Result<Unmapping, InstanceError> {
        let Some(pins) = self.context.pins.get() else {
            return Ok(Unmapping { context: self.context.clone(), key: None });
        };
        let key = Some(pins.unmapping(range.clone()));
        let unmapping = Unmapping { context: self.context.clone(), key };
        let parts = pins.pinned_in(&range);
        if parts.is_empty() {
            return Ok(unmapping);
        }
        let mut control = self.control()?;
        let (call, begun) = ("dma-pin.unmap", Instant::now());
        for (iova, len) in parts {
            let left = self.deadlines.state.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Err(self.lied(call, self.pins_left(&range)));
            }
            let deadline = self.deadlines.call.min(left);
            let asked = self.call(&mut control, deadline, move |device| device.unmap(iova, len));
            match asked {
                Ok(()) => {}
                Err(InstanceError::Refused { status, text, .. }) => {
                    let words = format!("refused with status {status}: {text}; ");
                    return Err(self.lied(call, words + &self.pins_left(&range)));
                }
                Err(other) => return Err(other),
            }
        }
        if pins.pinned_in(&range).is_empty() {
            return Ok(unmapping);
        }
        Err(self.lied(call, self.pins_left(&range)))
    }

    fn pins_left(&self, range: &Range<Gpa>) -> String {
        let left = self.context.pins.get().map_or(0, |pins| pins.pinned_in(range).len());
        format!("{left} pins are left in {}..{}", range.start, range.end)
    }
}

impl Line {
    /// After a change to a state that does not run: a pin for writing that is left could write on.
    pub(super) fn no_write_pins(
        &self,
        call: &'static str,
        state: crate::State,
    ) -> Result<(), InstanceError> {
        match self.context.pins.get().map(|pins| pins.counts()) {
            Some((_, write)) if write > 0 => {
                Err(self.lied(call, format!("{write} pins for writing are left in {state}")))
            }
            _ => Ok(()),
        }
    }

    /// After a reset: no pin at all.
    pub(super) fn no_pins(&self, call: &'static str) -> Result<(), InstanceError> {
        match self.context.pins.get().map(|pins| pins.counts()) {
            Some((left, _)) if left > 0 => {
                Err(self.lied(call, format!("{left} pins are left after it")))
            }
            _ => Ok(()),
        }
    }

    /// After `destroy`: nothing uses them any more.
    pub(super) fn give_back_pins(&self) {
        let left = self.context.pins.get().map_or(0, |pins| pins.give_back());
        if left > 0 {
            tracing::warn!(device = self.name, left, "Pins were left at the end");
        }
    }
}
