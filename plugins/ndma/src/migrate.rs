//! The migration states: which of them let the worker run, and the session that each opens.
//!
//! | state | takes descriptors | session |
//! |---|---|---|
//! | RUNNING | yes | |
//! | PRE_COPY | yes | save |
//! | RUNNING_P2P | no | |
//! | PRE_COPY_P2P | no | save |
//! | STOP | no | |
//! | STOP_COPY | no | save |
//! | RESUMING | no | load |
//!
//! The P2P states forbid new accesses to other devices only. To this device an IOVA is an IOVA: it
//! cannot tell another device's BAR from RAM, so in these states it starts no descriptor at all.
//! There is nothing else of peer-to-peer in it to finish.

use drogher_plugin_sdk::{Failure, PrecopyInfo, Read, State};

use crate::format::{HEADER_BYTES, SCRATCH_BYTES, SECTION_BYTES, TAIL_BYTES};
use crate::load::{Load, LoadError};
use crate::ops::lock;
use crate::save::Save;
use crate::worker::{NotParked, Shared};

/// The transfer of state that is going on.
#[derive(Debug)]
pub enum Session {
    /// None.
    None,
    /// State is read.
    Save(Save),
    /// State is written.
    Load(Load),
    /// What was written is wrong; only a reset leads on from here.
    Refused(LoadError),
}

/// True if the device takes descriptors in this state (and NDMA was not entered).
#[must_use]
pub fn takes_descriptors(state: State) -> bool {
    matches!(state, State::Running | State::PreCopy)
}

/// Goes one arc. On return the change is complete: if the new state takes no descriptors, the
/// worker is parked, and there is no access and no interrupt until a state that does.
///
/// # Errors
/// The worker does not park, or the state that was loaded is wrong; the old state is kept.
pub fn set_state(
    shared: &Shared,
    session: &mut Session,
    from: State,
    to: State,
) -> Result<(), Failure> {
    if from == State::Resuming {
        commit(shared, session)?;
    }
    let runs = takes_descriptors(to);
    if runs || !crate::mutant("stop-not-quiesced") {
        shared.while_idle(|inner| inner.running = runs).map_err(not_parked)?;
    }
    if to == State::Resuming {
        *session = Session::Load(Load::new(lock(&shared.scratch).pages()));
    } else if !to.saves() {
        *session = Session::None;
    } else if !from.saves() {
        *session = Session::Save(Save::default());
    }
    Ok(())
}

/// Checks what was written as a whole, then lets the device have it.
fn commit(shared: &Shared, session: &mut Session) -> Result<(), Failure> {
    let finished = match std::mem::replace(session, Session::None) {
        Session::Load(load) => load.finish(),
        Session::Refused(error) => Err(error),
        Session::None | Session::Save(_) => return Err(Failure::not_allowed("Nothing is loaded")),
    };
    match finished {
        Ok(loaded) => {
            // The size was checked against the header.
            lock(&shared.scratch).replace(loaded.scratch);
            shared.with(|inner| (inner.regs, inner.window) = (loaded.regs, loaded.window));
            Ok(())
        }
        Err(error) => Err(refuse(session, error)),
    }
}

/// Takes more of a saved state.
///
/// # Errors
/// No state is being loaded, or it is wrong.
pub fn write(session: &mut Session, data: &[u8]) -> Result<(), Failure> {
    let error = match session {
        Session::Load(load) => match load.write(data) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        },
        Session::Refused(error) => error.clone(),
        Session::None | Session::Save(_) => {
            return Err(Failure::not_allowed("No state is being loaded"));
        }
    };
    Err(refuse(session, error))
}

fn refuse(session: &mut Session, error: LoadError) -> Failure {
    let failure = Failure::invalid(error.to_string());
    *session = Session::Refused(error);
    failure
}

/// Reads more of the state. `stopped`: in STOP_COPY.
///
/// # Errors
/// No state is being saved.
pub fn read(
    shared: &Shared,
    session: &mut Session,
    stopped: bool,
    out: &mut [u8],
) -> Result<Read, Failure> {
    Ok(saving(session)?.read(shared, stopped, out))
}

/// What is there to read before the device stops.
///
/// # Errors
/// No state is being saved.
pub fn precopy_info(shared: &Shared, session: &mut Session) -> Result<PrecopyInfo, Failure> {
    Ok(saving(session)?.remaining(shared))
}

fn saving(session: &mut Session) -> Result<&mut Save, Failure> {
    match session {
        Session::Save(save) => Ok(save),
        _ => Err(Failure::not_allowed("No state is being saved")),
    }
}

/// Bytes that STOP_COPY would give if the device stopped now: exact once it has.
#[must_use]
pub fn stop_copy_size(shared: &Shared, session: &Session) -> u64 {
    if let Session::Save(save) = session {
        return save.size(shared);
    }
    let pages = lock(&shared.scratch).pages();
    let sections = pages.saturating_mul(SECTION_BYTES + SCRATCH_BYTES);
    sections.saturating_add(HEADER_BYTES + TAIL_BYTES) as u64
}

/// The worker's refusal as a failure that the host understands.
pub fn not_parked(error: NotParked) -> Failure {
    Failure::io(error.to_string())
}

#[cfg(test)]
#[path = "migrate_test.rs"]
mod tests;
