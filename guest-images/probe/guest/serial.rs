//! COM1: one exit a character, and the heart beats in between.

use core::fmt::{Arguments, Write};

use crate::{cpu, gate};

const DATA: u16 = 0x3f8;
const INTERRUPT_ENABLE: u16 = 0x3f9;
const FIFO_CONTROL: u16 = 0x3fa;
const LINE_CONTROL: u16 = 0x3fb;
const LINE_STATUS: u16 = 0x3fd;

const DATA_READY: u8 = 1;
const TRANSMITTER_EMPTY: u8 = 1 << 5;
/// What a 16550A's FIFO takes once it is empty.
const FIFO: usize = 16;
/// Looks at the line status before writing anyway: output is never worth hanging for.
const PATIENCE: usize = 1000;

pub fn init() {
    gate::out8(INTERRUPT_ENABLE, 0);
    gate::out8(LINE_CONTROL, 3);
    gate::out8(FIFO_CONTROL, 7);
}

/// A character that came in. One exit when there is none.
pub fn read() -> Option<u8> {
    let status = gate::in8(LINE_STATUS);
    // No port at all reads as all ones.
    (status != 0xff && status & DATA_READY != 0).then(|| gate::in8(DATA))
}

struct Port;

impl Write for Port {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for piece in text.as_bytes().chunks(FIFO) {
            for _ in 0..PATIENCE {
                if gate::in8(LINE_STATUS) & TRANSMITTER_EMPTY != 0 {
                    break;
                }
                cpu::beat(0);
            }
            for &byte in piece {
                gate::out8(DATA, byte);
                cpu::beat(0);
            }
        }
        Ok(())
    }
}

/// Only the first processor prints.
pub fn print(what: Arguments) {
    let mut line = Line { bytes: [0; 160], used: 0 };
    // Neither can fail.
    let _ = line.write_fmt(what);
    line.flush();
}

/// Gathers pieces of formatting, so that the status is not asked for each of them.
struct Line {
    bytes: [u8; 160],
    used: usize,
}

impl Line {
    fn flush(&mut self) {
        let text = self.bytes.get(..self.used).and_then(|bytes| str::from_utf8(bytes).ok());
        let _ = Port.write_str(text.unwrap_or("?"));
        self.used = 0;
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for letter in text.chars() {
            if self.used + 4 > self.bytes.len() {
                self.flush();
            }
            if let Some(place) = self.bytes.get_mut(self.used..self.used + letter.len_utf8()) {
                letter.encode_utf8(place);
                self.used += letter.len_utf8();
            }
        }
        Ok(())
    }
}

macro_rules! say {
    ($($what:tt)*) => { $crate::serial::print(format_args!($($what)*)) };
}
pub(crate) use say;
