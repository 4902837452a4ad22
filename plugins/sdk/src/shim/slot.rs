//! One instance: the device and the books about it.

use super::guard;
use crate::tracking::SharedBits;
use crate::{
    Device, DeviceInfo, Failure, FailureKind, Host, LogCaps, LogStart, Params, PinKind, Preference,
    Read, State, StateFormat,
};
use drogher_plugin_abi as abi;

pub(super) struct Slot<D> {
    host: Host,
    params: Params,
    /// `None` after a panic in `create` during a reset.
    device: Option<D>,
    pub(super) info: DeviceInfo,
    state: State,
    ndma: bool,
    /// Why the device is in ERROR.
    broken: Option<String>,
    pub(super) has_ndma: bool,
    pub(super) log_caps: Option<LogCaps>,
    pub(super) pin_kind: Option<PinKind>,
    pub(super) preference: Option<Preference>,
    /// Bytes of a tracking page, while its log runs.
    logging: Option<u64>,
    /// The host's bitmap, to be closed before the host may take it away.
    bitmap: Option<SharedBits>,
}

impl<D: Device> Slot<D> {
    pub(super) fn new(host: Host, params: Params) -> Result<Self, Failure> {
        let device = D::create(host.clone(), &params)?;
        let info = device.info();
        Ok(Slot {
            has_ndma: device.has_ndma(),
            log_caps: device.log_caps(),
            pin_kind: device.pin_kind(),
            preference: device.preference(),
            logging: None,
            bitmap: None,
            host,
            params,
            device: Some(device),
            info,
            state: State::Stop,
            ndma: false,
            broken: None,
        })
    }

    /// Runs one call: refuses if the device is broken, breaks it if it panics or says so.
    pub(super) fn run(&mut self, f: impl FnOnce(&mut Self) -> Result<i32, Failure>) -> i32 {
        if let Some(text) = &self.broken {
            self.host.set_last_error(text);
            return abi::DROGHER_ERR_FATAL;
        }
        self.run_anyway(f)
    }

    fn run_anyway(&mut self, f: impl FnOnce(&mut Self) -> Result<i32, Failure>) -> i32 {
        let failure = match guard(|| f(self)) {
            Ok(Ok(status)) => return status,
            Ok(Err(failure)) => failure,
            Err(text) => Failure::fatal(format!("Panicked: {text}")),
        };
        self.host.set_last_error(failure.text());
        if failure.kind() == FailureKind::Fatal {
            self.broken = Some(failure.text().to_owned());
        }
        failure.status()
    }

    pub(super) fn device(&mut self) -> Result<&mut D, Failure> {
        self.device.as_mut().ok_or_else(|| Failure::fatal("The device could not be made anew"))
    }

    pub(super) fn state(&self) -> u32 {
        if self.broken.is_some() { abi::DROGHER_STATE_ERROR } else { self.state.number() }
    }

    pub(super) fn params(&self) -> &Params {
        &self.params
    }

    /// A device that panicked, also on a worker, is not trusted to reset itself: it is dropped and made
    /// anew.
    pub(super) fn reset(&mut self) -> i32 {
        let anew = self.broken.take().is_some() | self.host.take_failed();
        let status = self.run_anyway(|slot| {
            if anew {
                drop(slot.device.take());
                // Its workers may have said so once more, on their way out.
                slot.host.take_failed();
                slot.device = Some(D::create(slot.host.clone(), &slot.params)?);
            } else {
                slot.device()?.reset()?;
            }
            Ok(abi::DROGHER_OK)
        });
        if status == abi::DROGHER_OK {
            self.state = State::Stop;
            self.ndma = false;
            self.end_log();
        } else if anew && self.broken.is_none() {
            self.broken = Some("The device could not be made anew".to_owned());
        }
        status
    }

    fn format() -> Result<StateFormat, Failure> {
        D::MIGRATION.ok_or_else(|| Failure::unsupported("No migration"))
    }

    fn wrong_state(&self, call: &str) -> Failure {
        Failure::not_allowed(format!("{call} in state {:?}", self.state))
    }

    /// Registers answer while the device runs. Without migration there are no states.
    pub(super) fn need_running(&self, call: &str) -> Result<(), Failure> {
        if D::MIGRATION.is_none() || self.state.runs() {
            Ok(())
        } else {
            Err(self.wrong_state(call))
        }
    }

    pub(super) fn doorbell(&mut self, index: u32) -> Result<(), Failure> {
        if self.state == State::Resuming {
            return Err(self.wrong_state("Doorbell"));
        }
        self.device()?.doorbell(index)
    }

