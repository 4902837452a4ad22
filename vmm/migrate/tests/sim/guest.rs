//! The simulated machines: sparse RAM, a vCPU log like KVM's, DMA with D bits, one device.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use drogher_iommu_types::{DirtyBitmap, Gpa};
use drogher_migrate::config::{ConfigBlock, DeviceConfig, LeaseIdentity, MemoryRegion};
use drogher_migrate::{
    Blocker, DestinationHost, DevicePending, DeviceRead, Extent, GuestEnd, Harvest, Paused, Permit,
    Permits, Side, SourceHost, StateDigest, VmId,
};

use super::world::{Page, State, World, index};

/// More pages than one piece of the log, and not a multiple of 64.
pub const LOW_PAGES: u64 = 16_500;
pub const HIGH_FIRST: u64 = 1 << 20;
pub const HIGH_PAGES: u64 = 70;

#[derive(Debug, thiserror::Error)]
#[error("injected at {0}")]
pub struct Injected(&'static str);

/// What this guest does.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Pages written by the vCPU at every call into the machine.
    pub vcpu: u64,
    /// Pages written by DMA at every call.
    pub dma: u64,
    /// Pages that it writes to.
    pub working_set: u64,
}

pub const BUSY: Load = Load { vcpu: 2, dma: 1, working_set: 400 };

pub fn config() -> ConfigBlock {
    ConfigBlock {
        vm_id: VmId([0; 16]),
        lease: LeaseIdentity { path: "/nowhere".into(), device: 0, inode: 0 },
        epoch: 0,
        page_size: 4096,
        memory: vec![
            MemoryRegion { gpa: 0, bytes: LOW_PAGES << 12 },
            MemoryRegion { gpa: HIGH_FIRST << 12, bytes: HIGH_PAGES << 12 },
        ],
        cpus: 1,
        tsc_khz: 2_000_000,
        cpu_model: "host".into(),
        cpuid: Vec::new(),
        machine_state_version: 1,
        machine_state_min_reader: 1,
        max_machine_state: 4096,
        devices: vec![DeviceConfig {
            slot: 8,
            plugin: "drogher.test".into(),
            plugin_version: "1".into(),
            abi_major: 1,
            abi_minor: 0,
            state_version: 1,
            state_min_reader: 1,
            max_state: 1 << 20,
            params: Vec::new(),
            regions: Vec::new(),
            vectors: 1,
        }],
    }
}

/// The source's machine.
pub struct Source {
    pub world: World,
    pub load: Load,
    permit: Option<Permit>,
    tracking: bool,
    /// The rounds have begun.
    rounds: bool,
    /// KVM's log: set by writes, got by a harvest, cleared on request.
    log: BTreeSet<u64>,
    got: BTreeSet<u64>,
    d_bits: BTreeSet<u64>,
    /// Pages written since the final harvest.
    late: BTreeSet<u64>,
    sent: usize,
    saved: bool,
    serial: Option<u64>,
    pub paused: bool,
    pub ends: Option<GuestEnd>,
    /// It does not know where its RAM has holes, and so many reads of RAM take 100 ms each.
    pub slow_reads: u32,
    counter: u64,
}

impl Source {
    pub fn new(world: World, load: Load, permits: &Permits) -> Self {
        let mut source = Self {
            world,
            load,
            permit: permits.borrow().ok(),
            tracking: false,
            rounds: false,
            log: BTreeSet::new(),
            got: BTreeSet::new(),
            d_bits: BTreeSet::new(),
            late: BTreeSet::new(),
            sent: 0,
            saved: false,
            serial: None,
            paused: false,
            ends: None,
            slow_reads: 0,
            counter: 0,
        };
        source.work(600);
        source
    }

