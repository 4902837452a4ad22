//! The devices of one machine, and bus 0 that they sit on.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock, Weak};

use drogher_iommu::{Requester, Rid};
use drogher_migrate::{Blocker, DeviceConfig};
use drogher_plugin_host::{Cause, HostServices, LogLevel, PeerWrite, Plugin, Wires};
use drogher_wires::Ports;
use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

use super::endpoint::Endpoint;
use super::error::DeviceError;
use super::function::{Parts, PciDevice};
use super::gate::BusMaster;
use super::irq::Interrupts;
use super::keys::DeviceKeys;
use super::mmio::MmioMap;
use super::peer::Peers;
use super::plugin;
use super::spec::DeviceSpec;
use crate::layout::{ECAM, PCI_CONFIG_PORTS};
use crate::pci::{BarWindow, Bus, ConfigPorts, Ecam, Function, HostBridge, MMIO_WINDOW};
use crate::tracking::Spaces;
use crate::wiring::Wiring;

/// Slots 1 to 31 are for devices.
pub const MAX_DEVICES: usize = 31;

/// What makes a device, given its name in messages, its way to memory and its way to us.
pub type Maker<'a> = Box<
    dyn FnOnce(&str, Requester, Arc<dyn HostServices>) -> Result<Arc<dyn Endpoint>, DeviceError>
        + 'a,
>;

/// A device to be made, and what the VMM is told of it.
pub type Made<'a> = (DeviceKeys, Maker<'a>);

/// All devices of a machine. May be used from any thread; the functions of one side of a migration
/// are meant for one thread at a time.
pub struct DeviceSet {
    devices: Vec<Arc<PciDevice>>,
    ports: Arc<ConfigPorts>,
    bridge: Arc<HostBridge>,
    map: Arc<MmioMap>,
    peers: Arc<Peers>,
    wiring: Arc<dyn Wiring>,
}

impl std::fmt::Debug for DeviceSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let labels: Vec<_> = self.devices.iter().map(|device| device.label()).collect();
        f.debug_struct("DeviceSet").field("devices", &labels).finish_non_exhaustive()
    }
}

impl DeviceSet {
    /// Makes the devices, in slots 1, 2, ...; plugins given by name are looked up in `dirs`. Claims
    /// the PCI configuration ports and the MMIO window. All devices are in STOP, with DMA and
    /// interrupts off, until [`run`](Self::run).
    ///
    /// # Errors
    /// The first device that cannot be had, by name.
    pub fn new(
        specs: &[DeviceSpec],
        dirs: &[PathBuf],
        spaces: &Spaces,
        wiring: &Arc<dyn Wiring>,
    ) -> Result<Self, DeviceError> {
        let maker = |spec: &DeviceSpec| {
            let file = Plugin::find(&spec.name_or_path, dirs);
            let file = file.map_err(|source| DeviceError::Load {
                device: spec.name_or_path.clone(),
                source: source.into(),
            })?;
            Ok((spec.keys.clone(), plugin::maker(file, spec.params.clone())))
        };
        let makers = specs.iter().map(maker).collect::<Result<_, _>>()?;
        Self::with_makers(makers, spaces, wiring)
    }

    /// Makes the devices that the source of a migration has described. Plugins are looked up in `dirs`
    /// by their ids; no path comes from the peer. [`check`](super::check) says beforehand what is
    /// wrong.
    ///
    /// # Errors
    /// The first device that cannot be had, by name.
    pub fn for_configs(
        configs: &[DeviceConfig],
        dirs: &[PathBuf],
        spaces: &Spaces,
        wiring: &Arc<dyn Wiring>,
    ) -> Result<Self, DeviceError> {
        let maker = |config: &DeviceConfig| {
            let file = Plugin::find_by_id(&config.plugin, dirs);
            let file = file.map_err(|source| DeviceError::Load {
                device: config.label(),
                source: source.into(),
            })?;
            let keys = plugin::keys_of(config);
            let keys = keys.map_err(|source| DeviceError::Key {
                device: config.label(),
                source: source.into(),
            })?;
            Ok((keys, plugin::maker(file, plugin::params_of(config))))
        };
        let makers = configs.iter().map(maker).collect::<Result<_, _>>()?;
        // No file is made at a peer's word.
        Self::make(makers, spaces, wiring, false)
    }

    /// As [`new`](Self::new), for devices that are made some other way.
    ///
    /// # Errors
    /// The first device that cannot be had, by name.
    pub fn with_makers(
        makers: Vec<Made<'_>>,
        spaces: &Spaces,
        wiring: &Arc<dyn Wiring>,
    ) -> Result<Self, DeviceError> {
        Self::make(makers, spaces, wiring, true)
    }

