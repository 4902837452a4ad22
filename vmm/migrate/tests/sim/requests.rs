//! What the user, or the guest itself, may do to a migration at each phase.

use drogher_migrate::{
    Control, DestinationOutcome, Error, GuestEnd, Phase, Refusal, Request, Side, SourceOutcome,
};

use super::run::{Ended, Setup, run};

const BEFORE_COMMIT: [Phase; 14] = [
    Phase::Setup,
    Phase::TrackStart,
    Phase::Bulk,
    Phase::Harvest,
    Phase::Resend,
    Phase::DevicePrecopy,
    Phase::Forecast,
    Phase::PauseVcpus,
    Phase::Quiesce,
    Phase::Stop,
    Phase::FinalHarvest,
    Phase::DeviceState,
    Phase::LastHarvest,
    Phase::Ready,
];

/// Runs it with this done at the phase that the environment of the test says. A plain function
/// cannot capture the phase, so there is one per phase.
macro_rules! at_each_phase {
    ($act:ident, $check:expr) => {{
        macro_rules! at {
            ($phase:ident) => {{
                let ended = run(&Setup {
                    at: |side, phase, source, _| {
                        if side == Side::Source && phase == Phase::$phase {
                            $act(source);
                        }
                    },
                    ..Setup::default()
                });
                $check(Phase::$phase, ended);
            }};
        }
        at!(Setup);
        at!(TrackStart);
        at!(Bulk);
        at!(Harvest);
        at!(Resend);
        at!(DevicePrecopy);
        at!(Forecast);
        at!(PauseVcpus);
        at!(Quiesce);
        at!(Stop);
        at!(FinalHarvest);
        at!(DeviceState);
        at!(LastHarvest);
        at!(Ready);
    }};
}

fn stays(phase: Phase, ended: Ended, why: fn(&Error) -> bool) {
    let (outcome, _) = ended.source.unwrap();
    match outcome {
        SourceOutcome::Stays { why: found } if why(&found) => {}
        other => panic!("{phase}: {other:?}"),
    }
    assert!(ended.retried, "{phase}");
    // Before the stop the destination is told why. After READY the lease tells it.
    match ended.destination.unwrap().0 {
        DestinationOutcome::NotTaken { .. } => {}
        DestinationOutcome::Halted { epoch_moved, .. } if phase == Phase::Ready => {
            assert!(epoch_moved, "{phase}");
        }
        other => panic!("{phase}: {other:?}"),
    }
}

#[test]
fn abort_works_until_the_lease_is_given_up() {
    fn abort(control: &Control) {
        assert_eq!(control.ask(Request::Abort), Ok(()));
    }
    at_each_phase!(abort, |phase, ended| stays(phase, ended, |e| { matches!(e, Error::Aborted) }));
}

#[test]
fn a_shutdown_request_gives_the_migration_up_first() {
    fn shutdown(control: &Control) {
        assert_eq!(control.ask(Request::Shutdown), Ok(()));
    }
    at_each_phase!(shutdown, |phase, ended| stays(phase, ended, |e| {
        matches!(e, Error::Shutdown)
    }));
}

#[test]
fn a_guest_that_ends_cancels_the_migration() {
    fn ends(control: &Control) {
        control.guest_ended(GuestEnd::Reset);
    }
    at_each_phase!(ends, |phase, ended| stays(phase, ended, |e| {
        matches!(e, Error::GuestEnded(GuestEnd::Reset))
    }));
}

#[test]
fn a_guest_that_ends_in_its_last_instruction_cancels_too() {
    let ended = run(&Setup {
        prepare: |source, _| source.ends = Some(GuestEnd::Shutdown),
        ..Setup::default()
    });
    stays(Phase::PauseVcpus, ended, |e| matches!(e, Error::GuestEnded(GuestEnd::Shutdown)));
}

#[test]
fn the_destination_is_told_why() {
    let ended = run(&Setup {
        at: |side, phase, source, _| {
            if (side, phase) == (Side::Source, Phase::Resend) {
                source.guest_ended(GuestEnd::Shutdown);
            }
        },
        ..Setup::default()
    });
    let (outcome, _) = ended.destination.unwrap();
    let DestinationOutcome::NotTaken { why: Error::Peer { reason } } = outcome else {
        panic!("{outcome:?}");
    };
    assert!(reason.contains("shut down"), "{reason}");
}

#[test]
fn after_the_lease_is_given_up_nothing_may_be_asked() {
    let ended = run(&Setup {
        at: |side, phase, source, _| {
            // The destination takes the lease only after the source has given it up.
            if (side, phase) == (Side::Destination, Phase::Running) {
                for request in [Request::Abort, Request::Pause, Request::Resume, Request::Shutdown]
                {
                    assert_eq!(
                        source.ask(request),
                        Err(Refusal::Committed(Phase::Commit)),
                        "{request:?}"
                    );
                }
            }
        },
        ..Setup::default()
    });
    assert!(matches!(ended.source.unwrap().0, SourceOutcome::Moved { confirmed: true }));
}

#[test]
fn pause_resume_and_a_second_migration_have_defined_answers() {
    let ended = run(&Setup {
        at: |side, phase, source, _| {
            if side != Side::Source || !BEFORE_COMMIT.contains(&phase) {
                return;
            }
            assert_eq!(source.ask(Request::Migrate), Err(Refusal::Active(phase)));
            let expected = match phase.in_switchover() {
                true => Err(Refusal::Switchover(phase)),
                false => Ok(()),
            };
            assert_eq!(source.ask(Request::Pause), expected);
            assert_eq!(source.ask(Request::Resume), expected);
        },
        ..Setup::default()
    });
    assert!(matches!(ended.source.unwrap().0, SourceOutcome::Moved { confirmed: true }));
    let idle = Control::new();
    assert_eq!(idle.ask(Request::Abort), Err(Refusal::NoMigration));
    for request in [Request::Pause, Request::Resume, Request::Shutdown, Request::Migrate] {
        assert_eq!(idle.ask(request), Ok(()));
    }
}

#[test]
fn the_destination_may_give_up_before_ready() {
    let ended = run(&Setup {
        at: |side, phase, _, destination| {
            if (side, phase) == (Side::Destination, Phase::Resend) {
                assert_eq!(destination.ask(Request::Abort), Ok(()));
            }
        },
        ..Setup::default()
    });
    let (outcome, _) = ended.source.unwrap();
    let SourceOutcome::Stays { why: Error::Peer { reason } } = outcome else {
        panic!("{outcome:?}");
    };
    assert!(reason.contains("aborted"), "{reason}");
    assert!(ended.retried);
}
