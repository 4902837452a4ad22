//! The VFIO v2 device states and their direct arcs.

use drogher_plugin_abi as abi;

/// A migration state. ERROR is not among them: a device in ERROR is not called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing runs: no DMA, no interrupt, no change inside.
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
    /// The device runs in this state: answers registers, may do DMA (unless NDMA).
    pub fn runs(self) -> bool {
        matches!(self, State::Running | State::RunningP2p | State::PreCopy | State::PreCopyP2p)
    }

    /// A session of reading state is open in this state.
    pub fn saves(self) -> bool {
        matches!(self, State::PreCopy | State::PreCopyP2p | State::StopCopy)
    }

    /// State is read while the device runs.
    pub fn pre_copies(self) -> bool {
        matches!(self, State::PreCopy | State::PreCopyP2p)
    }

    pub(crate) fn number(self) -> u32 {
        match self {
            State::Stop => abi::DROGHER_STATE_STOP,
            State::Running => abi::DROGHER_STATE_RUNNING,
            State::StopCopy => abi::DROGHER_STATE_STOP_COPY,
            State::Resuming => abi::DROGHER_STATE_RESUMING,
            State::RunningP2p => abi::DROGHER_STATE_RUNNING_P2P,
            State::PreCopy => abi::DROGHER_STATE_PRE_COPY,
            State::PreCopyP2p => abi::DROGHER_STATE_PRE_COPY_P2P,
        }
    }

    pub(crate) fn from_number(number: u32) -> Option<State> {
        Some(match number {
            abi::DROGHER_STATE_STOP => State::Stop,
            abi::DROGHER_STATE_RUNNING => State::Running,
            abi::DROGHER_STATE_STOP_COPY => State::StopCopy,
            abi::DROGHER_STATE_RESUMING => State::Resuming,
            abi::DROGHER_STATE_RUNNING_P2P => State::RunningP2p,
            abi::DROGHER_STATE_PRE_COPY => State::PreCopy,
            abi::DROGHER_STATE_PRE_COPY_P2P => State::PreCopyP2p,
            _ => return None,
        })
    }
}

/// What a device's migration can do and the versions of its state format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateFormat {
    /// Version of the format that is written; at least 1.
    pub version: u32,
    /// Lowest version of a reader that understands what is written.
    pub min_reader: u32,
    /// Oldest version that is read.
    pub oldest_read: u32,
    /// Has the P2P states.
    pub p2p: bool,
    /// Has the pre-copy states.
    pub pre_copy: bool,
}

impl StateFormat {
    /// Is `from` to `to` an arc that the host may ask for?
    pub(crate) fn has_arc(&self, from: State, to: State) -> bool {
        use State::*;
        match (from, to) {
            (Stop, StopCopy) | (StopCopy, Stop) | (Stop, Resuming) | (Resuming, Stop) => true,
            (Stop, Running) | (Running, Stop) => !self.p2p,
            (Stop, RunningP2p) | (RunningP2p, Stop) => self.p2p,
            (Running, RunningP2p) | (RunningP2p, Running) => self.p2p,
            (Running, PreCopy) | (PreCopy, Running) => self.pre_copy,
            (PreCopy, StopCopy) => self.pre_copy && !self.p2p,
            (PreCopy, PreCopyP2p)
            | (PreCopyP2p, PreCopy)
            | (RunningP2p, PreCopyP2p)
            | (PreCopyP2p, RunningP2p)
            | (PreCopyP2p, StopCopy) => self.pre_copy && self.p2p,
            _ => false,
        }
    }

    pub(crate) const fn flags(&self) -> u32 {
        abi::DROGHER_MIGRATION_STOP_COPY
            | if self.p2p { abi::DROGHER_MIGRATION_P2P } else { 0 }
            | if self.pre_copy { abi::DROGHER_MIGRATION_PRE_COPY } else { 0 }
    }
}

/// How much there is to read in a pre-copy state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrecopyInfo {
    /// Bytes of the first part still to be read; falls as it is read.
    pub initial_bytes: u64,
    /// Estimate of what changed since it was read.
    pub dirty_bytes: u64,
}

/// The outcome of reading state data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// So many bytes, more than 0, are in the buffer.
    Bytes(usize),
    /// Pre-copy: nothing more for now.
    NoMoreNow,
    /// STOP_COPY: the end.
    End,
}

#[cfg(test)]
#[path = "state_test.rs"]
mod tests;