    fn make(
        makers: Vec<Made<'_>>,
        spaces: &Spaces,
        wiring: &Arc<dyn Wiring>,
        new_captures: bool,
    ) -> Result<Self, DeviceError> {
        let (count, max) = (makers.len(), MAX_DEVICES);
        if count > max {
            return Err(DeviceError::TooMany { count, max });
        }
        let map = Arc::new(MmioMap::default());
        let peers = Peers::new(Arc::clone(&map));
        let bus_error = |source| DeviceError::Config { device: "host bridge".into(), source };
        let bridge = Arc::new(HostBridge::new().map_err(bus_error)?);
        let mut bus = Bus::new();
        // The slots are ours and all different.
        let _ = bus.insert(0, Arc::clone(&bridge) as Arc<dyn Function>);
        let mut window = BarWindow::new(MMIO_WINDOW);
        let mut devices: Vec<Arc<PciDevice>> = Vec::with_capacity(count);
        let around = Around { spaces, wiring, peers: &peers, map: &map, new_captures };
        for (slot, made) in (1..).zip(makers) {
            let device = build(slot, made, &around, &mut window)?;
            let named =
                |other: &&Arc<PciDevice>| device.name().is_some() && other.name() == device.name();
            if let (Some(name), Some(other)) = (device.name(), devices.iter().find(named)) {
                let (device, other) = (device.label().to_owned(), other.label().to_owned());
                return Err(DeviceError::Name { device, name: name.to_owned(), other });
            }
            let _ = bus.insert(slot, Arc::clone(&device) as Arc<dyn Function>);
            devices.push(device);
        }
        let ports = Arc::new(ConfigPorts::new(bus));
        let wiring_error =
            |what| move |source| DeviceError::Wiring { device: "PCI bus".into(), what, source };
        let claimed =
            wiring.claim_pio(PCI_CONFIG_PORTS, Arc::new(PortsUntilGone(Arc::downgrade(&ports))));
        claimed.map_err(wiring_error("claim the configuration ports"))?;
        let claimed = wiring.claim_mmio(ECAM, Arc::new(Ecam::new(Arc::downgrade(&ports))));
        claimed.map_err(wiring_error("claim the configuration space"))?;
        let claimed = wiring.claim_mmio(MMIO_WINDOW, Arc::clone(&map) as _);
        claimed.map_err(wiring_error("claim the MMIO window"))?;
        let set = Self { devices, ports, bridge, map, peers, wiring: Arc::clone(wiring) };
        set.allow_named()?;
        Ok(set)
    }

    /// Number of devices. They are named by their index, in slot order.
    #[must_use]
    pub fn len(&self) -> usize {
        self.devices.len()
    }

    /// True if there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    /// The devices, in slot order.
    #[must_use]
    pub fn devices(&self) -> &[Arc<PciDevice>] {
        &self.devices
    }

    /// Device number `index`.
    ///
    /// # Errors
    /// There is none.
    pub fn device(&self, index: usize) -> Result<&PciDevice, DeviceError> {
        self.devices.get(index).map(Arc::as_ref).ok_or(DeviceError::NoDevice(index))
    }

    /// The configuration ports, for those who have no [`Wiring`] to go through.
    #[must_use]
    pub fn ports(&self) -> &ConfigPorts {
        &self.ports
    }

    /// The decoded BARs, for those who have no [`Wiring`] to go through.
    #[must_use]
    pub fn mmio(&self) -> &MmioMap {
        &self.map
    }

    pub(super) fn peers(&self) -> &Peers {
        &self.peers
    }

    pub(super) fn bridge(&self) -> &HostBridge {
        &self.bridge
    }

    /// The devices for the configuration block, in slot order. Fixes how much state each may send.
    ///
    /// # Errors
    /// A device does not answer.
    pub fn describe(&self) -> Result<Vec<DeviceConfig>, DeviceError> {
        self.devices.iter().map(|device| device.describe()).collect()
    }

    /// What stands against migrating this machine; empty if nothing does.
    #[must_use]
    pub fn blockers(&self) -> Vec<Blocker> {
        let each = self.devices.iter().flat_map(|device| device.blockers());
        each.chain(self.peer_blockers()).collect()
    }

    /// Devices in ERROR: label and why. The VM lives on without them.
    #[must_use]
    pub fn failed(&self) -> Vec<(String, String)> {
        let failed =
            |device: &Arc<PciDevice>| Some((device.label().to_owned(), device.endpoint.failed()?));
        self.devices.iter().filter_map(failed).collect()
    }

    /// Back to power-on, all of it, BARs assigned anew: a reset of the machine. Devices that were
    /// running run on. The vCPUs should stand.
    ///
    /// # Errors
    /// The first device that could not be reset; the others are.
    pub fn reset(&self) -> Result<(), DeviceError> {
        self.ports.reset();
        self.bridge.reset();
        super::phases::all(self.devices(), |device| device.reset(true))
    }
}

impl Drop for DeviceSet {
    fn drop(&mut self) {
        self.end_peers();
        for base in [MMIO_WINDOW.start, ECAM.start] {
            if let Err(error) = self.wiring.release_mmio(base) {
                tracing::debug!(error = &error as &dyn std::error::Error, "range not released");
            }
        }
        // The bus may outlive the set, and must not keep the devices.
        self.map.clear();
    }
}

