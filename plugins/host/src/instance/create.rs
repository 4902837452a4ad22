//! Making an instance.

use super::extensions::{self, Extensions};
use super::line::{Control, Line};
use super::{Instance, InstanceConfig};
use crate::context::{Context, DeviceSide, HostServices, lock};
use crate::device_info;
use crate::instance_error::{Cause, InstanceError};
use crate::load_error::TableError;
use crate::raw::{Device, Failed};
use crate::runner::Runner;
use crate::{DeviceInfo, InfoError, Plugin, State, StateFormat, params};
use drogher_iommu::Requester;
use drogher_plugin_abi as abi;
use drogher_tracking::Pins;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

/// What the plugin said about a new device, checked.
struct Description {
    info: DeviceInfo,
    format: Option<StateFormat>,
    has_ndma: bool,
    extensions: Extensions,
}

/// Why a new device is not taken.
pub(super) enum Refusal {
    Info(InfoError),
    Table(TableError),
    Call(&'static str, Failed),
}

impl Instance {
    /// Makes a device of `plugin` that does DMA as `requester`. It is in state STOP: the requester is
    /// revoked until the device runs.
    ///
    /// # Errors
    /// All that is wrong with the parameters or the plugin's answers; `NotMade` if the plugin does not
    /// return (it then makes no more devices in this process), panics or lies.
    pub fn create(
        plugin: &Plugin,
        config: InstanceConfig,
        requester: Requester,
        services: Arc<dyn HostServices>,
    ) -> Result<Instance, InstanceError> {
        let InstanceConfig { name, params: given, deadlines } = config;
        let instance = || name.clone();
        if plugin.has_params() {
            params::check_all(plugin.params(), &given)
                .map_err(|source| InstanceError::Param { instance: instance(), source })?;
        }
        let context = Context::new(name.clone(), Some(DeviceSide { requester, services }));
        if let Err(what) = context.close() {
            let cause = Arc::new(Cause::DmaInFlight { what });
            return Err(InstanceError::NotMade { instance: instance(), cause });
        }
        let runner = Runner::start(&name).map_err(|source| InstanceError::Thread {
            instance: instance(),
            source: Arc::new(source),
        })?;
        let slot = Arc::new(Mutex::new(None));
        let mut control = Control {
            runner,
            device: slot.clone(),
            state: State::Stop,
            ndma: false,
            reading: false,
            buffer: Vec::new(),
            log: None,
            words: Vec::new(),
        };
        let description = {
            // The interface serialises all `create` of one plugin.
            let mut stuck = lock(plugin.creating());
            if let Some(cause) = &*stuck {
                return Err(InstanceError::NotMade { instance: instance(), cause: cause.clone() });
            }
            let (entry, to, text) = (plugin.entry(), context.clone(), name.clone());
            let job = move || {
                let mut device = Device::create(entry, &to, &text, &given)
                    .map_err(|failed| Refusal::Call("create", failed))?;
                let description = describe(&mut device);
                // Also one that is refused must be destroyed.
                *lock(&slot) = Some(device);
                description
            };
            control.runner.call(deadlines.call, job).map_err(|_| {
                plugin.set_stuck();
                let cause = context.give_up(deadlines.call);
                *stuck = Some(cause.clone());
                InstanceError::NotMade { instance: instance(), cause }
            })?
        };
        let line = Line {
            name: name.clone(),
            plugin: plugin.clone(),
            deadlines,
            context,
            control: Mutex::new(control),
        };
        let mut made = Instance {
            line: Arc::new(line),
            info: DeviceInfo::none(),
            format: None,
            has_ndma: false,
            log: None,
            pins: Pins::None,
            preference: None,
            seen: AtomicU32::new(State::Stop.number()),
        };
        // On an error `made` is dropped, which destroys the device.
        let description = description.map_err(|refusal| made.refused(refusal))?;
        made.context.vectors.store(u32::from(description.info.vectors), Ordering::SeqCst);
        made.info = description.info;
        made.format = description.format;
        made.has_ndma = description.has_ndma;
        made.take_extensions(description.extensions);
        if let Some(cause) = made.context.broken() {
            return Err(InstanceError::NotMade { instance: name, cause });
        }
        Ok(made)
    }

