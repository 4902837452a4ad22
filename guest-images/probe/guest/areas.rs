//! One device's memory: what descriptors read, what they write, and what that must be.

use core::slice;

use crate::logic::pattern;
use crate::logic::plan::{CELL, Op, Plan, SOURCE};
use crate::memory::{Arena, PAGE};

/// A descriptor's own piece of memory: its source, then its scatter list.
const SOURCE_STRIDE: u64 = 3 * PAGE;
const LIST: u64 = SOURCE as u64;
const LIST_ENTRY: u64 = 16;

/// Areas by address. No vCPU writes `cells` after the start.
pub struct Areas {
    sources: u64,
    cells: u64,
    shadows: u64,
    scratch: u64,
    cell_count: usize,
    scratch_len: usize,
}

/// What a descriptor is to say, and the result that the device must give.
pub struct Prepared {
    pub src: u64,
    pub dst: u64,
    pub arg: u64,
    pub result: u64,
}

/// Bytes of a cell that are not what they should be.
pub struct Wrong {
    pub gpa: u64,
    pub offset: usize,
    pub want: u8,
    pub got: u8,
    /// How many more there are in the cell.
    pub more: usize,
}

impl Areas {
    /// Takes memory for `batch` descriptors, `cells` cells and `scratch` bytes of device memory.
    pub fn new(arena: &mut Arena, batch: usize, cells: usize, scratch: usize) -> Option<Self> {
        let mut take = |bytes: usize| arena.take(bytes as u64);
        Some(Self {
            sources: take(SOURCE_STRIDE as usize * batch)?,
            cells: take(cells * CELL)?,
            shadows: take(cells * CELL)?,
            scratch: take(scratch)?,
            cell_count: cells,
            scratch_len: scratch,
        })
    }

    /// How many cells there are.
    pub fn cells(&self) -> usize {
        self.cell_count
    }

    fn cell(&self, cell: usize) -> &[u8] {
        // What it holds changes without this program's doing.
        let at = core::hint::black_box(self.cells + (cell * CELL) as u64);
        // SAFETY: inside `cells`; callers see to it that the device is not writing this one.
        unsafe { slice::from_raw_parts(at as *const u8, CELL) }
    }

    fn shadow(&mut self, cell: usize) -> &'static mut [u8] {
        // SAFETY: inside `shadows`; one slice at a time is made of it, by the methods here.
        unsafe { slice::from_raw_parts_mut((self.shadows + (cell * CELL) as u64) as *mut u8, CELL) }
    }

    fn scratch(&mut self) -> &'static mut [u8] {
        // SAFETY: all of `scratch`; one slice at a time is made of it, by `prepare`.
        unsafe { slice::from_raw_parts_mut(self.scratch as *mut u8, self.scratch_len) }
    }

    /// Compares a cell, which the device is not writing now, with what it must hold.
    pub fn check(&mut self, cell: usize) -> Result<(), Wrong> {
        let want = self.shadow(cell);
        let got = self.cell(cell);
        if got == want {
            return Ok(());
        }
        let mut wrong = got.iter().zip(want).enumerate().filter(|(_, (got, want))| *got != *want);
        let Some((offset, (&byte, want))) = wrong.next() else { return Ok(()) };
        let gpa = got.as_ptr() as u64 + offset as u64;
        Err(Wrong { gpa, offset, want: *want, got: byte, more: wrong.count() })
    }

    /// Takes what a cell holds for what it must hold: nobody can tell after a device reset.
    pub fn believe(&mut self, cell: usize) {
        self.shadow(cell).copy_from_slice(self.cell(cell));
    }

    /// Fills the source of batch slot `slot` by `key`, and does the plan on the shadows. `None`
    /// for a plan that goes beyond them.
    pub fn prepare(&mut self, slot: usize, plan: &Plan, key: u64) -> Option<Prepared> {
        let base = self.sources + SOURCE_STRIDE * slot as u64;
        // SAFETY: this slot's part of `sources`, which no descriptor in flight refers to.
        let words = unsafe { slice::from_raw_parts_mut(base as *mut u64, SOURCE / 8) };
        pattern::fill(words, key);
        // SAFETY: the same bytes, not used as words any more.
        let source = unsafe { slice::from_raw_parts(base as *const u8, SOURCE) };
        let shadow = match plan.cell {
            Some(cell) if cell >= self.cell_count => return None,
            Some(cell) => self.shadow(cell),
            None => &mut [],
        };
        let result = plan.apply(source, shadow, self.scratch())?;
        let cell = plan.cell.map_or(0, |cell| self.cells + (cell * CELL) as u64);
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
        Some(Prepared { src, dst, arg, result })
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
