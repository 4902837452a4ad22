//! The DMA load: batches of planned descriptors, one doorbell and one interrupt each, and a check
//! of every byte that they may have written.

use crate::clock;
use crate::cpu;
use crate::fail::{fail, failed};
use crate::idt::{self, DEVICE, DEVICES};
use crate::logic::options::{MAX_BATCH, Options, RATE_MAX};
use crate::logic::pace::Pace;
use crate::logic::pattern;
use crate::logic::plan::{CELL, Op, Plan, Planner, SOURCE};
use crate::memory::{Arena, PAGE};
use crate::ndma::{self, DESCRIPTOR_BYTES, Descriptor, Ndma, RING_ENTRIES};
use crate::pci;
use crate::serial::say;
use crate::shared::SETUP;
use crate::worker::per_sweep;
use crate::apic;

/// A descriptor's own piece of memory: its source, then its scatter list.
const SOURCE_STRIDE: u64 = 3 * PAGE;
const LIST: u64 = SOURCE as u64;
const LIST_ENTRY: u64 = 16;
/// Where register windows are moved to: high in the machine's PCI window, beyond other BARs.
const MOVED_BARS: u32 = 0xf000_0000;
const MOVE_STEP: u32 = 0x10_0000;

/// The drivers of all ndma devices.
pub struct Drivers {
    list: [Option<&'static mut Driver>; DEVICES],
}

#[derive(Default)]
pub struct Totals {
    /// Descriptors whose results were right.
    pub checked: u64,
    pub interrupts: u64,
    /// Interrupts without a finished batch.
    pub extra: u64,
}

/// Memory of one device, by address. `cells` is written by the device only.
struct Areas {
    sources: u64,
    cells: u64,
    shadows: u64,
    scratch: u64,
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

struct Driver {
    n: usize,
    device: Ndma,
    areas: Areas,
    cell_count: usize,
    scratch_len: usize,
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

impl Drivers {
    pub const fn none() -> Self {
        Self { list: [const { None }; DEVICES] }
    }

    /// Finds the devices, takes memory for them and starts them.
    pub fn find(options: &Options, hz: u64, arena: &mut Arena) -> Self {
        let mut drivers = Self::none();
        let found = pci::find(ndma::VENDOR, ndma::DEVICE).take(DEVICES).count();
        let functions = pci::find(ndma::VENDOR, ndma::DEVICE);
        for (n, (place, function)) in drivers.list.iter_mut().zip(functions).enumerate() {
            let rate = match options.dma_rate {
                RATE_MAX => RATE_MAX,
                rate => rate / found as u64,
            };
            match Driver::new(n, function, rate, options, hz, arena) {
                Ok(driver) => *place = Some(driver),
                Err(what) => fail(format_args!("ndma{n} at slot={} what={what}", function.slot())),
            }
        }
        drivers
    }

    fn each(&mut self) -> impl Iterator<Item = &mut Driver> {
        self.list.iter_mut().flatten().map(|driver| &mut **driver)
    }

    fn every(&self) -> impl Iterator<Item = &Driver> {
        self.list.iter().flatten().map(|driver| &**driver)
    }

    pub fn len(&self) -> usize {
        self.every().count()
    }

    /// Does what is due; whether there was anything.
    pub fn step(&mut self) -> bool {
        self.each().fold(false, |busy, driver| driver.step() | busy)
    }

    pub fn totals(&self) -> Totals {
        self.every().fold(Totals::default(), |sum, driver| Totals {
            checked: sum.checked + driver.totals.checked,
            interrupts: sum.interrupts + driver.totals.interrupts,
            extra: sum.extra + driver.totals.extra,
        })
    }

    /// Full sweeps over each device's cells.
    pub fn sweeps(&self) -> impl Iterator<Item = u64> {
        self.every().map(|driver| driver.sweeps)
    }

