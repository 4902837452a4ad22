use super::*;

#[test]
fn an_engine_that_panics_ends_the_process_and_whoever_watches_is_told() {
    let process = Process::starting();
    process.inner().migrating = true;
    let (lines, answers) = channel();
    process.engage(&lines, || panic!("a test's panic"));
    drop(lines);
    let said: Vec<_> = answers.into_iter().collect();
    let [MigrateLine::Outcome { outcome: Outcome::Halted, message, .. }] = &said[..] else {
        panic!("{said:?}");
    };
    assert!(message.contains("Internal error") && message.contains("a test's panic"), "{message}");
    let inner = process.inner();
    assert!(!inner.migrating);
    assert_eq!(inner.end, Some(End::bad(message.clone())));
}

#[test]
fn what_is_asked_before_the_engine_has_begun_is_told_to_it() {
    let process = Process::starting();
    assert!(process.abort().is_err(), "there is nothing to abort");
    process.inner().migrating = true;
    assert_eq!(process.abort(), Ok(()));
    assert_eq!(process.inner().give_up, Some(Request::Abort));
    process.begun();
    assert_eq!(process.inner().give_up, None);
    // From now on the engine itself answers, and in this test it has none.
    assert!(process.abort().is_err());
}

#[test]
fn a_process_says_whether_it_starts_or_waits() {
    let state = |process| ProcessControl(process).status().vm.state;
    assert_eq!(state(Process::starting()), GuestState::Starting);
    let process = Process::waiting();
    assert_eq!(state(Arc::clone(&process)), GuestState::Waiting);
    process.incoming();
    assert_eq!(state(process), GuestState::Incoming);
}
