//! The source's first words: preamble, configuration, and what the destination says to it.

use super::ram::Ram;
use super::source::Session;
use super::switchover::DeviceSent;
use crate::blocker::{Blocker, BlockerCode, BlockerList};
use crate::error::Error;
use crate::host::SourceHost;
use crate::lease::HeldLease;
use crate::phase::Phase;
use crate::report::micros;
use crate::status::MigrationStatus;
use crate::wire::message::Accept;
use crate::wire::pages::PagesBuilder;
use crate::wire::{
    FEATURE_PAGE_HASH, Limits, MAX_CHUNK, MAX_CONFIG, Preamble, Tag, WIRE_VERSION, WireError,
};

impl<H: SourceHost> Session<'_, H> {
    /// Greets, sends the configuration and waits for the answer.
    pub(super) fn setup(&mut self, lease: &HeldLease) -> Result<(), Error> {
        self.control.update(|s| s.status = MigrationStatus::Setup);
        self.enter(Phase::Setup)?;
        let config = self.host.config();
        let mut config = config.map_err(Error::host(self.phase, "config"))?;
        config.vm_id = lease.vm_id();
        config.lease = lease.identity().clone();
        config.epoch = lease.epoch();
        let problems = config.problems();
        if !problems.is_empty() {
            return Err(Error::Config(BlockerList(problems)));
        }
        self.config = config;
        self.prepare()?;
        let text = serde_json::to_vec(&self.config).map_err(|_| self.too_large(0))?;
        if text.len() as u64 > MAX_CONFIG {
            return Err(self.too_large(text.len()));
        }
        self.channel.writer.preamble(&Preamble {
            version: WIRE_VERSION,
            mandatory: 0,
            optional: if self.options.hash_pages { FEATURE_PAGE_HASH } else { 0 },
        });
        let until = self.send_deadline();
        self.channel.record(Tag::Config, &[&text], &[], until)?;

        let until = self.channel.now() + self.options.deadlines.prepare;
        let preamble = self.channel.preamble(until)?;
        if preamble.version != WIRE_VERSION {
            let found = preamble.version;
            return Err(self.channel.stream(WireError::Version { found }));
        }
        let record = self.channel.next(until, "accept or refuse the guest")?;
        let payload = self.channel.reader.payload(&record);
        match record.tag {
            Tag::Accept => {
                let accept = Accept::decode(payload, record.at);
                let accept = accept.map_err(|e| self.channel.stream(e))?;
                self.builder = PagesBuilder::new(accept.features & FEATURE_PAGE_HASH != 0);
            }
            Tag::Refuse => {
                let blockers = serde_json::from_slice::<Vec<Blocker>>(payload);
                return Err(match blockers {
                    Ok(blockers) => Error::Refused(BlockerList(blockers)),
                    Err(source) => self.channel.stream(WireError::Text { at: record.at, source }),
                });
            }
            _ => return Err(self.channel.unexpected(&record, "an answer is awaited")),
        }
        self.channel.reader.set_limits(Limits::default());
        self.accepted = true;
        self.report.setup_us = micros(self.elapsed());
        let setup_ms = self.report.setup_us / 1000;
        self.control.update(|s| {
            s.status = MigrationStatus::Active;
            s.setup_time = setup_ms;
        });
        Ok(())
    }

    /// Allocates all that the rounds and the stop need.
    fn prepare(&mut self) -> Result<(), Error> {
        self.ram = Ram::new(&self.config).map_err(Error::bitmap)?;
        self.buffer = vec![0; MAX_CHUNK];
        let machine = usize::try_from(self.config.max_machine_state).unwrap_or(0);
        self.machine_state.reserve_exact(machine);
        self.devices.resize_with(self.config.devices.len(), DeviceSent::default);
        self.report.rounds.reserve(64);
        let total = self.ram.pages * 4096;
        self.control.update(|s| {
            s.ram.total = total;
            s.ram.remaining = total;
            s.ram.page_size = 4096;
        });
        Ok(())
    }

    fn too_large(&self, bytes: usize) -> Error {
        Error::Config(BlockerList(vec![Blocker::new(
            BlockerCode::Other,
            format!("the configuration block of {bytes} bytes is over {MAX_CONFIG}"),
            "use fewer devices or parameters",
        )]))
    }
}
