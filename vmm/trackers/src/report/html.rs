//! The report as one HTML file: no script, no link, nothing that has to be fetched.

use std::fmt::Write as _;

use drogher_tracking::ProviderKind;

use super::plot::{Curve, plot};
use super::table::{head, row};
use super::{bytes, heading, judged, place, summary, time};
use crate::grid::{Cell, Grid, Measurement};
use crate::settings::Fixed;

const STYLE: &str = "
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 62em; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(24em, 1fr)); gap: 1em; }
svg { width: 100%; height: auto; } svg text { font: 11px system-ui, sans-serif; fill: currentColor; }
svg .title { font-size: 13px; font-weight: 600; } .grid { stroke: #8886; stroke-width: .5; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .15em .5em; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; }
.best { background: #2a93; } .worst { background: #d443; } .auto td:first-child { font-weight: 700; }
.key { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 1em; }
:root { color-scheme: light dark; }
";

/// The grid as one HTML file, which is well-formed XML too.
#[must_use]
pub fn html(grid: &Grid) -> String {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width\"/>\n\
         <title>What tracking costs</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <h1>What tracking costs</h1>\n<p>{}</p>\n",
        escape(&heading(grid))
    );
    // Writing to a string cannot fail.
    for line in summary(grid) {
        let _ = writeln!(page, "<p><strong>{}</strong></p>", escape(&line));
    }
    page.push_str(
        "<p>The total is the CPU time of harvests and of switching tracking on and off, what the \
         device's writes took longer than the same writes untracked, and the time to send the \
         reported pages again; all for one round. Rounds and blackout are of a real migration \
         each. Curves are of each provider in its best page size; a ring is what auto took.</p>\n",
    );
    legend(&mut page, grid);
    plots(&mut page, grid);
    for cell in &grid.cells {
        table(&mut page, cell);
    }
    page.push_str("</body>\n</html>\n");
    page
}

/// Text as it may stand between tags and in attributes.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            _ => safe.push(c),
        }
    }
    safe
}

const fn colour(provider: ProviderKind) -> &'static str {
    match provider {
        ProviderKind::Iommu => "#2b7de9",
        ProviderKind::Device => "#159957",
        ProviderKind::Fault => "#c06be0",
        ProviderKind::Pinned => "#e08a00",
        ProviderKind::All => "#d43f3a",
    }
}

fn legend(page: &mut String, grid: &Grid) {
    page.push_str("<p>");
    for provider in &grid.settings.providers {
        let colour = colour(*provider);
        let _ = write!(page, "<span class=\"key\" style=\"background:{colour}\"></span>{provider}");
    }
    page.push_str("</p>\n");
}

/// For each working set: a picture of the totals, of the bytes, and of the blackout.
fn plots(page: &mut String, grid: &Grid) {
    page.push_str("<div class=\"plots\">\n");
    for working_set in &grid.settings.working_sets {
        let cells: Vec<&Cell> =
            grid.cells.iter().filter(|cell| cell.working_set == *working_set).collect();
        let size = bytes(*working_set as f64);
        let mut add = |what: &str, label: fn(f64) -> String, value: fn(&Measurement) -> f64| {
            let title = format!("{what}, working set {size}");
            page.push_str(&plot(&title, &curves(grid, &cells, value), label));
        };
        add("Total cost of a round", time, |one| one.total_ns);
        add("Bytes re-sent in a round", bytes, |one| one.resent_bytes);
        add("Blackout", time, |one| one.moved.blackout_us as f64 * 1e3);
    }
    page.push_str("</div>\n");
}

fn curves(grid: &Grid, cells: &[&Cell], value: fn(&Measurement) -> f64) -> Vec<Curve<'static>> {
    let mut curves = Vec::new();
    for provider in &grid.settings.providers {
        let point = |cell: &&Cell| {
            let own = cell.measured.iter().filter(|one| one.fixed.provider == *provider);
            let best = own.min_by(|a, b| a.total_ns.total_cmp(&b.total_ns))?;
            Some((cell.rate as f64, value(best)))
        };
        curves.push(Curve {
            name: provider.to_string(),
            colour: colour(*provider),
            rings: false,
            points: cells.iter().filter_map(point).collect(),
        });
    }
    let taken = |cell: &&Cell| {
        let auto = cell.auto.as_ref()?.auto;
        let one = cell.measured.iter().find(|one| one.fixed == auto)?;
        Some((cell.rate as f64, value(one)))
    };
    curves.push(Curve {
        name: "auto".into(),
        colour: "currentColor",
        rings: true,
        points: cells.iter().filter_map(taken).collect(),
    });
    for curve in &mut curves {
        // By rate, in whatever order they were measured.
        curve.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    curves
}

fn table(page: &mut String, cell: &Cell) {
    let _ = writeln!(page, "<h2>{}</h2>\n<table>\n<tr>", escape(&place(cell)));
    for name in head() {
        let _ = write!(page, "<th>{}</th>", escape(name));
    }
    page.push_str("</tr>\n");
    let least = cell.measured.iter().map(|one| one.total_ns).fold(f64::INFINITY, f64::min);
    for one in &cell.measured {
        let _ = write!(page, "<tr class=\"{}\">", class(cell, one.fixed));
        for text in row(one, least) {
            let _ = write!(page, "<td>{}</td>", escape(&text));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table>\n");
    for (who, verdict) in [("auto", &cell.auto), ("auto without log and pins", &cell.auto_plain)] {
        if let Some(verdict) = verdict {
            let _ = writeln!(page, "<p>{}</p>", escape(&judged(who, verdict)));
        }
    }
}

fn class(cell: &Cell, fixed: Fixed) -> String {
    let Some(verdict) = &cell.auto else { return String::new() };
    let names = [
        (verdict.best == fixed, "best"),
        (verdict.worst == fixed, "worst"),
        (verdict.auto == fixed, "auto"),
    ];
    let own: Vec<&str> = names.into_iter().filter(|(is, _)| *is).map(|(_, name)| name).collect();
    own.join(" ")
}