    /// The guest does what it does, if it runs.
    fn work(&mut self, times: u64) {
        let world = self.world.clone();
        let mut state = world.lock();
        if !state.running[0] {
            return;
        }
        for _ in 0..times {
            if !self.paused {
                for _ in 0..self.load.vcpu {
                    self.write(&mut state, false);
                }
            }
            for _ in 0..self.load.dma {
                self.write(&mut state, true);
            }
        }
        self.counter += 1;
        let counter = self.counter;
        state.machine[0] = counter;
        let at = usize::try_from(counter % 3000).unwrap();
        if state.device[0].len() <= at {
            state.device[0].resize(at + 1, 7);
        }
        state.device[0][at] = state.device[0][at].wrapping_add(1);
    }

    fn write(&mut self, state: &mut State, dma: bool) {
        let low = self.load.working_set - self.load.working_set / 8;
        let draw = state.draw(self.load.working_set);
        let page = if draw < low {
            // Scattered over the whole region, so that both pieces have some.
            draw * 37 % LOW_PAGES
        } else {
            HIGH_FIRST + draw % HIGH_PAGES
        };
        let at = usize::try_from(state.draw(4096)).unwrap();
        let value = u8::try_from(state.draw(4)).unwrap();
        let contents = state.ram[0].entry(page).or_insert_with(|| Box::new([0; 4096]));
        // Some pages become zero again.
        if value == 0 {
            contents.fill(0);
        } else {
            contents[at] = contents[at].wrapping_add(value);
        }
        self.dirtied(page, dma);
    }

    fn dirtied(&mut self, page: u64, dma: bool) {
        self.late.insert(page);
        if self.tracking {
            if dma {
                self.d_bits.insert(page);
            } else {
                self.log.insert(page);
            }
        }
    }

    fn call(&mut self, name: &'static str) -> Result<(), Injected> {
        self.work(1);
        if self.world.step(Side::Source, true) {
            return Err(Injected(name));
        }
        self.work(1);
        Ok(())
    }

    fn stopped(&self) -> bool {
        !self.world.lock().running[0]
    }
}

fn set(into: &DirtyBitmap, pages: impl Iterator<Item = u64>) {
    for page in pages {
        if into.covers(&(Gpa(page << 12)..Gpa((page + 1) << 12))) {
            into.set(Gpa(page << 12)).unwrap();
        }
    }
}

fn copy_out(state: &State, me: usize, first: u64, buf: &mut [u8]) {
    for (page, to) in (first..).zip(buf.chunks_exact_mut(4096)) {
        match state.ram[me].get(&page) {
            Some(contents) => to.copy_from_slice(&contents[..]),
            None => to.fill(0),
        }
    }
}

fn digests(state: &State, me: usize, out: &mut Vec<StateDigest>) {
    let sum = |bytes: &[u8]| bytes.iter().fold(17u64, |h, b| h.wrapping_mul(31) + u64::from(*b));
    out.push(StateDigest { name: "00:01.0".into(), hash: sum(&state.device[me]) });
    out.push(StateDigest { name: "vcpu0".into(), hash: state.machine[me] });
}

impl SourceHost for Source {
    type Error = Injected;

    fn config(&mut self) -> Result<ConfigBlock, Injected> {
        self.call("config")?;
        Ok(config())
    }

    fn track_start(&mut self) -> Result<(), Injected> {
        assert!(!self.tracking, "tracking is started twice");
        self.call("track_start")?;
        self.tracking = true;
        self.rounds = false;
        // All pages are set at first; the engine sends all of them anyway.
        self.log = (0..LOW_PAGES).chain(HIGH_FIRST..HIGH_FIRST + HIGH_PAGES).collect();
        self.d_bits.clear();
        self.sent = 0;
        self.saved = false;
        self.call("track_start")
    }

    fn rounds_begin(&mut self) -> Result<(), Injected> {
        assert!(self.tracking && !self.rounds, "the rounds begin once, and are tracked");
        self.rounds = true;
        self.call("rounds_begin")
    }

    fn track_stop(&mut self) -> Result<(), Injected> {
        self.tracking = false;
        self.got.clear();
        Ok(())
    }

