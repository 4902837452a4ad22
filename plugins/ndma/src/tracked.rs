//! The worker's way to memory: plain, logged or pinned, as the parameters say.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use drogher_plugin_sdk::{Host, PinAccess, PinError, PinnedMemory};

use crate::bus::{Bus, Fault};
use crate::log::Log;
use crate::params::{LogWay, PinWay, Ways};

/// With `pin=some`, writes of at least so many bytes are pinned.
pub const PINNED_FROM: usize = 4096;

/// Memory that is pinned to be written to. Given back when it is dropped.
pub trait Pinned: Send {
    /// Where its first byte lies in the guest's physical address space.
    fn gpa(&self) -> u64;

    /// Writes `data`, at most what was pinned, from the first byte on.
    fn write(&self, data: &[u8]);
}

/// Further ways to memory, of a host that has them.
pub trait Port: Bus {
    /// As [`Bus::write`], and says where each run landed, after the store.
    ///
    /// # Errors
    /// As there; what was written before was said.
    fn write_logged(
        &self,
        iova: u64,
        data: &[u8],
        landed: &mut dyn FnMut(Range<u64>),
    ) -> Result<(), Fault>;

    /// Pins up to `len` bytes at `iova` for writing, as many as lie together, and says how many.
    ///
    /// # Errors
    /// The first one cannot be had.
    fn pin(&self, iova: u64, len: usize) -> Result<(Box<dyn Pinned>, usize), Fault>;
}

impl Pinned for PinnedMemory {
    fn gpa(&self) -> u64 {
        Self::gpa(self)
    }

    fn write(&self, data: &[u8]) {
        // It fits: no more was pinned than is written.
        let _ = Self::write(self, 0, data);
    }
}

impl Port for Host {
    fn write_logged(
        &self,
        iova: u64,
        data: &[u8],
        landed: &mut dyn FnMut(Range<u64>),
    ) -> Result<(), Fault> {
        self.dma_write_logged(iova, data, landed).map_err(|error| Fault { done: error.done })
    }

    fn pin(&self, iova: u64, len: usize) -> Result<(Box<dyn Pinned>, usize), Fault> {
        let mut bytes = len as u64;
        // A second time, for what lies together; that may have changed, but not for ever.
        for _ in 0..8 {
            match Host::pin(self, iova, bytes, PinAccess::Write) {
                Ok(memory) => {
                    let pinned = memory.len().min(len);
                    return Ok((Box::new(memory), pinned));
                }
                Err(PinError::Short(possible)) if (1..bytes).contains(&possible) => {
                    bytes = possible
                }
                Err(_) => break,
            }
        }
        Err(Fault { done: 0 })
    }
}

/// A bus whose writes go the ways chosen. What it pins it gives back at [`Bus::finish`].
pub struct Tracked<P> {
    port: P,
    ways: Ways,
    log: Arc<Log>,
    held: Mutex<Vec<Box<dyn Pinned>>>,
}

impl<P: Port> Tracked<P> {
    /// Over a port; `log` is marked if it runs.
    pub fn new(port: P, ways: Ways, log: Arc<Log>) -> Self {
        Self { port, ways, log, held: Mutex::default() }
    }

    fn write_pinned(&self, iova: u64, data: &[u8]) -> Result<(), Fault> {
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            let fault = |_| Fault { done: done as u64 };
            let at = iova.checked_add(done as u64).ok_or(Fault { done: done as u64 })?;
            let (memory, len) = self.port.pin(at, rest.len()).map_err(fault)?;
            let part = rest.get(..len.max(1)).unwrap_or(rest);
            let gpa = memory.gpa();
            let mark = || self.log.mark(&(gpa..gpa.saturating_add(part.len() as u64)));
            if crate::mutant("log-bit-before-store") {
                mark();
                memory.write(part);
            } else {
                memory.write(part);
                mark();
            }
            done += part.len();
            self.held.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
        }
        Ok(())
    }
}

impl<P: Port> Bus for Tracked<P> {
    fn read(&self, iova: u64, data: &mut [u8]) -> Result<(), Fault> {
        self.port.read(iova, data)
    }

    fn write(&self, iova: u64, data: &[u8]) -> Result<(), Fault> {
        let pinned = match self.ways.pin {
            PinWay::Off => false,
            PinWay::Some => data.len() >= PINNED_FROM,
            PinWay::All => true,
        };
        if pinned {
            self.write_pinned(iova, data)
        } else if self.ways.log == LogWay::Off {
            self.port.write(iova, data)
        } else {
            self.port.write_logged(iova, data, &mut |run| self.log.mark(&run))
        }
    }

    fn irq(&self, vector: u16) {
        self.port.irq(vector);
    }

    fn finish(&self) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn spawn(&self, name: &str, work: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
        self.port.spawn(name, work)
    }
}

#[cfg(test)]
#[path = "tracked_test.rs"]
mod tests;
