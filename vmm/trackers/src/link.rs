//! A socket pair as a link of the engine, and how fast it is.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use drogher_iommu::{HeapMemory, Memory};
use drogher_iommu_types::{Oa, PAGE_SIZE};
use drogher_migrate::{Link, LinkError};

use crate::error::{TrackersError, system};
use crate::rig::PATIENCE;

/// Bytes sent at once: as many as the engine copies at once.
const CHUNK: usize = 64 << 10;
/// Bytes that are timed together.
const PIECE: u64 = 512 << 10;
/// So many at least.
const LEAST: u32 = 4;

/// A connected pair; what waits does so for at most [`PATIENCE`].
fn pair() -> Result<(UnixStream, UnixStream), TrackersError> {
    let (a, b) = UnixStream::pair().map_err(system("make a socket pair"))?;
    for end in [&a, &b] {
        let bounded =
            end.set_read_timeout(Some(PATIENCE)).and(end.set_write_timeout(Some(PATIENCE)));
        bounded.map_err(system("bound the waits on a socket"))?;
    }
    Ok((a, b))
}

/// One end of a socket pair.
pub(crate) struct PairLink {
    stream: UnixStream,
    /// As set in the socket: setting it costs a system call.
    timeouts: [Option<Duration>; 2],
}

/// Two links that lead to each other.
pub(crate) fn links() -> Result<(PairLink, PairLink), TrackersError> {
    let (a, b) = pair()?;
    let link = |stream| PairLink { stream, timeouts: [Some(PATIENCE); 2] };
    Ok((link(a), link(b)))
}

fn failed(error: std::io::Error, timeout: Duration) -> LinkError {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {
            LinkError::TimedOut(timeout)
        }
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::NotConnected => {
            LinkError::Closed
        }
        _ => LinkError::Io(error),
    }
}

impl PairLink {
    /// Has the next call wait for at most `timeout`; `which` is 0 to receive, 1 to send.
    fn patience(&mut self, which: usize, timeout: Duration) -> Result<(), LinkError> {
        // A socket takes zero for no limit at all.
        let timeout = Some(timeout.max(Duration::from_micros(1)));
        if self.timeouts.get(which) == Some(&timeout) {
            return Ok(());
        }
        let set = match which {
            0 => self.stream.set_read_timeout(timeout),
            _ => self.stream.set_write_timeout(timeout),
        };
        set.map_err(LinkError::Io)?;
        if let Some(known) = self.timeouts.get_mut(which) {
            *known = timeout;
        }
        Ok(())
    }
}

impl Link for PairLink {
    fn send(&mut self, parts: &[IoSlice<'_>], timeout: Duration) -> Result<usize, LinkError> {
        self.patience(1, timeout)?;
        match self.stream.write_vectored(parts) {
            Ok(0) => Err(LinkError::Closed),
            Ok(count) => Ok(count),
            Err(error) => Err(failed(error, timeout)),
        }
    }

    fn receive(&mut self, buf: &mut [u8], timeout: Duration) -> Result<usize, LinkError> {
        self.patience(0, timeout)?;
        match self.stream.read(buf) {
            Ok(0) => Err(LinkError::Closed),
            Ok(count) => Ok(count),
            Err(error) => Err(failed(error, timeout)),
        }
    }
}

/// What it takes to send one page again, in ns: out of memory, through a socket pair, into memory
/// on another thread. Pieces are sent for about `budget`, [`LEAST`] of them at least, and the best
/// counts: the others tell of other processes.
pub(crate) fn page_ns(budget: Duration) -> Result<f64, TrackersError> {
    let (mut from, mut to) = pair()?;
    let (source, destination) = (HeapMemory::new(PIECE), HeapMemory::new(PIECE));
    let fill = |memory: &HeapMemory| memory.fill(Oa(0), 0x5a, PIECE);
    fill(&source)?;
    fill(&destination)?;
    thread::scope(|scope| {
        let receiver = scope.spawn(move || -> Result<(), TrackersError> {
            let mut buffer = vec![0; CHUNK];
            // The first byte of a piece says that it comes.
            while to.read(&mut [0]).map_err(system("read from a socket pair"))? == 1 {
                each_chunk(|at| {
                    to.read_exact(&mut buffer).map_err(system("read from a socket pair"))?;
                    Ok(destination.write(at, &buffer)?)
                })?;
                to.write_all(&[0]).map_err(system("write to a socket pair"))?;
            }
            Ok(())
        });
        let sent = send_pieces(&mut from, &source, budget);
        drop(from);
        let received = receiver.join().unwrap_or(Err(TrackersError::Panicked { who: "receiver" }));
        received.and(sent)
    })
}

fn send_pieces(
    to: &mut UnixStream,
    source: &HeapMemory,
    budget: Duration,
) -> Result<f64, TrackersError> {
    let mut buffer = vec![0; CHUNK];
    let (begin, mut best, mut pieces) = (Instant::now(), f64::INFINITY, 0);
    while pieces < LEAST || begin.elapsed() < budget {
        let piece = Instant::now();
        to.write_all(&[0]).map_err(system("write to a socket pair"))?;
        each_chunk(|at| {
            source.read(at, &mut buffer)?;
            to.write_all(&buffer).map_err(system("write to a socket pair"))
        })?;
        to.read_exact(&mut [0]).map_err(system("read from a socket pair"))?;
        best = best.min(piece.elapsed().as_secs_f64() * 1e9);
        pieces += 1;
    }
    Ok(best / (PIECE / PAGE_SIZE) as f64)
}

fn each_chunk(mut act: impl FnMut(Oa) -> Result<(), TrackersError>) -> Result<(), TrackersError> {
    (0..PIECE / CHUNK as u64).try_for_each(|chunk| act(Oa(chunk * CHUNK as u64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_arrive_and_waits_end() {
        let (mut a, mut b) = links().unwrap();
        assert_eq!(a.send(&[IoSlice::new(b"ab"), IoSlice::new(b"c")], PATIENCE).unwrap(), 3);
        let mut buffer = [0; 8];
        assert_eq!(b.receive(&mut buffer, PATIENCE).unwrap(), 3);
        assert_eq!(&buffer[..3], b"abc");
        for timeout in [Duration::ZERO, Duration::from_millis(1)] {
            assert!(matches!(b.receive(&mut buffer, timeout), Err(LinkError::TimedOut(_))));
        }
        drop(a);
        assert!(matches!(b.receive(&mut buffer, PATIENCE), Err(LinkError::Closed)));
        let gone = b.send(&[IoSlice::new(b"x")], PATIENCE);
        assert!(matches!(gone, Err(LinkError::Closed)));
    }

    #[test]
    fn sending_a_page_takes_some_time() {
        assert!(page_ns(Duration::ZERO).unwrap() > 0.0);
    }
}
