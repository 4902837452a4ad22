//! Interrupts of one function: its MSI-X table, and the lines (irqfds) that its messages go out on.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::pci::msix::MsixCounts;
use crate::pci::regs::MSIX_ENTRY_SIZE;
use crate::pci::{
    MsixMessage, MsixSink, MsixTable, Reader, RouteRefused, StateError, Trigger, Writer,
};
use crate::wiring::{MsiLine, MsiMessage, Wiring, WiringError};

/// BAR of the MSI-X table and PBA; plugins have 0 to 3.
pub const MSIX_BAR: u8 = 4;

/// Addresses that the local APICs listen to: bits 31:20 are 0xfee (Intel SDM 3A, 11.11.1).
const MSI_ADDRESSES: std::ops::Range<u64> = 0xfee0_0000..0xfef0_0000;

/// Size of the MSI-X BAR: the table in the lower half, the PBA in the upper one.
#[must_use]
pub fn msix_bar_size(vectors: u16) -> u32 {
    let table = u32::from(vectors) * MSIX_ENTRY_SIZE as u32;
    (2 * table.next_power_of_two()).max(0x1000)
}

/// The lines of one function, in vector order.
struct Lines {
    wiring: Arc<dyn Wiring>,
    lines: Vec<MsiLine>,
    /// How many of them, from the first, are attached. Changed by `Interrupts` only.
    attached: Mutex<usize>,
}

impl Lines {
    fn attach(&self) -> Result<(), WiringError> {
        let mut attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        for line in self.lines.iter().skip(*attached) {
            self.wiring.attach_msi(line)?;
            *attached += 1;
        }
        Ok(())
    }

    fn detach(&self) -> Result<(), WiringError> {
        let mut attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(line) = attached.checked_sub(1).and_then(|last| self.lines.get(last)) {
            self.wiring.detach_msi(line)?;
            *attached -= 1;
        }
        Ok(())
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        if let Err(error) = self.detach() {
            tracing::warn!(error = &error as &dyn std::error::Error, "MSI lines stay attached");
            return;
        }
        for line in self.lines.drain(..) {
            if let Err(error) = self.wiring.remove_msi_vector(line) {
                tracing::warn!(error = &error as &dyn std::error::Error, "MSI line stays");
            }
        }
    }
}

impl MsixSink for Lines {
    fn route(&self, routes: &[(u16, MsixMessage)]) -> Result<(), RouteRefused> {
        let mut updates = Vec::with_capacity(routes.len());
        for &(vector, MsixMessage { address, data }) in routes {
            // Elsewhere the message would be a write to memory or to another device. KVM would make
            // an interrupt of it.
            if !MSI_ADDRESSES.contains(&address) {
                return Err(RouteRefused::Address { vector, address });
            }
            let line = self.lines.get(usize::from(vector));
            let gsi = line.ok_or(RouteRefused::NoLine { vector })?.gsi;
            updates.push((gsi, Some(MsiMessage { address, data })));
        }
        let vector = routes.first().map_or(0, |route| route.0);
        let refused = |source: WiringError| RouteRefused::Machine {
            vector,
            what: "routed",
            source: source.into(),
        };
        self.wiring.set_msi_routes(&updates).map_err(refused)
    }

    fn signal(&self, vector: u16) -> Result<(), RouteRefused> {
        let line = self.lines.get(usize::from(vector));
        let fd = &line.ok_or(RouteRefused::NoLine { vector })?.fd;
        fd.write(1).map_err(|source| RouteRefused::Machine {
            vector,
            what: "signalled",
            source: source.into(),
        })
    }
}

/// MSI-X of one function. All functions may be called from any thread; none calls into the device.
pub struct Interrupts {
    table: Mutex<MsixTable>,
    lines: Lines,
    pba: u64,
}

impl Interrupts {
    /// A masked table and as many attached lines.
    ///
    /// # Errors
    /// No line to be had, or it cannot be attached.
    pub fn new(wiring: Arc<dyn Wiring>, vectors: u16) -> Result<Self, WiringError> {
        let mut lines =
            Lines { wiring, lines: Vec::with_capacity(vectors.into()), attached: Mutex::new(0) };
        for _ in 0..vectors {
            let line = lines.wiring.new_msi_vector()?;
            lines.lines.push(line);
        }
        lines.attach()?;
        Ok(Self {
            table: Mutex::new(MsixTable::new(vectors)),
            lines,
            pba: u64::from(msix_bar_size(vectors) / 2),
        })
    }

    fn table(&self) -> MutexGuard<'_, MsixTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device asks for a vector.
    pub fn trigger(&self, vector: u16) -> Trigger {
        self.table().trigger(vector, &self.lines)
    }

    /// What requests came to.
    pub fn counts(&self) -> MsixCounts {
        self.table().counts()
    }

    /// Follows enable, function mask and bus master.
    pub fn set_control(&self, (enabled, masked): (bool, bool), bus_master: bool) {
        self.table().set_control(enabled, masked, bus_master, &self.lines);
    }

    /// A guest's read of the MSI-X BAR.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        match offset.checked_sub(self.pba) {
            Some(offset) => self.table().read_pending(offset, data),
            None => self.table().read_table(offset, data),
        }
    }

    /// A guest's write to the MSI-X BAR.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if offset < self.pba {
            self.table().write_table(offset, data, &self.lines);
        }
    }

    /// Back to power-on.
    pub fn reset(&self) {
        self.table().reset();
    }

    /// irqfds off: when it returns, every message sent is in the interrupt controllers, and a later
    /// request sets a pending bit. Idempotent.
    pub fn hold(&self) -> Result<(), WiringError> {
        self.table().disconnect();
        self.lines.detach()
    }

    /// irqfds on: sets the routes and delivers what is pending and not masked. Idempotent.
    pub fn release(&self) -> Result<(), WiringError> {
        self.lines.attach()?;
        self.table().connect(&self.lines);
        Ok(())
    }

    /// Appends the table to `out`.
    pub fn save(&self, out: &mut Writer) {
        self.table().save(out);
    }

    /// Checks a saved table without taking it; what is returned goes to [`accept`](Self::accept).
    pub fn parse(&self, from: &mut Reader<'_>) -> Result<MsixTable, StateError> {
        let mut staged = MsixTable::new(self.table().vectors());
        staged.disconnect();
        staged.load(from)?;
        Ok(staged)
    }

    /// Takes a table that [`parse`](Self::parse) made. Interrupts are held afterwards.
    pub fn accept(&self, staged: MsixTable) {
        *self.table() = staged;
    }
}
