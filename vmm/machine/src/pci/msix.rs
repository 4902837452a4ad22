//! MSI-X: table, masks and pending bits of one function (PCI Local Bus 3.0 section 6.8.2).
//!
//! A device only asks for a vector. Whether that becomes a message, a pending bit or nothing is
//! decided here, so a masked vector is never signalled into an unrouted irqfd, which would swallow
//! it. The owner serialises all calls (one mutex); a [`MsixSink`] must not call back.

use drogher_iommu_types::mutant;
use thiserror::Error;

use super::codec::{Reader, StateError, Writer};
use super::regs::{MSIX_ENTRY_SIZE, MSIX_MAX_VECTORS, MSIX_VECTOR_MASKED};

/// What a vector writes, and where: the low 64 and the next 32 bits of its table entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsixMessage {
    /// Address of the write.
    pub address: u64,
    /// Value written.
    pub data: u32,
}

/// A message that could not be routed or delivered.
#[derive(Debug, Error)]
pub enum RouteRefused {
    /// The address is not one that interrupt controllers listen to.
    #[error(
        "Vector {vector} has message address {address:#x}, which no interrupt controller takes"
    )]
    Address {
        /// The vector.
        vector: u16,
        /// The message's address.
        address: u64,
    },
    /// The table has a vector that the sink does not know.
    #[error("Vector {vector} has no line")]
    NoLine {
        /// The vector.
        vector: u16,
    },
    /// The machine said no.
    #[error("Vector {vector} could not be {what}")]
    Machine {
        /// The vector.
        vector: u16,
        /// "routed" or "signalled".
        what: &'static str,
        /// The machine's answer.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Where messages go. Called with the table's lock held: must not call into the table.
pub trait MsixSink {
    /// From now on, [`signal`](Self::signal) of each of these vectors delivers its message. All in
    /// one call, because an update of a routing table costs the same for one as for many.
    ///
    /// # Errors
    /// [`RouteRefused`] if one of them cannot be delivered; then none was changed.
    fn route(&self, routes: &[(u16, MsixMessage)]) -> Result<(), RouteRefused>;

    /// Delivers the routed message of `vector`.
    ///
    /// # Errors
    /// [`RouteRefused`] if it could not be delivered.
    fn signal(&self, vector: u16) -> Result<(), RouteRefused>;
}

/// What became of a request for a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// The message was sent.
    Sent,
    /// The vector is masked (or interrupts are held): its pending bit is set.
    Pending,
    /// MSI-X or bus mastering is off, the vector does not exist, or its message leads nowhere.
    Dropped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    message: MsixMessage,
    masked: bool,
}

const RESET: Entry = Entry { message: MsixMessage { address: 0, data: 0 }, masked: true };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Unset,
    To(MsixMessage),
    Refused(MsixMessage),
}

/// How many requests took which way, since the table was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsixCounts {
    /// Messages sent.
    pub sent: u64,
    /// Requests that set a pending bit.
    pub pended: u64,
    /// Requests that came to nothing.
    pub dropped: u64,
}

/// Table, masks and pending bits.
#[derive(Debug)]
pub struct MsixTable {
    entries: Vec<Entry>,
    pending: Vec<u64>,
    routes: Vec<Route>,
    enabled: bool,
    function_masked: bool,
    bus_master: bool,
    connected: bool,
    counts: MsixCounts,
}

impl MsixTable {
    /// A table of `vectors` (at most 2048; more are cut) masked entries, connected, MSI-X off.
    #[must_use]
    pub fn new(vectors: u16) -> Self {
        let vectors = usize::from(vectors.min(MSIX_MAX_VECTORS));
        Self {
            entries: vec![RESET; vectors],
            pending: vec![0; vectors.div_ceil(64)],
            routes: vec![Route::Unset; vectors],
            enabled: false,
            function_masked: false,
            bus_master: false,
            connected: true,
            counts: MsixCounts::default(),
        }
    }

    /// Number of vectors.
    #[must_use]
    pub fn vectors(&self) -> u16 {
        u16::try_from(self.entries.len()).unwrap_or(MSIX_MAX_VECTORS)
    }

    /// What requests have come to.
    #[must_use]
    pub const fn counts(&self) -> MsixCounts {
        self.counts
    }

    /// Back to power-on: all masked, nothing pending. Control bits follow by
    /// [`set_control`](Self::set_control).
    pub fn reset(&mut self) {
        self.entries.fill(RESET);
        self.pending.fill(0);
    }

