//! A raw copy over a Unix socket from one process's guest memory to another's: what pre-copy is
//! measured against.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use drogher_iommu::Oa;
use drogher_machine::memory::GuestRam;
use drogher_tests::DEADLINE;
use vm_memory::{ReadVolatile, WriteVolatile};

/// Bytes in one call: as many as in one of our records.
const BLOCK: usize = 256 << 10;
const READY: u8 = b'r';
const DONE: u8 = b'd';

/// What the bytes are put into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Sink {
    /// A new memory file, read straight into its mapping: a page fault for each page.
    FreshMapping,
    /// A new memory file, through a buffer and `pwrite`, as our bulk round does.
    FreshFile,
    /// A memory file all of whose pages are there and mapped.
    Populated,
    /// One buffer, again and again: the socket alone.
    Buffer,
}

/// Sends from populated memory.
pub struct Source {
    ram: GuestRam,
    bytes: u64,
}

impl Source {
    /// At most `bytes` are sent from it.
    pub fn new(bytes: u64) -> Result<Self> {
        let bytes = bytes.next_multiple_of(drogher_machine::memory::GRANULE);
        let ram = GuestRam::new(bytes)?;
        ram.populate()?;
        ram.fill_at(Oa(0), 0x5a, bytes)?;
        Ok(Self { ram, bytes })
    }

    /// Copies `bytes` into a new process; bytes per second.
    pub fn copy(&self, bytes: u64, into: Sink) -> Result<f64> {
        let bytes = bytes.min(self.bytes);
        let (mut here, there) = UnixStream::pair()?;
        let kind = into.to_possible_value().context("every kind has a name")?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["raw-sink", "--into", kind.get_name(), "--bytes", &bytes.to_string()])
            .stdin(Stdio::from(OwnedFd::from(there)))
            .spawn()?;
        let taken = self.send(&mut here, bytes);
        drop(here);
        if taken.is_err() {
            let _ = child.kill();
        }
        let status = child.wait()?;
        let taken = taken?;
        ensure!(status.success(), "the receiver of a raw copy ended with {status}");
        Ok(bytes as f64 / taken.as_secs_f64())
    }

    fn send(&self, stream: &mut UnixStream, bytes: u64) -> Result<Duration> {
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        expect(stream, READY)?;
        let begin = Instant::now();
        let mut at = 0;
        while at < bytes {
            let slice = self.ram.slice(Oa(at), (bytes - at).min(BLOCK as u64))?;
            stream.write_all_volatile(&slice).context("a raw copy cannot be sent")?;
            at += slice.len() as u64;
        }
        expect(stream, DONE)?;
        Ok(begin.elapsed())
    }
}

fn expect(stream: &mut UnixStream, wanted: u8) -> Result<()> {
    let mut byte = [0];
    stream.read_exact(&mut byte).context("the receiver of a raw copy does not answer")?;
    if byte != [wanted] {
        bail!("the receiver of a raw copy says {byte:?}, not {wanted}");
    }
    Ok(())
}

/// The receiving process; its standard input is the socket.
pub fn sink(bytes: u64, into: Sink) -> Result<()> {
    let mut stream = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    stream.set_read_timeout(Some(DEADLINE))?;
    let ram = GuestRam::new(bytes.next_multiple_of(drogher_machine::memory::GRANULE))?;
    if into == Sink::Populated {
        ram.populate()?;
    }
    let mut buffer = vec![1; BLOCK];
    stream.write_all(&[READY])?;
    let mut at = 0;
    while at < bytes {
        let size = (bytes - at).min(BLOCK as u64);
        match into {
            Sink::FreshMapping | Sink::Populated => {
                stream.read_exact_volatile(&mut ram.slice(Oa(at), size)?)?;
            }
            Sink::FreshFile | Sink::Buffer => {
                let part = buffer.get_mut(..usize::try_from(size)?).unwrap_or_default();
                stream.read_exact(part)?;
                if into == Sink::FreshFile {
                    ram.write_unmapped(Oa(at), part)?;
                }
            }
        }
        at += size;
    }
    stream.write_all(&[DONE])?;
    Ok(())
}
