//! The destination's first words: it judges the configuration before any RAM moves.

use std::path::Path;

use super::destination::Incoming;
use super::load::Loader;
use crate::blocker::{Blocker, BlockerCode, BlockerList};
use crate::config::ConfigBlock;
use crate::error::{Error, chain};
use crate::host::{DestinationHost, PAGE_SIZE};
use crate::lease::{Attempt, Lease, LeaseError};
use crate::phase::Phase;
use crate::report::micros;
use crate::wire::message::Accept;
use crate::wire::{
    FEATURE_PAGE_HASH, KNOWN_FEATURES, Limits, Preamble, Tag, WIRE_VERSION, WireError,
};

impl<H: DestinationHost> Incoming<'_, H> {
    /// Greets, judges the configuration, builds the machine, opens the lease and accepts.
    pub(super) fn setup(&mut self) -> Result<(Lease, Loader), Error> {
        self.reach(Phase::Setup, 0);
        let until = self.channel.now() + self.options.deadlines.idle;
        let preamble = self.channel.preamble(until)?;
        self.channel.writer.preamble(&Preamble {
            version: WIRE_VERSION,
            mandatory: 0,
            optional: preamble.optional & KNOWN_FEATURES,
        });
        let unknown = preamble.mandatory & !KNOWN_FEATURES;
        if preamble.version != WIRE_VERSION || unknown != 0 {
            let error = match preamble.version {
                WIRE_VERSION => WireError::Features(unknown),
                found => WireError::Version { found },
            };
            let blocker = Blocker::new(
                BlockerCode::Protocol,
                error.to_string(),
                "use the same release of drogher on both sides",
            );
            return Err(self.refuse(vec![blocker]));
        }
        let record = self.channel.next(until, "send its configuration")?;
        if record.tag != Tag::Config {
            return Err(self.channel.unexpected(&record, "a configuration comes first"));
        }
        let config = serde_json::from_slice::<ConfigBlock>(self.channel.reader.payload(&record));
        self.config = config
            .map_err(|source| self.channel.stream(WireError::Text { at: record.at, source }))?;
        let mut blockers = self.config.problems();
        // The machine is asked only about numbers that can be.
        if blockers.is_empty() {
            blockers = self.host.check(&self.config);
        }
        if let Err(blocker) = self.check_lease() {
            blockers.push(blocker);
        }
        if !blockers.is_empty() {
            return Err(self.refuse(blockers));
        }
        let features = preamble.optional & KNOWN_FEATURES;
        let loader = Loader::new(&self.config, features & FEATURE_PAGE_HASH != 0)?;
        if let Err(error) = self.host.prepare(&self.config) {
            return Err(self.refuse(vec![Blocker::new(
                BlockerCode::Host,
                format!("the machine cannot be built: {}", chain(&error)),
                "see the log of the destination",
            )]));
        }
        // Opened for good only now: a process that is killed closes its files in their order, and
        // its memory, which takes longest, should not stand between its death and its lock.
        let lease = match self.check_lease() {
            Ok(lease) => lease,
            Err(blocker) => return Err(self.refuse(vec![blocker])),
        };
        self.channel.reader.set_limits(Limits::accepted(&self.config));
        let accept = Accept { features }.encode();
        let until = self.idle_deadline();
        self.channel.record(Tag::Accept, &[&accept], &[], until)?;
        self.report.setup_us = micros(self.elapsed());
        let (setup, total) = (self.report.setup_us / 1000, self.config.total_pages());
        self.control.update(|s| {
            s.setup_time = setup;
            s.ram.total = total * PAGE_SIZE as u64;
            s.ram.page_size = PAGE_SIZE as u64;
        });
        Ok((lease, loader))
    }

    fn refuse(&mut self, blockers: Vec<Blocker>) -> Error {
        let text = serde_json::to_vec(&blockers).unwrap_or_default();
        let until = self.idle_deadline();
        if let Err(error) = self.channel.record(Tag::Refuse, &[&text], &[], until) {
            tracing::debug!("the refusal could not be sent: {}", chain(&error));
        }
        Error::Refused(BlockerList(blockers))
    }

    /// Opens the lease file, by this process's own right, and compares it with what the source
    /// says of it.
    fn check_lease(&self) -> Result<Lease, Blocker> {
        let named = self.options.lease.as_deref();
        let path: &Path = named.unwrap_or(&self.config.lease.path);
        let blocker = |reason: String, hint: &str| Blocker::new(BlockerCode::Lease, reason, hint);
        let hint = "both sides must use the same lease file, on a local file system of this host";
        let unusable = |error: LeaseError| blocker(chain(&error), hint);
        let lease = Lease::open(path).map_err(unusable)?;
        let identity = lease.identity();
        let theirs = &self.config.lease;
        if (identity.device, identity.inode) != (theirs.device, theirs.inode) {
            return Err(blocker(
                format!(
                    "{} is file {}:{} here, and {} is {}:{} at the source",
                    path.display(),
                    identity.device,
                    identity.inode,
                    theirs.path.display(),
                    theirs.device,
                    theirs.inode
                ),
                hint,
            ));
        }
        let record = lease.peek().map_err(unusable)?;
        if record.vm_id != self.config.vm_id || record.epoch != self.config.epoch {
            return Err(blocker(
                format!(
                    "{} is of VM {} in epoch {}, the source says VM {} in epoch {}",
                    path.display(),
                    record.vm_id,
                    record.epoch,
                    self.config.vm_id,
                    self.config.epoch
                ),
                hint,
            ));
        }
        match lease.try_take().map_err(|(_, error)| unusable(error))? {
            Attempt::Busy(lease) => Ok(lease),
            Attempt::Taken(_) => Err(blocker(
                format!("{} is not locked: the source does not hold it", path.display()),
                hint,
            )),
        }
    }
}
