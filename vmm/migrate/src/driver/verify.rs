//! `--verify`: both sides hash what they have, not what was sent, and compare.

use std::time::Duration;

use super::destination::Incoming;
use super::load::Loader;
use super::source::Session;
use crate::error::Error;
use crate::hash::hash_of;
use crate::host::{DestinationHost, Extent, PAGE_SIZE, SourceHost};
use crate::report::{Event, Verified};
use crate::wire::message::{Digests, StateHash, array};
use crate::wire::pages::is_zero;
use crate::wire::{Tag, WireError};

/// Pages whose hashes go in one record.
const PAGES_A_RECORD: u64 = 4096;
/// Pages read at once.
pub(super) const PAGES_A_READ: usize = 64;

/// Gives `each` the hash of each page in `pages`: of zeroes in what `extent` knows as a hole (to read it would
/// fill it), else of what `read_ram` copies out.
pub(super) fn hash_pages<H, E>(
    host: &mut H,
    pages: std::ops::Range<u64>,
    buffer: &mut [u8],
    extent: impl Fn(&mut H, std::ops::Range<u64>) -> Extent,
    read_ram: impl Fn(&mut H, u64, &mut [u8]) -> Result<(), E>,
    mut each: impl FnMut(u64, u64),
) -> Result<(), E> {
    let of_zeroes = hash_of(&[0; PAGE_SIZE]);
    let mut at = pages.start;
    while at < pages.end {
        let data = match extent(host, at..pages.end).within(pages.end - at) {
            Extent::Hole(zeroes) => {
                (at..at + zeroes).for_each(|page| each(page, of_zeroes));
                at += zeroes;
                continue;
            }
            Extent::Data(data) => data,
        };
        let count = usize::try_from(data).unwrap_or(usize::MAX).min(PAGES_A_READ);
        let contents = buffer.get_mut(..count * PAGE_SIZE).unwrap_or_default();
        read_ram(host, at, contents)?;
        for (page, contents) in (at..).zip(contents.chunks_exact(PAGE_SIZE)) {
            each(page, if is_zero(contents) { of_zeroes } else { hash_of(contents) });
        }
        at += count as u64;
    }
    Ok(())
}

impl<H: SourceHost> Session<'_, H> {
    /// Sends the hashes of everything and waits for what the destination makes of them.
    pub(super) fn verify(&mut self) -> Result<(), Error> {
        let gib = u32::try_from(self.ram.pages >> 18).unwrap_or(u32::MAX).saturating_add(1);
        let time = self.options.deadlines.verify_per_gib.saturating_mul(gib);
        let until = self.channel.now() + time;
        let phase = self.phase;
        let mut hashes = Vec::new();
        for region in self.config.memory.clone() {
            let pages = region.pages();
            let mut at = pages.start;
            while at < pages.end {
                let end = pages.end.min(at + PAGES_A_RECORD);
                hashes.clear();
                hash_pages(
                    &mut *self.host,
                    at..end,
                    &mut self.buffer,
                    H::extent,
                    H::read_ram,
                    |_, hash: u64| hashes.extend_from_slice(&hash.to_le_bytes()),
                )
                .map_err(Error::host(phase, "read_ram"))?;
                let head = Digests { first: at }.encode();
                self.channel.record(Tag::Digests, &[&head, &hashes], &[], until)?;
                self.check()?;
                at = end;
            }
        }
        let mut states = Vec::new();
        let digests = self.host.state_digests(&mut states);
        digests.map_err(Error::host(phase, "state_digests"))?;
        for state in &states {
            let head = StateHash { hash: state.hash }.encode();
            let name = state.name.as_bytes();
            self.channel.record(Tag::StateDigest, &[&head, name], &[], until)?;
        }
        self.channel.record(Tag::VerifyEnd, &[], &[], until)?;

        let record = self.channel.next(until, "verify the guest")?;
        if record.tag != Tag::Verified {
            return Err(self.channel.unexpected(&record, "verification is going on"));
        }
        let payload = self.channel.reader.payload(&record);
        let verified: Verified = serde_json::from_slice(payload)
            .map_err(|source| self.channel.stream(WireError::Text { at: record.at, source }))?;
        self.hooks.event(&Event::Verified(verified.clone()));
        let error = differences(&verified);
        self.report.verified = Some(verified);
        error.map_or(Ok(()), Err)
    }
}

