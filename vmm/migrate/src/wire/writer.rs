//! Puts records on a link. Small ones are queued and go with the next large one in one call.

use std::io::IoSlice;
use std::time::Duration;

use super::header::{FLAG_OPTIONAL, HEADER_BYTES, RecordHeader, Tag};
use super::preamble::Preamble;
use crate::link::{Link, LinkError};

/// Bytes that may be queued.
const QUEUE_BYTES: usize = 64 << 10;

/// Asked each time that nothing moved for a while, and after each piece that has gone (with a time
/// of zero, so that a peer that reads a byte now and then cannot hold the sender for ever); an error
/// ends the sending.
pub(crate) type Patience<'a, E> = &'a mut dyn FnMut(LinkError) -> Result<(), E>;

/// Puts records on a link.
#[derive(Debug)]
pub(crate) struct Writer {
    queue: Vec<u8>,
    sequence: u32,
    bytes: u64,
    torn: bool,
    greeted: bool,
    poll: Duration,
}

impl Writer {
    /// `poll`: how long a call waits for room before patience is asked.
    pub(crate) fn new(poll: Duration) -> Self {
        Self {
            queue: Vec::with_capacity(QUEUE_BYTES),
            sequence: 0,
            bytes: 0,
            torn: false,
            greeted: false,
            poll,
        }
    }

    /// Bytes sent so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// True if sending has stopped in the middle of a record: nothing may follow.
    pub(crate) fn is_torn(&self) -> bool {
        self.torn
    }

    /// True if the preamble was queued.
    pub(crate) fn has_greeted(&self) -> bool {
        self.greeted
    }

    /// Queues the preamble.
    pub(crate) fn preamble(&mut self, preamble: &Preamble) {
        self.greeted = true;
        self.queue.extend_from_slice(&preamble.encode());
    }

    /// True if a record with so many bytes of payload may be queued without growing the queue.
    pub(crate) fn has_room(&self, payload: usize) -> bool {
        self.queue.len() + HEADER_BYTES + payload <= QUEUE_BYTES
    }

    /// Queues a record whose payload is all these parts. A receiver may skip it if `optional`.
    pub(crate) fn queue(&mut self, tag: Tag, optional: bool, parts: &[&[u8]]) {
        let header = self.header(tag, optional, parts, &[]);
        self.queue.extend_from_slice(&header);
        for part in parts {
            self.queue.extend_from_slice(part);
        }
    }

    /// Sends what is queued.
    pub(crate) fn flush<E>(
        &mut self,
        link: &mut dyn Link,
        patience: Patience<'_, E>,
    ) -> Result<(), E> {
        self.send(link, None, &[], &[], patience)
    }

    /// Sends what is queued, and then a record with these payload parts: `checked` under the
    /// record's checksum, `contents` not.
    pub(crate) fn record<E>(
        &mut self,
        link: &mut dyn Link,
        tag: Tag,
        checked: &[&[u8]],
        contents: &[u8],
        patience: Patience<'_, E>,
    ) -> Result<(), E> {
        let header = self.header(tag, false, checked, contents);
        self.send(link, Some(&header), checked, contents, patience)
    }

    fn header(
        &mut self,
        tag: Tag,
        optional: bool,
        checked: &[&[u8]],
        contents: &[u8],
    ) -> [u8; HEADER_BYTES] {
        let mut crc = crc32fast::Hasher::new();
        let mut length = 0u32;
        for part in checked {
            crc.update(part);
            // Payloads are bounded far below 4 GiB by what the engine puts into them.
            length = length.saturating_add(u32::try_from(part.len()).unwrap_or(u32::MAX));
        }
        let header = RecordHeader {
            tag: tag as u32,
            flags: if optional { FLAG_OPTIONAL } else { 0 },
            length: u64::from(length) + contents.len() as u64,
            checked: length,
            crc: crc.finalize(),
            sequence: self.sequence,
        };
        self.sequence = self.sequence.wrapping_add(1);
        header.encode()
    }

    fn send<E>(
        &mut self,
        link: &mut dyn Link,
        header: Option<&[u8; HEADER_BYTES]>,
        checked: &[&[u8]],
        contents: &[u8],
        patience: Patience<'_, E>,
    ) -> Result<(), E> {
        let mut slices = [IoSlice::new(&[]); 6];
        let header = header.map_or(&[][..], |h| &h[..]);
        let parts = [&self.queue[..], header].into_iter();
        let parts = parts.chain(checked.iter().copied()).chain([contents]);
        for (slice, part) in slices.iter_mut().zip(parts) {
            *slice = IoSlice::new(part);
        }
        let mut left: usize = slices.iter().map(|s| s.len()).sum();
        let mut slices = &mut slices[..];
        while left > 0 {
            match link.send(slices, self.poll) {
                Ok(sent) => {
                    // A link that boasts must not make the slices panic.
                    let sent = sent.min(left);
                    left -= sent;
                    self.bytes += sent as u64;
                    IoSlice::advance_slices(&mut slices, sent);
                    if left > 0
                        && let Err(error) = patience(LinkError::TimedOut(Duration::ZERO))
                    {
                        self.torn = true;
                        return Err(error);
                    }
                }
                Err(error) => {
                    if let Err(error) = patience(error) {
                        // Also if not a byte has gone: the record has used up its number.
                        self.torn = true;
                        return Err(error);
                    }
                }
            }
        }
        self.queue.clear();
        Ok(())
    }
}
