use super::*;
use drogher_iommu::{Domain, DomainConfig, HeapMemory, Perm};
use drogher_iommu_types::{Gpa, Iova, Oa, Rid};

#[derive(Default)]
struct Machine {
    irqs: AtomicU64,
    failures: AtomicU64,
}

impl HostServices for Machine {
    fn irq(&self, _vector: u16) {
        self.irqs.fetch_add(1, Ordering::SeqCst);
    }

    fn log(&self, _level: LogLevel, _text: &str) {}

    fn failed(&self, _cause: &Cause) {
        self.failures.fetch_add(1, Ordering::SeqCst);
    }
}

struct Bed {
    context: Arc<Context>,
    machine: Arc<Machine>,
}

fn bed() -> Bed {
    let memory = Arc::new(HeapMemory::new(1 << 16));
    let domain = Domain::new(memory, DomainConfig::default()).expect("a domain");
    domain.map(Gpa(0)..Gpa(1 << 16), Oa(0), Perm::READ_WRITE).expect("maps");
    let requester = domain.attach(Rid(8)).expect("attaches");
    let machine = Arc::new(Machine::default());
    let services = machine.clone();
    let context = Context::new("dev".to_owned(), Some(DeviceSide { requester, services }));
    context.vectors.store(1, Ordering::SeqCst);
    context.close().expect("nothing in flight");
    Bed { context, machine }
}

/// DMA, interrupts: may they pass?
fn passes(context: &Context) -> (bool, bool) {
    let device = context.device.as_ref().expect("a device");
    (device.requester.write(Iova(0), &[1]).is_ok(), context.irq(0) == Irq::Delivered)
}

fn cause(text: &str) -> Cause {
    Cause::Failed { text: text.to_owned() }
}

#[test]
fn gates_open_and_close_together() {
    let Bed { context, .. } = bed();
    assert_eq!(passes(&context), (false, false));
    context.open();
    assert_eq!(passes(&context), (true, true));
    context.close().expect("nothing in flight");
    assert_eq!(passes(&context), (false, false));
    assert_eq!(context.irq(1), Irq::NoVector);
    assert_eq!(context.irq(u32::MAX), Irq::NoVector);
}

#[test]
fn a_broken_device_opens_nothing_until_it_is_mended() {
    let Bed { context, machine } = bed();
    context.open();
    assert_eq!(*context.break_down(cause("first")), cause("first"));
    assert_eq!(passes(&context), (false, false));
    context.open();
    assert_eq!(passes(&context), (false, false));
    assert_eq!(*context.break_down(cause("second")), cause("first"), "the first cause stays");
    assert_eq!(machine.failures.load(Ordering::SeqCst), 1);
    context.mend();
    assert_eq!(passes(&context), (false, false));
    context.open();
    assert_eq!(passes(&context), (true, true));
    context.break_down(cause("third"));
    assert_eq!(machine.failures.load(Ordering::SeqCst), 2);
}

#[test]
fn a_device_that_was_given_up_is_called_no_more() {
    let Bed { context, .. } = bed();
    assert!(context.enter("region_read"));
    let late = context.give_up(Duration::from_secs(1));
    let expected = Cause::Late { call: "region_read", deadline: Duration::from_secs(1) };
    assert_eq!(*late, expected);
    assert!(!context.enter("destroy"));
    assert_eq!(context.calling(), "region_read");
}

/// A worker breaks the device while a reset mends it: the gates of what was mended and opened stay open.
#[test]
fn a_failure_and_a_reset_at_once() {
    for _ in 0..300 {
        let Bed { context, .. } = bed();
        context.open();
        std::thread::scope(|scope| {
            scope.spawn(|| context.break_down(cause("worker")));
            let start = Instant::now();
            while context.broken().is_none() && start.elapsed() < Duration::from_secs(60) {
                std::hint::spin_loop();
            }
            context.mend();
            context.open();
        });
        assert_eq!(context.broken(), None);
        assert_eq!(passes(&context), (true, true));
    }
}

#[test]
fn too_many_lines_are_counted() {
    let Bed { context, .. } = bed();
    for _ in 0..10_000 {
        context.log(LogLevel::Info, "x");
    }
    assert!(context.stats().log_dropped > 0);
}
