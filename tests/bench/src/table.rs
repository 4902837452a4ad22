//! The results: rows of ours beside theirs, for people and as JSON.

use std::fmt::Write as _;

use serde::Serialize;

use crate::stats::{Samples, Summary};

/// Whether less is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Better {
    /// Times, sizes.
    Lower,
    /// Rates.
    Higher,
}

/// One comparison.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured of ours.
    pub metric: String,
    /// What it is compared with; empty if with nothing.
    pub against: String,
    /// Unit of both.
    pub unit: &'static str,
    /// Which way is better.
    pub better: Better,
    /// Ours.
    pub ours: Option<Summary>,
    /// Theirs.
    pub theirs: Option<Summary>,
    /// Median of ours over median of theirs.
    pub ratio: Option<f64>,
}

/// One section of the results.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Section {
    /// What it is about, and under which load.
    pub title: String,
    /// Its rows.
    pub rows: Vec<Row>,
    /// What one has to know to read them, or why some are missing.
    pub notes: Vec<String>,
}

impl Row {
    /// Ours beside theirs.
    pub fn new(metric: &str, unit: &'static str, better: Better, ours: &Samples) -> Self {
        Self {
            metric: metric.to_owned(),
            against: String::new(),
            unit,
            better,
            ours: ours.summary(),
            theirs: None,
            ratio: None,
        }
    }

    /// What ours is compared with.
    #[must_use]
    pub fn against(mut self, what: &str, theirs: &Samples) -> Self {
        what.clone_into(&mut self.against);
        self.theirs = theirs.summary();
        self.ratio = match (&self.ours, &self.theirs) {
            (Some(ours), Some(theirs)) if theirs.median != 0.0 => Some(ours.median / theirs.median),
            _ => None,
        };
        self
    }
}

impl Section {
    /// A section without rows.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), ..Self::default() }
    }

    /// Adds a row, unless nothing was measured at all.
    pub fn row(&mut self, row: Row) {
        if row.ours.is_some() || row.theirs.is_some() {
            self.rows.push(row);
        }
    }

    /// Adds a note.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// The section for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut cells = vec![["metric", "ours", "theirs", "ratio", "n"].map(str::to_owned)];
        for row in &self.rows {
            let metric = match row.against.as_str() {
                "" => row.metric.clone(),
                against => format!("{} : {against}", row.metric),
            };
            let ratio = row.ratio.map_or("-".into(), |ratio| format!("{}x", number(ratio)));
            let n = [&row.ours, &row.theirs].map(|side| side.as_ref().map(|said| said.n));
            let n = match n {
                [Some(ours), Some(theirs)] if ours != theirs => format!("{ours}/{theirs}"),
                [Some(n), _] | [_, Some(n)] => n.to_string(),
                [None, None] => "-".into(),
            };
            let side = |said| spread(said, row.unit);
            cells.push([metric, side(&row.ours), side(&row.theirs), ratio, n]);
        }
        let widths: [usize; 5] = std::array::from_fn(|column| {
            cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
        });
        let mut text = format!("{}\n", self.title);
        for row in &cells {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(widths) {
                // Writing to a string cannot fail.
                let _ = write!(line, "  {cell:width$}");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        for note in &self.notes {
            let _ = writeln!(text, "  - {note}");
        }
        text
    }
}

/// `median unit [p25..p75]`.
fn spread(said: &Option<Summary>, unit: &str) -> String {
    said.as_ref().map_or("-".into(), |said| {
        format!("{} {unit} [{}..{}]", number(said.median), number(said.p25), number(said.p75))
    })
}

/// Three significant digits: no figure here is better than that.
fn number(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        size if size < 1.0 => 3,
        size if size < 10.0 => 2,
        size if size < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
#[path = "table_test.rs"]
mod tests;
