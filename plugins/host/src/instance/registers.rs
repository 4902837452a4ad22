//! Register, doorbell and configuration accesses, and reset.

use super::Instance;
use crate::instance_error::{Cause, InstanceError};
use crate::raw::{Device, Failed};
use crate::{Doorbell, State};

/// An access of a register: at most 8 bytes.
const WIDEST: usize = 8;

impl Instance {
    /// Reads from a region (1 to 8 bytes, inside the region).
    ///
    /// # Errors
    /// The guest reads all ones then. `Outside`; `WrongState` where the device does not run.
    pub fn region_read(
        &self,
        region: u32,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), InstanceError> {
        let len = data.len();
        self.access("region_read", region, offset, len, &mut [0; WIDEST], move |device, bytes| {
            device.region_read(region, offset, bytes)
        })
        .map(|bytes| data.iter_mut().zip(bytes).for_each(|(to, from)| *to = from))
    }

    /// Writes to a region (1 to 8 bytes, inside the region).
    ///
    /// # Errors
    /// The write is lost then. `Outside`; `WrongState` where the device does not run.
    pub fn region_write(&self, region: u32, offset: u64, data: &[u8]) -> Result<(), InstanceError> {
        let mut bytes = [0; WIDEST];
        bytes.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
        let len = data.len();
        self.access("region_write", region, offset, len, &mut bytes, move |device, bytes| {
            device.region_write(region, offset, bytes)
        })
        .map(|_| ())
    }

    /// The bytes go by value: the plugin must not hold a pointer to the caller's if it is late.
    fn access(
        &self,
        call: &'static str,
        region: u32,
        offset: u64,
        len: usize,
        bytes: &mut [u8; WIDEST],
        job: impl FnOnce(&mut Device, &mut [u8]) -> Result<(), Failed> + Send + 'static,
    ) -> Result<[u8; WIDEST], InstanceError> {
        let mut control = self.control()?;
        let length = self.info.region(region).map_or(0, |region| region.length);
        let inside = offset.checked_add(len as u64).is_some_and(|end| end <= length);
        if len == 0 || len > WIDEST || !inside {
            let place = format!("region {region}");
            return Err(self.outside(call, place, offset, len));
        }
        if !control.state.runs() {
            return Err(self.wrong_state(call, control.state));
        }
        let mut bytes = *bytes;
        self.call(&mut control, self.deadlines.call, move |device| {
            // `len` is at most WIDEST.
            job(device, bytes.get_mut(..len).unwrap_or_default())?;
            Ok(bytes)
        })
    }

    fn outside(&self, call: &'static str, place: String, offset: u64, len: usize) -> InstanceError {
        InstanceError::Outside { instance: self.name.clone(), call, place, offset, len }
    }

    pub(super) fn wrong_state(&self, call: &'static str, state: State) -> InstanceError {
        InstanceError::WrongState { instance: self.name.clone(), call, state }
    }

    /// Tells the device that doorbell number `index` was rung. Also in NDMA, STOP, and STOP_COPY before
    /// the first read: the device latches it.
    ///
    /// # Errors
    /// `Outside` if there is no such doorbell; `WrongState` in RESUMING, and in STOP_COPY after the
    /// first read: it would be lost.
    pub fn doorbell(&self, index: u32) -> Result<(), InstanceError> {
        let mut control = self.control()?;
        if self.doorbell_at(index).is_none() {
            let place = format!("doorbell {index}");
            return Err(self.outside("doorbell", place, 0, 0));
        }
        let sent = control.state == State::StopCopy && control.reading;
        if control.state == State::Resuming || sent {
            return Err(self.wrong_state("doorbell", control.state));
        }
        self.call(&mut control, self.deadlines.call, move |device| device.doorbell(index))
    }

    fn doorbell_at(&self, index: u32) -> Option<&Doorbell> {
        usize::try_from(index).ok().and_then(|index| self.info.doorbells.get(index))
    }

    /// Reads from the device-specific configuration area, in any state but ERROR.
    ///
    /// # Errors
    /// `Outside`, and those of any call.
    pub fn config_read(&self, offset: u32, data: &mut [u8]) -> Result<(), InstanceError> {
        let mut control = self.control()?;
        self.in_config("config_read", offset, data.len())?;
        let mut bytes = vec![0; data.len()];
        let bytes = self.call(&mut control, self.deadlines.call, move |device| {
            device.config_read(offset, &mut bytes)?;
            Ok(bytes)
        })?;
        data.copy_from_slice(&bytes);
        Ok(())
    }

    /// Writes to the device-specific configuration area, in any state but ERROR.
    ///
    /// # Errors
    /// `Outside`, and those of any call.
    pub fn config_write(&self, offset: u32, data: &[u8]) -> Result<(), InstanceError> {
        let mut control = self.control()?;
        self.in_config("config_write", offset, data.len())?;
        let bytes = data.to_vec();
        self.call(&mut control, self.deadlines.call, move |device| {
            device.config_write(offset, &bytes)
        })
    }

    fn in_config(&self, call: &'static str, offset: u32, len: usize) -> Result<(), InstanceError> {
        let (first, length) = self.info.config.unwrap_or((0, 0));
        let end = u64::from(offset) + len as u64;
        if len > 0 && offset >= first && end <= u64::from(first) + u64::from(length) {
            return Ok(());
        }
        let place = "the configuration area".to_owned();
        Err(self.outside(call, place, u64::from(offset), len))
    }

    /// Resets the device to power-on contents: out of ERROR and NDMA, sessions dropped. It is in STOP
    /// afterwards. Parameters stay; its log ends.
    ///
    /// # Errors
    /// `Broken` if it is in ERROR because a call did not return, or the reset failed: then it is in
    /// ERROR whatever it was before.
    pub fn reset(&self) -> Result<(), InstanceError> {
        let mut control = crate::context::lock(&self.control);
        self.not_given_up(&control)?;
        self.context.mend();
        self.close();
        let has_states = self.format.is_some();
        let call = "reset";
        let state = self.call(&mut control, self.deadlines.state, move |device| {
            device.reset()?;
            if has_states { device.get_state() } else { Ok(State::Stop.number()) }
        });
        let state = match state {
            Err(InstanceError::Refused { status, text, .. }) => {
                let text = format!("status {status}: {text}");
                return Err(self.broken(self.context.break_down(Cause::Fatal { call, text })));
            }
            other => other?,
        };
        if state != State::Stop.number() {
            return Err(self.lied(call, format!("state {state} after it, not STOP")));
        }
        control.ndma = false;
        // The plugin does not touch its bitmap any more.
        control.log = None;
        self.enter_state(&mut control, State::Stop);
        self.no_pins(call)?;
        self.alive()
    }
}
