//! Offsets and bits of the configuration header (PCI Local Bus 3.0 section 6.1, 6.2, 6.8.2;
//! Advanced Features ECN to it). Offsets are bytes from the start of configuration space.

/// Bytes of configuration space that mechanism 1 can reach.
pub const CONFIG_SIZE: usize = 256;
/// Bytes of configuration space of a PCI Express function, reached by ECAM.
pub const EXTENDED_CONFIG_SIZE: usize = 4096;

/// Vendor ID, 16 bits.
pub const VENDOR_ID: u16 = 0x00;
/// Device ID, 16 bits.
pub const DEVICE_ID: u16 = 0x02;
/// Command, 16 bits.
pub const COMMAND: u16 = 0x04;
/// Status, 16 bits.
pub const STATUS: u16 = 0x06;
/// Revision ID, 8 bits.
pub const REVISION: u16 = 0x08;
/// Class code, 24 bits: interface, subclass, base class.
pub const CLASS: u16 = 0x09;
/// Cache line size, 8 bits.
pub const CACHE_LINE: u16 = 0x0c;
/// Header type, 8 bits.
pub const HEADER_TYPE: u16 = 0x0e;
/// BAR 0; BAR n is at `BAR0 + 4 * n`.
pub const BAR0: u16 = 0x10;
/// Number of BARs of a type-0 header.
pub const BAR_COUNT: usize = 6;
/// Subsystem vendor ID, 16 bits.
pub const SUBSYSTEM_VENDOR_ID: u16 = 0x2c;
/// Subsystem ID, 16 bits.
pub const SUBSYSTEM_ID: u16 = 0x2e;
/// Offset of the first capability, 8 bits.
pub const CAPABILITIES: u16 = 0x34;
/// Interrupt line, 8 bits, a scratch register for firmware.
pub const INTERRUPT_LINE: u16 = 0x3c;
/// Where the standard header ends and capabilities may begin.
pub const HEADER_END: u16 = 0x40;

/// Command: respond to memory accesses.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command: may be a bus master (do DMA, send MSIs).
pub const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Command: parity error response. Kept, without effect.
pub const COMMAND_PARITY: u16 = 1 << 6;
/// Command: SERR# enable. Kept, without effect.
pub const COMMAND_SERR: u16 = 1 << 8;
/// Command: INTx disable. Kept, without effect: there is no INTx.
pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// The command bits that can be written. I/O decode is not among them: there are no I/O BARs.
pub const COMMAND_WRITABLE: u16 =
    COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_PARITY | COMMAND_SERR | COMMAND_INTX_DISABLE;
/// Status: there is a capability list.
pub const STATUS_CAPABILITIES: u16 = 1 << 4;

/// BAR bits 2:1: the BAR and the next one form a 64-bit address.
pub const BAR_TYPE_64: u32 = 0b100;
/// BAR bit 3: prefetchable.
pub const BAR_PREFETCHABLE: u32 = 0b1000;
/// BAR bits that hold no address.
pub const BAR_FLAGS: u64 = 0xf;

/// Capability ID: vendor specific (byte 2 is the length).
pub const CAP_VENDOR: u8 = 0x09;
/// Capability ID: MSI-X.
pub const CAP_MSIX: u8 = 0x11;
/// Capability ID: advanced features (function-level reset of a conventional function).
pub const CAP_ADVANCED_FEATURES: u8 = 0x13;

/// Most vectors an MSI-X table can have.
pub const MSIX_MAX_VECTORS: u16 = 2048;
/// Message control, from the capability's start.
pub const MSIX_CONTROL: u16 = 2;
/// Message control: MSI-X enable.
pub const MSIX_ENABLE: u16 = 1 << 15;
/// Message control: function mask.
pub const MSIX_FUNCTION_MASK: u16 = 1 << 14;
/// Bytes of one MSI-X table entry.
pub const MSIX_ENTRY_SIZE: u64 = 16;
/// Vector control: the vector is masked.
pub const MSIX_VECTOR_MASKED: u32 = 1;

/// Advanced features: capabilities byte, from the capability's start.
pub const AF_CAPABILITIES: u16 = 3;
/// Advanced features: control byte, from the capability's start.
pub const AF_CONTROL: u16 = 4;
/// Advanced features capabilities: transactions-pending bit and function-level reset present.
pub const AF_TP_FLR: u8 = 0b11;
/// Advanced features control: start a function-level reset; reads as zero.
pub const AF_INITIATE_FLR: u8 = 1;
