//! A guest stops in one machine and goes on in another one that has the same RAM.

mod common;

use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;

use common::{
    LONG, PORT, TestPort, asm, limited, limited_over, machine, over, peek, skipped, until,
};
use drogher_machine::caps::Caps;
use drogher_machine::console::ConsoleConfig;
use drogher_machine::machine::Machine;
use drogher_machine::record::{StateError, Tag, stable_parts};
use drogher_machine::wiring::Wiring;

/// Where the guest counts.
const COUNTER: u32 = 0x20_0000;

/// Counts in EBX and in RAM, and says so at the port as soon as the two differ.
fn counting() -> Vec<u8> {
    [
        asm::mov_edx(PORT.into()),
        asm::mov_ebx(0),
        // again: cmp [COUNTER], ebx; jne fail
        vec![0x39, 0x1D, 0, 0, 0x20, 0, 0x75, 9],
        // inc ebx; mov [COUNTER], ebx; jmp again
        vec![0x43, 0x89, 0x1D, 0, 0, 0x20, 0, 0xEB, 0xEF],
        // fail: mov eax, ebx; out dx, eax; jmp fail's end
        vec![0x89, 0xD8],
        asm::OUT_EAX.to_vec(),
        asm::SPIN.to_vec(),
    ]
    .concat()
}

fn moved(from: &Machine, to: &Machine) {
    from.pause_vcpus(LONG).expect("it stops");
    from.park_io(LONG).expect("I/O stops");
    let mut state = from.state_buffer();
    from.save_cpu_state(&mut state).expect("it is saved");
    to.load_cpu_state(&state).expect("it is loaded");
    let mut again = to.state_buffer();
    to.save_cpu_state(&mut again).expect("it is saved again");
    let (a, b) = (stable_parts(&state, 1), stable_parts(&again, 1));
    for (old, new) in a.expect("records").iter().zip(b.expect("records")) {
        assert_eq!(old, &new, "what was loaded is what was saved");
    }
    to.unpark_io().expect("I/O goes on");
    to.start(vec![()]).expect("it goes on");
}

#[test]
fn goes_on_where_it_stopped() {
    if skipped("goes_on_where_it_stopped") {
        return;
    }
    hop(10, |_| {});
}

/// On a KVM that has nothing of what is only used where it is there.
#[test]
fn goes_on_by_the_older_calls_too() {
    if skipped("goes_on_by_the_older_calls_too") {
        return;
    }
    hop(3, |caps| {
        caps.sregs2 = false;
        caps.xsave2_bytes = 0;
        caps.vcpu_attributes = false;
        caps.clock_flags = 0;
        caps.exception_payload = false;
        caps.triple_fault_event = false;
        caps.pmu_off = false;
    });
}

fn hop(hops: u32, limit: fn(&mut Caps)) {
    let mut current = limited(&counting(), ConsoleConfig::None, limit);
    let failed = TestPort::new(|_| {});
    current.vm().claim_pio(PORT..PORT + 4, failed.clone()).expect("a free port");
    current.start(vec![()]).expect("it starts");
    let ram = Arc::clone(current.ram());
    for hop in 0..hops {
        let seen = peek(&ram, COUNTER);
        until("the guest to count", || peek(&ram, COUNTER) > seen.saturating_add(100));
        let next = limited_over(&ram, 1, ConsoleConfig::None, limit);
        next.vm().claim_pio(PORT..PORT + 4, failed.clone()).expect("a free port");
        moved(&current, &next);
        assert_eq!(failed.writes(), [0u32; 0], "hop {hop}: EBX and RAM differ");
        current = next;
    }
}

/// The guest reads what answers 1, 2, 3, ... and reports the first answer that is not the one
/// before plus one. The stop is asked for while a read is being answered, so that the answer is
/// pending when the vCPU leaves: it must be in the registers that move.
///
/// Caught mutant: `pending-pio-not-completed`.
#[test]
fn a_pending_port_read_is_completed() {
    if skipped("a_pending_port_read_is_completed") {
        return;
    }
    // in eax, dx
    let code = reading(&[0xED]);
    stop_in_a_read(&code, |machine, port| {
        machine.vm().claim_pio(PORT..PORT + 4, Arc::clone(port) as _).expect("a free port");
    });
}

/// Where the test device answers MMIO, too.
const MMIO: u32 = 0xD000_0000;

/// Caught mutant: `pending-pio-not-completed`.
#[test]
fn a_pending_mmio_read_is_completed() {
    if skipped("a_pending_mmio_read_is_completed") {
        return;
    }
    // mov eax, [MMIO]
    let code = reading(&[&[0xA1], &MMIO.to_le_bytes()[..]].concat());
    stop_in_a_read(&code, |machine, port| {
        let range = u64::from(MMIO)..u64::from(MMIO) + 4;
        machine.vm().claim_pio(PORT..PORT + 4, Arc::clone(port) as _).expect("a free port");
        machine.vm().claim_mmio(range, Arc::clone(port) as _).expect("a free range");
    });
}