    /// A device asks for `vector`.
    pub fn trigger(&mut self, vector: u16, sink: &dyn MsixSink) -> Trigger {
        let index = usize::from(vector);
        let outcome = match self.entries.get(index) {
            None => Trigger::Dropped,
            Some(_) if !self.enabled || !self.bus_master => Trigger::Dropped,
            Some(entry) if entry.masked || self.function_masked || !self.connected => {
                self.set_pending(index, true);
                Trigger::Pending
            }
            Some(_) => return self.send(vector, sink),
        };
        match outcome {
            Trigger::Pending => self.counts.pended += 1,
            _ => self.counts.dropped += 1,
        }
        outcome
    }

    /// Follows the capability's enable and function-mask bits and the command register.
    pub fn set_control(
        &mut self,
        enabled: bool,
        function_masked: bool,
        bus_master: bool,
        sink: &dyn MsixSink,
    ) {
        (self.enabled, self.function_masked, self.bus_master) =
            (enabled, function_masked, bus_master);
        self.refresh_all(sink);
    }

    /// Holds interrupts: until [`connect`](Self::connect), a request sets its pending bit.
    pub fn disconnect(&mut self) {
        self.connected = false;
        self.routes.fill(Route::Unset);
    }

    /// The sink works (again): routes what is unmasked and delivers what waited for it.
    pub fn connect(&mut self, sink: &dyn MsixSink) {
        self.connected = true;
        self.routes.fill(Route::Unset);
        self.refresh_all(sink);
    }