    fn refused(&self, refusal: Refusal) -> InstanceError {
        let instance = self.name.clone();
        let (call, failed) = match refusal {
            Refusal::Info(source) => return InstanceError::Info { instance, source },
            Refusal::Table(source) => return InstanceError::Table { instance, source },
            Refusal::Call(call, failed) => (call, failed),
        };
        let not_made = |cause| {
            let cause = self.context.break_down(cause);
            InstanceError::NotMade { instance: self.name.clone(), cause }
        };
        let status = match failed {
            Failed::Lie(what) => return not_made(Cause::Lied { call, what }),
            Failed::Status(status) => status,
        };
        let text = self.context.take_last_error().unwrap_or_else(|| "(no reason given)".to_owned());
        if status == abi::DROGHER_ERR_FATAL {
            return not_made(Cause::Fatal { call, text });
        }
        InstanceError::Refused { instance, call, status, text }
    }
}

fn describe(device: &mut Device) -> Result<Description, Refusal> {
    let raw = device.describe().map_err(|failed| Refusal::Call("describe", failed))?;
    let (mut info, regions, doorbells) = device_info::head(&raw).map_err(Refusal::Info)?;
    for n in 0..regions {
        let raw = device.region_info(n).map_err(|failed| Refusal::Call("region_info", failed))?;
        info.add_region(&raw).map_err(Refusal::Info)?;
    }
    for n in 0..doorbells {
        let raw =
            device.doorbell_info(n).map_err(|failed| Refusal::Call("doorbell_info", failed))?;
        info.add_doorbell(&raw).map_err(Refusal::Info)?;
    }
    let ops = device.ops();
    let need = |function, wanted: bool, there: bool| {
        if wanted && !there {
            Err(Refusal::Table(TableError::NoFunction { table: "drogher_device_ops", function }))
        } else {
            Ok(())
        }
    };
    need("region_read", regions > 0, ops.region_read.is_some())?;
    need("region_write", regions > 0, ops.region_write.is_some())?;
    need("doorbell", doorbells > 0, ops.doorbell.is_some())?;
    need("config_read", info.config.is_some(), ops.config_read.is_some())?;
    need("config_write", info.config.is_some(), ops.config_write.is_some())?;
    device.load_extensions().map_err(Refusal::Table)?;
    let format = device.migration.as_ref().map(format).transpose().map_err(Refusal::Table)?;
    if let Some(ndma) = &device.ndma {
        check_ndma(ndma).map_err(Refusal::Table)?;
    }
    if let Some(params) = &device.params {
        params::check_table(params).map_err(Refusal::Table)?;
    }
    let has_ndma = device.ndma.is_some();
    let extensions = extensions::describe(device)?;
    Ok(Description { info, format, has_ndma, extensions })
}

fn format(raw: &abi::Migration) -> Result<StateFormat, TableError> {
    let table = "drogher_migration";
    let field = |field, value: u32, rule| {
        Err(TableError::Field { table, field, value: u64::from(value), rule })
    };
    let pre_copy = raw.flags & abi::DROGHER_MIGRATION_PRE_COPY != 0;
    let functions = [
        ("set_state", raw.set_state.is_some()),
        ("get_state", raw.get_state.is_some()),
        ("stop_copy_size", raw.stop_copy_size.is_some()),
        ("read", raw.read.is_some()),
        ("write", raw.write.is_some()),
        ("precopy_info", !pre_copy || raw.precopy_info.is_some()),
    ];
    for (function, there) in functions {
        if !there {
            return Err(TableError::NoFunction { table, function });
        }
    }
    if raw.flags & !abi::DROGHER_MIGRATION_FLAGS != 0 || raw.reserved != 0 {
        return field("flags", raw.flags, "unknown bits and reserved fields must be 0");
    }
    if raw.flags & abi::DROGHER_MIGRATION_STOP_COPY == 0 {
        return field("flags", raw.flags, "DROGHER_MIGRATION_STOP_COPY must be set");
    }
    if raw.state_version == 0 {
        return field("state_version", 0, "must be at least 1");
    }
    if raw.state_min_reader > raw.state_version {
        return field("state_min_reader", raw.state_min_reader, "must be <= state_version");
    }
    if raw.state_oldest_read > raw.state_version {
        return field("state_oldest_read", raw.state_oldest_read, "must be <= state_version");
    }
    Ok(StateFormat {
        version: raw.state_version,
        min_reader: raw.state_min_reader,
        oldest_read: raw.state_oldest_read,
        p2p: raw.flags & abi::DROGHER_MIGRATION_P2P != 0,
        pre_copy,
    })
}

fn check_ndma(raw: &abi::Ndma) -> Result<(), TableError> {
    let table = "drogher_ndma";
    if raw.flags != 0 {
        let value = u64::from(raw.flags);
        return Err(TableError::Field { table, field: "flags", value, rule: "must be 0" });
    }
    for (function, there) in [("enter", raw.enter.is_some()), ("leave", raw.leave.is_some())] {
        if !there {
            return Err(TableError::NoFunction { table, function });
        }
    }
    Ok(())
}
