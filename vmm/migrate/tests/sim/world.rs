//! Time, turns, faults, and what must hold at any moment.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::resume_unwind;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use drogher_migrate::{Clock, Phase, Side};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The process dies.
    Kill,
    /// The link is cut; what was on its way is lost or not, by seed.
    Cut,
    /// The process stands still past all deadlines.
    Stall,
    /// The machine's call fails.
    HostError,
}

/// When it goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// At the n-th step of this side: a call into link, clock or machine.
    Step(u64),
    /// When this side reaches this phase for the first time.
    Phase(Phase),
}

/// One fault of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    pub side: Side,
    pub when: When,
    pub fault: Fault,
}

/// How a killed process unwinds.
pub struct Killed;

/// A guest page.
pub type Page = Box<[u8; 4096]>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// It may run.
    Ready,
    /// It waits until then, or until something has changed since this version.
    Waits {
        until: Duration,
        version: u64,
    },
    Done,
}

pub struct State {
    now: Duration,
    rng: u64,
    turns: [Turn; 2],
    current: usize,
    version: u64,
    plan: Option<Plan>,
    steps: [u64; 2],
    reached: Vec<(Side, Phase)>,
    /// Set by a fault at this step, taken by the machine's call.
    host_error: bool,
    fired: bool,

    pub up: bool,
    pub closed: [bool; 2],
    /// Bytes on their way to each side.
    pub wire: [VecDeque<u8>; 2],
    pub cut_at: Option<Duration>,
    /// 10 MiB/s instead of 2 GiB/s.
    pub slow_link: bool,
    /// All that the source has sent.
    pub tape: Vec<u8>,

    /// RAM as each side has it: pages that are not here are zero.
    pub ram: [BTreeMap<u64, Page>; 2],
    pub device: [Vec<u8>; 2],
    pub machine: [u64; 2],
    /// Which side executes the guest.
    pub running: [bool; 2],
    /// Stopped states that have been executed.
    pub executed: BTreeSet<u64>,
    /// The stopped state that this side holds, complete: a number drawn at each stop.
    pub stopped: [Option<u64>; 2],
    pub serial: u64,
    /// When the guest last began to run.
    pub ran_at: Duration,
}

/// Shared by both sides.
#[derive(Clone)]
pub struct World {
    state: Arc<(Mutex<State>, Condvar)>,
}

pub fn index(side: Side) -> usize {
    match side {
        Side::Source => 0,
        Side::Destination => 1,
    }
}

impl World {
    pub fn new(seed: u64, plan: Option<Plan>) -> Self {
        let state = State {
            now: Duration::from_secs(1000),
            rng: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            turns: [Turn::Ready; 2],
            current: 0,
            version: 0,
            plan,
            steps: [0; 2],
            reached: Vec::new(),
            host_error: false,
            fired: false,
            up: true,
            closed: [false; 2],
            wire: [VecDeque::new(), VecDeque::new()],
            cut_at: None,
            slow_link: false,
            tape: Vec::new(),
            ram: [BTreeMap::new(), BTreeMap::new()],
            device: [Vec::new(), Vec::new()],
            machine: [0; 2],
            running: [true, false],
            executed: BTreeSet::new(),
            stopped: [None; 2],
            serial: 0,
            ran_at: Duration::ZERO,
        };
        Self { state: Arc::new((Mutex::new(state), Condvar::new())) }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Waits for this side's turn.
    fn await_turn<'a>(&self, mut state: MutexGuard<'a, State>, me: usize) -> MutexGuard<'a, State> {
        while state.current != me {
            state = self.state.1.wait(state).unwrap_or_else(|e| e.into_inner());
        }
        state.turns[me] = Turn::Ready;
        state
    }

    /// A thread begins.
    pub fn begin(&self, side: Side) {
        drop(self.await_turn(self.lock(), index(side)));
    }

    /// A thread ends, its link closed.
    pub fn end(&self, side: Side) {
        let mut state = self.lock();
        let me = index(side);
        state.closed[me] = true;
        state.version += 1;
        state.turns[me] = Turn::Done;
        state.pick(me);
        self.state.1.notify_all();
    }

    /// One step: time passes a little, the other side may get its turn, a fault may strike.
    /// True if the machine's call is to fail.
    pub fn step(&self, side: Side, host: bool) -> bool {
        let me = index(side);
        let mut state = self.lock();
        state.now += Duration::from_micros(2);
        state.steps[me] += 1;
        let steps = state.steps[me];
        let strikes = |p: &Plan| p.side == side && p.when == When::Step(steps);
        if let Some(fault) = state.plan.filter(strikes).map(|p| p.fault) {
            state = self.strike(state, side, fault);
        }
        if state.draw(4) == 0 {
            state.pick(me);
            self.state.1.notify_all();
            state = self.await_turn(state, me);
        }
        host && std::mem::take(&mut state.host_error)
    }

    /// This side has reached a phase.
    pub fn reached(&self, side: Side, phase: Phase) {
        let mut state = self.lock();
        let first = !state.reached.contains(&(side, phase));
        state.reached.push((side, phase));
        let strikes = |p: &Plan| first && p.side == side && p.when == When::Phase(phase);
        if let Some(fault) = state.plan.filter(strikes).map(|p| p.fault) {
            drop(self.strike(state, side, fault));
        }
    }

    fn strike<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        side: Side,
        fault: Fault,
    ) -> MutexGuard<'a, State> {
        state.fired = true;
        let me = index(side);
        match fault {
            Fault::Kill => {
                state.running[me] = false;
                drop(state);
                resume_unwind(Box::new(Killed));
            }
            Fault::Cut => {
                state.up = false;
                state.version += 1;
                state.cut_at = Some(state.now);
                for me in 0..2 {
                    if state.draw(2) == 0 {
                        state.wire[me].clear();
                    }
                }
            }
            Fault::Stall => {
                let until = state.now + Duration::from_secs(120);
                while state.now < until {
                    // Nothing wakes it before its time.
                    let version = u64::MAX;
                    state.turns[me] = Turn::Waits { until, version };
                    state.pick(me);
                    self.state.1.notify_all();
                    state = self.await_turn(state, me);
                }
            }
            Fault::HostError => state.host_error = true,
        }
        state
    }

    /// Waits until something has changed, or until then.
    pub fn wait<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        side: Side,
        until: Duration,
    ) -> MutexGuard<'a, State> {
        let me = index(side);
        let version = state.version;
        state.turns[me] = Turn::Waits { until, version };
        state.pick(me);
        self.state.1.notify_all();
        self.await_turn(state, me)
    }

    pub fn clock(&self, side: Side) -> SimClock {
        SimClock { world: self.clone(), side }
    }
}

