//! What of a machine is saved, and when it is the same however often it is read.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{LONG, PORT, TestPort, asm, machine, over, say_skipped, skipped};
use drogher_machine::console::ConsoleConfig;
use drogher_machine::machine::{Machine, MachineConfig, MachineError};
use drogher_machine::record::{Reader, Tag, stable_parts};
use drogher_machine::vcpu::cpuid::{CpuKind, ModelError};
use drogher_machine::wiring::Wiring;

fn saved(machine: &Machine) -> Vec<u8> {
    let mut state = machine.state_buffer();
    machine.save_cpu_state(&mut state).expect("it is saved");
    state
}

/// A variable MTRR's base register, and a value that it can hold: write-back at 1 GiB.
const MTRR_BASE: u32 = 0x200;
const WRITE_BACK: u32 = 0x4000_0006;

#[test]
fn registers_that_kvm_does_not_list_move_too() {
    if skipped("registers_that_kvm_does_not_list_move_too") {
        return;
    }
    let mov_ecx = [&[0xB9], &MTRR_BASE.to_le_bytes()[..]].concat();
    let code = [
        mov_ecx.clone(),
        asm::mov_eax(WRITE_BACK),
        asm::mov_edx(0),
        // wrmsr
        vec![0x0F, 0x30],
        // again: in eax, dx; rdmsr; out dx, eax; jmp again
        asm::mov_edx(PORT.into()),
        asm::IN_EAX.to_vec(),
        mov_ecx,
        vec![0x0F, 0x32],
        asm::mov_edx(PORT.into()),
        asm::OUT_EAX.to_vec(),
        vec![0xEB, 0xEB],
    ]
    .concat();
    let slowly = |_| std::thread::sleep(Duration::from_millis(1));
    let (source, port) = (machine(&code, ConsoleConfig::None), TestPort::new(slowly));
    source.vm().claim_pio(PORT..PORT + 4, port.clone()).expect("a free port");
    source.start(vec![()]).expect("it starts");
    assert_eq!(port.wait_writes(1).first(), Some(&WRITE_BACK));
    let destination = over(source.ram(), 1, ConsoleConfig::None);
    let moved = TestPort::new(slowly);
    destination.vm().claim_pio(PORT..PORT + 4, moved.clone()).expect("a free port");
    source.pause_vcpus(LONG).expect("it stops");
    source.park_io(LONG).expect("I/O stops");
    destination.load_cpu_state(&saved(&source)).expect("it is loaded");
    destination.unpark_io().expect("I/O goes on");
    destination.start(vec![()]).expect("it goes on");
    assert_eq!(moved.wait_writes(2)[..2], [WRITE_BACK, WRITE_BACK]);
}

/// Bit 0 of the first PIC's interrupt request register: `kvm_irqchip` has it after two words and
/// the register of the last lines seen.
fn timer_requested(state: &[u8]) -> bool {
    let reader = Reader::new(state, 1).expect("it is well formed");
    reader.bytes(Tag::PicMaster, 0).expect("it is there")[9] & 1 == 1
}

/// The guest lets the interval timer expire once, in 55 ms, and is stopped before.
#[test]
fn the_timer_stands_while_the_machine_does() {
    if skipped("the_timer_stands_while_the_machine_does") {
        return;
    }
    let out = |port, value| [asm::mov_edx(port), asm::mov_eax(value), asm::OUT_AL.to_vec()];
    let code = [
        // Channel 0, low and high byte, interrupt on terminal count; then the count.
        out(0x43, 0x30).concat(),
        out(0x40, 0xFF).concat(),
        out(0x40, 0xFF).concat(),
        asm::mov_edx(PORT.into()),
        asm::OUT_EAX.to_vec(),
        asm::SPIN.to_vec(),
    ]
    .concat();
    for _ in 0..10 {
        let (source, port) = (machine(&code, ConsoleConfig::None), TestPort::new(|_| {}));
        source.vm().claim_pio(PORT..PORT + 4, port.clone()).expect("a free port");
        source.start(vec![()]).expect("it starts");
        port.wait_writes(1);
        source.pause_vcpus(LONG).expect("it stops");
        source.park_io(LONG).expect("I/O stops");
        let first = saved(&source);
        let destination = over(source.ram(), 1, ConsoleConfig::None);
        destination.load_cpu_state(&first).expect("it is loaded");
        std::thread::sleep(Duration::from_millis(100));
        let expected = stable_parts(&first, 1).expect("records");
        for (side, machine) in [("source", &source), ("destination", &destination)] {
            let now = stable_parts(&saved(machine), 1).expect("records");
            for (old, new) in expected.iter().zip(&now) {
                assert_eq!(old, new, "the {side} changes while it stands");
            }
        }
        if timer_requested(&first) {
            // The host was too busy to stop it in time.
            continue;
        }
        destination.unpark_io().expect("I/O goes on");
        source.unpark_io().expect("I/O goes on");
        for machine in [&source, &destination] {
            common::until("the timer to expire", || timer_requested(&saved(machine)));
        }
        return;
    }
    say_skipped("the_timer_stands_while_the_machine_does", "the host is too busy to stop in 55 ms");
}

