use std::collections::VecDeque;
use std::io::IoSlice;

use super::*;
use crate::wire::{WIRE_VERSION, Writer};

/// Gives what it was given, in pieces of a few bytes, and then ends.
struct Pieces {
    bytes: VecDeque<u8>,
    piece: usize,
    stalls: bool,
}

impl Pieces {
    fn of(bytes: &[u8], piece: usize) -> Self {
        Self { bytes: bytes.iter().copied().collect(), piece, stalls: false }
    }
}

impl Link for Pieces {
    fn send(&mut self, parts: &[IoSlice<'_>], _: Duration) -> Result<usize, LinkError> {
        let first = parts.iter().find(|p| !p.is_empty()).expect("something to send");
        let count = first.len().min(self.piece);
        self.bytes.extend(&first[..count]);
        Ok(count)
    }

    fn receive(&mut self, buf: &mut [u8], timeout: Duration) -> Result<usize, LinkError> {
        self.stalls = !self.stalls;
        if self.stalls {
            return Err(LinkError::TimedOut(timeout));
        }
        let count = self.bytes.len().min(buf.len()).min(self.piece);
        if count == 0 {
            return Err(LinkError::Closed);
        }
        for (to, from) in buf.iter_mut().zip(self.bytes.drain(..count)) {
            *to = from;
        }
        Ok(count)
    }
}

const PAYLOADS: [&[u8]; 3] = [b"the first", b"", b"another"];

fn go_on(_: LinkError) -> Result<(), LinkError> {
    Ok(())
}

/// A stream of a preamble, some records, and an unknown optional one in the middle.
fn stream() -> Vec<u8> {
    let mut link = Pieces::of(&[], 7);
    let mut writer = Writer::new(Duration::ZERO);
    writer.preamble(&Preamble { version: WIRE_VERSION, mandatory: 0, optional: 1 });
    writer.queue(Tag::Cancel, false, &[b"the ", b"first"]);
    writer.record(&mut link, Tag::Cancel, &[], &[], &mut go_on).unwrap();
    writer.queue(Tag::Cancel, false, &[b"another"]);
    writer.flush(&mut link, &mut go_on).unwrap();
    assert_eq!(writer.bytes(), link.bytes.len() as u64);
    link.bytes.into_iter().collect()
}

/// A look that ends after each piece.
fn glance() -> Look<'static> {
    Look { timeout: Duration::ZERO, over: Box::leak(Box::new(|| true)) }
}

/// Reads everything: the payloads, or where it went wrong.
fn read_all(bytes: &[u8], piece: usize) -> Result<Vec<Vec<u8>>, ReadError> {
    let mut link = Pieces::of(bytes, piece);
    let mut reader = Reader::new();
    while reader.preamble(&mut link, &mut glance())?.is_none() {}
    let mut found = Vec::new();
    loop {
        match reader.poll(&mut link, &mut glance()) {
            Ok(Some(record)) => {
                assert_eq!(record.tag, Tag::Cancel);
                found.push(reader.payload(&record).to_vec());
            }
            Ok(None) => {}
            // The end between two records.
            Err(ReadError::Link(LinkError::Closed)) => {
                assert_eq!(reader.bytes(), bytes.len() as u64);
                return Ok(found);
            }
            Err(error) => return Err(error),
        }
    }
}

#[test]
fn records_come_out_as_they_went_in_whatever_the_pieces() {
    let bytes = stream();
    for piece in [1, 2, 31, 32, 33, 4096] {
        assert_eq!(read_all(&bytes, piece).unwrap(), PAYLOADS, "pieces of {piece}");
    }
}

#[test]
fn a_stream_cut_anywhere_is_noticed() {
    let bytes = stream();
    let mut whole = 0;
    for end in 0..bytes.len() {
        match read_all(&bytes[..end], 16) {
            // Between two records it is only short.
            Ok(found) => {
                assert!(found.len() < PAYLOADS.len());
                whole += 1;
            }
            Err(ReadError::Wire(WireError::Truncated { got, wanted, .. })) => assert!(got < wanted),
            Err(ReadError::Link(LinkError::Closed)) => assert_eq!(end, 0),
            Err(error) => panic!("cut at {end}: {error:?}"),
        }
    }
    // After the preamble, and after each record but the last.
    assert_eq!(whole, PAYLOADS.len());
}

#[test]
fn any_flipped_bit_is_noticed() {
    let bytes = stream();
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(read_all(&bad, 64).is_err(), "bit {bit}");
    }
}

/// A record with a header made by hand.
fn record(header: RecordHeader, payload: &[u8]) -> Vec<u8> {
    let preamble = Preamble { version: WIRE_VERSION, mandatory: 0, optional: 0 };
    [&preamble.encode()[..], &header.encode(), payload].concat()
}

fn header(tag: u32, flags: u32, payload: &[u8]) -> RecordHeader {
    let length = payload.len() as u64;
    let crc = crc32fast::hash(payload);
    RecordHeader { tag, flags, length, checked: payload.len() as u32, crc, sequence: 0 }
}

#[test]
fn unknown_records_are_skipped_only_if_they_may_be() {
    let unknown = header(0x7777, FLAG_OPTIONAL, b"news");
    assert!(read_all(&record(unknown, b"news"), 16).unwrap().is_empty());
    let error = read_all(&record(RecordHeader { flags: 0, ..unknown }, b"news"), 16).unwrap_err();
    assert!(matches!(error, ReadError::Wire(WireError::UnknownTag { .. })), "{error:?}");
}