impl State {
    pub fn now(&self) -> Duration {
        self.now
    }

    pub fn advance(&mut self, time: Duration) {
        self.now += time;
    }

    /// Something has changed that the other side may wait for.
    pub fn changed(&mut self) {
        self.version += 1;
    }

    pub fn fired(&self) -> bool {
        self.fired
    }

    pub fn steps(&self, side: Side) -> u64 {
        self.steps[index(side)]
    }

    pub fn has_reached(&self, side: Side, phase: Phase) -> bool {
        self.reached.contains(&(side, phase))
    }

    /// A number below `below`, by seed.
    pub fn draw(&mut self, below: u64) -> u64 {
        self.rng ^= self.rng << 13;
        self.rng ^= self.rng >> 7;
        self.rng ^= self.rng << 17;
        (self.rng >> 11) % below
    }

    /// Whose turn is next; time moves if nobody's is.
    fn pick(&mut self, me: usize) {
        let other = 1 - me;
        loop {
            let can = |turn: Turn| match turn {
                Turn::Ready => true,
                Turn::Waits { until, version } => {
                    until <= self.now || (version != u64::MAX && version < self.version)
                }
                Turn::Done => false,
            };
            let able = [can(self.turns[0]), can(self.turns[1])];
            if able[other] {
                self.current = other;
                return;
            }
            if able[me] {
                self.current = me;
                return;
            }
            let next = self.turns.iter().filter_map(|t| match t {
                Turn::Waits { until, .. } => Some(*until),
                _ => None,
            });
            match next.min() {
                Some(until) => self.now = until,
                // Both have ended.
                None => return,
            }
        }
    }

    /// The guest begins to run on this side, from this stopped state if it was stopped.
    pub fn run_guest(&mut self, side: Side, stopped: Option<u64>) {
        let me = index(side);
        self.running[me] = true;
        self.ran_at = self.now;
        assert!(!(self.running[0] && self.running[1]), "the guest runs on both sides");
        if let Some(serial) = stopped {
            assert!(self.executed.insert(serial), "stopped state {serial} is executed twice");
        }
    }
}

/// The simulated clock.
#[derive(Clone)]
pub struct SimClock {
    world: World,
    side: Side,
}

impl Clock for SimClock {
    fn now(&self) -> Duration {
        self.world.lock().now
    }

    fn sleep(&self, time: Duration) {
        self.world.step(self.side, false);
        let mut state = self.world.lock();
        let until = state.now + time;
        while state.now < until {
            state = self.world.wait(state, self.side, until);
        }
    }
}
