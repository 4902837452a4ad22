//! DMA of one device to another's BAR: who may write to whom, and the grace phase that waits for it.
//!
//! ```text
//! device A: write --> second stage: not mapped --> plugin host's gate (state, NDMA)
//!           --> Peers: whose BAR, allowed? --> Inbox of B --> its thread --> B: region_write, doorbell
//! ```
//!
//! Who may write to whom is said by `vm.peers`; by default nobody may. A device never reaches its own BARs, nor anybody's MSI-X table.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use drogher_iommu_types::{Patience, mutant};
use drogher_migrate::{Blocker, BlockerCode};
use drogher_plugin_host::{PeerWrite, State};

use super::error::DeviceError;
use super::function::PciDevice;
use super::inbox::{Inbox, PeerCounts, Post};
use super::irq::MSIX_BAR;
use super::mmio::MmioMap;
use super::set::DeviceSet;

/// Longest grace phase. A device that answers at all needs milliseconds, one that does not is in ERROR
/// by then, and its queue empty.
const GRACE: Duration = Duration::from_secs(5);

/// Longest wait for a delivery thread at the end of a set.
const END: Duration = Duration::from_secs(5);

/// Which devices reach which, by slot.
pub struct Peers {
    map: Arc<MmioMap>,
    /// From, to; and the queue of `to`.
    routes: RwLock<BTreeMap<(u8, u8), Arc<Inbox>>>,
}

impl Peers {
    /// Nobody reaches anybody.
    pub fn new(map: Arc<MmioMap>) -> Arc<Self> {
        Arc::new(Self { map, routes: RwLock::default() })
    }

    /// A write of the device in slot `from` to a GPA without memory. Waits for nothing, calls nobody.
    pub fn write(&self, from: u8, gpa: u64, data: &[u8]) -> PeerWrite {
        match self.map.place(gpa, data.len().max(1)) {
            Some((to, bar, offset)) if to != from && bar != MSIX_BAR => {
                let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
                let inbox = routes.get(&(from, to));
                inbox.map_or(PeerWrite::NotAllowed, |inbox| inbox.post(bar, offset, data))
            }
            _ => PeerWrite::NotAPeer,
        }
    }

    fn allow(&self, from: u8, to: u8, inbox: Arc<Inbox>) {
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        routes.insert((from, to), inbox);
    }

    fn sends(&self, from: u8) -> bool {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        routes.keys().any(|(other, _)| *other == from)
    }
}

impl PciDevice {
    /// Does a write of another device; says whether this one took all of it.
    pub(super) fn deliver(&self, post: &Post) -> bool {
        let mut all = true;
        for (offset, access) in post.accesses() {
            all &= self.write_bar(post.bar, offset, access).is_ok();
            if self.state() == State::Error {
                return false;
            }
        }
        all
    }

    /// What other devices have written to it.
    #[must_use]
    pub fn peer_counts(&self) -> PeerCounts {
        self.inbox.get().map(|inbox| inbox.counts()).unwrap_or_default()
    }

    /// It did not come up, and takes nothing of others.
    pub(super) fn no_peers(&self) {
        if let Some(inbox) = self.inbox.get() {
            inbox.drop_all(true);
        }
    }

    /// Writes of others that it has not got.
    pub(super) fn undelivered(&self) -> Result<(), DeviceError> {
        match self.inbox.get().map_or(0, |inbox| inbox.waiting()) {
            0 => Ok(()),
            writes => Err(DeviceError::Undelivered { device: self.label().into(), writes }),
        }
    }

    /// Its queue, made if it has none yet.
    fn make_inbox(&self) -> Result<Arc<Inbox>, DeviceError> {
        let _life = self.life();
        if let Some(inbox) = self.inbox.get() {
            return Ok(Arc::clone(inbox));
        }
        let inbox = Inbox::start(self.label(), self.this());
        let inbox = inbox
            .map_err(|source| DeviceError::PeerThread { device: self.label().into(), source })?;
        if self.state().runs() {
            inbox.open();
        }
        // Nobody else makes one while we hold `life`.
        let _ = self.inbox.set(Arc::clone(&inbox));
        Ok(inbox)
    }
}

impl DeviceSet {
    /// Lets device `from` write to the BARs of device `to`, in this direction only. Both ends of a
    /// migration should allow the same.
    ///
    /// # Errors
    /// There is no such device, they are one and the same, or no thread is to be had.
    pub fn allow_peer(&self, from: usize, to: usize) -> Result<(), DeviceError> {
        let (from, to) = (self.device(from)?, self.device(to)?);
        if from.slot() == to.slot() {
            return Err(DeviceError::OwnPeer { device: from.label().into() });
        }
        self.peers().allow(from.slot(), to.slot(), to.make_inbox()?);
        Ok(())
    }

    /// Allows what `vm.peers` of each device says.
    pub(super) fn allow_named(&self) -> Result<(), DeviceError> {
        for (from, device) in self.devices().iter().enumerate() {
            for name in &device.keys().peers {
                let named = |other: &Arc<PciDevice>| other.name() == Some(name.as_str());
                let to = self.devices().iter().position(named);
                let to = to.ok_or_else(|| self.no_peer(device, name))?;
                self.allow_peer(from, to)?;
            }
        }
        Ok(())
    }

    fn no_peer(&self, device: &PciDevice, name: &str) -> DeviceError {
        let names: Vec<_> = self.devices().iter().filter_map(|other| other.name()).collect();
        let known = if names.is_empty() { "none".into() } else { names.join(", ") };
        DeviceError::NoPeer { device: device.label().into(), name: name.into(), known }
    }

    /// The grace phase: waits until all that devices have sent each other has arrived. All are in P2P,
    /// so that no more comes.
    ///
    /// # Errors
    /// A device that has not got all within the deadline, by name.
    pub(super) fn grace(&self) -> Result<(), DeviceError> {
        if mutant!("no-grace-phase") {
            return Ok(());
        }
        self.grace_of(GRACE)
    }

    /// [`grace`](Self::grace) of another length.
    pub(super) fn grace_of(&self, longest: Duration) -> Result<(), DeviceError> {
        let mut patience = Patience::new(longest);
        super::phases::all(self.devices(), |device| {
            let settled = device.inbox.get().map_or(Ok(()), |inbox| inbox.settle(&mut patience));
            settled.map_err(|writes| DeviceError::Grace {
                device: device.label().into(),
                writes,
                longest,
            })
        })
    }

    /// Devices that may write to others, and cannot be kept from it while these still answer.
    pub(super) fn peer_blockers(&self) -> Vec<Blocker> {
        let unkept = |device: &&Arc<PciDevice>| {
            let p2p = device.shape().migration.is_none_or(|migration| migration.p2p);
            !p2p && self.peers().sends(device.slot())
        };
        let blocker = |device: &Arc<PciDevice>| {
            let reason = "it may write to other devices, and its plugin has no P2P states";
            let hint = "start the guest without its vm.peers, or use a plugin that has them";
            Blocker::new(BlockerCode::NotMigratable, reason, hint).about(device.label())
        };
        self.devices().iter().filter(unkept).map(blocker).collect()
    }

    /// Ends all delivery threads.
    pub(super) fn end_peers(&self) {
        for device in self.devices() {
            if device.inbox.get().is_some_and(|inbox| inbox.end(END).is_err()) {
                tracing::warn!(device = device.label(), "its delivery thread has not ended");
            }
        }
    }
}

#[cfg(test)]
#[path = "peer_test.rs"]
mod tests;
