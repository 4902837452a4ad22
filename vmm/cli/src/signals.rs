//! Ctrl-C and SIGTERM as a flag. A second one ends the process at once.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// A flag that is set by SIGINT and SIGTERM.
///
/// # Errors
/// When the handlers can't be installed.
pub fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal only sets the flag, the next finds it set.
        flag::register_conditional_shutdown(signal, 128 + 2, Arc::clone(&stop))
            .and_then(|_| flag::register(signal, Arc::clone(&stop)))
            .context("Cannot watch for Ctrl-C")?;
    }
    Ok(stop)
}
