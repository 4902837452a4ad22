//! What a user or a guest may do in the middle of a migration, at each phase, and what comes of it.
//!
//! The source waits at the phase (by the test hook) while the request is made, and goes on then.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use drogher_control::api::{GuestState, Outcome};
use drogher_migrate::Phase;
use drogher_tests::{Migrating, Migration, Place, Vm, kvm};

const LOAD: &str = "ws=4M rate=1000 dma=on dma_rate=200 status_ms=100";

/// Phases in which the guest runs.
const LIVE: [Phase; 7] = [
    Phase::Setup,
    Phase::TrackStart,
    Phase::Bulk,
    Phase::Harvest,
    Phase::Resend,
    Phase::DevicePrecopy,
    Phase::Forecast,
];

/// Phases in which it is stopped, and could still go on at the source.
const STOPPED: [Phase; 7] = [
    Phase::Quiesce,
    Phase::Stop,
    Phase::FinalHarvest,
    Phase::DeviceState,
    Phase::LastHarvest,
    Phase::Ready,
    Phase::PauseVcpus,
];

/// Status lines after which a guest does what it was told to do by itself.
const TRIGGER: u64 = 15;

/// A migration that waits at a phase of the source.
struct Held {
    place: Place,
    source: Vm,
    destination: Vm,
    migrating: Option<Migrating>,
    gate: PathBuf,
}

impl Held {
    fn at(phase: Phase, load: &str) -> Result<Self> {
        let place = Place::new();
        let gate = place.path("gate");
        let hook = format!("source:{phase}=wait:{}", gate.display());
        let mut source = place.run("a", load, &[], &[("DROGHER_TEST_HOOK", &hook)])?;
        source.progress(2)?;
        let destination = place.receive("b", &[], &[])?;
        let migrating = Migration::start(&place, &source, &destination, &[])?;
        let mut reached = gate.clone().into_os_string();
        reached.push(".reached");
        source.wait_for_file(&PathBuf::from(reached))?;
        Ok(Self { place, source, destination, migrating: Some(migrating), gate })
    }

    /// Lets the migration go on, and waits for its end.
    fn end(&mut self) -> Result<Migration> {
        std::fs::write(&self.gate, "")?;
        self.migrating.take().expect("ended once").end()
    }

    fn post(&self, path: &str) -> Result<()> {
        self.source.post(path)
    }

    fn refused(&self, path: &str) -> Result<String> {
        match self.source.post(path) {
            Ok(()) => anyhow::bail!("{path} was not refused"),
            Err(error) => Ok(error.to_string()),
        }
    }
}

#[test]
fn abort_before_ready_leaves_the_guest_at_the_source() -> Result<()> {
    if !kvm("abort_before_ready_leaves_the_guest_at_the_source") {
        return Ok(());
    }
    for phase in LIVE.into_iter().chain(STOPPED) {
        let mut held = Held::at(phase, LOAD)?;
        held.post("/v1/abort")?;
        let why = held.end()?.expect_stays()?;
        ensure!(why.contains("aborted"), "{phase}: {why}");
        held.source.progress(2)?;
        held.destination.expect_exit(1)?;
        let said = held.destination.stderr();
        ensure!(said.contains("aborted"), "{phase}: {said}");
    }
    Ok(())
}

#[test]
fn abort_after_ready_is_too_late() -> Result<()> {
    if !kvm("abort_after_ready_is_too_late") {
        return Ok(());
    }
    let mut held = Held::at(Phase::Commit, LOAD)?;
    let said = held.refused("/v1/abort")?;
    ensure!(said.contains("Too late"), "{said}");
    held.end()?.expect_moved()?;
    held.destination.progress(2)
}

#[test]
fn pause_and_resume_while_the_guest_runs_are_taken_along() -> Result<()> {
    if !kvm("pause_and_resume_while_the_guest_runs_are_taken_along") {
        return Ok(());
    }
    for phase in LIVE {
        let mut held = Held::at(phase, LOAD)?;
        held.post("/v1/pause")?;
        ensure!(held.source.is_silent(Duration::from_millis(300))?, "{phase}: it is paused");
        held.end()?.expect_moved()?;
        ensure!(held.destination.status()?.vm.state == GuestState::Paused, "{phase}");
        held.destination.post("/v1/resume")?;
        held.destination.progress(2)?;
    }
    let mut held = Held::at(Phase::Resend, LOAD)?;
    held.post("/v1/pause")?;
    held.post("/v1/resume")?;
    held.end()?.expect_moved()?;
    held.destination.progress(2)
}

