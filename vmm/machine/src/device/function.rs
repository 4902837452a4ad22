//! One plugin instance as a PCI function: registers, BARs, doorbells, interrupts.
//!
//! Locks, in this order: `life` (control side, resets), `regs`, the interrupt table. No lock but
//! `life` is held over a call into the device, and the device's own threads (interrupts) take the
//! table's only, so a device that waits for its workers cannot wait for us.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use drogher_iommu::{RequesterStats, Rid};
use drogher_plugin_host::{Capability, State};

use super::doorbell::Doorbells;
use super::endpoint::{Endpoint, Shape};
use super::error::{DeviceError, Fault};
use super::gate::BusMaster;
use super::inbox::Inbox;
use super::irq::{Interrupts, MSIX_BAR, msix_bar_size};
use super::keys::DeviceKeys;
use super::life::Life;
use super::mmio::{BarAccess, MmioMap};
use super::tracked::Early;
use drogher_wires::{Ports, WireCounts, WireSpec};

use crate::pci::msix::MsixCounts;
use crate::pci::{
    BarKind, BarSpec, BarWindow, ConfigSpace, Effects, Function, Identity, MMIO_WINDOW,
};
use crate::tracking::Space;
use crate::wiring::Wiring;

/// Everything of a function that the guest can change in configuration space.
pub(super) struct Regs {
    pub(super) config: ConfigSpace,
    /// Where firmware would put the BARs.
    firmware: Vec<(u8, u64)>,
}

/// One device on bus 0.
pub struct PciDevice {
    slot: u8,
    label: String,
    keys: DeviceKeys,
    pub(super) endpoint: Arc<dyn Endpoint>,
    pub(super) interrupts: Arc<Interrupts>,
    pub(super) doorbells: Doorbells,
    bus_master: BusMaster,
    space: Arc<Space>,
    pub(super) early: Early,
    map: Arc<MmioMap>,
    regs: Mutex<Regs>,
    life: Mutex<Life>,
    /// Capabilities with bytes of the device's own.
    own_caps: Vec<OwnCap>,
    /// The wires in its Ethernet ports.
    pub(super) ports: Option<Arc<Ports>>,
    /// Writes of other devices; there is none if nobody may.
    pub(super) inbox: OnceLock<Arc<Inbox>>,
    this: Weak<Self>,
}

/// Bytes of configuration space that are read from a capability of the device and written to it.
struct OwnCap {
    /// The capability's number.
    cap: u32,
    /// Where it begins.
    start: u16,
    /// Where its own bytes lie in configuration space.
    own: Range<usize>,
}

/// Configuration space, where firmware would put the BARs, and what of it is the device's.
type Described = (ConfigSpace, Vec<(u8, u64)>, Vec<OwnCap>);

/// What a function is made of.
pub(super) struct Parts {
    pub(super) slot: u8,
    pub(super) label: String,
    pub(super) keys: DeviceKeys,
    pub(super) endpoint: Arc<dyn Endpoint>,
    pub(super) interrupts: Arc<Interrupts>,
    pub(super) bus_master: BusMaster,
    pub(super) space: Arc<Space>,
    pub(super) map: Arc<MmioMap>,
    pub(super) ports: Option<Arc<Ports>>,
}

impl PciDevice {
    /// A function after power-on, its BARs assigned, the device stopped.
    pub(super) fn new(
        parts: Parts,
        window: &mut BarWindow,
        wiring: &Arc<dyn Wiring>,
    ) -> Result<Arc<Self>, DeviceError> {
        let Parts { slot, label, keys, endpoint, interrupts, bus_master, space, map, ports } =
            parts;
        let (config, firmware, own_caps) = describe(&label, endpoint.shape(), window)?;
        let doorbells = Doorbells::new(&label, &endpoint, wiring)?;
        let device = Arc::new_cyclic(|this| Self {
            slot,
            label,
            keys,
            endpoint,
            interrupts,
            doorbells,
            bus_master,
            space,
            early: Early::default(),
            map,
            regs: Mutex::new(Regs { config, firmware }),
            life: Mutex::new(Life::default()),
            own_caps,
            ports,
            inbox: OnceLock::new(),
            this: this.clone(),
        });
        device.power_on_registers();
        Ok(device)
    }

    /// How messages name it.
    pub fn label(&self) -> &str {
        &self.label
    }

    pub(super) fn slot(&self) -> u8 {
        self.slot
    }

    pub(super) fn this(&self) -> Weak<Self> {
        self.this.clone()
    }

