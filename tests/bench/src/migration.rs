//! A live migration of ours against QEMU's: what the guest sees of it, and what the VMMs say.

use anyhow::Result;

use crate::mover::{Hop, Mover, Ours, Theirs, measured_hop};
use crate::setup::Setup;
use crate::stats::Samples;
use crate::table::{Better, Row, Section};

const MEMORY: &str = "1G";
/// The vCPU spins, so that a gap is exact; every page is checked before it is written again.
const LOAD: &str = "ws=512M rate=10000 idle=spin sweep_ms=20000 status_ms=100";
const DMA: &str = "dma=on dma_rate=2000";
/// The default of `drogher migrate`; QEMU's is 300.
const DOWNTIME_MS: u64 = 50;
const QEMU_DOWNTIME_MS: u64 = 300;

/// A name, and how to get it from a move.
type Figure = (&'static str, fn(&Hop) -> f64);

/// One guest and its moves so far.
struct Lane<'a> {
    name: String,
    mover: Box<dyn Mover + 'a>,
    hops: Vec<Hop>,
}

impl Lane<'_> {
    fn samples(&self, what: fn(&Hop) -> f64) -> Samples {
        self.hops.iter().map(what).collect()
    }
}

/// Several guests move by turns, each paused while another is measured.
pub fn measure(setup: &Setup) -> Result<Section> {
    let mut section = Section::new(format!(
        "Live migration over a Unix socket: {MEMORY} guest, 1 vCPU, {LOAD}, no --verify"
    ));
    let plain = setup.guest(MEMORY, &format!("{LOAD} dma=off"));
    let with_dma = setup.guest(MEMORY, &format!("{LOAD} {DMA}"));
    let lane = |name: &str, mover| Lane { name: name.to_owned(), mover, hops: Vec::new() };
    setup.say("migration: starting guests");
    let mut lanes: Vec<Lane<'_>> = vec![
        lane("ours", Box::new(Ours::start(setup, "plain", &plain, &[], DOWNTIME_MS)?)),
        lane(
            "ours, dma on",
            Box::new(Ours::start(setup, "dma", &with_dma, &["ndma"], DOWNTIME_MS)?),
        ),
    ];
    match &setup.qemu {
        Ok(_) => {
            for limit in [DOWNTIME_MS, QEMU_DOWNTIME_MS] {
                let mover = Theirs::start(setup, &format!("qemu{limit}"), &plain, limit)?;
                lanes.push(lane(&format!("QEMU, limit {limit} ms"), Box::new(mover)));
            }
        }
        Err(error) => section.note(format!("QEMU was not measured: {error:#}")),
    }
    let rounds = setup.count(11, 2);
    for round in 0..rounds {
        setup.say(&format!("migration: round {} of {rounds}", round + 1));
        for step in 0..lanes.len() {
            // A different one first each time, so that none always follows the same.
            let which = (round + step) % lanes.len();
            let lane = &mut lanes[which];
            lane.hops.push(measured_hop(lane.mover.as_mut())?);
        }
    }
    fill(&mut section, &lanes);
    Ok(section)
}

fn fill(section: &mut Section, lanes: &[Lane<'_>]) {
    let [plain, dma, qemu @ ..] = lanes else {
        return;
    };
    let what: [Figure; 3] = [
        ("guest-seen blackout", |hop| hop.blackout_ms),
        ("VMM-seen downtime", |hop| hop.downtime_ms),
        ("total time", |hop| hop.total_ms),
    ];
    for (metric, of) in what {
        for (name, ours) in [(metric.to_owned(), plain), (format!("{metric}, dma on"), dma)] {
            let row = |theirs: Option<&Lane<'_>>| {
                let row = Row::new(&name, "ms", Better::Lower, &ours.samples(of));
                match theirs {
                    Some(theirs) => row.against(&theirs.name, &theirs.samples(of)),
                    None => row,
                }
            };
            // With DMA there is nothing to compare with: it stands beside the same QEMU.
            let beside = if std::ptr::eq(ours, dma) { qemu.get(..1).unwrap_or(&[]) } else { qemu };
            match beside {
                [] => section.row(row(None)),
                beside => beside.iter().for_each(|theirs| section.row(row(Some(theirs)))),
            }
        }
    }
    for (lane, tail) in [(plain, ""), (dma, ", dma on")] {
        let metric = format!("blackout beyond the last pages{tail}");
        let beyond = lane.samples(|hop| match &hop.ours {
            Some((report, _)) => {
                // The last harvest's record goes out when the destination has taken the pages.
                let pages_us = report.downtime.final_us + report.downtime.last_us;
                hop.blackout_ms - pages_us as f64 / 1e3
            }
            None => f64::NAN,
        });
        section.row(Row::new(&metric, "ms", Better::Lower, &beyond));
    }
    section
        .note("blackout: largest TSC gap in the guest's status line (100 ms) that covers the move");
    for lane in lanes {
        let noise = lane.samples(|hop| hop.noise_ms).summary();
        let noise = noise.map_or(f64::NAN, |noise| noise.median);
        section.note(format!("{}: a line without a move has gaps of {noise:.1} ms", lane.name));
    }
    terms(section, plain);
    for lane in qemu {
        let stands = |of| lane.samples(of).summary().map_or(f64::NAN, |said| said.median);
        if stands(|hop| hop.blackout_ms) < stands(|hop| hop.downtime_ms) / 2.0 {
            section.note(format!(
                "{}: its guest's TSC stood still in the move, so look at the VMM-seen downtime",
                lane.name
            ));
        }
    }
}

/// The median of each term of our downtime.
fn terms(section: &mut Section, lane: &Lane<'_>) {
    let reports: Vec<_> =
        lane.hops.iter().filter_map(|hop| hop.ours.as_ref().map(|(report, _)| report)).collect();
    let median = |of: fn(&drogher_migrate::report::Downtime) -> u64| {
        let samples: Samples = reports.iter().map(|report| of(&report.downtime) as f64).collect();
        samples.summary().map_or(f64::NAN, |said| said.median)
    };
    section.note(format!(
        "our downtime, medians in µs: pause {:.0}, quiesce {:.0}, stop {:.0}, last pages {:.0}, \
         state {:.0}, last harvest {:.0}, ready {:.0}, commit {:.0}; {:.0} pages",
        median(|t| t.pause_us),
        median(|t| t.quiesce_us),
        median(|t| t.stop_us),
        median(|t| t.final_us),
        median(|t| t.state_us),
        median(|t| t.last_us),
        median(|t| t.ready_us),
        median(|t| t.commit_us),
        median(|t| t.pages),
    ));
}
