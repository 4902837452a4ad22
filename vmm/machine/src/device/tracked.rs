//! A device and its address space: what tracking is told of it, and of its NDMA.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use drogher_iommu_types::mutant;
use drogher_tracking::{Device, PinBoard};

use super::error::DeviceError;
use super::function::PciDevice;
use super::life::Life;
use crate::tracking::Subject;

/// Since when a device stands in early NDMA, and until when. Apart from the rest of its life, so that
/// whoever asks waits for no call into the device.
#[derive(Debug, Default)]
pub(super) struct Early(Mutex<Option<(Instant, Option<Instant>)>>);

impl Early {
    // Plain values, whole at any time.
    fn inner(&self) -> MutexGuard<'_, Option<(Instant, Option<Instant>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It stands from now on.
    fn begin(&self) {
        *self.inner() = Some((Instant::now(), None));
    }

    /// It goes on, if it stood.
    fn end(&self) {
        if let Some((_, until)) = &mut *self.inner() {
            until.get_or_insert_with(Instant::now);
        }
    }

    fn forget(&self) {
        *self.inner() = None;
    }

    fn stands(&self) -> bool {
        matches!(*self.inner(), Some((_, None)))
    }

    fn stood(&self) -> Option<Duration> {
        let (since, until) = (*self.inner())?;
        Some(until.unwrap_or_else(Instant::now).saturating_duration_since(since))
    }
}

impl PciDevice {
    /// What tracking has to know of it.
    pub fn subject(&self) -> Subject {
        Subject::new(self.rid(), self.keys(), self.shape(), self.endpoint.tracking())
    }

    /// What it pins on, if it pins.
    pub(crate) fn pin_board(&self) -> Option<Arc<PinBoard>> {
        self.endpoint.tracking().pin_board
    }

    fn tracking_error(
        &self,
        what: &'static str,
    ) -> impl FnOnce(drogher_tracking::SpaceError) -> DeviceError + use<> {
        let device = self.label().to_owned();
        move |source| DeviceError::Tracking { device, what, source: source.into() }
    }

    /// Tells the address space of it, before it does any DMA.
    pub(super) fn attach_tracking(&self) -> Result<(), DeviceError> {
        let tracking = self.endpoint.tracking();
        let device = Device {
            caps: self.subject().caps,
            log: tracking.log.map(|(_, log)| log),
            pins: tracking.pin_board,
        };
        let attached = self.space().tracked().attach(device);
        attached.map_err(self.tracking_error("into its address space"))
    }

    /// To NDMA, then counted as being there: it dirties nothing any more.
    pub(super) fn enter_ndma(&self, life: &mut Life) -> Result<(), DeviceError> {
        self.call("entering NDMA", self.endpoint.set_ndma(true))?;
        life.ndma = true;
        if mutant!("ndma-not-counted") {
            return Ok(());
        }
        let entered = self.space().tracked().ndma_entered(self.rid());
        entered.map_err(self.tracking_error("into NDMA"))?;
        life.counted = true;
        Ok(())
    }

    /// In STOP, or in ERROR: counted as one that dirties nothing any more, if it has not been. What it
    /// could write to is then sent once, and not again in the last harvest.
    pub(super) fn count_stopped(&self, life: &mut Life) -> Result<(), DeviceError> {
        if !life.counted && !mutant!("ndma-not-counted") {
            let stopped = self.space().tracked().stopped(self.rid());
            stopped.map_err(self.tracking_error("into STOP"))?;
            life.counted = true;
        }
        Ok(())
    }

    /// No longer counted as being in NDMA: before it may do DMA again.
    pub(super) fn count_out(&self, life: &mut Life) -> Result<(), DeviceError> {
        if std::mem::take(&mut life.counted) {
            let left = self.space().tracked().ndma_left(self.rid());
            left.map_err(self.tracking_error("out of NDMA"))?;
        }
        Ok(())
    }

    /// Out of NDMA, if it is in it, early or not.
    pub(super) fn leave_ndma(&self, life: &mut Life) -> Result<(), DeviceError> {
        self.count_out(life)?;
        if life.ndma {
            self.call("leaving NDMA", self.endpoint.set_ndma(false))?;
            life.ndma = false;
        }
        self.early.end();
        Ok(())
    }

    /// Enters NDMA while the others and the guest run on, until [`leave_early`](Self::leave_early)
    /// or the next start.
    pub(super) fn enter_early(&self) -> Result<(), DeviceError> {
        let mut life = self.life();
        self.alive()?;
        if !self.shape().ndma {
            return Err(DeviceError::NoNdma { device: self.label().into() });
        }
        // First: one that enters NDMA but is not counted there has to be let go all the same.
        self.early.begin();
        if life.ndma { Ok(()) } else { self.enter_ndma(&mut life) }
    }

    /// The migration was given up while the device runs.
    pub(super) fn leave_early(&self) -> Result<(), DeviceError> {
        let mut life = self.life();
        if !self.early.stands() {
            return Ok(());
        }
        if self.endpoint.failed().is_some() {
            // In ERROR it does no DMA, and leaves both by a reset.
            self.early.end();
            return self.count_out(&mut life);
        }
        self.leave_ndma(&mut life)
    }

    /// A migration begins: how long the device stood in an earlier one is forgotten.
    pub(super) fn forget_early(&self) {
        self.early.forget();
    }

    /// How long it has stood in early NDMA in this or the last migration.
    pub fn stood_early(&self) -> Option<Duration> {
        self.early.stood()
    }

    /// After a reset, which has ended NDMA, and once the device runs: back, if it is to stand.
    pub(super) fn reenter_early(&self, life: &mut Life) -> Result<(), DeviceError> {
        if self.early.stands() { self.enter_ndma(life) } else { Ok(()) }
    }
}
