//! The device as the host sees it: every call in, and nothing else. Calls never overlap.

use std::sync::Arc;

use drogher_plugin_sdk::{
    Device, DeviceInfo, Doorbell, Failure, Host, LogCaps, LogReport, LogStart, ParamSpec, Params,
    PinKind, PrecopyInfo, Preference, Read, Region, State, StateFormat,
};

use crate::migrate::{self, Session};
use crate::ops::lock;
use crate::params::Ways;
use crate::regs::{self, CONTROL_RESET, DOORBELL, REGION_BYTES, Registers, Write};
use crate::tracked::{Port, Tracked};
use crate::window::Window;
use crate::worker::{Shared, Worker};
use crate::{format, params};
use drogher_plugin_sdk::PageLog as Log;

/// PCI vendor id.
pub const VENDOR_ID: u16 = 0xD70E;
/// PCI device id.
pub const DEVICE_ID: u16 = 0x0001;
/// PCI class: system peripheral, DMA controller.
pub const CLASS_CODE: u32 = 0x08_01_00;
/// The only region.
const REGION: u32 = 0;

/// One instance.
#[derive(Debug)]
pub struct Ndma {
    shared: Arc<Shared>,
    session: Session,
    state: State,
    ways: Ways,
    log: Arc<Log>,
    /// Ends with the instance.
    _worker: Worker,
}

impl Ndma {
    /// A device after power-on, at any port.
    ///
    /// # Errors
    /// A parameter with a bad value; no thread to be had.
    pub fn new(port: impl Port, params: &Params) -> Result<Self, Failure> {
        let (ways, log) = (Ways::new(params)?, Arc::new(Log::default()));
        let bus = Tracked::new(port, ways.clone(), Arc::clone(&log));
        let shared = Arc::new(Shared::new(params::scratch_pages(params)?));
        shared.pace(params::bytes_per_s(params)?);
        let worker = Worker::start(Arc::clone(&shared), bus)
            .map_err(|error| Failure::io(format!("Cannot start the ring worker: {error}")))?;
        let session = Session::None;
        Ok(Self { shared, session, state: State::Stop, ways, log, _worker: worker })
    }

    /// Applies a write of the driver. What must be silent afterwards waits for the worker.
    fn write(&mut self, write: Write) -> Result<(), Failure> {
        if !Registers::needs_idle(write) {
            self.shared.with(|inner| inner.regs.apply(write));
            return Ok(());
        }
        let reset = matches!(write, Write::Control(value) if value & CONTROL_RESET != 0);
        let idle = self.shared.while_idle(|inner| {
            inner.regs.apply(write);
            if reset {
                inner.window = Window::default();
            }
        });
        idle.map_err(migrate::not_parked)?;
        if reset {
            lock(&self.shared.scratch).wipe();
        }
        Ok(())
    }
}

impl Device for Ndma {
    const MIGRATION: Option<StateFormat> = Some(StateFormat {
        version: format::VERSION,
        min_reader: format::VERSION,
        oldest_read: format::OLDEST_READ,
        p2p: true,
        pre_copy: true,
    });
    const NDMA: bool = true;
    const PARAMS: &'static [ParamSpec] = params::SPECS;

    fn create(host: Host, params: &Params) -> Result<Self, Failure> {
        Self::new(host, params)
    }

    fn info(&self) -> DeviceInfo {
        let mut info = DeviceInfo::new(VENDOR_ID, DEVICE_ID, CLASS_CODE);
        info.revision = 1;
        info.regions = vec![Region::memory(REGION, REGION_BYTES)];
        info.vectors = 2;
        info.doorbells = vec![Doorbell { region: REGION, offset: DOORBELL, width: 4 }];
        info
    }

    fn reset(&mut self) -> Result<(), Failure> {
        let idle = self.shared.while_idle(|inner| {
            inner.regs = Registers::default();
            inner.window = Window::default();
            inner.running = false;
            inner.ndma = false;
        });
        idle.map_err(migrate::not_parked)?;
        lock(&self.shared.scratch).wipe();
        self.session = Session::None;
        self.state = State::Stop;
        self.log.stop();
        Ok(())
    }

    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Failure> {
        if region != REGION {
            return Err(Failure::invalid(format!("No region {region}")));
        }
        let scratch = lock(&self.shared.scratch).size();
        self.shared.peek(|inner| {
            if !inner.window.read(offset, data) {
                inner.regs.read(offset, data, inner.is_busy(), scratch);
            }
        });
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Failure> {
        if region != REGION {
            return Err(Failure::invalid(format!("No region {region}")));
        }
        if self.shared.quietly(|inner| inner.window.write(offset, data)) {
            return Ok(());
        }
        regs::decode_write(offset, data).map_or(Ok(()), |write| self.write(write))
    }

    fn doorbell(&mut self, index: u32) -> Result<(), Failure> {
        if index != 0 {
            return Err(Failure::invalid(format!("No doorbell {index}")));
        }
        self.write(Write::Doorbell)
    }

    fn set_state(&mut self, from: State, to: State) -> Result<(), Failure> {
        migrate::set_state(&self.shared, &mut self.session, from, to)?;
        self.state = to;
        Ok(())
    }

    fn precopy_info(&mut self) -> Result<PrecopyInfo, Failure> {
        migrate::precopy_info(&self.shared, &mut self.session)
    }

    fn stop_copy_size(&mut self) -> Result<u64, Failure> {
        Ok(migrate::stop_copy_size(&self.shared, &self.session))
    }

    fn read_state(&mut self, data: &mut [u8]) -> Result<Read, Failure> {
        let stopped = self.state == State::StopCopy;
        migrate::read(&self.shared, &mut self.session, stopped, data)
    }

    fn write_state(&mut self, data: &[u8]) -> Result<(), Failure> {
        migrate::write(&mut self.session, data)
    }

    fn enter_ndma(&mut self) -> Result<(), Failure> {
        self.shared.while_idle(|inner| inner.ndma = true).map_err(migrate::not_parked)
    }

    fn leave_ndma(&mut self) -> Result<(), Failure> {
        self.shared.with(|inner| inner.ndma = false);
        Ok(())
    }

    fn has_ndma(&self) -> bool {
        self.ways.ndma
    }

    fn log_caps(&self) -> Option<LogCaps> {
        self.ways.log_caps()
    }

    fn log_start(&mut self, start: LogStart) -> Result<u64, Failure> {
        Ok(self.log.start(start))
    }

    fn log_report(&mut self, gpa: u64, report: &mut LogReport<'_>) -> Result<(), Failure> {
        self.log.report(gpa, report)
    }

    fn log_stop(&mut self) -> Result<(), Failure> {
        self.log.stop();
        Ok(())
    }

    fn pin_kind(&self) -> Option<PinKind> {
        self.ways.pin_kind()
    }

    /// Pins last for one descriptor, and the host refuses new ones there: it is enough to wait.
    fn unmap(&mut self, _iova: u64, _len: u64) -> Result<(), Failure> {
        self.shared.while_idle(|_| ()).map_err(migrate::not_parked)
    }

    fn preference(&self) -> Option<Preference> {
        self.ways.preference.clone()
    }

    fn param_set(&mut self, name: &str, params: &Params) -> Result<(), Failure> {
        // The only one that may change.
        if name != params::RATE_MIB {
            return Err(Failure::unsupported(format!("Parameter {name} cannot be set")));
        }
        self.shared.pace(params::bytes_per_s(params)?);
        Ok(())
    }
}

#[cfg(test)]
#[path = "device_test.rs"]
mod tests;
