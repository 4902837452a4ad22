//! The six operations: payload moved in pieces, through one bounce buffer.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::bus::Bus;
use crate::descriptor::{LIST_ENTRY, Op, Status, Work};
use crate::scratch::Scratch;

/// Largest single DMA access, in bytes. A multiple of 8, so that a pattern and a checksum go on
/// across pieces.
pub const PIECE: usize = 64 << 10;

/// The bounce buffer of the worker: every payload byte passes through it.
#[derive(Debug)]
pub struct Bounce(Box<[u8]>);

impl Default for Bounce {
    fn default() -> Self {
        Self(vec![0; PIECE].into_boxed_slice())
    }
}

impl Bounce {
    /// The first `len` bytes, at most [`PIECE`].
    fn front(&mut self, len: usize) -> &mut [u8] {
        let len = len.min(self.0.len());
        self.0.split_at_mut(len).0
    }
}

/// How a descriptor ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// For its status field.
    pub status: Status,
    /// For its result field: the checksum, else `moved`.
    pub result: u64,
    /// Payload bytes moved.
    pub moved: u64,
}

/// An operation that ended early.
struct Failed {
    status: Status,
    moved: u64,
}

/// Locks the scratch memory. It is never held across a DMA access.
pub fn lock(scratch: &Mutex<Scratch>) -> MutexGuard<'_, Scratch> {
    scratch.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does what a valid descriptor asks for. Bounded: at most 1 MiB and 256 list entries.
pub fn run(bus: &impl Bus, scratch: &Mutex<Scratch>, bounce: &mut Bounce, work: Work) -> Done {
    let len = work.len;
    let outcome = match work.op {
        Op::Copy { src, dst } => pieces(len).try_for_each(|(at, size)| {
            let piece = bounce.front(size);
            read(bus, src, at, piece)?;
            write(bus, dst, at, piece)
        }),
        Op::Fill { pattern, dst } => {
            // Whole patterns; pieces are multiples of them, so each piece begins with one.
            let filled = bounce.front(usize::try_from(len.next_multiple_of(8)).unwrap_or(PIECE));
            for bytes in filled.as_chunks_mut::<8>().0 {
                *bytes = pattern;
            }
            pieces(len).try_for_each(|(at, size)| write(bus, dst, at, bounce.front(size)))
        }
        Op::Checksum { src } => return checksum(bus, bounce, src, len),
        Op::Scatter { src, list, count } => scatter(bus, bounce, src, list, count, len),
        Op::Store { src, scratch: to } => pieces(len).try_for_each(|(at, size)| {
            let piece = bounce.front(size);
            read(bus, src, at, piece)?;
            let stored = to.checked_add(at).is_some_and(|to| lock(scratch).store(to, piece));
            stored.then_some(()).ok_or(Failed { status: Status::BadLength, moved: at })
        }),
        Op::Load { scratch: from, dst } => pieces(len).try_for_each(|(at, size)| {
            let piece = bounce.front(size);
            let loaded = from.checked_add(at).is_some_and(|from| lock(scratch).load(from, piece));
            loaded.then_some(()).ok_or(Failed { status: Status::BadLength, moved: at })?;
            write(bus, dst, at, piece)
        }),
    };
    match outcome {
        Ok(()) => Done { status: Status::Ok, result: len, moved: len },
        Err(Failed { status, moved }) => Done { status, result: moved, moved },
    }
}

/// `s = rotate_left(s, 1) + w` over the little-endian quadwords `w`, from 0.
fn checksum(bus: &impl Bus, bounce: &mut Bounce, src: u64, len: u64) -> Done {
    let mut sum = 0_u64;
    let outcome = pieces(len).try_for_each(|(at, size)| {
        let piece = bounce.front(size);
        read(bus, src, at, piece)?;
        for word in piece.as_chunks::<8>().0 {
            sum = sum.rotate_left(1).wrapping_add(u64::from_le_bytes(*word));
        }
        Ok(())
    });
    match outcome {
        Ok(()) => Done { status: Status::Ok, result: sum, moved: len },
        Err(Failed { status, moved }) => Done { status, result: moved, moved },
    }
}

/// Spreads `len` bytes at `src` over the list at `list`. The list is read once and checked whole
/// before the first byte is written, so a driver that changes it meanwhile changes nothing.
fn scatter(
    bus: &impl Bus,
    bounce: &mut Bounce,
    src: u64,
    list: u64,
    count: u64,
    len: u64,
) -> Result<(), Failed> {
    let bad = Failed { status: Status::BadList, moved: 0 };
    let Some(bytes) = count.checked_mul(LIST_ENTRY).and_then(|n| usize::try_from(n).ok()) else {
        return Err(bad);
    };
    let raw = bounce.front(bytes);
    bus.read(list, raw).map_err(|_| Failed { status: Status::DestinationFault, moved: 0 })?;
    let mut entries = Vec::new();
    let mut sum = 0_u64;
    for [iova, tail] in raw.as_chunks::<8>().0.as_chunks::<2>().0 {
        let (iova, tail) = (u64::from_le_bytes(*iova), u64::from_le_bytes(*tail));
        let (size, reserved) = (tail & 0xFFFF_FFFF, tail >> 32);
        if reserved != 0 {
            return Err(bad);
        }
        sum = sum.saturating_add(size);
        entries.push((iova, size));
    }
    if sum != len {
        return Err(bad);
    }
    let mut moved = 0_u64;
    for (iova, size) in entries {
        for (at, size) in pieces(size) {
            let piece = bounce.front(size);
            read(bus, src, moved, piece)?;
            write(bus, iova, at, piece).map_err(|failed| {
                let written = failed.moved.saturating_sub(at);
                Failed { moved: moved.saturating_add(written), ..failed }
            })?;
            moved = moved.saturating_add(size as u64);
        }
    }
    Ok(())
}

/// `(offset, size)` of each piece of a payload of `len` bytes.
fn pieces(len: u64) -> impl Iterator<Item = (u64, usize)> {
    let piece = PIECE as u64;
    (0..len.div_ceil(piece)).map(move |index| {
        let at = index.saturating_mul(piece);
        (at, usize::try_from(len.saturating_sub(at)).map_or(PIECE, |rest| rest.min(PIECE)))
    })
}

/// Reads the piece at `base + at`. Bytes of a piece that faulted half-way are not moved.
fn read(bus: &impl Bus, base: u64, at: u64, piece: &mut [u8]) -> Result<(), Failed> {
    let failed = Failed { status: Status::SourceFault, moved: at };
    let Some(iova) = base.checked_add(at) else {
        return Err(failed);
    };
    bus.read(iova, piece).map_err(|_| failed)
}

/// Writes the piece at `base + at`.
fn write(bus: &impl Bus, base: u64, at: u64, piece: &[u8]) -> Result<(), Failed> {
    let status = Status::DestinationFault;
    let Some(iova) = base.checked_add(at) else {
        return Err(Failed { status, moved: at });
    };
    bus.write(iova, piece).map_err(|fault| {
        let done = fault.done.min(piece.len() as u64);
        Failed { status, moved: at.saturating_add(done) }
    })
}

#[cfg(test)]
#[path = "ops_test.rs"]
mod tests;