impl<H: DestinationHost> Incoming<'_, H> {
    /// Compares what the source hashed with what is here, and says what differs.
    pub(super) fn compare(&mut self, loader: &mut Loader) -> Result<(), Error> {
        let phase = self.phase;
        let mut verified = Verified::default();
        let mut states = Vec::new();
        let digests = self.host.state_digests(&mut states);
        digests.map_err(Error::host(phase, "state_digests"))?;
        loop {
            let until = self.channel.now() + self.idle_for_hashing();
            let record = self.channel.next(until, "send its hashes")?;
            let payload = self.channel.reader.payload(&record);
            match record.tag {
                Tag::Digests => {
                    let split = Digests::split(payload, record.at);
                    let (head, hashes) = split.map_err(|e| self.channel.stream(e))?;
                    let pages = head.first..head.first.saturating_add(hashes.len() as u64 / 8);
                    if hashes.len() % 8 != 0 || loader.region(&pages).is_none() {
                        return Err(self.channel.stream(WireError::Value {
                            at: record.at,
                            what: "page",
                            value: head.first,
                        }));
                    }
                    let mut theirs =
                        hashes.chunks_exact(8).map(|h| u64::from_le_bytes(array(h, 0)));
                    hash_pages(
                        &mut *self.host,
                        pages,
                        &mut loader.buffer,
                        H::extent,
                        H::read_ram,
                        |page, ours| {
                            verified.pages += 1;
                            if theirs.next() != Some(ours) {
                                verified.differing += 1;
                                verified.first_gpa.get_or_insert(page << 12);
                            }
                        },
                    )
                    .map_err(Error::host(phase, "read_ram"))?;
                }
                Tag::StateDigest => {
                    let split = StateHash::split(payload, record.at);
                    let (head, name) = split.map_err(|e| self.channel.stream(e))?;
                    let name = String::from_utf8_lossy(name);
                    verified.states += 1;
                    // Each is compared once; what is left over is missing at the source.
                    let ours = states.iter().position(|s| s.name == name);
                    let same = ours.map(|i| states.swap_remove(i).hash) == Some(head.hash);
                    if !same && verified.differing_states.len() < 64 {
                        verified.differing_states.push(name.into_owned());
                    }
                }
                Tag::VerifyEnd => break,
                _ => return Err(self.channel.unexpected(&record, "verification is going on")),
            }
        }
        if verified.pages < self.config.total_pages() {
            verified.differing += self.config.total_pages() - verified.pages;
        }
        verified.differing_states.extend(states.into_iter().map(|s| s.name));
        self.event(&Event::Verified(verified.clone()));
        let text = serde_json::to_vec(&verified).unwrap_or_default();
        let until = self.channel.now() + self.options.deadlines.idle;
        self.channel.record(Tag::Verified, &[&text], &[], until)?;
        let error = differences(&verified);
        self.report.verified = Some(verified);
        error.map_or(Ok(()), Err)
    }

    fn idle_for_hashing(&self) -> Duration {
        let gib = u32::try_from(self.config.total_pages() >> 18).unwrap_or(u32::MAX);
        self.options.deadlines.idle + Duration::from_secs(1).saturating_mul(gib)
    }
}

/// The error that differences are.
pub(super) fn differences(verified: &Verified) -> Option<Error> {
    let states = verified.differing_states.len() as u64;
    (verified.differing > 0 || states > 0).then(|| Error::Differs {
        pages: verified.differing,
        first: verified.first_gpa.unwrap_or(0),
        states,
    })
}