/// What is around a device when it is made.
struct Around<'a> {
    spaces: &'a Spaces,
    wiring: &'a Arc<dyn Wiring>,
    peers: &'a Arc<Peers>,
    map: &'a Arc<MmioMap>,
    /// A capture file that is not there is made.
    new_captures: bool,
}

fn build(
    slot: u8,
    (keys, make): Made<'_>,
    around: &Around<'_>,
    window: &mut BarWindow,
) -> Result<Arc<PciDevice>, DeviceError> {
    let Around { spaces, wiring, peers, map, new_captures } = *around;
    let rid = Rid(u16::from(slot) << 3);
    let space = spaces.of(&keys, rid);
    let space = space
        .map_err(|source| DeviceError::Space { device: rid.to_string(), source: source.into() })?;
    let attached = BusMaster::attach(space.domain(), rid);
    let (bus_master, requester) = attached
        .map_err(|source| DeviceError::Create { device: rid.to_string(), source: source.into() })?;
    let services = Arc::new(Services {
        name: rid.to_string(),
        slot,
        interrupts: OnceLock::new(),
        peers: Arc::downgrade(peers),
        ports: OnceLock::new(),
    });
    let endpoint = make(&rid.to_string(), requester, Arc::clone(&services) as _)?;
    let mut label = format!("{rid} {}", endpoint.shape().plugin.id);
    if let Some(name) = &keys.name {
        label = format!("{label} ({name})");
    }
    let interrupts = Interrupts::new(Arc::clone(wiring), endpoint.shape().info.vectors);
    let interrupts = Arc::new(interrupts.map_err(|source| DeviceError::Wiring {
        device: label.clone(),
        what: "make its MSI-X lines",
        source,
    })?);
    // Set once, here; the device has been in STOP so far.
    let _ = services.interrupts.set(Arc::downgrade(&interrupts));
    let ports = ports(&label, &keys, endpoint.shape().info.ports, new_captures)?;
    if let Some(ports) = &ports {
        let _ = services.ports.set(Arc::downgrade(ports));
    }
    let map = Arc::clone(map);
    let parts = Parts { slot, label, keys, endpoint, interrupts, bus_master, space, map, ports };
    let device = PciDevice::new(parts, window, wiring)?;
    device.attach_tracking()?;
    Ok(device)
}

/// Prepares the wires in a device's ports.
fn ports(
    label: &str,
    keys: &DeviceKeys,
    count: u32,
    new_captures: bool,
) -> Result<Option<Arc<Ports>>, DeviceError> {
    let device = || label.to_owned();
    let count_here = usize::try_from(count).unwrap_or(usize::MAX);
    if let Some(key) = keys.net_key_beyond(count_here) {
        return Err(DeviceError::NoPort { device: device(), key, count });
    }
    if count == 0 {
        return Ok(None);
    }
    let wires: Vec<_> = (0..count_here).map(|port| keys.wire(port)).collect();
    let ports = Ports::prepare(&wires, keys.capture.as_ref(), new_captures);
    let ports =
        ports.map_err(|source| DeviceError::Wire { device: device(), source: Box::new(source) })?;
    Ok(Some(Arc::new(ports)))
}

/// What an instance may ask of the machine.
struct Services {
    name: String,
    /// Weak: a plugin thread that was given up must not keep the lines.
    interrupts: OnceLock<Weak<Interrupts>>,
    slot: u8,
    /// Weak, as above.
    peers: Weak<Peers>,
    /// Weak, as above; unset while the device is made, and if it has no ports.
    ports: OnceLock<Weak<Ports>>,
}

impl HostServices for Services {
    fn irq(&self, vector: u16) {
        if let Some(interrupts) = self.interrupts.get().and_then(Weak::upgrade) {
            interrupts.trigger(vector);
        }
    }

    fn peer_write(&self, gpa: u64, data: &[u8]) -> PeerWrite {
        let peers = self.peers.upgrade();
        peers.map_or(PeerWrite::NotAPeer, |peers| peers.write(self.slot, gpa, data))
    }

    fn wires(&self) -> Option<Arc<dyn Wires>> {
        self.ports.get().and_then(Weak::upgrade).map(|ports| ports as _)
    }

    fn log(&self, level: LogLevel, text: &str) {
        let device = &self.name;
        match level {
            LogLevel::Error => tracing::error!(device, "{text}"),
            LogLevel::Warn => tracing::warn!(device, "{text}"),
            LogLevel::Info => tracing::info!(device, "{text}"),
            LogLevel::Debug => tracing::debug!(device, "{text}"),
        }
    }

    fn failed(&self, cause: &Cause) {
        tracing::error!(device = self.name, "{cause}; the VM goes on without this device");
    }
}

/// The claim on the configuration ports, which cannot be given back: empty once the set is gone.
struct PortsUntilGone(Weak<ConfigPorts>);

impl DevicePio for PortsUntilGone {
    fn pio_read(&self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        match self.0.upgrade() {
            Some(ports) => ports.read(base.0.saturating_add(offset), data),
            None => data.fill(0xff),
        }
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if let Some(ports) = self.0.upgrade() {
            ports.write(base.0.saturating_add(offset), data);
        }
    }
}
