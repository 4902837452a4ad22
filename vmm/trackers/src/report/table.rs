//! The table for a terminal.

use std::fmt::Write as _;

use super::{bytes, heading, judged, place, summary, time};
use crate::grid::{Cell, Grid, Measurement};

const COLUMNS: usize = 12;
/// Columns, with what they are.
const HEAD: [&str; COLUMNS] = [
    "tracker", "harvest", "switch", "DMA lost", "DMA x", "re-sent", "sending", "total", "of best",
    "expected", "rounds", "blackout",
];

/// The grid as text: a table for each cell, with what `auto` took, and how it has done in all.
#[must_use]
pub fn text(grid: &Grid) -> String {
    let mut text = format!("{}\n", heading(grid));
    for cell in &grid.cells {
        table(&mut text, cell);
    }
    text.push('\n');
    for line in summary(grid) {
        text.push_str(&line);
        text.push('\n');
    }
    text
}

fn table(text: &mut String, cell: &Cell) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "\n{}", place(cell));
    let least = cell.measured.iter().map(|one| one.total_ns).fold(f64::INFINITY, f64::min);
    let mut lines = vec![HEAD.map(str::to_owned)];
    lines.extend(cell.measured.iter().map(|one| row(one, least)));
    let widths: [usize; COLUMNS] = std::array::from_fn(|column| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    });
    for line in &lines {
        for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
            let _ = match column {
                0 => write!(text, "  {cell:<width$}"),
                _ => write!(text, "  {cell:>width$}"),
            };
        }
        text.push('\n');
    }
    for (who, verdict) in [("auto", &cell.auto), ("auto without log and pins", &cell.auto_plain)] {
        if let Some(verdict) = verdict {
            let _ = writeln!(text, "  {}", judged(who, verdict));
        }
    }
}

/// The cells of one row, in the order of [`HEAD`].
pub(super) fn row(one: &Measurement, least: f64) -> [String; COLUMNS] {
    [
        one.fixed.to_string(),
        time(one.harvest_ns),
        time(one.switch_ns),
        time(one.dma_lost_ns),
        format!("{:.2}", one.dma_slowdown),
        bytes(one.resent_bytes),
        time(one.resend_ns),
        time(one.total_ns),
        format!("{:.2}", one.total_ns / least.max(1.0)),
        one.expected_ns.map_or("-".into(), |ns| time(ns as f64)),
        one.moved.rounds().to_string(),
        time(one.moved.blackout_us as f64 * 1e3),
    ]
}

/// The columns' names.
pub(super) const fn head() -> [&'static str; COLUMNS] {
    HEAD
}
