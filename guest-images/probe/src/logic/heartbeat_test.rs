use super::*;

/// One cycle is one microsecond here.
const HZ: u64 = 1_000_000;

fn run(heart: &mut Heartbeat, gaps: &Gaps, from: u64, to: u64, step: u64) {
    let mut now = from;
    while now < to {
        now += step;
        heart.beat(now, gaps);
    }
}

#[test]
fn the_largest_gap_and_the_noise_before_it() {
    let (mut heart, gaps) = (Heartbeat::new(), Gaps::new());
    heart.start(0, HZ);
    run(&mut heart, &gaps, 0, 1_000_000, 10);
    heart.beat(1_000_060, &gaps);
    run(&mut heart, &gaps, 1_000_060, 1_500_000, 10);
    assert_eq!(gaps.largest(), (60, 10));
    heart.beat(1_500_800, &gaps);
    assert_eq!(gaps.largest(), (800, 60));
    run(&mut heart, &gaps, 1_500_800, 4_000_000, 10);
    assert_eq!(gaps.largest(), (800, 60));
    assert_eq!(heart.take_outlier(), Some(Outlier { gap: 800, noise: 60 }));
    assert_eq!(heart.take_outlier(), None);
}

#[test]
fn noise_is_forgotten_after_a_second() {
    let (mut heart, gaps) = (Heartbeat::new(), Gaps::new());
    heart.start(0, HZ);
    heart.beat(500, &gaps);
    run(&mut heart, &gaps, 500, 3_000_000, 10);
    let now = heart.last();
    heart.beat(now + 900, &gaps);
    assert_eq!(gaps.largest(), (900, 10));
}

#[test]
fn a_gap_longer_than_the_window_is_no_noise_for_itself() {
    let (mut heart, gaps) = (Heartbeat::new(), Gaps::new());
    heart.start(0, HZ);
    run(&mut heart, &gaps, 0, 2_000_000, 20);
    heart.beat(12_000_000, &gaps);
    assert_eq!(gaps.largest(), (10_000_000, 20));
    // For the next one it is.
    heart.beat(12_000_300, &gaps);
    assert_eq!(heart.take_outlier(), Some(Outlier { gap: 10_000_000, noise: 20 }));
}

#[test]
fn each_line_has_its_own_largest() {
    let (mut heart, gaps) = (Heartbeat::new(), Gaps::new());
    heart.start(0, HZ);
    heart.beat(700, &gaps);
    run(&mut heart, &gaps, 700, 10_000, 10);
    assert_eq!(gaps.take_line(), 700);
    run(&mut heart, &gaps, 10_000, 20_000, 10);
    assert_eq!(gaps.take_line(), 10);
    assert_eq!(gaps.largest().0, 700);
}

#[test]
fn start_up_is_no_blackout() {
    let (mut heart, gaps) = (Heartbeat::new(), Gaps::new());
    heart.start(0, HZ);
    run(&mut heart, &gaps, 0, 500_000, 10);
    heart.beat(510_000, &gaps);
    assert_eq!(heart.take_outlier(), None);
}

#[test]
fn pauses_are_not_running_time() {
    let (mut heart, gaps) = (Heartbeat::new(), Gaps::new());
    heart.start(0, HZ);
    run(&mut heart, &gaps, 0, 100_000, 10);
    heart.beat(60_100_000, &gaps);
    assert_eq!(heart.running(), 150_000);
    // A TSC that went back is no gap and no running time.
    heart.beat(50_000, &gaps);
    heart.beat(50_010, &gaps);
    assert_eq!(heart.running(), 150_010);
}
