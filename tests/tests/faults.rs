//! Either side is killed, cut off or frozen at each phase: never two run, nothing runs twice.
//!
//! Phases are hit by the test hook, not by sleeping. Each case is one migration of a guest under
//! load; what both consoles hold afterwards decides. A status line carries the guest's own time,
//! so a state that was executed twice shows as a time that both consoles have.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use drogher_control::api::Outcome;
use drogher_migrate::Phase;
use drogher_probe::{Console, Line};
use drogher_tests::{Migration, Place, Vm, kvm};
use rustix::process::Signal;

const HOOK: &str = "DROGHER_TEST_HOOK";
const LOAD: &str = "ws=4M rate=1000 dma=on dma_rate=200 status_ms=100";

/// A cut is decided within this: 5 s, and 0.15 s for each GiB of RAM (64 MiB here).
const DECIDED: Duration = Duration::from_millis(5010);

/// Phases that the source reaches, in order.
const SOURCE: [Phase; 15] = [
    Phase::Setup,
    Phase::TrackStart,
    Phase::Bulk,
    Phase::Harvest,
    Phase::Resend,
    Phase::DevicePrecopy,
    Phase::Forecast,
    Phase::PauseVcpus,
    Phase::Quiesce,
    Phase::Stop,
    Phase::FinalHarvest,
    Phase::DeviceState,
    Phase::LastHarvest,
    Phase::Ready,
    Phase::Commit,
];

/// Phases that the destination reaches, in order.
const DESTINATION: [Phase; 16] = [
    Phase::Setup,
    Phase::TrackStart,
    Phase::Bulk,
    Phase::Harvest,
    Phase::Resend,
    Phase::DevicePrecopy,
    Phase::Forecast,
    Phase::PauseVcpus,
    Phase::Quiesce,
    Phase::Stop,
    Phase::FinalHarvest,
    Phase::DeviceState,
    Phase::LastHarvest,
    Phase::Ready,
    Phase::Commit,
    Phase::Running,
];

/// Two processes with a hook on one side, and a migration between them begun.
struct Case {
    place: Place,
    source: Vm,
    destination: Vm,
}

impl Case {
    fn new(side: &str, phase: Phase, action: &str) -> Result<Self> {
        let place = Place::new();
        let hook = format!("{side}:{phase}={action}");
        let env = [(HOOK, hook.as_str())];
        let (ours, theirs): (&[_], &[_]) = if side == "source" { (&env, &[]) } else { (&[], &env) };
        let mut source = place.run("a", LOAD, &[], ours)?;
        source.progress(2)?;
        let destination = place.receive("b", &[], theirs)?;
        Ok(Self { place, source, destination })
    }

    fn begin(&self) -> Result<drogher_tests::Migrating> {
        Migration::start(&self.place, &self.source, &self.destination, &[])
    }

    /// The guest times in both consoles, which must not overlap: what ran on one side has not
    /// run on the other.
    fn ran_once(&self) -> Result<()> {
        let times = |vm: &Vm| -> Result<Vec<Duration>> {
            vm.probe()?;
            let bytes = std::fs::read(&vm.console).unwrap_or_default();
            // Whole lines: half a number is another one.
            let lines = Console::default().feed(&bytes).into_iter();
            let times = lines.filter_map(|line| match line {
                Line::Status(status) => Some(status.t),
                _ => None,
            });
            Ok(times.collect())
        };
        let (here, there) = (times(&self.source)?, times(&self.destination)?);
        for times in [&here, &there] {
            let back = times.windows(2).find(|pair| pair[0] > pair[1]);
            ensure!(back.is_none(), "guest time goes backwards: {back:?} in {times:?}");
        }
        if let (Some(last), Some(first)) = (here.last(), there.first()) {
            ensure!(last < first, "guest time {first:?} was reached on both sides ({last:?})");
        }
        Ok(())
    }

    /// Exactly one side's guest makes progress by `deadline`; returns whether it is the source.
    fn one_runs(&mut self, deadline: Duration) -> Result<bool> {
        let lines = |vm: &Vm| Ok::<_, anyhow::Error>(vm.probe()?.status_lines());
        let end = Instant::now() + deadline;
        let (mut here, mut there) = (lines(&self.source)?, lines(&self.destination)?);
        let source_runs = loop {
            let (now_here, now_there) = (lines(&self.source)?, lines(&self.destination)?);
            // Two lines: one may have been on its way when the guest was stopped.
            if now_here >= here + 2 || now_there >= there + 2 {
                let source_runs = now_here >= here + 2;
                let loser = if source_runs { &self.destination } else { &self.source };
                if loser.is_silent(Duration::from_millis(500))? {
                    break source_runs;
                }
                // On a slow machine the source writes lines before it is stopped at all. Whether
                // both run is seen by the guest's own time below.
                ensure!(Instant::now() < end, "{} runs as well", loser.name);
                (here, there) = (lines(&self.source)?, lines(&self.destination)?);
                continue;
            }
            ensure!(
                Instant::now() < end,
                "nobody runs after {deadline:?}\n{}\n{}",
                self.source.stderr(),
                self.destination.stderr()
            );
            std::thread::sleep(Duration::from_millis(10));
        };
        self.ran_once()?;
        Ok(source_runs)
    }

    /// The winner dies: the other side must not run the state that it stopped, or loaded.
    fn the_loser_stays_still(&mut self, source_won: bool) -> Result<()> {
        let (winner, loser) = if source_won {
            (&mut self.source, &self.destination)
        } else {
            (&mut self.destination, &self.source)
        };
        winner.signal(Signal::KILL)?;
        winner.expect_killed()?;
        ensure!(
            loser.is_silent(Duration::from_secs(2))?,
            "{} runs after the winner's death",
            loser.name
        );
        self.ran_once()
    }
}

