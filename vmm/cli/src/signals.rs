//! Signals as flags: what ends a process, and what must not.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, ensure};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;

/// Names the process with which this one is to die, by its id; `demo` sets it for its guests.
pub const DIE_WITH: &str = "DROGHER_DIE_WITH_PARENT";

/// A flag that is set by SIGINT (Ctrl-C), SIGTERM and SIGHUP; a further one while it is set ends the
/// process at once. A SIGHUP that was ignored from the start (`nohup`) stays so.
///
/// # Errors
/// When the handlers can't be installed.
pub fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let hangup = (!is_ignored(SIGHUP)).then_some(SIGHUP);
    for signal in [SIGINT, SIGTERM].into_iter().chain(hangup) {
        // In this order: the first signal only sets the flag, the next finds it set.
        flag::register_conditional_shutdown(signal, 128 + 2, Arc::clone(&stop))
            .and_then(|_| flag::register(signal, Arc::clone(&stop)))
            .context("Cannot watch for Ctrl-C")?;
    }
    Ok(stop)
}

/// True for a signal that whoever started this process has let it ignore.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}

/// Lets a write beyond the file size limit (RLIMIT_FSIZE) fail with EFBIG instead of killing the
/// process.
///
/// # Errors
/// When the handler can't be installed.
pub fn survive_file_limit() -> anyhow::Result<()> {
    // A handler that does next to nothing: to be ignored, a signal would need unsafe code.
    flag::register(SIGXFSZ, Arc::default()).context("Cannot handle SIGXFSZ")?;
    Ok(())
}

/// Dies with the process that [`DIE_WITH`] names, if it does.
///
/// # Errors
/// When that process has gone already.
pub fn die_with_parent() -> anyhow::Result<()> {
    let Some(parent) = std::env::var_os(DIE_WITH) else { return Ok(()) };
    set_parent_process_death_signal(Some(Signal::KILL))
        .with_context(|| format!("{DIE_WITH}: cannot follow the parent process"))?;
    // It may have died before.
    let now = getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    ensure!(
        parent.to_str() == Some(&now.to_string()),
        "{DIE_WITH} names process {}, and the parent of this one is {now}",
        parent.display()
    );
    Ok(())
}
