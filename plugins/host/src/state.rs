//! The VFIO v2 device states and the way from one to another.

use drogher_plugin_abi as abi;
use std::fmt;

/// A device's migration state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Broken; left by reset only.
    Error,
    /// Nothing runs.
    Stop,
    /// Runs.
    Running,
    /// Stopped, state is read.
    StopCopy,
    /// Stopped, state is written.
    Resuming,
    /// Runs, starts no access to other devices.
    RunningP2p,
    /// Runs, state is read in advance.
    PreCopy,
    /// Both.
    PreCopyP2p,
}

impl State {
    /// All states, by number.
    pub const ALL: [State; 8] = [
        State::Error,
        State::Stop,
        State::Running,
        State::StopCopy,
        State::Resuming,
        State::RunningP2p,
        State::PreCopy,
        State::PreCopyP2p,
    ];

    /// VFIO's number.
    pub fn number(self) -> u32 {
        match self {
            State::Error => abi::DROGHER_STATE_ERROR,
            State::Stop => abi::DROGHER_STATE_STOP,
            State::Running => abi::DROGHER_STATE_RUNNING,
            State::StopCopy => abi::DROGHER_STATE_STOP_COPY,
            State::Resuming => abi::DROGHER_STATE_RESUMING,
            State::RunningP2p => abi::DROGHER_STATE_RUNNING_P2P,
            State::PreCopy => abi::DROGHER_STATE_PRE_COPY,
            State::PreCopyP2p => abi::DROGHER_STATE_PRE_COPY_P2P,
        }
    }

    /// The state of a number.
    pub fn from_number(number: u32) -> Option<State> {
        State::ALL.into_iter().find(|state| state.number() == number)
    }

    /// The device runs: it answers registers and may do DMA (unless NDMA was entered).
    pub fn runs(self) -> bool {
        matches!(self, State::Running | State::RunningP2p | State::PreCopy | State::PreCopyP2p)
    }

    /// The device may write to other devices (unless NDMA was entered).
    pub fn reaches_peers(self) -> bool {
        matches!(self, State::Running | State::PreCopy)
    }

    /// State can be read.
    pub fn saves(self) -> bool {
        matches!(self, State::PreCopy | State::PreCopyP2p | State::StopCopy)
    }

    /// State can be read while the device runs.
    pub fn pre_copies(self) -> bool {
        matches!(self, State::PreCopy | State::PreCopyP2p)
    }

    /// VFIO's name.
    pub fn name(self) -> &'static str {
        match self {
            State::Error => "ERROR",
            State::Stop => "STOP",
            State::Running => "RUNNING",
            State::StopCopy => "STOP_COPY",
            State::Resuming => "RESUMING",
            State::RunningP2p => "RUNNING_P2P",
            State::PreCopy => "PRE_COPY",
            State::PreCopyP2p => "PRE_COPY_P2P",
        }
    }

    /// A device with these options has this state.
    pub(crate) fn supported(self, p2p: bool, pre_copy: bool) -> bool {
        match self {
            State::Error => false,
            State::Stop | State::Running | State::StopCopy | State::Resuming => true,
            State::RunningP2p => p2p,
            State::PreCopy => pre_copy,
            State::PreCopyP2p => p2p && pre_copy,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One step of VFIO v2's shortest paths with all options; `None` where the path is refused.
fn step(from: State, to: State) -> Option<State> {
    use State::*;
    Some(match (from, to) {
        (Error, _) | (_, Error) => return None,
        (Stop, StopCopy | Resuming | RunningP2p) => to,
        (Stop, Running | PreCopy | PreCopyP2p) => RunningP2p,
        (Running, RunningP2p | PreCopy) => to,
        (Running, Stop | StopCopy | Resuming | PreCopyP2p) => RunningP2p,
        (StopCopy, PreCopy | PreCopyP2p) => return None,
        (StopCopy | Resuming, _) => Stop,
        (RunningP2p, Stop | Running | PreCopyP2p) => to,
        (RunningP2p, StopCopy | Resuming) => Stop,
        (RunningP2p, PreCopy) => Running,
        (PreCopy, Running | PreCopyP2p) => to,
        (PreCopy, StopCopy) => PreCopyP2p,
        (PreCopy, Stop | Resuming | RunningP2p) => Running,
        (PreCopyP2p, StopCopy | RunningP2p | PreCopy) => to,
        (PreCopyP2p, Stop | Running | Resuming) => RunningP2p,
        (Stop, Stop) | (Running, Running) | (RunningP2p, RunningP2p) => to,
        (PreCopy, PreCopy) | (PreCopyP2p, PreCopyP2p) => to,
    })
}

/// The next state on the way of a device with these options: states that it lacks are skipped.
/// `None` if there is no way.
pub(crate) fn next(from: State, to: State, p2p: bool, pre_copy: bool) -> Option<State> {
    if !from.supported(p2p, pre_copy) || !to.supported(p2p, pre_copy) {
        return None;
    }
    let mut state = step(from, to)?;
    // Each step comes nearer to `to`, which is supported: bounded by the number of states.
    for _ in State::ALL {
        if state.supported(p2p, pre_copy) {
            return Some(state);
        }
        state = step(state, to)?;
    }
    None
}

#[cfg(test)]
#[path = "state_test.rs"]
mod tests;
