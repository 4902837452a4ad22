//! What a probe has written to a file, read while it grows.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use drogher_probe::{Console, Line, Status};
use drogher_tests::DEADLINE;

/// The console of one guest, which goes on in another file when the guest moves.
#[derive(Debug)]
pub struct Follower {
    path: PathBuf,
    offset: u64,
    console: Console,
    /// The last byte that was read ended a line.
    at_line: bool,
}

impl Follower {
    /// The console that is, or will be, written to `path`.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), offset: 0, console: Console::default(), at_line: true }
    }

    /// What there is so far.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Reads what is new; the lines that are complete now.
    pub fn read(&mut self) -> Result<Vec<Line>> {
        let mut bytes = Vec::new();
        if let Ok(mut file) = File::open(&self.path) {
            file.seek(SeekFrom::Start(self.offset))?;
            file.read_to_end(&mut bytes)?;
        }
        self.take(&bytes)
    }

    fn take(&mut self, bytes: &[u8]) -> Result<Vec<Line>> {
        self.offset += bytes.len() as u64;
        if let Some(last) = bytes.last() {
            self.at_line = *last == b'\n';
        }
        let lines = self.console.feed(bytes);
        match self.console.fail() {
            Some(fail) => bail!("the guest has found a fault: {fail}"),
            None => Ok(lines),
        }
    }

    /// Reads the rest of this file, and goes on with `path`. True if the guest was in the middle
    /// of a line.
    pub fn moved_to(&mut self, path: &Path) -> Result<bool> {
        self.read()?;
        path.clone_into(&mut self.path);
        self.offset = 0;
        Ok(!self.at_line)
    }

    /// Waits for so many status lines more and returns them.
    pub fn statuses(&mut self, count: usize) -> Result<Vec<Status>> {
        let mut found = Vec::new();
        self.until("a status line", |lines| {
            found.extend(lines.into_iter().filter_map(|line| match line {
                Line::Status(status) => Some(status),
                _ => None,
            }));
            found.len() >= count
        })?;
        found.truncate(count);
        Ok(found)
    }

    /// Waits until the load has begun.
    pub fn ready(&mut self) -> Result<()> {
        self.until("that it is ready", |lines| lines.contains(&Line::Ready))
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(Vec<Line>) -> bool) -> Result<()> {
        let end = Instant::now() + DEADLINE;
        while !done(self.read()?) {
            ensure!(
                Instant::now() < end,
                "the guest has not said {what} in {}: {}",
                self.path.display(),
                self.console
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "console_test.rs"]
mod tests;
