//! One process and its guest: who owns the machine, the lease and a migration, and how it ends.
//!
//! The main thread watches the guest in [`Process::supervise`]; requests arrive on control
//! threads; a migration has a thread of its own, which borrows the lease while it lasts.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use drogher_machine::events::GuestEvent;
use drogher_machine::migration::{Guest, TestHooks, Watch, send};
use drogher_migrate::control::{Control as Engine, Request};
use drogher_migrate::error::chain;
use drogher_migrate::{GuestEnd, HeldLease, SourceEnd, SourceOutcome};

use crate::api::{GuestState, MigrateLine, MigrateRequest, Outcome, Refusal, Status, VmStatus};
use crate::config::parse_unix_address;
use crate::lease_path;
use crate::server::Control;

/// How often the main thread looks up from the guest.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Longest time for a migration to end once it has been told to; its own deadlines are shorter.
const MIGRATION_END: Duration = Duration::from_secs(120);

/// How a process ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Exit status.
    pub code: u8,
    /// In words, for standard error.
    pub message: String,
}

impl End {
    fn good(message: impl Into<String>) -> Self {
        Self { code: 0, message: message.into() }
    }

    fn bad(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }
}

#[derive(Default)]
struct Inner {
    guest: Option<Arc<Guest>>,
    incoming: bool,
    /// Here unless a migration has borrowed it, or it is gone.
    lease: Option<HeldLease>,
    migrating: bool,
    shutdown: bool,
    /// Set by a migration after which this process has nothing left to do.
    end: Option<End>,
}

/// The state of one process. Shared by its threads.
#[derive(Default)]
pub struct Process {
    inner: Mutex<Inner>,
    changed: Condvar,
    engine: Engine,
}

impl Process {
    /// A process without a guest.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    // Whole at any time: a panic elsewhere cannot have torn it.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The user's hand on this process's migration.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// A guest is arriving: a source has connected.
    pub fn incoming(&self) {
        self.inner().incoming = true;
    }

    /// The guest is here and runs, or is paused, under `lease`.
    pub fn adopt(&self, guest: Arc<Guest>, lease: HeldLease) {
        let mut inner = self.inner();
        inner.incoming = false;
        inner.guest = Some(guest);
        inner.lease = Some(lease);
    }

    /// True once somebody has asked for the end of this process over the control socket.
    #[must_use]
    pub fn shutdown_asked(&self) -> bool {
        self.inner().shutdown
    }

    /// Watches the guest until it has ended, moved away, or `stop` is set (by a signal).
    pub fn supervise(&self, stop: &AtomicBool) -> End {
        let Some(guest) = self.inner().guest.clone() else {
            return End::bad("There is no guest to watch");
        };
        loop {
            if let Some(event) = guest.wait_event(LOOK_EVERY) {
                let (how, end) = match event {
                    GuestEvent::Shutdown => (GuestEnd::Shutdown, End::good("The guest shut down")),
                    GuestEvent::Reset => {
                        (GuestEnd::Reset, End::good("The guest reset itself, which ends it here"))
                    }
                    GuestEvent::TripleFault { report } | GuestEvent::InternalError { report } => {
                        (GuestEnd::Crash, End::bad(report))
                    }
                };
                self.engine.guest_ended(how);
                return self.finish(&guest, end);
            }
            if let Some(end) = self.inner().end.take() {
                return end;
            }
            if stop.load(Ordering::Acquire) || self.shutdown_asked() {
                // Too late is no trouble: then the migration itself says how this ends.
                let _ = self.engine.ask(Request::Shutdown);
                return self.finish(&guest, End::good("The guest was shut down on request"));
            }
        }
    }

    /// Ends the guest here, unless a migration has taken it away meanwhile.
    fn finish(&self, guest: &Guest, end: End) -> End {
        let until = Instant::now() + MIGRATION_END;
        let mut inner = self.inner();
        while inner.migrating {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return End::bad("The migration did not end in time");
            }
            inner =
                self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        if let Some(end) = inner.end.take() {
            return end;
        }
        let lease = inner.lease.take();
        drop(inner);
        let mut end = end;
        if let Err(error) = guest.end() {
            end = End::bad(format!("{}\nThe guest did not stop: {}", end.message, chain(&error)));
        }
        if let Some(lease) = lease {
            let remove = lease_path::is_ours(&lease.identity().path);
            if let Err(error) = lease.finish(remove) {
                end.message = format!("{}\n{}", end.message, chain(&error));
            }
        }
        end
    }

    fn guest(&self) -> Result<Arc<Guest>, Refusal> {
        self.inner().guest.clone().ok_or_else(|| Refusal("There is no guest here yet".into()))
    }

    /// The lease, for a migration that begins.
    fn lend_lease(&self) -> Result<HeldLease, Refusal> {
        let mut inner = self.inner();
        if inner.migrating {
            return Err(Refusal("A migration is going on already; abort it first".into()));
        }
        let lease = inner.lease.take();
        let lease = lease.ok_or_else(|| Refusal("The guest does not run here".into()))?;
        inner.migrating = true;
        Ok(lease)
    }

    /// The migration has not begun after all.
    fn give_lease_back(&self, lease: HeldLease) {
        let mut inner = self.inner();
        inner.lease = Some(lease);
        inner.migrating = false;
        drop(inner);
        self.changed.notify_all();
    }

