//! A guest starts, speaks, ends, and can be stopped whatever it does.

mod common;

use std::time::Duration;

use common::{Console, LONG, PORT, Permits, TestPort, asm, machine, skipped, until};
use drogher_machine::console::ConsoleConfig;
use drogher_machine::events::GuestEvent;
use drogher_machine::machine::{Machine, MachineConfig, MachineError};
use drogher_machine::wiring::{DoorbellAt, Wiring};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

#[test]
fn prints_and_powers_off() {
    if skipped("prints_and_powers_off") {
        return;
    }
    let (mut console, config) = Console::pipe();
    let guest = machine(&[asm::print("hello\n"), asm::power_off()].concat(), config);
    let permits = Permits::default();
    guest.start(permits.give(1)).expect("it starts");
    console.wait_for("hello\n");
    assert_eq!(guest.wait_event(LONG), Some(GuestEvent::Shutdown));
    until("the vCPU to park itself", || guest.is_parked());
    assert_eq!(permits.out(), 0, "a vCPU that turned the machine off holds no permit");
}

#[test]
fn reset_is_an_event() {
    if skipped("reset_is_an_event") {
        return;
    }
    let keyboard =
        [asm::mov_edx(0x64), asm::mov_eax(0xFE), asm::OUT_AL.to_vec(), asm::SPIN.to_vec()];
    let control =
        [asm::mov_edx(0xCF9), asm::mov_eax(0x6), asm::OUT_AL.to_vec(), asm::SPIN.to_vec()];
    for code in [keyboard.concat(), control.concat()] {
        let guest = machine(&code, ConsoleConfig::None);
        guest.start(vec![()]).expect("it starts");
        assert_eq!(guest.wait_event(LONG), Some(GuestEvent::Reset));
    }
}

