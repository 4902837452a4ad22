//! Samples and what is said of them.

use serde::Serialize;

/// Measurements of one thing, in one unit.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<f64>);

/// What is said of samples: enough to see how far to trust the median.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// How many.
    pub n: usize,
    /// The middle one.
    pub median: f64,
    /// A quarter of them is at most this.
    pub p25: f64,
    /// Three quarters of them are at most this.
    pub p75: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// All, in the order of measuring.
    pub samples: Vec<f64>,
}

impl Samples {
    /// None yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds one.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// What is said of them; none of nothing, or of something that is no number.
    #[must_use]
    pub fn summary(&self) -> Option<Summary> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        if !sorted.iter().all(|value| value.is_finite()) {
            return None;
        }
        Some(Summary {
            n: sorted.len(),
            median: quantile(&sorted, 0.5)?,
            p25: quantile(&sorted, 0.25)?,
            p75: quantile(&sorted, 0.75)?,
            min: *sorted.first()?,
            max: *sorted.last()?,
            samples: self.0.clone(),
        })
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

/// The value below which a part of `sorted` lies, between two neighbours if need be.
fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let place = part * (sorted.len().checked_sub(1)? as f64);
    let (below, above) = (place.floor(), place.ceil());
    // Both are indices: whole, not negative, and below the length.
    let (low, high) = (sorted.get(below as usize)?, sorted.get(above as usize)?);
    Some(low + (high - low) * (place - below))
}

#[cfg(test)]
#[path = "stats_test.rs"]
mod tests;
