use super::*;

const MS: Duration = Duration::from_millis(1);

#[test]
fn payload_keeps_to_the_rate() {
    let now = Instant::now();
    let mut pace = Pace::at(1_000_000);
    assert_eq!(pace.left(|| now), None, "nothing moved yet");
    pace.moved(5_000, || now);
    assert_eq!(pace.left(|| now), Some(5 * MS));
    assert_eq!(pace.left(|| now + 2 * MS), Some(3 * MS));
    assert_eq!(pace.left(|| now + 5 * MS), None);
    // Begun 3 ms late: the next waits as if it had not been.
    pace.moved(5_000, || now + 8 * MS);
    assert_eq!(pace.left(|| now + 8 * MS), Some(2 * MS));
    // After a long rest there is credit for 10 ms only.
    pace.moved(12_000, || now + 500 * MS);
    assert_eq!(pace.left(|| now + 500 * MS), Some(2 * MS));
}

#[test]
fn without_a_rate_nothing_waits() {
    let now = Instant::now();
    let mut pace = Pace::default();
    pace.moved(u64::MAX, || now);
    assert_eq!(pace.left(|| now), None);
    pace = Pace::at(1);
    pace.moved(u64::MAX, || now);
    pace.moved(u64::MAX, || now);
    assert!(pace.left(|| now).is_some(), "no overflow");
    pace = Pace::at(0);
    assert_eq!(pace.left(|| now), None, "a new rate forgets what was owed");
}
