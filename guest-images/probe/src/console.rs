//! A probe's console as a whole: bytes in, what they amount to out.

use std::fmt;

use crate::line::{Blackout, Bye, Hello, Line, Status};

/// A line longer than this is cut: a guest that prints no line ends must not eat memory.
const LINE_MAX: usize = 4096;

/// Collects a probe's output. Feed it in pieces of any size; `Display` gives one line to people.
#[derive(Clone, Debug, Default)]
pub struct Console {
    partial: Vec<u8>,
    hello: Option<Hello>,
    ready: bool,
    last: Option<Status>,
    lines: u64,
    blackout: Option<Blackout>,
    bye: Option<Bye>,
    fail: Option<String>,
}

impl Console {
    /// Takes bytes of the console and returns the lines that they complete.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Line> {
        let mut lines = Vec::new();
        for &byte in bytes {
            if byte != b'\n' && self.partial.len() < LINE_MAX {
                self.partial.push(byte);
                continue;
            }
            let text = std::mem::take(&mut self.partial);
            let line = Line::parse(&String::from_utf8_lossy(&text));
            self.note(&line);
            lines.push(line);
        }
        lines
    }

    /// Takes account of a line that was read elsewhere.
    pub fn note(&mut self, line: &Line) {
        match line {
            Line::Hello(hello) => self.hello = Some(hello.clone()),
            Line::Ready => self.ready = true,
            Line::Status(status) => {
                self.lines += 1;
                self.last = Some(status.clone());
            }
            Line::Blackout(new) => {
                let old = self.blackout.map_or(0, |old| old.blackout_us);
                if new.blackout_us >= old {
                    self.blackout = Some(*new);
                }
            }
            Line::Bye(bye) => self.bye = Some(bye.clone()),
            Line::Fail(text) => {
                self.fail.get_or_insert_with(|| text.clone());
            }
            Line::Note(_) | Line::Other(_) => {}
        }
    }

    /// The hello line, once there was one.
    pub fn hello(&self) -> Option<&Hello> {
        self.hello.as_ref()
    }

    /// Whether the load has begun.
    pub fn ready(&self) -> bool {
        self.ready
    }

    /// The last status line.
    pub fn last(&self) -> Option<&Status> {
        self.last.as_ref()
    }

    /// How many status lines there were.
    pub fn status_lines(&self) -> u64 {
        self.lines
    }

    /// The largest gap that stood out from the noise.
    pub fn blackout(&self) -> Option<Blackout> {
        self.blackout
    }

    /// The bye line, once there was one.
    pub fn bye(&self) -> Option<&Bye> {
        self.bye.as_ref()
    }

    /// The first FAIL line.
    pub fn fail(&self) -> Option<&str> {
        self.fail.as_deref()
    }
}

impl fmt::Display for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let totals = self.bye.as_ref().map(|bye| &bye.totals).or(self.last.as_ref());
        let Some(s) = totals else {
            f.write_str("probe: nothing checked yet")?;
            return self.fail.iter().try_for_each(|fail| write!(f, ", {fail}"));
        };
        write!(f, "probe: {:.1} s, {} pages written, ", s.t.as_secs_f64(), s.pages)?;
        write!(f, "{} checked ({} sweeps), {} DMA descriptors", s.checked, s.sweeps, s.dma)?;
        write!(f, " by {} interrupts, largest gap ", s.irqs)?;
        write!(f, "{} µs (noise {} µs), ", s.max_gap_us, s.noise_us)?;
        f.write_str(self.fail.as_deref().unwrap_or("no FAIL"))
    }
}

#[cfg(test)]
#[path = "console_test.rs"]
mod tests;
