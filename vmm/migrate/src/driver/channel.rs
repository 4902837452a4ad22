//! The link with its reader, its writer, deadlines and the user's requests.

use std::time::Duration;

use crate::control::{Control, Stop};
use crate::error::{Error, chain};
use crate::link::{Clock, Link, LinkError};
use crate::phase::Phase;
use crate::wire::{
    Look, Preamble, ReadError, Reader, Record, Tag, WIRE_VERSION, WireError, Writer,
};

/// A look that does not wait may take this long all the same: what is there may be read.
const GLANCE: Duration = Duration::from_millis(5);
/// Longest reason that is sent to the peer.
const MAX_REASON: usize = 4096;

/// The link to the peer.
pub(super) struct Channel<'a> {
    link: &'a mut dyn Link,
    clock: &'a dyn Clock,
    control: &'a Control,
    pub(super) reader: Reader,
    pub(super) writer: Writer,
    /// For errors.
    pub(super) phase: Phase,
    /// False from the first failure on.
    alive: bool,
    poll: Duration,
    heed_stop: bool,
}

impl<'a> Channel<'a> {
    pub(super) fn new(
        link: &'a mut dyn Link,
        clock: &'a dyn Clock,
        control: &'a Control,
        poll: Duration,
    ) -> Self {
        Self {
            link,
            clock,
            control,
            reader: Reader::new(),
            writer: Writer::new(poll),
            phase: Phase::Setup,
            alive: true,
            poll,
            heed_stop: true,
        }
    }

    pub(super) fn now(&self) -> Duration {
        self.clock.now()
    }

    pub(super) fn sleep(&self, time: Duration) {
        self.clock.sleep(time);
    }

    /// True until it has failed.
    pub(super) fn is_alive(&self) -> bool {
        self.alive
    }

    /// From now on the user's requests do not end a wait.
    pub(super) fn stop_heeding(&mut self) {
        self.heed_stop = false;
    }

    /// Fails if the user, or the guest's end, asks to give up.
    pub(super) fn check_stop(&self) -> Result<(), Error> {
        match self.control.stop() {
            Some(stop) if self.heed_stop => Err(stop_error(stop)),
            _ => Ok(()),
        }
    }

    /// Sends what is queued.
    pub(super) fn flush(&mut self, until: Duration) -> Result<(), Error> {
        self.put(until, |writer, link, patience| writer.flush(link, patience))
    }

    /// Sends what is queued, and a record.
    pub(super) fn record(
        &mut self,
        tag: Tag,
        checked: &[&[u8]],
        contents: &[u8],
        until: Duration,
    ) -> Result<(), Error> {
        self.put(until, |writer, link, patience| {
            writer.record(link, tag, checked, contents, patience)
        })
    }

    fn put(
        &mut self,
        until: Duration,
        call: impl FnOnce(
            &mut Writer,
            &mut dyn Link,
            &mut dyn FnMut(LinkError) -> Result<(), Error>,
        ) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (clock, control, phase) = (self.clock, self.control, self.phase);
        let heed = self.heed_stop;
        let begin = clock.now();
        let mut patience = |error| match error {
            LinkError::TimedOut(_) => {
                if let Some(stop) = control.stop().filter(|_| heed) {
                    return Err(stop_error(stop));
                }
                if clock.now() >= until {
                    return Err(Error::Deadline {
                        phase,
                        what: "read what it was sent",
                        waited: clock.now().saturating_sub(begin),
                    });
                }
                Ok(())
            }
            source => Err(Error::Link { phase, source }),
        };
        let result = call(&mut self.writer, &mut *self.link, &mut patience);
        match result {
            Err(error @ Error::Link { .. }) => {
                self.alive = false;
                // Its last words may still be there, and say more than a broken link.
                Err(self.last_words().unwrap_or(error))
            }
            other => other,
        }
    }

    fn last_words(&mut self) -> Option<Error> {
        loop {
            let (clock, until) = (self.clock, self.clock.now() + GLANCE);
            let mut look = Look { timeout: Duration::ZERO, over: &mut || clock.now() >= until };
            let record = self.reader.poll(&mut *self.link, &mut look).ok()??;
            if let Some(error) = self.peer_error(&record) {
                return Some(error);
            }
        }
    }

    /// The next record, which must come until then.
    pub(super) fn next(&mut self, until: Duration, what: &'static str) -> Result<Record, Error> {
        let begin = self.now();
        loop {
            self.check_stop()?;
            let left = until.saturating_sub(self.now());
            match self.look(self.poll.min(left))? {
                Some(record) => return Ok(record),
                None if self.now() >= until => {
                    return Err(Error::Deadline {
                        phase: self.phase,
                        what,
                        waited: self.now().saturating_sub(begin),
                    });
                }
                None => {}
            }
        }
    }

