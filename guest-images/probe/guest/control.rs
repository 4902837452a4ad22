//! The first processor's other duties: lines, input, triggers, the end.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::cpu::{self, CPUS, GO, STOP};
use crate::dma::Drivers;
use crate::fail::{self, fail, failed};
use crate::logic::options::{Action, Options, Trigger};
use crate::serial::{self, say};
use crate::shared::SETUP;
use crate::worker::{self, Worker};
use crate::{apic, clock, gate, idt, power};

/// Looks for input that often.
const POLLS_PER_SECOND: u64 = 15;

struct Control {
    options: Options,
    hz: u64,
    start: u64,
    next_line: u64,
    next_poll: u64,
    lines: u64,
}

/// All of the first processor's life after the set-up.
pub fn run(mut drivers: Drivers) -> ! {
    let (options, hz) = (SETUP.get().options, SETUP.get().hz);
    let begin = clock::now();
    // Nothing is filled where the set-up has failed.
    let mut worker = (!failed()).then(|| Worker::fill(0));
    while worker.is_some()
        && !failed()
        && !cpu::used(options.vcpus).all(|cpu| cpu.filled.load(Acquire))
    {
        cpu::beat(0);
    }
    if worker.is_some() {
        say!("probe: ready fill_ms={}\r\n", clock::now().saturating_sub(begin) / (hz / 1000));
    }
    GO.store(true, Release);
    cpu::start_heart(0, hz);
    if let Some(worker) = &mut worker {
        worker.begin();
    }
    let start = clock::now();
    let mut control = Control { options, hz, start, next_line: start, next_poll: start, lines: 0 };
    control.next_line += control.period();
    loop {
        let seen = apic::wakes(0);
        let mut busy = false;
        if !failed() {
            busy |= worker.as_mut().is_some_and(Worker::step);
            busy |= drivers.step();
        }
        let now = cpu::beat(0);
        if let Some(action) = control.step(now, &mut drivers) {
            finish(action, &control, worker.as_mut(), &mut drivers);
        }
        if !busy {
            worker::idle(0, seen);
        }
    }
}

impl Control {
    fn period(&self) -> u64 {
        self.hz / 1000 * self.options.status_ms
    }

    /// Prints and reads what is due; what to end with, if it is time.
    fn step(&mut self, now: u64, drivers: &mut Drivers) -> Option<Action> {
        if let Some(outlier) = cpu::take_outlier(0) {
            let (gap, noise) = (self.us(outlier.gap), self.us(outlier.noise));
            say!("probe: blackout_us={gap} noise_us={noise}\r\n");
        }
        if now >= self.next_poll {
            self.next_poll = now + self.hz / POLLS_PER_SECOND;
            if let Some(action) = serial::read().and_then(|letter| self.obey(letter, drivers)) {
                return Some(action);
            }
        }
        if now >= self.next_line {
            self.next_line = (self.next_line + self.period()).max(now);
            self.print_line(drivers);
            self.lines += 1;
            if let Some(Trigger { action, at }) = self.options.trigger
                && self.lines == at
            {
                return Some(action);
            }
        }
        let seconds = self.options.seconds;
        let over = seconds != 0 && now.saturating_sub(self.start) >= seconds * self.hz;
        over.then_some(Action::Shutdown)
    }

    fn obey(&self, letter: u8, drivers: &mut Drivers) -> Option<Action> {
        match letter {
            b'S' => return Some(Action::Shutdown),
            b'R' => return Some(Action::Reset),
            b'T' => return Some(Action::TripleFault),
            b'd' if !failed() => drivers.reset(),
            b'b' if !failed() => drivers.move_bars(),
            _ => {}
        }
        None
    }

    fn print_line(&self, drivers: &mut Drivers) {
        if idt::strays() != 0 {
            fail(format_args!("interrupt at stray-vector count={}", idt::strays()));
        }
        if !failed() {
            drivers.check_registers();
        }
        match fail::text() {
            Some(text) => say!("FAIL {text}\r\n"),
            None => {
                self.print_totals(format_args!("probe:"), drivers);
                let line = CPUS.iter().map(|cpu| cpu.gaps.take_line()).max().unwrap_or(0);
                say!(" gap_us={}", self.us(line));
                self.print_largest();
                say!("\r\n");
            }
        }
    }

    fn print_totals(&self, head: core::fmt::Arguments, drivers: &Drivers) {
        let ms = clock::now().saturating_sub(self.start) / (self.hz / 1000);
        say!("{head} t={}.{:03} pages={}", ms / 1000, ms % 1000, cpu::sum(|cpu| &cpu.pages));
        let sweeps = cpu::used(self.options.vcpus).map(|cpu| cpu.sweeps.load(Relaxed));
        let sweeps = sweeps.chain(drivers.sweeps()).min().unwrap_or(0);
        say!(" checked={} sweeps={sweeps}", cpu::sum(|cpu| &cpu.checked));
        let totals = drivers.totals();
        say!(" dma={} irqs={} extra={}", totals.checked, totals.interrupts, totals.extra);
    }

    fn print_largest(&self) {
        let (max, noise) = CPUS.iter().map(|cpu| cpu.gaps.largest()).max().unwrap_or((0, 0));
        say!(" max_gap_us={} noise_us={}", self.us(max), self.us(noise));
    }

    fn us(&self, cycles: u64) -> u64 {
        cycles / (self.hz / 1_000_000).max(1)
    }
}

fn finish(
    action: Action,
    control: &Control,
    worker: Option<&mut Worker>,
    drivers: &mut Drivers,
) -> ! {
    match action {
        Action::Reset => power::reset(control.hz),
        Action::TripleFault => gate::crash(),
        Action::Shutdown => {}
    }
    STOP.store(true, Relaxed);
    if let Some(worker) = worker
        && !failed()
    {
        worker.check_all();
        drivers.finish();
        let others = || cpu::used(control.options.vcpus).skip(1);
        while !failed() && !others().all(|cpu| cpu.done.load(Acquire)) {
            cpu::beat(0);
        }
    }
    if let Some(text) = fail::text() {
        say!("FAIL {text}\r\n");
    }
    control.print_totals(format_args!("probe: bye"), drivers);
    control.print_largest();
    say!(" result={}\r\n", if failed() { "fail" } else { "ok" });
    power::off(control.hz)
}

/// The first processor, after something that it cannot go on from: it prints the FAIL line time
/// and again, and answers input.
pub fn only_answer() -> ! {
    apic::make_ready(SETUP.get().hz);
    gate::enable_interrupts();
    run(Drivers::none())
}

/// A processor that met a fault: the first one answers from now on, any other sleeps.
pub fn after_fault() -> ! {
    if apic::id() == 0 {
        only_answer()
    }
    gate::enable_interrupts();
    power::rest(0)
}
