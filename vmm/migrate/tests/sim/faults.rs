//! A fault at every step of either side, and what may come of it.

use std::time::Duration;

use drogher_migrate::{DestinationOutcome, Phase, Side, SourceOutcome};

use super::run::{Ended, Setup, run};
use super::world::{Fault, Plan, When};

/// Bound on how long nobody may run after a cut.
const AFTER_CUT: Duration = Duration::from_secs(5);

fn check(plan: Plan, ended: &Ended) {
    let state = ended.world.lock();
    if !state.fired() {
        return;
    }
    let context = || {
        format!(
            "{plan:?}: source {:?}, destination {:?}",
            ended.source.as_ref().map(|s| &s.0),
            ended.destination.as_ref().map(|d| &d.0)
        )
    };
    let source = ended.source.as_ref().map(|s| &s.0);
    let destination = ended.destination.as_ref().map(|d| &d.0);
    let stays = matches!(source, Some(SourceOutcome::Stays { .. }));
    let runs_there = matches!(destination, Some(DestinationOutcome::Runs { .. }));

    // What a side says is so.
    if stays {
        assert!(ended.retried, "{}", context());
    }
    if matches!(source, Some(SourceOutcome::Moved { .. })) {
        assert!(state.has_reached(Side::Destination, Phase::Running), "{}", context());
        assert!(runs_there || destination.is_none(), "{}", context());
    }
    if matches!(source, Some(SourceOutcome::Lost)) {
        assert!(!runs_there, "{}", context());
    }

    match (plan.fault, plan.side) {
        // Both live: exactly one runs.
        (Fault::Cut | Fault::Stall, _) => {
            assert!(stays != runs_there, "{}", context());
            if let (Fault::Cut, Some(cut)) = (plan.fault, state.cut_at) {
                let gap = state.ran_at.saturating_sub(cut);
                assert!(gap < AFTER_CUT, "{gap:?} {}", context());
            }
        }
        (Fault::HostError, _) => {
            let reached = state.has_reached(Side::Destination, Phase::Running);
            assert!(stays != runs_there || reached, "{}", context());
            if reached && !runs_there {
                assert!(matches!(source, Some(SourceOutcome::Lost)), "{}", context());
            }
        }
        (Fault::Kill, Side::Destination) => {
            // It had the lease, or it had not.
            if state.has_reached(Side::Destination, Phase::Running) {
                assert!(!stays, "{}", context());
            } else {
                assert!(stays || matches!(source, Some(SourceOutcome::Lost)), "{}", context());
            }
        }
        (Fault::Kill, Side::Source) => {
            let ready = state.has_reached(Side::Destination, Phase::Ready);
            let resumed = state.has_reached(Side::Source, Phase::Rollback);
            if ready && !resumed {
                assert!(runs_there, "{}", context());
            } else if !ready {
                assert!(
                    matches!(destination, Some(DestinationOutcome::NotTaken { .. })),
                    "{}",
                    context()
                );
            }
        }
    }
}

fn strike(seed: u64, plan: Plan, verify: bool) -> bool {
    let mut setup = Setup { seed, plan: Some(plan), ..Setup::default() };
    setup.options.verify = verify;
    let ended = run(&setup);
    check(plan, &ended);
    ended.world.lock().fired()
}

#[test]
fn every_fault_at_every_phase_of_either_side() {
    let mut fired = 0;
    for seed in 0..4 {
        for side in [Side::Source, Side::Destination] {
            for phase in Phase::ALL {
                for fault in [Fault::Kill, Fault::Cut, Fault::Stall] {
                    let when = When::Phase(phase);
                    fired += u32::from(strike(seed, Plan { side, when, fault }, false));
                }
            }
        }
    }
    // All phases but rollback at the source, all but rollback at the destination.
    assert_eq!(fired, 4 * 3 * (16 + 16));
}

/// A fault at each step: of the rounds, which repeat themselves, every ninth step (49th, unless
/// `DROGHER_FULL` is set).
fn sweep(fault: Fault) {
    let stride = if std::env::var_os("DROGHER_FULL").is_some() { 9 } else { 49 };
    let baseline = run(&Setup::default());
    let steps = {
        let state = baseline.world.lock();
        [state.steps(Side::Source), state.steps(Side::Destination)]
    };
    let mut fired = 0;
    for (side, steps) in [(Side::Source, steps[0]), (Side::Destination, steps[1])] {
        assert!(steps > 100, "{side}: only {steps} steps");
        // The switchover is at the end, and gets every step.
        let close = steps.saturating_sub(80)..steps + 20;
        let early = (1..close.start).step_by(stride);
        for (seed, step) in (0..).zip(early.chain(close)) {
            let when = When::Step(step);
            fired += u32::from(strike(seed % 7, Plan { side, when, fault }, false));
        }
    }
    assert!(fired > 100, "only {fired} faults have struck");
}

#[test]
fn a_kill_at_any_step() {
    sweep(Fault::Kill);
}

#[test]
fn a_cut_at_any_step() {
    sweep(Fault::Cut);
}

#[test]
fn a_stall_at_any_step() {
    sweep(Fault::Stall);
}

#[test]
fn an_error_at_any_call_into_a_machine() {
    sweep(Fault::HostError);
}
