use std::sync::Mutex;
use std::time::Instant;

use super::*;
use crate::context::{DeviceSide, HostServices, LogLevel};
use crate::host_table::raw;
use drogher_iommu::{Domain, DomainConfig, HeapMemory};
use drogher_iommu_types::Rid;

/// A wire in one port: what is sent comes back.
#[derive(Default)]
struct Loop(Mutex<Vec<Vec<u8>>>);

impl Wires for Loop {
    fn send(&self, _port: u32, frame: &[u8]) {
        self.0.lock().unwrap().push(frame.to_vec());
    }

    fn receive(&self, _port: u32, buffer: &mut [u8]) -> Received {
        let mut frames = self.0.lock().unwrap();
        let Some(frame) = frames.first() else { return Received::Nothing };
        let len = frame.len();
        let Some(room) = buffer.get_mut(..len) else { return Received::TooLong(len) };
        room.copy_from_slice(frame);
        frames.remove(0);
        Received::Frame(len)
    }

    fn wait(&self, ports: u64, _time_out: Duration, passes: &dyn Fn() -> bool) -> u64 {
        if passes() && !self.0.lock().unwrap().is_empty() { ports } else { 0 }
    }

    fn wake(&self) {}

    fn look(&self) {}
}

struct Services(Option<Arc<Loop>>);

impl HostServices for Services {
    fn irq(&self, _vector: u16) {}

    fn log(&self, _level: LogLevel, _text: &str) {}

    fn wires(&self) -> Option<Arc<dyn Wires>> {
        self.0.clone().map(|wires| wires as _)
    }
}

fn context(wires: Option<Arc<Loop>>) -> Arc<Context> {
    let domain = Domain::new(Arc::new(HeapMemory::new(1 << 16)), DomainConfig::default());
    let requester = domain.and_then(|domain| domain.attach(Rid(8))).expect("attaches");
    let device = DeviceSide { requester, services: Arc::new(Services(wires)) };
    let context = Context::new("dev".to_owned(), Some(device));
    context.close().expect("nothing in flight");
    context.ports.store(2, Ordering::SeqCst);
    context
}

fn send_to(context: &Arc<Context>, port: u32, frame: &[u8]) -> i32 {
    // SAFETY: a live context; `frame` is readable for its length.
    unsafe { send(raw(context), port, frame.as_ptr().cast(), frame.len() as u64) }
}

/// Status and length.
fn receive_from(context: &Arc<Context>, port: u32, buffer: &mut [u8]) -> (i32, u64) {
    let mut len = 99;
    let (to, cap) = (buffer.as_mut_ptr().cast(), buffer.len() as u64);
    // SAFETY: a live context; `buffer` is writable for its length, `len` too.
    (unsafe { receive(raw(context), port, to, cap, &mut len) }, len)
}

/// Status and ports.
fn wait_at(context: &Arc<Context>, ports: u64) -> (i32, u64) {
    let mut ready = 99;
    // SAFETY: a live context; `ready` is writable.
    (unsafe { wait(raw(context), ports, u32::MAX, &mut ready) }, ready)
}

#[test]
fn every_status_is_the_one_of_the_header() {
    let context = context(Some(Arc::default()));
    let mut buffer = [0; 100];
    assert_eq!(send_to(&context, 0, &[1; 60]), abi::DROGHER_ERR_PERM);
    assert_eq!(receive_from(&context, 0, &mut buffer), (abi::DROGHER_ERR_PERM, 0));
    assert_eq!(context.stats().frames_refused, 2);
    context.open();
    assert_eq!(receive_from(&context, 1, &mut buffer), (abi::DROGHER_ERR_NOMSG, 0));
    assert_eq!(send_to(&context, 1, &[1; 60]), abi::DROGHER_OK);
    assert_eq!(wait_at(&context, 3), (abi::DROGHER_OK, 3));
    assert_eq!(receive_from(&context, 1, &mut buffer[..59]), (abi::DROGHER_ERR_RANGE, 60));
    assert_eq!(receive_from(&context, 1, &mut []), (abi::DROGHER_ERR_RANGE, 60));
    assert_eq!(receive_from(&context, 1, &mut buffer), (abi::DROGHER_OK, 60));
    assert_eq!(buffer[..61], [&[1; 60][..], &[0]].concat());
    assert_eq!(wait_at(&context, 3), (abi::DROGHER_OK, 0));

    for port in [2, 63, 64, u32::MAX] {
        assert_eq!(send_to(&context, port, &[1; 60]), abi::DROGHER_ERR_NOENT);
        assert_eq!(receive_from(&context, port, &mut buffer), (abi::DROGHER_ERR_NOENT, 0));
    }
    for ports in [4, 1 << 63, u64::MAX] {
        assert_eq!(wait_at(&context, ports), (abi::DROGHER_ERR_NOENT, 0));
    }
    for len in [0, 13, 0x1_0001] {
        assert_eq!(send_to(&context, 0, &vec![1; len]), abi::DROGHER_ERR_INVAL);
    }
    let (ctx, null) = (raw(&context), core::ptr::null_mut());
    let mut len = 0;
    // SAFETY: a live context; NULL is looked at by nobody.
    unsafe {
        assert_eq!(send(ctx, 0, null, 60), abi::DROGHER_ERR_INVAL);
        assert_eq!(receive(ctx, 0, null, 60, &mut len), abi::DROGHER_ERR_INVAL);
        assert_eq!(
            receive(ctx, 0, buffer.as_mut_ptr().cast(), u64::MAX, &mut len),
            abi::DROGHER_ERR_INVAL
        );
        assert_eq!(
            receive(ctx, 0, buffer.as_mut_ptr().cast(), 60, core::ptr::null_mut()),
            abi::DROGHER_ERR_INVAL
        );
        assert_eq!(wait(ctx, 1, 0, core::ptr::null_mut()), abi::DROGHER_ERR_INVAL);
        assert_eq!(wake(core::ptr::null_mut()), abi::DROGHER_ERR_INVAL);
    }
    context.shut();
    assert_eq!(send_to(&context, 0, &[1; 60]), abi::DROGHER_ERR_SHUTDOWN);
    assert_eq!(receive_from(&context, 0, &mut buffer), (abi::DROGHER_ERR_SHUTDOWN, 0));
    assert_eq!(wait_at(&context, 1), (abi::DROGHER_ERR_SHUTDOWN, 0));
}

#[test]
fn without_wires_frames_go_nowhere_and_a_wait_ends() {
    let context = context(None);
    context.open();
    assert_eq!(send_to(&context, 0, &[1; 60]), abi::DROGHER_OK);
    assert_eq!(receive_from(&context, 0, &mut [0; 60]), (abi::DROGHER_ERR_NOMSG, 0));
    let begin = Instant::now();
    assert_eq!(wait_at(&context, 1), (abi::DROGHER_OK, 0));
    assert!(begin.elapsed() > Duration::from_millis(5), "no reason to spin");
}
