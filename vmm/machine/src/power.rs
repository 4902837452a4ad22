//! Ports by which a guest turns the machine off or resets it.

use crate::events::GuestEvent;
use crate::layout::{KEYBOARD_PORT, POWER_PORT, RESET_PORT, SLEEP_PORT};

/// Bit 13 of a 16-bit write: SLP_EN, as in ACPI's PM1 control block (4.8.3.2.1).
const SLEEP_ENABLE: u16 = 1 << 13;
/// SLP_TYP that the DSDT gives for S5, off.
pub(crate) const SLEEP_TYPE_OFF: u8 = 5;
/// ACPI's sleep control register (4.8.3.7): SLP_TYP in bits 4:2, SLP_EN in bit 5.
const SLEEP_OFF: u8 = SLEEP_TYPE_OFF << 2 | 1 << 5;
/// What the FADT says is to be written to reset: a full reset.
pub(crate) const RESET_VALUE: u8 = 0x06;
/// Bit 2 of the reset control register: reset the CPU.
const RESET_CPU: u8 = 1 << 2;
/// Keyboard controller command: pulse the reset line.
const PULSE_RESET: u8 = 0xFE;

/// What an `out` of these bytes means for the machine as a whole, if anything.
#[must_use]
pub fn decode(port: u16, data: &[u8]) -> Option<GuestEvent> {
    match (port, data) {
        (POWER_PORT, &[low, high]) if u16::from_le_bytes([low, high]) & SLEEP_ENABLE != 0 => {
            Some(GuestEvent::Shutdown)
        }
        (SLEEP_PORT, &[value]) if value & 0x3C == SLEEP_OFF => Some(GuestEvent::Shutdown),
        (RESET_PORT, &[value]) if value & RESET_CPU != 0 => Some(GuestEvent::Reset),
        (KEYBOARD_PORT, &[PULSE_RESET]) => Some(GuestEvent::Reset),
        _ => None,
    }
}

#[cfg(test)]
#[path = "power_test.rs"]
mod tests;
