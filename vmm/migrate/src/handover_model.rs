//! An exhaustive search of the handover: the two real state machines, the lease with its epoch,
//! messages, cuts, crashes and stalls, in every order.
//!
//! Time is not modelled: any wait may end at any moment, early or arbitrarily late, which covers
//! every stall and every choice of deadlines. A migration that was rolled back is tried once more
//! with a second destination, while the first may still be waiting for its chance.
//!
//! Safety, in every state: at most one process runs the guest, and no stopped state is executed
//! twice. Liveness, in every final state: the guest runs if a process that had its complete state
//! has survived, unless the rules say that it is lost.

use std::collections::HashSet;

use crate::destination::{self, Destination};
use crate::source::{self, Look, Seen, Source};

/// Who holds the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Who {
    Source,
    Destination(usize),
    /// A VM of its own that somebody starts on the same file.
    Stranger,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Message {
    Handover(u64),
    Ready(u64),
    Commit(u64),
    Running(u64),
}

/// The source's process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct SourceProcess {
    machine: Source,
    alive: bool,
    runs: bool,
}

/// One destination's process, with the link between it and the source.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct DestinationProcess {
    machine: Destination,
    begun: bool,
    alive: bool,
    runs: bool,
    up: bool,
    to_destination: Vec<Message>,
    to_source: Vec<Message>,
    /// It has said READY.
    ready: bool,
    /// It has held the lease.
    took: bool,
    /// It gave up, after READY, at a time when the source was alive.
    yielded: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    source: SourceProcess,
    destinations: [DestinationProcess; 2],
    attempt: usize,
    holder: Option<Who>,
    epoch: u64,
    /// The record is another VM's.
    foreign: bool,
    /// The guest has ended at a destination, which has written so.
    ended: bool,
    /// The path leads to this file no more.
    removed: bool,
    /// How often the state that was stopped in epoch n has been executed.
    executed: [u8; 8],
    io_failed: bool,
    /// The source was killed when it ran the guest, or had raised the epoch to run it.
    died_with_guest: bool,
}

const FIRST_EPOCH: u64 = 1;

impl World {
    fn new() -> Self {
        let destination = |begun| DestinationProcess {
            machine: Destination::new(FIRST_EPOCH),
            begun,
            alive: begun,
            runs: false,
            up: begun,
            to_destination: Vec::new(),
            to_source: Vec::new(),
            ready: false,
            took: false,
            yielded: false,
        };
        Self {
            source: SourceProcess { machine: Source::new(FIRST_EPOCH), alive: true, runs: true },
            destinations: [destination(true), destination(false)],
            attempt: 0,
            holder: Some(Who::Source),
            epoch: FIRST_EPOCH,
            foreign: false,
            ended: false,
            removed: false,
            executed: [0; 8],
            io_failed: false,
            died_with_guest: false,
        }
    }

    fn peer(&mut self) -> &mut DestinationProcess {
        &mut self.destinations[self.attempt]
    }

    fn execute(&mut self, stopped_in: u64) {
        self.executed[usize::try_from(stopped_in).unwrap()] += 1;
    }

    fn seen(&self) -> Seen {
        Seen { same_vm: !self.foreign, epoch: self.epoch, ended: self.ended }
    }

    /// Tries the lease: the looks that are possible, each with the world after it.
    fn looks(&self, who: Who) -> Vec<(Look, Self)> {
        match self.holder {
            None if self.removed => vec![
                (Look::Broken(Some(self.seen())), self.clone()),
                (Look::Broken(None), self.clone()),
            ],
            None => {
                let mut world = self.clone();
                world.holder = Some(who);
                vec![(Look::Taken(self.seen()), world)]
            }
            // The record is read without the lock: it may be seen half written.
            Some(_) => vec![
                (Look::Busy(Some(self.seen())), self.clone()),
                (Look::Busy(None), self.clone()),
            ],
        }
    }

