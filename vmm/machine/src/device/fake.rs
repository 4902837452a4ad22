//! A device that fails at will, for tests.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use drogher_iommu::{Iova, Requester};
use drogher_plugin_host::{
    DeviceInfo, Doorbell, HostServices, ParamInfo, ParamKind, PeerWrite, PrecopyInfo, Read, Region,
    State, StateFormat,
};

use super::endpoint::{Endpoint, PluginName, Shape};
use super::error::{DeviceError, Fault};
use super::keys::DeviceKeys;
use super::set::{Made, Maker};

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a fake device holds and was asked.
struct Inner {
    state: State,
    ndma: bool,
    broken: Option<String>,
    memory: Vec<u8>,
    /// What a pre-copy session has not sent yet.
    unsent: bool,
    loaded: Vec<u8>,
    doorbells: Vec<u32>,
    refuse: BTreeSet<&'static str>,
    colour: String,
    /// Asked for when it is stopped, before the stop is done.
    last_irq: Option<u16>,
    /// Where it passes each letter on to, from inside the call that brings it.
    next: Option<u64>,
    /// Letters that were not passed on: no room, or not now.
    refused: usize,
    /// Accesses that it has taken, in order.
    writes: Vec<(u64, Vec<u8>)>,
}

impl Inner {
    /// As the plugin host's gate.
    fn may_send(&self) -> bool {
        self.broken.is_none() && self.state.reaches_peers() && !self.ndma
    }
}

/// A device of 64 bytes of memory at offset 0 of its 4 KiB BAR 0, a doorbell at 0x800 and two
/// vectors. In pre-copy it sends its memory once, after the stop once more: the last 64 bytes of a
/// stream count. DMA and interrupts pass as the plugin host lets them. What is written to
/// [`LETTERS`] it counts and sums up in its memory.
pub struct Fake {
    shape: Shape,
    requester: Requester,
    services: Arc<dyn HostServices>,
    inner: Mutex<Inner>,
    /// Register writes wait for it.
    pub door: Mutex<()>,
    /// Calls of all fakes of a set, in order: "1 RUNNING_P2P".
    calls: Arc<Mutex<Vec<String>>>,
    name: String,
}

pub const MEMORY: usize = 64;
pub const BELL: u64 = 0x800;
/// A register: each 8-byte write is counted at offset 48 of the memory, and summed up at 56.
pub const LETTERS: u64 = 0x100;

/// Sum over letters, which tells if one is lost, double or out of order.
pub fn letter_sum(letters: impl IntoIterator<Item = u64>) -> u64 {
    letters.into_iter().fold(0, |sum: u64, letter| sum.rotate_left(1).wrapping_add(letter))
}

impl Fake {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    fn called(&self, what: &str) {
        lock(&self.calls).push(format!("{} {what}", self.name));
    }

    /// The device wants to write to guest memory; says whether it could.
    pub fn dma(&self) -> bool {
        self.requester.write(Iova(0x1000), b"dma!").is_ok()
    }

    /// The device wants to interrupt, as a worker of a plugin does.
    pub fn irq(&self, vector: u16) {
        let open = {
            let inner = self.inner();
            inner.state.runs() && !inner.ndma
        };
        if open {
            self.services.irq(vector);
        }
    }

    /// The device wants to write to an address that is not memory; `None`: it may not now.
    pub fn peer(&self, gpa: u64, data: &[u8]) -> Option<PeerWrite> {
        self.inner().may_send().then(|| self.services.peer_write(gpa, data))
    }

    /// Each letter is passed on to `gpa` in the call that brings it.
    pub fn pass_on(&self, gpa: u64) {
        self.inner().next = Some(gpa);
    }

    /// Letters that could not be passed on.
    pub fn not_passed_on(&self) -> usize {
        self.inner().refused
    }

    /// Register writes that it has taken.
    pub fn writes(&self) -> Vec<(u64, Vec<u8>)> {
        self.inner().writes.clone()
    }

    /// How many letters have come, and their sum.
    pub fn letters(&self) -> (u64, u64) {
        let inner = self.inner();
        let quads = inner.memory.as_chunks::<8>().0;
        (u64::from_le_bytes(quads[6]), u64::from_le_bytes(quads[7]))
    }

    /// From now on `what` ("RUNNING", "reset", "ndma", "write") is refused, until forgiven.
    pub fn refuse(&self, what: &'static str) {
        self.inner().refuse.insert(what);
    }

    /// When it is told to stop, it finishes something first, and asks for `vector`.
    pub fn interrupt_at_stop(&self, vector: u16) {
        self.inner().last_irq = Some(vector);
    }

    pub fn forgive(&self) {
        self.inner().refuse.clear();
    }