#[test]
fn pause_and_resume_during_the_switchover_are_refused() -> Result<()> {
    if !kvm("pause_and_resume_during_the_switchover_are_refused") {
        return Ok(());
    }
    for phase in STOPPED {
        let mut held = Held::at(phase, LOAD)?;
        for path in ["/v1/pause", "/v1/resume"] {
            let said = held.refused(path)?;
            ensure!(said.contains("handed over"), "{phase}: {said}");
        }
        held.end()?.expect_moved()?;
        held.destination.progress(2)?;
    }
    Ok(())
}

#[test]
fn shutdown_gives_the_migration_up_and_ends_the_guest() -> Result<()> {
    if !kvm("shutdown_gives_the_migration_up_and_ends_the_guest") {
        return Ok(());
    }
    for phase in LIVE.into_iter().chain(STOPPED) {
        let mut held = Held::at(phase, LOAD)?;
        held.post("/v1/shutdown")?;
        let migration = held.end()?;
        ensure!(migration.outcome == Some(Outcome::Stays), "{phase}: {migration:?}");
        held.source.expect_exit(0)?;
        held.destination.expect_exit(1)?;
    }
    Ok(())
}

#[test]
fn a_second_migration_is_refused_and_the_first_goes_on() -> Result<()> {
    if !kvm("a_second_migration_is_refused_and_the_first_goes_on") {
        return Ok(());
    }
    for phase in LIVE.into_iter().chain(STOPPED) {
        let mut held = Held::at(phase, LOAD)?;
        let mut third = held.place.receive("c", &[], &[])?;
        let second = Migration::start(&held.place, &held.source, &third, &[])?.end()?;
        ensure!(second.code == Some(1), "{phase}: {second:?}");
        ensure!(second.message.contains("going on already"), "{phase}: {}", second.message);
        held.end()?.expect_moved()?;
        held.destination.progress(2)?;
        ensure!(third.is_alive()?, "nothing came to the third process");
    }
    Ok(())
}

/// The guest does `action` by itself, a few status lines after its start, while the migration is
/// held in a phase in which it runs.
fn guest_ends(action: &str) -> Result<()> {
    for phase in LIVE {
        let mut held = Held::at(phase, &format!("{LOAD} trigger={action}@{TRIGGER}"))?;
        // The guest reaches its trigger while the migration waits.
        held.source.reach(TRIGGER)?;
        std::thread::sleep(Duration::from_millis(300));
        let migration = held.end()?;
        ensure!(migration.outcome == Some(Outcome::Stays), "{phase}: {migration:?}");
        let code = if action == "triplefault" { 1 } else { 0 };
        held.source.expect_exit(code)?;
        held.destination.expect_exit(1)?;
        let said = held.destination.stderr();
        ensure!(said.contains("guest"), "{phase}: {said}");
    }
    Ok(())
}

#[test]
fn a_guest_that_shuts_down_ends_the_migration() -> Result<()> {
    if !kvm("a_guest_that_shuts_down_ends_the_migration") {
        return Ok(());
    }
    guest_ends("shutdown")
}

#[test]
fn a_guest_that_resets_ends_the_migration() -> Result<()> {
    if !kvm("a_guest_that_resets_ends_the_migration") {
        return Ok(());
    }
    guest_ends("reset")
}

#[test]
fn a_guest_that_triple_faults_ends_the_migration_and_shows_its_registers() -> Result<()> {
    if !kvm("a_guest_that_triple_faults_ends_the_migration_and_shows_its_registers") {
        return Ok(());
    }
    let place = Place::new();
    let mut vm = place.run("a", &format!("{LOAD} trigger=triplefault@3"), &[], &[])?;
    vm.expect_exit(1)?;
    let said = vm.stderr().to_lowercase();
    ensure!(said.contains("triple fault") && said.contains("rip"), "{said}");
    guest_ends("triplefault")
}

/// The guest resets its device, or moves its BAR, while the migration waits, and goes on with it.
fn guest_touches_device(key: u8) -> Result<()> {
    for phase in LIVE {
        let mut held = Held::at(phase, LOAD)?;
        held.source.type_in(key)?;
        held.source.progress(3)?;
        held.end()?.expect_moved()?;
        let before = held.destination.probe()?.last().map_or(0, |status| status.dma);
        held.destination.progress(3)?;
        let after = held.destination.probe()?.last().map_or(0, |status| status.dma);
        ensure!(after > before, "{phase}: the device works on");
    }
    Ok(())
}

#[test]
fn a_device_reset_in_mid_migration_is_taken_along() -> Result<()> {
    if !kvm("a_device_reset_in_mid_migration_is_taken_along") {
        return Ok(());
    }
    guest_touches_device(b'd')
}

#[test]
fn a_bar_moved_in_mid_migration_is_taken_along() -> Result<()> {
    if !kvm("a_bar_moved_in_mid_migration_is_taken_along") {
        return Ok(());
    }
    guest_touches_device(b'b')
}
