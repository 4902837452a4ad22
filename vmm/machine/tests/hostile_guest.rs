//! Guests that mean no good: accesses of every width where nothing is made for them, BARs where
//! they must not be, random code. The machine lives, says what happened, and stops in time.

mod common;

use std::path::PathBuf;
use std::time::Duration;

use common::{LONG, asm, elf, machine, skipped};
use drogher_machine::boot::Kernel;
use drogher_machine::console::ConsoleConfig;
use drogher_machine::device::DeviceSpec;
use drogher_machine::events::GuestEvent;
use drogher_machine::machine::{Devices, Machine, MachineConfig};

/// Where this build's plugins are: beside the tests, or one up.
fn plugin_dirs() -> Vec<PathBuf> {
    let exe = std::env::current_exe().expect("a path");
    exe.ancestors().skip(1).take(2).map(PathBuf::from).collect()
}

/// A running machine with two real devices.
fn with_devices(code: &[u8]) -> Machine {
    let mut config = MachineConfig::new(16 << 20, 1);
    config.devices = Devices::Specs(vec![DeviceSpec::new("ndma"), DeviceSpec::new("ndma")]);
    config.plugin_dirs = plugin_dirs();
    let machine = Machine::create(config).expect("a machine");
    let kernel = Kernel { name: "test", image: &elf(code), cmdline: "", initrd: None };
    machine.load_kernel(&kernel).expect("the kernel loads");
    machine.unpark_io().expect("I/O goes on");
    let down = machine.devices().run(&mut |_| Ok(Box::new(()))).expect("permits are free");
    assert!(down.is_empty(), "{down:?}");
    machine.start(vec![()]).expect("it starts");
    machine
}

fn out32(port: u16, value: u32) -> Vec<u8> {
    [asm::mov_edx(port.into()), asm::mov_eax(value), asm::OUT_EAX.to_vec()].concat()
}

/// A dword of configuration space of the device in `slot`.
fn config(slot: u32, register: u32, value: u32) -> Vec<u8> {
    [out32(0xCF8, 0x8000_0000 | slot << 11 | register), out32(0xCFC, value)].concat()
}

/// Decoding, bus mastering and MSI-X on.
fn switch_on(slot: u32) -> Vec<u8> {
    [config(slot, 4, 6), config(slot, 0x40, 0x8000_0000)].concat()
}

/// It has come to its end, and no device was harmed.
fn ends_well(machine: &Machine) {
    assert_eq!(machine.wait_event(LONG), Some(GuestEvent::Shutdown));
    assert_eq!(machine.devices().failed(), []);
    machine.stop(LONG).expect("it stops");
}

/// Turns what follows into a loop: `head` is the code before it that is jumped back over.
fn loop_back(condition: u8, body: usize) -> Vec<u8> {
    let offset = -i32::try_from(body + 6).expect("short");
    [&[0x0F, condition][..], &offset.to_le_bytes()].concat()
}

#[test]
fn every_port_in_every_width() {
    if skipped("every_port_in_every_width") {
        return;
    }
    // mov eax, value; out al, ax, eax; in al, ax, eax; inc edx; cmp edx, 0x1000
    let body = [
        asm::mov_eax(0x8101_0101),
        vec![0xEE, 0x66, 0xEF, 0xEF, 0xEC, 0x66, 0xED, 0xED, 0x42],
        vec![0x81, 0xFA, 0, 0x10, 0, 0],
    ]
    .concat();
    let code = [asm::mov_edx(0), body.clone(), loop_back(0x85, body.len()), asm::power_off()];
    ends_well(&with_devices(&code.concat()));
}

#[test]
fn every_address_of_a_bar_in_every_width() {
    if skipped("every_address_of_a_bar_in_every_width") {
        return;
    }
    // mov [edi], eax, ax, al; mov eax, [edi]; add eax, 0x01234567; add edi, 5; cmp edi, end
    let body = [
        vec![0x89, 0x07, 0x66, 0x89, 0x07, 0x88, 0x07, 0x8B, 0x07],
        vec![0x05, 0x67, 0x45, 0x23, 0x01, 0x83, 0xC7, 5],
        vec![0x81, 0xFF, 0, 0x40, 0, 0xE0],
    ]
    .concat();
    let code = [
        switch_on(1),
        switch_on(2),
        // mov edi, the first BAR; or beyond the last one
        vec![0xBF, 0, 0, 0, 0xE0],
        body.clone(),
        // jb: the end is not met exactly
        loop_back(0x82, body.len()),
        asm::power_off(),
    ];
    ends_well(&with_devices(&code.concat()));
}

#[test]
fn bars_on_ram_on_interrupt_controllers_on_each_other_and_at_the_top() {
    if skipped("bars_on_ram_on_interrupt_controllers_on_each_other_and_at_the_top") {
        return;
    }
    const WITNESS: u32 = 0x20_0000;
    let mut code = [switch_on(1), switch_on(2)].concat();
    // The page that this runs in, the witness's, LAPIC, IOAPIC, the top, past the window, nowhere.
    let places = [
        common::BASE,
        WITNESS,
        0xFEE0_0000,
        0xFEC0_0000,
        0xFFFF_F000,
        0xFEAF_F000,
        0xE000_1000,
        0xE000_0000,
        0,
    ];
    for (n, place) in (1..).zip(places) {
        for slot in [1, 2] {
            code.extend(config(slot, 0x10, place));
            code.extend(config(slot, 0x20, place));
        }
        // mov [WITNESS], n; mov [place + 0x800], n: a doorbell, were the BAR there
        for (at, value) in [(WITNESS, n), (place.wrapping_add(0x800), n)] {
            code.extend_from_slice(&[0xC7, 0x05]);
            code.extend_from_slice(&at.to_le_bytes());
            code.extend_from_slice(&u32::to_le_bytes(value));
        }
        // cmp [WITNESS], n; jne $
        code.extend_from_slice(&[0x81, 0x3D]);
        code.extend_from_slice(&WITNESS.to_le_bytes());
        code.extend_from_slice(&u32::to_le_bytes(n));
        code.extend_from_slice(&[0x75, 0xFE]);
    }
    // The store at BASE + 0x800 must not hit the code.
    let jump = [0xE9, 0xFB, 0x0F, 0, 0];
    let mut padded = jump.to_vec();
    padded.resize(0x1000, 0xCC);
    padded.extend(code);
    padded.extend(asm::power_off());
    let machine = with_devices(&padded);
    ends_well(&machine);
    assert_eq!(common::peek(machine.ram(), common::BASE + 0x800), 1, "RAM stayed RAM");
}

#[test]
fn random_code_is_stopped_in_time() {
    if skipped("random_code_is_stopped_in_time") {
        return;
    }
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    for seed in 0..40 {
        let mut code = vec![0; 4096];
        for byte in &mut code {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            *byte = (random >> 32) as u8;
        }
        let guest = machine(&code, ConsoleConfig::None);
        guest.start(vec![()]).expect("it starts");
        // Mostly it is dead by then.
        let event = guest.wait_event(Duration::from_millis(5));
        guest.stop(LONG).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        if let Some(GuestEvent::TripleFault { report } | GuestEvent::InternalError { report }) =
            event
        {
            assert!(report.contains("rip="), "seed {seed}: {report}");
        }
    }
}