    /// The device goes to ERROR.
    pub fn break_down(&self, why: &str) {
        self.inner().broken = Some(why.into());
        self.requester.revoke().expect("nothing in flight");
    }

    pub fn state(&self) -> State {
        self.inner().state
    }

    pub fn in_ndma(&self) -> bool {
        self.inner().ndma
    }

    /// Doorbells that it was told of.
    pub fn rung(&self) -> Vec<u32> {
        self.inner().doorbells.clone()
    }

    pub fn memory(&self) -> Vec<u8> {
        self.inner().memory.clone()
    }

    fn allow(&self, what: &str) -> Result<MutexGuard<'_, Inner>, Fault> {
        let inner = self.inner();
        if let Some(why) = &inner.broken {
            return Err(why.clone().into());
        }
        if inner.refuse.contains(what) {
            return Err(format!("{what} refused").into());
        }
        Ok(inner)
    }

    fn gate(&self, inner: &Inner) {
        if inner.state.runs() && !inner.ndma {
            self.requester.restore();
        } else {
            self.requester.revoke().expect("nothing in flight");
        }
    }
}

impl Endpoint for Fake {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn region_read(&self, _region: u32, offset: u64, data: &mut [u8]) -> Result<(), Fault> {
        let inner = self.allow("read")?;
        let offset = usize::try_from(offset)?;
        let from = inner.memory.get(offset..offset + data.len()).ok_or("no register")?;
        data.copy_from_slice(from);
        Ok(())
    }

    fn region_write(&self, _region: u32, offset: u64, data: &[u8]) -> Result<(), Fault> {
        drop(lock(&self.door));
        let mut inner = self.allow("write")?;
        if !inner.state.runs() {
            return Err("it does not run".into());
        }
        inner.writes.push((offset, data.to_vec()));
        if offset == LETTERS {
            let letter = u64::from_le_bytes(data.try_into()?);
            let quads = inner.memory.as_chunks_mut::<8>().0;
            let count = u64::from_le_bytes(quads[6]) + 1;
            let sum = u64::from_le_bytes(quads[7]).rotate_left(1);
            quads[6] = count.to_le_bytes();
            quads[7] = sum.wrapping_add(letter).to_le_bytes();
            inner.unsent = true;
            if let Some(next) = inner.next {
                let passed =
                    inner.may_send() && self.services.peer_write(next, data) == PeerWrite::Taken;
                inner.refused += usize::from(!passed);
            }
            return Ok(());
        }
        let offset = usize::try_from(offset)?;
        let to = inner.memory.get_mut(offset..offset + data.len()).ok_or("no register")?;
        to.copy_from_slice(data);
        inner.unsent = true;
        Ok(())
    }

    fn config_read(&self, _offset: u32, _data: &mut [u8]) -> Result<(), Fault> {
        Err("no area".into())
    }

    fn config_write(&self, _offset: u32, _data: &[u8]) -> Result<(), Fault> {
        Err("no area".into())
    }

    fn doorbell(&self, index: u32) -> Result<(), Fault> {
        self.allow("doorbell")?.doorbells.push(index);
        Ok(())
    }

    fn reset(&self) -> Result<(), Fault> {
        self.called("reset");
        let mut inner = self.inner();
        if inner.refuse.contains("reset") {
            inner.broken = Some("reset failed".into());
            return Err("reset failed".into());
        }
        inner.broken = None;
        inner.memory.fill(0);
        inner.loaded.clear();
        inner.doorbells.clear();
        inner.ndma = false;
        inner.state = State::Stop;
        self.gate(&inner);
        Ok(())
    }

    fn failed(&self) -> Option<String> {
        self.inner().broken.clone()
    }

    fn state(&self) -> State {
        let inner = self.inner();
        if inner.broken.is_some() { State::Error } else { inner.state }
    }

    fn go(&self, state: State) -> Result<(), Fault> {
        self.called(state.name());
        let mut inner = self.allow(state.name())?;
        let from = inner.state;
        match (from, state) {
            (State::Resuming, State::Stop) => {
                let len = inner.loaded.len();
                let last = len.checked_sub(MEMORY).ok_or("state too short")?;
                inner.memory = inner.loaded.split_off(last);
            }
            (State::Resuming | State::StopCopy, to) if to != from && to != State::Stop => {
                return Err(format!("no way from {from} to {to}").into());
            }
            (_, State::Resuming) => inner.loaded.clear(),
            _ => {}
        }
        if from.runs()
            && !state.runs()
            && let Some(vector) = inner.last_irq
        {
            self.services.irq(vector);
        }
        let fresh = state.saves() && !from.saves();
        inner.unsent |= fresh || (state == State::StopCopy && from != state);
        inner.state = state;
        self.gate(&inner);
        Ok(())
    }

