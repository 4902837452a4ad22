//! One device of a plugin, behind a thread, a deadline and gates.

mod create;
mod extensions;
mod line;
mod log;
mod migration;
mod pins;
mod registers;

use crate::context::lock;
use crate::instance_error::{Cause, InstanceError};
use crate::{DeviceInfo, ParamInfo, Plugin, State, StateFormat, Stats, params};
use drogher_iommu::RequesterStats;
use drogher_tracking::{LogCaps, Pins, Preference};
use line::{Control, Line};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub use log::LogError;
pub use migration::{PrecopyInfo, Read};
pub use pins::Unmapping;

/// How long a plugin may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// Register accesses and all calls but those of `state`.
    pub call: Duration,
    /// State changes, NDMA, reset.
    pub state: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Deadlines { call: Duration::from_secs(2), state: Duration::from_secs(5) }
    }
}

/// How to make an instance.
#[derive(Clone, Debug, Default)]
pub struct InstanceConfig {
    /// Its name in messages.
    pub name: String,
    /// Parameters; the others have their defaults.
    pub params: Vec<(String, String)>,
    /// Its deadlines.
    pub deadlines: Deadlines,
}

/// One device. Any thread may call; calls wait for each other, at most the deadline. A device in
/// ERROR refuses at once: the machine then gives the guest all ones. Dropping destroys it.
///
/// DMA (through the requester given at creation) and interrupts are let through in the states
/// RUNNING, RUNNING_P2P, PRE_COPY and PRE_COPY_P2P outside NDMA only. In all others, and in ERROR, the
/// requester is revoked and drained before the call that led there returns.
pub struct Instance {
    line: Arc<Line>,
    info: DeviceInfo,
    format: Option<StateFormat>,
    has_ndma: bool,
    log: Option<LogCaps>,
    pins: Pins,
    preference: Option<Preference>,
    /// Copy of the state, to be looked at without waiting.
    seen: AtomicU32,
}

impl std::ops::Deref for Instance {
    type Target = Line;

    fn deref(&self) -> &Line {
        &self.line
    }
}

impl std::fmt::Debug for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Instance")
            .field("name", &self.name)
            .field("plugin", &self.plugin.descriptor().id)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

impl Instance {
    /// Its name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its plugin.
    pub fn plugin(&self) -> &Plugin {
        &self.plugin
    }

    /// What it is.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Its state format; `None`: it cannot be migrated. Such a device only has the states STOP and
    /// RUNNING, as gates for its DMA and interrupts that it does not notice.
    pub fn state_format(&self) -> Option<StateFormat> {
        self.format
    }

    /// It has NDMA.
    pub fn has_ndma(&self) -> bool {
        self.has_ndma
    }

    /// Its state, without waiting.
    pub fn state(&self) -> State {
        if self.context.broken().is_some() {
            return State::Error;
        }
        State::from_number(self.seen.load(Ordering::SeqCst)).unwrap_or(State::Error)
    }

    /// Why it is in ERROR.
    pub fn error(&self) -> Option<Arc<Cause>> {
        self.context.broken()
    }

    /// What it did that is worth counting.
    pub fn stats(&self) -> Stats {
        self.context.stats()
    }

    /// What the IOMMU counted of its DMA.
    pub fn dma_stats(&self) -> RequesterStats {
        self.context.device.as_ref().map(|device| device.dma_stats()).unwrap_or_default()
    }

    /// The parameters that there are.
    pub fn params(&self) -> &[ParamInfo] {
        self.plugin.params()
    }

    /// The value of a parameter.
    ///
    /// # Errors
    /// `Param` if there is none of this name, and those of any call.
    pub fn param_get(&self, name: &str) -> Result<String, InstanceError> {
        let mut control = self.control()?;
        self.param(params::find(self.params(), name).map(|_| ()))?;
        let name = name.to_owned();
        let value =
            self.call(&mut control, self.deadlines.call, move |device| device.param_get(&name))?;
        crate::text::strict(&value)
            .map_err(|problem| self.lied("params.get", format!("text that {problem}")))
    }

    /// Sets a parameter.
    ///
    /// # Errors
    /// `Param` if there is none of this name, it cannot be set now, or the value is not of its kind,
    /// and those of any call.
    pub fn param_set(&self, name: &str, value: &str) -> Result<(), InstanceError> {
        let mut control = self.control()?;
        let info = self.param(params::find(self.params(), name))?;
        self.param(info.check(value))?;
        if !info.runtime {
            return self.param(Err(crate::ParamError::NotRuntime { name: name.to_owned() }));
        }
        let (name, value) = (name.to_owned(), value.to_owned());
        self.call(&mut control, self.deadlines.call, move |device| device.param_set(&name, &value))
    }

    fn param<T>(&self, result: Result<T, crate::ParamError>) -> Result<T, InstanceError> {
        result.map_err(|source| InstanceError::Param { instance: self.name.clone(), source })
    }

    /// Destroys the device, as dropping does, but says if that failed.
    ///
    /// # Errors
    /// `Broken` if it does not return in time.
    pub fn destroy(self) -> Result<(), InstanceError> {
        self.end()
    }

    fn end(&self) -> Result<(), InstanceError> {
        let mut control = lock(&self.control);
        self.not_given_up(&control)?;
        self.close();
        let slot = control.device.clone();
        let job = move || {
            if let Some(device) = lock(&slot).take() {
                device.destroy();
            }
        };
        let result = control.runner.call(self.deadlines.call, job);
        self.context.shut();
        result.map_err(|_| self.give_up(self.deadlines.call))?;
        // Not after a late call: that device may still use them.
        self.give_back_pins();
        Ok(())
    }

    fn enter_state(&self, control: &mut Control, state: State) {
        // A refused step leaves a session as it was.
        control.reading &= control.state == state;
        control.state = state;
        self.seen.store(state.number(), Ordering::SeqCst);
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if self.context.is_shut() {
            return;
        }
        if let Err(error) = self.end() {
            tracing::warn!(%error, "Device not destroyed");
        }
    }
}
