//! The in-kernel interrupt controllers and interval timer: PIC master and slave, IOAPIC, PIT.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use zerocopy::{FromZeros, IntoBytes};

use crate::record::{Reader, StateError, Tag, Writer};

const CHIPS: [(u32, Tag); 3] = [
    (KVM_IRQCHIP_PIC_MASTER, Tag::PicMaster),
    (KVM_IRQCHIP_PIC_SLAVE, Tag::PicSlave),
    (KVM_IRQCHIP_IOAPIC, Tag::IoApic),
];

pub(crate) fn save(vm: &VmFd, writer: &mut Writer<'_>) -> Result<(), StateError> {
    for (chip_id, tag) in CHIPS {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        vm.get_irqchip(&mut chip)
            .map_err(|e| StateError::errno("get an interrupt controller", e))?;
        writer.put(tag, 0, chip.as_bytes());
    }
    let pit = vm.get_pit2().map_err(|e| StateError::errno("get the interval timer", e))?;
    writer.put(Tag::Pit, 0, pit.as_bytes());
    Ok(())
}

pub(crate) fn load(vm: &VmFd, reader: &Reader<'_>) -> Result<(), StateError> {
    for (chip_id, tag) in CHIPS {
        let mut chip = kvm_irqchip::new_zeroed();
        reader.copy_to(tag, 0, chip.as_mut_bytes())?;
        // The record's name says which it is, not its contents.
        chip.chip_id = chip_id;
        vm.set_irqchip(&chip).map_err(|e| StateError::errno("set an interrupt controller", e))?;
    }
    let pit: kvm_pit_state2 = reader.get(Tag::Pit, 0)?;
    vm.set_pit2(&pit).map_err(|e| StateError::errno("set the interval timer", e))
}