    fn harvest_vcpus(
        &mut self,
        kind: Harvest,
        region: usize,
        into: &DirtyBitmap,
    ) -> Result<(), Injected> {
        self.call("harvest_vcpus")?;
        let own = config().memory[region].pages();
        assert!(self.tracking);
        match kind {
            Harvest::Round | Harvest::Final => {
                assert_eq!(kind == Harvest::Final, self.stopped());
                let found: Vec<u64> = self.log.range(own.clone()).copied().collect();
                set(into, found.iter().copied());
                self.got.extend(found);
            }
            Harvest::Last => {
                let found: Vec<u64> = self.log.range(own.clone()).copied().collect();
                for page in &found {
                    assert!(
                        self.late.contains(page),
                        "page {page:#x} was sent by the final harvest"
                    );
                }
                set(into, found.into_iter());
            }
        }
        if kind == Harvest::Final {
            self.late.retain(|page| !own.contains(page));
        }
        self.call("harvest_vcpus")
    }

    fn harvest_dma(&mut self, region: usize, into: &DirtyBitmap) -> Result<(), Injected> {
        assert!(self.rounds, "devices may be chosen to stand before the first harvest");
        self.call("harvest_dma")?;
        let own = config().memory[region].pages();
        let found: Vec<u64> = self.d_bits.range(own).copied().collect();
        for page in &found {
            self.d_bits.remove(page);
        }
        set(into, found.into_iter());
        self.call("harvest_dma")
    }

    fn clear_vcpu_log(&mut self, region: usize, pages: Range<u64>) -> Result<(), Injected> {
        let own = config().memory[region].pages();
        assert!(pages.start >= own.start && pages.end <= own.end);
        assert!(pages.end - pages.start <= drogher_migrate::host::PIECE_PAGES);
        assert!((pages.start - own.start).is_multiple_of(64));
        self.call("clear_vcpu_log")?;
        // Only what was got may be cleared; it is not got any more then.
        let got: Vec<u64> = self.got.range(pages).copied().collect();
        for page in got {
            self.got.remove(&page);
            self.log.remove(&page);
        }
        self.call("clear_vcpu_log")
    }

    fn extent(&mut self, pages: Range<u64>) -> Extent {
        if self.slow_reads > 0 {
            return Extent::Data(pages.end - pages.start);
        }
        let state = self.world.lock();
        let next = state.ram[0].range(pages.clone()).next();
        match next.map_or(pages.end, |(page, _)| *page) - pages.start {
            0 => {
                let present = (pages.start..).zip(state.ram[0].range(pages));
                Extent::Data(present.take_while(|(at, (page, _))| at == *page).count() as u64)
            }
            hole => Extent::Hole(hole),
        }
    }

    fn read_ram(&mut self, first: u64, buf: &mut [u8]) -> Result<(), Injected> {
        self.call("read_ram")?;
        if let Some(left) = self.slow_reads.checked_sub(1) {
            self.slow_reads = left;
            self.world.lock().advance(Duration::from_millis(100));
        }
        copy_out(&self.world.lock(), 0, first, buf);
        self.call("read_ram")
    }

    fn device_pending(&mut self) -> Result<DevicePending, Injected> {
        self.call("device_pending")?;
        Ok(DevicePending { precopy_bytes: 0, stop_copy_bytes: 4096 })
    }

    fn device_precopy(&mut self, _: usize, buf: &mut [u8]) -> Result<DeviceRead, Injected> {
        self.call("device_precopy")?;
        // The first part never changes once it is there: it may go early.
        if self.sent >= 4 {
            return Ok(DeviceRead::NoMoreNow);
        }
        buf[0] = 0xa0;
        self.sent += 1;
        Ok(DeviceRead::Bytes(1))
    }

    fn pause_vcpus(&mut self) -> Result<Paused, Injected> {
        self.call("pause_vcpus")?;
        Ok(Paused { by_user: self.paused, ended: self.ends })
    }

