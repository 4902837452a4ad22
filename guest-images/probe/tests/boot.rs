//! The probe runs, counts, checks and ends as its DESIGN.md says.

mod harness;

use drogher_probe::{Action, Dma, Idle, Line, Options, RATE_MAX, Trigger};
use harness::ndma::Fault;
use harness::{End, Machine, skipped};

fn quick() -> Options {
    Options { ws: 4 << 20, status_ms: 100, sweep_ms: 200, dma: Dma::Off, ..Options::DEFAULT }
}

#[test]
fn it_says_hello_and_writes_at_its_rate() {
    if skipped("it_says_hello_and_writes_at_its_rate") {
        return;
    }
    let options = Options { trigger: Some(Trigger { action: Action::Shutdown, at: 5 }), ..quick() };
    let mut machine = Machine::boot(&options, 32, None);
    assert_eq!(machine.end(), End::PowerOff);
    let console = &machine.console;
    let hello = console.hello().expect("There is a hello line");
    assert_eq!((hello.vcpus, hello.ws, hello.ndma), (1, 4 << 20, 0));
    assert!(hello.tsc_khz > 100_000, "{hello:?}");
    assert!(machine.transcript.starts_with("probe: hello"), "{}", machine.transcript);
    assert_eq!(console.status_lines(), 5);
    let bye = console.bye().expect("There is a bye line");
    assert!(bye.ok);
    // At most what was due; how much less is the host's business.
    let t = bye.totals.t.as_secs_f64();
    assert!(bye.totals.pages >= 1 && bye.totals.pages as f64 <= 1000.0 * t + 60.0, "{bye:?}");
    assert!(bye.totals.checked >= bye.totals.pages + 1024, "{bye:?}");
    assert!(bye.totals.sweeps >= 1, "{bye:?}");
    assert!(bye.totals.max_gap_us >= 1, "{bye:?}");
    assert_eq!(console.fail(), None);
}

#[test]
fn every_line_is_one_that_the_parser_knows() {
    if skipped("every_line_is_one_that_the_parser_knows") {
        return;
    }
    let options = Options { trigger: Some(Trigger { action: Action::Shutdown, at: 3 }), ..quick() };
    let mut machine = Machine::boot(&options, 32, None);
    machine.end();
    for line in machine.transcript.lines() {
        assert!(!matches!(Line::parse(line), Line::Other(_) | Line::Note(_)), "{line}");
    }
}

#[test]
fn several_vcpus_share_the_work() {
    if skipped("several_vcpus_share_the_work") {
        return;
    }
    for idle in [Idle::Halt, Idle::Spin] {
        let options = Options { vcpus: 3, rate: 20_000, idle, ..quick() };
        let mut machine = Machine::boot(&options, 96, None);
        // A sweep counts when every vCPU has done it.
        machine.until("3 sweeps", |console| console.last().is_some_and(|last| last.sweeps >= 3));
        machine.send('S');
        assert_eq!(machine.end(), End::PowerOff);
        let bye = machine.console.bye().expect("There is a bye line");
        assert!(bye.ok && bye.totals.pages > 0, "{bye:?}");
    }
}

#[test]
fn memory_above_4_gib_is_used() {
    if skipped("memory_above_4_gib_is_used") {
        return;
    }
    let options = Options { ws: 100 << 20, rate: RATE_MAX, ..quick() };
    let mut machine = Machine::boot(&options, 128, None);
    machine.until("a sweep", |console| console.last().is_some_and(|last| last.sweeps >= 1));
    // The page at 4 GiB is in the working set: nothing else uses it.
    machine.spoil((4 << 30) + 5);
    machine.until("FAIL", |console| console.fail().is_some());
    let fail = machine.console.fail().expect("Just seen");
    assert!(fail.starts_with("FAIL page at gpa=0x100000000 "), "{fail}");
}

#[test]
fn a_wrong_byte_is_found_and_named() {
    if skipped("a_wrong_byte_is_found_and_named") {
        return;
    }
    for vcpus in [1, 2] {
        let options = Options { rate: 0, vcpus, ..quick() };
        let mut machine = Machine::boot(&options, 32, None);
        machine.until("a sweep", |console| console.last().is_some_and(|last| last.sweeps >= 1));
        machine.spoil((3 << 20) + 0x1238);
        machine.until("FAIL", |console| console.fail().is_some());
        let fail = machine.console.fail().expect("Just seen").to_owned();
        assert!(fail.starts_with("FAIL page at gpa=0x301238 page="), "{fail}");
        // It is repeated in place of status lines, and the end says so, too.
        let lines = machine.console.status_lines();
        machine.send('S');
        assert_eq!(machine.end(), End::PowerOff);
        assert!(machine.transcript.matches(&fail).count() >= 2, "{}", machine.transcript);
        assert_eq!(machine.console.status_lines(), lines);
        assert!(machine.console.bye().is_some_and(|bye| !bye.ok));
    }
}

