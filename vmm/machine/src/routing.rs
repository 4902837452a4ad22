//! The interrupt routing table: KVM takes it whole, so it is kept here whole.

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
    kvm_irq_routing_msi__bindgen_ty_1,
};

use crate::wiring::MsiMessage;

/// Pins of the IOAPIC; GSIs from here on are free for MSI.
pub const FIRST_MSI_GSI: u32 = 24;
/// GSIs for MSI that one machine may use at most.
const MOST_MSI: usize = 1024;

/// The table: the fixed pins of PIC and IOAPIC, and one slot for each GSI given out for MSI.
#[derive(Debug)]
pub struct Routes {
    /// Index + [`FIRST_MSI_GSI`] is the GSI; outer `None`: free, inner `None`: no route.
    msi: Vec<Option<Option<MsiMessage>>>,
    most: usize,
}

impl Routes {
    /// No MSI yet; `max_routes` is what KVM allows for the whole table.
    #[must_use]
    pub fn new(max_routes: usize) -> Self {
        Self { msi: Vec::new(), most: max_routes.saturating_sub(64).min(MOST_MSI) }
    }

    /// How many MSI lines there may be.
    #[must_use]
    pub fn most(&self) -> usize {
        self.most
    }

    /// Takes a free GSI.
    pub fn take(&mut self) -> Option<u32> {
        let index = match self.msi.iter().position(Option::is_none) {
            Some(index) => index,
            None if self.msi.len() < self.most => {
                self.msi.push(None);
                self.msi.len() - 1
            }
            None => return None,
        };
        *self.msi.get_mut(index)? = Some(None);
        Some(FIRST_MSI_GSI + u32::try_from(index).ok()?)
    }

    fn slot(&mut self, gsi: u32) -> Option<&mut Option<Option<MsiMessage>>> {
        let index = usize::try_from(gsi.checked_sub(FIRST_MSI_GSI)?).ok()?;
        self.msi.get_mut(index).filter(|s| s.is_some())
    }

    /// True if the GSI was given out.
    pub fn knows(&mut self, gsi: u32) -> bool {
        self.slot(gsi).is_some()
    }

    /// Sets or takes away a line's route; the old one.
    pub fn set(&mut self, gsi: u32, message: Option<MsiMessage>) -> Option<Option<MsiMessage>> {
        self.slot(gsi).and_then(|s| s.replace(message))
    }

    /// Gives a GSI back; false if it was not given out.
    pub fn free(&mut self, gsi: u32) -> bool {
        self.slot(gsi).is_some_and(|s| s.take().is_some())
    }

    /// The whole table as KVM wants it.
    ///
    /// # Errors
    /// More entries than KVM's structure can hold; `most` keeps it below.
    pub fn table(&self) -> Result<KvmIrqRouting, vmm_sys_util::fam::Error> {
        let pic = |gsi: u32| {
            (gsi < 16).then(|| {
                let chip = if gsi < 8 { KVM_IRQCHIP_PIC_MASTER } else { KVM_IRQCHIP_PIC_SLAVE };
                pin(gsi, chip, gsi % 8)
            })
        };
        let fixed = (0..FIRST_MSI_GSI)
            .flat_map(|gsi| pic(gsi).into_iter().chain([pin(gsi, KVM_IRQCHIP_IOAPIC, gsi)]));
        let msi = (FIRST_MSI_GSI..).zip(&self.msi).filter_map(|(gsi, slot)| {
            let message = (*slot)??;
            Some(msi_entry(gsi, message))
        });
        let entries: Vec<_> = fixed.chain(msi).collect();
        KvmIrqRouting::from_entries(&entries)
    }
}

fn pin(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            irqchip: kvm_irq_routing_irqchip { irqchip, pin },
        },
        ..Default::default()
    }
}

fn msi_entry(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let low = u32::try_from(message.address & 0xFFFF_FFFF).unwrap_or(0);
    let high = u32::try_from(message.address >> 32).unwrap_or(0);
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            msi: kvm_irq_routing_msi {
                address_lo: low,
                address_hi: high,
                data: message.data,
                __bindgen_anon_1: kvm_irq_routing_msi__bindgen_ty_1 { devid: 0 },
            },
        },
        ..Default::default()
    }
}

#[cfg(test)]
#[path = "routing_test.rs"]
mod tests;
