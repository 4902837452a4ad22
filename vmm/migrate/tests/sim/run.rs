//! One run: both drivers, from begin to end.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::thread;
use std::time::Duration;

use drogher_migrate::{
    Control, Deadlines, DestinationEnd, DestinationOptions, DestinationOutcome, Env, Event,
    HeldLease, Hooks, Lease, Phase, Report, Side, SourceEnd, SourceOptions, SourceOutcome,
    TimeoutStrategy, VmId, receive, send,
};

use super::guest::{BUSY, Destination, Load, Source};
use super::link::SimLink;
use super::world::{Killed, Plan, World};

/// What a run is made of.
pub struct Setup {
    pub seed: u64,
    pub plan: Option<Plan>,
    pub load: Load,
    pub options: SourceOptions,
    /// Called at each phase, with the controls of both sides.
    pub at: fn(Side, Phase, &Control, &Control),
    pub prepare: fn(&mut Source, &mut Destination),
    /// After a rollback, try once more without a fault.
    pub retry: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            seed: 1,
            plan: None,
            load: BUSY,
            options: SourceOptions {
                downtime: LIMIT,
                deadlines: deadlines(),
                ..SourceOptions::default()
            },
            at: |_, _, _, _| {},
            prepare: |_, _| {},
            retry: true,
        }
    }
}

pub fn deadlines() -> Deadlines {
    Deadlines {
        // As often would only cost steps.
        lease_poll: Duration::from_millis(50),
        poll: Duration::from_millis(500),
        ..Deadlines::default()
    }
}

/// A limit that [`BUSY`] meets: its working set takes 4 to 5 ms on this link.
pub const LIMIT: Duration = Duration::from_millis(6);

/// How a side ended; `None` if it was killed.
pub struct Ended {
    pub source: Option<(SourceOutcome, Report)>,
    pub destination: Option<(DestinationOutcome, Report)>,
    pub arrived_paused: Option<bool>,
    pub world: World,
    /// The retry after a rollback moved the guest.
    pub retried: bool,
}

struct SimHooks<'a> {
    world: World,
    controls: &'a [Control; 2],
    at: fn(Side, Phase, &Control, &Control),
    events: u64,
}

impl Hooks for SimHooks<'_> {
    fn reached(&mut self, side: Side, phase: Phase) {
        self.world.reached(side, phase);
        (self.at)(side, phase, &self.controls[0], &self.controls[1]);
    }

    fn event(&mut self, event: &Event) {
        // Events go over the control socket: they must survive the trip.
        let text = serde_json::to_string(event).unwrap();
        assert_eq!(&serde_json::from_str::<Event>(&text).unwrap(), event);
        self.events += 1;
    }
}

/// A process: killed, it gives back what the kernel would take back, and nothing else.
fn process<T>(world: &World, side: Side, body: impl FnOnce() -> T) -> Option<T> {
    world.begin(side);
    let result = catch_unwind(AssertUnwindSafe(body));
    world.end(side);
    match result {
        Ok(value) => Some(value),
        Err(payload) if payload.is::<Killed>() => None,
        Err(payload) => resume_unwind(payload),
    }
}

fn source_process(
    world: &World,
    setup: &Setup,
    lease: HeldLease,
    mut host: Source,
    controls: &[Control; 2],
) -> Option<(SourceEnd, Source)> {
    process(world, Side::Source, move || {
        let mut link = SimLink { world: world.clone(), side: Side::Source };
        let mut hooks = SimHooks { world: world.clone(), controls, at: setup.at, events: 0 };
        let env =
            Env { clock: &world.clock(Side::Source), hooks: &mut hooks, control: &controls[0] };
        let end = send(&mut host, &mut link, lease, env, &setup.options);
        assert!(hooks.events > 0);
        (end, host)
    })
}

fn destination_process(
    world: &World,
    setup: &Setup,
    mut host: Destination,
    controls: &[Control; 2],
) -> Option<(DestinationEnd, Destination)> {
    process(world, Side::Destination, move || {
        let mut link = SimLink { world: world.clone(), side: Side::Destination };
        let mut hooks = SimHooks { world: world.clone(), controls, at: setup.at, events: 0 };
        let env = Env {
            clock: &world.clock(Side::Destination),
            hooks: &mut hooks,
            control: &controls[1],
        };
        let options = DestinationOptions { lease: None, deadlines: setup.options.deadlines };
        let end = receive(&mut host, &mut link, env, &options);
        (end, host)
    })
}

