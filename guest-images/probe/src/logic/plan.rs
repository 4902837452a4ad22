//! What the ndma devices are asked to do, and what memory must hold afterwards.
//!
//! The device writes into *cells*: memory that no vCPU writes after the start, so that nothing
//! but the tracking of DMA can carry it through a migration. Of each cell the guest keeps a
//! shadow, computed by [`Plan::apply`] when the descriptor is posted; bytes of a cell that a
//! descriptor does not name are its canary.

use super::checksum::checksum;
use super::pattern::Rng;

/// Bytes of a cell: two pages, so that most transfers cross a page boundary.
pub const CELL: usize = 8192;
/// Bytes of the source that belongs to each descriptor of a batch.
pub const SOURCE: usize = CELL + 64;
/// The most pieces of a scatter.
pub const PIECES: usize = 8;

/// Opcodes, by the datasheet's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    /// Source to cell.
    Copy = 1,
    /// An 8-byte pattern to cell.
    Fill = 2,
    /// Over the source; changes nothing but the result.
    Checksum = 3,
    /// Source to pieces of a cell.
    Scatter = 4,
    /// Source to the device's own memory.
    Store = 5,
    /// The device's own memory to cell.
    Load = 6,
}

/// A part of a cell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// Offset in the cell.
    pub offset: usize,
    /// Bytes.
    pub len: usize,
}

/// One descriptor's work.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What.
    pub op: Op,
    /// Which cell it writes; `None` for checksum and store.
    pub cell: Option<usize>,
    /// First byte in the source; a multiple of 8 for a checksum.
    pub source: usize,
    /// First byte in the device's own memory.
    pub scratch: usize,
    /// Bytes in all.
    pub len: usize,
    /// Pattern of a fill.
    pub pattern: u64,
    pieces: [Piece; PIECES],
    used: usize,
}

impl Plan {
    /// The parts of the cell that are written, in order: one, unless it is a scatter.
    pub fn pieces(&self) -> &[Piece] {
        self.pieces.get(..self.used).unwrap_or_default()
    }

    /// Does on the shadows what the device will do, and returns the result that it must give:
    /// the checksum, else the number of bytes. `None` if a slice is too short for the plan.
    pub fn apply(&self, source: &[u8], cell: &mut [u8], scratch: &mut [u8]) -> Option<u64> {
        let bytes = source.get(self.source..self.source + self.len);
        let held = self.scratch..self.scratch + self.len;
        let done = u64::try_from(self.len).ok()?;
        let piece = self.pieces().first();
        match self.op {
            Op::Checksum => return Some(checksum(bytes?)),
            Op::Store => scratch.get_mut(held)?.copy_from_slice(bytes?),
            Op::Load => part(cell, piece?)?.copy_from_slice(scratch.get(held)?),
            Op::Fill => {
                let pattern = self.pattern.to_le_bytes().into_iter().cycle();
                part(cell, piece?)?.iter_mut().zip(pattern).for_each(|(to, from)| *to = from);
            }
            Op::Copy | Op::Scatter => {
                let mut rest = bytes?;
                for piece in self.pieces() {
                    let (now, later) = rest.split_at_checked(piece.len)?;
                    part(cell, piece)?.copy_from_slice(now);
                    rest = later;
                }
            }
        }
        Some(done)
    }
}

fn part<'a>(cell: &'a mut [u8], piece: &Piece) -> Option<&'a mut [u8]> {
    cell.get_mut(piece.offset..piece.offset + piece.len)
}

/// Makes plans: all cells in turn, operations and lengths by chance.
#[derive(Debug)]
pub struct Planner {
    rng: Rng,
    cells: usize,
    next_cell: usize,
    /// Bytes of the device's memory that are used, and how many of them were stored to so far.
    scratch: usize,
    stored: usize,
}

