//! Guests that move from process to process, again and again: ours and QEMU's.

use std::path::Path;

use anyhow::{Context, Result};
use drogher_control::api::MigrateLine;
use drogher_migrate::Phase;
use drogher_migrate::report::{Event, Report};
use drogher_tests::{Migration, Vm, bin_folder};
use serde_json::json;

use crate::console::Follower;
use crate::qemu::{Guest, Qemu};
use crate::setup::Setup;

/// Status lines to wait for after a pause: the first still has the pause in it.
const SETTLE_LINES: usize = 6;

/// One move. Times in milliseconds.
#[derive(Debug, Clone)]
pub struct Hop {
    /// Largest gap between two readings of the TSC that the guest noticed around the move.
    pub blackout_ms: f64,
    /// Largest gap in the status line before it: what the host does to a guest meanwhile.
    pub noise_ms: f64,
    /// The downtime as the VMM says.
    pub downtime_ms: f64,
    /// The whole migration as the VMM says.
    pub total_ms: f64,
    /// Our own report, and the time of the bulk pass with populating the destination's memory.
    pub ours: Option<(Report, f64)>,
}

/// A guest that can move.
pub trait Mover {
    /// Stops the guest, so that another one can be measured.
    fn pause(&mut self) -> Result<()>;
    /// Lets it go on.
    fn resume(&mut self) -> Result<()>;
    /// Moves it into a new process. The old one is gone on return.
    fn hop(&mut self) -> Result<Hop>;
    /// Its console.
    fn follower(&mut self) -> &mut Follower;
}

/// Resumes, lets the guest settle, moves it, and pauses it again.
pub fn measured_hop(mover: &mut dyn Mover) -> Result<Hop> {
    mover.resume()?;
    mover.follower().statuses(SETTLE_LINES)?;
    let hop = mover.hop()?;
    mover.pause()?;
    Ok(hop)
}

/// Largest gap of the lines that cover the move, and that of the line before, in milliseconds.
fn gaps(follower: &mut Follower, console: &Path) -> Result<(f64, f64)> {
    // A line that was cut in two may have been worded before the move: then the next has the gap.
    let lines = if follower.moved_to(console)? { 2 } else { 1 };
    let before = follower.console().last().map_or(0, |status| status.gap_us);
    let gap = follower.statuses(lines)?.iter().map(|status| status.gap_us).max().unwrap_or(0);
    Ok((gap as f64 / 1e3, before as f64 / 1e3))
}

/// A guest of ours.
pub struct Ours<'a> {
    setup: &'a Setup,
    name: String,
    downtime_ms: u64,
    vm: Vm,
    follower: Follower,
    hops: u32,
}

impl<'a> Ours<'a> {
    /// Starts a guest that is paused once its load has begun.
    pub fn start(
        setup: &'a Setup,
        name: &str,
        guest: &Guest,
        devices: &[&str],
        downtime_ms: u64,
    ) -> Result<Self> {
        let lease = setup.place.path(&format!("{name}.lease"));
        let lease = lease.to_str().context("the temporary folder's name is not UTF-8")?;
        let mut args = vec!["run", "--memory", &guest.memory, "--cmdline", &guest.cmdline];
        args.extend(["--lease", lease]);
        args.extend(devices.iter().flat_map(|device| ["--device", device]));
        let binary = bin_folder().join("drogher");
        let vm = Vm::start_with(&binary, &setup.place, name, &args, &[])?;
        let mut follower = Follower::new(&vm.console);
        follower.ready().with_context(|| format!("drogher said: {}", vm.stderr()))?;
        vm.post("/v1/pause")?;
        Ok(Self { setup, name: name.to_owned(), downtime_ms, vm, follower, hops: 0 })
    }
}

impl Mover for Ours<'_> {
    fn pause(&mut self) -> Result<()> {
        self.vm.post("/v1/pause")
    }

    fn resume(&mut self) -> Result<()> {
        self.vm.post("/v1/resume")
    }

    fn hop(&mut self) -> Result<Hop> {
        self.hops += 1;
        let place = &self.setup.place;
        let next = place.receive(&format!("{}-{}", self.name, self.hops), &[], &[])?;
        self.follower.read()?;
        let downtime = self.downtime_ms.to_string();
        let options = ["--downtime-ms", &downtime];
        let migration = Migration::start(place, &self.vm, &next, &options)?.end()?;
        let bulk_ms = bulk_time(&migration.lines);
        let report = migration.expect_moved().with_context(|| {
            format!("the source said: {}; the destination: {}", self.vm.stderr(), next.stderr())
        })?;
        let (blackout_ms, noise_ms) = gaps(&mut self.follower, &next.console)?;
        self.vm = next;
        Ok(Hop {
            blackout_ms,
            noise_ms,
            downtime_ms: report.downtime.total_us as f64 / 1e3,
            total_ms: report.total_us as f64 / 1e3,
            ours: Some((report, bulk_ms.unwrap_or(f64::NAN))),
        })
    }

    fn follower(&mut self) -> &mut Follower {
        &mut self.follower
    }
}

/// From the bulk pass to the first harvest after it.
fn bulk_time(lines: &[MigrateLine]) -> Option<f64> {
    let at = |wanted: Phase| {
        lines.iter().find_map(|line| match line {
            MigrateLine::Event { of: Event::Phase { phase, at_us, .. } } if *phase == wanted => {
                Some(*at_us as f64 / 1e3)
            }
            _ => None,
        })
    };
    Some(at(Phase::Harvest)? - at(Phase::Bulk)?)
}

/// A guest of QEMU's.
pub struct Theirs<'a> {
    setup: &'a Setup,
    name: String,
    guest: Guest,
    downtime_ms: u64,
    qemu: Qemu,
    follower: Follower,
    hops: u32,
}

impl<'a> Theirs<'a> {
    /// Starts a guest that is paused once its load has begun.
    pub fn start(setup: &'a Setup, name: &str, guest: &Guest, downtime_ms: u64) -> Result<Self> {
        let mut qemu = Qemu::start(&setup.place, name, guest, None)?;
        let mut follower = Follower::new(&qemu.console);
        follower.ready()?;
        qemu.execute("stop", &json!({}))?;
        let (name, guest) = (name.to_owned(), guest.clone());
        Ok(Self { setup, name, guest, downtime_ms, qemu, follower, hops: 0 })
    }
}

impl Mover for Theirs<'_> {
    fn pause(&mut self) -> Result<()> {
        self.qemu.execute("stop", &json!({})).map(drop)
    }

    fn resume(&mut self) -> Result<()> {
        self.qemu.execute("cont", &json!({})).map(drop)
    }

    fn hop(&mut self) -> Result<Hop> {
        self.hops += 1;
        let name = format!("{}-{}", self.name, self.hops);
        let address = self.setup.place.address(&format!("{name}.stream"));
        let next = Qemu::start(&self.setup.place, &name, &self.guest, Some(&address))?;
        self.follower.read()?;
        let status = self.qemu.migrate(&address, self.downtime_ms)?;
        let (blackout_ms, noise_ms) = gaps(&mut self.follower, &next.console)?;
        self.qemu = next;
        let time = |key: &str| status[key].as_f64().unwrap_or(f64::NAN);
        Ok(Hop {
            blackout_ms,
            noise_ms,
            downtime_ms: time("downtime"),
            total_ms: time("total-time"),
            ours: None,
        })
    }

    fn follower(&mut self) -> &mut Follower {
        &mut self.follower
    }
}