    /// Every world that one step can lead to, with the step's name.
    fn steps(&self) -> Vec<(String, Self)> {
        let mut out = Vec::new();
        if self.source.alive {
            self.source_steps(&mut out);
            let mut world = self.clone();
            let entered = world.source.machine.action() == source::Action::Resume;
            world.died_with_guest |= world.source.runs || entered;
            world.source.alive = false;
            world.source.runs = false;
            if world.holder == Some(Who::Source) {
                world.holder = None;
            }
            out.push(("kill source".into(), world));
        }
        for index in 0..2 {
            if !self.destinations[index].begun {
                continue;
            }
            if self.destinations[index].alive {
                self.destination_steps(index, &mut out);
                let mut world = self.clone();
                world.destinations[index].alive = false;
                world.destinations[index].runs = false;
                if world.holder == Some(Who::Destination(index)) {
                    world.holder = None;
                }
                out.push((format!("kill destination {index}"), world));
            }
            self.link_steps(index, &mut out);
        }
        self.stranger_steps(&mut out);
        out
    }

    /// Somebody starts another VM on the file while nobody holds it, and ends it.
    fn stranger_steps(&self, out: &mut Vec<(String, Self)>) {
        let mut world = self.clone();
        if self.holder.is_none() && !self.foreign && !self.removed && !self.ended {
            world.holder = Some(Who::Stranger);
            world.foreign = true;
            world.epoch += 1;
            out.push(("a stranger takes the file".into(), world));
        } else if self.holder == Some(Who::Stranger) {
            world.holder = None;
            out.push(("the stranger dies".into(), world));
        }
    }

    /// A cut keeps what is on its way, and a broken link may lose any tail of it.
    fn link_steps(&self, index: usize, out: &mut Vec<(String, Self)>) {
        let link = &self.destinations[index];
        if link.up {
            let mut world = self.clone();
            world.destinations[index].up = false;
            out.push((format!("cut {index}"), world));
            return;
        }
        if !link.to_destination.is_empty() {
            let mut world = self.clone();
            world.destinations[index].to_destination.pop();
            out.push((format!("lose to destination {index}"), world));
        }
        if !link.to_source.is_empty() {
            let mut world = self.clone();
            world.destinations[index].to_source.pop();
            out.push((format!("lose to source {index}"), world));
        }
    }

    fn source_steps(&self, out: &mut Vec<(String, Self)>) {
        use source::{Action, Event};
        let mut step = |name: &str, event: Event, change: &dyn Fn(&mut Self)| {
            let mut world = self.clone();
            change(&mut world);
            world.source.machine.on(event);
            world.settle_source();
            out.push((format!("source: {name}"), world));
        };
        let nothing: &dyn Fn(&mut Self) = &|_| {};
        let epoch = self.source.machine.epoch();
        let first = self.destinations[self.attempt].to_source.first().copied();
        let take: &dyn Fn(&mut Self) = &|w| {
            w.peer().to_source.remove(0);
        };
        match self.source.machine.action() {
            Action::GoOn => {
                let send: &dyn Fn(&mut Self) = &|w| {
                    if w.peer().up {
                        w.peer().to_destination.push(Message::Handover(epoch));
                    }
                };
                if self.source.runs {
                    step("stop", Event::StopBegun, &|w| w.source.runs = false);
                } else {
                    step("sent", Event::Sent, send);
                    // An error that comes after the last byte had gone all the same.
                    step("sent, and failed", Event::Failed, send);
                }
                step("failed", Event::Failed, nothing);
            }
            Action::AwaitReady => {
                if let Some(Message::Ready(epoch)) = first {
                    step("ready", Event::Ready { epoch }, take);
                }
                step("no ready", Event::NoAnswer, nothing);
                step("aborted", Event::Failed, nothing);
            }
            Action::Release => {
                step("release", Event::Released, &|w| w.holder = None);
                step("aborted", Event::Failed, nothing);
            }
            Action::SendCommit { epoch } => {
                step("commit", Event::CommitSent, &|w| {
                    if w.peer().up {
                        w.peer().to_destination.push(Message::Commit(epoch));
                    }
                });
                step("commit fails", Event::NoAnswer, nothing);
            }
            Action::AwaitRunning => {
                if let Some(Message::Running(epoch)) = first {
                    step("told running", Event::Running { epoch }, take);
                }
                step("not told", Event::NoAnswer, nothing);
            }
            Action::TryLease => {
                if let Some(Message::Running(epoch)) = first {
                    step("told running late", Event::Running { epoch }, take);
                }
                step("confirm over", Event::ConfirmOver, nothing);
                step("grace over", Event::GraceOver, nothing);
                for (look, mut world) in self.looks(Who::Source) {
                    world.source.machine.on(Event::Lease(look));
                    world.settle_source();
                    out.push((format!("source: {look:?}"), world));
                }
            }
            Action::Enter { epoch } => {
                step("enter", Event::Entered { ok: true }, &|w| w.epoch = epoch);
                step("enter fails", Event::Entered { ok: false }, &|w| w.io_failed = true);
            }
            Action::Resume => step("resume", Event::Resumed { ok: true }, &|w| {
                w.source.runs = true;
                w.execute(epoch);
            }),
            Action::Done(source::Verdict::Stays) if self.attempt == 0 => {
                let mut world = self.clone();
                world.attempt = 1;
                world.source.machine = Source::new(self.epoch);
                let next = world.peer();
                next.begun = true;
                next.alive = true;
                next.up = true;
                next.machine = Destination::new(self.epoch);
                out.push(("source: second attempt".into(), world));
            }
            Action::Done(_) => {}
        }
    }