    /// Reads from the table; bytes past the end are 0. Any size, any alignment.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(addresses(offset)) {
            let entry = usize::try_from(at / MSIX_ENTRY_SIZE).ok();
            let raw = entry.and_then(|index| self.entries.get(index)).map(Entry::raw);
            *byte = raw.map_or(0, |raw| raw.to_le_bytes()[(at % MSIX_ENTRY_SIZE) as usize]);
        }
    }

    /// Writes to the table. Only aligned writes of 4 or 8 bytes are defined by the specification;
    /// others are ignored. Unmasking, or changing the message of an unmasked vector, sets its route
    /// and delivers what is pending.
    pub fn write_table(&mut self, offset: u64, data: &[u8], sink: &dyn MsixSink) {
        let len = data.len() as u64;
        if !matches!(len, 4 | 8) || !offset.is_multiple_of(len) {
            return;
        }
        let Ok(vector) = u16::try_from(offset / MSIX_ENTRY_SIZE) else {
            return;
        };
        let Some(entry) = self.entries.get_mut(usize::from(vector)) else {
            return;
        };
        let mut raw = entry.raw().to_le_bytes();
        for (to, from) in raw.iter_mut().skip((offset % MSIX_ENTRY_SIZE) as usize).zip(data) {
            *to = *from;
        }
        *entry = Entry::from_raw(u128::from_le_bytes(raw));
        self.refresh(vector, sink);
    }

    /// Reads pending bits; bytes past the end are 0. Any size, any alignment. They cannot be written.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(addresses(offset)) {
            let word = usize::try_from(at / 8).ok().and_then(|index| self.pending.get(index));
            *byte = word.map_or(0, |word| word.to_le_bytes()[(at % 8) as usize]);
        }
    }

    /// True if the pending bit of `vector` is set.
    #[must_use]
    pub fn is_pending(&self, vector: u16) -> bool {
        let word = self.pending.get(usize::from(vector / 64));
        word.is_some_and(|word| word >> (vector % 64) & 1 == 1)
    }

    /// Appends entries and pending bits to `out`. The control bits are configuration space's.
    pub fn save(&self, out: &mut Writer) {
        out.u16(self.vectors());
        for entry in &self.entries {
            out.bytes(&entry.raw().to_le_bytes());
        }
        for word in &self.pending {
            out.u64(if mutant!("masked-pending-dropped") { 0 } else { *word });
        }
    }

    /// Takes what [`save`](Self::save) wrote. `self` is untouched if it is refused; nothing is routed
    /// or delivered before the next [`connect`](Self::connect) or
    /// [`set_control`](Self::set_control).
    ///
    /// # Errors
    /// [`StateError`]: another number of vectors, a reserved bit set, a pending bit of no vector.
    pub fn load(&mut self, from: &mut Reader<'_>) -> Result<(), StateError> {
        from.same_u16("MSI-X vectors", self.vectors())?;
        let mut entries = Vec::with_capacity(self.entries.len());
        for _ in &self.entries {
            let raw = from.u128("MSI-X entry")?;
            let entry = Entry::from_raw(raw);
            if entry.raw() != raw {
                let found = (raw >> 96) as u64;
                let (field, expected) = ("MSI-X vector control", "only bit 0");
                return Err(StateError::Invalid { field, found, expected });
            }
            entries.push(entry);
        }
        let mut pending = Vec::with_capacity(self.pending.len());
        for index in 0..self.pending.len() {
            let found = from.u64("MSI-X pending bits")?;
            let valid = self.entries.len() - 64 * index;
            if valid < 64 && found >> valid != 0 {
                let (field, expected) = ("MSI-X pending bits", "bits of existing vectors only");
                return Err(StateError::Invalid { field, found, expected });
            }
            pending.push(found);
        }
        self.entries = entries;
        self.pending = pending;
        self.routes.fill(Route::Unset);
        Ok(())
    }

    fn refresh_all(&mut self, sink: &dyn MsixSink) {
        let all = 0..self.vectors();
        let stale = all.clone().filter(|&vector| self.is_open(vector)).filter_map(|vector| {
            let message = self.entries.get(usize::from(vector))?.message;
            let route = self.routes.get(usize::from(vector))?;
            (!matches!(route, Route::To(now) | Route::Refused(now) if *now == message))
                .then_some((vector, message))
        });
        let stale: Vec<_> = stale.collect();
        // One bad message must not cost the others their route: then each is tried alone below.
        if !stale.is_empty() && sink.route(&stale).is_ok() {
            for (vector, message) in stale {
                if let Some(route) = self.routes.get_mut(usize::from(vector)) {
                    *route = Route::To(message);
                }
            }
        }
        for vector in all {
            self.refresh(vector, sink);
        }
    }

    /// True if a request for `vector` would be sent now.
    fn is_open(&self, vector: u16) -> bool {
        let open = self.enabled && !self.function_masked && self.bus_master && self.connected;
        open && self.entries.get(usize::from(vector)).is_some_and(|entry| !entry.masked)
    }

    /// If `vector` may send now: sets its route, and sends if it is pending.
    fn refresh(&mut self, vector: u16, sink: &dyn MsixSink) {
        let index = usize::from(vector);
        if !self.is_open(vector) {
            return;
        }
        if self.is_pending(vector) {
            self.set_pending(index, false);
            self.send(vector, sink);
        } else {
            self.ensure_route(vector, sink);
        }
    }

    fn send(&mut self, vector: u16, sink: &dyn MsixSink) -> Trigger {
        let sent = self.ensure_route(vector, sink)
            && sink.signal(vector).map_err(|error| warn_undelivered(&error)).is_ok();
        if sent {
            self.counts.sent += 1;
            Trigger::Sent
        } else {
            self.counts.dropped += 1;
            Trigger::Dropped
        }
    }

    /// True if the sink's route of `vector` is its entry's message.
    fn ensure_route(&mut self, vector: u16, sink: &dyn MsixSink) -> bool {
        let index = usize::from(vector);
        let (Some(entry), Some(route)) = (self.entries.get(index), self.routes.get_mut(index))
        else {
            return false;
        };
        let message = entry.message;
        if *route == Route::To(message) {
            return true;
        }
        if *route == Route::Refused(message) {
            return false;
        }
        match sink.route(&[(vector, message)]) {
            Ok(()) => *route = Route::To(message),
            Err(error) => {
                warn_undelivered(&error);
                *route = Route::Refused(message);
            }
        }
        *route == Route::To(message)
    }

    fn set_pending(&mut self, index: usize, on: bool) {
        if let Some(word) = self.pending.get_mut(index / 64) {
            let bit = 1 << (index % 64);
            *word = if on { *word | bit } else { *word & !bit };
        }
    }
}

impl Entry {
    fn raw(&self) -> u128 {
        let control = if self.masked { MSIX_VECTOR_MASKED } else { 0 };
        u128::from(self.message.address)
            | u128::from(self.message.data) << 64
            | u128::from(control) << 96
    }

    const fn from_raw(raw: u128) -> Self {
        Self {
            message: MsixMessage { address: raw as u64, data: (raw >> 64) as u32 },
            masked: (raw >> 96) as u32 & MSIX_VECTOR_MASKED != 0,
        }
    }
}

/// `offset` and what follows it; past the last address, the last one for ever.
fn addresses(offset: u64) -> impl Iterator<Item = u64> {
    (0..).map(move |index| offset.saturating_add(index))
}

fn warn_undelivered(error: &RouteRefused) {
    tracing::debug!(error = error as &dyn std::error::Error, "MSI-X message not delivered");
}

#[cfg(test)]
#[path = "msix_test.rs"]
mod tests;
