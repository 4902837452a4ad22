//! One process and its guest: who owns the machine, the lease and a migration, and how it ends.
//!
//! The main thread watches the guest in [`Process::supervise`]; requests arrive on control
//! threads; a migration has a thread of its own, which borrows the lease while it lasts.

use std::any::Any;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use drogher_machine::device::{DeviceParams, WireCounts, WireSpec};
use drogher_machine::events::GuestEvent;
use drogher_machine::migration::{Guest, GuestError, TestHooks, Watch, send};
use drogher_machine::tracking::{Explanation, TrackingStatus, Wishes};
use drogher_migrate::control::{Control as Engine, Request};
use drogher_migrate::error::chain;
use drogher_migrate::status::MigrationStatus;
use drogher_migrate::{
    GuestEnd, HeldLease, Phase, Refusal as EngineRefusal, Report, SourceEnd, SourceOutcome,
};

use crate::api::{
    GuestState, MigrateLine, MigrateRequest, Outcome, ParamRequest, Refusal, Status,
    TrackingRequest, VmStatus, WireStatus,
};
use crate::config::parse_unix_address;
use crate::server::Control;
use crate::socket;

/// How often the main thread looks up from the guest.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Longest time for a migration to end once it has been told to; its own deadlines are shorter.
const MIGRATION_END: Duration = Duration::from_secs(120);

