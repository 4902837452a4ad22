//! The host bridge at 00:00.0: it makes guests believe in bus 0 and does nothing else.

use std::sync::{Mutex, PoisonError};

use super::bus::Function;
use super::codec::{Reader, StateError, Writer};
use super::config::{ConfigError, ConfigSpace, Identity};

/// Vendor ID of our own devices; not assigned to anyone.
pub const VENDOR: u16 = 0xd70e;
/// Device ID of the host bridge.
pub const HOST_BRIDGE_DEVICE: u16 = 0x00ff;
/// Class 06 (bridge), subclass 00 (host).
pub const HOST_BRIDGE_CLASS: u32 = 0x06_0000;

/// A host bridge without BARs or capabilities.
#[derive(Debug)]
pub struct HostBridge {
    config: Mutex<ConfigSpace>,
}

impl HostBridge {
    /// A host bridge after power-on.
    ///
    /// # Errors
    /// None in practice: the header is a constant.
    pub fn new() -> Result<Self, ConfigError> {
        let identity = Identity {
            vendor: VENDOR,
            device: HOST_BRIDGE_DEVICE,
            class: HOST_BRIDGE_CLASS,
            ..Identity::default()
        };
        Ok(Self { config: Mutex::new(ConfigSpace::new(&identity, &[])?) })
    }

    /// Back to power-on.
    pub fn reset(&self) {
        self.lock().reset();
    }

    /// Appends the state to `out`.
    pub fn save(&self, out: &mut Writer) {
        self.lock().save(out);
    }

    /// Checks a saved state without taking it; the result goes to [`accept`](Self::accept).
    ///
    /// # Errors
    /// [`StateError`].
    pub fn parse(&self, from: &mut Reader<'_>) -> Result<ConfigSpace, StateError> {
        let mut staged = self.lock().clone();
        staged.load(from)?;
        Ok(staged)
    }

    /// Takes a state that [`parse`](Self::parse) gave.
    pub fn accept(&self, staged: ConfigSpace) {
        *self.lock() = staged;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, ConfigSpace> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Function for HostBridge {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.lock().read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        // Nothing is behind its command bits.
        self.lock().write(offset, data);
    }
}