    pub(super) fn set_state(&mut self, number: u32) -> Result<(), Failure> {
        let from = self.state;
        let to = State::from_number(number)
            .ok_or_else(|| Failure::invalid(format!("No state has number {number}")))?;
        if !Self::format()?.has_arc(from, to) {
            return Err(Failure::invalid(format!("No arc from {from:?} to {to:?}")));
        }
        self.device()?.set_state(from, to)?;
        self.state = to;
        Ok(())
    }

    pub(super) fn precopy_info(&mut self) -> Result<crate::PrecopyInfo, Failure> {
        if !self.state.pre_copies() {
            return Err(self.wrong_state("Pre-copy sizes"));
        }
        self.device()?.precopy_info()
    }

    /// Bytes read, 0 at the end, `None` for "no more now".
    pub(super) fn read_state(&mut self, data: &mut [u8]) -> Result<Option<usize>, Failure> {
        if !self.state.saves() {
            return Err(self.wrong_state("Reading state"));
        }
        let pre = self.state.pre_copies();
        if data.is_empty() {
            return Err(Failure::invalid("Reading state into no bytes"));
        }
        let len = data.len();
        match self.device()?.read_state(data)? {
            Read::Bytes(n) if (1..=len).contains(&n) => Ok(Some(n)),
            Read::Bytes(n) => {
                Err(Failure::fatal(format!("The device says {n} bytes of state, asked for {len}")))
            }
            Read::NoMoreNow | Read::End if pre => Ok(None),
            Read::End => Ok(Some(0)),
            Read::NoMoreNow => Err(Failure::fatal("The device says \"no more now\" in STOP_COPY")),
        }
    }

    pub(super) fn write_state(&mut self, data: &[u8]) -> Result<(), Failure> {
        if self.state != State::Resuming {
            return Err(self.wrong_state("Writing state"));
        }
        self.device()?.write_state(data)
    }

    pub(super) fn set_ndma(&mut self, enter: bool) -> Result<(), Failure> {
        if self.ndma == enter {
            return Ok(());
        }
        if enter {
            if D::MIGRATION.is_some() && !self.state.runs() {
                return Err(self.wrong_state("NDMA"));
            }
            self.device()?.enter_ndma()?;
        } else {
            self.device()?.leave_ndma()?;
        }
        self.ndma = enter;
        Ok(())
    }

    pub(super) fn log_start(&mut self, start: LogStart) -> Result<u64, Failure> {
        let caps = self.log_caps.ok_or_else(|| Failure::unsupported("No log"))?;
        if self.logging.is_some() {
            return Err(Failure::not_allowed("The log runs already"));
        }
        if caps.shared != start.bitmap.is_some() {
            return Err(Failure::invalid("A bitmap is for a shared log, and for no other"));
        }
        let wish = start.page_size;
        // Closed at once if the device fails or panics.
        self.bitmap = start.bitmap.clone();
        let chosen = guard(|| self.device()?.log_start(start))
            .unwrap_or_else(|text| Err(Failure::fatal(format!("Panicked: {text}"))))
            .inspect_err(|_| self.end_log())?;
        let offered = (caps.min_page..=caps.max_page).contains(&chosen) && chosen.is_power_of_two();
        if !offered || caps.shared && chosen != wish {
            let text =
                format!("The device takes tracking pages of {chosen} bytes, asked for {wish}");
            return Err(Failure::fatal(text));
        }
        self.logging = Some(chosen);
        Ok(chosen)
    }

    pub(super) fn log_page_size(&self) -> Result<u64, Failure> {
        self.logging.ok_or_else(|| Failure::not_allowed("The log does not run"))
    }

    pub(super) fn log_stop(&mut self) -> Result<(), Failure> {
        self.log_page_size()?;
        self.device()?.log_stop()?;
        self.end_log();
        Ok(())
    }

    fn end_log(&mut self) {
        self.logging = None;
        if let Some(bitmap) = self.bitmap.take() {
            bitmap.close();
        }
    }

    pub(super) fn param_set(&mut self, name: &str, value: &str) -> Result<(), Failure> {
        let mut params = self.params.clone();
        let spec = params.set(D::PARAMS, name, value)?;
        if !spec.runtime {
            return Err(Failure::not_allowed(format!(
                "Parameter {name} can be set at creation only"
            )));
        }
        self.device()?.param_set(spec.name, &params)?;
        self.params = params;
        Ok(())
    }
}

impl<D> Drop for Slot<D> {
    /// Before the device: a worker of its may still be marking.
    fn drop(&mut self) {
        if let Some(bitmap) = self.bitmap.take() {
            bitmap.close();
        }
    }
}
