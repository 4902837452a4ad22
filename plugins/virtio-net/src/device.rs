//! The device as the host sees it: every call in, and nothing else. Calls never overlap.

use std::sync::Arc;

use drogher_plugin_sdk::{
    Device, DeviceInfo, Doorbell, Failure, Host, LogCaps, LogReport, LogStart, PageLog, ParamSpec,
    Params, PciCap, Read, Region, State, StateFormat,
};

use crate::bus::{Bus, HostBus};
use crate::format::{self, LoadError, MAX_BYTES};
use crate::params::{self, Settings};
use crate::regs::{
    self, COMMON, ISR, NET, NOTIFY, NOTIFY_STEP, QUEUES, REGION_BYTES, Registers, VECTORS,
};
use crate::worker::{HELD_BYTES, HELD_FRAMES, Inner, NotParked, Shared, Worker};

/// PCI vendor id of virtio.
pub const VENDOR_ID: u16 = 0x1af4;
/// PCI device id: 0x1040 and the type, network card.
pub const DEVICE_ID: u16 = 0x1041;
/// PCI class: Ethernet controller.
pub const CLASS_CODE: u32 = 0x02_00_00;
/// The only region.
const REGION: u32 = 0;
/// The capability that is a window to the registers, and where its data begins.
const WINDOW_CAP: u32 = 4;
const WINDOW_DATA: usize = 16;
const WINDOW_BYTES: usize = 20;

/// The window to the registers in configuration space.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Window {
    /// BAR.
    pub bar: u8,
    /// Offset in it.
    pub offset: u32,
    /// Bytes of an access.
    pub length: u32,
}

/// The transfer of state that is going on.
enum Session {
    None,
    /// All of it, and how much was read.
    Save(Vec<u8>, usize),
    Load(Vec<u8>),
    Refused(LoadError),
}

/// One instance.
pub struct VirtioNet<B: Bus = HostBus> {
    shared: Arc<Shared>,
    bus: Arc<B>,
    settings: Settings,
    window: Window,
    session: Session,
    state: State,
    log: Arc<PageLog>,
    /// Ends with the instance.
    _worker: Worker<B>,
}

/// The worker's refusal as a failure that the host understands.
fn not_parked(error: NotParked) -> Failure {
    Failure::io(error.to_string())
}

/// Takes what waits at the port into the device's hands: it moves with the device.
fn drain(bus: &impl Bus, inner: &mut Inner) {
    if crate::mutant("net-port-not-drained") {
        return;
    }
    let mut bytes: usize = inner.held.iter().map(Vec::len).sum();
    while inner.held.len() < HELD_FRAMES && bytes < HELD_BYTES {
        let Some(frame) = bus.receive() else { break };
        bytes += frame.len();
        inner.held.push_back(frame);
    }
}

/// Drops what came for a driver that is gone, as far as a port keeps frames: the next one did not ask for it.
fn forget(bus: &impl Bus, inner: &mut Inner) {
    inner.held.clear();
    for _ in 0..HELD_FRAMES {
        if bus.receive().is_none() {
            break;
        }
    }
}

impl<B: Bus> VirtioNet<B> {
    /// A device after power-on.
    ///
    /// # Errors
    /// No thread to be had.
    pub fn new(bus: Arc<B>, settings: Settings, log: Arc<PageLog>) -> Result<Self, Failure> {
        let shared = Arc::new(Shared::new(Registers::new(settings.queue_size, settings.mac)));
        let worker = Worker::start(Arc::clone(&shared), Arc::clone(&bus))
            .map_err(|error| Failure::io(format!("Cannot start the worker: {error}")))?;
        Ok(Self {
            shared,
            bus,
            settings,
            window: Window::default(),
            session: Session::None,
            state: State::Stop,
            log,
            _worker: worker,
        })
    }