/// How a side's driver ended, and the host it drove; `None` if it was killed.
type EndOf<E, H> = Option<(E, H)>;

fn both(
    world: &World,
    setup: &Setup,
    lease: HeldLease,
    source: Source,
    destination: Destination,
    controls: &[Control; 2],
) -> (EndOf<SourceEnd, Source>, EndOf<DestinationEnd, Destination>) {
    thread::scope(|scope| {
        let source = scope.spawn(|| source_process(world, setup, lease, source, controls));
        let destination = scope.spawn(|| destination_process(world, setup, destination, controls));
        (
            source.join().unwrap_or_else(|e| resume_unwind(e)),
            destination.join().unwrap_or_else(|e| resume_unwind(e)),
        )
    })
}

fn new_lease(folder: &Path) -> HeldLease {
    Lease::acquire_new(&folder.join("lease"), VmId([3; 16])).unwrap()
}

/// Runs it.
pub fn run(setup: &Setup) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    run_on(&World::new(setup.seed, setup.plan), setup, folder.path())
}

/// Runs it in this world, with the lease in this folder; beside it a copy of its first contents.
pub fn run_on(world: &World, setup: &Setup, folder: &Path) -> Ended {
    let lease = new_lease(folder);
    std::fs::copy(folder.join("lease"), folder.join("lease.first")).unwrap();
    let mut source = Source::new(world.clone(), setup.load, &lease.permits());
    let mut destination = Destination::new(world.clone());
    (setup.prepare)(&mut source, &mut destination);
    let controls = [Control::new(), Control::new()];
    let (source, destination) = both(world, setup, lease, source, destination, &controls);

    let mut retried = false;
    let arrived_paused = destination.as_ref().and_then(|(_, host)| host.arrived_paused);
    let mut kept = None;
    let source = source.map(|(end, host)| {
        kept = end.lease.map(|lease| (lease, host));
        (end.outcome, end.report)
    });
    let destination = destination.map(|(end, _)| (end.outcome, end.report));
    if let (Some((lease, host)), Some((SourceOutcome::Stays { .. }, _)), true) =
        (kept, &source, setup.retry)
    {
        retry(world, setup, lease, host);
        retried = true;
    }
    Ended { source, destination, arrived_paused, world: world.clone(), retried }
}

/// A rolled-back guest has lost nothing: it moves at the next attempt, whole.
fn retry(first: &World, setup: &Setup, lease: HeldLease, mut host: Source) {
    let world = World::new(setup.seed + 1, None);
    {
        let (mut from, mut to) = (first.lock(), world.lock());
        to.ram[0] = std::mem::take(&mut from.ram[0]);
        to.device[0] = std::mem::take(&mut from.device[0]);
        to.machine[0] = from.machine[0];
        to.executed = from.executed.clone();
        to.serial = from.serial;
        to.running[0] = from.running[0];
        from.running[0] = false;
    }
    host.world = world.clone();
    host.ends = None;
    let setup = Setup {
        seed: setup.seed + 1,
        plan: None,
        options: SourceOptions {
            downtime: LIMIT,
            // The guest may be one that never meets the limit: then it is moved all the same.
            timeout_strategy: TimeoutStrategy::Ignore,
            deadlines: deadlines(),
            verify: true,
            ..SourceOptions::default()
        },
        ..Setup::default()
    };
    let destination = Destination::new(world.clone());
    let controls = [Control::new(), Control::new()];
    let (source, destination) = both(&world, &setup, lease, host, destination, &controls);
    let (end, _) = source.expect("nobody kills it");
    assert!(
        matches!(end.outcome, SourceOutcome::Moved { confirmed: true }),
        "the retry: {:?}",
        end.outcome
    );
    let (end, _) = destination.expect("nobody kills it");
    assert!(matches!(end.outcome, DestinationOutcome::Runs { told: true, .. }));
    assert_eq!(end.report.verified.unwrap().differing, 0);
}
