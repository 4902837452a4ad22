use super::*;
use std::sync::atomic::{AtomicBool, AtomicUsize};

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(50);

/// Something that a job waits for, and gives up on some day, so that no thread stays for ever.
#[derive(Default)]
struct Gate(AtomicBool);

impl Gate {
    fn open(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn wait(&self) {
        let start = Instant::now();
        while !self.0.load(Ordering::SeqCst) && start.elapsed() < LONG {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn answers_come_back_in_order() {
    let mut runner = Runner::start("test").expect("starts");
    let mut thread = None;
    for n in 0..10_000_u64 {
        let (answer, id) =
            runner.call(LONG, move || (n * n, std::thread::current().id())).expect("in time");
        assert_eq!(answer, n * n);
        assert_eq!(*thread.get_or_insert(id), id, "one thread");
        assert_ne!(id, std::thread::current().id());
    }
}

#[test]
fn callers_of_many_threads() {
    let runner = Mutex::new(Runner::start("test").expect("starts"));
    let count = Arc::new(AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    let to = count.clone();
                    let call = move || to.fetch_add(1, Ordering::Relaxed);
                    lock(&runner).call(LONG, call).expect("in time");
                    // A stray token must not be taken for an answer.
                    std::thread::current().unpark();
                }
            });
        }
    });
    assert_eq!(count.load(Ordering::Relaxed), 2000);
}

#[test]
fn after_a_late_call_nothing_runs() {
    let mut runner = Runner::start("test").expect("starts");
    assert!(!runner.is_lost());
    let gate = Arc::new(Gate::default());
    let ran = Arc::new(AtomicBool::new(false));
    let waited = gate.clone();
    assert_eq!(runner.call(SHORT, move || waited.wait()), Err(Late));
    assert!(runner.is_lost());
    let mark = ran.clone();
    // At once, however long it might wait.
    assert_eq!(runner.call(LONG, move || mark.store(true, Ordering::SeqCst)), Err(Late));
    gate.open();
    let mark = ran.clone();
    assert_eq!(runner.call(LONG, move || mark.store(true, Ordering::SeqCst)), Err(Late));
    assert!(runner.is_lost() && !ran.load(Ordering::SeqCst));
}

#[test]
fn what_a_late_call_returns_is_dropped_there() {
    struct Dropped(Arc<Gate>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.open();
        }
    }
    let mut runner = Runner::start("test").expect("starts");
    let (gate, dropped) = (Arc::new(Gate::default()), Arc::new(Gate::default()));
    let (waited, value) = (gate.clone(), Dropped(dropped.clone()));
    let call = move || {
        waited.wait();
        value
    };
    assert!(runner.call(SHORT, call).is_err());
    assert!(!dropped.0.load(Ordering::SeqCst));
    gate.open();
    dropped.wait();
    assert!(dropped.0.load(Ordering::SeqCst), "the value was lost");
}

#[test]
fn a_job_that_panics_is_late() {
    let mut runner = Runner::start("test").expect("starts");
    assert_eq!(runner.call(SHORT, || -> u32 { panic!("on purpose") }), Err(Late));
    assert!(runner.is_lost());
}

#[test]
fn nobody_waits_for_a_runner() {
    let gate = Arc::new(Gate::default());
    let mut stuck = Runner::start("test").expect("starts");
    let waited = gate.clone();
    assert_eq!(stuck.call(SHORT, move || waited.wait()), Err(Late));
    drop(stuck);
    // Nor for what its thread does at its end: here, the destructor of thread-local data.
    struct Slow(Arc<Gate>);
    impl Drop for Slow {
        fn drop(&mut self) {
            self.0.wait();
        }
    }
    thread_local! {
        static SLOW: std::cell::RefCell<Option<Slow>> = const { std::cell::RefCell::new(None) };
    }
    let mut slow = Runner::start("test").expect("starts");
    let waited = gate.clone();
    slow.call(LONG, move || SLOW.set(Some(Slow(waited)))).expect("in time");
    drop(slow);
    assert!(!gate.0.load(Ordering::SeqCst), "the drops waited for their threads");
    gate.open();
}

#[test]
fn names_with_anything_in_them() {
    for name in
        ["", "nul\0nul", "a name that is longer than the kernel takes", "\u{e9}\u{e9}\u{e9}"]
    {
        let mut runner = Runner::start(name).expect("starts");
        assert_eq!(runner.call(LONG, || 1), Ok(1));
    }
}
