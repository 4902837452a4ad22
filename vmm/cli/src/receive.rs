//! `drogher receive`.

use std::io::ErrorKind;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use drogher_control::config::{Console, Partial, parse_size, parse_unix_address};
use drogher_control::process::Process;
use drogher_control::server::{listen, peer_is_us};
use drogher_machine::migration::{
    DestinationGuest, DestinationSetup, Expectations, TestHooks, Watch, receive as receive_guest,
};
use drogher_migrate::error::chain;
use drogher_migrate::{DestinationOptions, DestinationOutcome};

use crate::args::ReceiveArgs;
use crate::guest;

/// How often the wait for a source looks up.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// `drogher receive`: waits for a guest, and runs it until it ends or has moved on.
pub fn receive(args: &ReceiveArgs) -> anyhow::Result<u8> {
    let path = parse_unix_address(&args.listen)?;
    let setup = DestinationSetup {
        plugin_dirs: guest::plugin_dirs(&args.plugin_path)?,
        console: guest::console(&Console::from(args.console.as_str())),
        expected: expectations(args)?,
    };
    let hooks = TestHooks::from_env()?;
    let stop = crate::signals::stop_flag()?;
    let process = Process::new();
    let _server = guest::serve(args.control.as_deref(), &process)?;
    let listener = listen(&path)?;
    let stream = wait(&listener, &process, &stop);
    // One guest only: who comes later is refused by the operating system.
    drop(listener);
    let _ = std::fs::remove_file(&path);
    let Some(stream) = stream? else {
        eprintln!("drogher: ended before a guest came");
        return Ok(0);
    };
    process.incoming();
    let mut host = DestinationGuest::new(setup);
    let lease = args.lease.as_ref().map(std::path::absolute).transpose()?;
    let options = DestinationOptions { lease, ..DestinationOptions::default() };
    let watch = Watch::new(hooks, |_| {});
    let result = receive_guest(&mut host, stream, process.engine(), watch, &options);
    match result.outcome {
        DestinationOutcome::Runs { paused, told } => {
            let word = if paused { "has arrived, paused" } else { "runs here now" };
            let how = if told { "" } else { " (the link had broken; the lease has decided)" };
            eprintln!("drogher: the guest {word}{how}");
        }
        DestinationOutcome::NotTaken { why } => {
            bail!(
                "The guest did not come here; if its source lives, it runs there: {}",
                chain(&why)
            )
        }
        DestinationOutcome::Halted { why, epoch_moved } => {
            let why = why.map(|why| format!(" ({})", chain(&why))).unwrap_or_default();
            let epoch = if epoch_moved { ", its epoch has been raised" } else { "" };
            bail!("This side has halted: the lease is the source's again{epoch}{why}");
        }
        DestinationOutcome::Lost { why } => {
            bail!("The guest is lost: it was taken over here and could not start: {}", chain(&why))
        }
    }
    let guest = host.guest().context("The guest runs, but there is no machine")?;
    let lease = result.lease.context("The guest runs, but there is no lease")?;
    process.adopt(Arc::clone(&guest), lease);
    Ok(guest::supervise(&process, &stop))
}

fn expectations(args: &ReceiveArgs) -> anyhow::Result<Expectations> {
    let memory_bytes = args.memory.as_deref().map(parse_size).transpose()?;
    let partial = Partial { devices: args.devices.clone(), ..Partial::default() };
    let devices = partial.complete()?.devices;
    Ok(Expectations {
        memory_bytes,
        cpus: args.cpus,
        devices: (!devices.is_empty()).then_some(devices),
    })
}

/// Waits for a source of this user; none if somebody ends the wait.
fn wait(
    listener: &UnixListener,
    process: &Process,
    stop: &AtomicBool,
) -> anyhow::Result<Option<UnixStream>> {
    listener.set_nonblocking(true)?;
    while !stop.load(Ordering::Acquire) && !process.shutdown_asked() {
        match listener.accept() {
            Ok((stream, _)) if peer_is_us(&stream) => return Ok(Some(stream)),
            Ok(_) => eprintln!("drogher: a process of another user was turned away"),
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(LOOK_EVERY),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("Cannot wait for a source"),
        }
    }
    Ok(None)
}
