//! `drogher receive`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use drogher_control::config::{Console, Partial, parse_unix_address};
use drogher_control::process::Process;
use drogher_control::socket::listen;
use drogher_machine::migration::{
    DestinationGuest, DestinationSetup, Expectations, TestHooks, Watch, receive as receive_guest,
};
use drogher_machine::tracking::Wishes;
use drogher_migrate::error::chain;
use drogher_migrate::{
    DestinationEnd, DestinationOptions, DestinationOutcome, Lease, LeaseError, Request,
};
use drogher_plugin_host::Plugin;

use crate::args::ReceiveArgs;
use crate::{guest, waiting, words};

/// How often signals are looked at while a guest arrives.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How often a lease that is being written at this moment is read again.
const LEASE_TRIES: u32 = 10;

/// `drogher receive`: waits for a guest, and runs it until it ends or has moved on.
pub fn receive(args: &ReceiveArgs) -> anyhow::Result<u8> {
    // All that can be wrong on this side alone is found before it listens.
    let path = parse_unix_address(&args.listen)?;
    let hooks = TestHooks::from_env()?;
    let plugin_dirs = guest::plugin_dirs(&args.plugin_path)?;
    let expected = expectations(args, &plugin_dirs)?;
    let lease = args.lease.as_deref().map(existing_lease).transpose()?;
    let stop = crate::signals::stop_flag()?;
    let console = Console::from(args.console.as_str());
    let (console, terminal) = guest::console(&console, &stop)?;
    let setup = DestinationSetup {
        plugin_dirs,
        console: console.opened()?,
        lease: lease.clone(),
        expected,
    };
    let mut host = DestinationGuest::new(setup);
    let process = Process::waiting();
    let _server = guest::serve(args.control.as_deref(), &process)?;
    let (listener, name) = listen(&path)?;
    let stream =
        waiting::wait(&listener, || stop.load(Ordering::Acquire) || process.shutdown_asked());
    // One guest only: who comes later is refused by the operating system. The name goes first, while
    // nobody else can have it.
    drop(name);
    drop(listener);
    let Some(stream) = stream? else {
        words::say("ended before a guest came");
        return Ok(0);
    };
    process.incoming();
    let options = DestinationOptions { lease, ..DestinationOptions::default() };
    let asked = Asked { process: Arc::clone(&process), stop: Arc::clone(&stop) };
    let result = asked.while_heeding(|asked| {
        let watch = Watch::new(hooks, move |_| asked.heed());
        receive_guest(&mut host, stream, process.engine(), watch, &options)
    });
    let arrived = take(&process, &host, result, &args.tracking.wishes())?;
    // The guest is safe before anything is said of it.
    words::say(arrived);
    // A signal that came before READY was heeded. One that came later would cost a guest that was on
    // its way when it was sent.
    if stop.swap(false, Ordering::AcqRel) {
        words::say("the signal came too late to send the guest back; one more shuts it down");
    }
    Ok(guest::supervise(&process, &stop, terminal))
}

/// Who may ask for an end while a guest arrives.
#[derive(Clone)]
struct Asked {
    process: Arc<Process>,
    stop: Arc<AtomicBool>,
}

impl Asked {
    /// Gives the migration up if somebody has asked for an end. Once READY has been said that is too
    /// late, and changes nothing.
    fn heed(&self) {
        if self.stop.load(Ordering::Acquire) || self.process.shutdown_asked() {
            let _ = self.process.engine().ask(Request::Abort);
        }
    }

    /// Runs `work` and heeds requests meanwhile: again and again, since an engine that has not begun
    /// hears nothing. `work` has to heed them at each of its events too, so that none is missed.
    fn while_heeding(&self, work: impl FnOnce(Self) -> DestinationEnd) -> DestinationEnd {
        let over = Arc::new(AtomicBool::new(false));
        let (ours, asked) = (Arc::clone(&over), self.clone());
        let thread = std::thread::Builder::new().name("signals".into()).spawn(move || {
            while !ours.load(Ordering::Acquire) {
                asked.heed();
                std::thread::park_timeout(LOOK_EVERY);
            }
        });
        let end = work(self.clone());
        over.store(true, Ordering::Release);
        // Without a thread, the events alone have had to do.
        if let Ok(thread) = thread {
            thread.thread().unpark();
        }
        end
    }
}

/// Adopts the guest that has arrived, and says so; or says why none has.
fn take(
    process: &Process,
    host: &DestinationGuest,
    result: DestinationEnd,
    wishes: &Wishes,
) -> anyhow::Result<String> {
    match result.outcome {
        DestinationOutcome::Runs { paused, told } => {
            let guest = host.guest().context("The guest runs, but there is no machine")?;
            let lease = result.lease.context("The guest runs, but there is no lease")?;
            // It runs: a name that is none must not cost it.
            if let Err(error) = guest.set_wishes(wishes) {
                words::say(chain(&error));
            }
            process.adopt(guest, lease);
            let word = if paused { "has arrived, paused" } else { "runs here now" };
            let how = if told { "" } else { " (the link had broken; the lease has decided)" };
            Ok(format!("the guest {word}{how}"))
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
}

/// What the flags say of the guest, checked as for a guest of this side.
fn expectations(args: &ReceiveArgs, plugin_dirs: &[PathBuf]) -> anyhow::Result<Expectations> {
    let partial = Partial {
        memory: args.memory.clone(),
        cpus: args.cpus,
        devices: args.devices.clone(),
        ..Partial::default()
    };
    let config = partial.complete()?;
    for device in &config.devices {
        Plugin::find(&device.name_or_path, plugin_dirs)?;
    }
    Ok(Expectations {
        memory_bytes: args.memory.as_ref().map(|_| config.memory_bytes),
        cpus: args.cpus,
        devices: (!config.devices.is_empty()).then_some(config.devices),
    })
}

/// The path of a lease that has to be there.
fn existing_lease(path: &Path) -> anyhow::Result<PathBuf> {
    let path = guest::lease_path(path)?;
    let mut tries = 1;
    loop {
        match Lease::open(&path) {
            Ok(_) => return Ok(path),
            // Its holder may be writing it.
            Err(LeaseError::NotALease { .. }) if tries < LEASE_TRIES => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => return Err(error.into()),
        }
    }
}