/// again: `read` to EAX; inc ebx; cmp eax, ebx; je again; out dx, eax; jmp here
fn reading(read: &[u8]) -> Vec<u8> {
    let back = 0xFB_u8.wrapping_sub(u8::try_from(read.len()).expect("short"));
    [
        asm::mov_edx(PORT.into()),
        asm::mov_ebx(0),
        read.to_vec(),
        vec![0x43, 0x39, 0xD8, 0x74, back],
        asm::OUT_EAX.to_vec(),
        asm::SPIN.to_vec(),
    ]
    .concat()
}

fn stop_in_a_read(code: &[u8], plug: impl Fn(&Machine, &Arc<TestPort>)) {
    let source = Arc::new(machine(code, ConsoleConfig::None));
    // The read after which the source is stopped.
    const LAST: u32 = 50;
    let stopped: Arc<OnceLock<std::sync::Weak<Machine>>> = Arc::default();
    let asked = Arc::clone(&stopped);
    let port = TestPort::new(move |number| {
        if number == LAST
            && let Some(machine) = asked.get().and_then(std::sync::Weak::upgrade)
        {
            until("the stop to be asked for", || machine.stop_requested());
        }
    });
    stopped.set(Arc::downgrade(&source)).expect("set once");
    plug(&source, &port);
    source.start(vec![()]).expect("it starts");
    until("the access to stop in", || port.reads() == LAST);
    let destination = over(source.ram(), 1, ConsoleConfig::None);
    plug(&destination, &port);
    moved(&source, &destination);
    until("the guest to go on or to complain", || {
        port.reads() > LAST + 50 || !port.writes().is_empty()
    });
    assert_eq!(port.writes(), [0u32; 0], "the guest lost the answer to a read");
}

#[test]
fn time_runs_on() {
    if skipped("time_runs_on") {
        return;
    }
    // rdtsc; mov [COUNTER + 8], eax; mov [COUNTER + 12], edx; inc ebx; mov [COUNTER], ebx; again
    let code = [
        asm::mov_ebx(0),
        vec![0x0F, 0x31, 0xA3, 8, 0, 0x20, 0, 0x89, 0x15, 12, 0, 0x20, 0],
        vec![0x43, 0x89, 0x1D, 0, 0, 0x20, 0, 0xEB, 0xEA],
    ]
    .concat();
    let source = machine(&code, ConsoleConfig::None);
    source.start(vec![()]).expect("it starts");
    let ram = Arc::clone(source.ram());
    until("the guest to count", || peek(&ram, COUNTER) > 10);
    let destination = over(&ram, 1, ConsoleConfig::None);
    source.pause_vcpus(LONG).expect("it stops");
    let stamp = || u64::from(peek(&ram, COUNTER + 12)) << 32 | u64::from(peek(&ram, COUNTER + 8));
    let before = stamp();
    let pause = Duration::from_millis(50);
    std::thread::sleep(pause);
    moved(&source, &destination);
    until("the guest to count on", || stamp() != before);
    let passed = stamp().wrapping_sub(before);
    let least =
        u64::try_from(pause.as_millis()).expect("small") * u64::from(destination.model().tsc_khz());
    assert!(stamp() > before && passed >= least, "{passed} ticks in more than {least}");
    // A second: no clock jumps ahead because it was moved.
    assert!(passed < least + 1_000_000 * 1_000 * 60, "{passed} ticks");
}

#[test]
fn damaged_state_is_refused_by_name() {
    if skipped("damaged_state_is_refused_by_name") {
        return;
    }
    let guest = machine(asm::SPIN, ConsoleConfig::None);
    let mut state = guest.state_buffer();
    guest.save_cpu_state(&mut state).expect("it is saved");
    guest.load_cpu_state(&state).expect("its own state loads");
    for cut in 0..state.len() {
        let error = guest.load_cpu_state(&state[..cut]);
        assert!(error.is_err(), "cut to {cut} of {} bytes", state.len());
    }
    let two = over(guest.ram(), 2, ConsoleConfig::None);
    let cpus = two.load_cpu_state(&state);
    assert!(matches!(cpus, Err(StateError::Cpus { expected: 2, found: 1 })), "{cpus:?}");
    let mut unknown = state.clone();
    unknown.extend_from_slice(&[0xFF, 0x7F, 0, 0, 0, 0, 0, 0]);
    let error = guest.load_cpu_state(&unknown);
    assert!(matches!(error, Err(StateError::UnknownTag(0x7FFF))), "{error:?}");
    let mut twice = state.clone();
    twice.extend_from_slice(&[Tag::Cmos as u8, 0, 0, 0, 1, 0, 0, 0, 0]);
    let error = guest.load_cpu_state(&twice);
    assert!(matches!(error, Err(StateError::Superfluous { tag: Tag::Cmos, vcpu: 0 })), "{error:?}");
    guest.start(vec![()]).expect("it starts");
    let error = guest.save_cpu_state(&mut state);
    assert!(matches!(error, Err(StateError::Vcpu(_))), "a running vCPU is not saved: {error:?}");
}