/// Bit 4 of the same register: COM1.
fn console_requested(state: &[u8]) -> bool {
    let reader = Reader::new(state, 1).expect("it is well formed");
    reader.bytes(Tag::PicMaster, 0).expect("it is there")[9] & 0x10 != 0
}

/// The guest asks for the console's interrupt with all others masked, and spins.
#[test]
fn the_consoles_interrupt_is_in_the_state_once() {
    if skipped("the_consoles_interrupt_is_in_the_state_once") {
        return;
    }
    let code = [
        // Interrupt enable: transmitter empty. That is so at once.
        asm::mov_edx(0x3F9),
        asm::mov_eax(2),
        asm::OUT_AL.to_vec(),
        asm::print("x"),
        asm::mov_edx(PORT.into()),
        asm::OUT_EAX.to_vec(),
        asm::SPIN.to_vec(),
    ]
    .concat();
    for _ in 0..20 {
        let (source, port) = (machine(&code, ConsoleConfig::None), TestPort::new(|_| {}));
        source.vm().claim_pio(PORT..PORT + 4, port.clone()).expect("a free port");
        source.start(vec![()]).expect("it starts");
        port.wait_writes(1);
        source.pause_vcpus(LONG).expect("it stops");
        source.park_io(LONG).expect("I/O stops");
        let first = saved(&source);
        assert!(console_requested(&first), "KVM's work queue has been waited for");
        let destination = over(source.ram(), 1, ConsoleConfig::None);
        destination.load_cpu_state(&first).expect("it is loaded");
        let chips = |state: &[u8]| {
            let reader = Reader::new(state, 1).expect("it is well formed");
            [Tag::PicMaster, Tag::PicSlave, Tag::IoApic]
                .map(|tag| reader.bytes(tag, 0).expect("it is there").to_vec())
        };
        assert_eq!(chips(&saved(&destination)), chips(&first));
        // Nor does it come a second time when the console goes on.
        destination.unpark_io().expect("I/O goes on");
        destination.park_io(LONG).expect("I/O stops");
        assert_eq!(chips(&saved(&destination)), chips(&first));
    }
}

#[test]
fn a_machine_can_be_held_and_released_again_and_again() {
    if skipped("a_machine_can_be_held_and_released_again_and_again") {
        return;
    }
    let guest = Arc::new(machine(asm::SPIN, ConsoleConfig::None));
    for _ in 0..50 {
        guest.unpark_io().expect("it goes on, or does already");
        guest.park_io(LONG).expect("it stands");
        guest.park_io(LONG).expect("it stands already");
    }
}

/// What differs from one host to the next is no part of a baseline guest that has not asked for it: not the
/// MSRs of its CPU, nor extended state beyond SSE.
#[test]
fn the_state_of_the_baseline_is_of_no_host() {
    let name = "the_state_of_the_baseline_is_of_no_host";
    if skipped(name) {
        return;
    }
    let config = MachineConfig { cpu: CpuKind::Baseline, ..MachineConfig::new(16 << 20, 1) };
    let machine = match Machine::create(config) {
        Err(MachineError::Model(ModelError::NotBaseline(why))) => {
            return say_skipped(name, &why.to_string());
        }
        made => made.expect("a machine"),
    };
    let state = saved(&machine);
    let reader = Reader::new(&state, 1).expect("it is well formed");
    let number = |bytes: &[u8]| u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"));
    let msrs: Vec<_> = reader.bytes(Tag::Msrs, 0).expect("MSRs").chunks(16).map(number).collect();
    assert!(msrs.contains(&0xC000_0082), "IA32_LSTAR: {msrs:x?}");
    // SPEC_CTRL, ARCH_CAPABILITIES, TSX_CTRL, UMWAIT_CONTROL, BNDCFGS, XSS, TSC_AUX.
    let of_a_host = [0x48, 0x10A, 0x122, 0xE1, 0xD90, 0xDA0, 0xC000_0103];
    assert!(!msrs.iter().any(|index| of_a_host.contains(index)), "{msrs:x?}");
    let xsave = reader.bytes(Tag::Xsave, 0).expect("extended state");
    assert_eq!(number(&xsave[512..516]) & !3, 0, "x87 and SSE");
    machine.load_cpu_state(&state).expect("it is loaded");
}