#[test]
fn it_ends_as_it_is_told() {
    if skipped("it_ends_as_it_is_told") {
        return;
    }
    for (action, letter, end) in [
        (Action::Reset, 'R', End::Reset),
        (Action::TripleFault, 'T', End::TripleFault),
        (Action::Shutdown, 'S', End::PowerOff),
    ] {
        let options = Options { trigger: Some(Trigger { action, at: 2 }), ..quick() };
        let mut machine = Machine::boot(&options, 32, None);
        assert_eq!(machine.end(), end);
        assert_eq!(machine.console.status_lines(), 2);
        let mut machine = Machine::boot(&quick(), 32, None);
        machine.until("load", |console| console.status_lines() >= 1);
        machine.send(letter);
        assert_eq!(machine.end(), end);
        assert_eq!(machine.console.bye().is_some(), action == Action::Shutdown);
    }
    let options = Options { seconds: 1, ..quick() };
    assert_eq!(Machine::boot(&options, 32, None).end(), End::PowerOff);
}

#[test]
fn wrong_options_are_named_and_the_guest_still_answers() {
    if skipped("wrong_options_are_named_and_the_guest_still_answers") {
        return;
    }
    for (line, fail) in [
        ("ws=lots", "FAIL option at ws value=lots"),
        ("ws=1G", "FAIL option at ws value=1073741824 free="),
        ("ws=4M dma=on", "FAIL ndma at pci what=none-found"),
        ("ws=4M vcpus=2", "FAIL vcpu at n=1 what=does-not-start"),
    ] {
        let mut machine = Machine::boot_line(line, 32, 1, None);
        machine.until("FAIL", |console| console.fail().is_some());
        let got = machine.console.fail().expect("Just seen");
        assert!(got.starts_with(fail), "{got}");
        machine.send('S');
        assert_eq!(machine.end(), End::PowerOff);
    }
}

fn with_dma(fault: Fault, dma_rate: u64) -> Machine {
    let options = Options { dma: Dma::On, dma_rate, dma_ws: 1 << 20, lost_ms: 500, ..quick() };
    Machine::boot(&options, 48, Some(fault))
}

#[test]
fn dma_is_checked_and_counted() {
    if skipped("dma_is_checked_and_counted") {
        return;
    }
    let mut machine = with_dma(Fault::None, 2000);
    machine.until("DMA", |console| console.last().is_some_and(|last| last.dma >= 1000));
    machine.send('S');
    assert_eq!(machine.end(), End::PowerOff);
    let bye = machine.console.bye().expect("There is a bye line");
    assert!(bye.ok, "{}", machine.transcript);
    assert_eq!(bye.totals.dma, 16 * bye.totals.irqs);
    assert_eq!(bye.totals.extra, 0);
    assert_eq!(machine.console.hello().map(|hello| hello.ndma), Some(1));
}

#[test]
fn the_device_is_reset_and_moved_under_load() {
    if skipped("the_device_is_reset_and_moved_under_load") {
        return;
    }
    let mut machine = with_dma(Fault::None, RATE_MAX);
    let mut goal = 0;
    for letter in ['b', 'd', 'b', 'b', 'd', 'd'] {
        let before = machine.console.last().map_or(0, |last| last.dma);
        goal = goal.max(before) + 200;
        machine.until("DMA", |console| console.last().is_some_and(|last| last.dma >= goal));
        machine.send(letter);
    }
    let lines = machine.console.status_lines();
    machine.until("more", |console| console.status_lines() >= lines + 5);
    machine.send('S');
    assert_eq!(machine.end(), End::PowerOff);
    assert!(machine.console.bye().is_some_and(|bye| bye.ok), "{}", machine.transcript);
    assert_eq!(machine.transcript.matches("probe: ndma0 reset").count(), 3);
    assert_eq!(machine.transcript.matches("probe: ndma0 bar0=0xf").count(), 3);
}

#[test]
fn every_fault_of_the_device_is_found() {
    if skipped("every_fault_of_the_device_is_found") {
        return;
    }
    for (fault, fail) in [
        (Fault::Overrun, "FAIL dma at gpa="),
        (Fault::ShortWrite, "FAIL dma at gpa="),
        (Fault::WrongResult, "FAIL ndma0 at descriptor="),
        (Fault::LostInterrupt, "FAIL ndma0 at batch what=lost-interrupt posted=16 done=16"),
        (Fault::Stuck, "FAIL ndma0 at batch what=lost-completion posted=16 done=3"),
        (Fault::Error, "FAIL ndma0 at ring"),
        (Fault::WrongCount, "FAIL ndma0 at register=completed"),
    ] {
        let mut machine = with_dma(fault, 1000);
        machine.until("FAIL", |console| console.fail().is_some());
        let got = machine.console.fail().expect("Just seen");
        assert!(got.starts_with(fail), "{fault:?}: {got}");
    }
}

#[test]
fn an_interrupt_too_many_is_counted() {
    if skipped("an_interrupt_too_many_is_counted") {
        return;
    }
    let mut machine = with_dma(Fault::ExtraInterrupt, 1000);
    machine.until("count", |console| console.last().is_some_and(|last| last.extra != 0));
    let dma = machine.console.last().map_or(0, |last| last.dma);
    machine.until("DMA", |console| console.last().is_some_and(|last| last.dma >= dma + 100));
    assert_eq!(machine.console.last().map(|last| last.extra), Some(1));
}

#[test]
fn an_interrupt_on_a_stray_vector_is_found() {
    if skipped("an_interrupt_on_a_stray_vector_is_found") {
        return;
    }
    let mut machine = Machine::boot(&quick(), 32, None);
    machine.until("load", |console| console.status_lines() >= 1);
    machine.interrupt(0x77);
    machine.until("FAIL", |console| console.fail().is_some());
    assert_eq!(machine.console.fail(), Some("FAIL interrupt at stray-vector count=1"));
}