    /// Changes that the worker is to see at once.
    fn change<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        let value = self.shared.with(act);
        self.bus.wake();
        value
    }

    /// Changes that need silence.
    fn while_idle<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> Result<T, Failure> {
        let value = self.shared.while_idle(act).map_err(not_parked);
        self.bus.wake();
        value
    }

    fn ring(&self, queue: u64) {
        self.change(|inner| {
            if let Some(look) = usize::try_from(queue).ok().and_then(|at| inner.look.get_mut(at)) {
                *look = true;
            }
        });
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        self.shared.with(|inner| inner.regs.read(offset, data));
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Failure> {
        if (NOTIFY.0..NOTIFY.0 + u64::from(NOTIFY.1)).contains(&offset) {
            self.ring((offset - NOTIFY.0) / u64::from(NOTIFY_STEP));
            return Ok(());
        }
        if regs::needs_idle(offset, data) {
            return self.while_idle(|inner| {
                inner.regs.reset();
                forget(&*self.bus, inner);
            });
        }
        let vector = self.change(|inner| {
            inner.look_at_all();
            inner.regs.write(offset, data)
        });
        if let Some(vector) = vector {
            self.bus.irq(vector);
        }
        Ok(())
    }

    /// The window's bytes, as far as they are its own.
    fn window_bytes(&self) -> [u8; WINDOW_BYTES] {
        let mut bytes = [0; WINDOW_BYTES];
        let parts: [(usize, &[u8]); 4] = [
            (3, &[5, self.window.bar]),
            (8, &self.window.offset.to_le_bytes()),
            (12, &self.window.length.to_le_bytes()),
            (WINDOW_DATA, &[]),
        ];
        for (at, part) in parts {
            for (to, from) in bytes.iter_mut().skip(at).zip(part) {
                *to = *from;
            }
        }
        bytes
    }

    /// Where the window leads: an offset in the region, and bytes.
    fn window_target(&self) -> Option<(u64, usize)> {
        let Window { bar, offset, length } = self.window;
        let length = usize::try_from(length).ok().filter(|length| matches!(length, 1 | 2 | 4))?;
        let inside = u64::from(offset) + length as u64 <= REGION_BYTES;
        (bar == 0 && inside && (offset as usize).is_multiple_of(length))
            .then_some((offset.into(), length))
    }

    fn commit(&mut self) -> Result<(), Failure> {
        let loaded = match std::mem::replace(&mut self.session, Session::None) {
            Session::Load(bytes) => {
                format::load(&bytes, self.settings.queue_size, self.settings.mac)
            }
            Session::Refused(error) => Err(error),
            Session::None | Session::Save(..) => {
                return Err(Failure::not_allowed("Nothing is loaded"));
            }
        };
        match loaded {
            Ok(loaded) => {
                self.window = loaded.window;
                self.shared.with(|inner| {
                    inner.regs = loaded.regs;
                    inner.held = loaded.held.into();
                });
                Ok(())
            }
            Err(error) => Err(self.refuse(error)),
        }
    }

    fn refuse(&mut self, error: LoadError) -> Failure {
        let failure = Failure::invalid(error.to_string());
        self.session = Session::Refused(error);
        failure
    }

    fn save(&self) -> Vec<u8> {
        let (mac, window) = (self.settings.mac, &self.window);
        self.shared.with(|inner| format::save(&inner.regs, mac, window, inner.held.iter()))
    }
}

