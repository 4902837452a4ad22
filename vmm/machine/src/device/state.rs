//! What the host owns of the devices, as bytes: configuration address, host bridge, and per function
//! configuration space, MSI-X table and PBA, doorbells that the device has not seen.
//!
//! Little endian: `magic u32, version u16, address u32, bridge 256, functions u16`, then per function
//! `rid u16, configuration 256, vectors u16, entries 16 each, PBA 8 each, doorbells u16, one byte
//! each`. All of it is parsed and checked before anything is taken.

use super::error::DeviceError;
use super::function::PciDevice;
use super::set::DeviceSet;
use crate::pci::{ConfigSpace, MsixTable, Reader, StateError, Writer};

/// "DPCI".
const MAGIC: u32 = 0x4943_5044;
/// Version that is written, and the only one that is read.
pub const PCI_STATE_VERSION: u16 = 1;

/// A function's state, checked, not yet taken.
struct Staged {
    config: ConfigSpace,
    msix: MsixTable,
    doorbells: Vec<bool>,
}

impl PciDevice {
    fn save(&self, out: &mut Writer) {
        out.u16(self.rid().0);
        self.regs().config.save(out);
        self.interrupts.save(out);
        let pending = self.doorbells.pending();
        out.u16(u16::try_from(pending.len()).unwrap_or(u16::MAX));
        for rung in pending {
            out.u8(rung.into());
        }
    }

    fn parse(&self, from: &mut Reader<'_>) -> Result<Staged, StateError> {
        from.same_u16("RID", self.rid().0)?;
        let mut config = self.regs().config.clone();
        config.load(from)?;
        let msix = self.interrupts.parse(from)?;
        let count = u16::try_from(self.doorbells.len()).unwrap_or(u16::MAX);
        from.same_u16("doorbells", count)?;
        let (field, expected) = ("doorbell", "0 or 1");
        let rung = |byte: &u8| match byte {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(StateError::Invalid { field, found: (*byte).into(), expected }),
        };
        let doorbells =
            from.bytes(field, count.into())?.iter().map(rung).collect::<Result<_, _>>()?;
        Ok(Staged { config, msix, doorbells })
    }

    fn accept(&self, staged: Staged) {
        self.interrupts.accept(staged.msix);
        self.load_registers(staged.config);
        self.doorbells.set_pending(&staged.doorbells);
    }
}

impl DeviceSet {
    /// Bytes that [`save`](Self::save) gives: constant for a set.
    #[must_use]
    pub fn saved_len(&self) -> usize {
        self.save().len()
    }

    /// The host-owned state of all functions and the bus. To be called after
    /// [`drain_doorbells`](Self::drain_doorbells) and [`irqfds_off`](Self::irqfds_off), while nothing
    /// runs; earlier it lacks what is still in eventfds.
    #[must_use]
    pub fn save(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u32(MAGIC);
        out.u16(PCI_STATE_VERSION);
        self.ports().save(&mut out);
        self.bridge().save(&mut out);
        out.u16(u16::try_from(self.devices().len()).unwrap_or(u16::MAX));
        for device in self.devices() {
            device.save(&mut out);
        }
        out.finish()
    }

    /// Takes what [`save`](Self::save) gave: registers, BARs and doorbell bindings are in force on
    /// return, interrupts are held until [`irqfds_on`](Self::irqfds_on).
    ///
    /// # Errors
    /// [`DeviceError::State`], naming the function and the field; then nothing has changed.
    pub fn load(&self, bytes: &[u8]) -> Result<(), DeviceError> {
        let bus = |source| DeviceError::State { device: "PCI bus".into(), source };
        let mut from = Reader::new(bytes);
        from.same_u32("PCI state magic", MAGIC).map_err(bus)?;
        from.same_u16("PCI state version", PCI_STATE_VERSION).map_err(bus)?;
        let ports = self.ports().parse(&mut from).map_err(bus)?;
        let bridge = self.bridge().parse(&mut from).map_err(bus)?;
        let count = u16::try_from(self.devices().len()).unwrap_or(u16::MAX);
        from.same_u16("functions", count).map_err(bus)?;
        let mut staged = Vec::with_capacity(self.devices().len());
        for device in self.devices() {
            let function = device
                .parse(&mut from)
                .map_err(|source| DeviceError::State { device: device.label().into(), source })?;
            staged.push(function);
        }
        from.finish().map_err(bus)?;
        self.ports().accept(ports);
        self.bridge().accept(bridge);
        for (device, staged) in self.devices().iter().zip(staged) {
            device.accept(staged);
        }
        Ok(())
    }
}
