//! The DMA load of one device: batches of planned descriptors, one doorbell and one interrupt
//! each, and a check of every byte that they may have written.

use crate::areas::{Areas, Prepared, Wrong};
use crate::fail::{fail, failed};
use crate::idt::{self, DEVICE};
use crate::logic::options::{MAX_BATCH, Options};
use crate::logic::pace::Pace;
use crate::logic::plan::{CELL, Op, Plan, Planner};
use crate::memory::Arena;
use crate::ndma::{DESCRIPTOR_BYTES, Descriptor, Ndma, RING_ENTRIES};
use crate::pci::Function;
use crate::serial::say;
use crate::shared::SETUP;
use crate::worker::{idle, per_sweep};
use crate::{apic, clock, cpu};

/// Where register windows are moved to: high in the machine's PCI window, beyond other BARs.
const MOVED_BARS: u32 = 0xf000_0000;
const MOVE_STEP: u32 = 0x10_0000;

/// Counts since the start.
#[derive(Default)]
pub struct Totals {
    /// Descriptors whose results were right.
    pub checked: u64,
    pub interrupts: u64,
    /// Interrupts without a finished batch.
    pub extra: u64,
}

/// A descriptor in flight.
#[derive(Clone, Copy)]
struct Posted {
    index: usize,
    op: Op,
    last: bool,
    cell: Option<usize>,
    descriptor: Descriptor,
}

/// One device, its memory and its load.
pub struct Driver {
    n: usize,
    device: Ndma,
    areas: Areas,
    planner: Planner,
    pace: Pace,
    sweeping: Pace,
    place: usize,
    batch: [Option<Posted>; MAX_BATCH as usize],
    /// Running time when the batch was posted; `None` with nothing in flight.
    since: Option<u64>,
    /// Completion interrupts taken account of.
    taken: u64,
    totals: Totals,
    sweeps: u64,
    moves: u32,
}

impl Driver {
    /// Starts the device on an empty ring, with `rate` descriptors per second.
    pub fn new(
        n: usize,
        function: Function,
        rate: u64,
        options: &Options,
        hz: u64,
        arena: &mut Arena,
    ) -> Result<&'static mut Self, &'static str> {
        let mut take = |bytes: usize| arena.take(bytes as u64).ok_or("no-memory");
        let cells = options.dma_ws as usize / CELL;
        let ring = take(RING_ENTRIES * DESCRIPTOR_BYTES)?;
        let place = take(size_of::<Self>())? as *mut Self;
        let mut device = Ndma::open(function, ring)?;
        device.reset(hz)?;
        let scratch = device.scratch_bytes().min(options.dma_scratch) as usize;
        let batch = options.dma_batch as usize;
        let areas = Areas::new(arena, batch, cells, scratch).ok_or("no-memory")?;
        let vector = DEVICE + 2 * n as u8;
        for entry in 0..2 {
            if !device.msix.route(entry, vector + entry as u8, apic::id()) {
                return Err("too-few-msix-vectors");
            }
        }
        device.msix.enable();
        let now = clock::now();
        let driver = Self {
            n,
            device,
            areas,
            planner: Planner::new(options.seed ^ (n as u64) << 32, cells, scratch),
            pace: Pace::new(rate, u64::from(options.dma_batch), hz, now),
            sweeping: Pace::new(0, 1, hz, now),
            place: 0,
            batch: [None; MAX_BATCH as usize],
            since: None,
            taken: 0,
            totals: Totals::default(),
            sweeps: 0,
            moves: 0,
        };
        // SAFETY: page-aligned memory of this size that was just taken for it.
        unsafe {
            place.write(driver);
            Ok(&mut *place)
        }
    }

    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Full sweeps over the cells.
    pub fn sweeps(&self) -> u64 {
        self.sweeps
    }

    /// Does what is due; whether there was anything.
    pub fn step(&mut self) -> bool {
        if idt::errors(self.n) != 0 {
            let (status, error) = self.device.condition();
            fail(format_args!("ndma{} at ring status={status:#x} error={error}", self.n));
            return false;
        }
        let answered = self.take_interrupts();
        let now = cpu::beat(0);
        if self.since.is_none() {
            let size = u64::from(SETUP.get().options.dma_batch);
            if self.pace.due(now) >= size {
                self.pace.done(size);
                self.post_batch();
                return true;
            }
        }
        self.sweep(now) | answered
    }

    /// Looks whether the batch in flight was answered; whether it was.
    fn take_interrupts(&mut self) -> bool {
        let arrived = idt::completions(self.n);
        let new = arrived - self.taken;
        self.taken = arrived;
        self.totals.interrupts += new;
        let Some(since) = self.since else {
            self.totals.extra += new;
            return false;
        };
        let done = new != 0 && self.posted().all(|posted| self.device.is_done(posted.index));
        if done {
            self.totals.extra += new - 1;
            self.since = None;
            self.check_batch();
            return true;
        }
        self.totals.extra += new;
        let setup = SETUP.get();
        if cpu::running(0) - since > setup.hz / 1000 * setup.options.lost_ms {
            self.report_lost();
        }
        false
    }

    fn report_lost(&self) {
        let posted = self.posted().count();
        let done = self.posted().filter(|posted| self.device.is_done(posted.index)).count();
        let what = if done == posted { "lost-interrupt" } else { "lost-completion" };
        let (status, error) = self.device.condition();
        fail(format_args!(
            "ndma{} at batch what={what} posted={posted} done={done} irqs={} \
             status={status:#x} error={error}",
            self.n, self.totals.interrupts
        ));
    }

    fn posted(&self) -> impl Iterator<Item = &Posted> {
        self.batch.iter().flatten()
    }