#[test]
fn triple_fault_reports_registers() {
    if skipped("triple_fault_reports_registers") {
        return;
    }
    // lidt of a table of length 0 (the zeroes at 0x8000), then an undefined instruction.
    let code = [asm::mov_ebx(0xC0FFEE), vec![0x0F, 0x01, 0x1D, 0, 0x80, 0, 0, 0x0F, 0x0B]].concat();
    let guest = machine(&code, ConsoleConfig::None);
    guest.start(vec![()]).expect("it starts");
    match guest.wait_event(LONG) {
        Some(GuestEvent::TripleFault { report } | GuestEvent::InternalError { report }) => {
            assert!(report.contains("vCPU 0 stopped: KVM_EXIT"), "{report}");
            assert!(report.contains("rbx=0000000000c0ffee"), "{report}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn stops_while_spinning_halted_or_in_port_accesses() {
    if skipped("stops_while_spinning_halted_or_in_port_accesses") {
        return;
    }
    let ports = [asm::mov_edx(PORT.into()), asm::IN_EAX.to_vec(), vec![0xEB, 0xFD]].concat();
    for (what, code) in
        [("spins", asm::SPIN.to_vec()), ("halts", asm::HALT.to_vec()), ("reads", ports)]
    {
        let guest = machine(&code, ConsoleConfig::None);
        let permits = Permits::default();
        for _ in 0..20 {
            guest.start(permits.give(1)).expect("it starts");
            assert!(guest.start(permits.give(1)).is_err(), "it runs already");
            assert_eq!(permits.out(), 1, "a permit that was not taken is given back");
            guest.pause_vcpus(LONG).unwrap_or_else(|e| panic!("a guest that {what}: {e}"));
            assert!(guest.is_parked());
            assert_eq!(permits.out(), 0, "the permit comes back with the stop");
        }
        assert_eq!(guest.wait_event(Duration::ZERO), None, "a guest that {what} is well");
    }
}

#[test]
fn a_hanging_register_access_is_an_error_not_a_hang() {
    if skipped("a_hanging_register_access_is_an_error_not_a_hang") {
        return;
    }
    let code = [asm::mov_edx(PORT.into()), asm::IN_EAX.to_vec(), asm::SPIN.to_vec()].concat();
    let guest = machine(&code, ConsoleConfig::None);
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let port = TestPort::new(move |_| {
        let _ = held.lock().expect("not poisoned").recv_timeout(LONG);
    });
    guest.vm().claim_pio(PORT..PORT + 4, port.clone()).expect("a free port");
    let permits = Permits::default();
    guest.start(permits.give(1)).expect("it starts");
    until("the access", || port.reads() == 1);
    let late = guest.pause_vcpus(Duration::from_millis(20));
    assert!(matches!(late, Err(MachineError::Vcpu(_))), "{late:?}");
    assert_eq!(permits.out(), 1, "it may still run, so it keeps its permit");
    release.send(()).expect("the device waits");
    guest.pause_vcpus(LONG).expect("now it stops");
    assert_eq!(permits.out(), 0);
}

/// As at a rollback: the migration was given up because a vCPU did not stop, and the guest is to go on.
#[test]
fn a_vcpu_that_stops_late_goes_on() {
    if skipped("a_vcpu_that_stops_late_goes_on") {
        return;
    }
    let code = [asm::mov_edx(PORT.into()), asm::IN_EAX.to_vec(), asm::SPIN.to_vec()].concat();
    let guest = machine(&code, ConsoleConfig::None);
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let port = TestPort::new(move |_| {
        let _ = held.lock().expect("not poisoned").recv_timeout(LONG);
    });
    guest.vm().claim_pio(PORT..PORT + 4, port.clone()).expect("a free port");
    let permits = Permits::default();
    guest.start(permits.give(1)).expect("it starts");
    until("the access", || port.reads() == 1);
    guest.pause_vcpus(Duration::ZERO).expect_err("it hangs in the access");
    std::thread::scope(|scope| {
        let resumed = scope.spawn(|| guest.resume(permits.give(1)));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!resumed.is_finished(), "it waits");
        release.send(()).expect("the device waits");
        resumed.join().expect("no panic").expect("it goes on");
    });
    assert!(!guest.is_parked() && permits.out() == 1);
    guest.pause_vcpus(LONG).expect("it stops");
    assert_eq!(permits.out(), 0);
}

#[test]
fn unclaimed_reads_are_all_ones() {
    if skipped("unclaimed_reads_are_all_ones") {
        return;
    }
    // in eax, dx from a port that nobody has; mov ebx, [unclaimed MMIO]; both to the test port.
    let code = [
        asm::mov_edx(0x777),
        asm::IN_EAX.to_vec(),
        asm::mov_edx(PORT.into()),
        asm::OUT_EAX.to_vec(),
        vec![0xA1, 0, 0, 0, 0xD8],
        asm::OUT_EAX.to_vec(),
        asm::SPIN.to_vec(),
    ];
    let guest = machine(&code.concat(), ConsoleConfig::None);
    let port = TestPort::new(|_| {});
    guest.vm().claim_pio(PORT..PORT + 4, port.clone()).expect("a free port");
    guest.start(vec![()]).expect("it starts");
    assert_eq!(port.wait_writes(2), [u32::MAX, u32::MAX]);
}

#[test]
fn a_string_instruction_hands_over_each_element() {
    if skipped("a_string_instruction_hands_over_each_element") {
        return;
    }
    // mov esi, BASE; mov ecx, 4; cld; rep outsw: the first four words of the code itself.
    let code = [
        asm::mov_edx(PORT.into()),
        vec![0xBE, 0, 0, 0x10, 0, 0xB9, 4, 0, 0, 0, 0xFC, 0xF3, 0x66, 0x6F],
        asm::SPIN.to_vec(),
    ]
    .concat();
    let words: Vec<u32> =
        code.chunks(2).take(4).map(|w| u32::from(u16::from_le_bytes([w[0], w[1]]))).collect();
    let guest = machine(&code, ConsoleConfig::None);
    let port = TestPort::new(|_| {});
    guest.vm().claim_pio(PORT..PORT + 4, port.clone()).expect("a free port");
    guest.start(vec![()]).expect("it starts");
    assert_eq!(port.wait_writes(4), words);
}

#[test]
fn a_doorbell_rings_its_eventfd_until_unregistered() {
    if skipped("a_doorbell_rings_its_eventfd_until_unregistered") {
        return;
    }
    let at = DoorbellAt { address: 0xD000_0800, width: 4 };
    // mov [0xD0000800], eax; in eax, dx; again.
    let code = [
        asm::mov_edx(PORT.into()),
        vec![0xA3, 0, 8, 0, 0xD0],
        asm::IN_EAX.to_vec(),
        vec![0xEB, 0xF8],
    ];
    let guest = machine(&code.concat(), ConsoleConfig::None);
    let port = TestPort::new(|_| {});
    guest.vm().claim_pio(PORT..PORT + 4, port.clone()).expect("a free port");
    let bell = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
    guest.vm().register_ioeventfd(at, &bell).expect("registered");
    assert!(guest.vm().register_ioeventfd(at, &bell).is_err(), "once only");
    guest.start(vec![()]).expect("it starts");
    until("some rings", || port.reads() > 3);
    guest.pause_vcpus(LONG).expect("it stops");
    let rings = bell.read().expect("it has rung");
    assert!(rings >= u64::from(port.reads()) && rings <= u64::from(port.reads()) + 1, "{rings}");
    guest.vm().unregister_ioeventfd(at, &bell).expect("unregistered");
    let before = port.reads();
    guest.start(vec![()]).expect("it goes on");
    until("more accesses", || port.reads() > before + 3);
    guest.pause_vcpus(LONG).expect("it stops");
    assert!(bell.read().is_err(), "nothing rings any more");
}

#[test]
fn four_vcpus_stop_though_three_were_never_started_by_the_guest() {
    if skipped("four_vcpus_stop_though_three_were_never_started_by_the_guest") {
        return;
    }
    let machine = Machine::create(MachineConfig::new(16 << 20, 4)).expect("four vCPUs");
    let elf = common::elf(asm::SPIN);
    let kernel =
        drogher_machine::boot::Kernel { name: "spin", image: &elf, cmdline: "", initrd: None };
    machine.load_kernel(&kernel).expect("it loads");
    let permits = Permits::default();
    machine.start(permits.give(4)).expect("they start");
    machine.pause_vcpus(LONG).expect("they stop");
    assert_eq!(permits.out(), 0);
    let few = machine.start(permits.give(3));
    assert!(matches!(few, Err(MachineError::Permits { given: 3, cpus: 4 })), "{few:?}");
    assert_eq!(machine.wait_event(Duration::ZERO), None);
}

#[test]
fn machines_leave_nothing_behind() {
    if skipped("machines_leave_nothing_behind") {
        return;
    }
    // In a process of its own: other tests make descriptors and threads at the same time.
    let exe = std::env::current_exe().expect("our own file");
    let child = std::process::Command::new(exe)
        .args(["--exact", "leak_probe_child", "--nocapture", "--test-threads=1"])
        .env("DROGHER_LEAK_PROBE", "1")
        .status()
        .expect("a child");
    assert!(child.success());
}

/// The child of [`machines_leave_nothing_behind`]; by itself it checks one round only.
#[test]
fn leak_probe_child() {
    if skipped("leak_probe_child") {
        return;
    }
    let alone = std::env::var_os("DROGHER_LEAK_PROBE").is_some();
    let count = |dir: &str| std::fs::read_dir(dir).map_or(0, Iterator::count);
    let round = || {
        let (mut console, config) = Console::pipe();
        let guest = machine(&[asm::print("x"), asm::SPIN.to_vec()].concat(), config);
        guest.start(vec![()]).expect("it starts");
        console.wait_for("x");
        guest.stop(LONG).expect("it stops");
        assert!(guest.is_parked());
    };
    round();
    if !alone {
        return;
    }
    let settled = || (count("/proc/self/fd"), count("/proc/self/task"));
    std::thread::sleep(Duration::from_millis(200));
    let before = settled();
    (0..10).for_each(|_| round());
    until("threads and descriptors to go", || settled() <= before);
}
