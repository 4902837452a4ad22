//! The in-kernel interrupt controllers and interval timer: PIC master and slave, IOAPIC, PIT.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use zerocopy::{FromZeros, IntoBytes};

use crate::layout::IOAPIC_BASE;
use crate::record::{Reader, StateError, Tag, Writer};

const CHIPS: [(u32, Tag); 3] = [
    (KVM_IRQCHIP_PIC_MASTER, Tag::PicMaster),
    (KVM_IRQCHIP_PIC_SLAVE, Tag::PicSlave),
    (KVM_IRQCHIP_IOAPIC, Tag::IoApic),
];

/// Where `kvm_irqchip` has the base address of an IOAPIC.
const IOAPIC_BASE_AT: std::ops::Range<usize> = 8..16;

/// Mode of a PIT channel that does not count: what KVM has after a reset.
pub(crate) const PIT_STOPPED: u8 = 0xFF;

pub(crate) fn save(vm: &VmFd, writer: &mut Writer<'_>) -> Result<(), StateError> {
    for (chip_id, tag) in CHIPS {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        vm.get_irqchip(&mut chip)
            .map_err(|e| StateError::errno("get an interrupt controller", e))?;
        writer.put(tag, 0, chip.as_bytes());
    }
    Ok(())
}

/// The controllers' saved state, of the right size and sense; nothing is set yet.
pub(crate) struct Saved([kvm_irqchip; 3]);

impl Saved {
    pub(crate) fn parse(reader: &Reader<'_>) -> Result<Self, StateError> {
        let mut chips = [(); 3].map(|()| kvm_irqchip::new_zeroed());
        for (chip, (chip_id, tag)) in chips.iter_mut().zip(CHIPS) {
            reader.copy_to(tag, 0, chip.as_mut_bytes())?;
            // The record's name says which it is, not its contents.
            chip.chip_id = chip_id;
        }
        let ioapic = reader.bytes(Tag::IoApic, 0)?;
        let base = ioapic.get(IOAPIC_BASE_AT).and_then(|base| base.try_into().ok());
        match base.map_or(0, u64::from_ne_bytes) {
            IOAPIC_BASE => Ok(Self(chips)),
            // KVM would take it, and answer there.
            found => {
                let (what, expected) = ("its base address", "0xfec00000");
                Err(StateError::Value { tag: Tag::IoApic, vcpu: 0, what, found, expected })
            }
        }
    }

    pub(crate) fn load(&self, vm: &VmFd) -> Result<(), StateError> {
        self.0.iter().try_for_each(|chip| {
            vm.set_irqchip(chip).map_err(|e| StateError::errno("set an interrupt controller", e))
        })
    }
}

/// A PIT's saved state, of the right size and sense. KVM takes every value, and has divided by a
/// count of zero before.
pub(crate) fn parse_pit(reader: &Reader<'_>) -> Result<kvm_pit_state2, StateError> {
    let pit: kvm_pit_state2 = reader.get(Tag::Pit, 0)?;
    let check = |ok: bool, what, found: u64, expected| {
        let error = StateError::Value { tag: Tag::Pit, vcpu: 0, what, found, expected };
        if ok { Ok(()) } else { Err(error) }
    };
    for c in &pit.channels {
        let count = c.count;
        check((1..=0x1_0000).contains(&count), "a count", count.into(), "1 to 0x10000")?;
        check(c.mode <= 5 || c.mode == PIT_STOPPED, "a mode", c.mode.into(), "0 to 5, or 0xff")?;
        for (value, most, what) in [
            (c.rw_mode, 3, "an access mode"),
            (c.read_state, 4, "a read state"),
            (c.write_state, 4, "a write state"),
            (c.count_latched, 4, "a latch"),
            (c.status_latched, 1, "a status latch"),
            (c.bcd, 1, "a BCD flag"),
            (c.gate, 1, "a gate"),
        ] {
            check(value <= most, what, value.into(), "a value of an 8254")?;
        }
    }
    Ok(pit)
}