/// Longest time from the start of a guest that has arrived to its adoption.
const ADOPTION: Duration = Duration::from_secs(1);

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
    starting: bool,
    incoming: bool,
    /// Here unless a migration has borrowed it, or it is gone.
    lease: Option<HeldLease>,
    migrating: bool,
    /// The engine has begun with the migration, and hears of requests by itself.
    begun: bool,
    /// What was asked of a migration before the engine had begun with it.
    give_up: Option<Request>,
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
    /// A process that waits for a guest to arrive.
    #[must_use]
    pub fn waiting() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// A process that is about to boot a guest.
    #[must_use]
    pub fn starting() -> Arc<Self> {
        let process = Self::default();
        process.inner().starting = true;
        Arc::new(process)
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
        inner.starting = false;
        inner.guest = Some(guest);
        inner.lease = Some(lease);
        drop(inner);
        self.changed.notify_all();
    }

    /// Waits for the moment between a guest's start here, which its source knows of already, and its
    /// adoption: whoever has seen a migration end finds the guest here.
    fn settle(&self) {
        let until = Instant::now() + ADOPTION;
        loop {
            let arrived = self.engine.phase() == Some(Phase::Running)
                || self.engine.status().status == MigrationStatus::Completed;
            let inner = self.inner();
            if !arrived || !inner.incoming || Instant::now() >= until {
                return;
            }
            let wait = self.changed.wait_timeout(inner, Duration::from_millis(5));
            drop(wait.unwrap_or_else(PoisonError::into_inner));
        }
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
                return self.finish(&guest, end, || self.engine.guest_ended(how));
            }
            if let Some(end) = self.inner().end.take() {
                return end;
            }
            if stop.load(Ordering::Acquire) || self.shutdown_asked() {
                let end = End::good("The guest was shut down on request");
                return self.finish(&guest, end, || {
                    // Too late is no trouble: then the migration itself says how this ends.
                    let _ = self.engine.ask(Request::Shutdown);
                });
            }
        }
    }

    /// Ends the guest here, unless a migration has taken it away meanwhile. `tell` tells the engine
    /// that it is to give up; again and again, since it hears nothing before it has begun.
    fn finish(&self, guest: &Guest, end: End, tell: impl Fn()) -> End {
        let until = Instant::now() + MIGRATION_END;
        let mut inner = self.inner();
        while inner.migrating {
            if Instant::now() >= until {
                return End::bad("The migration did not end in time");
            }
            inner.give_up.get_or_insert(Request::Shutdown);
            drop(inner);
            tell();
            inner = self.inner();
            if inner.migrating {
                inner = self
                    .changed
                    .wait_timeout(inner, LOOK_EVERY)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
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
            let remove = lease.record().made;
            if let Err(error) = lease.finish(remove) {
                end.message = format!("{}\n{}", end.message, chain(&error));
            }
        }
        end
    }

    fn guest(&self) -> Result<Arc<Guest>, Refusal> {
        self.settle();
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
        inner.begun = false;
        inner.give_up = None;
        Ok(lease)
    }

    /// Connects to the destination of a migration that begins.
    fn reach(&self, address: &str, path: &Path) -> Result<UnixStream, Refusal> {
        let given_up = || self.inner().give_up.is_some();
        let stream = socket::connect(path, socket::CONNECT_DEADLINE, given_up);
        if given_up() {
            return Err(Refusal("The migration was given up before it had begun".into()));
        }
        let stream = stream.map_err(|error| {
            Refusal(format!(
                "No destination answers at {address}: {error}; start one with: \
                 drogher receive --listen {address}"
            ))
        })?;
        if socket::peer_is_self(&stream) {
            return Err(Refusal(format!(
                "{address} is a socket of the guest's own process; start another process with: \
                 drogher receive --listen unix:PATH"
            )));
        }
        Ok(stream)
    }

    /// The engine has begun: tells it what was asked before.
    fn begun(&self) {
        let early = {
            let mut inner = self.inner();
            inner.begun = true;
            inner.give_up.take()
        };
        if let Some(request) = early {
            // It has only just begun: this can't be too late.
            let _ = self.engine.ask(request);
        }
    }

    /// Ends a migration, be it that the engine has begun with it or not.
    fn abort(&self) -> Result<(), Refusal> {
        let early = {
            let mut inner = self.inner();
            let early = inner.migrating && !inner.begun;
            if early {
                inner.give_up.get_or_insert(Request::Abort);
            }
            early
        };
        match self.engine.ask(Request::Abort) {
            Err(EngineRefusal::NoMigration) if early => Ok(()),
            other => Ok(other?),
        }
    }

    /// Runs the engine's source side, `work`, and takes what it leaves behind.
    fn engage(&self, lines: &Sender<MigrateLine>, work: impl FnOnce() -> SourceEnd) {
        // What a panic has torn is not used again: the process ends.
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(result) => self.migrated(result, lines),
            Err(panic) => self.broken(panic.as_ref(), lines),
        }
    }

    /// The engine has panicked. Nobody here knows how far it had come: the process ends, and the
    /// lease tells the other side whether the guest may run there.
    fn broken(&self, panic: &(dyn Any + Send), lines: &Sender<MigrateLine>) {
        let words = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no words");
        let message = format!(
            "Internal error: the migration broke off ({words}); this process ends. If the other \
             process had taken the guest over, it runs there"
        );
        {
            let mut inner = self.inner();
            inner.end = Some(End::bad(message.clone()));
            inner.migrating = false;
        }
        self.changed.notify_all();
        let (outcome, report) = (Outcome::Halted, Box::new(Report::default()));
        let _ = lines.send(MigrateLine::Outcome { outcome, message, report, tracking: None });
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
        let guest = self.inner().guest.clone();
        let tracking = guest.and_then(|guest| guest.tracking_report()).map(Box::new);
        {
            let mut inner = self.inner();
            inner.lease = result.lease;
            inner.end = end;
            inner.migrating = false;
        }
        self.changed.notify_all();
        // Whoever asked may have gone.
        let report = Box::new(result.report);
        let _ = lines.send(MigrateLine::Outcome { outcome, message, report, tracking });
    }
}

/// The control interface of a [`Process`].
pub struct ProcessControl(pub Arc<Process>);

