//! One device of a plugin, behind a thread, a deadline and gates.

mod create;
mod migration;
mod registers;

use crate::context::{Context, lock};
use crate::instance_error::{Cause, InstanceError};
use crate::raw::{Device, Failed};
use crate::runner::Runner;
use crate::{DeviceInfo, ParamInfo, Plugin, State, StateFormat, Stats, params};
use drogher_iommu::RequesterStats;
use drogher_plugin_abi as abi;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

pub use migration::{PrecopyInfo, Read};

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

struct Control {
    runner: Runner,
    /// The runner locks it for each call; empty after destroy.
    device: Arc<Mutex<Option<Device>>>,
    state: State,
    ndma: bool,
    /// State data were read since STOP_COPY was entered.
    reading: bool,
    /// For state data: goes to the runner and comes back.
    buffer: Vec<u8>,
}

/// One device. Any thread may call; calls wait for each other, at most the deadline. A device in
/// ERROR refuses at once: the machine then gives the guest all ones. Dropping destroys it.
///
/// DMA (through the requester given at creation) and interrupts are let through in the states
/// RUNNING, RUNNING_P2P, PRE_COPY and PRE_COPY_P2P outside NDMA only. In all others, and in ERROR, the
/// requester is revoked and drained before the call that led there returns.
pub struct Instance {
    name: String,
    plugin: Plugin,
    info: DeviceInfo,
    format: Option<StateFormat>,
    has_ndma: bool,
    deadlines: Deadlines,
    context: Arc<Context>,
    control: Mutex<Control>,
    /// Copy of the state, to be looked at without waiting.
    seen: AtomicU32,
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
        result.map_err(|_| self.give_up(self.deadlines.call))
    }

    /// Refuses a device whose thread is still in a late call: whatever became of it since, nothing
    /// may be called for it.
    fn not_given_up(&self, control: &Control) -> Result<(), InstanceError> {
        if !control.runner.is_lost() {
            return Ok(());
        }
        match self.context.broken() {
            Some(cause) => Err(self.broken(cause)),
            None => Err(InstanceError::Gone { instance: self.name.clone() }),
        }
    }

    /// Enters, unless the device is in ERROR; asked again after the wait.
    fn control(&self) -> Result<MutexGuard<'_, Control>, InstanceError> {
        self.alive()?;
        let control = lock(&self.control);
        self.alive()?;
        Ok(control)
    }

    fn alive(&self) -> Result<(), InstanceError> {
        match self.context.broken() {
            Some(cause) => Err(self.broken(cause)),
            None => Ok(()),
        }
    }

    fn broken(&self, cause: Arc<Cause>) -> InstanceError {
        InstanceError::Broken { instance: self.name.clone(), cause }
    }

    fn give_up(&self, deadline: Duration) -> InstanceError {
        self.plugin.set_stuck();
        self.broken(self.context.give_up(deadline))
    }

    fn lied(&self, call: &'static str, what: String) -> InstanceError {
        self.broken(self.context.break_down(Cause::Lied { call, what }))
    }

    /// Ends DMA and interrupts. If DMA stays in flight the device is in ERROR.
    fn close(&self) {
        if let Err(what) = self.context.close() {
            self.context.break_down(Cause::DmaInFlight { what });
        }
    }

    fn enter_state(&self, control: &mut Control, state: State) {
        // A refused step leaves a session as it was.
        control.reading &= control.state == state;
        control.state = state;
        self.seen.store(state.number(), Ordering::SeqCst);
    }

    /// One call into the plugin, or a few. A refusal leaves the device as it was; all else leads to
    /// ERROR.
    fn call<T: Send + 'static>(
        &self,
        control: &mut Control,
        deadline: Duration,
        job: impl FnOnce(&mut Device) -> Result<T, Failed> + Send + 'static,
    ) -> Result<T, InstanceError> {
        let slot = control.device.clone();
        self.context.take_last_error();
        let job = move || lock(&slot).as_mut().map(job);
        let failed = match control.runner.call(deadline, job) {
            Err(_) => return Err(self.give_up(deadline)),
            Ok(None) => return Err(InstanceError::Gone { instance: self.name.clone() }),
            Ok(Some(Ok(value))) => {
                // A worker may have given up the device in the meantime.
                return self.alive().map(|()| value);
            }
            Ok(Some(Err(failed))) => failed,
        };
        self.alive()?;
        let call = self.context.calling();
        let status = match failed {
            Failed::Lie(what) => return Err(self.lied(call, what)),
            Failed::Status(status) => status,
        };
        let text = self.context.take_last_error().unwrap_or_else(|| "(no reason given)".to_owned());
        if status == abi::DROGHER_ERR_FATAL {
            return Err(self.broken(self.context.break_down(Cause::Fatal { call, text })));
        }
        Err(InstanceError::Refused { instance: self.name.clone(), call, status, text })
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
