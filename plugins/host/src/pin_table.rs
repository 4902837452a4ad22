//! What one device has pinned: its handles, and the board on which they count as dirty.

use crate::context::lock;
use drogher_iommu::{Access, DmaError, LOCATE_MAX, Located, Requester};
use drogher_iommu_types::{Gpa, Iova, mutant};
use drogher_tracking::{PinAccess, PinBoard, PinError};
use std::collections::BTreeMap;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

const _: () = assert!(LOCATE_MAX == drogher_plugin_abi::DROGHER_PIN_LEN_MAX);
/// Most pins of a device at a time.
const MAX_PINS: usize = drogher_plugin_abi::DROGHER_PINS_MAX as usize;

/// Why a pin was refused.
#[derive(Debug)]
pub(crate) enum PinRefusal {
    /// The translation.
    Dma(DmaError),
    /// Only so many bytes lie together.
    Short(u64),
    /// The device has too many.
    TooMany,
    /// The range is being unmapped.
    Unmapping,
    /// The memory has no address in this process, or lies where none is to be pinned.
    NoMemory,
}

/// What a pin gives the plugin.
pub(crate) struct Given {
    pub(crate) ptr: NonNull<u8>,
    pub(crate) handle: u64,
    pub(crate) gpa: Gpa,
}

struct Pin {
    iova: u64,
    gpa: Range<Gpa>,
    access: PinAccess,
}

#[derive(Default)]
struct State {
    last: u64,
    pins: BTreeMap<u64, Pin>,
    /// Nothing may be pinned here: it is being unmapped.
    unmapping: Vec<(u64, Range<Gpa>)>,
}

/// The pins of one instance. Any thread may call anything; nothing waits.
///
/// Its lock is taken inside accesses, and the board's below it.
pub(crate) struct PinTable {
    pub(crate) board: Arc<PinBoard>,
    /// The device has promised to write to nothing else.
    pub(crate) only: bool,
    state: Mutex<State>,
}

impl PinTable {
    /// For memory in `span`.
    pub(crate) fn new(span: Range<Gpa>, only: bool) -> PinTable {
        PinTable { board: Arc::new(PinBoard::new(span)), only, state: Mutex::default() }
    }

    /// Pins `len` bytes. It counts as dirty before the pointer is known to anyone.
    pub(crate) fn pin(
        &self,
        requester: &Requester,
        iova: u64,
        len: u64,
        access: Access,
    ) -> Result<Given, PinRefusal> {
        let memory = requester.domain().memory().clone();
        let keep = |found: Located| {
            let together = found.gpa.end.0 - found.gpa.start.0;
            if together < len {
                return Err(PinRefusal::Short(together));
            }
            let mut state = lock(&self.state);
            if state.unmapping.iter().any(|(_, range)| overlap(range, &found.gpa)) {
                return Err(PinRefusal::Unmapping);
            }
            if state.pins.len() >= MAX_PINS {
                return Err(PinRefusal::TooMany);
            }
            let ptr = memory.host_ptr(found.oa, len).ok_or(PinRefusal::NoMemory)?;
            let kind = if access.writes() { PinAccess::Write } else { PinAccess::Read };
            if !mutant!("pin-not-counted") {
                self.board.pin(found.gpa.clone(), kind).map_err(|error| match error {
                    PinError::TooMany { .. } | PinError::TooOften { .. } => PinRefusal::TooMany,
                    _ => PinRefusal::NoMemory,
                })?;
            }
            // Never used twice: 2^64 of them take longer than any process lives.
            state.last += 1;
            let (handle, gpa) = (state.last, found.gpa.start);
            state.pins.insert(handle, Pin { iova, gpa: found.gpa, access: kind });
            Ok(Given { ptr, handle, gpa })
        };
        requester.locate(Iova(iova), len, access, keep).map_err(PinRefusal::Dma)?
    }

    /// Gives a pin back; false if there is none of this handle.
    pub(crate) fn unpin(&self, handle: u64) -> bool {
        let mut state = lock(&self.state);
        let Some(pin) = state.pins.remove(&handle) else { return false };
        self.release(pin);
        true
    }

    fn release(&self, pin: Pin) {
        if let Err(error) = self.board.unpin(pin.gpa, pin.access) {
            // Only if it was never pinned there.
            tracing::error!(%error, "A pin was not on its board");
        }
    }

    /// Counts what the device says it has written to as dirty, once.
    pub(crate) fn mark_dirty(
        &self,
        requester: &Requester,
        iova: u64,
        len: u64,
    ) -> Result<(), PinRefusal> {
        let mut done = 0;
        while done < len {
            let mark = |found: Located| {
                let bytes = found.gpa.end.0 - found.gpa.start.0;
                self.board.mark_dirty(found.gpa).map(|()| bytes)
            };
            // Cannot wrap: the first round has checked the last byte.
            let marked = requester.locate(Iova(iova + done), len - done, Access::Write, mark);
            done += marked.map_err(PinRefusal::Dma)?.map_err(|_| PinRefusal::NoMemory)?;
        }
        Ok(())
    }

    /// How many are pinned, and of these for writing.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let state = lock(&self.state);
        let write = state.pins.values().filter(|pin| pin.access == PinAccess::Write).count();
        (state.pins.len(), write)
    }

    /// Gives back what a device that is gone has left behind; returns how many those were.
    pub(crate) fn give_back(&self) -> usize {
        let pins = std::mem::take(&mut lock(&self.state).pins);
        let count = pins.len();
        pins.into_values().for_each(|pin| self.release(pin));
        count
    }

    /// From now on nothing of `range` is pinned, until [`Self::unmapped`] is called with the answer.
    pub(crate) fn unmapping(&self, range: Range<Gpa>) -> u64 {
        let mut state = lock(&self.state);
        state.last += 1;
        let key = state.last;
        state.unmapping.push((key, range));
        key
    }

    /// Ends that.
    pub(crate) fn unmapped(&self, key: u64) {
        lock(&self.state).unmapping.retain(|(other, _)| *other != key);
    }

    /// The parts of `range` that are pinned, each as first IOVA and length.
    pub(crate) fn pinned_in(&self, range: &Range<Gpa>) -> Vec<(u64, u64)> {
        let state = lock(&self.state);
        let pins = state.pins.values().filter(|pin| overlap(range, &pin.gpa));
        let mut parts: Vec<_> = pins
            .map(|pin| {
                let (start, end) = (range.start.max(pin.gpa.start), range.end.min(pin.gpa.end));
                (pin.iova + (start.0 - pin.gpa.start.0), end.0 - start.0)
            })
            .collect();
        parts.sort_unstable();
        parts.dedup();
        parts
    }
}

fn overlap(a: &Range<Gpa>, b: &Range<Gpa>) -> bool {
    a.start < b.end && b.start < a.end
}

#[cfg(test)]
#[path = "pin_table_test.rs"]
mod tests;
