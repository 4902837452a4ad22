//! The serial console on a terminal: raw, so that every key goes to the guest, but for one escape.
//!
//! Ctrl-A x ends the guest; Ctrl-A Ctrl-A types a Ctrl-A.

use std::io::{self, IsTerminal, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use drogher_machine::console::ConsoleConfig;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::getpgrp;
use rustix::termios::{OptionalActions, OutputModes, Termios, tcgetattr, tcgetpgrp, tcsetattr};

use crate::words;

/// Ctrl-A.
const ESCAPE: u8 = 1;

/// A terminal whose keys go to the guest; as it was before when this is dropped.
pub struct Terminal {
    before: Termios,
    raw: bool,
}

/// The console on standard input and output. On a terminal that is ours, also the terminal, which is
/// not raw yet; its escape sets `stop`. In the background there is no input.
///
/// # Errors
/// When descriptors or threads have run out.
pub fn console(stop: &Arc<AtomicBool>) -> anyhow::Result<(ConsoleConfig, Option<Terminal>)> {
    let input = io::stdin();
    if !input.is_terminal() {
        return Ok((ConsoleConfig::Stdio, None));
    }
    let output = io::stdout().as_fd().try_clone_to_owned().context("Cannot use standard output")?;
    let ours = tcgetpgrp(&input).is_ok_and(|group| group == getpgrp());
    let Some(before) = ours.then(|| tcgetattr(&input).ok()).flatten() else {
        // Changing the terminal, or reading from it, would stop this process and the guest with it.
        words::say("in the background: no keys go to the guest");
        return Ok((ConsoleConfig::Fds { input: None, output }, None));
    };
    let (keys, to_guest) = io::pipe().context("Cannot make a pipe for the console")?;
    // A guest that does not read must not keep the escape from being seen.
    fcntl_getfl(&to_guest)
        .and_then(|flags| fcntl_setfl(&to_guest, flags | OFlags::NONBLOCK))
        .context("Cannot set up the pipe for the console")?;
    let stop = Arc::clone(stop);
    std::thread::Builder::new()
        .name("keys".into())
        .spawn(move || pass_keys(&mut io::stdin(), to_guest, &stop))
        .context("Cannot start a thread for the console")?;
    let config = ConsoleConfig::Fds { input: Some(keys.into()), output };
    Ok((config, Some(Terminal { before, raw: false })))
}

impl Terminal {
    /// Gives the keys to the guest.
    pub fn begin(&mut self) {
        let mut raw = self.before.clone();
        raw.make_raw();
        // Our own lines, and those of a guest that does not care, shall begin at the left.
        raw.output_modes |= self.before.output_modes & (OutputModes::OPOST | OutputModes::ONLCR);
        if tcsetattr(io::stdin(), OptionalActions::Now, &raw).is_ok() {
            self.raw = true;
            words::say("the keys go to the guest; Ctrl-A x ends it");
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if self.raw {
            // There is nobody left to be told that it failed.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
        }
    }
}

/// What a key means after those before it.
#[derive(Debug, Default)]
struct Keys {
    escaped: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    Type(Vec<u8>),
    Wait,
    End,
}

impl Keys {
    fn press(&mut self, key: u8) -> Meaning {
        match (std::mem::take(&mut self.escaped), key) {
            (false, ESCAPE) => {
                self.escaped = true;
                Meaning::Wait
            }
            (true, b'x') => Meaning::End,
            (true, ESCAPE) | (false, _) => Meaning::Type(vec![key]),
            (true, _) => Meaning::Type(vec![ESCAPE, key]),
        }
    }
}

/// Passes keys on until they end, or the guest does not want any more.
fn pass_keys(from: &mut impl Read, mut to: PipeWriter, stop: &AtomicBool) {
    let mut keys = Keys::default();
    let mut buffer = [0; 256];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        for &key in buffer.iter().take(count) {
            match keys.press(key) {
                Meaning::Wait => {}
                Meaning::End => stop.store(true, Ordering::Release),
                Meaning::Type(bytes) => match to.write_all(&bytes) {
                    // As a serial line does with what nobody takes: it is lost.
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
                    _ => {}
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_escape_ends_and_everything_else_arrives() {
        let (mut reader, writer) = io::pipe().unwrap();
        let stop = AtomicBool::new(false);
        pass_keys(&mut &b"a\x03\x01\x01b\x01c\n\x01"[..], writer, &stop);
        let mut typed = Vec::new();
        reader.read_to_end(&mut typed).unwrap();
        assert_eq!(typed, b"a\x03\x01b\x01c\n");
        assert!(!stop.load(Ordering::Acquire));
        let (_reader, writer) = io::pipe().unwrap();
        pass_keys(&mut &b"x\x01x"[..], writer, &stop);
        assert!(stop.load(Ordering::Acquire));
    }

    #[test]
    fn a_guest_that_does_not_read_does_not_keep_the_escape_away() {
        let (_reader, writer) = io::pipe().unwrap();
        fcntl_setfl(&writer, fcntl_getfl(&writer).unwrap() | OFlags::NONBLOCK).unwrap();
        let stop = AtomicBool::new(false);
        let keys = [vec![b'k'; 1 << 20], b"\x01x".to_vec()].concat();
        pass_keys(&mut &keys[..], writer, &stop);
        assert!(stop.load(Ordering::Acquire));
    }
}
