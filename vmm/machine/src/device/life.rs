//! One device through run, stop, save, load and reset.
//!
//! Each function takes the device's `life` lock for its whole length, so that a reset by the guest,
//! which may come on a vCPU thread in the middle of pre-copy, falls between two steps.

use drogher_iommu_types::mutant;
use drogher_plugin_host::{Read, State};

use super::error::{DeviceError, Fault};
use super::function::PciDevice;
use super::stream::{self, Parser, Part};

/// What a running device holds, and a stopped one does not: a share in the right to run.
pub type Permit = Box<dyn Send>;

/// What became of reading a device's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateRead {
    /// So many bytes, at least one, are at the front of the buffer.
    Bytes(usize),
    /// Pre-copy: nothing more for now, or no pre-copy at all.
    NoMoreNow,
    /// After the stop: the end.
    End,
}

/// Which stream of state is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Session {
    #[default]
    None,
    PreCopy,
    StopCopy,
    /// STOP_COPY, all read.
    Saved,
    Resuming,
}

/// Where a device is in its life.
#[derive(Default)]
pub struct Life {
    permit: Option<Permit>,
    /// It is to run: true from `run` to `stop`, also if it has failed meanwhile.
    runs: bool,
    pub(super) ndma: bool,
    /// Its address space counts it as being in NDMA.
    pub(super) counted: bool,
    session: Session,
    /// The destination has to be told that what it has is worthless.
    restart: bool,
    /// Most bytes of state that may be sent; `None`: not announced.
    announced: Option<u64>,
    sent: u64,
    parser: Parser,
}

impl PciDevice {
    pub(super) fn call<T>(&self, what: &str, result: Result<T, Fault>) -> Result<T, DeviceError> {
        result.map_err(|source| DeviceError::Call {
            device: self.label().into(),
            what: what.into(),
            source,
        })
    }

    fn go(&self, state: State) -> Result<(), DeviceError> {
        self.call(&format!("going to {state}"), self.endpoint.go(state))
    }

    fn wrong_state(&self, what: &'static str) -> DeviceError {
        DeviceError::WrongState {
            device: self.label().into(),
            what,
            state: self.endpoint.state().to_string(),
        }
    }

    /// Refuses a device in ERROR.
    pub(super) fn alive(&self) -> Result<(), DeviceError> {
        match self.endpoint.failed() {
            None => Ok(()),
            Some(reason) => Err(DeviceError::Failed { device: self.label().into(), reason }),
        }
    }

    fn has_p2p(&self) -> bool {
        self.shape().migration.is_some_and(|migration| migration.p2p)
    }

    /// Most bytes of state that this device will send from now on. Pre-copy is held below half of it.
    pub(super) fn announce_state(&self) -> Result<u64, DeviceError> {
        let mut life = self.life();
        let now = match self.shape().migration {
            Some(_) => self.call("stop_copy_size", self.endpoint.stop_copy_bytes())?,
            None => 0,
        };
        let announced = now.saturating_mul(32).saturating_add(64 << 20);
        life.announced = Some(announced);
        Ok(announced)
    }

    /// Stopped, or running without DMA and interrupts, to P2P: the first pass of a start.
    pub(super) fn start_p2p(&self, permit: Permit) -> Result<(), DeviceError> {
        let mut life = self.life();
        // The new one is there before the old one goes.
        life.permit = Some(permit);
        life.runs = true;
        if let Some(ports) = &self.ports {
            ports.activate();
        }
        self.alive()?;
        match self.endpoint.state() {
            State::Resuming => return Err(self.wrong_state("run")),
            State::StopCopy => self.go(State::Stop)?,
            _ => {}
        }
        self.leave_ndma(&mut life)?;
        if self.has_p2p() && matches!(self.endpoint.state(), State::Stop | State::PreCopyP2p) {
            self.go(State::RunningP2p)?;
        }
        self.peers_open();
        Ok(())
    }

    /// To RUNNING: the second pass. Doorbells that it has missed are rung.
    pub(super) fn start_running(&self) -> Result<(), DeviceError> {
        let mut life = self.life();
        self.alive()?;
        self.go(State::Running)?;
        self.peers_open();
        life.session = Session::None;
        self.doorbells.replay(self.endpoint.as_ref());
        Ok(())
    }

    /// Begins to read state while the device runs, if it can.
    pub(super) fn start_precopy(&self) -> Result<(), DeviceError> {
        let mut life = self.life();
        self.alive()?;
        let Some(migration) = self.shape().migration else {
            return Err(DeviceError::NotMigratable { device: self.label().into() });
        };
        life.sent = 0;
        life.restart = false;
        if migration.pre_copy {
            self.go(State::PreCopy)?;
            life.session = Session::PreCopy;
        }
        Ok(())
    }

    /// The migration was given up while the device runs.
    pub(super) fn end_precopy(&self) -> Result<(), DeviceError> {
        let mut life = self.life();
        if life.session != Session::PreCopy {
            return Ok(());
        }
        life.session = Session::None;
        self.alive()?;
        self.go(State::Running)
    }

