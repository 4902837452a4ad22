//! Takes records off a link, keeping what has come of one between two looks.

use std::time::Duration;

use super::header::{FLAG_OPTIONAL, HEADER_BYTES, RecordHeader, Tag};
use super::limits::Limits;
use super::preamble::{PREAMBLE_BYTES, Preamble};
use super::{At, WireError};
use crate::link::{Link, LinkError};

/// Why there is no record.
#[derive(Debug)]
pub(crate) enum ReadError {
    /// The link.
    Link(LinkError),
    /// What came over it.
    Wire(WireError),
}

impl From<WireError> for ReadError {
    fn from(error: WireError) -> Self {
        Self::Wire(error)
    }
}

/// How long one look may take: silence ends it, and so does `over`, which is asked after each piece.
/// A peer that sends a byte now and then must not keep a look from ending.
pub(crate) struct Look<'a> {
    /// How long nothing may move.
    pub(crate) timeout: Duration,
    /// True once the look has taken long enough.
    pub(crate) over: &'a mut dyn FnMut() -> bool,
}

/// A record whose checksum is right, and which has come whole but for page contents. Its payload is
/// [`Reader::payload`] until the next look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) tag: Tag,
    pub(crate) at: At,
    length: usize,
    /// Bytes of page contents that follow: [`Reader::contents`] takes them, to where they belong.
    pub(crate) contents: u64,
}

/// Takes records off a link.
#[derive(Debug)]
pub(crate) struct Reader {
    limits: Limits,
    head: [u8; PREAMBLE_BYTES],
    filled: usize,
    header: Option<RecordHeader>,
    /// Where the last record began.
    last: At,
    /// Bytes of its contents that nobody has taken yet.
    contents: u64,
    payload: Vec<u8>,
    records: u64,
    offset: u64,
}

impl Reader {
    /// Before the preamble.
    pub(crate) fn new() -> Self {
        let mut reader = Self {
            limits: Limits::default(),
            head: [0; PREAMBLE_BYTES],
            filled: 0,
            header: None,
            last: At { record: 0, offset: 0, tag: None },
            contents: 0,
            payload: Vec::new(),
            records: 0,
            offset: 0,
        };
        reader.set_limits(Limits::default());
        reader
    }

