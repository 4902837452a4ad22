use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::*;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const LONG: Duration = Duration::from_secs(30);

fn dup(fd: &EventFd) -> OwnedFd {
    use std::os::fd::BorrowedFd;
    let raw = fd.as_raw_fd();
    // The eventfd outlives the borrow.
    #[expect(unsafe_code, reason = "EventFd has no safe way to a BorrowedFd")]
    // SAFETY: `fd` is open for the whole call.
    let borrowed = unsafe { BorrowedFd::borrow_raw(raw) };
    borrowed.try_clone_to_owned().expect("a descriptor")
}

struct Bell {
    fd: EventFd,
    count: Arc<AtomicU64>,
}

impl Bell {
    fn new() -> Self {
        Self { fd: EventFd::new(EFD_NONBLOCK).expect("an eventfd"), count: Arc::default() }
    }

    fn watch(&self, io: &IoHandle, next: Next) -> WatchId {
        let (fd, count) = (self.fd.try_clone().expect("a descriptor"), Arc::clone(&self.count));
        let handler = Box::new(move || {
            count.fetch_add(fd.read().unwrap_or(0), Ordering::SeqCst);
            next
        });
        io.add(dup(&self.fd), Interest::Read, handler).expect("watched")
    }

    fn wait(&self, count: u64) {
        let until = Instant::now() + LONG;
        while self.count.load(Ordering::SeqCst) < count {
            assert!(Instant::now() < until, "only {:?}", self.count);
            std::thread::yield_now();
        }
    }
}

#[test]
fn parked_nothing_is_handled_and_nothing_is_lost() {
    let io = IoThread::start().expect("a thread");
    let bell = Bell::new();
    bell.watch(io.handle(), Next::Keep);
    bell.fd.write(1).expect("rung");
    io.handle().park(LONG).expect("it is parked from the start");
    assert_eq!(bell.count.load(Ordering::SeqCst), 0);
    io.handle().unpark();
    bell.wait(1);
    for i in 1..200 {
        io.handle().park(LONG).expect("parked");
        let before = bell.count.load(Ordering::SeqCst);
        bell.fd.write(1).expect("rung");
        assert_eq!(bell.count.load(Ordering::SeqCst), before);
        io.handle().unpark();
        bell.wait(i + 1);
    }
}

#[test]
fn removed_it_never_runs_again() {
    let io = IoThread::start().expect("a thread");
    io.handle().unpark();
    let (bell, other) = (Bell::new(), Bell::new());
    let id = bell.watch(io.handle(), Next::Keep);
    other.watch(io.handle(), Next::Keep);
    bell.fd.write(1).expect("rung");
    bell.wait(1);
    io.handle().remove(id).expect("removed");
    assert!(matches!(io.handle().remove(id), Err(IoError::NoWatch(_))));
    bell.fd.write(1).expect("rung");
    other.fd.write(1).expect("rung");
    other.wait(1);
    assert_eq!(bell.count.load(Ordering::SeqCst), 1);
    assert_eq!(Arc::strong_count(&bell.count), 1, "the handler is gone");
}

#[test]
fn paused_it_runs_once_for_each_rearm() {
    let io = IoThread::start().expect("a thread");
    io.handle().unpark();
    let bell = Bell::new();
    let id = bell.watch(io.handle(), Next::Pause);
    bell.fd.write(1).expect("rung");
    bell.wait(1);
    bell.fd.write(1).expect("rung");
    // A request is answered after what came before it has been handled.
    let other = Bell::new();
    other.watch(io.handle(), Next::Keep);
    assert_eq!(bell.count.load(Ordering::SeqCst), 1);
    io.handle().rearm(id);
    bell.wait(2);
    io.handle().rearm(id);
    io.handle().rearm(id);
    bell.fd.write(1).expect("rung");
    bell.wait(3);
    io.handle().remove(id).expect("removed");
    io.handle().rearm(id);
}

#[test]
fn a_closed_pipe_ends_its_watch() {
    let io = IoThread::start().expect("a thread");
    io.handle().unpark();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let (said, heard) = mpsc::channel();
    let handler = Box::new(move || {
        let _ = said.send(());
        Next::Remove
    });
    io.handle().add(reader.into(), Interest::Read, handler).expect("watched");
    drop(writer);
    heard.recv_timeout(LONG).expect("told that it is closed");
    assert!(matches!(heard.recv_timeout(LONG), Err(mpsc::RecvTimeoutError::Disconnected)), "once");
}

#[test]
fn a_hanging_handler_is_an_error() {
    let io = IoThread::start().expect("a thread");
    io.handle().unpark();
    let bell = Bell::new();
    let (release, held) = mpsc::channel::<()>();
    let (begun, begins) = mpsc::channel();
    let fd = bell.fd.try_clone().expect("a descriptor");
    let inner = io.handle().clone();
    let handler = Box::new(move || {
        let _ = fd.read();
        let refused = matches!(inner.park(LONG), Err(IoError::FromHandler));
        let _ = begun.send(refused);
        let _ = held.recv_timeout(LONG);
        Next::Keep
    });
    let id = io.handle().add(dup(&bell.fd), Interest::Read, handler).expect("watched");
    bell.fd.write(1).expect("rung");
    assert!(begins.recv_timeout(LONG).expect("it runs"), "a handler cannot park its own thread");
    (0..1000).for_each(|_| io.handle().rearm(id));
    assert_eq!(io.handle().shared.lock().rearm.len(), 1, "a storm of requests is one");
    let late = io.handle().park(Duration::from_millis(10));
    assert!(matches!(late, Err(IoError::Deadline { what: "park", .. })), "{late:?}");
    release.send(()).expect("it waits");
    io.handle().park(LONG).expect("now it parks");
}

#[test]
fn what_cannot_be_watched_is_refused() {
    let io = IoThread::start().expect("a thread");
    let file = tempfile::tempfile().expect("a file");
    let refused = io.handle().add(file.into(), Interest::Read, Box::new(|| Next::Keep));
    assert!(matches!(refused, Err(IoError::Watch { .. })), "{refused:?}");
    let handle = io.handle().clone();
    handle.park(LONG).expect("it is parked from the start, and ends so");
    drop(io);
    let bell = Bell::new();
    let ended = handle.add(dup(&bell.fd), Interest::Read, Box::new(|| Next::Keep));
    assert!(matches!(ended, Err(IoError::Ended)), "{ended:?}");
    assert!(matches!(handle.park(LONG), Err(IoError::Ended)));
}
