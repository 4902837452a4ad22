use std::sync::{Condvar, Mutex};
use std::time::Duration;

use super::{Patience, SLICE};

#[test]
fn a_wait_ends_when_its_time_is_over() {
    let (mutex, changed) = (Mutex::new(()), Condvar::new());
    let mut patience = Patience::new(SLICE * 2);
    let mut guard = mutex.lock().unwrap();
    let mut waits = 0;
    while !patience.is_over() {
        guard = patience.wait(&changed, guard);
        waits += 1;
    }
    assert!(waits >= 2, "{waits}");
}

/// As seen by a thread of a process that stood for an hour in the middle of a wait.
#[test]
fn time_for_which_the_process_stood_is_not_charged() {
    let mut patience = Patience::new(SLICE * 3);
    patience.charge(Duration::from_secs(3600), SLICE);
    assert!(!patience.is_over());
    patience.charge(SLICE / 2, SLICE);
    assert_eq!(patience.left, SLICE + SLICE / 2);
    patience.charge(SLICE, SLICE);
    patience.charge(SLICE, SLICE / 2);
    assert!(patience.is_over());
}