    fn post_batch(&mut self) {
        self.batch = [None; MAX_BATCH as usize];
        let size = SETUP.get().options.dma_batch as usize;
        for slot in 0..size {
            let plan = self.planner.plan();
            if let Some(cell) = plan.cell
                && !self.check_cell(cell, "before")
            {
                return;
            }
            let Some(posted) = self.post(slot, &plan, slot + 1 == size) else {
                fail(format_args!("ndma{} at plan what=out-of-bounds", self.n));
                return;
            };
            self.batch[slot] = Some(posted);
            cpu::beat(0);
        }
        self.since = Some(cpu::running(0));
        self.device.ring_doorbell();
    }

    fn post(&mut self, slot: usize, plan: &Plan, last: bool) -> Option<Posted> {
        let key = self.planner.key();
        let Prepared { src, dst, arg, result } = self.areas.prepare(slot, plan, key)?;
        let cookie = self.planner.key();
        let mut descriptor = Descriptor::new(src, dst, plan.len as u64, arg, cookie);
        let index = self.device.post(plan.op as u16, last, descriptor);
        descriptor.result = result;
        Some(Posted { index, op: plan.op, last, cell: plan.cell, descriptor })
    }

    fn check_batch(&mut self) {
        for slot in 0..self.batch.len() {
            let Some(posted) = self.batch[slot] else { continue };
            let kind = (posted.op as u16, posted.last);
            if let Err((field, want, got)) =
                self.device.compare(posted.index, kind, &posted.descriptor)
            {
                let (n, index, op) = (self.n, posted.index, posted.op);
                fail(format_args!(
                    "ndma{n} at descriptor={index} op={op:?} field={field} want={want:#x} got={got:#x}"
                ));
                return;
            }
            if let Some(cell) = posted.cell
                && !self.check_cell(cell, "after")
            {
                return;
            }
            self.totals.checked += 1;
            cpu::beat(0);
        }
        self.batch = [None; MAX_BATCH as usize];
    }

    /// Compares a cell with what it must hold; the device is not writing it.
    fn check_cell(&mut self, cell: usize, when: &str) -> bool {
        let Err(Wrong { gpa, offset, want, got, more }) = self.areas.check(cell) else {
            return true;
        };
        fail(format_args!(
            "dma at gpa={gpa:#x} cell={cell} offset={offset} want={want:#x} got={got:#x} \
             more={more} when={when} device=ndma{}",
            self.n
        ));
        false
    }

    fn sweep(&mut self, now: u64) -> bool {
        if self.place == 0 && self.sweeps == 0 {
            // The options are known only now.
            let rate = per_sweep(self.areas.cells() as u64);
            self.sweeping = Pace::new(rate, 1, SETUP.get().hz, now);
            self.place = 1;
        }
        let checks = self.sweeping.due(now).min(4);
        for _ in 0..checks {
            let cell = self.place - 1;
            if !self.in_flight(cell) && !self.check_cell(cell, "sweep") {
                return false;
            }
            self.place += 1;
            if self.place > self.areas.cells() {
                (self.place, self.sweeps) = (1, self.sweeps + 1);
            }
            cpu::beat(0);
        }
        self.sweeping.done(checks);
        checks != 0
    }

    fn in_flight(&self, cell: usize) -> bool {
        self.since.is_some() && self.posted().any(|posted| posted.cell == Some(cell))
    }

    /// Reads the registers back if nothing is in flight.
    pub fn check_registers(&mut self) {
        if self.since.is_some() {
            return;
        }
        // NEXT and COMPLETED may follow the interrupt by a moment.
        let mut wrong = self.device.check_registers();
        for _ in 0..100 {
            if wrong.is_ok() {
                return;
            }
            cpu::beat(0);
            wrong = self.device.check_registers();
        }
        let Err((field, want, got)) = wrong else { return };
        fail(format_args!("ndma{} at register={field} want={want:#x} got={got:#x}", self.n));
    }

    /// Resets the device, whatever it is doing, and goes on.
    pub fn reset(&mut self) {
        let hz = SETUP.get().hz;
        if let Err(what) = self.device.reset(hz) {
            return fail(format_args!("ndma{} at reset what={what}", self.n));
        }
        // An interrupt sent before the reset may still be on its way.
        clock::spin(hz / 1000);
        self.totals.interrupts += idt::completions(self.n) - self.taken;
        self.taken = idt::completions(self.n);
        if self.since.take().is_some() {
            // What was in flight is done, or half done, or not begun: all of that is right.
            for slot in 0..self.batch.len() {
                if let Some(cell) = self.batch[slot].and_then(|posted| posted.cell) {
                    self.areas.believe(cell);
                }
            }
        }
        self.planner.forget_scratch();
        say!("probe: ndma{} reset\r\n", self.n);
    }

    /// Moves the register window, whatever the device is doing, and goes on.
    pub fn move_bar(&mut self) {
        self.moves += 1;
        let to = MOVED_BARS + MOVE_STEP * (self.n as u32 + 16 * (self.moves % 2));
        match self.device.move_bar(to) {
            Ok(()) => say!("probe: ndma{} bar0={to:#x}\r\n", self.n),
            Err(what) => fail(format_args!("ndma{} at bar0={to:#x} what={what}", self.n)),
        }
    }

    /// Waits for what is in flight and checks every cell once more.
    pub fn finish(&mut self) {
        while self.since.is_some() && !failed() {
            let seen = apic::wakes(0);
            cpu::beat(0);
            if !self.take_interrupts() {
                idle(0, seen);
            }
        }
        if !failed() {
            self.check_registers();
        }
        for cell in 0..self.areas.cells() {
            if failed() {
                return;
            }
            self.check_cell(cell, "end");
            cpu::beat(0);
        }
    }
}
