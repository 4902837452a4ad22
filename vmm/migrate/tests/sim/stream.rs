//! Bytes that no source would send: the destination must say what is wrong, and nothing worse.
//!
//! A true stream is recorded once, then cut at every record and damaged at many places, and
//! played to a destination whose lease somebody else holds. It may run in none of these cases.

use std::io::IoSlice;
use std::path::Path;
use std::time::Duration;

use drogher_migrate::control::Control;
use drogher_migrate::{
    DestinationEnd, DestinationOptions, DestinationOutcome, Env, Error, HeldLease, Lease, Link,
    LinkError, NoHooks, Request, Side, VmId, receive,
};

use super::guest::Destination;
use super::run::{Setup, deadlines, run_on};
use super::world::World;

/// Plays bytes to a side that may say what it likes.
struct Player<'a> {
    world: World,
    bytes: &'a [u8],
    /// When no more than so many are left: gives a byte at a time, each after 12 ms.
    trickles: usize,
    /// Somebody asks for the destination's end, meanwhile.
    ends: Option<&'a Control>,
    /// Contents of pages come right to where they belong.
    direct: bool,
    /// Let go of when only so many bytes are left.
    lease: Option<(HeldLease, usize)>,
}

impl Link for Player<'_> {
    fn send(&mut self, parts: &[IoSlice<'_>], _: Duration) -> Result<usize, LinkError> {
        Ok(parts.iter().map(|p| p.len()).sum())
    }

    fn receive(&mut self, buf: &mut [u8], _: Duration) -> Result<usize, LinkError> {
        self.lease.take_if(|(_, left)| self.bytes.len() <= *left);
        let count = self.bytes.len().min(buf.len());
        if count == 0 {
            return Err(LinkError::Closed);
        }
        let trickles = self.bytes.len() <= self.trickles;
        let count = if trickles { 1 } else { count.min(self.bytes.len() - self.trickles) };
        if let Some(control) = self.ends.filter(|_| trickles) {
            assert!(control.ask(Request::Shutdown).is_ok());
        }
        if trickles {
            self.world.lock().advance(Duration::from_millis(12));
        }
        let (now, later) = self.bytes.split_at(count);
        buf[..count].copy_from_slice(now);
        self.bytes = later;
        Ok(count)
    }
}

/// A recorded migration: what the source sent, and the lease it sent it under.
struct Tape {
    folder: tempfile::TempDir,
    first: World,
    bytes: Vec<u8>,
}

impl Tape {
    fn record() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let world = World::new(11, None);
        run_on(&world, &Setup { seed: 11, ..Setup::default() }, folder.path());
        let bytes = std::mem::take(&mut world.lock().tape);
        Self { folder, first: world, bytes }
    }

    /// The lease as it was when the stream began, held by its source again.
    fn lease(&self) -> HeldLease {
        hold(self.folder.path())
    }

    /// Offsets of the records, the first after the preamble, and of the end.
    fn records(&self) -> Vec<usize> {
        let mut at = 40;
        let mut found = vec![at];
        while at < self.bytes.len() {
            let length = u64::from_le_bytes(self.bytes[at + 8..at + 16].try_into().unwrap());
            at += 32 + usize::try_from(length).unwrap();
            found.push(at);
        }
        assert_eq!(at, self.bytes.len());
        found
    }

    /// How many bytes are left a little behind where the contents of the largest pages record begin.
    fn inside_contents(&self) -> usize {
        let checked = |at: usize| {
            let checked = self.bytes[at + 16..at + 20].try_into().unwrap();
            at + 32 + usize::try_from(u32::from_le_bytes(checked)).unwrap()
        };
        let records = self.records();
        let largest = records.windows(2).max_by_key(|pair| pair[1] - checked(pair[0])).unwrap();
        assert!(largest[1] - checked(largest[0]) > 100_000);
        self.bytes.len() - checked(largest[0]) - 10
    }

    fn play(
        &self,
        bytes: &[u8],
        direct: bool,
        lease: Option<(HeldLease, usize)>,
    ) -> DestinationEnd {
        let world = World::new(1, None);
        let player = Player { world: world.clone(), bytes, trickles: 0, ends: None, direct, lease };
        self.listen(player, &Control::new())
    }

    fn listen(&self, mut player: Player<'_>, control: &Control) -> DestinationEnd {
        let world = player.world.clone();
        {
            let (from, mut to) = (self.first.lock(), world.lock());
            to.ram[0] = from.ram[0].clone();
            to.device[0] = from.device[0].clone();
            to.machine[0] = from.machine[0];
            to.running[0] = false;
        }
        world.end(Side::Source);
        let mut host = Destination::new(world.clone());
        host.direct = player.direct;
        let clock = world.clock(Side::Destination);
        let env = Env { clock: &clock, hooks: &mut NoHooks, control };
        let options = DestinationOptions { lease: None, deadlines: deadlines() };
        receive(&mut host, &mut player, env, &options)
    }

    /// Plays it while the source holds the lease: it must not run, and the words are returned.
    fn refused(&self, bytes: &[u8], context: &str) -> String {
        let words = [true, false].map(|direct| match self.play(bytes, direct, None).outcome {
            DestinationOutcome::NotTaken { why } => chain(&why),
            DestinationOutcome::Halted { why, epoch_moved: false } => {
                why.as_ref().map_or_else(String::new, chain)
            }
            other => panic!("{context}: {other:?}"),
        });
        assert_eq!(words[0], words[1], "{context}");
        words[0].clone()
    }
}