    /// What the user calls it, if they do.
    pub fn name(&self) -> Option<&str> {
        self.keys.name.as_deref()
    }

    /// What the VMM was told of it.
    pub fn keys(&self) -> &DeviceKeys {
        &self.keys
    }

    /// The address space that it does DMA in.
    pub fn space(&self) -> &Arc<Space> {
        &self.space
    }

    /// Its requester id.
    pub fn rid(&self) -> Rid {
        Rid(u16::from(self.slot) << 3)
    }

    /// Its VFIO v2 state.
    pub fn state(&self) -> State {
        self.endpoint.state()
    }

    /// What it is.
    pub fn shape(&self) -> &Shape {
        self.endpoint.shape()
    }

    /// What its DMA came to. `accesses` is constant while it does none.
    pub fn dma_stats(&self) -> RequesterStats {
        self.bus_master.stats()
    }

    /// The wires in its Ethernet ports, and what became of their frames.
    pub fn wires(&self) -> Vec<(WireSpec, WireCounts)> {
        let ports = self.ports.as_deref();
        ports.map_or_else(Vec::new, |ports| ports.specs().cloned().zip(ports.counts()).collect())
    }

    /// What its requests for interrupts came to.
    pub fn interrupt_counts(&self) -> MsixCounts {
        self.interrupts.counts()
    }

    pub(super) fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn regs(&self) -> MutexGuard<'_, Regs> {
        self.regs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers as firmware leaves them: reset, BARs assigned.
    pub(super) fn power_on_registers(&self) {
        self.reset_registers(true);
    }

    /// Registers after a function-level reset: as after power-on, BARs nowhere.
    pub(super) fn reset_registers(&self, assign: bool) {
        let mut regs = self.regs();
        let Regs { config, firmware } = &mut *regs;
        config.reset();
        if assign {
            for (index, address) in firmware {
                if let Err(error) = config.assign_bar(*index, *address) {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(device = self.label, error, "BAR not assigned");
                }
            }
        }
        self.interrupts.reset();
        self.follow(&regs.config, ALL);
    }

    /// Takes registers that were checked before.
    pub(super) fn load_registers(&self, config: ConfigSpace) {
        let mut regs = self.regs();
        regs.config = config;
        self.follow(&regs.config, ALL);
    }

    /// Binds the doorbells where firmware puts the BARs, decoded or not: a guess that saves the
    /// destination this work in the blackout, since few guests move BARs.
    pub(super) fn bind_doorbells_early(&self) {
        let regs = self.regs();
        let firmware = &regs.firmware;
        let base = |bar| firmware.iter().find(|(index, _)| *index == bar).map(|(_, base)| *base);
        self.doorbells.remap(base);
    }

    /// Makes the rest of the world follow the registers.
    fn follow(&self, config: &ConfigSpace, effects: Effects) {
        let bus_master = config.bus_master();
        if effects.bus_master && bus_master {
            self.bus_master.set(true);
        }
        if effects.msix || effects.bus_master {
            self.interrupts.set_control(config.msix_control(), bus_master);
        }
        if effects.bus_master && !bus_master {
            self.bus_master.set(false);
        }
        if effects.mapping {
            let bars = decoded(config);
            let base = |bar| bars.iter().find(|(index, _)| *index == bar).map(|(_, r)| r.start);
            self.doorbells.remap(base);
            if let Some(this) = self.this.upgrade() {
                self.map.replace(self.slot, &(this as Arc<dyn BarAccess>), bars);
            }
        }
    }

    /// A write to a BAR, of a CPU or of another device.
    pub(super) fn write_bar(&self, bar: u8, offset: u64, data: &[u8]) -> Result<(), Fault> {
        if bar == MSIX_BAR {
            self.interrupts.write(offset, data);
        } else if !self.doorbells.write(bar, offset, data.len()) {
            self.endpoint.region_write(bar.into(), offset, data)?;
        }
        Ok(())
    }

    /// The parts of an access that are a capability's own: its number, the first byte in it, and which
    /// bytes of the access.
    fn own_parts(&self, offset: u16, len: usize) -> impl Iterator<Item = (u32, u32, Range<usize>)> {
        let access = usize::from(offset)..usize::from(offset) + len;
        self.own_caps.iter().filter_map(move |OwnCap { cap, start, own }| {
            let part = own.start.max(access.start)..own.end.min(access.end);
            let first = u32::try_from(part.start - usize::from(*start)).ok()?;
            (!part.is_empty())
                .then(|| (*cap, first, part.start - access.start..part.end - access.start))
        })
    }

