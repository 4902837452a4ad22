//! `drogher`: boots test guests with plugin devices, and moves them, running, between processes.
#![forbid(unsafe_code)]
// `words` says things, and cannot fail or panic.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod args;
mod demo;
mod explain;
mod guest;
mod migrate;
mod params;
mod plugin;
mod progress;
mod receive;
mod requests;
mod run;
mod signals;
mod terminal;
mod trackers;
mod tracking;
mod waiting;
mod words;

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use clap::Parser;
use drogher_plugin_host::{Plugin, end_if_loading_hangs, exit_now};

use args::{Cli, Command, PluginCommand};

/// Longest time from a plugin that hangs while it is loaded to the end of the process.
const ORDERLY_END: Duration = Duration::from_secs(2);

fn main() -> ! {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("DROGHER_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn")),
        )
        .with_writer(|| words::Stderr)
        .log_internal_errors(false)
        .without_time()
        .with_target(false)
        .init();
    words::speak_for_panics();
    // Plugins are loaded before there is a guest. While the loading of one hangs, no code can rely on
    // coming back here.
    if let Err(error) = end_if_loading_hangs(ORDERLY_END, 1) {
        words::say(format_args!("Cannot start a thread: {error}"));
        exit_now(1);
    }
    // Nothing of a command is used after its panic.
    let result = catch_unwind(AssertUnwindSafe(|| execute(cli.command)));
    let result = result.unwrap_or_else(|_| Err(anyhow::anyhow!("Internal error, as said above")));
    let code = result.unwrap_or_else(|error| {
        words::say(format_args!("{error:#}"));
        1
    });
    Plugin::deinit_all();
    let _ = std::io::stdout().flush();
    // Not by returning: a plugin that is stuck, or whose destructors are, would keep the process.
    exit_now(code)
}

fn execute(command: Command) -> anyhow::Result<u8> {
    anyhow::ensure!(
        cfg!(feature = "mutants") || std::env::var_os("DROGHER_MUTANT").is_none(),
        "DROGHER_MUTANT is set, and this build has no mutants: \
         use one that scripts/mutants has made, target/mutants/debug/drogher"
    );
    signals::survive_file_limit()?;
    signals::die_with_parent()?;
    match command {
        Command::Run(args) => run::run(*args),
        Command::Receive(args) => receive::receive(&args),
        Command::Migrate(args) => migrate::migrate(&args),
        Command::Status(args) => requests::status(&args),
        Command::Abort(args) => requests::post(&args, "/v1/abort"),
        Command::Pause(args) => requests::post(&args, "/v1/pause"),
        Command::Resume(args) => requests::post(&args, "/v1/resume"),
        Command::Powerdown(args) => requests::post(&args, "/v1/powerdown"),
        Command::Shutdown(args) => requests::post(&args, "/v1/shutdown"),
        Command::Explain(args) => explain::explain(*args),
        Command::Tracking(args) => tracking::tracking(&args),
        Command::Params(command) => params::params(&command),
        Command::Plugin(PluginCommand::Info { file }) => plugin::info(&file),
        Command::Demo(args) => demo::demo(&args),
        Command::Trackers(args) => trackers::trackers(&args),
    }
}