impl Control for ProcessControl {
    fn status(&self) -> Status {
        self.0.settle();
        let (guest, without, shutdown) = {
            let inner = self.0.inner();
            let without = match (inner.starting, inner.incoming) {
                (true, _) => GuestState::Starting,
                (_, true) => GuestState::Incoming,
                _ => GuestState::Waiting,
            };
            (inner.guest.clone(), without, inner.end.is_some())
        };
        let migration = self.0.engine.status();
        let vm = match guest {
            Some(guest) => describe(&guest, shutdown),
            None => VmStatus {
                state: without,
                id: None,
                pid: std::process::id(),
                cpus: 0,
                memory_bytes: 0,
                lease: None,
                devices: Vec::new(),
                tracking: None,
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
        self.0.abort()
    }

    fn powerdown(&self) -> Result<(), Refusal> {
        Ok(self.0.guest()?.press_power_button()?)
    }

    fn shutdown(&self) -> Result<(), Refusal> {
        self.0.engine.ask(Request::Shutdown)?;
        self.0.inner().shutdown = true;
        Ok(())
    }

    fn tracking(&self) -> Result<TrackingStatus, Refusal> {
        Ok(self.0.guest()?.tracking_status())
    }

    fn switch_tracking(&self, request: TrackingRequest) -> Result<(), Refusal> {
        let guest = self.0.guest()?;
        Ok(guest.switch_tracking(request.device.as_deref(), request.choice())?)
    }

    fn explain(&self, wishes: Wishes) -> Result<Explanation, Refusal> {
        Ok(self.0.guest()?.explain(&wishes))
    }

    fn params(&self) -> Result<Vec<DeviceParams>, Refusal> {
        Ok(self.0.guest()?.params())
    }

    fn set_param(&self, request: ParamRequest) -> Result<(), Refusal> {
        let guest = self.0.guest()?;
        if self.0.inner().migrating {
            return Err(GuestError::Migrating.into());
        }
        Ok(guest.set_param(&request.device, &request.name, &request.value)?)
    }

    fn migrate(&self, request: MigrateRequest) -> Result<Receiver<MigrateLine>, Refusal> {
        let path = parse_unix_address(&request.to)?;
        let guest = self.0.guest()?;
        self.0.engine.ask(Request::Migrate)?;
        let options = request.options();
        let hooks = TestHooks::from_env()?;
        let wishes = request.tracking.clone();
        // The lease first: whoever is connected to is let down by an end without a word.
        let lease = self.0.lend_lease()?;
        // What stands against it is said before anything starts, here or there.
        let reached = guest.prepare_tracking(&wishes).map_err(Refusal::from);
        let stream = match reached.and_then(|()| self.0.reach(&request.to, &path)) {
            Ok(stream) => stream,
            Err(refusal) => {
                guest.tracking().forget();
                self.0.give_lease_back(lease);
                return Err(refusal);
            }
        };
        let (lines, answers) = channel();
        let process = Arc::clone(&self.0);
        // The lease follows by a channel: a thread that cannot be made must not take it along.
        let (lend, borrowed) = channel();
        let thread = std::thread::Builder::new().name("migrate".into()).spawn(move || {
            let Ok(lease) = borrowed.recv() else { return };
            let (events, watched) = (lines.clone(), Arc::clone(&process));
            let watch = Watch::new(hooks, move |event| {
                watched.begun();
                // Whoever asked may have gone.
                let _ = events.send(MigrateLine::Event { of: event.clone() });
            });
            process.engage(&lines, || {
                send(&guest, stream, lease, &process.engine, watch, &options, &wishes)
            });
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
                name: device.name,
                state: device.state,
                error: device.error,
                wires: device.wires.iter().map(wire_status).collect(),
            })
            .collect(),
        tracking: Some(guest.tracking_status()),
    }
}

fn wire_status((wire, counts): &(WireSpec, WireCounts)) -> WireStatus {
    WireStatus {
        wire: wire.to_string(),
        sent: counts.sent,
        sent_dropped: counts.sent_dropped,
        arrived: counts.arrived,
        arrived_dropped: counts.arrived_dropped,
    }
}

#[cfg(test)]
#[path = "process_test.rs"]
mod tests;
