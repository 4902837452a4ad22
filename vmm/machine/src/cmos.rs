//! The CMOS clock, as much of it as a guest needs to find the date (Motorola MC146818A).
//!
//! Time is the host's, in UTC. Alarm and memory are not there: they read as zero.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

const REGISTER_A: u8 = 0x0A;
const REGISTER_B: u8 = 0x0B;
const REGISTER_D: u8 = 0x0D;
const CENTURY: u8 = 0x32;
/// Divider for 32768 Hz, periodic rate 1024 Hz, no update in progress.
const A_VALUE: u8 = 0x26;
/// 24-hour mode, BCD, no interrupt enabled.
const B_VALUE: u8 = 0x02;
/// Battery good.
const D_VALUE: u8 = 0x80;

/// Ports 0x70 (index) and 0x71 (data). The index is all its state.
#[derive(Debug, Default)]
pub struct Cmos {
    index: AtomicU8,
}

impl Cmos {
    /// The index register.
    #[must_use]
    pub fn index(&self) -> u8 {
        self.index.load(Ordering::Relaxed)
    }

    /// Sets the index register; bit 7 is the NMI mask of old, ignored.
    pub fn set_index(&self, index: u8) {
        self.index.store(index & 0x7F, Ordering::Relaxed);
    }
}

fn bcd(value: u64) -> u8 {
    u8::try_from(((value / 10 % 10) << 4) | (value % 10)).unwrap_or(0)
}

/// Year, month (1 to 12) and day (1 to 31) of a day counted from 1970-01-01: the proleptic
/// Gregorian calendar in eras of 400 years that begin on 1 March.
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

fn register(index: u8, seconds: u64) -> u8 {
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    match index {
        0 => bcd(time % 60),
        2 => bcd(time / 60 % 60),
        4 => bcd(time / 3_600),
        // 1970-01-01 was a Thursday; Sunday is 1.
        6 => bcd((days + 4) % 7 + 1),
        7 => bcd(day),
        8 => bcd(month),
        9 => bcd(year % 100),
        CENTURY => bcd(year / 100),
        REGISTER_A => A_VALUE,
        REGISTER_B => B_VALUE,
        REGISTER_D => D_VALUE,
        _ => 0,
    }
}

impl DevicePio for Cmos {
    fn pio_read(&self, _base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        let Some(first) = data.first_mut() else { return };
        if offset == 1 {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            *first = register(self.index(), now.as_secs());
        }
    }

    fn pio_write(&self, _base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if let (0, Some(&value)) = (offset, data.first()) {
            self.set_index(value);
        }
    }
}

#[cfg(test)]
#[path = "cmos_test.rs"]
mod tests;