    fn quiesce(&mut self) -> Result<(), Injected> {
        self.call("quiesce")
    }

    fn stop(&mut self) -> Result<(), Injected> {
        self.call("stop")?;
        let mut state = self.world.lock();
        state.running[0] = false;
        state.serial += 1;
        self.serial = Some(state.serial);
        state.stopped[0] = self.serial;
        drop(state);
        self.permit = None;
        self.call("stop")
    }

    fn device_state(&mut self, _: usize, buf: &mut [u8]) -> Result<DeviceRead, Injected> {
        self.call("device_state")?;
        let world = self.world.clone();
        let mut state = world.lock();
        assert!(!state.running[0]);
        if self.saved {
            return Ok(DeviceRead::End);
        }
        self.saved = true;
        // Saving dirties memory: by the VMM's own write, and by the device.
        for (page, dma) in [(5, false), (HIGH_FIRST + 1, true)] {
            let contents = state.ram[0].entry(page).or_insert_with(|| Box::new([0; 4096]));
            contents[9] = contents[9].wrapping_add(1);
            self.dirtied(page, dma);
        }
        let bytes = &state.device[0];
        buf[..bytes.len()].copy_from_slice(bytes);
        Ok(DeviceRead::Bytes(bytes.len()))
    }

    fn machine_state(&mut self, out: &mut Vec<u8>) -> Result<(), Injected> {
        self.call("machine_state")?;
        let state = self.world.lock();
        out.extend_from_slice(&state.machine[0].to_le_bytes());
        out.extend_from_slice(&state.stopped[0].unwrap().to_le_bytes());
        Ok(())
    }

    fn state_digests(&mut self, out: &mut Vec<StateDigest>) -> Result<(), Injected> {
        self.call("state_digests")?;
        digests(&self.world.lock(), 0, out);
        Ok(())
    }

    fn resume(&mut self, permits: &Permits) -> Result<(), Injected> {
        if self.world.step(Side::Source, true) {
            return Err(Injected("resume"));
        }
        self.permit = Some(permits.borrow().expect("the lease lends permits"));
        self.saved = false;
        let mut state = self.world.lock();
        let stopped = self.serial.take();
        state.run_guest(Side::Source, stopped);
        Ok(())
    }
}

/// The destination's machine.
pub struct Destination {
    pub world: World,
    permit: Option<Permit>,
    device: Vec<u8>,
    pub blockers: Vec<Blocker>,
    /// Contents come right to where they belong.
    pub direct: bool,
    /// Where they come to: from this page on.
    place: Option<(u64, Vec<u8>)>,
    loaded: Option<u64>,
    pub arrived_paused: Option<bool>,
}

impl Destination {
    pub fn new(world: World) -> Self {
        let direct = world.lock().draw(2) == 0;
        Self {
            world,
            permit: None,
            device: Vec::new(),
            blockers: Vec::new(),
            direct,
            place: None,
            loaded: None,
            arrived_paused: None,
        }
    }

    /// What has come to the place that was given is memory.
    fn settle(&mut self) {
        let Some((first, bytes)) = self.place.take() else { return };
        let mut state = self.world.lock();
        for (page, new) in (first..).zip(bytes.chunks_exact(4096)) {
            let new: Page = Box::new(new.try_into().unwrap());
            let old = state.ram[1].get(&page).map_or([0; 4096], |old| **old);
            if old != *new {
                state.ram[1].insert(page, new);
            }
        }
    }

    fn call(&mut self, name: &'static str) -> Result<(), Injected> {
        self.settle();
        match self.world.step(Side::Destination, true) {
            true => Err(Injected(name)),
            false => Ok(()),
        }
    }
}

impl DestinationHost for Destination {
    type Error = Injected;

    fn check(&mut self, _: &ConfigBlock) -> Vec<Blocker> {
        self.blockers.clone()
    }

