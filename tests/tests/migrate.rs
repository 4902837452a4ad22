//! A guest moves, running, between real processes.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use drogher_control::api::GuestState;
use drogher_migrate::Side;
use drogher_migrate::status::MigrationStatus;
use drogher_tests::{LOAD, Migration, Place, Vm, kvm};

/// Migrations in the chain test; the long run takes 200.
fn hops() -> usize {
    std::env::var("DROGHER_HOPS").ok().and_then(|hops| hops.parse().ok()).unwrap_or(20)
}

/// So dense that no round, however short, passes without a write of either kind.
const DENSE: &str = "ws=32M rate=20000 dma=on dma_rate=8000 status_ms=200";

#[test]
fn a_guest_under_load_moves_and_no_page_differs() -> Result<()> {
    if !kvm("a_guest_under_load_moves_and_no_page_differs") {
        return Ok(());
    }
    let place = Place::new();
    let mut source = place.run("a", DENSE, &[], &[])?;
    source.progress(3)?;
    let mut destination = place.receive("b", &[], &[])?;
    let report = place.migrate(&source, &destination, &["--verify"])?.expect_moved()?;
    source.expect_exit(0)?;
    destination.progress(5)?;

    let verified = report.verified.expect("it was asked for");
    ensure!(verified.differing == 0 && verified.pages == 64 << 8, "{verified:?}");
    ensure!(verified.states >= 3, "vCPU, irqchip and device are compared: {verified:?}");
    ensure!(report.rounds.iter().any(|round| round.dirty_by_cpu > 0), "{:?}", report.rounds);
    ensure!(report.rounds.iter().any(|round| round.dirty_by_dma > 0), "{:?}", report.rounds);
    let (before, after) = (source.probe()?, destination.probe()?);
    let (before, after) = (before.last().expect("it ran"), after.last().expect("it runs"));
    ensure!(after.pages > before.pages && after.dma > before.dma, "{before:?} then {after:?}");
    Ok(())
}

#[test]
fn several_vcpus_move() -> Result<()> {
    if !kvm("several_vcpus_move") {
        return Ok(());
    }
    for cpus in ["2", "4"] {
        let place = Place::new();
        let load = format!("{LOAD} vcpus={cpus}");
        let mut source = place.run("a", &load, &["--cpus", cpus], &[])?;
        source.progress(3)?;
        let mut destination = place.receive("b", &[], &[])?;
        let report = place.migrate(&source, &destination, &["--verify"])?.expect_moved()?;
        ensure!(report.verified.as_ref().is_some_and(|verified| verified.differing == 0));
        destination.progress(5)?;
        // What has left one side has come to the other, and both say so.
        let arrived = destination.status()?.migration;
        ensure!(arrived.status == MigrationStatus::Completed, "{arrived:?}");
        ensure!(arrived.drogher.side == Some(Side::Destination), "{arrived:?}");
        let ram = arrived.ram;
        let pages = (ram.normal + ram.duplicate, ram.duplicate, arrived.vfio.transferred);
        ensure!(
            pages == (report.pages, report.zero_pages, report.device_bytes),
            "{arrived:?} {report:?}"
        );
        ensure!(ram.transferred >= ram.normal_bytes, "{ram:?}");
    }
    Ok(())
}

#[test]
fn a_paused_guest_moves_and_arrives_paused() -> Result<()> {
    if !kvm("a_paused_guest_moves_and_arrives_paused") {
        return Ok(());
    }
    let place = Place::new();
    let mut source = place.run("a", LOAD, &[], &[])?;
    source.progress(2)?;
    source.post("/v1/pause")?;
    ensure!(source.is_silent(std::time::Duration::from_millis(600))?, "it is paused");
    let mut destination = place.receive("b", &[], &[])?;
    place.migrate(&source, &destination, &["--verify"])?.expect_moved()?;
    ensure!(destination.status()?.vm.state == GuestState::Paused);
    ensure!(destination.is_silent(std::time::Duration::from_millis(600))?, "it arrives paused");
    destination.post("/v1/resume")?;
    destination.progress(3)
}

#[test]
fn a_chain_of_migrations_loses_nothing_and_leaks_nothing() -> Result<()> {
    if !kvm("a_chain_of_migrations_loses_nothing_and_leaks_nothing") {
        return Ok(());
    }
    let place = Place::new();
    let mut here = place.run("vm0", LOAD, &[], &[])?;
    here.progress(2)?;
    let mut first: Option<Footprint> = None;
    for hop in 1..=hops() {
        let there = place.receive(&format!("vm{hop}"), &[], &[])?;
        let report = place.migrate(&here, &there, &["--verify"])?.expect_moved()?;
        let verified = report.verified.expect("it was asked for");
        ensure!(verified.differing == 0, "hop {hop}: {verified:?}");
        here.expect_exit(0)?;
        here.probe()?;
        here = there;
        here.progress(1)?;
        match &first {
            None => first = Some(Footprint::of(&here)?),
            Some(first) => first.is_not_outgrown_by(&here, hop)?,
        }
    }
    here.progress(2)
}

/// What a process takes besides guest RAM.
#[derive(Debug)]
struct Footprint {
    descriptors: usize,
    threads: usize,
    private_kib: u64,
}

impl Footprint {
    fn of(vm: &Vm) -> Result<Self> {
        let proc = std::path::PathBuf::from(format!("/proc/{}", vm.pid()));
        let status = std::fs::read_to_string(proc.join("status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
        };
        Ok(Self {
            descriptors: std::fs::read_dir(proc.join("fd"))?.count(),
            threads: std::fs::read_dir(proc.join("task"))?.count(),
            private_kib: field("RssAnon:").unwrap_or(0),
        })
    }

    /// A process after many hops, or many attempts, is as large as after the first: at once or
    /// soon, since the thread that answered a request may be about to end.
    fn is_not_outgrown_by(&self, vm: &Vm, hop: usize) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            let now = Self::of(vm)?;
            let fits = now.descriptors <= self.descriptors
                && now.threads <= self.threads
                && now.private_kib <= self.private_kib * 5 / 4 + 2048;
            if fits {
                return Ok(());
            }
            ensure!(Instant::now() < end, "hop {hop}: {now:?}, after the first {self:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_failed_attempt_leaves_the_guest_running_and_the_next_one_moves_it() -> Result<()> {
    if !kvm("a_failed_attempt_leaves_the_guest_running_and_the_next_one_moves_it") {
        return Ok(());
    }
    let place = Place::new();
    let mut source = place.run("a", LOAD, &[], &[])?;
    source.progress(2)?;
    // Attempts that fail late touch more memory than early ones, which the allocator keeps: what is
    // compared is one series of them with the next.
    let mut first: Option<Footprint> = None;
    for series in 0..3 {
        for phase in ["bulk", "resend", "final-harvest", "device-state"] {
            let hook = format!("destination:{phase}=kill");
            let name = format!("bad-{series}-{phase}");
            let mut bad = place.receive(&name, &[], &[("DROGHER_TEST_HOOK", &hook)])?;
            Migration::start(&place, &source, &bad, &[])?.end()?.expect_stays()?;
            bad.expect_killed()?;
            source.progress(2)?;
        }
        match &first {
            None => first = Some(Footprint::of(&source)?),
            Some(first) => first.is_not_outgrown_by(&source, series)?,
        }
    }
    let mut good = place.receive("good", &[], &[])?;
    let report = place.migrate(&source, &good, &["--verify"])?.expect_moved()?;
    ensure!(report.verified.is_some_and(|verified| verified.differing == 0));
    good.progress(3)
}
