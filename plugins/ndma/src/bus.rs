//! What the device needs from the world: memory by IOVA, and interrupts.
//!
//! The logic of the device is written over this trait, so that it is tested against a plain array
//! of bytes. In a VMM it is the host table of the plugin ABI.

use std::io;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use drogher_plugin_sdk::{DmaErrorKind, Host};

/// How long a write waits for another device that takes no more. Bounded far below
/// [`PARK_DEADLINE`](crate::worker::PARK_DEADLINE): who parks the worker waits for it.
const BUSY_PATIENCE: Duration = Duration::from_millis(50);
/// Between two tries.
const BUSY_PAUSE: Duration = Duration::from_micros(50);

/// An access that the IOMMU (or the host) did not let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Bytes that were transferred before the fault, from the start of the access.
    pub done: u64,
}

/// Guest memory by IOVA, and the two MSI-X vectors.
///
/// Used by the worker thread only, `spawn` apart. Memory model: an aligned access of 1, 2, 4 or 8 bytes is
/// single-copy atomic, the accesses of one thread are seen in order, and inside a longer access
/// there is no order.
pub trait Bus: Send + Sync + 'static {
    /// Fills `data` from guest memory at `iova`.
    ///
    /// # Errors
    /// [`Fault`] with the number of bytes at the front of `data` that are valid.
    fn read(&self, iova: u64, data: &mut [u8]) -> Result<(), Fault>;

    /// Writes `data` to guest memory at `iova`.
    ///
    /// # Errors
    /// [`Fault`] with the number of bytes at the front of `data` that were written.
    fn write(&self, iova: u64, data: &[u8]) -> Result<(), Fault>;

    /// Triggers an MSI-X vector. Mask and pending bits are the host's affair.
    fn irq(&self, vector: u16);

    /// The descriptor at hand is done: whatever was kept for it is given back.
    fn finish(&self) {}

    /// Starts a thread. If it panics, the device is declared broken: a worker has no caller to
    /// return an error to.
    ///
    /// # Errors
    /// The operating system's.
    fn spawn(&self, name: &str, work: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>>;
}

impl Bus for Host {
    fn read(&self, iova: u64, data: &mut [u8]) -> Result<(), Fault> {
        self.dma_read(iova, data).map_err(|error| Fault { done: error.done })
    }

    fn write(&self, iova: u64, data: &[u8]) -> Result<(), Fault> {
        let begin = Instant::now();
        let mut done = 0_u64;
        loop {
            let at = iova.saturating_add(done);
            let rest = usize::try_from(done).ok().and_then(|done| data.get(done..));
            let Err(error) = self.dma_write(at, rest.unwrap_or_default()) else { return Ok(()) };
            done = done.saturating_add(error.done);
            if error.kind != DmaErrorKind::Busy || begin.elapsed() >= BUSY_PATIENCE {
                return Err(Fault { done });
            }
            std::thread::sleep(BUSY_PAUSE);
        }
    }

    fn irq(&self, vector: u16) {
        // Refused only when the host has given the device up; nobody is left to tell then.
        let _ = Host::irq(self, vector);
    }

    fn spawn(&self, name: &str, work: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
        Host::spawn(self, name, work)
    }
}
