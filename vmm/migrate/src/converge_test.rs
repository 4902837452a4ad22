use std::time::Duration;

use super::{Convergence, Decision, Terms};
use crate::options::{SourceOptions, TimeoutStrategy};

const MIB: u64 = 1 << 20;

fn convergence(strategy: TimeoutStrategy) -> Convergence {
    let mut convergence = Convergence::new(&SourceOptions {
        downtime: Duration::from_millis(50),
        timeout: Duration::from_secs(10),
        timeout_strategy: strategy,
        ..SourceOptions::default()
    });
    // 1 GiB/s.
    convergence.sent(1024 * MIB, Duration::from_secs(1));
    convergence
}

fn terms(dirty_bytes: u64) -> Terms {
    Terms {
        dirty_pages: dirty_bytes / 4096,
        device_bytes: 1024 * 1024,
        fixed: Duration::from_millis(2),
    }
}

#[test]
fn a_forecast_is_the_sum_of_its_terms() {
    let forecast = convergence(TimeoutStrategy::Cancel).forecast(3, &terms(32 * MIB));
    assert_eq!(forecast.pages_us, 31_250);
    assert_eq!(forecast.devices_us, 976);
    assert_eq!(forecast.fixed_us, 2_000);
    assert_eq!(forecast.downtime_us, 34_226);
    assert_eq!((forecast.round, forecast.limit_us), (3, 50_000));
}

#[test]
fn it_stops_when_the_limit_is_met_and_not_before() {
    let mut c = convergence(TimeoutStrategy::Cancel);
    let far = c.forecast(1, &terms(512 * MIB));
    assert_eq!(c.decide(&far, 0, Duration::from_secs(1)), Decision::Another);
    let near = c.forecast(2, &terms(16 * MIB));
    assert_eq!(c.decide(&near, 0, Duration::from_secs(1)), Decision::Stop);
}

#[test]
fn dirtying_faster_than_sending_is_hopeless_after_a_few_rounds() {
    for (strategy, end) in
        [(TimeoutStrategy::Cancel, Decision::Hopeless), (TimeoutStrategy::Ignore, Decision::Stop)]
    {
        let mut c = convergence(strategy);
        let forecast = c.forecast(1, &terms(512 * MIB));
        let decisions: Vec<_> =
            (0..4).map(|_| c.decide(&forecast, 2048 * MIB, Duration::from_secs(1))).collect();
        assert_eq!(decisions[..3], [Decision::Another; 3]);
        assert_eq!(decisions[3], end);
    }
}

#[test]
fn rounds_that_get_better_are_not_hopeless() {
    let mut c = convergence(TimeoutStrategy::Cancel);
    for shrink in 0..6 {
        let forecast = c.forecast(1, &terms((1024 * MIB) >> shrink));
        let decision = c.decide(&forecast, 2048 * MIB, Duration::from_secs(1));
        let met = forecast.downtime_us <= 50_000;
        assert_eq!(decision, if met { Decision::Stop } else { Decision::Another });
    }
}

#[test]
fn the_time_limit_cancels_or_forces() {
    let late = Duration::from_secs(10);
    let mut c = convergence(TimeoutStrategy::Cancel);
    let forecast = c.forecast(1, &terms(512 * MIB));
    assert_eq!(c.decide(&forecast, 0, late), Decision::TimedOut);
    assert!(c.is_over(late) && !c.is_over(Duration::from_secs(9)));
    let mut c = convergence(TimeoutStrategy::Ignore);
    assert_eq!(c.decide(&forecast, 0, late), Decision::Stop);
    assert!(!c.is_over(late));
}

#[test]
fn a_limit_below_the_fixed_costs_ends_too() {
    let mut c = convergence(TimeoutStrategy::Cancel);
    let forecast = c.forecast(1, &Terms { fixed: Duration::from_millis(60), ..Terms::default() });
    let mut rounds = 0;
    while c.decide(&forecast, 0, Duration::from_secs(1)) == Decision::Another {
        rounds += 1;
        assert!(rounds < 100, "it never ends");
    }
}

#[test]
fn small_rounds_do_not_change_the_bandwidth() {
    let mut c = convergence(TimeoutStrategy::Cancel);
    let before = c.bandwidth();
    assert_eq!(c.sent(4096, Duration::from_millis(4)), 1_024_000);
    assert_eq!(c.bandwidth(), before);
}
