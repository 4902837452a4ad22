//! A wire to a tap of this host's kernel, one of its queues (Linux's Documentation/networking/tuntap.rst).
//!
//! The tap is made beforehand, with `multi_queue`, so that source and destination of a move each have a
//! queue of it. Prepared, the queue is detached: the kernel gives it no frame. It takes what is written
//! to it all the same, so that nothing is written is up to the wire.
#![expect(unsafe_code, reason = "no crate has these two ioctls and queues that are detached")]

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, ioctl, opcode};

use crate::server::Server;
use crate::{FRAME_MAX, Inbox, Wire, WireError};

/// Longest name of a network interface, and the zero behind it (`IFNAMSIZ`).
pub(crate) const NAME_BYTES: usize = 16;
/// Between two tries to have the queue again, and two looks whether the wire is active.
const PAUSE: Duration = Duration::from_millis(20);
/// Frames that are taken after the wire was told to end.
const LAST_FRAMES: usize = crate::INBOX_FRAMES;

const TUNSETIFF: Opcode = opcode::write::<i32>(b'T', 202);
const TUNSETQUEUE: Opcode = opcode::write::<i32>(b'T', 217);
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_ATTACH_QUEUE: u16 = 0x0200;
const IFF_DETACH_QUEUE: u16 = 0x0400;

/// `struct ifreq` with its flags.
#[repr(C)]
#[derive(Clone, Copy)]
struct Request {
    name: [u8; NAME_BYTES],
    flags: u16,
    rest: [u8; 22],
}

impl Request {
    fn new(name: &str, flags: u16) -> Self {
        let mut bytes = [0; NAME_BYTES];
        // The last one stays zero.
        for (to, from) in bytes.iter_mut().take(NAME_BYTES - 1).zip(name.as_bytes()) {
            *to = *from;
        }
        Self { name: bytes, flags, rest: [0; 22] }
    }
}

/// Opens a queue of the tap, detached.
fn open(name: &str) -> Result<OwnedFd, Errno> {
    // TUNSETIFF would make one that is gone with its last user.
    let any = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )?;
    rustix::net::netdevice::name_to_index(&any, name)?;
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let queue = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
    let request = Request::new(name, IFF_TAP | IFF_NO_PI | IFF_MULTI_QUEUE);
    // SAFETY: TUNSETIFF reads and writes a `struct ifreq`, as `Request` is, through a pointer to it.
    unsafe { ioctl(&queue, Setter::<TUNSETIFF, Request>::new(request)) }?;
    turn(&queue, IFF_DETACH_QUEUE)?;
    Ok(queue)
}

fn turn(queue: &OwnedFd, flags: u16) -> Result<(), Errno> {
    let request = Request::new("", flags);
    // SAFETY: TUNSETQUEUE reads a `struct ifreq`, as `Request` is, through a pointer to it.
    unsafe { ioctl(queue, Setter::<TUNSETQUEUE, Request>::new(request)) }
}

/// State that the wire and its thread share.
#[derive(Debug)]
struct Shared {
    name: String,
    queue: Mutex<Option<Arc<OwnedFd>>>,
    /// Frames may be sent: the queue is attached. Changed under the queue's lock, as who sends looks at it
    /// and writes under that.
    up: AtomicBool,
    stop: AtomicBool,
    /// Ends the thread's wait at once, as that may be in the guest's blackout.
    wake: Option<OwnedFd>,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Option<Arc<OwnedFd>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn have_queue(&self) -> Result<Arc<OwnedFd>, Errno> {
        let mut queue = self.queue();
        if let Some(queue) = &*queue {
            return Ok(Arc::clone(queue));
        }
        Ok(Arc::clone(queue.insert(Arc::new(open(&self.name)?))))
    }

