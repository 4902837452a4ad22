//! What dirty tracking in the IOMMU costs: runs the `dirty` bench of `drogher-iommu` several times
//! and gathers its `key=value` lines. Each run is itself the median of many rounds.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::setup::Setup;
use crate::stats::Samples;
use crate::table::{Better, Row, Section};

/// Leaves that are harvested: in the keys, and for people.
const LEAVES: [(&str, &str); 2] = [("4_KiB_leaves", "4 KiB"), ("2_MiB_leaves", "2 MiB")];

/// How many of them are dirty: in the keys, and for people.
const FILLS: [(&str, &str); 3] = [("none", "empty"), ("1pct", "1 % dirty"), ("all", "all dirty")];

/// Figures of one run by their keys.
type Figures = BTreeMap<String, f64>;

fn figures(output: &str) -> Figures {
    let pairs = output.lines().filter_map(|line| line.split_once('='));
    pairs.filter_map(|(key, value)| Some((key.to_owned(), value.parse().ok()?))).collect()
}

fn run() -> Result<Figures> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["bench", "--quiet", "--locked", "-p", "drogher-iommu", "--bench", "dirty"])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cargo cannot be run")?;
    ensure!(output.status.success(), "the bench of drogher-iommu: {}", output.status);
    Ok(figures(&String::from_utf8(output.stdout)?))
}

/// One figure of each run.
fn each(runs: &[Figures], key: &str) -> Result<Samples> {
    let missing = || format!("the bench of drogher-iommu did not say {key}");
    runs.iter().map(|run| run.get(key).copied().with_context(missing)).collect()
}

/// One figure times another, run by run.
fn product(runs: &[Figures], keys: [&str; 2]) -> Result<Samples> {
    let of = |run: &Figures| Some(run.get(keys[0])? * run.get(keys[1])?);
    let missing = || format!("the bench of drogher-iommu did not say {keys:?}");
    runs.iter().map(|run| of(run).with_context(missing)).collect()
}

/// Runs the bench and sorts its figures into rows.
pub fn measure(setup: &Setup) -> Result<Section> {
    let rounds = setup.count(5, 1);
    let mut runs = Vec::new();
    for round in 0..rounds {
        setup.say(&format!("iommu: run {} of {rounds}", round + 1));
        runs.push(run()?);
    }
    rows(&runs)
}

fn rows(runs: &[Figures]) -> Result<Section> {
    let mut section = Section::new("DMA through the IOMMU, and read_and_clear_dirty of 1 GiB");
    for size in ["64B", "4KiB", "64KiB"] {
        let tracked = format!("write_{size}_tracked_ns");
        let time = each(runs, &tracked)?;
        let name = format!("DMA write of {size}, tracked");
        for (against, key) in [
            ("untracked", "untracked"),
            ("guest memory's own copy", "direct"),
            ("memcpy", "memcpy"),
        ] {
            // Speeds over speeds: times the tracked time is the other's time.
            let speed = format!("write_{size}_tracked_over_{key}_speed");
            let theirs = product(runs, [&tracked, &speed])?;
            section.row(Row::new(&name, "ns", Better::Lower, &time).against(against, &theirs));
        }
        let first = each(runs, &format!("write_{size}_after_clear_ns"))?;
        let name = format!("DMA write of {size}, each first after a clear");
        section.row(Row::new(&name, "ns", Better::Lower, &first).against("tracked", &time));
    }
    let (hit, miss) = (each(runs, "iotlb_hit_ns")?, each(runs, "iotlb_miss_ns")?);
    let miss_row = Row::new("access without a copy, IOTLB miss", "ns", Better::Lower, &miss);
    section.row(miss_row.against("hit", &hit));
    for (leaves, leaf) in LEAVES {
        for (fill, dirty) in FILLS {
            let key = format!("harvest_{leaves}_{fill}");
            let time = each(runs, &format!("{key}_us_per_gib"))?;
            let scan: Samples = runs
                .iter()
                .filter_map(|run| {
                    let ratio = run.get(&format!("{key}_time_over_scan"))?;
                    Some(run.get(&format!("{key}_us_per_gib"))? / ratio)
                })
                .collect();
            let name = format!("read_and_clear_dirty per GiB, {leaf} leaves, {dirty}");
            let row = Row::new(&name, "µs", Better::Lower, &time);
            section.row(row.against("scan of as many entries", &scan));
        }
    }
    for (key, name) in [("unmap", "1 GiB"), ("unmap_leaves", "1 MiB, leaf by leaf")] {
        let ratio = each(runs, &format!("{key}_dirty_time_over_plain"))?;
        let one: Samples = runs.iter().map(|_| 1.0).collect();
        let name = format!("unmap of {name}, dirty");
        section.row(Row::new(&name, "times", Better::Lower, &ratio).against("clean", &one));
    }
    section.note("n runs, each the median of 201 rounds (67 for read_and_clear_dirty)");
    Ok(section)
}

#[cfg(test)]
#[path = "iommu_test.rs"]
mod tests;