fn chain(error: &Error) -> String {
    drogher_migrate::error::chain(error)
}

/// The same file, with the record of the recorded run: VM [3; 16], epoch 1.
fn hold(folder: &Path) -> HeldLease {
    let path = folder.join("lease");
    let bytes = std::fs::read(folder.join("lease.first")).unwrap();
    std::fs::write(&path, bytes).unwrap();
    match Lease::open(&path).unwrap().try_take().unwrap() {
        drogher_migrate::lease::Attempt::Taken(held) => {
            assert_eq!((held.vm_id(), held.epoch()), (VmId([3; 16]), 1));
            held
        }
        drogher_migrate::lease::Attempt::Busy(_) => panic!("somebody holds the lease"),
    }
}

#[test]
fn the_tape_is_a_migration() {
    let tape = Tape::record();
    // The source lets go of the lease just before COMMIT, the last record.
    let records = tape.records();
    let commit = tape.bytes.len() - records[records.len() - 2];
    let end = tape.play(&tape.bytes, true, Some((tape.lease(), commit)));
    // So the damage that the other tests do is what keeps it from running.
    assert!(matches!(end.outcome, DestinationOutcome::Runs { .. }), "{:?}", end.outcome);
}

#[test]
fn a_stream_cut_at_any_record_or_inside_one_is_refused() {
    let tape = Tape::record();
    let _held = tape.lease();
    let records = tape.records();
    assert!(records.len() > 30, "{} records", records.len());
    for (number, pair) in records.windows(2).enumerate() {
        let cuts = [pair[0], pair[0] + 1, pair[0] + 31, pair[0] + 32, pair[1] - 1];
        for cut in cuts.into_iter().filter(|cut| *cut < pair[1]) {
            let words = tape.refused(&tape.bytes[..cut], &format!("record {number} cut at {cut}"));
            assert!(!words.is_empty(), "record {number} cut at {cut} is refused without a word");
        }
    }
    for cut in 0..40 {
        tape.refused(&tape.bytes[..cut], &format!("preamble cut at {cut}"));
    }
}

