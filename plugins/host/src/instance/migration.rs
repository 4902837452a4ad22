//! States, state data, NDMA.

use super::{Control, Instance};
use crate::instance_error::InstanceError;
use crate::raw::Failed;
use crate::state::next;
use crate::{State, StateFormat};
use drogher_plugin_abi as abi;

/// How much there is to read in a pre-copy state, as the device estimates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrecopyInfo {
    /// Bytes of the first part still to be read.
    pub initial_bytes: u64,
    /// Bytes that changed since they were read.
    pub dirty_bytes: u64,
}

/// The outcome of reading state data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// So many bytes, more than 0, are in the buffer.
    Bytes(usize),
    /// Pre-copy: nothing more for now.
    NoMoreNow,
    /// STOP_COPY: the end.
    End,
}

/// The most state data asked for or given in one call.
const PIECE: usize = 1 << 20;

impl Instance {
    /// Brings the device to `target` by VFIO v2's shortest path. When it returns a state that does not
    /// run, no DMA is in flight and no interrupt under way, and none will be.
    ///
    /// # Errors
    /// `NoWay`; `Refused` if the device refuses a step: it is then in the state before that step, see
    /// [`Self::state`]; `Broken`.
    pub fn set_state(&self, target: State) -> Result<(), InstanceError> {
        let mut control = self.control()?;
        let format = self.format;
        let (p2p, pre_copy) = format.map_or((false, false), |f| (f.p2p, f.pre_copy));
        while control.state != target {
            let from = control.state;
            let to = match format {
                Some(_) => next(from, target, p2p, pre_copy),
                None => matches!(target, State::Stop | State::Running).then_some(target),
            };
            let Some(to) = to else {
                return Err(InstanceError::NoWay { instance: self.name.clone(), from, to: target });
            };
            self.arc(&mut control, from, to)?;
        }
        Ok(())
    }

    fn arc(&self, control: &mut Control, from: State, to: State) -> Result<(), InstanceError> {
        if to.runs() && !from.runs() && !control.ndma {
            // The device may begin before it returns.
            self.context.open();
        }
        if to.reaches_peers() && !control.ndma {
            self.context.open_to_peers();
        }
        let result = match self.format {
            Some(_) => self.one_arc(control, from, to),
            None => Ok(to),
        };
        // What the device is in now, also after a refusal; ERROR has closed the gates already.
        let now = match &result {
            Ok(state) => *state,
            Err(_) => from,
        };
        self.enter_state(control, now);
        if !now.runs() {
            self.close();
        } else if !now.reaches_peers() {
            self.context.close_to_peers();
        }
        self.alive()?;
        if result.is_ok() && !now.runs() {
            self.no_write_pins("set_state", now)?;
        }
        result.map(|_| ())
    }

    fn one_arc(
        &self,
        control: &mut Control,
        from: State,
        to: State,
    ) -> Result<State, InstanceError> {
        let call = "set_state";
        let (done, state) = self.call(control, self.deadlines.state, move |device| {
            let done = device.set_state(to.number());
            if done == Err(Failed::Status(abi::DROGHER_ERR_FATAL)) {
                return done.map(|()| (Ok(()), 0));
            }
            Ok((done, device.get_state()?))
        })?;
        let expected = if done.is_ok() { to } else { from };
        if state == abi::DROGHER_STATE_ERROR {
            let what = format!("it is in ERROR after the step from {from} to {to}");
            return Err(self.lied(call, what));
        }
        if state != expected.number() {
            let what = format!("state {state} after the step from {from} to {to}");
            return Err(self.lied(call, what));
        }
        match done {
            Ok(()) => Ok(to),
            Err(Failed::Lie(what)) => Err(self.lied(call, what)),
            Err(Failed::Status(status)) => {
                let text = self.context.take_last_error();
                let text = text.unwrap_or_else(|| "(no reason given)".to_owned());
                let text = format!("{from} to {to}: {text}");
                Err(InstanceError::Refused { instance: self.name.clone(), call, status, text })
            }
        }
    }

    fn migration(&self) -> Result<StateFormat, InstanceError> {
        self.format.ok_or_else(|| self.lacks("migration"))
    }

    fn lacks(&self, what: &'static str) -> InstanceError {
        InstanceError::Unsupported { instance: self.name.clone(), what }
    }

    /// How much there is to read, in a pre-copy state.
    ///
    /// # Errors
    /// `WrongState`, `Unsupported`, and those of any call.
    pub fn precopy_info(&self) -> Result<PrecopyInfo, InstanceError> {
        let mut control = self.control()?;
        self.migration()?;
        let call = "precopy_info";
        if !control.state.pre_copies() {
            return Err(self.wrong_state(call, control.state));
        }
        let info = self.call(&mut control, self.deadlines.call, |device| device.precopy_info())?;
        Ok(PrecopyInfo { initial_bytes: info.initial_bytes, dirty_bytes: info.dirty_bytes })
    }

