//! The ACPI tables (specification 6.5) of a machine with reduced hardware: no SCI, no PM timer, no
//! legacy PIC or PIT for the guest to look for. They are all that tells a guest of its CPUs, its serial
//! port, its clock, the PCI bus and its power button.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Method,
    Name, Notify, Package, Path, ResourceTemplate, Scope, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as Space, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};

use crate::layout;
use crate::power::{RESET_VALUE, SLEEP_TYPE_OFF};
use crate::serial;

const OEM: [u8; 6] = *b"DROGHR";
const TABLE: [u8; 8] = *b"DROGHER ";
const REVISION: u32 = 1;
/// DSDT revision with 64-bit integers.
const DSDT_REVISION: u8 = 2;
/// IAPC_BOOT_ARCH (5.2.9.3): no VGA. Neither a keyboard controller, nor legacy devices to be probed.
const NO_VGA: u16 = 1 << 2;
/// Notification of a control method power button (5.6.6).
const BUTTON_PRESSED: u8 = 0x80;

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// The tables of a machine with `cpus` vCPUs, to be put at GPA `base`; the root pointer comes first.
#[must_use]
pub fn tables(base: u64, cpus: u8) -> Vec<u8> {
    let mut bytes = vec![0; Rsdp::len()];
    let mut put = |table: Vec<u8>| {
        bytes.resize(bytes.len().next_multiple_of(16), 0);
        let at = base + bytes.len() as u64;
        bytes.extend(table);
        at
    };
    let dsdt = put(dsdt(cpus));
    let mut root = XSDT::new(OEM, TABLE, REVISION);
    root.add_entry(put(bytes_of(&fadt(dsdt))));
    root.add_entry(put(bytes_of(&madt(cpus))));
    let mut mcfg = MCFG::new(OEM, TABLE, REVISION);
    mcfg.add_ecam(layout::ECAM.start, 0, 0, 0);
    root.add_entry(put(bytes_of(&mcfg)));
    let root = put(bytes_of(&root));
    let pointer = bytes_of(&Rsdp::new(OEM, root));
    for (slot, byte) in bytes.iter_mut().zip(pointer) {
        *slot = byte;
    }
    bytes
}

fn port(number: u16) -> GAS {
    GAS::new(Space::SystemIo, 8, 0, AccessSize::ByteAccess, number.into())
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let mut table = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        // Set means that the fixed button is not there: ours is in the DSDT.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    table.iapc_boot_arch = NO_VGA.into();
    table.reset_reg = port(layout::RESET_PORT);
    table.reset_value = RESET_VALUE;
    table.sleep_control_reg = port(layout::SLEEP_PORT);
    table.sleep_status_reg = port(layout::SLEEP_PORT + 1);
    table.hypervisor_vendor_identity = u64::from_le_bytes(TABLE).into();
    table.finalize()
}

fn madt(cpus: u8) -> MADT {
    let local = LocalInterruptController::Address(low(layout::LAPIC_BASE));
    let mut table = MADT::new(OEM, TABLE, REVISION, local);
    for id in 0..cpus {
        table.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    table.add_structure(IoApic::new(0, low(layout::IOAPIC_BASE), 0));
    table
}

/// AML that is there already.
struct Ready(Vec<u8>);

impl Aml for Ready {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

fn dsdt(cpus: u8) -> Vec<u8> {
    let devices: Vec<Ready> = [pci_bus(), board(), com1(), clock(), button(), events()]
        .into_iter()
        .chain((0..cpus).map(processor))
        .map(Ready)
        .collect();
    let scope = Scope::new("_SB_".into(), devices.iter().map(|d| d as &dyn Aml).collect());
    let mut table = Sdt::new(*b"DSDT", 36, DSDT_REVISION, OEM, TABLE, REVISION);
    table.append_slice(&bytes_of(&scope));
    let off = Name::new("_S5_".into(), &Package::new(vec![&SLEEP_TYPE_OFF]));
    table.append_slice(&bytes_of(&off));
    table.as_slice().to_vec()
}

/// A device: path, `_HID`, `_UID`, and what else it has.
fn device(path: &str, hid: &dyn Aml, uid: u8, more: &[&dyn Aml]) -> Vec<u8> {
    let hid = Name::new("_HID".into(), hid);
    let uid = Name::new("_UID".into(), &uid);
    let mut children: Vec<&dyn Aml> = vec![&hid, &uid];
    children.extend(more);
    bytes_of(&Device::new(path.into(), children))
}

fn resources(of: Vec<&dyn Aml>) -> Name {
    Name::new("_CRS".into(), &ResourceTemplate::new(of))
}

/// Bus 0, its configuration ports, and the window of its BARs.
fn pci_bus() -> Vec<u8> {
    let ports = &layout::PCI_CONFIG_PORTS;
    let window = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        low(layout::PCI_MMIO.start),
        low(layout::PCI_MMIO.end - 1),
        None,
    );
    let size = u8::try_from(ports.end - ports.start).unwrap_or(0);
    let more: [&dyn Aml; 4] = [
        &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
        &Name::new("_SEG".into(), &ZERO),
        &Name::new("_BBN".into(), &ZERO),
        &resources(vec![
            &AddressSpace::new_bus_number(0u16, 0u16),
            &IO::new(ports.start, ports.start, 1, size),
            &window,
        ]),
    ];
    device("PCI0", &EISAName::new("PNP0A08"), 0, &more)
}

/// What is nobody's: the PCI configuration space in memory, and the sleep registers.
fn board() -> Vec<u8> {
    let ecam = Memory32Fixed::new(
        true,
        low(layout::ECAM.start),
        low(layout::ECAM.end - layout::ECAM.start),
    );
    let sleep = IO::new(layout::SLEEP_PORT, layout::SLEEP_PORT, 1, 2);
    device("MBRD", &EISAName::new("PNP0C02"), 0, &[&resources(vec![&ecam, &sleep])])
}

fn com1() -> Vec<u8> {
    let size = u8::try_from(serial::PORTS).unwrap_or(0);
    let ports = IO::new(layout::COM1, layout::COM1, 1, size);
    let line = Interrupt::new(true, true, false, false, layout::COM1_GSI);
    device("COM1", &EISAName::new("PNP0501"), 0, &[&resources(vec![&ports, &line])])
}

/// The CMOS clock, without an interrupt: it has no alarm.
fn clock() -> Vec<u8> {
    let ports = IO::new(layout::CMOS_PORT, layout::CMOS_PORT, 1, 2);
    device("RTC_", &EISAName::new("PNP0B00"), 0, &[&resources(vec![&ports])])
}

fn button() -> Vec<u8> {
    device("PWRB", &EISAName::new("PNP0C0C"), 0, &[])
}

/// The generic event device (5.6.9): an interrupt that means the power button, and nothing else.
fn events() -> Vec<u8> {
    let line = Interrupt::new(true, true, false, false, layout::BUTTON_GSI);
    let (button, pressed) = (Path::new("PWRB"), BUTTON_PRESSED);
    let notify = Notify::new(&button, &pressed);
    let method = Method::new("_EVT".into(), 1, true, vec![&notify]);
    device("GED_", &"ACPI0013", 0, &[&resources(vec![&line]), &method])
}

fn processor(id: u8) -> Vec<u8> {
    device(&format!("C{id:03}"), &"ACPI0007", id, &[])
}

fn low(address: u64) -> u32 {
    u32::try_from(address).unwrap_or(0)
}

#[cfg(test)]
#[path = "acpi_test.rs"]
mod tests;
