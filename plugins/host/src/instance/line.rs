//! What a call into the plugin needs: its thread, its deadline, and the errors that come of it.

use super::Deadlines;
use super::log::Logging;
use crate::context::{Context, lock};
use crate::instance_error::{Cause, InstanceError};
use crate::raw::{Device, Failed};
use crate::runner::Runner;
use crate::{Plugin, State};
use drogher_plugin_abi as abi;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

pub(super) struct Control {
    pub(super) runner: Runner,
    /// The runner locks it for each call; empty after destroy.
    pub(super) device: Arc<Mutex<Option<Device>>>,
    pub(super) state: State,
    pub(super) ndma: bool,
    /// State data were read since STOP_COPY was entered.
    pub(super) reading: bool,
    /// For state data: goes to the runner and comes back.
    pub(super) buffer: Vec<u8>,
    /// The device's log, while it runs.
    pub(super) log: Option<Logging>,
    /// For its reports: goes to the runner and comes back.
    pub(super) words: Vec<u64>,
}

/// One device's line into its plugin. Its log has it too, and may outlive the instance.
pub struct Line {
    pub(super) name: String,
    pub(super) plugin: Plugin,
    pub(super) deadlines: Deadlines,
    pub(super) context: Arc<Context>,
    pub(super) control: Mutex<Control>,
}

impl Line {
    /// Refuses a device whose thread is still in a late call: whatever became of it since, nothing
    /// may be called for it.
    pub(super) fn not_given_up(&self, control: &Control) -> Result<(), InstanceError> {
        if !control.runner.is_lost() {
            return Ok(());
        }
        match self.context.broken() {
            Some(cause) => Err(self.broken(cause)),
            None => Err(InstanceError::Gone { instance: self.name.clone() }),
        }
    }

    /// Enters, unless the device is in ERROR; asked again after the wait.
    pub(super) fn control(&self) -> Result<MutexGuard<'_, Control>, InstanceError> {
        self.alive()?;
        let control = lock(&self.control);
        self.alive()?;
        Ok(control)
    }

    pub(super) fn alive(&self) -> Result<(), InstanceError> {
        match self.context.broken() {
            Some(cause) => Err(self.broken(cause)),
            None => Ok(()),
        }
    }

    pub(super) fn broken(&self, cause: Arc<Cause>) -> InstanceError {
        InstanceError::Broken { instance: self.name.clone(), cause }
    }

    pub(super) fn give_up(&self, deadline: Duration) -> InstanceError {
        self.plugin.set_stuck();
        self.broken(self.context.give_up(deadline))
    }

    pub(super) fn lied(&self, call: &'static str, what: String) -> InstanceError {
        self.broken(self.context.break_down(Cause::Lied { call, what }))
    }

    /// Ends DMA and interrupts. If DMA stays in flight the device is in ERROR.
    pub(super) fn close(&self) {
        if let Err(what) = self.context.close() {
            self.context.break_down(Cause::DmaInFlight { what });
        }
    }

    /// One call into the plugin, or a few. A refusal leaves the device as it was; all else leads to
    /// ERROR.
    pub(super) fn call<T: Send + 'static>(
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

impl Drop for Line {
    fn drop(&mut self) {
        let control = self.control.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let (true, Some(log)) = (control.runner.is_lost(), control.log.take()) {
            log.leak();
        }
    }
}