impl Planner {
    /// Plans for `cells` cells and `scratch` bytes of the device's own memory.
    pub fn new(seed: u64, cells: usize, scratch: usize) -> Self {
        Self { rng: Rng::new(seed), cells, next_cell: 0, scratch, stored: 0 }
    }

    /// The device was reset: what it held is not known any more.
    pub fn forget_scratch(&mut self) {
        self.stored = 0;
    }

    /// A key for the source of the next plan.
    pub fn key(&mut self) -> u64 {
        self.rng.draw()
    }

    /// The next plan. Of any `cells` plans in a row no two name the same cell.
    pub fn plan(&mut self) -> Plan {
        // All of the device's memory is stored to before any of it is loaded.
        if self.stored < self.scratch {
            let plan = self.no_cell(Op::Store, (self.scratch - self.stored).min(CELL));
            let plan = Plan { scratch: self.stored, ..plan };
            self.stored += plan.len;
            return plan;
        }
        match self.rng.below(if self.scratch == 0 { 8 } else { 12 }) {
            0..3 => self.piece(Op::Copy),
            3..5 => self.piece(Op::Fill),
            5 => {
                let len = 8 * (1 + self.upto(CELL / 8 - 1));
                let plan = self.no_cell(Op::Checksum, len);
                Plan { source: plan.source & !7, ..plan }
            }
            6..8 => self.scatter(),
            8..10 => {
                let len = self.length(CELL.min(self.scratch));
                let scratch = self.upto(self.scratch - len);
                Plan { scratch, ..self.no_cell(Op::Store, len) }
            }
            _ => {
                let plan = self.piece(Op::Load);
                let len = plan.len.min(self.scratch);
                let mut plan = Plan { scratch: self.upto(self.scratch - len), len, ..plan };
                plan.pieces.iter_mut().take(1).for_each(|piece| piece.len = len);
                plan
            }
        }
    }

    fn upto(&mut self, most: usize) -> usize {
        let bound = u64::try_from(most).map_or(0, |most| most + 1);
        usize::try_from(self.rng.below(bound)).unwrap_or(0)
    }

    /// A length in `1..=most`: as often short as up to a page as anything.
    fn length(&mut self, most: usize) -> usize {
        let class = match self.rng.below(4) {
            0 => 64,
            1 => 4096,
            _ => CELL,
        };
        1 + self.upto(class.min(most).saturating_sub(1))
    }

    fn take_cell(&mut self) -> usize {
        let cell = self.next_cell;
        self.next_cell = (cell + 1).checked_rem(self.cells).unwrap_or(0);
        cell
    }

    fn no_cell(&mut self, op: Op, len: usize) -> Plan {
        let source = self.upto(SOURCE - CELL);
        let pattern = self.rng.draw();
        let pieces = [Piece::default(); PIECES];
        Plan { op, cell: None, source, scratch: 0, len, pattern, pieces, used: 0 }
    }

    fn piece(&mut self, op: Op) -> Plan {
        let len = self.length(CELL);
        let offset = self.upto(CELL - len);
        let mut plan = Plan { cell: Some(self.take_cell()), used: 1, ..self.no_cell(op, len) };
        plan.pieces.iter_mut().take(1).for_each(|piece| *piece = Piece { offset, len });
        plan
    }

    /// Pieces in rising order, each in its own equal part of the cell, with gaps between them.
    fn scatter(&mut self) -> Plan {
        let used = 1 + self.upto(PIECES - 1);
        let room = CELL / used;
        let mut plan = Plan { cell: Some(self.take_cell()), used, ..self.no_cell(Op::Scatter, 0) };
        let mut base = 0;
        for n in 0..used {
            let len = self.length(room);
            let piece = Piece { offset: base + self.upto(room - len), len };
            if let Some(place) = plan.pieces.get_mut(n) {
                *place = piece;
            }
            plan.len += len;
            base += room;
        }
        plan
    }
}

#[cfg(test)]
#[path = "plan_test.rs"]
mod tests;
