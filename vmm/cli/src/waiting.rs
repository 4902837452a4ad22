//! The wait for a source: whoever connects and does not speak the stream changes nothing.

use std::io::ErrorKind;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use anyhow::Context;
use drogher_control::socket::peer_is_us;
use drogher_migrate::wire::MAGIC;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use crate::words;

/// How often the wait looks up.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How long a connection may be silent; a source greets at once.
const SILENCE: Duration = Duration::from_secs(10);

/// Most connections of which it is not known what they are; the oldest goes when there are more.
const UNKNOWN_MAX: usize = 16;

/// What a connection is.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    /// A source.
    Source,
    /// It has said nothing.
    Silent,
    /// Nothing that contradicts a source has come, and not enough to know.
    Begun,
    /// It has closed without a word.
    Gone,
    /// It speaks something else.
    Other,
}

/// Waits for a source of this user; none if `ended` says so before.
pub fn wait(
    listener: &UnixListener,
    ended: impl Fn() -> bool,
) -> anyhow::Result<Option<UnixStream>> {
    listener.set_nonblocking(true)?;
    let mut unknown: Vec<(Instant, UnixStream)> = Vec::new();
    while !ended() {
        match listener.accept() {
            Ok((stream, _)) if peer_is_us(&stream) => {
                if unknown.len() == UNKNOWN_MAX {
                    unknown.remove(0);
                }
                unknown.push((Instant::now(), stream));
                // Others may be in the queue.
                if unknown.len() < UNKNOWN_MAX {
                    continue;
                }
            }
            Ok(_) => words::say("a process of another user was turned away"),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("Cannot wait for a source"),
        }
        let mut at = 0;
        while let Some((since, stream)) = unknown.get(at) {
            match kind(stream) {
                Kind::Source => return Ok(Some(unknown.swap_remove(at).1)),
                Kind::Silent | Kind::Begun if since.elapsed() < SILENCE => {
                    at += 1;
                    continue;
                }
                Kind::Silent | Kind::Begun => {
                    words::say("a connection that said nothing was closed")
                }
                Kind::Other => words::say(
                    "a connection that does not speak the stream of a migration was closed",
                ),
                Kind::Gone => {}
            }
            unknown.remove(at);
        }
        doze(listener, &unknown);
    }
    Ok(None)
}

/// Until somebody connects or a silent connection says something; [`LOOK_EVERY`] at most.
fn doze(listener: &UnixListener, unknown: &[(Instant, UnixStream)]) {
    // What has come of a greeting stays where it is, and would end each wait at once.
    let silent = unknown.iter().map(|(_, stream)| stream).filter(|s| kind(s) == Kind::Silent);
    let listener = PollFd::new(listener, PollFlags::IN);
    let mut all: Vec<_> = silent.map(|s| PollFd::new(s, PollFlags::IN)).chain([listener]).collect();
    let wait = Timespec { tv_sec: 0, tv_nsec: LOOK_EVERY.subsec_nanos().into() };
    if poll(&mut all, Some(&wait)).is_err() {
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Looks at the first bytes, and leaves them where they are.
fn kind(stream: &UnixStream) -> Kind {
    let mut first = [0; MAGIC.len()];
    match rustix::net::recv(stream, &mut first, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((0, _)) => Kind::Gone,
        Ok((count, _)) => match first.get(..count) {
            Some(bytes) if bytes == MAGIC => Kind::Source,
            Some(bytes) if MAGIC.starts_with(bytes) => Kind::Begun,
            _ => Kind::Other,
        },
        Err(Errno::AGAIN | Errno::INTR) => Kind::Silent,
        Err(_) => Kind::Gone,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn only_the_magic_number_makes_a_source() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        assert_eq!(kind(&ours), Kind::Silent);
        let (begin, end) = MAGIC.split_at(3);
        theirs.write_all(begin).unwrap();
        assert_eq!(kind(&ours), Kind::Begun);
        theirs.write_all(end).unwrap();
        assert_eq!(kind(&ours), Kind::Source);
        assert_eq!(kind(&ours), Kind::Source, "it was left where it is");
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"GET / HTTP/1.1").unwrap();
        assert_eq!(kind(&ours), Kind::Other);
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert_eq!(kind(&ours), Kind::Gone);
    }
}
