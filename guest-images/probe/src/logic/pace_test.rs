use super::*;

const HZ: u64 = 2_000_000_000;

/// Steps through one second in `steps` steps and does all that is due.
fn second(pace: &mut Pace, from: u64, steps: u64) -> u64 {
    let mut done = 0;
    for step in 1..=steps {
        let due = pace.due(from + HZ / steps * step);
        pace.done(due);
        done += due;
    }
    done
}

#[test]
fn the_rate_is_kept() {
    for rate in [0, 1, 3, 1000, 123_456, 10_000_000] {
        let mut pace = Pace::new(rate, 1, HZ, 0);
        let first = second(&mut pace, 0, 1000);
        let then = second(&mut pace, HZ, 50_000);
        assert!((first + then).abs_diff(2 * rate) <= 1, "rate {rate}: {first}, {then}");
    }
}

#[test]
fn a_long_gap_is_not_made_up_for() {
    let mut pace = Pace::new(1000, 1, HZ, 0);
    assert_eq!(pace.due(60 * HZ), 50);
    let mut pace = Pace::new(2, 1, HZ, 0);
    second(&mut pace, 0, 100);
    assert!(pace.due(60 * HZ) <= 1);
}

#[test]
fn no_limit_is_no_limit() {
    let mut pace = Pace::new(RATE_MAX, 1, HZ, 0);
    assert_eq!(pace.due(0), u64::MAX);
    pace.done(u64::MAX);
    assert_eq!(pace.due(0), u64::MAX);
}

#[test]
fn a_slow_rate_still_fills_a_burst() {
    let mut pace = Pace::new(5, 16, HZ, 0);
    let most = (1..=400).map(|n| pace.due(n * HZ / 100)).max();
    assert_eq!(most, Some(16));
}