/// A virtio capability: type, then BAR 0, id 0, offset, length, and what follows.
fn capability(kind: u8, (offset, length): (u64, u32), more: &[u8]) -> PciCap {
    let mut body = vec![kind, 0, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend(length.to_le_bytes());
    body.extend_from_slice(more);
    PciCap { body, access: false }
}

impl Device for VirtioNet {
    const MIGRATION: Option<StateFormat> = Some(StateFormat {
        version: format::VERSION,
        min_reader: format::VERSION,
        oldest_read: format::VERSION,
        p2p: true,
        pre_copy: false,
    });
    const NDMA: bool = true;
    const PARAMS: &'static [ParamSpec] = params::SPECS;

    fn create(host: Host, params: &Params) -> Result<Self, Failure> {
        let (settings, log) = (Settings::new(params)?, Arc::new(PageLog::default()));
        let marked = settings.log.then(|| Arc::clone(&log));
        Self::new(Arc::new(HostBus::new(host, marked)), settings, log)
    }

    fn info(&self) -> DeviceInfo {
        let mut info = DeviceInfo::new(VENDOR_ID, DEVICE_ID, CLASS_CODE);
        info.revision = 1;
        info.regions = vec![Region::memory(REGION, REGION_BYTES)];
        info.vectors = VECTORS;
        let place = |queue: u16| NOTIFY.0 + u64::from(NOTIFY_STEP) * u64::from(queue);
        let doorbell = |queue| Doorbell { region: REGION, offset: place(queue), width: 2 };
        info.doorbells = (0..QUEUES).map(doorbell).collect();
        let mut window = capability(5, (0, 0), &[0; 4]);
        window.access = true;
        info.caps = vec![
            capability(1, COMMON, &[]),
            capability(2, NOTIFY, &NOTIFY_STEP.to_le_bytes()),
            capability(3, ISR, &[]),
            capability(4, NET, &[]),
            window,
        ];
        info.ports = 1;
        info
    }

    fn reset(&mut self) -> Result<(), Failure> {
        self.while_idle(|inner| {
            inner.regs.reset();
            forget(&*self.bus, inner);
            (inner.running, inner.ndma) = (false, false);
        })?;
        self.window = Window::default();
        self.session = Session::None;
        self.state = State::Stop;
        self.log.stop();
        Ok(())
    }

    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Failure> {
        if region != REGION {
            return Err(Failure::invalid(format!("No region {region}")));
        }
        self.read(offset, data);
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Failure> {
        if region != REGION {
            return Err(Failure::invalid(format!("No region {region}")));
        }
        self.write(offset, data)
    }

    fn doorbell(&mut self, index: u32) -> Result<(), Failure> {
        self.ring(index.into());
        Ok(())
    }

    fn cap_read(&mut self, cap: u32, offset: u32, data: &mut [u8]) -> Result<(), Failure> {
        if cap != WINDOW_CAP {
            return Err(Failure::invalid(format!("No capability {cap} to read")));
        }
        let mut bytes = self.window_bytes();
        let first = offset as usize;
        if first + data.len() > WINDOW_DATA
            && let Some((at, length)) = self.window_target()
            && let Some(to) = bytes.get_mut(WINDOW_DATA..WINDOW_DATA + length)
        {
            self.read(at, to);
        }
        for (to, from) in data.iter_mut().zip(bytes.iter().skip(first)) {
            *to = *from;
        }
        Ok(())
    }

    fn cap_write(&mut self, cap: u32, offset: u32, data: &[u8]) -> Result<(), Failure> {
        if cap != WINDOW_CAP {
            return Err(Failure::invalid(format!("No capability {cap} to write")));
        }
        let first = offset as usize;
        if first >= WINDOW_DATA {
            let Some((at, length)) = self.window_target() else { return Ok(()) };
            return match data.get(..length) {
                Some(data) if first == WINDOW_DATA && self.state.runs() => self.write(at, data),
                _ => Ok(()),
            };
        }
        let mut bytes = self.window_bytes();
        for (to, from) in bytes.iter_mut().skip(first).zip(data) {
            *to = *from;
        }
        let [_, _, _, _, bar, _, _, _, o0, o1, o2, o3, l0, l1, l2, l3, ..] = bytes;
        self.window = Window {
            bar,
            offset: u32::from_le_bytes([o0, o1, o2, o3]),
            length: u32::from_le_bytes([l0, l1, l2, l3]),
        };
        Ok(())
    }

    /// In the P2P states it serves no queue: it cannot tell another device's BAR from RAM.
    fn set_state(&mut self, from: State, to: State) -> Result<(), Failure> {
        if from == State::Resuming {
            self.commit()?;
        }
        let bus = Arc::clone(&self.bus);
        self.while_idle(|inner| {
            if from.runs() && !inner.ndma && inner.regs.is_live(regs::RX) && to != State::Running {
                drain(&*bus, inner);
            }
            inner.running = to == State::Running;
            inner.look_at_all();
        })?;
        self.session = match to {
            State::Resuming => Session::Load(Vec::new()),
            State::StopCopy => Session::Save(self.save(), 0),
            _ => Session::None,
        };
        self.state = to;
        Ok(())
    }

    fn stop_copy_size(&mut self) -> Result<u64, Failure> {
        Ok(match &self.session {
            Session::Save(bytes, read) => bytes.len().saturating_sub(*read) as u64,
            _ => self.save().len() as u64,
        })
    }

    fn read_state(&mut self, data: &mut [u8]) -> Result<Read, Failure> {
        let Session::Save(bytes, read) = &mut self.session else {
            return Err(Failure::not_allowed("No state is being saved"));
        };
        let rest = bytes.get(*read..).unwrap_or_default();
        let len = rest.len().min(data.len());
        if len == 0 {
            return Ok(Read::End);
        }
        data.split_at_mut(len).0.copy_from_slice(rest.split_at(len).0);
        *read += len;
        Ok(Read::Bytes(len))
    }

    fn write_state(&mut self, data: &[u8]) -> Result<(), Failure> {
        let error = match &mut self.session {
            Session::Load(bytes) if bytes.len().saturating_add(data.len()) <= MAX_BYTES => {
                bytes.extend_from_slice(data);
                return Ok(());
            }
            Session::Load(bytes) => LoadError::Long(bytes.len() + data.len() - MAX_BYTES),
            Session::Refused(error) => error.clone(),
            Session::None | Session::Save(..) => {
                return Err(Failure::not_allowed("No state is being loaded"));
            }
        };
        Err(self.refuse(error))
    }

    fn enter_ndma(&mut self) -> Result<(), Failure> {
        let bus = Arc::clone(&self.bus);
        let runs = self.state.runs();
        self.while_idle(|inner| {
            if runs && inner.regs.is_live(regs::RX) {
                drain(&*bus, inner);
            }
            inner.ndma = true;
        })
    }

    fn leave_ndma(&mut self) -> Result<(), Failure> {
        self.change(|inner| {
            inner.ndma = false;
            inner.look_at_all();
        });
        Ok(())
    }

    fn log_caps(&self) -> Option<LogCaps> {
        self.settings.log.then_some(LogCaps::ANY)
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
}