    fn prepare(&mut self, config: &ConfigBlock) -> Result<(), Injected> {
        assert_eq!(config.memory.len(), 2);
        self.world.lock().advance(Duration::from_millis(8));
        self.call("prepare")
    }

    fn ram_mut(&mut self, pages: Range<u64>) -> Option<&mut [u8]> {
        self.settle();
        assert!(!self.world.lock().running[1], "RAM is not this side's alone any more");
        if !self.direct {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(pages.end - pages.start).unwrap() * 4096];
        copy_out(&self.world.lock(), 1, pages.start, &mut bytes);
        let (_, bytes) = self.place.insert((pages.start, bytes));
        Some(bytes)
    }

    fn write_ram(&mut self, first: u64, data: &[u8]) -> Result<(), Injected> {
        self.call("write_ram")?;
        let mut state = self.world.lock();
        for (page, from) in (first..).zip(data.chunks_exact(4096)) {
            state.ram[1].insert(page, Box::new(from.try_into().unwrap()));
        }
        Ok(())
    }

    fn zero_ram(&mut self, pages: Range<u64>) -> Result<(), Injected> {
        self.call("zero_ram")?;
        let mut state = self.world.lock();
        for page in pages {
            // What came right to its place may have been what was there.
            let was_there = state.ram[1].remove(&page).is_some();
            assert!(was_there || self.direct, "it was zero already");
        }
        Ok(())
    }

    fn round_done(&mut self, round: u32) -> Result<(), Injected> {
        if round == 0 {
            self.world.lock().advance(Duration::from_millis(3));
        }
        self.call("round_done")
    }

    fn load_device(&mut self, device: usize, data: &[u8]) -> Result<(), Injected> {
        assert_eq!(device, 0);
        self.call("load_device")?;
        self.device.extend_from_slice(data);
        Ok(())
    }

    fn finish_device(&mut self, _: usize) -> Result<(), Injected> {
        self.call("finish_device")?;
        let early = self.device.iter().take_while(|b| **b == 0xa0).count().min(4);
        self.world.lock().device[1] = self.device.split_off(early);
        Ok(())
    }

    fn load_machine(&mut self, state: &[u8]) -> Result<(), Injected> {
        self.call("load_machine")?;
        self.world.lock().machine[1] = u64::from_le_bytes(state[..8].try_into().unwrap());
        self.loaded = Some(u64::from_le_bytes(state[8..].try_into().unwrap()));
        Ok(())
    }

    fn read_ram(&mut self, first: u64, buf: &mut [u8]) -> Result<(), Injected> {
        self.call("read_ram")?;
        copy_out(&self.world.lock(), 1, first, buf);
        Ok(())
    }

    fn state_digests(&mut self, out: &mut Vec<StateDigest>) -> Result<(), Injected> {
        self.call("state_digests")?;
        digests(&self.world.lock(), 1, out);
        Ok(())
    }

    fn run(&mut self, permits: &Permits, paused: bool) -> Result<(), Injected> {
        self.call("run")?;
        self.permit = Some(permits.borrow().expect("the lease lends permits"));
        self.arrived_paused = Some(paused);
        let mut state = self.world.lock();
        let stopped = self.loaded.take().expect("a state was loaded");
        state.stopped[index(Side::Destination)] = Some(stopped);
        state.run_guest(Side::Destination, Some(stopped));
        assert_same_guest(&state);
        Ok(())
    }
}

/// What arrived is what was stopped: the source's RAM has not changed since.
pub fn assert_same_guest(state: &State) {
    let zero = [0; 4096];
    let pages: BTreeSet<&u64> = state.ram[0].keys().chain(state.ram[1].keys()).collect();
    for page in pages {
        let of = |me: usize| state.ram[me].get(page).map_or(&zero, |p| &**p);
        assert!(of(0) == of(1), "page {page:#x} differs");
    }
    assert_eq!(state.device[0], state.device[1], "device state differs");
    assert_eq!(state.machine[0], state.machine[1], "machine state differs");
}
