//! A hook for tests: do something drastic when a migration reaches a phase.
//!
//! `DROGHER_TEST_HOOK="source:ready=kill;destination:commit=cut"` names side, phase and action,
//! so that a test need not hit a phase by sleeping. Actions:
//!
//! - `kill`: SIGKILL to this process;
//! - `cut`: the link is shut down;
//! - `stop`: SIGSTOP to this process, until somebody sends SIGCONT;
//! - `wait:PATH`: makes `PATH.reached`, then waits until `PATH` exists, at most 30 s.
//!
//! Each entry fires once, the first time that its phase is reached.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use drogher_migrate::phase::{Phase, Side};
use rustix::process::{Signal, getpid, kill_process};

/// The environment variable that holds the hooks.
pub const VARIABLE: &str = "DROGHER_TEST_HOOK";

/// How long `wait:PATH` waits.
const WAIT_DEADLINE: Duration = Duration::from_secs(30);

/// A hook that can't be understood.
#[derive(Debug, thiserror::Error)]
#[error(
    "{VARIABLE}: {0:?} is not of the form source|destination:PHASE=kill|cut|stop|wait:PATH with a known phase"
)]
pub struct HookError(String);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    Kill,
    Cut,
    Stop,
    Wait(PathBuf),
}

#[derive(Debug)]
struct Entry {
    side: Side,
    phase: Phase,
    action: Action,
    fired: bool,
}

/// The hooks of this process; usually none.
#[derive(Debug, Default)]
pub struct TestHooks {
    entries: Vec<Entry>,
}

impl TestHooks {
    /// The hooks that the environment names.
    ///
    /// # Errors
    /// When an entry can't be understood.
    pub fn from_env() -> Result<Self, HookError> {
        match std::env::var(VARIABLE) {
            Ok(text) => text.parse(),
            Err(_) => Ok(Self::default()),
        }
    }

    /// Does what was asked for when `side` reaches `phase`.
    pub fn reached(&mut self, side: Side, phase: Phase, link: Option<&UnixStream>) {
        let due = self
            .entries
            .iter_mut()
            .find(|entry| !entry.fired && entry.side == side && entry.phase == phase);
        let Some(entry) = due else { return };
        entry.fired = true;
        match &entry.action {
            Action::Kill => signal_self(Signal::KILL),
            Action::Stop => signal_self(Signal::STOP),
            Action::Cut => {
                if let Some(link) = link {
                    // Cutting a link that is already cut is no news.
                    let _ = link.shutdown(std::net::Shutdown::Both);
                }
            }
            Action::Wait(path) => wait_for(path),
        }
    }
}

fn signal_self(signal: Signal) {
    if let Err(error) = kill_process(getpid(), signal) {
        tracing::error!(%error, "{VARIABLE}: this process cannot signal itself");
    }
}

fn wait_for(path: &Path) {
    let mut reached = path.as_os_str().to_owned();
    reached.push(".reached");
    if let Err(error) = File::create(&reached) {
        tracing::error!(%error, path = %path.display(), "{VARIABLE}: cannot mark the phase");
    }
    let end = Instant::now() + WAIT_DEADLINE;
    while !path.exists() {
        if Instant::now() >= end {
            tracing::error!(path = %path.display(), "{VARIABLE}: nobody made the file in time");
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl FromStr for TestHooks {
    type Err = HookError;

    fn from_str(text: &str) -> Result<Self, HookError> {
        let entries = text
            .split(';')
            .filter(|entry| !entry.trim().is_empty())
            .map(|entry| parse(entry.trim()).ok_or_else(|| HookError(entry.to_owned())))
            .collect::<Result<_, _>>()?;
        Ok(Self { entries })
    }
}

fn parse(entry: &str) -> Option<Entry> {
    let (place, action) = entry.split_once('=')?;
    let (side, phase) = place.split_once(':')?;
    let side = match side {
        "source" => Side::Source,
        "destination" => Side::Destination,
        _ => return None,
    };
    let action = match action {
        "kill" => Action::Kill,
        "cut" => Action::Cut,
        "stop" => Action::Stop,
        other => Action::Wait(PathBuf::from(other.strip_prefix("wait:")?)),
    };
    let phase = Phase::ALL.into_iter().find(|known| known.name() == phase)?;
    Some(Entry { side, phase, action, fired: false })
}

#[cfg(test)]
#[path = "hook_test.rs"]
mod tests;