    /// Frames may be sent, unless the wire is to end.
    fn raise(&self) {
        let _queue = self.queue();
        self.up.store(!self.stop.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    /// No frame is sent any more, and none is being sent.
    fn lower(&self) {
        let _queue = self.queue();
        self.up.store(false, Ordering::SeqCst);
    }

    /// As [`lower`](Self::lower), until the wire is active again.
    fn end(&self) {
        let _queue = self.queue();
        self.stop.store(true, Ordering::SeqCst);
        self.up.store(false, Ordering::SeqCst);
    }
}

/// A wire to a queue of a tap.
#[derive(Debug)]
pub struct TapWire {
    shared: Arc<Shared>,
    server: Server,
}

impl TapWire {
    /// Not opened yet.
    pub fn new(name: String) -> Self {
        let shared = Shared {
            name,
            queue: Mutex::default(),
            up: AtomicBool::new(false),
            stop: AtomicBool::new(true),
            // Without one the wait is longer.
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok(),
        };
        Self { shared: Arc::new(shared), server: Server::default() }
    }
}

impl Wire for TapWire {
    fn prepare(&self) -> Result<(), WireError> {
        let name = self.shared.name.clone();
        self.shared.have_queue().map(drop).map_err(|errno| match errno {
            Errno::NODEV => WireError::NoTap { name },
            Errno::INVAL => WireError::SingleQueue { name },
            errno => WireError::Tap { name, source: errno.into() },
        })
    }

    fn activate(&self, inbox: Arc<Inbox>) {
        let shared = Arc::clone(&self.shared);
        self.server.start(&self.shared.stop, move || serve(&shared, &inbox));
    }

    fn deactivate(&self) {
        let shared = &self.shared;
        let wake = || {
            let wake = shared.wake.as_ref();
            let _ = wake.map(|wake| rustix::io::write(wake, &1_u64.to_ne_bytes()));
        };
        self.server.end(&shared.stop, || shared.end(), wake);
    }

    fn send(&self, frame: &[u8]) -> bool {
        let queue = self.shared.queue();
        let Some(queue) = queue.as_ref().filter(|_| self.shared.up.load(Ordering::SeqCst)) else {
            return false;
        };
        rustix::io::write(queue, frame).is_ok_and(|written| written == frame.len())
    }
}

/// Keeps the queue attached and reads it while the wire is active; has it again when the tap went away.
fn serve(shared: &Shared, inbox: &Inbox) {
    // Of the last time. Who wakes us now has set `stop` before.
    let _ = shared.wake.as_ref().map(|wake| rustix::io::read(wake, &mut [0; 8]));
    let mut told = false;
    while !shared.stop.load(Ordering::SeqCst) {
        let attached = shared.have_queue().and_then(|queue| {
            turn(&queue, IFF_ATTACH_QUEUE)?;
            Ok(queue)
        });
        match attached {
            Ok(queue) => {
                told = false;
                shared.raise();
                let whole = read_all(shared, inbox, &queue);
                shared.lower();
                if whole && turn(&queue, IFF_DETACH_QUEUE).is_ok() {
                    continue;
                }
            }
            Err(errno) => {
                if !std::mem::replace(&mut told, true) {
                    let name = &shared.name;
                    tracing::warn!(name, error = %std::io::Error::from(errno), "tap is down");
                }
            }
        }
        // It is gone, or nobody knows how it stands.
        *shared.queue() = None;
        if !shared.stop.load(Ordering::SeqCst) {
            std::thread::park_timeout(PAUSE);
        }
    }
}

/// Reads until the wire is to end, and then what is there already; false if the tap went away.
fn read_all(shared: &Shared, inbox: &Inbox, queue: &OwnedFd) -> bool {
    let (mut buffer, mut last) = (vec![0; FRAME_MAX], 0);
    let pause = Timespec { tv_sec: 0, tv_nsec: PAUSE.subsec_nanos().into() };
    let mut fds = vec![PollFd::new(queue, PollFlags::IN)];
    fds.extend(shared.wake.iter().map(|wake| PollFd::new(wake, PollFlags::IN)));
    loop {
        let ends = shared.stop.load(Ordering::SeqCst);
        match rustix::io::read(queue, &mut buffer) {
            Ok(len) => {
                inbox.push(buffer.get(..len).unwrap_or_default());
                last += usize::from(ends);
                if last > LAST_FRAMES {
                    return true;
                }
            }
            Err(Errno::AGAIN | Errno::INTR) if ends => return true,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                // A poll that fails is one that found nothing.
                let _ = poll(&mut fds, Some(&pause));
            }
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
#[path = "tap_test.rs"]
mod tests;
