//! A guest: a machine, the right to run it, and whether it runs.
//!
//! User requests (pause, resume) and a migration meet here, under one lock: while a migration has
//! the guest stopped, the user's requests are refused.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use drogher_migrate::{BlockerList, GuestEnd, LeaseError, Permits, VmId};

use crate::device::{DeviceError, DeviceParams, WireCounts, WireSpec};
use crate::events::GuestEvent;
use crate::machine::{Machine, MachineError};
use crate::tracking::{
    self, Choice, Explanation, TrackingControl, TrackingError, TrackingStatus, Wishes,
};

/// Longest time for the vCPUs to leave the guest. A vCPU that waits for a device's register
/// access comes back when the device's own deadline is over.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// Why a guest can't do what it is asked to.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// A part of the machine failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The devices could not be started.
    #[error("The devices cannot be started")]
    Devices(#[source] DeviceError),
    /// The lease gives no permit.
    #[error(transparent)]
    Lease(LeaseError),
    /// Its devices' tracking.
    #[error(transparent)]
    Tracking(Box<TrackingError>),
    /// It cannot be moved; every reason, one a line.
    #[error("This guest cannot be moved:\n{0}")]
    Blocked(BlockerList),
    /// A parameter of a device was not set.
    #[error(transparent)]
    Param(DeviceError),
    /// Not while it is being moved.
    #[error(
        "The guest is being moved, and the other side has its devices' parameters; try again later"
    )]
    Migrating,
    /// A migration has stopped it.
    #[error("The guest is stopped for the switchover of a migration; try again when it has ended")]
    Switching,
    /// It is paused already.
    #[error("The guest is paused already")]
    Paused,
    /// It is not paused.
    #[error("The guest is not paused")]
    NotPaused,
}

impl From<TrackingError> for GuestError {
    fn from(error: TrackingError) -> Self {
        Self::Tracking(Box::new(error))
    }
}

#[derive(Debug, Default)]
struct Run {
    permits: Option<Permits>,
    paused: bool,
    switching: bool,
}

/// A device, for people.
#[derive(Debug, Clone)]
pub struct DeviceView {
    /// Its PCI address.
    pub slot: String,
    /// The plugin's id.
    pub plugin: String,
    /// What the user calls it.
    pub name: Option<String>,
    /// Its VFIO v2 state.
    pub state: String,
    /// Why it is in ERROR, if it is.
    pub error: Option<String>,
    /// The wires in its Ethernet ports, and what became of their frames in this process.
    pub wires: Vec<(WireSpec, WireCounts)>,
}

/// A guest of this process. May be used from any thread.
#[derive(Debug)]
pub struct Guest {
    machine: Machine,
    tracking: TrackingControl,
    vm_id: VmId,
    lease_path: PathBuf,
    run: Mutex<Run>,
}

impl Guest {
    /// A guest that doesn't run yet.
    #[must_use]
    pub fn new(machine: Machine, vm_id: VmId, lease_path: PathBuf) -> Arc<Self> {
        let tracking = TrackingControl::measuring();
        Arc::new(Self { machine, tracking, vm_id, lease_path, run: Mutex::default() })
    }

    // Plain values, whole at any time: a panic elsewhere cannot have torn them.
    fn lock(&self) -> MutexGuard<'_, Run> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The tracking of its devices.
    #[must_use]
    pub fn tracking(&self) -> &TrackingControl {
        &self.tracking
    }

    /// Takes what the operator says of tracking at the start.
    ///
    /// # Errors
    /// It names devices that there are not.
    pub fn set_wishes(&self, wishes: &Wishes) -> Result<(), GuestError> {
        Ok(self.tracking.set_wishes(self.machine.devices(), wishes)?)
    }

    /// Plans the tracking of a migration with these `wishes` of its own. Nothing starts.
    ///
    /// # Errors
    /// `Blocked`: everything that stands against moving this guest away.
    pub fn prepare_tracking(&self, wishes: &Wishes) -> Result<(), GuestError> {
        let (devices, spaces) = (self.machine.devices(), self.machine.spaces());
        let refusals = self.tracking.prepare(devices, spaces, wishes).err().unwrap_or_default();
        let blockers = tracking::blockers(devices, &refusals);
        if blockers.is_empty() { Ok(()) } else { Err(GuestError::Blocked(BlockerList(blockers))) }
    }

    /// What would track its devices in a migration with these `wishes` of its own, and why.
    #[must_use]
    pub fn explain(&self, wishes: &Wishes) -> Explanation {
        self.tracking.explain(self.machine.devices(), wishes)
    }

    /// How the tracking of its devices stands.
    #[must_use]
    pub fn tracking_status(&self) -> TrackingStatus {
        self.tracking.status(self.machine.devices())
    }

    /// The figures of the last migration's tracking, or the present one's.
    #[must_use]
    pub fn tracking_report(&self) -> Option<TrackingStatus> {
        self.tracking.report(self.machine.devices())
    }

    /// From now on one device, or all, are tracked otherwise, also in a migration that is going on.
    ///
    /// # Errors
    /// In a switchover; or it cannot be done, and nothing has changed.
    pub fn switch_tracking(&self, device: Option<&str>, choice: Choice) -> Result<(), GuestError> {
        // Kept for the whole change: a switchover waits for it.
        let run = self.lock();
        if run.switching {
            return Err(GuestError::Switching);
        }
        Ok(self.tracking.switch(self.machine.devices(), device, choice)?)
    }

    /// The parameters of its devices.
    #[must_use]
    pub fn params(&self) -> Vec<DeviceParams> {
        self.machine.devices().params()
    }