    /// Reads state while the device runs.
    pub(super) fn precopy_read(&self, buf: &mut [u8]) -> Result<StateRead, DeviceError> {
        let mut life = self.life();
        self.alive()?;
        if life.session != Session::PreCopy {
            return Ok(StateRead::NoMoreNow);
        }
        let budget = life.announced.unwrap_or(u64::MAX) / 2;
        if life.sent.saturating_add(buf.len() as u64) > budget {
            return Ok(StateRead::NoMoreNow);
        }
        self.read_frame(&mut life, buf)
    }

    /// Bytes that pre-copy could read now, and bytes that are to be read after the stop.
    pub(super) fn pending_state(&self) -> Result<(u64, u64), DeviceError> {
        let life = self.life();
        if self.shape().migration.is_none() {
            return Ok((0, 0));
        }
        self.alive()?;
        let stop_copy = self.call("stop_copy_size", self.endpoint.stop_copy_bytes())?;
        if life.session != Session::PreCopy {
            return Ok((0, stop_copy));
        }
        let info = self.call("precopy_info", self.endpoint.precopy_info())?;
        Ok((info.initial_bytes.saturating_add(info.dirty_bytes), stop_copy))
    }

    /// First pass of a stop: no more access to other devices.
    pub(super) fn to_p2p(&self) -> Result<(), DeviceError> {
        let life = self.life();
        if mutant!("device-not-quiesced") || self.endpoint.failed().is_some() || !self.has_p2p() {
            return Ok(());
        }
        match self.endpoint.state() {
            State::Running => self.go(State::RunningP2p),
            State::PreCopy if life.session == Session::PreCopy => self.go(State::PreCopyP2p),
            _ => Ok(()),
        }
    }

    /// No more DMA at all, if the device can do that while it runs.
    pub(super) fn to_ndma(&self) -> Result<(), DeviceError> {
        let mut life = self.life();
        let running = self.endpoint.state().runs();
        if mutant!("device-not-quiesced") || !self.shape().ndma || life.ndma || !running {
            return Ok(());
        }
        self.enter_ndma(&mut life)
    }

    /// Second pass of a stop. On return the device does nothing, or is in ERROR, where it can do
    /// nothing; its permit is given back. On an error it may still run, and keeps its permit.
    pub(super) fn to_stop(&self) -> Result<(), DeviceError> {
        let mut life = self.life();
        if let Some(inbox) = self.inbox.get() {
            inbox.hold();
        }
        if !mutant!("device-not-quiesced") && self.endpoint.failed().is_none() {
            let stopped = match (life.session, self.endpoint.state()) {
                (_, State::Stop | State::StopCopy | State::Resuming) => Ok(()),
                (Session::PreCopy, _) => self.go(State::StopCopy),
                _ => self.go(State::Stop),
            };
            if let Err(error) = stopped {
                if self.endpoint.failed().is_some() {
                    self.unplug();
                    life.permit = None;
                    life.runs = false;
                }
                return Err(error);
            }
            if life.session == Session::PreCopy {
                life.session = Session::StopCopy;
            }
        }
        self.unplug();
        life.permit = None;
        life.runs = false;
        self.count_stopped(&mut life)
    }

    /// No frame passes its ports any more: another machine may have what is at their other ends.
    fn unplug(&self) {
        if let Some(ports) = self.ports.as_ref().filter(|_| !mutant!("wire-outlives-permit")) {
            ports.deactivate();
        }
    }

    /// Reads the state of the stopped device, after what pre-copy gave.
    pub(super) fn stop_copy_read(&self, buf: &mut [u8]) -> Result<StateRead, DeviceError> {
        let mut life = self.life();
        self.alive()?;
        if life.runs {
            return Err(self.wrong_state("saving"));
        }
        match life.session {
            Session::Saved => return Ok(StateRead::End),
            Session::StopCopy => {}
            Session::Resuming => return Err(self.wrong_state("saving")),
            Session::None | Session::PreCopy => {
                if self.shape().migration.is_none() {
                    return Err(DeviceError::NotMigratable { device: self.label().into() });
                }
                // What an earlier session has sent (the guest was paused and went on) is void.
                life.restart |= life.session == Session::None && life.sent > 0;
                self.go(State::StopCopy)?;
                life.session = Session::StopCopy;
            }
        }
        let read = self.read_frame(&mut life, buf)?;
        if read == StateRead::End {
            life.session = Session::Saved;
        }
        let max = life.announced.unwrap_or(u64::MAX);
        if life.sent > max {
            let device = self.label().into();
            return Err(DeviceError::TooMuchState { device, sent: life.sent, max });
        }
        Ok(read)
    }

    fn read_frame(&self, life: &mut Life, buf: &mut [u8]) -> Result<StateRead, DeviceError> {
        let len = buf.len();
        let room = stream::payload(buf).ok_or(DeviceError::Buffer { len })?;
        let frame = if life.restart {
            life.restart = false;
            stream::put_restart(buf)
        } else {
            match self.call("reading state", self.endpoint.read_state(room))? {
                Read::Bytes(done) => stream::finish_data(buf, done.min(len - stream::HEADER)),
                Read::NoMoreNow => return Ok(StateRead::NoMoreNow),
                Read::End => return Ok(StateRead::End),
            }
        };
        life.sent = life.sent.saturating_add(frame as u64);
        Ok(StateRead::Bytes(frame))
    }