#[test]
fn destination_killed_before_it_took_the_lease() -> Result<()> {
    if !kvm("destination_killed_before_it_took_the_lease") {
        return Ok(());
    }
    for phase in DESTINATION.into_iter().filter(|phase| *phase != Phase::Running) {
        let mut case = Case::new("destination", phase, "kill")?;
        case.begin()?.end()?.expect_stays()?;
        case.destination.expect_killed()?;
        ensure!(case.one_runs(DECIDED)?, "{phase}: the source runs on");
    }
    Ok(())
}

#[test]
fn destination_killed_after_it_took_the_lease() -> Result<()> {
    if !kvm("destination_killed_after_it_took_the_lease") {
        return Ok(());
    }
    let mut case = Case::new("destination", Phase::Running, "kill")?;
    let migration = case.begin()?.end()?;
    ensure!(migration.outcome == Some(Outcome::Lost), "{migration:?}");
    ensure!(migration.message.contains("lost"), "{}", migration.message);
    case.destination.expect_killed()?;
    case.source.expect_exit(1)?;
    ensure!(case.source.stderr().contains("lost"), "{}", case.source.stderr());
    case.ran_once()
}

#[test]
fn source_killed() -> Result<()> {
    if !kvm("source_killed") {
        return Ok(());
    }
    for phase in SOURCE {
        let mut case = Case::new("source", phase, "kill")?;
        let migration = case.begin()?.end()?;
        ensure!(migration.code == Some(1), "{phase}: {migration:?}");
        case.source.expect_killed()?;
        match phase {
            // It has not even greeted: the destination waits on for a source.
            Phase::Setup => ensure!(case.destination.is_alive()?, "{phase}: it waits"),
            // READY has come: the destination has everything, and the lease is free.
            Phase::Commit => ensure!(!case.one_runs(DECIDED)?, "{phase}: the destination runs"),
            // All was sent, and READY may have been on its way: both are right.
            Phase::Ready => {
                if case.destination.is_alive()? && case.destination.progress(2).is_ok() {
                    case.ran_once()?;
                } else {
                    case.destination.expect_exit(1)?;
                }
            }
            _ => {
                case.destination.expect_exit(1)?;
                let said = case.destination.stderr();
                ensure!(said.contains("source"), "{phase}: {said}");
            }
        }
        case.ran_once()?;
    }
    Ok(())
}

fn cut(side: &str, phases: &[Phase]) -> Result<()> {
    for phase in phases {
        let mut case = Case::new(side, *phase, "cut")?;
        let migrating = case.begin()?;
        let source_won = case.one_runs(DECIDED + Duration::from_secs(2))?;
        migrating.end()?;
        if *phase < Phase::Ready {
            ensure!(source_won, "{side} {phase}: nothing was ready, the source runs on");
        }
        case.the_loser_stays_still(source_won)?;
    }
    Ok(())
}

#[test]
fn link_cut_by_the_source() -> Result<()> {
    if !kvm("link_cut_by_the_source") {
        return Ok(());
    }
    cut("source", &SOURCE)
}

#[test]
fn link_cut_by_the_destination() -> Result<()> {
    if !kvm("link_cut_by_the_destination") {
        return Ok(());
    }
    cut("destination", &DESTINATION)
}

/// SIGSTOP past all deadlines, then SIGCONT.
fn freeze(side: &str, phase: Phase) -> Result<()> {
    let mut case = Case::new(side, phase, "stop")?;
    let migrating = case.begin()?;
    let frozen = if side == "source" { &case.source } else { &case.destination };
    wait_stopped(frozen.pid())?;
    // Longer than every deadline of the other side.
    std::thread::sleep(Duration::from_secs(12));
    frozen.signal(Signal::CONT)?;
    let source_won = case.one_runs(DECIDED + Duration::from_secs(2))?;
    migrating.end()?;
    case.the_loser_stays_still(source_won)
}

fn wait_stopped(pid: u32) -> Result<()> {
    let end = Instant::now() + drogher_tests::DEADLINE;
    loop {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let state = stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
        if state == Some('T') {
            return Ok(());
        }
        ensure!(Instant::now() < end, "process {pid} never reached its hook");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The phases at which freezing decides most; the long run takes all.
fn frozen_phases(all: &[Phase]) -> Vec<Phase> {
    if std::env::var_os("DROGHER_FULL").is_some() {
        return all.to_vec();
    }
    all.iter()
        .copied()
        .filter(|phase| {
            matches!(phase, Phase::Bulk | Phase::FinalHarvest | Phase::Ready | Phase::Commit)
                || *phase == Phase::Running
        })
        .collect()
}

/// Frozen processes cost no CPU: several cases at a time.
fn freeze_all(side: &'static str, phases: &[Phase]) -> Result<()> {
    for some in frozen_phases(phases).chunks(4) {
        let threads: Vec<_> = some
            .iter()
            .map(|&phase| (phase, std::thread::spawn(move || freeze(side, phase))))
            .collect();
        for (phase, thread) in threads {
            let result = thread.join().map_err(|_| anyhow::anyhow!("{side} {phase}: panicked"))?;
            result.map_err(|error| error.context(format!("{side} {phase}")))?;
        }
    }
    Ok(())
}

#[test]
fn source_frozen_past_all_deadlines() -> Result<()> {
    if !kvm("source_frozen_past_all_deadlines") {
        return Ok(());
    }
    freeze_all("source", &SOURCE)
}

#[test]
fn destination_frozen_past_all_deadlines() -> Result<()> {
    if !kvm("destination_frozen_past_all_deadlines") {
        return Ok(());
    }
    freeze_all("destination", &DESTINATION)
}
