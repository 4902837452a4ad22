use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use super::*;

const LONG: Duration = Duration::from_secs(30);

struct Held(Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn held(count: &Arc<AtomicUsize>) -> Permit {
    count.fetch_add(1, Ordering::SeqCst);
    Box::new(Held(Arc::clone(count)))
}

#[test]
fn a_permit_is_held_exactly_while_running() {
    let (control, count) = (Arc::new(Control::default()), Arc::new(AtomicUsize::new(0)));
    let inner = Arc::clone(&control);
    let thread = std::thread::spawn(move || {
        while let Some(permit) = inner.next() {
            while !inner.stopping() {
                std::thread::yield_now();
            }
            drop(permit);
            inner.parked();
        }
        inner.ended();
    });
    for _ in 0..100 {
        assert_eq!(control.phase(), Phase::Parked);
        control.start(held(&count), || {}).map_err(|_| "not parked").expect("it starts");
        assert_eq!((control.phase(), count.load(Ordering::SeqCst)), (Phase::Running, 1));
        let refused = control.start(held(&count), || panic!("not ready"));
        assert!(matches!(refused, Err((Phase::Running, _))));
        drop(refused);
        assert!(
            !control.wait_parked(&mut Patience::new(Duration::ZERO)),
            "it runs until it is told to stop"
        );
        control.ask_stop();
        assert!(control.wait_parked(&mut Patience::new(LONG)));
        assert_eq!(count.load(Ordering::SeqCst), 0);
    }
    control.ask_exit();
    thread.join().expect("it ends");
    assert_eq!(control.phase(), Phase::Ended);
    let refused = control.start(held(&count), || {});
    assert!(matches!(refused, Err((Phase::Ended, _))));
    drop(refused);
    assert_eq!(count.load(Ordering::SeqCst), 0);
}

#[test]
fn a_thread_that_dies_gives_its_permit_back() {
    let (control, count) = (Control::default(), Arc::new(AtomicUsize::new(0)));
    control.start(held(&count), || {}).map_err(|_| "not parked").expect("it starts");
    control.ended();
    assert_eq!(count.load(Ordering::SeqCst), 0);
    assert!(control.wait_parked(&mut Patience::new(Duration::ZERO)));
    assert_eq!(control.phase(), Phase::Ended);
}
