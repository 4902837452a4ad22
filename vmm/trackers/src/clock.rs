//! CPU time. Other processes that want the processor make a thing take longer, but not more of it.

use rustix::time::{ClockId, clock_gettime};

/// CPU time of the calling thread so far, in ns.
pub(crate) fn cpu_ns() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// CPU time of `work`, in ns, beside its result.
pub(crate) fn timed<T, E>(work: impl FnOnce() -> Result<T, E>) -> Result<(f64, T), E> {
    let begin = cpu_ns();
    let result = work()?;
    Ok((cpu_ns() - begin, result))
}

/// The middle one, or the mean of the two in the middle; 0 of none.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    let middle = |back: usize| sorted.get((sorted.len().saturating_sub(back)) / 2).copied();
    match (middle(1), middle(0)) {
        (Some(low), Some(high)) => f64::midpoint(low, high),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_odd_and_even_numbers() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median([7.0]), 7.0);
        assert_eq!(median([]), 0.0);
    }
}
