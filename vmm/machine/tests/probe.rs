//! The probe guest, which checks its own memory and time, runs here and moves.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use common::{LONG, over, skipped};
use drogher_machine::boot::Kernel;
use drogher_machine::console::ConsoleConfig;
use drogher_machine::events::GuestEvent;
use drogher_machine::machine::{Machine, MachineConfig};
use drogher_probe::{Console, Dma, Options};

/// Both ends of a serial line that outlives the machine it is plugged into.
struct Line {
    input: File,
    guest_input: OwnedFd,
    guest_output: OwnedFd,
    bytes: Receiver<Vec<u8>>,
    console: Console,
    text: String,
}

impl Line {
    fn new() -> Self {
        let (guest_input, input) = std::io::pipe().expect("a pipe");
        let (mut output, guest_output) = std::io::pipe().expect("a pipe");
        let (sender, bytes) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = output.read(&mut buffer) {
                if sender.send(buffer[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self {
            input: OwnedFd::from(input).into(),
            guest_input: guest_input.into(),
            guest_output: guest_output.into(),
            bytes,
            console: Console::default(),
            text: String::new(),
        }
    }

    fn plug(&self) -> ConsoleConfig {
        ConsoleConfig::Fds {
            input: Some(self.guest_input.try_clone().expect("a descriptor")),
            output: self.guest_output.try_clone().expect("a descriptor"),
        }
    }

    fn until(&mut self, what: &str, done: impl Fn(&Console) -> bool) {
        let end = Instant::now() + LONG;
        while !done(&self.console) {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(bytes) = self.bytes.recv_timeout(left) else {
                panic!("no {what}; the probe says:\n{}", self.text);
            };
            self.text.push_str(&String::from_utf8_lossy(&bytes));
            self.console.feed(&bytes);
            assert_eq!(self.console.fail(), None, "{}", self.text);
        }
    }
}

fn start(options: &Options, cpus: u8, line: &Line) -> Machine {
    let mut config = MachineConfig::new(64 << 20, cpus);
    config.console = line.plug();
    let machine = Machine::create(config).expect("a machine");
    let cmdline = options.to_string();
    let kernel =
        Kernel { name: "probe", image: drogher_probe::ELF, cmdline: &cmdline, initrd: None };
    machine.load_kernel(&kernel).expect("the probe loads");
    machine.unpark_io().expect("I/O goes on");
    machine.start(vec![(); cpus.into()]).expect("it starts");
    machine
}

fn options(cpus: u8) -> Options {
    Options {
        ws: 4 << 20,
        rate: 2_000,
        status_ms: 50,
        sweep_ms: 100,
        vcpus: cpus.into(),
        dma: Dma::Off,
        ..Options::DEFAULT
    }
}

#[test]
fn runs_and_takes_serial_input() {
    if skipped("runs_and_takes_serial_input") {
        return;
    }
    let mut line = Line::new();
    let machine = start(&options(1), 1, &line);
    line.until("status", |console| console.status_lines() >= 3);
    let hello = line.console.hello().expect("it said hello");
    // Exactly, by the CPUID leaf; or measured, where the guest sees the host's leaves and there is none.
    let khz = u64::from(machine.model().tsc_khz());
    assert!(hello.tsc_khz.abs_diff(khz) * 50 <= khz, "{} against {khz}", hello.tsc_khz);
    line.input.write_all(b"S").expect("the guest's input takes a byte");
    assert_eq!(machine.wait_event(LONG), Some(GuestEvent::Shutdown));
    line.until("bye", |console| console.bye().is_some());
    assert!(line.console.bye().is_some_and(|bye| bye.ok), "{}", line.text);
}

#[test]
fn moves_with_all_its_vcpus_and_goes_on_checked() {
    if skipped("moves_with_all_its_vcpus_and_goes_on_checked") {
        return;
    }
    for cpus in [1u8, 2] {
        let mut line = Line::new();
        let mut current = start(&options(cpus), cpus, &line);
        let ram = Arc::clone(current.ram());
        let mut state = current.state_buffer();
        let (mut save, mut load) = (Duration::ZERO, Duration::ZERO);
        const HOPS: u32 = 10;
        for _ in 0..HOPS {
            let seen = line.console.status_lines();
            line.until("more status", |console| console.status_lines() >= seen + 2);
            let next = over(&ram, cpus, line.plug());
            current.pause_vcpus(LONG).expect("it stops");
            current.park_io(LONG).expect("I/O stops");
            let at = Instant::now();
            current.save_cpu_state(&mut state).expect("it is saved");
            save += at.elapsed();
            let at = Instant::now();
            next.load_cpu_state(&state).expect("it is loaded");
            load += at.elapsed();
            next.unpark_io().expect("I/O goes on");
            next.start(vec![(); cpus.into()]).expect("it goes on");
            current = next;
        }
        let bytes = state.len();
        println!("{cpus} vCPUs: {bytes} bytes, save {:?}, load {:?}", save / HOPS, load / HOPS);
        let seen = line.console.status_lines();
        let sweeps = line.console.last().map_or(0, |last| last.sweeps);
        line.until("status and a sweep after the last move", |console| {
            console.status_lines() >= seen + 2
                && console.last().is_some_and(|last| last.sweeps > sweeps)
        });
        line.input.write_all(b"S").expect("the guest's input takes a byte");
        assert_eq!(current.wait_event(LONG), Some(GuestEvent::Shutdown));
        line.until("bye", |console| console.bye().is_some());
        assert!(line.console.bye().is_some_and(|bye| bye.ok), "{}", line.text);
    }
}

#[test]
fn pauses_and_resumes_under_load() {
    if skipped("pauses_and_resumes_under_load") {
        return;
    }
    let mut line = Line::new();
    let machine = start(&options(2), 2, &line);
    for _ in 0..100 {
        machine.pause_vcpus(LONG).expect("it stops");
        machine.resume(vec![(); 2]).expect("it goes on");
    }
    let seen = line.console.status_lines();
    line.until("status", |console| console.status_lines() > seen + 2);
    machine.stop(LONG).expect("it stops");
}