    fn set_ndma(&self, on: bool) -> Result<(), Fault> {
        self.called(if on { "NDMA" } else { "no NDMA" });
        let mut inner = self.allow("ndma")?;
        inner.ndma = on;
        self.gate(&inner);
        Ok(())
    }

    fn precopy_info(&self) -> Result<PrecopyInfo, Fault> {
        let inner = self.allow("info")?;
        let dirty_bytes = if inner.unsent { MEMORY as u64 } else { 0 };
        Ok(PrecopyInfo { initial_bytes: 0, dirty_bytes })
    }

    fn stop_copy_bytes(&self) -> Result<u64, Fault> {
        self.allow("size").map(|_| MEMORY as u64)
    }

    fn read_state(&self, buf: &mut [u8]) -> Result<Read, Fault> {
        let mut inner = self.allow("state")?;
        if !std::mem::take(&mut inner.unsent) {
            let stopped = inner.state == State::StopCopy;
            return Ok(if stopped { Read::End } else { Read::NoMoreNow });
        }
        let room = buf.get_mut(..MEMORY).ok_or("too little room")?;
        room.copy_from_slice(&inner.memory);
        Ok(Read::Bytes(MEMORY))
    }

    fn write_state(&self, data: &[u8]) -> Result<(), Fault> {
        self.allow("load")?.loaded.extend_from_slice(data);
        Ok(())
    }

    fn param_infos(&self) -> Vec<ParamInfo> {
        vec![colour()]
    }

    fn set_param(&self, name: &str, value: &str) -> Result<(), Fault> {
        let mut inner = self.allow("set")?;
        if name != "colour" {
            return Err(format!("no parameter {name}").into());
        }
        colour().check(value)?;
        inner.colour = value.into();
        Ok(())
    }

    fn params(&self) -> Result<Vec<(String, String)>, Fault> {
        Ok(vec![("colour".into(), self.inner().colour.clone())])
    }
}

/// The one parameter.
fn colour() -> ParamInfo {
    ParamInfo {
        name: "colour".into(),
        kind: ParamKind::Text,
        default: "blue".into(),
        doc: "What it looks like".into(),
        runtime: true,
        compat: false,
    }
}

/// What a fake can do besides running.
#[derive(Clone, Copy)]
pub struct Can {
    pub migrate: bool,
    pub pre_copy: bool,
    pub p2p: bool,
    pub ndma: bool,
}

pub const ALL: Can = Can { migrate: true, pre_copy: true, p2p: true, ndma: true };

fn shape(can: Can) -> Shape {
    Shape {
        plugin: PluginName {
            id: "test.fake".into(),
            version: "1.0".into(),
            abi_major: 1,
            abi_minor: 0,
        },
        info: DeviceInfo {
            vendor_id: 0xd70e,
            device_id: 0x7e57,
            subsystem_vendor_id: 0,
            subsystem_id: 0,
            class_code: 0xff_0000,
            revision: 1,
            regions: vec![Region {
                index: 0,
                length: 0x1000,
                io: false,
                wide: false,
                prefetch: false,
            }],
            vectors: 2,
            doorbells: vec![Doorbell { region: 0, offset: BELL, width: 4 }],
            config: None,
        },
        migration: can.migrate.then_some(StateFormat {
            version: 2,
            min_reader: 2,
            oldest_read: 1,
            p2p: can.p2p,
            pre_copy: can.pre_copy,
        }),
        ndma: can.ndma,
    }
}

/// Makes of fakes, which appear in `made`; what they are called for in `calls`.
pub fn makers(
    devices: &[Can],
    made: &Arc<Mutex<Vec<Arc<Fake>>>>,
    calls: &Arc<Mutex<Vec<String>>>,
) -> Vec<Made<'static>> {
    let maker = |(number, &can): (usize, &Can)| -> Maker<'static> {
        let (made, calls) = (Arc::clone(made), Arc::clone(calls));
        Box::new(move |_, requester, services| {
            requester.revoke().expect("nothing in flight");
            let inner = Inner {
                state: State::Stop,
                ndma: false,
                broken: None,
                memory: vec![0; MEMORY],
                unsent: false,
                loaded: Vec::new(),
                doorbells: Vec::new(),
                refuse: BTreeSet::new(),
                colour: "blue".into(),
                last_irq: None,
                next: None,
                refused: 0,
                writes: Vec::new(),
            };
            let fake = Arc::new(Fake {
                shape: shape(can),
                requester,
                services,
                inner: Mutex::new(inner),
                door: Mutex::new(()),
                calls,
                name: (number + 1).to_string(),
            });
            lock(&made).push(Arc::clone(&fake));
            Ok::<Arc<dyn Endpoint>, DeviceError>(fake)
        })
    };
    devices.iter().enumerate().map(|each| (DeviceKeys::default(), maker(each))).collect()
}
