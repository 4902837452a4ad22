//! The guest's physical address map and its fixed I/O ports.
//!
//! RAM is one memfd of `memory_bytes`. Its first part, up to [`LOW_RAM_END`], is at GPA 0; the rest
//! is at [`HIGH_RAM_START`]. Between the two lie the PCI window and the interrupt controllers.

use std::ops::Range;

/// End of the RAM below 4 GiB (exclusive): the rest of RAM continues at [`HIGH_RAM_START`].
pub const LOW_RAM_END: u64 = 3 << 30;
/// GPA of the RAM that does not fit below [`LOW_RAM_END`].
pub const HIGH_RAM_START: u64 = 4 << 30;
/// The window that BARs are placed in.
pub const PCI_MMIO: Range<u64> = 0xE000_0000..0xFEB0_0000;
/// PCI configuration space in memory (ECAM), of bus 0: 4 KiB for each function.
pub const ECAM: Range<u64> = 0xFEB0_0000..0xFEC0_0000;
/// The in-kernel IOAPIC.
pub const IOAPIC_BASE: u64 = 0xFEC0_0000;
/// The in-kernel local APICs.
pub const LAPIC_BASE: u64 = 0xFEE0_0000;
/// One page that KVM's VMX code needs for real mode without unrestricted guest.
pub const IDENTITY_MAP: u64 = 0xFFFB_C000;
/// Three pages that KVM's VMX code needs for a task state segment.
pub const TSS: u64 = 0xFFFB_D000;

/// Address of `hvm_start_info` (PVH).
pub const START_INFO: u64 = 0x6000;
/// Address of the PVH memory map table.
pub const MEMMAP: u64 = 0x6100;
/// Address of the PVH module list (initrd), reserved.
pub const MODLIST: u64 = 0x6F00;
/// Address of `boot_params` (64-bit protocol).
pub const ZERO_PAGE: u64 = 0x7000;
/// Page tables that a kernel is entered on in 64-bit mode: six pages.
pub const BOOT_TABLES: Range<u64> = 0x9000..0xF000;
/// Address of the ACPI tables, the root pointer first; the legacy hole ends behind them.
pub const ACPI_TABLES: u64 = 0xE_0000;
/// Where a processor begins in real mode after a reset, and where kernels jump to for one.
pub const RESET_VECTOR: u64 = 0xF_FFF0;
/// Address of the kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Longest command line, its closing NUL included.
pub const CMDLINE_MAX: usize = 0x1_0000;
/// End of the usable RAM below 1 MiB.
pub const EBDA_START: u64 = 0x9_FC00;
/// Where RAM is usable again, after the legacy hole.
pub const HIMEM_START: u64 = 0x10_0000;

/// First port and IRQ line (GSI) of the serial console.
pub const COM1: u16 = 0x3F8;
/// GSI of COM1.
pub const COM1_GSI: u32 = 4;
/// GSI of the power button.
pub const BUTTON_GSI: u32 = 9;
/// PCI configuration mechanism 1: address and data ports.
pub const PCI_CONFIG_PORTS: Range<u16> = 0xCF8..0xD00;
/// 16-bit port; a write with bit 13 set turns the machine off.
pub const POWER_PORT: u16 = 0x604;
/// ACPI's sleep control register, 8 bits; its status register follows it.
pub const SLEEP_PORT: u16 = 0x600;
/// 8-bit port inside the PCI configuration ports; a write with bit 2 set resets the machine.
pub const RESET_PORT: u16 = 0xCF9;
/// Keyboard controller command and status port; writing 0xFE resets the machine.
pub const KEYBOARD_PORT: u16 = 0x64;
/// CMOS index port; the data port follows it.
pub const CMOS_PORT: u16 = 0x70;
