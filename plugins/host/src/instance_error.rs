//! What can go wrong with an instance.

use crate::{InfoError, ParamError, State, TableError};
use std::sync::Arc;
use std::time::Duration;

/// Why a device is in ERROR.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// A call did not return in time; its thread was given up, the device cannot be reset.
    #[error("{call} did not return within {deadline:?}")]
    Late {
        /// The call.
        call: &'static str,
        /// What it was given.
        deadline: Duration,
    },
    /// The plugin said that the device is broken, or panicked.
    #[error("{call} broke the device: {text}")]
    Fatal {
        /// The call.
        call: &'static str,
        /// The plugin's words.
        text: String,
    },
    /// A worker of the plugin declared the device broken.
    #[error("The device failed: {text}")]
    Failed {
        /// The plugin's words.
        text: String,
    },
    /// The plugin gave an impossible answer.
    #[error("{call} gave an impossible answer: {what}")]
    Lied {
        /// The call.
        call: &'static str,
        /// The answer.
        what: String,
    },
    /// Its DMA could not be ended.
    #[error("DMA in flight did not end: {what}")]
    DmaInFlight {
        /// What the IOMMU says.
        what: String,
    },
}

impl Cause {
    /// What can be done about it.
    pub fn way_out(&self) -> &'static str {
        match self {
            Cause::Late { .. } => {
                "it was given up, and only another process without it, or with a mended plugin, helps"
            }
            _ => "a reset of the device may bring it back",
        }
    }
}

/// A failed call on an instance. The instance is named in each.
#[derive(Clone, Debug, thiserror::Error)]
pub enum InstanceError {
    /// The device is in ERROR (this call put it there, or an earlier one).
    #[error("Device {instance} is in ERROR: {cause}; {}", cause.way_out())]
    Broken {
        /// The instance.
        instance: String,
        /// Why.
        cause: Arc<Cause>,
    },
    /// The plugin failed so badly that there is no device, not even one in ERROR.
    #[error("Device {instance} cannot be made: {cause}; leave it out, or have its plugin mended")]
    NotMade {
        /// The instance.
        instance: String,
        /// What the plugin did.
        cause: Arc<Cause>,
    },
    /// The plugin refused this call; the device is as before.
    #[error("Device {instance} refused {call} with status {status}: {text}")]
    Refused {
        /// The instance.
        instance: String,
        /// The call.
        call: &'static str,
        /// Negative errno.
        status: i32,
        /// The plugin's words.
        text: String,
    },
    /// Not in this state.
    #[error("Device {instance}: {call} is not possible in state {state}")]
    WrongState {
        /// The instance.
        instance: String,
        /// The call.
        call: &'static str,
        /// The state it is in.
        state: State,
    },
    /// There is no way between these states, for this device.
    #[error("Device {instance}: no way from state {from} to {to}")]
    NoWay {
        /// The instance.
        instance: String,
        /// From here.
        from: State,
        /// To there.
        to: State,
    },
    /// The plugin does not have this.
    #[error("Device {instance}: the plugin has no {what}")]
    Unsupported {
        /// The instance.
        instance: String,
        /// What it lacks.
        what: &'static str,
    },
    /// An access outside the device's regions, doorbells or configuration area.
    #[error("Device {instance}: {call} of {len} bytes at {offset:#x} of {place} is outside of it")]
    Outside {
        /// The instance.
        instance: String,
        /// The call.
        call: &'static str,
        /// Region or area.
        place: String,
        /// Where.
        offset: u64,
        /// How long.
        len: usize,
    },
    /// The plugin describes an impossible device.
    #[error("Device {instance}: the plugin describes an impossible device")]
    Info {
        /// The instance.
        instance: String,
        /// What is wrong.
        #[source]
        source: InfoError,
    },
    /// A table of the plugin is not usable.
    #[error("Device {instance}: a table of the plugin is not usable")]
    Table {
        /// The instance.
        instance: String,
        /// What is wrong.
        #[source]
        source: TableError,
    },
    /// A parameter is wrong.
    #[error("Device {instance}: a parameter is wrong")]
    Param {
        /// The instance.
        instance: String,
        /// What is wrong.
        source: ParamError,
    },
    /// Its thread could not be started.
    #[error("Device {instance}: cannot start its thread")]
    Thread {
        /// The instance.
        instance: String,
        /// Why.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The instance was destroyed.
    #[error("Device {instance} is gone")]
    Gone {
        /// The instance.
        instance: String,
    },
}