    fn config_area(&self, offset: u16, len: usize) -> bool {
        let (offset, len) = (u32::from(offset), u32::try_from(len).unwrap_or(u32::MAX));
        self.shape().info.config.is_some_and(|(start, size)| {
            offset >= start && offset.saturating_add(len) <= start.saturating_add(size)
        })
    }
}

const ALL: Effects = Effects { mapping: true, bus_master: true, msix: true, function_reset: false };

/// The BARs that answer now: decoding on, and inside the window, so that no BAR can lie over RAM or
/// an interrupt controller.
fn decoded(config: &ConfigSpace) -> Vec<(u8, Range<u64>)> {
    if !config.memory_decoding() {
        return Vec::new();
    }
    let ranges = config.bars().filter_map(|bar| Some((bar.index, config.bar_range(bar.index)?)));
    let inside =
        |range: &Range<u64>| MMIO_WINDOW.start <= range.start && range.end <= MMIO_WINDOW.end;
    ranges.filter(|(_, range)| inside(range)).collect()
}

/// Configuration space of a device, and where its BARs go.
fn describe(label: &str, shape: &Shape, window: &mut BarWindow) -> Result<Described, DeviceError> {
    let config_error = |source| DeviceError::Config { device: label.into(), source };
    let info = &shape.info;
    let mut bars = Vec::new();
    for region in &info.regions {
        let index = u8::try_from(region.index).ok().filter(|_| !region.io);
        let index = index.ok_or_else(|| DeviceError::Region {
            device: label.into(),
            index: region.index,
            flags: super::describe::region_flags(region),
        })?;
        bars.push(BarSpec {
            index,
            size: region.length,
            kind: if region.wide { BarKind::Memory64 } else { BarKind::Memory32 },
            prefetchable: region.prefetch,
        });
    }
    let msix = msix_bar_size(info.vectors);
    if info.vectors > 0 {
        bars.push(BarSpec::memory32(MSIX_BAR, msix.into()));
    }
    let identity = Identity {
        vendor: info.vendor_id,
        device: info.device_id,
        subsystem_vendor: info.subsystem_vendor_id,
        subsystem: info.subsystem_id,
        class: info.class_code,
        revision: info.revision,
    };
    let mut config = ConfigSpace::new(&identity, &bars).map_err(config_error)?;
    if info.vectors > 0 {
        config.add_msix(info.vectors, MSIX_BAR, 0, msix / 2).map_err(config_error)?;
    }
    config.add_function_reset().map_err(config_error)?;
    let mut own_caps = Vec::new();
    for (cap, described) in (0..).zip(&info.caps) {
        let start = config.add_capability(described.id, &described.body, &[]);
        let start = start.map_err(config_error)?;
        if described.access {
            let first = usize::from(start);
            let own = first + Capability::OWN..first + described.length();
            own_caps.push(OwnCap { cap, start, own });
        }
    }
    let mut firmware = Vec::new();
    for bar in &bars {
        let address = window.allocate(bar.size);
        let address =
            address.map_err(|source| DeviceError::Window { device: label.into(), source })?;
        firmware.push((bar.index, address));
    }
    Ok((config, firmware, own_caps))
}

impl Function for PciDevice {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        if self.config_area(offset, data.len()) {
            if self.endpoint.config_read(offset.into(), data).is_err() {
                data.fill(0xff);
            }
            return;
        }
        self.regs().config.read(offset, data);
        for (cap, first, part) in self.own_parts(offset, data.len()) {
            let Some(data) = data.get_mut(part) else { continue };
            if self.endpoint.cap_read(cap, first, data).is_err() {
                data.fill(0xff);
            }
        }
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        if self.config_area(offset, data.len()) {
            // A refused write is lost, as on the bus.
            let _ = self.endpoint.config_write(offset.into(), data);
            return;
        }
        let effects = {
            let mut regs = self.regs();
            let effects = regs.config.write(offset, data);
            self.follow(&regs.config, effects);
            effects
        };
        for (cap, first, part) in self.own_parts(offset, data.len()) {
            // A refused write is lost, as above.
            let _ = data.get(part).map(|data| self.endpoint.cap_write(cap, first, data));
        }
        if effects.function_reset {
            self.function_reset();
        }
    }
}

impl BarAccess for PciDevice {
    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        if bar == MSIX_BAR {
            self.interrupts.read(offset, data);
        } else if self.endpoint.region_read(bar.into(), offset, data).is_err() {
            data.fill(0xff);
        }
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        // A refused write is lost, as on the bus.
        let _ = self.write_bar(bar, offset, data);
    }
}
