//! What every processor does: write its pages at its part of the rate, and sweep them.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::cpu::{self, CPUS, GO, STOP};
use crate::fail::{fail, failed};
use crate::logic::options::{Idle, RATE_MAX};
use crate::logic::pace::Pace;
use crate::logic::pattern::{Content, Share};
use crate::shared::SETUP;
use crate::{apic, clock};

/// Pages between two looks at everything else.
const CHUNK: u64 = 8;

pub struct Worker {
    n: usize,
    share: Share,
    writing: Pace,
    sweeping: Pace,
    /// Next page of the sweep, from the share's first on.
    place: u64,
}

impl Worker {
    /// Fills the share of processor `n`, which calls this.
    pub fn fill(n: usize) -> Self {
        let setup = SETUP.get();
        let options = &setup.options;
        let vcpus = u64::from(options.vcpus);
        let pages = options.ws / 4096;
        let share = Share::part(options.seed, pages, n as u64, vcpus);
        let (first, count) = share.range();
        for index in first..first + count {
            if failed() {
                break;
            }
            write(share.content(index));
            cpu::beat(n);
        }
        CPUS[n].filled.store(true, Release);
        let (place, now) = (0, clock::now());
        // The remainder goes to the first, so that the sum is the rate.
        let rate = match options.rate {
            RATE_MAX => RATE_MAX,
            rate if n == 0 => rate / vcpus + rate % vcpus,
            rate => rate / vcpus,
        };
        let writing = Pace::new(if count == 0 { 0 } else { rate }, 1, setup.hz, now);
        let sweeping = Pace::new(per_sweep(count), 1, setup.hz, now);
        Self { n, share, writing, sweeping, place }
    }

    /// Starts the clocks and the heart: everything before was preparation.
    pub fn begin(&mut self) {
        let now = clock::now();
        cpu::start_heart(self.n, SETUP.get().hz);
        self.writing.due(now);
        self.sweeping.due(now);
    }

    /// Does a little of what is due; whether there was anything.
    pub fn step(&mut self) -> bool {
        let now = cpu::beat(self.n);
        let writes = self.writing.due(now).min(CHUNK);
        let written = (0..writes).take_while(|_| self.write_next()).count() as u64;
        self.writing.done(written);
        let checks = self.sweeping.due(now).min(CHUNK);
        let checked = (0..checks).take_while(|_| self.sweep_next()).count() as u64;
        self.sweeping.done(checked);
        written + checked != 0
    }

    fn write_next(&mut self) -> bool {
        let old = self.share.turn();
        if !self.check(old) {
            return false;
        }
        write(Content { generation: old.generation + 1, ..old });
        self.share.advance();
        CPUS[self.n].pages.fetch_add(1, Relaxed);
        cpu::beat(self.n);
        true
    }

    fn sweep_next(&mut self) -> bool {
        let (first, count) = self.share.range();
        if !self.check(self.share.content(first + self.place)) {
            return false;
        }
        cpu::beat(self.n);
        self.place += 1;
        if self.place == count {
            self.place = 0;
            CPUS[self.n].sweeps.fetch_add(1, Relaxed);
        }
        true
    }

    /// One last look at every page of the share.
    pub fn check_all(&mut self) {
        let (_, count) = self.share.range();
        self.place = 0;
        for _ in 0..count {
            if failed() || !self.sweep_next() {
                break;
            }
        }
    }

    fn check(&self, content: Content) -> bool {
        let page = SETUP.get().extents.page(content.index);
        CPUS[self.n].checked.fetch_add(1, Relaxed);
        // SAFETY: a page of this processor's share: nobody else of this guest writes it.
        let Err(wrong) = content.check(unsafe { &*page }) else { return true };
        let (gpa, Content { index, generation, .. }) = (page as u64, content);
        let (word, want, got) = (wrong.word, wrong.want, wrong.got);
        let at = gpa + 8 * word as u64;
        fail(format_args!(
            "page at gpa={at:#x} page={index} word={word} want={want:#x} got={got:#x} \
             generation={generation} vcpu={}",
            self.n
        ));
        false
    }
}

fn write(content: Content) {
    let page = SETUP.get().extents.page(content.index);
    // SAFETY: a page of the calling processor's share: nobody else of this guest touches it.
    content.write(unsafe { &mut *page });
}

/// So many things per `sweep_ms`, as a rate per second.
pub fn per_sweep(count: u64) -> u64 {
    (count * 1000).checked_div(SETUP.get().options.sweep_ms).unwrap_or(0)
}

/// Until the next thing falls due; `seen` was read before looking for work.
pub fn idle(n: usize, seen: u64) {
    let setup = SETUP.get();
    match setup.options.idle {
        Idle::Spin => core::hint::spin_loop(),
        Idle::Halt => apic::nap(n, seen, setup.hz / 1_000_000 * setup.options.nap_us),
    }
}

/// All of a processor's life but the first one's.
pub fn run_other(n: usize) {
    let mut worker = Worker::fill(n);
    while !GO.load(Acquire) {
        idle(n, apic::wakes(n));
    }
    worker.begin();
    while !STOP.load(Relaxed) {
        let seen = apic::wakes(n);
        if failed() {
            cpu::beat(n);
            idle(n, seen);
        } else if !worker.step() {
            idle(n, seen);
        }
    }
    worker.check_all();
    CPUS[n].done.store(true, Release);
}
