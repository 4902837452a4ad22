use super::*;
use State::*;

/// The table of VFIO v2 with all options: the next step from the row's state on the way to the
/// column's. `None`: refused.
const TABLE: [(State, [Option<State>; 7]); 8] = {
    const STOP: Option<State> = Some(Stop);
    const RUN: Option<State> = Some(Running);
    const COPY: Option<State> = Some(StopCopy);
    const RESU: Option<State> = Some(Resuming);
    const P2P: Option<State> = Some(RunningP2p);
    const PRE: Option<State> = Some(PreCopy);
    const PP2P: Option<State> = Some(PreCopyP2p);
    // To: STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P.
    [
        (Stop, [STOP, P2P, COPY, RESU, P2P, P2P, P2P]),
        (Running, [P2P, RUN, P2P, P2P, P2P, PRE, P2P]),
        (StopCopy, [STOP, STOP, STOP, STOP, STOP, None, None]),
        (Resuming, [STOP, STOP, STOP, STOP, STOP, STOP, STOP]),
        (RunningP2p, [STOP, RUN, STOP, STOP, P2P, RUN, PP2P]),
        (PreCopy, [RUN, RUN, PP2P, RUN, RUN, PRE, PP2P]),
        (PreCopyP2p, [P2P, P2P, COPY, P2P, P2P, PRE, PP2P]),
        (Error, [None; 7]),
    ]
};
const COLUMNS: [State; 7] = [Stop, Running, StopCopy, Resuming, RunningP2p, PreCopy, PreCopyP2p];

const OPTIONS: [(bool, bool); 4] = [(false, false), (true, false), (false, true), (true, true)];

/// The arcs that a plugin with these options has.
fn arcs(p2p: bool, pre_copy: bool) -> Vec<(State, State)> {
    let both = |a, b| [(a, b), (b, a)];
    let mut arcs = [both(Resuming, Stop), both(Stop, StopCopy)].concat();
    if p2p {
        arcs.extend([both(Running, RunningP2p), both(RunningP2p, Stop)].concat());
    } else {
        arcs.extend(both(Running, Stop));
    }
    if pre_copy {
        arcs.extend(both(Running, PreCopy));
        if p2p {
            arcs.extend([both(PreCopy, PreCopyP2p), both(RunningP2p, PreCopyP2p)].concat());
            arcs.push((PreCopyP2p, StopCopy));
        } else {
            arcs.push((PreCopy, StopCopy));
        }
    }
    arcs
}

/// The way that the host takes; `None` if it refuses.
fn way(from: State, to: State, p2p: bool, pre_copy: bool) -> Option<Vec<State>> {
    let mut way = vec![from];
    while *way.last()? != to {
        way.push(next(*way.last()?, to, p2p, pre_copy)?);
        assert!(way.len() <= State::ALL.len(), "{from} to {to} has no end: {way:?}");
    }
    Some(way)
}

/// Steps of the shortest way along the arcs. States that save are no way stations, unless the way is
/// from one of them to another.
fn shortest(from: State, to: State, arcs: &[(State, State)]) -> Option<usize> {
    let mut reached = vec![from];
    for steps in 0.. {
        if reached.contains(&to) {
            return Some(steps);
        }
        let pass = |state: &State| *state == from || !state.saves() || (from.saves() && to.saves());
        let mut further = reached.clone();
        for &(a, b) in arcs {
            if reached.contains(&a) && pass(&a) && !further.contains(&b) {
                further.push(b);
            }
        }
        if further.len() == reached.len() {
            return None;
        }
        reached = further;
    }
    None
}

#[test]
fn with_all_options_it_is_vfios_table() {
    for (from, row) in TABLE {
        for (to, expected) in COLUMNS.into_iter().zip(row) {
            // A state to itself is no step: nobody asks.
            if from != to {
                assert_eq!(next(from, to, true, true), expected, "{from} to {to}");
            }
        }
        assert_eq!(next(from, Error, true, true), None, "ERROR is never asked for");
    }
}

#[test]
fn every_way_is_short_and_of_arcs_that_the_plugin_has() {
    for (p2p, pre_copy) in OPTIONS {
        let arcs = arcs(p2p, pre_copy);
        let has = |state: State| state.supported(p2p, pre_copy);
        for from in State::ALL {
            for to in State::ALL {
                let refused = !has(from) || !has(to) || (from == StopCopy && to.pre_copies());
                if from == to {
                    continue;
                }
                let Some(way) = way(from, to, p2p, pre_copy) else {
                    assert!(refused, "{from} to {to} with {p2p} {pre_copy} is refused");
                    continue;
                };
                assert!(!refused, "{from} to {to} with {p2p} {pre_copy} is not refused");
                for (&a, &b) in way.iter().zip(way.iter().skip(1)) {
                    assert!(arcs.contains(&(a, b)), "{a} to {b} is no arc: {way:?}");
                }
                let steps = way.len() - 1;
                assert_eq!(Some(steps), shortest(from, to, &arcs), "{way:?}");
            }
        }
    }
}

#[test]
fn states_without_their_option_are_not_there() {
    for (p2p, pre_copy) in OPTIONS {
        assert_eq!(RunningP2p.supported(p2p, pre_copy), p2p);
        assert_eq!(PreCopy.supported(p2p, pre_copy), pre_copy);
        assert_eq!(PreCopyP2p.supported(p2p, pre_copy), p2p && pre_copy);
        for state in [Stop, Running, StopCopy, Resuming] {
            assert!(state.supported(p2p, pre_copy));
        }
        assert!(!Error.supported(p2p, pre_copy));
    }
}

#[test]
fn numbers_and_names_are_vfios() {
    let expected = [
        "ERROR",
        "STOP",
        "RUNNING",
        "STOP_COPY",
        "RESUMING",
        "RUNNING_P2P",
        "PRE_COPY",
        "PRE_COPY_P2P",
    ];
    for (number, (state, name)) in (0..).zip(State::ALL.into_iter().zip(expected)) {
        assert_eq!((state.number(), state.name()), (number, name));
        assert_eq!(State::from_number(number), Some(state));
        assert_eq!(state.to_string(), name);
    }
    assert_eq!(State::from_number(8), None);
    assert_eq!(State::from_number(u32::MAX), None);
}

#[test]
fn what_runs_and_what_saves() {
    let of = |is: fn(State) -> bool| State::ALL.into_iter().filter(move |state| is(*state));
    let running: Vec<_> = of(State::runs).collect();
    assert_eq!(running, [Running, RunningP2p, PreCopy, PreCopyP2p]);
    let saving: Vec<_> = of(State::saves).collect();
    assert_eq!(saving, [StopCopy, PreCopy, PreCopyP2p]);
    let pre: Vec<_> = of(State::pre_copies).collect();
    assert_eq!(pre, [PreCopy, PreCopyP2p]);
}