#[test]
fn lengths_are_bounded_before_anything_is_read() {
    for (tag, length) in [
        (Tag::Cancel as u32, u64::MAX),
        (Tag::Cancel as u32, (16 << 10) + 1),
        // Nothing of this kind may come before the configuration was accepted.
        (Tag::Pages as u32, 1),
        (Tag::DeviceData as u32, 9),
        (Tag::MachineState as u32, 1),
        (Tag::Config as u32, MAX_CONFIG_AND_ONE),
    ] {
        let bad = RecordHeader { length, ..header(tag, 0, &[]) };
        let error = read_all(&record(bad, &[]), 16).unwrap_err();
        assert!(matches!(error, ReadError::Wire(WireError::TooLong { .. })), "{error:?}");
    }
}

const MAX_CONFIG_AND_ONE: u64 = crate::wire::MAX_CONFIG + 1;

#[test]
fn sequence_flags_and_checked_bytes_are_checked() {
    let good = header(Tag::Cancel as u32, 0, b"words");
    let wrong = [
        RecordHeader { sequence: 1, ..good },
        RecordHeader { flags: 2, ..good },
        RecordHeader { checked: 4, ..good },
        RecordHeader { checked: 6, ..good },
        RecordHeader { crc: good.crc ^ 1, ..good },
    ];
    assert_eq!(read_all(&record(good, b"words"), 16).unwrap(), [b"words"]);
    for bad in wrong {
        assert!(matches!(read_all(&record(bad, b"words"), 16), Err(ReadError::Wire(_))), "{bad:?}");
    }
}

#[test]
fn a_peer_that_takes_a_byte_at_a_time_does_not_hold_the_sender() {
    let mut link = Pieces::of(&[], 1);
    let mut writer = Writer::new(Duration::ZERO);
    let mut asked = 0;
    let sent = writer.record(&mut link, Tag::Cancel, &[&[7; 1000]], &[], &mut |_| {
        asked += 1;
        if asked == 10 { Err("enough") } else { Ok(()) }
    });
    assert_eq!(sent, Err("enough"));
    assert_eq!(link.bytes.len(), 10);
    assert!(writer.is_torn());
}

/// A record of pages, and one behind it.
fn pages() -> Vec<u8> {
    let mut link = Pieces::of(&[], 9);
    let mut writer = Writer::new(Duration::ZERO);
    writer.preamble(&Preamble { version: WIRE_VERSION, mandatory: 0, optional: 0 });
    let contents = [[1; 4096], [2; 4096]].concat();
    writer.record(&mut link, Tag::Pages, &[&[9; 32]], &contents, &mut go_on).unwrap();
    writer.record(&mut link, Tag::Cancel, &[b"next"], &[], &mut go_on).unwrap();
    link.bytes.into_iter().collect()
}

/// A reader behind the head of the pages.
fn at_contents(link: &mut Pieces) -> Reader {
    let mut reader = Reader::new();
    reader.limits = Limits::accepted(&crate::config::ConfigBlock::empty());
    while reader.preamble(link, &mut glance()).unwrap().is_none() {}
    let record = loop {
        if let Some(record) = reader.poll(link, &mut glance()).unwrap() {
            break record;
        }
    };
    assert_eq!((record.tag, record.contents), (Tag::Pages, 8192));
    assert_eq!(reader.payload(&record), [9; 32], "without the contents");
    reader
}

#[test]
fn contents_come_to_where_they_belong_piece_by_piece() {
    for piece in [1, 100, 4096, 1 << 20] {
        let bytes = pages();
        let mut link = Pieces::of(&bytes, piece);
        let mut reader = at_contents(&mut link);
        for value in [1, 2] {
            let (mut place, mut filled) = ([0; 4096], 0);
            while !reader.contents(&mut link, &mut place, &mut filled, &mut glance()).unwrap() {}
            assert!(place.iter().all(|b| *b == value), "piece {piece}");
        }
        let next = loop {
            if let Some(record) = reader.poll(&mut link, &mut glance()).unwrap() {
                break record;
            }
        };
        assert_eq!(reader.payload(&next), b"next");
        assert_eq!(reader.bytes(), bytes.len() as u64);
    }
}

#[test]
fn contents_are_neither_left_nor_exceeded_nor_cut_unnoticed() {
    let bytes = pages();
    let mut link = Pieces::of(&bytes, 1 << 20);
    let mut reader = at_contents(&mut link);
    let left = reader.poll(&mut link, &mut glance());
    assert!(matches!(left, Err(ReadError::Wire(WireError::Unexpected { .. }))), "{left:?}");
    let (mut large, mut filled) = (vec![0; 8193], 0);
    let more = reader.contents(&mut link, &mut large, &mut filled, &mut glance());
    assert!(matches!(more, Err(ReadError::Wire(WireError::Size { .. }))), "{more:?}");
    for cut in 1..8192usize {
        if cut % 613 != 0 && cut != 8191 {
            continue;
        }
        let end = bytes.len() - 8192 + cut - (HEADER_BYTES + 4);
        let mut link = Pieces::of(&bytes[..end], 1 << 20);
        let mut reader = at_contents(&mut link);
        let (mut place, mut filled) = (vec![0; 8192], 0);
        let error = loop {
            match reader.contents(&mut link, &mut place, &mut filled, &mut glance()) {
                Ok(full) => assert!(!full),
                Err(error) => break error,
            }
        };
        let ReadError::Wire(WireError::Truncated { at, got, wanted, .. }) = error else {
            panic!("cut at {cut}: {error:?}");
        };
        assert_eq!((got, wanted), (cut, 8192));
        let begin = At { record: 0, offset: PREAMBLE_BYTES as u64, tag: Some(Tag::Pages as u32) };
        assert_eq!(at, begin, "the record's first byte");
    }
}
