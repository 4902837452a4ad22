//! What `run` and `receive` share: where plugins are, the console, the control socket, the end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, ensure};
use drogher_control::config::Console;
use drogher_control::process::{Process, ProcessControl};
use drogher_control::server::Server;
use drogher_machine::console::ConsoleConfig;

use crate::terminal::{self, Terminal};
use crate::words;

/// How long answers on the control socket may take to leave when the process ends.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A control socket whose last answers are sent before it goes.
pub struct Serving(Server);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.drain(LAST_WORDS);
    }
}

/// Serves `process` at `path`, if there is one.
pub fn serve(path: Option<&Path>, process: &Arc<Process>) -> anyhow::Result<Option<Serving>> {
    let Some(path) = path else { return Ok(None) };
    let server = Server::start(path, Arc::new(ProcessControl(Arc::clone(process))))?;
    Ok(Some(Serving(server)))
}

/// Where plugins are looked up: beside this binary, then where the user says.
pub fn plugin_dirs(more: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let exe = std::env::current_exe().context("Cannot find this binary's own folder")?;
    let own = exe.parent().map(Path::to_owned);
    Ok(own.into_iter().chain(more.iter().cloned()).collect())
}

/// A lease's absolute path. It goes to the other side as JSON, so it has to be UTF-8.
pub fn lease_path(path: &Path) -> anyhow::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    ensure!(
        path.to_str().is_some(),
        "The path of the lease {} is not UTF-8, and could not be told to the other side of a \
         migration; name another file with --lease",
        path.display()
    );
    Ok(path)
}

/// The machine's word for a console, and the terminal that it is on, if so. `stop` is set when the
/// user ends the guest from there.
pub fn console(
    console: &Console,
    stop: &Arc<AtomicBool>,
) -> anyhow::Result<(ConsoleConfig, Option<Terminal>)> {
    match console {
        Console::Stdio => terminal::console(stop),
        Console::File(path) => Ok((ConsoleConfig::File(path.clone()), None)),
        Console::None => Ok((ConsoleConfig::None, None)),
    }
}

/// Watches the guest until it ends or has moved away, says how on standard error, and returns the
/// exit status. Meanwhile the keys of its terminal are the guest's.
pub fn supervise(process: &Process, stop: &AtomicBool, mut terminal: Option<Terminal>) -> u8 {
    if let Some(terminal) = &mut terminal {
        terminal.begin();
    }
    let end = process.supervise(stop);
    drop(terminal);
    words::say(&end.message);
    end.code
}
