//! What the device needs from the world: memory by IOVA, interrupts, and frames.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use drogher_plugin_sdk::{FRAME_MAX, Host, PageLog};

/// An access that was not let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault;

/// The world. An aligned access of 1, 2, 4 or 8 bytes is single-copy atomic, those of one thread are seen
/// in order.
pub trait Bus: Send + Sync + 'static {
    /// Fills `data` from guest memory.
    ///
    /// # Errors
    /// Not all of it could be read.
    fn read(&self, iova: u64, data: &mut [u8]) -> Result<(), Fault>;
    /// Writes to guest memory.
    ///
    /// # Errors
    /// Not all of it could be written.
    fn write(&self, iova: u64, data: &[u8]) -> Result<(), Fault>;
    /// Triggers an MSI-X vector.
    fn irq(&self, vector: u16);
    /// Sends a frame of good length; it may be lost.
    fn send(&self, frame: &[u8]);
    /// Takes the first frame that waits at the port.
    fn receive(&self) -> Option<Vec<u8>>;
    /// Waits until a frame may be there, for [`wake`](Self::wake), or a second at most.
    fn wait(&self);
    /// Ends a wait, or the next one.
    fn wake(&self);
    /// Starts a thread.
    ///
    /// # Errors
    /// The operating system's.
    fn spawn(&self, name: &str, work: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>>;
}

/// The host, with the device's own log if it keeps one.
pub struct HostBus {
    host: Host,
    log: Option<Arc<PageLog>>,
    /// Room for the longest frame.
    room: Mutex<Vec<u8>>,
}

impl HostBus {
    /// Writes are marked in `log`.
    #[must_use]
    pub fn new(host: Host, log: Option<Arc<PageLog>>) -> Self {
        Self { host, log, room: Mutex::new(vec![0; FRAME_MAX]) }
    }
}

impl Bus for HostBus {
    fn read(&self, iova: u64, data: &mut [u8]) -> Result<(), Fault> {
        self.host.dma_read(iova, data).map_err(|_| Fault)
    }

    fn write(&self, iova: u64, data: &[u8]) -> Result<(), Fault> {
        let written = match &self.log {
            None => self.host.dma_write(iova, data),
            Some(log) => self.host.dma_write_logged(iova, data, |run| log.mark(&run)),
        };
        written.map_err(|_| Fault)
    }

    fn irq(&self, vector: u16) {
        // Refused only where the guest has named no vector, or the host has given the device up.
        let _ = self.host.irq(vector);
    }

    fn send(&self, frame: &[u8]) {
        // A frame may be lost.
        let _ = self.host.net_send(0, frame);
    }

    fn receive(&self) -> Option<Vec<u8>> {
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        let len = self.host.net_receive(0, &mut room).ok().flatten()?;
        // No more than it needs: hundreds may be in the device's hands.
        room.get(..len).map(<[u8]>::to_vec)
    }

    fn wait(&self) {
        if self.host.net_wait(1, Duration::from_secs(1)).is_err() {
            // A host without ports, or one that has given the device up: no reason to spin.
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn wake(&self) {
        self.host.net_wake();
    }

    fn spawn(&self, name: &str, work: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
        self.host.spawn(name, work)
    }
}