    /// Reads back the registers of devices that have nothing in flight.
    pub fn check_registers(&mut self) {
        self.each().for_each(Driver::check_registers);
    }

    /// Resets every device, whatever it is doing, and goes on.
    pub fn reset(&mut self) {
        self.each().for_each(Driver::reset);
    }

    /// Moves every device's register window, whatever it is doing, and goes on.
    pub fn move_bars(&mut self) {
        self.each().for_each(Driver::move_bar);
    }

    /// Waits for what is in flight and checks every cell once more.
    pub fn finish(&mut self) {
        self.each().for_each(Driver::finish);
    }
}

impl Driver {
    fn new(
        n: usize,
        function: pci::Function,
        rate: u64,
        options: &Options,
        hz: u64,
        arena: &mut Arena,
    ) -> Result<&'static mut Self, &'static str> {
        let mut take = |bytes: usize| arena.take(bytes as u64).ok_or("no-memory");
        let cell_count = options.dma_ws as usize / CELL;
        let ring = take(RING_ENTRIES * DESCRIPTOR_BYTES)?;
        let mut device = Ndma::open(function, ring)?;
        device.reset(hz)?;
        let scratch_len = device.scratch_bytes().min(options.dma_scratch) as usize;
        let areas = Areas {
            sources: take(SOURCE_STRIDE as usize * options.dma_batch as usize)?,
            cells: take(cell_count * CELL)?,
            shadows: take(cell_count * CELL)?,
            scratch: take(scratch_len)?,
        };
        let vector = DEVICE + 2 * n as u8;
        for entry in 0..2 {
            if !device.msix.route(entry, vector + entry as u8, apic::id()) {
                return Err("too-few-msix-vectors");
            }
        }
        device.msix.enable();
        let now = clock::now();
        let place = take(size_of::<Self>())? as *mut Self;
        let driver = Self {
            n,
            device,
            areas,
            cell_count,
            scratch_len,
            planner: Planner::new(options.seed ^ (n as u64) << 32, cell_count, scratch_len),
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

    fn step(&mut self) -> bool {
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

    fn cell(&self, cell: usize) -> &'static [u8] {
        let at = core::hint::black_box(self.areas.cells + (cell * CELL) as u64);
        // SAFETY: inside `cells`; callers see to it that the device is not writing this one.
        unsafe { core::slice::from_raw_parts(at as *const u8, CELL) }
    }

    fn shadow(&mut self, cell: usize) -> &'static mut [u8] {
        let at = core::hint::black_box(self.areas.shadows + (cell * CELL) as u64);
        // SAFETY: inside `shadows`, which only this driver uses, one slice at a time.
        unsafe { core::slice::from_raw_parts_mut(at as *mut u8, CELL) }
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

    /// Prepares a descriptor's source and shadow, and gives it to the device.
    fn post(&mut self, slot: usize, plan: &Plan, last: bool) -> Option<Posted> {
        let base = self.areas.sources + SOURCE_STRIDE * slot as u64;
        // SAFETY: this slot's part of `sources`, which no descriptor in flight refers to.
        let words = unsafe { core::slice::from_raw_parts_mut(base as *mut u64, SOURCE / 8) };
        pattern::fill(words, self.planner.key());
        // SAFETY: the same bytes, not used as words any more.
        let source = unsafe { core::slice::from_raw_parts(base as *const u8, SOURCE) };
        // SAFETY: `scratch`, which only this driver uses, one slice at a time.
        let scratch = unsafe {
            core::slice::from_raw_parts_mut(self.areas.scratch as *mut u8, self.scratch_len)
        };
        let shadow = match plan.cell {
            Some(cell) => self.shadow(cell),
            None => &mut [],
        };
        let result = plan.apply(source, shadow, scratch)?;
        let cell = plan.cell.map_or(0, |cell| self.areas.cells + (cell * CELL) as u64);
        let src = base + plan.source as u64;
        let piece = plan.pieces().first().map_or(0, |piece| piece.offset as u64);
        let (src, dst, arg) = match plan.op {
            Op::Copy => (src, cell + piece, 0),
            Op::Fill => (0, cell + piece, plan.pattern),
            Op::Checksum => (src, 0, 0),
            Op::Scatter => (src, base + LIST, plan.pieces().len() as u64),
            Op::Store => (src, plan.scratch as u64, 0),
            Op::Load => (plan.scratch as u64, cell + piece, 0),
        };
        if plan.op == Op::Scatter {
            write_list(base + LIST, cell, plan);
        }
        let (len, cookie) = (plan.len as u64, self.planner.key());
        let mut descriptor = Descriptor::new(src, dst, len, arg, cookie);
        let index = self.device.post(plan.op as u16, last, descriptor);
        descriptor.result = result;
        Some(Posted { index, op: plan.op, last, cell: plan.cell, descriptor })
    }

    fn check_batch(&mut self) {
        for slot in 0..self.batch.len() {
            let Some(posted) = self.batch[slot] else { continue };
            let kind = (posted.op as u16, posted.last);
            if let Err((field, want, got)) = self.device.compare(posted.index, kind, &posted.descriptor) {
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

    /// Compares a cell with its shadow; the device is not writing it.
    fn check_cell(&mut self, cell: usize, when: &str) -> bool {
        let (got, want) = (self.cell(cell), &*self.shadow(cell));
        if got == want {
            return true;
        }
        let pairs = got.iter().zip(want).enumerate();
        let mut wrong = pairs.filter(|(_, (got, want))| got != want);
        if let Some((offset, (byte, should))) = wrong.next() {
            let gpa = got.as_ptr() as u64 + offset as u64;
            let more = wrong.count();
            fail(format_args!(
                "dma at gpa={gpa:#x} cell={cell} offset={offset} want={should:#x} got={byte:#x} \
                 more={more} when={when} device=ndma{}",
                self.n
            ));
        }
        false
    }

    fn sweep(&mut self, now: u64) -> bool {
        if self.place == 0 && self.sweeps == 0 {
            // The options are known only now.
            let rate = per_sweep(self.cell_count as u64);
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
            if self.place > self.cell_count {
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

    fn check_registers(&mut self) {
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

    fn reset(&mut self) {
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
                    self.shadow(cell).copy_from_slice(self.cell(cell));
                }
            }
        }
        self.planner.forget_scratch();
        say!("probe: ndma{} reset\r\n", self.n);
    }

    fn move_bar(&mut self) {
        self.moves += 1;
        let to = MOVED_BARS + MOVE_STEP * (self.n as u32 + 16 * (self.moves % 2));
        match self.device.move_bar(to) {
            Ok(()) => say!("probe: ndma{} bar0={to:#x}\r\n", self.n),
            Err(what) => fail(format_args!("ndma{} at bar0={to:#x} what={what}", self.n)),
        }
    }

    fn finish(&mut self) {
        while self.since.is_some() && !failed() {
            let seen = apic::wakes(0);
            cpu::beat(0);
            if !self.take_interrupts() {
                crate::worker::idle(0, seen);
            }
        }
        if !failed() {
            self.check_registers();
        }
        for cell in 0..self.cell_count {
            if failed() {
                return;
            }
            self.check_cell(cell, "end");
            cpu::beat(0);
        }
    }
}

/// A scatter's list: address, length, 0.
fn write_list(at: u64, cell: u64, plan: &Plan) {
    for (n, piece) in plan.pieces().iter().enumerate() {
        let entry = (at + LIST_ENTRY * n as u64) as *mut [u64; 2];
        // SAFETY: behind the source of a slot that no descriptor in flight refers to; there is
        // room for the most pieces that a plan has.
        unsafe { entry.write_volatile([cell + piece.offset as u64, piece.len as u64]) };
    }
}