#[test]
fn a_flipped_bit_anywhere_is_refused() {
    let tape = Tape::record();
    let _held = tape.lease();
    let bits = tape.bytes.len() * 8;
    let mut draw = 0x1234_5678_9abc_def1_u64;
    let mut at: Vec<usize> = (0..300)
        .map(|_| {
            draw ^= draw << 13;
            draw ^= draw >> 7;
            draw ^= draw << 17;
            usize::try_from(draw % bits as u64).unwrap()
        })
        .collect();
    // Every 5th bit of the preamble, and of the first bytes of records of every kind.
    at.extend((0..320).step_by(5));
    let records = tape.records();
    let mut kinds = std::collections::BTreeSet::new();
    for start in records.iter().rev().skip(1) {
        if kinds.insert(tape.bytes[*start]) {
            at.extend((start * 8..(start + 44) * 8).step_by(11).filter(|bit| *bit < bits));
        }
    }
    assert!(kinds.len() >= 8, "{kinds:?}");
    let mut bytes = tape.bytes.clone();
    for bit in at {
        bytes[bit / 8] ^= 1 << (bit % 8);
        tape.refused(&bytes, &format!("bit {bit}"));
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

/// Contents of pages are under no checksum but the hash.
#[test]
fn flipped_contents_are_named() {
    let tape = Tape::record();
    let _held = tape.lease();
    let number =
        |at: usize| usize::try_from(u32::from_le_bytes(tape.bytes[at..at + 4].try_into().unwrap()));
    let pages: Vec<_> = (tape.records().windows(2))
        .filter(|pair| tape.bytes[pair[0]] == 3)
        .map(|pair| pair[0] + 32 + number(pair[0] + 16).unwrap()..pair[1])
        .filter(|contents| !contents.is_empty())
        .collect();
    assert!(pages.len() > 10, "{} records", pages.len());
    let mut bytes = tape.bytes.clone();
    for contents in pages.iter().step_by(pages.len() / 10) {
        for at in [contents.start, contents.start + contents.len() / 2, contents.end - 1] {
            bytes[at] ^= 8;
            let words = tape.refused(&bytes, &format!("byte {at}"));
            assert!(words.contains("hash"), "byte {at}: {words}");
            bytes[at] ^= 8;
        }
    }
}

/// Whoever counts the checksums anew may say what he likes of pages: it is found out, or it is another guest
/// that comes, but nothing breaks; wherever contents are received.
#[test]
fn heads_of_pages_that_lie_break_nothing() {
    let tape = Tape::record();
    let _held = tape.lease();
    let records = tape.records();
    let pages: Vec<_> = records.windows(2).filter(|pair| tape.bytes[pair[0]] == 3).collect();
    let mut draw = 0x1234_5678_9abc_def1_u64;
    let mut below = |limit: usize| {
        draw ^= draw << 13;
        draw ^= draw >> 7;
        draw ^= draw << 17;
        usize::try_from(draw % limit as u64).unwrap()
    };
    let mut words = std::collections::BTreeSet::new();
    for round in 0..400 {
        let pair = pages[below(pages.len())];
        let (begin, mut bytes) = (pair[0], tape.bytes.clone());
        let number = |bytes: &[u8], at: usize| {
            u32::from_le_bytes(bytes[begin + at..begin + at + 4].try_into().unwrap())
        };
        let checked = usize::try_from(number(&bytes, 16)).unwrap();
        // A length of the record or of its checked part, or a number of its head, becomes a little other.
        let (at, value) = match below(5) {
            0 => (8, number(&bytes, 8)),
            1 => (16, number(&bytes, 16)),
            _ => {
                let at = 32 + below(checked / 4) * 4;
                (at, number(&bytes, at))
            }
        };
        let other =
            [0, 1, value ^ 1, value.wrapping_add(1), value.wrapping_sub(1), value.wrapping_mul(2)];
        let value = other[below(other.len())];
        bytes[begin + at..begin + at + 4].copy_from_slice(&value.to_le_bytes());
        let checked = usize::try_from(number(&bytes, 16)).unwrap();
        if let Some(covered) = bytes.get(begin + 32..begin + 32 + checked) {
            let crc = crc32fast::hash(covered).to_le_bytes();
            bytes[begin + 20..begin + 24].copy_from_slice(&crc);
        }
        let crc = crc32fast::hash(&bytes[begin..begin + 28]).to_le_bytes();
        bytes[begin + 28..begin + 32].copy_from_slice(&crc);
        words
            .insert(tape.refused(&bytes, &format!("round {round}: {value:#x} at {at} of {begin}")));
    }
    assert!(words.len() > 50, "{words:#?}");
}

#[test]
fn records_left_out_doubled_or_swapped_are_refused() {
    let tape = Tape::record();
    let _held = tape.lease();
    let records = tape.records();
    let part = |n: usize| &tape.bytes[records[n]..records[n + 1]];
    let count = records.len() - 1;
    for n in (0..count - 1).step_by(7).chain(count - 12..count - 1) {
        let (before, after) = (&tape.bytes[..records[n]], &tape.bytes[records[n + 1]..]);
        let rest = &tape.bytes[records[n + 2]..];
        let out = tape.refused(&[before, after].concat(), &format!("record {n} left out"));
        let twice = tape
            .refused(&[before, part(n), part(n), after].concat(), &format!("record {n} doubled"));
        let swapped = tape.refused(
            &[before, part(n + 1), part(n), rest].concat(),
            &format!("records {n} and {} swapped", n + 1),
        );
        for words in [out, twice, swapped] {
            assert!(words.contains("calls itself number"), "{n}: {words}");
        }
    }
}

#[test]
fn noise_is_refused() {
    let tape = Tape::record();
    let _held = tape.lease();
    let mut draw = 99_u64;
    for length in [1, 39, 40, 41, 4096, 100_000] {
        let noise: Vec<u8> = (0..length)
            .map(|_| {
                draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                draw.to_le_bytes()[7]
            })
            .collect();
        tape.refused(&noise, &format!("{length} bytes of noise"));
        // The same behind a true beginning.
        let cut = tape.records()[1];
        let words = tape.refused(&[&tape.bytes[..cut], &noise].concat(), "noise");
        assert!(!words.is_empty());
    }
}

/// From the first byte on, and inside the contents of pages.
#[test]
fn a_byte_now_and_then_does_not_hold_a_destination_for_ever() {
    let tape = Tape::record();
    let _held = tape.lease();
    let inside = tape.inside_contents();
    let cases = [(usize::MAX, "configuration"), (inside, "contents"), (inside, "contents")];
    for (direct, (trickles, word)) in [true, true, false].into_iter().zip(cases) {
        let (world, bytes) = (World::new(1, None), &tape.bytes);
        let player = Player { world, bytes, trickles, ends: None, direct, lease: None };
        let end = tape.listen(player, &Control::new());
        let DestinationOutcome::NotTaken { why: Error::Deadline { what, .. } } = end.outcome else {
            panic!("{word}: {:?}", end.outcome);
        };
        assert!(what.contains(word), "{what}");
    }
}

#[test]
fn a_destination_that_is_sent_a_byte_now_and_then_can_be_ended() {
    let tape = Tape::record();
    let _held = tape.lease();
    for (trickles, direct) in [usize::MAX, tape.inside_contents()].into_iter().zip([true, false]) {
        let (world, bytes, control) = (World::new(1, None), &tape.bytes, Control::new());
        let ends = Some(&control);
        let player = Player { world, bytes, trickles, ends, direct, lease: None };
        let end = tape.listen(player, &control);
        let DestinationOutcome::NotTaken { why: Error::Shutdown } = end.outcome else {
            panic!("{:?}", end.outcome);
        };
    }
}
