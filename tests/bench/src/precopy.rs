//! How fast pre-copy sends pages, against a raw copy of as many bytes over the same kind of socket.

use anyhow::{Context, Result};
use drogher_migrate::report::{Report, Round};

use crate::mover::{Ours, measured_hop};
use crate::raw::{Sink, Source};
use crate::setup::Setup;
use crate::stats::Samples;
use crate::table::{Better, Row, Section};

const MEMORY: &str = "1G";
/// It wakes seldom: by default a probe looks for work every millisecond.
const IDLE: &str = "ws=768M rate=0 sweep_ms=0 dma=off status_ms=100 nap_us=20000";
/// Enough for a second round of some 100 MiB, into memory that the first has populated.
const BUSY: &str = "ws=768M rate=30000 sweep_ms=0 dma=off status_ms=100";
const GIB: f64 = (1u64 << 30) as f64;

/// Bytes of page contents in a round.
fn contents(round: &Round) -> u64 {
    (round.pages - round.zero_pages) * 4096
}

fn round(report: &Report, number: usize) -> Result<&Round> {
    report.rounds.get(number).with_context(|| format!("the migration had no round {number}"))
}

/// By turns: a migration of an idle guest, raw copies, a migration of a busy guest.
pub fn measure(setup: &Setup) -> Result<Section> {
    setup.say("pre-copy: starting guests");
    let start =
        |name: &str, load: &str| Ours::start(setup, name, &setup.guest(MEMORY, load), &[], 50);
    let mut idle = start("idle", IDLE)?;
    let mut busy = start("busy", BUSY)?;
    let source = Source::new(1 << 30)?;
    let [mut bulk, mut whole, mut second] = [const { Samples::new() }; 3];
    let kinds = [Sink::FreshFile, Sink::FreshMapping, Sink::Populated, Sink::Buffer];
    let mut raw = kinds.map(|kind| (kind, Samples::new()));
    let mut sent = (0, 0);
    let rounds = setup.count(9, 2);
    for turn in 0..rounds {
        setup.say(&format!("pre-copy: round {} of {rounds}", turn + 1));
        let hop = measured_hop(&mut idle)?;
        let (report, bulk_ms) = hop.ours.context("it is ours")?;
        let first = round(&report, 0)?;
        let bytes = contents(first);
        bulk.push(bytes as f64 / GIB / (first.time_us as f64 / 1e6));
        whole.push(bytes as f64 / GIB / (bulk_ms / 1e3));
        for step in 0..raw.len() {
            let which = (turn + step) % raw.len();
            let (kind, samples) = &mut raw[which];
            samples.push(source.copy(bytes, *kind)? / GIB);
        }
        let (report, _) = measured_hop(&mut busy)?.ours.context("it is ours")?;
        let next = round(&report, 1)?;
        second.push(contents(next) as f64 / GIB / (next.time_us as f64 / 1e6));
        sent = (bytes, contents(next));
    }
    let [(_, file), (_, mapping), (_, populated), (_, buffer)] = &raw;
    let mut section = Section::new(format!(
        "Pre-copy rate against a raw copy over a Unix socket, between two processes; {MEMORY} guest"
    ));
    let row = |metric: &str, ours: &Samples, against: &str, theirs: &Samples| {
        Row::new(metric, "GiB/s", Better::Higher, ours).against(against, theirs)
    };
    let bulk_name = "bulk round, new memory";
    section.row(row(bulk_name, &bulk, "raw, new file by pwrite (as ours)", file));
    let with = "bulk round, then populated";
    section.row(row(with, &whole, "raw, new mapping (faulted in)", mapping));
    section.row(row("round 1, populated memory, vCPU busy", &second, "raw, populated", populated));
    section.row(row(bulk_name, &bulk, "raw, populated", populated));
    section.row(row(bulk_name, &bulk, "raw, one buffer (the socket)", buffer));
    section.note(format!(
        "bulk: {:.0} MiB of non-zero pages of an idle guest; round 1: {:.0} MiB of a guest that \
         dirties 30,000 pages/s on one of the cores; page contents are hashed, as by default",
        sent.0 as f64 / 1048576.0,
        sent.1 as f64 / 1048576.0,
    ));
    Ok(section)
}
