//! The probe guest. `boot.S` brings it to ring 3; from there on it is this.
#![no_std]
#![no_main]

mod apic;
mod areas;
mod clock;
mod control;
mod cpu;
mod dma;
mod driver;
mod fail;
mod gate;
mod idt;
#[path = "../src/logic/mod.rs"]
#[allow(dead_code, reason = "some of it is for the host only")]
mod logic;
mod mem;
mod memory;
mod ndma;
mod pci;
mod power;
mod pvh;
mod serial;
mod shared;
mod smp;
mod worker;

use core::arch::global_asm;

use fail::fail;
use logic::options::{Dma, Options, Rate};
use memory::Arena;
use serial::say;
use shared::{SETUP, Setup};

global_asm!(include_str!("boot.S"), options(att_syntax));
global_asm!(include_str!("tramp.S"), options(att_syntax));
global_asm!(include_str!("gates.S"), options(att_syntax));

/// Where the boot processor enters ring 3, interrupts off.
#[unsafe(no_mangle)]
extern "C" fn guest_main() -> ! {
    idt::fill();
    serial::init();
    let boot = match pvh::read() {
        Ok(boot) => boot,
        Err(what) => give_up(format_args!("pvh at start_info what={what}")),
    };
    let (options, ignored) = match Options::parse(boot.command_line) {
        Ok(parsed) => parsed,
        Err(bad) => give_up(format_args!("option at {} value={}", bad.key, bad.value)),
    };
    let tsc = clock::find(options.tsc_khz);
    apic::init_first(tsc.hz());
    gate::enable_interrupts();
    let mut arena = Arena::new(&boot.memory);
    let drivers = match options.dma {
        Dma::Off => dma::Drivers::none(),
        _ => dma::Drivers::find(&options, tsc.hz(), &mut arena),
    };
    say!("probe: hello vcpus={} ws={} rate={}", options.vcpus, options.ws, Rate(options.rate));
    say!(" seed={} tsc_khz={} tsc_from={}", options.seed, tsc.khz, tsc.source);
    say!(" ndma={} ignored={ignored}\r\n", drivers.len());
    if options.dma == Dma::On && drivers.len() == 0 {
        fail(format_args!("ndma at pci what=none-found"));
    }
    let stacks = smp::stacks(&options, &mut arena);
    let extents = arena.rest();
    if extents.pages() < options.ws / 4096 {
        fail(format_args!("option at ws value={} free={}", options.ws, extents.pages() * 4096));
    }
    SETUP.set(Setup { options, hz: tsc.hz(), extents });
    smp::start(&stacks);
    control::run(drivers)
}

/// Before anything runs: says why, then answers input only.
fn give_up(why: core::fmt::Arguments) -> ! {
    fail(why);
    control::only_answer()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    let (file, line) = info.location().map_or(("", 0), |place| (place.file(), place.line()));
    fail(format_args!("panic at {file}:{line}"));
    control::after_fault()
}