    /// What may come from now on. The one place that allocates.
    pub(crate) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
        let wanted = usize::try_from(limits.buffer()).unwrap_or(0);
        if self.payload.len() < wanted {
            self.payload.resize(wanted, 0);
        }
    }

    /// Bytes received so far: of records, and of page contents that were taken.
    pub(crate) fn bytes(&self) -> u64 {
        self.offset
    }

    /// The payload of a record just received.
    pub(crate) fn payload(&self, record: &Record) -> &[u8] {
        self.payload.get(..record.length).unwrap_or_default()
    }

    fn at(&self) -> At {
        At { record: self.records, offset: self.offset, tag: self.header.map(|h| h.tag) }
    }

    /// The preamble, if it has come whole; what has come of it is kept.
    pub(crate) fn preamble(
        &mut self,
        link: &mut dyn Link,
        look: &mut Look<'_>,
    ) -> Result<Option<Preamble>, ReadError> {
        if !self.fill_head(link, PREAMBLE_BYTES, "preamble", look)? {
            return Ok(None);
        }
        self.filled = 0;
        self.offset = PREAMBLE_BYTES as u64;
        Ok(Some(Preamble::decode(&self.head)?))
    }

    /// The next record, if it has come whole; else `None`, and what has come is kept. Unknown
    /// optional records are skipped.
    pub(crate) fn poll(
        &mut self,
        link: &mut dyn Link,
        look: &mut Look<'_>,
    ) -> Result<Option<Record>, ReadError> {
        if self.contents > 0 {
            let why = "the contents of the pages before it were not taken";
            return Err(WireError::Unexpected { at: self.at(), why }.into());
        }
        loop {
            let header = match self.header {
                Some(header) => header,
                None => {
                    if !self.fill_head(link, HEADER_BYTES, "header", look)? {
                        return Ok(None);
                    }
                    self.filled = 0;
                    let header = self.check_header()?;
                    self.header = Some(header);
                    header
                }
            };
            // Bounded by check_header, so it fits. What is not checked are page contents.
            let length = usize::try_from(header.checked).unwrap_or(usize::MAX);
            if !self.fill_payload(link, length, look)? {
                return Ok(None);
            }
            let at = self.at();
            let covered = self.payload.get(..length).unwrap_or_default();
            if crc32fast::hash(covered) != header.crc {
                return Err(WireError::Checksum { at }.into());
            }
            self.header = None;
            self.filled = 0;
            self.records += 1;
            self.last = at;
            self.contents = header.length - u64::from(header.checked);
            self.offset += HEADER_BYTES as u64 + u64::from(header.checked);
            // An unknown tag that is not optional was refused with its header.
            if let Some(tag) = Tag::from_number(header.tag) {
                return Ok(Some(Record { tag, at, length, contents: self.contents }));
            }
            if (look.over)() {
                return Ok(None);
            }
        }
    }

    /// Takes contents that follow the last record into `place`, from `filled` on; false if the look has ended
    /// before it is full.
    pub(crate) fn contents(
        &mut self,
        link: &mut dyn Link,
        place: &mut [u8],
        filled: &mut usize,
        look: &mut Look<'_>,
    ) -> Result<bool, ReadError> {
        let (before, wanted) = (*filled, place.len());
        let at = self.last;
        if self.contents < (wanted - before) as u64 {
            return Err(WireError::Size { at, what: "contents", length: wanted }.into());
        }
        let full = fill(link, place, filled, look, at, "contents");
        let got = (*filled - before) as u64;
        self.contents -= got;
        self.offset += got;
        match full {
            Err(ReadError::Link(LinkError::Closed)) => {
                Err(WireError::Truncated { at, what: "contents", got: *filled, wanted }.into())
            }
            other => other,
        }
    }

    fn check_header(&self) -> Result<RecordHeader, WireError> {
        let at = self.at();
        let bytes = super::message::array::<HEADER_BYTES>(&self.head, 0);
        let header = RecordHeader::decode(&bytes, at)?;
        let at = At { tag: Some(header.tag), ..at };
        if u64::from(header.sequence) != self.records & u64::from(u32::MAX) {
            return Err(WireError::Sequence { at, found: header.sequence });
        }
        let tag = Tag::from_number(header.tag);
        if tag.is_none() && header.flags & FLAG_OPTIONAL == 0 {
            return Err(WireError::UnknownTag { at });
        }
        if header.flags & !FLAG_OPTIONAL != 0 {
            return Err(WireError::Value { at, what: "record flags", value: header.flags.into() });
        }
        let limit = self.limits.of(tag);
        if header.length > limit {
            return Err(WireError::TooLong { at, length: header.length, limit });
        }
        // Only page contents, which have a hash of their own, may go unchecked.
        let partly = tag == Some(Tag::Pages);
        let checked = u64::from(header.checked);
        if checked > header.length || (checked < header.length && !partly) {
            return Err(WireError::Value { at, what: "number of checked bytes", value: checked });
        }
        Ok(header)
    }

    fn fill_head(
        &mut self,
        link: &mut dyn Link,
        wanted: usize,
        what: &'static str,
        look: &mut Look<'_>,
    ) -> Result<bool, ReadError> {
        let at = self.at();
        let place = self.head.get_mut(..wanted).unwrap_or_default();
        fill(link, place, &mut self.filled, look, at, what)
    }

    fn fill_payload(
        &mut self,
        link: &mut dyn Link,
        length: usize,
        look: &mut Look<'_>,
    ) -> Result<bool, ReadError> {
        let at = self.at();
        let place = self.payload.get_mut(..length).unwrap_or_default();
        match fill(link, place, &mut self.filled, look, at, "payload") {
            // The header was there, so the record is cut even if not a byte of its payload came.
            Err(ReadError::Link(LinkError::Closed)) => {
                Err(WireError::Truncated { at, what: "payload", got: 0, wanted: length }.into())
            }
            other => other,
        }
    }
}

/// Fills `place` from `filled` on; false if the look has ended before.
fn fill(
    link: &mut dyn Link,
    place: &mut [u8],
    filled: &mut usize,
    look: &mut Look<'_>,
    at: At,
    what: &'static str,
) -> Result<bool, ReadError> {
    let wanted = place.len();
    while let Some(rest) = place.get_mut(*filled..).filter(|rest| !rest.is_empty()) {
        match link.receive(rest, look.timeout) {
            Ok(n) => {
                *filled = wanted.min(*filled + n);
                if *filled < wanted && (look.over)() {
                    return Ok(false);
                }
            }
            Err(LinkError::TimedOut(_)) => return Ok(false),
            Err(LinkError::Closed) if *filled > 0 => {
                return Err(WireError::Truncated { at, what, got: *filled, wanted }.into());
            }
            Err(error) => return Err(ReadError::Link(error)),
        }
    }
    Ok(true)
}

#[cfg(test)]
#[path = "reader_test.rs"]
mod tests;