    /// Takes what a migration left behind.
    fn migrated(&self, result: SourceEnd, lines: &Sender<MigrateLine>) {
        let (outcome, end, message) = match &result.outcome {
            SourceOutcome::Moved { confirmed } => {
                let how = if *confirmed { "" } else { " (the lease says so; the link had broken)" };
                let message = format!("The guest runs in the other process{how}");
                (Outcome::Moved, Some(End::good(message.clone())), message)
            }
            SourceOutcome::Stays { why } => (Outcome::Stays, None, chain(why)),
            SourceOutcome::Ended => {
                let message = "The guest moved, and has ended in the other process";
                (Outcome::Ended, Some(End::good(message)), message.into())
            }
            SourceOutcome::Lost => {
                let message = "The guest is lost: the other process had taken it over and has \
                               died. It must not be resumed from the state here";
                (Outcome::Lost, Some(End::bad(message)), message.into())
            }
            SourceOutcome::Halted { why } => {
                let why = why.as_ref().map(|error| format!(": {}", chain(error)));
                let message = format!(
                    "This side has halted for good: the lease is held elsewhere, and if the other \
                     process lives, the guest runs there{}",
                    why.unwrap_or_default()
                );
                (Outcome::Halted, Some(End::bad(message.clone())), message)
            }
            SourceOutcome::Stuck { why, then } => {
                let message = format!(
                    "The guest stands still: the migration was given up ({}), and it could not \
                     go on here: {}",
                    chain(why),
                    chain(then)
                );
                (Outcome::Stuck, Some(End::bad(message.clone())), message)
            }
        };
        {
            let mut inner = self.inner();
            inner.lease = result.lease;
            inner.end = end;
            inner.migrating = false;
        }
        self.changed.notify_all();
        // Whoever asked may have gone.
        let report = Box::new(result.report);
        let _ = lines.send(MigrateLine::Outcome { outcome, message, report });
    }
}

/// The control interface of a [`Process`].
pub struct ProcessControl(pub Arc<Process>);

impl Control for ProcessControl {
    fn status(&self) -> Status {
        let (guest, incoming, shutdown) = {
            let inner = self.0.inner();
            (inner.guest.clone(), inner.incoming, inner.end.is_some())
        };
        let migration = self.0.engine.status();
        let vm = match guest {
            Some(guest) => describe(&guest, shutdown),
            None => VmStatus {
                state: if incoming { GuestState::Incoming } else { GuestState::Waiting },
                id: None,
                pid: std::process::id(),
                cpus: 0,
                memory_bytes: 0,
                lease: None,
                devices: Vec::new(),
            },
        };
        Status { vm, migration }
    }

    fn pause(&self) -> Result<(), Refusal> {
        let guest = self.0.guest()?;
        self.0.engine.ask(Request::Pause)?;
        Ok(guest.pause()?)
    }

    fn resume(&self) -> Result<(), Refusal> {
        let guest = self.0.guest()?;
        self.0.engine.ask(Request::Resume)?;
        Ok(guest.unpause()?)
    }

    fn abort(&self) -> Result<(), Refusal> {
        Ok(self.0.engine.ask(Request::Abort)?)
    }

    fn shutdown(&self) -> Result<(), Refusal> {
        self.0.engine.ask(Request::Shutdown)?;
        self.0.inner().shutdown = true;
        Ok(())
    }

    fn migrate(&self, request: MigrateRequest) -> Result<Receiver<MigrateLine>, Refusal> {
        let path = parse_unix_address(&request.to)?;
        let guest = self.0.guest()?;
        self.0.engine.ask(Request::Migrate)?;
        let stream = UnixStream::connect(&path).map_err(|error| {
            Refusal(format!(
                "No destination answers at {}: {error}; start one with: drogher receive --listen {}",
                request.to, request.to
            ))
        })?;
        let options = request.options();
        let hooks = TestHooks::from_env()?;
        let lease = self.0.lend_lease()?;
        let (lines, answers) = channel();
        let process = Arc::clone(&self.0);
        // The lease follows by a channel: a thread that cannot be made must not take it along.
        let (lend, borrowed) = channel();
        let thread = std::thread::Builder::new().name("migrate".into()).spawn(move || {
            let Ok(lease) = borrowed.recv() else { return };
            let events = lines.clone();
            let watch = Watch::new(hooks, move |event| {
                // Whoever asked may have gone.
                let _ = events.send(MigrateLine::Event { of: event.clone() });
            });
            let result = send(&guest, stream, lease, &process.engine, watch, &options);
            process.migrated(result, &lines);
        });
        let failed = match thread {
            Ok(_) => lend.send(lease).err().map(|back| (back.0, None)),
            Err(error) => Some((lease, Some(error))),
        };
        if let Some((lease, error)) = failed {
            self.0.give_lease_back(lease);
            let why = error.map_or_else(String::new, |error| format!(": {error}"));
            return Err(Refusal(format!("The migration's thread could not be started{why}")));
        }
        Ok(answers)
    }
}

fn describe(guest: &Guest, gone: bool) -> VmStatus {
    let state = match (gone, guest.switching(), guest.paused()) {
        (true, ..) => GuestState::Gone,
        (_, true, _) => GuestState::Switching,
        (_, _, true) => GuestState::Paused,
        _ => GuestState::Running,
    };
    VmStatus {
        state,
        id: Some(guest.vm_id().to_string()),
        pid: std::process::id(),
        cpus: guest.cpus(),
        memory_bytes: guest.memory_bytes(),
        lease: Some(guest.lease_path().display().to_string()),
        devices: guest
            .devices()
            .into_iter()
            .map(|device| crate::api::DeviceStatus {
                slot: device.slot,
                plugin: device.plugin,
                state: device.state,
                error: device.error,
            })
            .collect(),
    }
}