    /// What the driver does when the machine is done: it gives the lease up if it may not run.
    fn settle_source(&mut self) {
        use source::{Action, Verdict};
        if let Action::Done(verdict) = self.source.machine.action()
            && verdict != Verdict::Stays
            && self.holder == Some(Who::Source)
        {
            self.holder = None;
        }
    }

    fn destination_steps(&self, index: usize, out: &mut Vec<(String, Self)>) {
        use destination::{Action, Event};
        let me = &self.destinations[index];
        let mut step = |name: &str, event: Event, change: &dyn Fn(&mut Self)| {
            let mut world = self.clone();
            change(&mut world);
            world.destinations[index].machine.on(event);
            world.settle_destination(index);
            out.push((format!("destination {index}: {name}"), world));
        };
        let nothing: &dyn Fn(&mut Self) = &|_| {};
        let first = me.to_destination.first().copied();
        let take: &dyn Fn(&mut Self) = &|w| {
            w.destinations[index].to_destination.remove(0);
        };
        match me.machine.action() {
            Action::Receive => {
                if let Some(Message::Handover(epoch)) = first {
                    step("handover", Event::Handover { epoch }, take);
                }
                step("failed", Event::Failed, nothing);
            }
            Action::Load => {
                step("loaded", Event::Loaded, nothing);
                step("failed", Event::Failed, nothing);
            }
            Action::SayReady { epoch } => step("ready", Event::ReadySaid, &|w| {
                w.destinations[index].ready = true;
                if w.destinations[index].up {
                    w.destinations[index].to_source.push(Message::Ready(epoch));
                }
            }),
            Action::AwaitCommit => {
                if let Some(Message::Commit(epoch)) = first {
                    step("commit", Event::Commit { epoch }, take);
                }
                step("no commit", Event::NoAnswer, nothing);
            }
            Action::TryLease => {
                step("grace over", Event::GraceOver, nothing);
                for (look, mut world) in self.looks(Who::Destination(index)) {
                    let taken = matches!(look, Look::Taken(_));
                    world.destinations[index].took |= taken;
                    world.destinations[index].machine.on(Event::Lease(look));
                    world.settle_destination(index);
                    out.push((format!("destination {index}: {look:?}"), world));
                }
            }
            Action::Enter { epoch } => {
                step("enter", Event::Entered { ok: true }, &|w| w.epoch = epoch);
                step("enter fails", Event::Entered { ok: false }, &|w| w.io_failed = true);
            }
            Action::Start => {
                let stopped_in = self.stopped_in(index);
                step("start", Event::Started { ok: true }, &|w| {
                    w.destinations[index].runs = true;
                    w.execute(stopped_in);
                });
            }
            Action::SayRunning { epoch } => step("running", Event::RunningSaid, &|w| {
                if w.destinations[index].up {
                    w.destinations[index].to_source.push(Message::Running(epoch));
                }
            }),
            Action::Done(destination::Verdict::Runs) if me.runs => {
                for removed in [false, true] {
                    let end: &dyn Fn(&mut Self) = &|w| {
                        w.destinations[index].runs = false;
                        w.ended = true;
                        w.removed = removed;
                    };
                    // The record is written under the lock, which goes with the process.
                    step("the guest ends", Event::RunningSaid, end);
                    step("the guest ends, and the process", Event::RunningSaid, &|w| {
                        end(w);
                        w.destinations[index].alive = false;
                        w.holder = None;
                    });
                }
            }
            Action::Done(_) => {}
        }
    }

