//! One look at the ring: take the next descriptor, do it, hand it back.

use std::sync::Mutex;

use crate::bus::{Bus, Fault};
use crate::descriptor::{Descriptor, Head, RESULT};
use crate::ops::{self, Bounce, Done};
use crate::regs::RingError;
use crate::scratch::Scratch;

/// What came of a look at the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The descriptor is the driver's; the ring has run dry.
    Idle,
    /// A descriptor was handed back.
    Completed {
        /// Payload bytes that it moved.
        moved: u64,
        /// It asks for an interrupt.
        irq: bool,
    },
    /// The ring itself faulted.
    Halted(RingError),
}

/// Takes the descriptor at `iova` if it is the device's, and finishes it. Bounded work.
pub fn step(bus: &impl Bus, scratch: &Mutex<Scratch>, bounce: &mut Bounce, iova: u64) -> Step {
    take(bus, scratch, bounce, iova).unwrap_or_else(Step::Halted)
}

fn take(
    bus: &impl Bus,
    scratch: &Mutex<Scratch>,
    bounce: &mut Bounce,
    iova: u64,
) -> Result<Step, RingError> {
    // OWN first, by one atomic access, and only then the rest: the driver writes them the other
    // way round, so what OWN covers is complete. One read of 64 bytes would not have that order.
    let mut head = [0; 8];
    bus.read(iova, &mut head).map_err(|_| RingError::Read)?;
    let head = Head(u64::from_le_bytes(head));
    if !head.is_owned() {
        return Ok(Step::Idle);
    }
    let mut rest = [0; 56];
    bus.read(at(iova, 8), &mut rest).map_err(|_| RingError::Read)?;

    let scratch_bytes = ops::lock(scratch).size();
    let done = match Descriptor::new(head, quads(&rest)).check(scratch_bytes) {
        Ok(work) => ops::run(bus, scratch, bounce, work),
        Err(status) => Done { status, result: 0, moved: 0 },
    };

    hand_back(bus, iova, head, done).map_err(|Fault { .. }| RingError::Write)?;
    Ok(Step::Completed { moved: done.moved, irq: head.wants_irq() })
}

/// Payload, result, then the first quadword: a driver that sees OWN cleared sees the others too.
fn hand_back(bus: &impl Bus, iova: u64, head: Head, done: Done) -> Result<(), Fault> {
    bus.write(at(iova, RESULT), &done.result.to_le_bytes())?;
    bus.write(iova, &head.handed_back(done.status).0.to_le_bytes())
}

/// Cannot wrap: ENABLE is refused for a ring that passes the end of the address space.
fn at(iova: u64, offset: u64) -> u64 {
    iova.wrapping_add(offset)
}

/// Little-endian quadwords.
fn quads(bytes: &[u8; 56]) -> [u64; 7] {
    let mut quads = [0; 7];
    for (quad, bytes) in quads.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *quad = u64::from_le_bytes(*bytes);
    }
    quads
}

#[cfg(test)]
#[path = "ring_test.rs"]
mod tests;
