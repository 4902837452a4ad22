//! Doorbells of one function: an eventfd each, rung by KVM at the BAR's address, or by an exit.
//!
//! Whichever way a write comes, it goes through the eventfd, and the I/O thread calls the device. So
//! parking that thread and then reading the eventfds out finds every ring that the device has not
//! seen.

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use drogher_iommu_types::mutant;
use drogher_plugin_host::Doorbell as Place;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::endpoint::Endpoint;
use super::error::DeviceError;
use crate::io_thread::{Interest, Next, WatchId};
use crate::wiring::{DoorbellAt, Wiring};

struct Bell {
    place: Place,
    fd: Arc<EventFd>,
    /// Rung and read out, but not seen by the device: replayed when it runs.
    pending: Arc<AtomicBool>,
    /// Where KVM rings it.
    at: Mutex<Option<DoorbellAt>>,
    watch: Option<WatchId>,
}

/// All doorbells of one function.
pub struct Doorbells {
    device: String,
    bells: Vec<Bell>,
    wiring: Arc<dyn Wiring>,
}

impl Doorbells {
    /// Makes the eventfds and has the I/O thread watch them.
    ///
    /// # Errors
    /// No file descriptor, or the I/O thread does not answer.
    pub fn new(
        device: &str,
        endpoint: &Arc<dyn Endpoint>,
        wiring: &Arc<dyn Wiring>,
    ) -> Result<Self, DeviceError> {
        let mut doorbells =
            Self { device: device.into(), bells: Vec::new(), wiring: Arc::clone(wiring) };
        for (index, place) in endpoint.shape().info.doorbells.iter().enumerate() {
            let bell = doorbells.bell(index, *place, endpoint)?;
            doorbells.bells.push(bell);
        }
        Ok(doorbells)
    }

    fn bell(
        &self,
        index: usize,
        place: Place,
        endpoint: &Arc<dyn Endpoint>,
    ) -> Result<Bell, DeviceError> {
        let no_fd = |source| DeviceError::Eventfd { device: self.device.clone(), index, source };
        let fd = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(no_fd)?);
        let watched = duplicate(&fd).map_err(no_fd)?;
        let pending = Arc::new(AtomicBool::new(false));
        let (device, endpoint) = (self.device.clone(), Arc::clone(endpoint));
        let (rung, kept) = (Arc::clone(&fd), Arc::clone(&pending));
        let handler = move || {
            if rung.read().is_ok() && !ring(&device, endpoint.as_ref(), index) {
                kept.store(true, Ordering::Release);
                // It may have begun to run in the meantime, and been told of what it had missed.
                if endpoint.state().runs() && kept.swap(false, Ordering::AcqRel) {
                    ring(&device, endpoint.as_ref(), index);
                }
            }
            Next::Keep
        };
        let watch = self.wiring.io().add(watched, Interest::Read, Box::new(handler));
        let watch = watch.map_err(|source| DeviceError::Watch {
            device: self.device.clone(),
            index,
            source,
        })?;
        Ok(Bell { place, fd, pending, at: Mutex::new(None), watch: Some(watch) })
    }

    /// Number of doorbells.
    pub fn len(&self) -> usize {
        self.bells.len()
    }

    /// A write that left the guest: rings if it is one to a doorbell, and says whether it was.
    pub fn write(&self, bar: u8, offset: u64, len: usize) -> bool {
        let hit = self.bells.iter().find(|bell| {
            let Place { region, offset: at, width } = bell.place;
            region == u32::from(bar) && at == offset && usize::try_from(width) == Ok(len)
        });
        let Some(bell) = hit else { return false };
        // EAGAIN: the counter is full, so it has been rung.
        let _ = bell.fd.write(1);
        true
    }

    /// Has KVM ring at the addresses where the BARs are now; `base` is that of a decoded BAR. An
    /// address that KVM refuses (another device's doorbell is there) is rung by exits instead.
    pub fn remap(&self, base: impl Fn(u8) -> Option<u64>) {
        let wanted = |bell: &Bell| {
            let bar = u8::try_from(bell.place.region).ok()?;
            let address = base(bar)?.checked_add(bell.place.offset)?;
            Some(DoorbellAt { address, width: bell.place.width })
        };
        // First all out, then all in: two doorbells may change places.
        for bell in &self.bells {
            let mut at = bell.at.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(old) = *at
                && wanted(bell) != Some(old)
            {
                match self.wiring.unregister_ioeventfd(old, &bell.fd) {
                    Ok(()) => *at = None,
                    Err(error) => self.warn(&error, old),
                }
            }
        }
        for bell in &self.bells {
            let mut at = bell.at.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(new) = wanted(bell).filter(|_| at.is_none()) else { continue };
            match self.wiring.register_ioeventfd(new, &bell.fd) {
                Ok(()) => *at = Some(new),
                Err(error) => self.warn(&error, new),
            }
        }
    }

    /// Reads every eventfd out into [`pending`](Self::pending). To be called when the guest does not
    /// run and the I/O thread is parked: then no ring is left anywhere else.
    pub fn drain(&self) {
        for bell in &self.bells {
            if bell.fd.read().is_ok() && !mutant!("doorbell-dropped") {
                bell.pending.store(true, Ordering::Release);
            }
        }
    }

    /// Which doorbells wait to be replayed.
    pub fn pending(&self) -> Vec<bool> {
        self.bells.iter().map(|bell| bell.pending.load(Ordering::Acquire)).collect()
    }

    /// Sets which doorbells wait to be replayed.
    pub fn set_pending(&self, pending: &[bool]) {
        for (bell, pending) in self.bells.iter().zip(pending) {
            bell.pending.store(*pending, Ordering::Release);
        }
    }

    /// The device runs: it is told of the rings that it has missed.
    pub fn replay(&self, endpoint: &dyn Endpoint) {
        for (index, bell) in self.bells.iter().enumerate() {
            if bell.pending.swap(false, Ordering::AcqRel) {
                ring(&self.device, endpoint, index);
            }
        }
    }

    /// The device was reset: forgets every ring.
    pub fn forget(&self) {
        for bell in &self.bells {
            // EAGAIN: it was not rung.
            let _ = bell.fd.read();
            bell.pending.store(false, Ordering::Release);
        }
    }

    fn warn(&self, error: &crate::wiring::WiringError, at: DoorbellAt) {
        let error = error as &dyn std::error::Error;
        tracing::warn!(device = self.device, address = at.address, error, "doorbell not bound");
    }
}

impl Drop for Doorbells {
    fn drop(&mut self) {
        self.remap(|_| None);
        for watch in self.bells.iter_mut().filter_map(|bell| bell.watch.take()) {
            if let Err(error) = self.wiring.io().remove(watch) {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(device = self.device, error, "doorbell watch not removed");
            }
        }
    }
}

/// Tells the device; says whether it took it. One that did not is in ERROR, or in a state in which it
/// may not be told.
fn ring(device: &str, endpoint: &dyn Endpoint, index: usize) -> bool {
    let number = u32::try_from(index).unwrap_or(u32::MAX);
    let told = endpoint.doorbell(number);
    if let Err(error) = &told {
        let error = error.as_ref() as &dyn std::error::Error;
        tracing::debug!(device, index, error, "doorbell refused");
    }
    told.is_ok()
}

/// A second descriptor of the same eventfd, for epoll.
#[expect(unsafe_code, reason = "EventFd gives its descriptor away as a number only")]
fn duplicate(fd: &EventFd) -> std::io::Result<OwnedFd> {
    let raw = fd.try_clone()?.into_raw_fd();
    // SAFETY: `raw` is open, and its owner has just given it up.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}