    fn settle_destination(&mut self, index: usize) {
        use destination::{Action, Verdict};
        if let Action::Done(verdict) = self.destinations[index].machine.action() {
            if verdict != Verdict::Runs && self.holder == Some(Who::Destination(index)) {
                self.holder = None;
            }
            if matches!(verdict, Verdict::Halted { .. }) && self.source.alive {
                self.destinations[index].yielded = true;
            }
        }
    }

    /// The epoch that the state of this destination was stopped in: what it will raise, less one.
    fn stopped_in(&self, index: usize) -> u64 {
        self.destinations[index].machine.epoch()
    }

    fn check(&self) -> Result<(), &'static str> {
        let running =
            usize::from(self.source.runs) + self.destinations.iter().filter(|d| d.runs).count();
        if running > 1 {
            return Err("two run");
        }
        if self.executed.iter().any(|n| *n > 1) {
            return Err("a stopped state was executed twice");
        }
        let final_source =
            !self.source.alive || matches!(self.source.machine.action(), source::Action::Done(_));
        let final_destination = |d: &DestinationProcess| {
            !d.begun || !d.alive || matches!(d.machine.action(), destination::Action::Done(_))
        };
        if !final_source || !self.destinations.iter().all(final_destination) {
            return Ok(());
        }
        self.check_final(running)
    }

    fn check_final(&self, running: usize) -> Result<(), &'static str> {
        use source::Verdict;
        let peer = &self.destinations[self.attempt];
        let raised = self.epoch > self.source.machine.epoch();
        if let (true, source::Action::Done(verdict)) =
            (self.source.alive, self.source.machine.action())
        {
            let truth = match verdict {
                Verdict::Stays => self.source.runs,
                Verdict::Moved { .. } => peer.took && raised && !self.source.runs,
                Verdict::Lost => (peer.took || self.foreign) && raised && !peer.runs,
                Verdict::Halted | Verdict::Stuck => !self.source.runs,
                Verdict::Ended => self.ended && !self.source.runs,
            };
            if !truth {
                return Err("the source's verdict is wrong");
            }
        }
        // Whoever starts a VM on another's lease has had his way.
        if running == 1 || self.io_failed || self.ended || self.foreign {
            return Ok(());
        }
        let peer_died = !peer.alive;
        match (self.source.alive, peer_died) {
            (true, false) => Err("both survive and none runs"),
            (true, true) if peer.took => Ok(()),
            (true, true) => Err("the source survives, the lease was never taken, and it halts"),
            (false, true) => Ok(()),
            // It went down with the source, or this side left it to the source while that lived.
            (false, false) if self.died_with_guest || !peer.ready || peer.yielded => Ok(()),
            (false, false) => Err("a ready destination survives and does not run"),
        }
    }
}

/// Searches all worlds; the trace of the first bad one, or how many there are.
fn search() -> Result<usize, String> {
    let mut seen = HashSet::new();
    // Worlds and how they were reached: index of the parent, name of the step.
    let mut reached = vec![(World::new(), usize::MAX, String::from("begin"))];
    seen.insert(World::new());
    let mut next = 0;
    while next < reached.len() {
        let world = reached[next].0.clone();
        if let Err(what) = world.check() {
            let mut trace = Vec::new();
            let mut at = next;
            while at != usize::MAX {
                trace.push(reached[at].2.clone());
                at = reached[at].1;
            }
            trace.reverse();
            return Err(format!("{what}:\n  {}\n{world:#?}", trace.join("\n  ")));
        }
        for (name, step) in world.steps() {
            if seen.insert(step.clone()) {
                reached.push((step, next, name));
            }
        }
        next += 1;
    }
    Ok(reached.len())
}

#[test]
fn at_most_one_runs_and_no_state_runs_twice() {
    match search() {
        Ok(worlds) => {
            println!("handover model: {worlds} worlds");
            // Far fewer would mean that the search has lost its way.
            assert!(worlds > 10_000, "only {worlds} worlds");
        }
        Err(trace) => panic!("{trace}"),
    }
}
