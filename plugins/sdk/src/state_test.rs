use super::*;
use State::*;

const ALL: [State; 7] = [Stop, Running, StopCopy, Resuming, RunningP2p, PreCopy, PreCopyP2p];

fn format(p2p: bool, pre_copy: bool) -> StateFormat {
    StateFormat { version: 1, min_reader: 1, oldest_read: 1, p2p, pre_copy }
}

/// The arcs, as VFIO v2 lists them for a driver with these options.
#[test]
fn arcs_are_vfios() {
    let base = [(Resuming, Stop), (Stop, Resuming), (Stop, StopCopy), (StopCopy, Stop)];
    let expected = [
        (false, false, vec![(Running, Stop), (Stop, Running)]),
        (
            true,
            false,
            vec![
                (Running, RunningP2p),
                (RunningP2p, Running),
                (RunningP2p, Stop),
                (Stop, RunningP2p),
            ],
        ),
        (
            false,
            true,
            vec![
                (Running, Stop),
                (Stop, Running),
                (Running, PreCopy),
                (PreCopy, Running),
                (PreCopy, StopCopy),
            ],
        ),
        (
            true,
            true,
            vec![
                (Running, RunningP2p),
                (RunningP2p, Running),
                (RunningP2p, Stop),
                (Stop, RunningP2p),
                (Running, PreCopy),
                (PreCopy, Running),
                (PreCopy, PreCopyP2p),
                (PreCopyP2p, PreCopy),
                (RunningP2p, PreCopyP2p),
                (PreCopyP2p, RunningP2p),
                (PreCopyP2p, StopCopy),
            ],
        ),
    ];
    for (p2p, pre_copy, more) in expected {
        for from in ALL {
            for to in ALL {
                let listed = base.contains(&(from, to)) || more.contains(&(from, to));
                let has = format(p2p, pre_copy).has_arc(from, to);
                assert_eq!(has, listed, "{from:?} to {to:?} with {p2p} {pre_copy}");
            }
        }
    }
}

#[test]
fn numbers_are_vfios() {
    for state in ALL {
        assert_eq!(State::from_number(state.number()), Some(state));
    }
    let numbers = ALL.map(State::number);
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(State::from_number(0), None, "ERROR is never asked for");
    assert_eq!(State::from_number(8), None);
}

#[test]
fn flags_of_the_interface() {
    assert_eq!(format(false, false).flags(), 1);
    assert_eq!(format(true, false).flags(), 3);
    assert_eq!(format(false, true).flags(), 5);
    assert_eq!(format(true, true).flags(), 7);
}