    /// The next record, if it comes in about this time. The peer's giving up is an error.
    pub(super) fn look(&mut self, timeout: Duration) -> Result<Option<Record>, Error> {
        let phase = self.phase;
        let (clock, until) = (self.clock, self.clock.now() + timeout.max(GLANCE));
        let mut look = Look { timeout, over: &mut || clock.now() >= until };
        let found = self.reader.poll(&mut *self.link, &mut look);
        let found = found.map_err(|error| self.read_error(phase, error))?;
        match found.as_ref().and_then(|record| self.peer_error(record)) {
            Some(error) => Err(error),
            None => Ok(found),
        }
    }

    /// Fills `place` with contents that follow the last record, which must come until then.
    pub(super) fn contents(&mut self, place: &mut [u8], until: Duration) -> Result<(), Error> {
        let (phase, begin) = (self.phase, self.now());
        let mut filled = 0;
        loop {
            let timeout = self.poll.min(until.saturating_sub(self.now()));
            let (clock, end) = (self.clock, self.clock.now() + timeout.max(GLANCE));
            let mut look = Look { timeout, over: &mut || clock.now() >= end };
            let full = self.reader.contents(&mut *self.link, place, &mut filled, &mut look);
            match full.map_err(|error| self.read_error(phase, error))? {
                true => return Ok(()),
                false if self.now() >= until => {
                    return Err(Error::Deadline {
                        phase,
                        what: "send the contents of pages",
                        waited: self.now().saturating_sub(begin),
                    });
                }
                false => self.check_stop()?,
            }
        }
    }

    /// The peer's preamble, which must come until then.
    pub(super) fn preamble(&mut self, until: Duration) -> Result<Preamble, Error> {
        let phase = self.phase;
        let begin = self.now();
        loop {
            self.check_stop()?;
            let timeout = self.poll.min(until.saturating_sub(self.now()));
            let (clock, end) = (self.clock, self.clock.now() + timeout.max(GLANCE));
            let mut look = Look { timeout, over: &mut || clock.now() >= end };
            let found = self.reader.preamble(&mut *self.link, &mut look);
            match found.map_err(|error| self.read_error(phase, error))? {
                Some(preamble) => return Ok(preamble),
                None if self.now() >= until => {
                    return Err(Error::Deadline {
                        phase,
                        what: "send its preamble",
                        waited: self.now().saturating_sub(begin),
                    });
                }
                None => {}
            }
        }
    }

    fn read_error(&mut self, phase: Phase, error: ReadError) -> Error {
        self.alive = false;
        match error {
            ReadError::Link(source) => Error::Link { phase, source },
            ReadError::Wire(source) => Error::Stream { phase, source },
        }
    }

    fn peer_error(&self, record: &Record) -> Option<Error> {
        matches!(record.tag, Tag::Cancel | Tag::Failed)
            .then(|| Error::Peer { reason: clean(self.reader.payload(record)) })
    }

    /// An error about a record that should not be here.
    pub(super) fn unexpected(&self, record: &Record, why: &'static str) -> Error {
        self.stream(WireError::Unexpected { at: record.at, why })
    }

    /// An error about the stream.
    pub(super) fn stream(&self, source: WireError) -> Error {
        Error::Stream { phase: self.phase, source }
    }

    /// Tells the peer why this side gives up, if it can still be told. It need not listen.
    pub(super) fn give_up(&mut self, tag: Tag, error: &Error, until: Duration) {
        if !self.alive || self.writer.is_torn() || matches!(error, Error::Peer { .. }) {
            return;
        }
        self.stop_heeding();
        if !self.writer.has_greeted() {
            // The peer reads a preamble first, whatever follows.
            let preamble = Preamble { version: WIRE_VERSION, mandatory: 0, optional: 0 };
            self.writer.preamble(&preamble);
        }
        let reason = chain(error);
        let mut end = reason.len().min(MAX_REASON);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let reason = reason.get(..end).unwrap_or_default();
        if let Err(error) = self.record(tag, &[reason.as_bytes()], &[], until) {
            tracing::debug!("the other side could not be told: {}", chain(&error));
        }
    }
}

/// The peer's words, fit for a terminal.
fn clean(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let keep = |c: char| if c.is_control() && c != '\n' { '?' } else { c };
    text.chars().map(keep).collect()
}

fn stop_error(stop: Stop) -> Error {
    match stop {
        Stop::Abort => Error::Aborted,
        Stop::Shutdown => Error::Shutdown,
        Stop::GuestEnded(how) => Error::GuestEnded(how),
    }
}

/// The error that a request to give up stands for.
pub(super) fn stopped(stop: Stop) -> Error {
    stop_error(stop)
}