    /// Sets a parameter of a device that lives.
    ///
    /// # Errors
    /// In a migration, whose other side has the parameters of its beginning; there is no such device,
    /// parameter or value.
    pub fn set_param(&self, device: &str, name: &str, value: &str) -> Result<(), GuestError> {
        let run = self.lock();
        if run.switching {
            return Err(GuestError::Switching);
        }
        if self.tracking.is_active() {
            return Err(GuestError::Migrating);
        }
        let set = self.machine.devices().set_param(device, name, value);
        set.map_err(GuestError::Param)
    }

    /// The VM's id.
    #[must_use]
    pub fn vm_id(&self) -> VmId {
        self.vm_id
    }

    /// Where the lease is.
    #[must_use]
    pub fn lease_path(&self) -> &Path {
        &self.lease_path
    }

    /// True if the user has paused it.
    #[must_use]
    pub fn paused(&self) -> bool {
        self.lock().paused
    }

    /// True while a migration has it stopped.
    #[must_use]
    pub fn switching(&self) -> bool {
        self.lock().switching
    }

    /// Waits for the guest to do something that concerns its owner.
    #[must_use]
    pub fn wait_event(&self, timeout: Duration) -> Option<GuestEvent> {
        self.machine.wait_event(timeout)
    }

    /// How the guest has ended by itself, if it has.
    #[must_use]
    pub fn has_ended(&self) -> Option<GuestEnd> {
        self.machine.vm().events().first().map(|event| match event {
            GuestEvent::Shutdown => GuestEnd::Shutdown,
            GuestEvent::Reset => GuestEnd::Reset,
            GuestEvent::TripleFault { .. } | GuestEvent::InternalError { .. } => GuestEnd::Crash,
        })
    }

    /// Number of vCPUs.
    #[must_use]
    pub fn cpus(&self) -> u32 {
        self.machine.cpus().into()
    }

    /// Guest RAM in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.machine.ram().bytes()
    }

    /// The devices in slot order.
    #[must_use]
    pub fn devices(&self) -> Vec<DeviceView> {
        let failed = self.machine.devices().failed();
        let views = self.machine.devices().devices().iter().map(|device| DeviceView {
            slot: device.rid().to_string(),
            plugin: device.shape().plugin.id.clone(),
            name: device.name().map(str::to_owned),
            state: device.state().to_string(),
            error: failed
                .iter()
                .find(|(label, _)| label == device.label())
                .map(|(_, why)| why.clone()),
            wires: device.wires(),
        });
        views.collect()
    }

    /// Starts devices and vCPUs, each with a permit of its own; with `paused`, the vCPUs stay
    /// parked until [`unpause`](Self::unpause).
    ///
    /// # Errors
    /// No permit is to be had, or KVM refuses.
    pub fn start(&self, permits: &Permits, paused: bool) -> Result<(), GuestError> {
        let mut run = self.lock();
        run.permits = Some(permits.clone());
        self.machine.unpark_io()?;
        let down = self.machine.devices().run(&mut |_| Ok(Box::new(permits.borrow()?)));
        // A device that does not come up is named in the log and costs itself, not the guest.
        down.map_err(GuestError::Devices)?;
        if !paused {
            self.start_vcpus(permits)?;
        }
        run.paused = paused;
        run.switching = false;
        Ok(())
    }

    fn start_vcpus(&self, permits: &Permits) -> Result<(), GuestError> {
        let each = (0..self.machine.cpus()).map(|_| permits.borrow());
        let each = each.collect::<Result<Vec<_>, _>>().map_err(GuestError::Lease)?;
        Ok(self.machine.resume(each)?)
    }

    /// Stops the vCPUs on the user's wish. Devices finish what they were asked for.
    ///
    /// # Errors
    /// It is paused already, or in a switchover, or a vCPU does not stop.
    pub fn pause(&self) -> Result<(), GuestError> {
        let mut run = self.lock();
        if run.switching {
            return Err(GuestError::Switching);
        }
        if run.paused {
            return Err(GuestError::Paused);
        }
        self.machine.pause_vcpus(STOP_DEADLINE)?;
        run.paused = true;
        Ok(())
    }

    /// Lets the vCPUs go on after [`pause`](Self::pause).
    ///
    /// # Errors
    /// It is not paused, or in a switchover, or may not run.
    pub fn unpause(&self) -> Result<(), GuestError> {
        let mut run = self.lock();
        if run.switching {
            return Err(GuestError::Switching);
        }
        let Some(permits) = run.permits.clone().filter(|_| run.paused) else {
            return Err(GuestError::NotPaused);
        };
        self.start_vcpus(&permits)?;
        run.paused = false;
        Ok(())
    }

    /// Presses the power button. A guest that does not listen does nothing.
    ///
    /// # Errors
    /// It is in a switchover, or has ended.
    pub fn press_power_button(&self) -> Result<(), GuestError> {
        let run = self.lock();
        if run.switching {
            return Err(GuestError::Switching);
        }
        Ok(self.machine.press_power_button()?)
    }

    /// Stops the vCPUs for a migration; returns whether the user had paused it. From now on the
    /// user's requests are refused.
    ///
    /// # Errors
    /// A vCPU does not stop.
    pub fn stop_for_switch(&self) -> Result<bool, GuestError> {
        let mut run = self.lock();
        run.switching = true;
        self.machine.pause_vcpus(STOP_DEADLINE)?;
        Ok(run.paused)
    }

    /// Stops everything for good; the console is written out.
    ///
    /// # Errors
    /// A vCPU or device does not stop; the others have.
    pub fn end(&self) -> Result<(), GuestError> {
        let _run = self.lock();
        let stopped = self.machine.stop(STOP_DEADLINE);
        let devices = self.machine.devices().to_stop().map_err(GuestError::Devices);
        stopped?;
        devices
    }
}
