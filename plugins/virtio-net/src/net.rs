//! Frames out of the transmit queue, and into the receive queue.

use drogher_plugin_sdk::{FRAME_MAX, FRAME_MIN};

use crate::bus::Bus;
use crate::ring::{Broken, Chain, Queue};

/// Bytes in front of each frame: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset,
/// num_buffers.
pub const HEADER_BYTES: usize = 12;

/// What the driver has accepted of what matters here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// EVENT_IDX.
    pub event_idx: bool,
    /// MRG_RXBUF: a frame may lie in several buffers.
    pub merge: bool,
}

/// What became of one look at a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing to be done, until the driver rings.
    Idle,
    /// Something was done; an interrupt is wanted or not.
    Done {
        /// It is.
        irq: bool,
    },
}

/// Sends the first frame that waits, if there is one. What is no frame is given back all the same.
///
/// # Errors
/// The ring is broken.
pub fn transmit(bus: &impl Bus, queue: &mut Queue, options: Options) -> Result<Step, Broken> {
    if queue.waiting(bus)? == 0 && !queue.ask(bus, 0, options.event_idx)? {
        return Ok(Step::Idle);
    }
    let chain = queue.look(bus, 0, false)?;
    if let Some(frame) = gather(bus, &chain)? {
        bus.send(&frame);
    }
    let irq = queue.give_back(bus, &[(chain.head, 0)], options.event_idx)?;
    Ok(Step::Done { irq })
}

/// The frame in a chain, without its header; `None`: there is none of good length, or its header asks
/// for what was not offered.
fn gather(bus: &impl Bus, chain: &Chain) -> Result<Option<Vec<u8>>, Broken> {
    let good = (HEADER_BYTES + FRAME_MIN..=HEADER_BYTES + FRAME_MAX)
        .contains(&usize::try_from(chain.len()).unwrap_or(usize::MAX));
    if !good {
        return Ok(None);
    }
    let mut bytes = Vec::with_capacity(usize::try_from(chain.len()).unwrap_or_default());
    for segment in &chain.segments {
        let at = bytes.len();
        bytes.resize(at + segment.len as usize, 0);
        bus.read(segment.iova, bytes.get_mut(at..).unwrap_or_default())?;
    }
    let plain = bytes.iter().take(2).all(|byte| *byte == 0);
    Ok(plain.then(|| bytes.split_off(HEADER_BYTES)))
}

/// Puts a frame into the first buffers that wait. `None`: there are too few, until the driver rings; a
/// frame that can never fit is dropped.
///
/// # Errors
/// The ring is broken.
pub fn receive(
    bus: &impl Bus,
    queue: &mut Queue,
    options: Options,
    frame: &[u8],
) -> Result<Option<Step>, Broken> {
    let need = (HEADER_BYTES + frame.len()) as u64;
    let (mut chains, mut room, mut descriptors) = (Vec::<Chain>::new(), 0, 0);
    while room < need {
        let seen = chains.len() as u16;
        if queue.waiting(bus)? <= seen {
            // A ring that is full of buffers, of one descriptor or of several, has not more to give.
            if descriptors >= usize::from(queue.size) {
                return Ok(Some(Step::Idle));
            }
            if !queue.ask(bus, seen, options.event_idx)? {
                return Ok(None);
            }
        }
        let chain = queue.look(bus, seen, true)?;
        room += chain.len();
        descriptors += chain.segments.len();
        chains.push(chain);
        if !options.merge {
            break;
        }
    }
    let Some(first) = chains.first() else { return Ok(None) };
    if room < need {
        // One buffer is all it may have.
        let irq = queue.give_back(bus, &[(first.head, 0)], options.event_idx)?;
        return Ok(Some(Step::Done { irq }));
    }
    let mut bytes = vec![0; HEADER_BYTES];
    if let Some(count) = bytes.get_mut(10..12) {
        count.copy_from_slice(&(chains.len() as u16).to_le_bytes());
    }
    bytes.extend_from_slice(frame);
    let (mut rest, mut used) = (bytes.as_slice(), Vec::with_capacity(chains.len()));
    for chain in &chains {
        let before = rest.len();
        for segment in &chain.segments {
            let (now, later) = rest.split_at(rest.len().min(segment.len as usize));
            if !now.is_empty() {
                bus.write(segment.iova, now)?;
            }
            rest = later;
        }
        used.push((chain.head, (before - rest.len()) as u32));
    }
    let irq = queue.give_back(bus, &used, options.event_idx)?;
    Ok(Some(Step::Done { irq }))
}

#[cfg(test)]
#[path = "net_test.rs"]
mod tests;
