//! A grid for people and for tools.

mod html;
mod plot;
mod table;

use crate::grid::{Cell, Grid, Measurement, NEAR, Verdict};

pub use html::html;
pub use table::text;

/// As JSON, with a line feed at the end.
///
/// # Errors
/// None that is known: a grid is plain data.
pub fn json(grid: &Grid) -> Result<String, serde_json::Error> {
    Ok(serde_json::to_string_pretty(grid)? + "\n")
}

/// How `auto` has done, in a line for each kind of device.
#[must_use]
pub fn summary(grid: &Grid) -> Vec<String> {
    let all = |cell: &Cell| cell.auto.clone();
    let plain = |cell: &Cell| cell.auto_plain.clone();
    let plain_device = "auto for a device without log and pins";
    let lines = [line(grid, "auto", all), line(grid, plain_device, plain), expected(grid)];
    lines.into_iter().flatten().collect()
}

/// How good the figures are that `auto` goes by.
fn expected(grid: &Grid) -> Option<String> {
    let measured = grid.cells.iter().flat_map(|cell| &cell.measured);
    let known: Vec<bool> = measured.filter_map(Measurement::is_as_expected).collect();
    let good = known.iter().filter(|is| **is).count();
    let count = known.len();
    (count > 0)
        .then(|| format!("expected within a quarter of what was measured in {good} of {count}"))
}

fn line(grid: &Grid, who: &str, of: fn(&Cell) -> Option<Verdict>) -> Option<String> {
    let verdicts: Vec<Verdict> = grid.cells.iter().filter_map(of).collect();
    if verdicts.is_empty() {
        return None;
    }
    let near = verdicts.iter().filter(|verdict| verdict.is_near()).count();
    let worst = verdicts.iter().filter(|verdict| verdict.is_worst()).count();
    Some(format!(
        "{who} within {:.0} % of the best in {near} of {} cells, worst in {worst}",
        (NEAR - 1.0) * 100.0,
        verdicts.len()
    ))
}

/// What was measured, and on what.
fn heading(grid: &Grid) -> String {
    let settings = &grid.settings;
    format!(
        "{} of RAM, {} processors; sending a page again takes {} ({}/s); a round is 10 ms of guest \
         time; medians of {} paired runs",
        bytes(settings.memory as f64),
        grid.processors,
        time(grid.page_ns),
        bytes(4096e9 / grid.page_ns.max(1e-3)),
        settings.runs
    )
}

fn place(cell: &Cell) -> String {
    format!("working set {}, {} writes/s", bytes(cell.working_set as f64), cell.rate)
}

fn judged(who: &str, verdict: &Verdict) -> String {
    format!(
        "best {}, worst {}; {who} took {}: {:.2} of the best",
        verdict.best, verdict.worst, verdict.auto, verdict.ratio
    )
}

/// Bytes in a unit that leaves few digits.
#[must_use]
pub fn bytes(bytes: f64) -> String {
    let units = [(1u64 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")];
    match units.into_iter().find(|(size, _)| bytes >= *size as f64) {
        Some((size, unit)) => format!("{}{unit}", number(bytes / size as f64)),
        None => number(bytes),
    }
}

/// A time given in ns.
fn time(ns: f64) -> String {
    match ns.abs() {
        size if size >= 1e9 => format!("{} s", number(ns / 1e9)),
        size if size >= 1e6 => format!("{} ms", number(ns / 1e6)),
        size if size >= 1e3 => format!("{} us", number(ns / 1e3)),
        _ => format!("{ns:.0} ns"),
    }
}

/// Three digits: no figure here is better than that; none behind the point that are zero.
fn number(value: f64) -> String {
    let digits = match value.abs() {
        size if size < 10.0 => 2,
        size if size < 100.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.digits$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
#[path = "report_test.rs"]
mod tests;