    /// The device's estimate of what STOP_COPY would give now.
    ///
    /// # Errors
    /// `Unsupported`, and those of any call.
    pub fn stop_copy_size(&self) -> Result<u64, InstanceError> {
        let mut control = self.control()?;
        self.migration()?;
        self.call(&mut control, self.deadlines.call, |device| device.stop_copy_size())
    }

    /// Reads the next state data, in a saving state: at most `data.len()` bytes, at most 1 MiB.
    ///
    /// # Errors
    /// `WrongState`, `Unsupported`, and those of any call. Data may be lost then: the session is over.
    pub fn read_state(&self, data: &mut [u8]) -> Result<Read, InstanceError> {
        let mut control = self.control()?;
        self.migration()?;
        let (call, state) = ("migration.read", control.state);
        if !state.saves() {
            return Err(self.wrong_state(call, state));
        }
        let len = data.len().min(PIECE);
        if len == 0 {
            return Ok(Read::Bytes(0));
        }
        control.reading = true;
        let mut buffer = std::mem::take(&mut control.buffer);
        buffer.resize(len, 0);
        let (buffer, done) = self.call(&mut control, self.deadlines.call, move |device| {
            match device.read(&mut buffer) {
                Ok(done) => Ok((buffer, Some(done))),
                Err(Failed::Status(abi::DROGHER_ERR_NOMSG)) => Ok((buffer, None)),
                Err(failed) => Err(failed),
            }
        })?;
        let lie = |what: String| Err(self.lied(call, what));
        let read = match done {
            None if state.pre_copies() => Read::NoMoreNow,
            None => return lie("\"no more for now\" in STOP_COPY".to_owned()),
            Some(0) if state.pre_copies() => return lie(format!("the end in {state}")),
            Some(0) => Read::End,
            Some(done) => match usize::try_from(done).ok().and_then(|done| buffer.get(..done)) {
                Some(bytes) => {
                    data.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
                    Read::Bytes(bytes.len())
                }
                None => return lie(format!("{done} bytes, asked for {len}")),
            },
        };
        control.buffer = buffer;
        Ok(read)
    }

    /// Gives the device state data, in RESUMING; any amount.
    ///
    /// # Errors
    /// `WrongState`, `Unsupported`, and those of any call.
    pub fn write_state(&self, data: &[u8]) -> Result<(), InstanceError> {
        let mut control = self.control()?;
        self.migration()?;
        let call = "migration.write";
        if control.state != State::Resuming {
            return Err(self.wrong_state(call, control.state));
        }
        for piece in data.chunks(PIECE) {
            let mut buffer = std::mem::take(&mut control.buffer);
            buffer.clear();
            buffer.extend_from_slice(piece);
            control.buffer = self.call(&mut control, self.deadlines.call, move |device| {
                device.write(&buffer)?;
                Ok(buffer)
            })?;
        }
        Ok(())
    }

    /// In NDMA.
    pub fn in_ndma(&self) -> bool {
        crate::context::lock(&self.control).ndma
    }

    /// Enters NDMA, in a running state. On return no DMA is in flight, no interrupt under way, and
    /// none will be until [`Self::leave_ndma`] or a reset, whatever the plugin does.
    ///
    /// # Errors
    /// `Unsupported`, `WrongState`; `Refused`: it is not entered.
    pub fn enter_ndma(&self) -> Result<(), InstanceError> {
        let mut control = self.control()?;
        let call = "ndma.enter";
        if !self.has_ndma {
            return Err(self.lacks("NDMA"));
        }
        if !control.state.runs() {
            return Err(self.wrong_state(call, control.state));
        }
        if control.ndma {
            return Ok(());
        }
        self.call(&mut control, self.deadlines.state, |device| device.set_ndma(true))?;
        control.ndma = true;
        if let Err(what) = self.context.close_for_ndma() {
            self.context.break_down(crate::Cause::DmaInFlight { what });
        }
        self.alive()
    }

    /// Leaves NDMA, in a running state or STOP.
    ///
    /// # Errors
    /// `WrongState`; `Refused`: it stays entered.
    pub fn leave_ndma(&self) -> Result<(), InstanceError> {
        let mut control = self.control()?;
        let call = "ndma.leave";
        if !control.ndma {
            return Ok(());
        }
        let runs = control.state.runs();
        if !runs && control.state != State::Stop {
            return Err(self.wrong_state(call, control.state));
        }
        if runs {
            // The device may begin before it returns.
            self.context.open();
            if control.state.reaches_peers() {
                self.context.open_to_peers();
            }
        }
        let result = self.call(&mut control, self.deadlines.state, |device| device.set_ndma(false));
        match result {
            Ok(()) => control.ndma = false,
            Err(_) => self.close(),
        }
        result
    }
}