    /// Gives the whole state of the stopped device to `each`, as a fresh STOP_COPY would.
    pub(super) fn inspect_state(&self, mut each: impl FnMut(&[u8])) -> Result<(), DeviceError> {
        let life = self.life();
        self.alive()?;
        if life.runs || !matches!(life.session, Session::None | Session::Saved) {
            return Err(self.wrong_state("inspecting the state"));
        }
        if self.shape().migration.is_none() {
            return Ok(());
        }
        self.go(State::Stop)?;
        self.go(State::StopCopy)?;
        let mut buf = vec![0; 64 << 10];
        loop {
            match self.call("reading state", self.endpoint.read_state(&mut buf))? {
                Read::Bytes(done) => each(buf.get(..done).unwrap_or(&buf)),
                Read::NoMoreNow => return Err(self.wrong_state("reading on")),
                Read::End => break,
            }
        }
        self.go(State::Stop)
    }

    /// Ready to load a state. Interrupts are held and doorbells bound where they are likely to be.
    pub(super) fn begin_resume(&self) -> Result<(), DeviceError> {
        let mut life = self.life();
        self.alive()?;
        if self.shape().migration.is_none() {
            return Err(DeviceError::NotMigratable { device: self.label().into() });
        }
        self.go(State::Resuming)?;
        life.session = Session::Resuming;
        life.parser = Parser::default();
        self.bind_doorbells_early();
        Ok(())
    }

    /// Takes the next bytes of the source's stream.
    pub(super) fn load_chunk(&self, bytes: &[u8]) -> Result<(), DeviceError> {
        let mut life = self.life();
        self.alive()?;
        if life.session != Session::Resuming {
            return Err(self.wrong_state("loading"));
        }
        let fed = life.parser.feed(bytes, |part| match part {
            Part::Data(data) => self
                .call("writing state", self.endpoint.write_state(data))
                .map_err(FeedError::Device),
            Part::Restart => self
                .call("reset", self.endpoint.reset())
                .and_then(|()| self.go(State::Resuming))
                .map_err(FeedError::Device),
        });
        fed.map_err(|error| match error {
            FeedError::Device(error) => error,
            FeedError::Frame(source) => DeviceError::Frame { device: self.label().into(), source },
        })
    }

    /// The state is complete: the device checks and takes it.
    pub(super) fn commit(&self) -> Result<(), DeviceError> {
        let mut life = self.life();
        self.alive()?;
        if life.session != Session::Resuming {
            return Err(self.wrong_state("committing a load"));
        }
        let whole = life.parser.finish();
        whole.map_err(|source| DeviceError::Frame { device: self.label().into(), source })?;
        self.go(State::Stop)?;
        life.session = Session::None;
        Ok(())
    }

    /// The guest has asked for a function-level reset.
    pub(super) fn function_reset(&self) {
        if let Err(error) = self.reset(false) {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(device = self.label(), error, "function-level reset failed");
        }
    }

    /// Device and registers back to power-on, also out of ERROR; with `assign` the BARs are placed as
    /// by firmware. A device that was running runs on, one in pre-copy begins that anew.
    pub(super) fn reset(&self, assign: bool) -> Result<(), DeviceError> {
        let mut life = self.life();
        if !matches!(life.session, Session::None | Session::PreCopy) {
            return Err(self.wrong_state("reset"));
        }
        if let Some(inbox) = self.inbox.get() {
            inbox.drop_all(!life.runs);
        }
        let reset = self.reset_and_run(&mut life, assign);
        if reset.is_err() {
            self.no_peers();
        }
        reset
    }

    fn reset_and_run(&self, life: &mut Life, assign: bool) -> Result<(), DeviceError> {
        let reset = self.call("reset", self.endpoint.reset());
        self.reset_registers(assign);
        self.doorbells.forget();
        reset?;
        // It is in STOP, and its NDMA has ended: it counts again before it runs.
        life.ndma = false;
        self.count_out(life)?;
        if life.runs {
            self.go(State::Running)?;
            self.peers_open();
            if life.session == Session::PreCopy {
                life.restart = life.sent > 0;
                self.go(State::PreCopy)?;
            }
            self.reenter_early(life)?;
        }
        Ok(())
    }

    /// Writes of other devices go through, if it runs.
    fn peers_open(&self) {
        if let Some(inbox) = self.inbox.get().filter(|_| self.endpoint.state().runs()) {
            inbox.open();
        }
    }

    /// True while it holds a permit.
    pub(super) fn holds_permit(&self) -> bool {
        self.life().permit.is_some()
    }
}

/// Why a chunk was not taken.
enum FeedError {
    Device(DeviceError),
    Frame(stream::FrameError),
}

impl From<stream::FrameError> for FeedError {
    fn from(source: stream::FrameError) -> Self {
        Self::Frame(source)
    }
}
