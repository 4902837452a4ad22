//! Memory of a VMM's process besides guest RAM, from `/proc/PID/smaps`.

use anyhow::{Context, Result, ensure};
use drogher_tests::{Vm, bin_folder};

use crate::console::Follower;
use crate::qemu::Qemu;
use crate::setup::Setup;
use crate::stats::Samples;
use crate::table::{Better, Row, Section};

const MEMORY: &str = "256M";
const MEMORY_KIB: u64 = 256 << 10;
const LOAD: &str = "ws=16M rate=1000 status_ms=200";

/// Memory in KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Usage {
    rss: u64,
    pss: u64,
    private_dirty: u64,
}

/// Sums up all mappings but those that hold guest RAM, the only ones that large.
fn besides_ram(smaps: &str, ram_kib: u64) -> Result<Usage> {
    let mut sum = Usage::default();
    let (mut is_ram, mut found) = (false, false);
    for line in smaps.lines() {
        let Some((key, rest)) = line.split_once(':') else { continue };
        let Some(kib) = rest.trim().strip_suffix(" kB") else { continue };
        let kib: u64 = kib.trim().parse().with_context(|| format!("no size in {line:?}"))?;
        match key {
            "Size" => {
                is_ram = kib >= ram_kib;
                found |= is_ram;
            }
            _ if is_ram => {}
            "Rss" => sum.rss += kib,
            "Pss" => sum.pss += kib,
            "Private_Dirty" => sum.private_dirty += kib,
            _ => {}
        }
    }
    ensure!(found, "no mapping of {ram_kib} KiB or more: where is guest RAM?");
    Ok(sum)
}

/// A name, and how to get it from a usage.
type Kind = (&'static str, fn(&Usage) -> u64);

fn usage(pid: u32) -> Result<Usage> {
    let path = format!("/proc/{pid}/smaps");
    let smaps = std::fs::read_to_string(&path).with_context(|| format!("Cannot read {path}"))?;
    besides_ram(&smaps, MEMORY_KIB)
}

/// Each process with a guest that has settled, by turns.
pub fn measure(setup: &Setup) -> Result<Section> {
    let mut section = Section::new(format!(
        "Memory besides guest RAM (/proc/PID/smaps), {MEMORY} guest that runs {LOAD}"
    ));
    let rounds = setup.count(5, 2);
    let [mut plain, mut device, mut theirs] = [const { Vec::new() }; 3];
    for round in 0..rounds {
        setup.say(&format!("memory: round {} of {rounds}", round + 1));
        plain.push(ours(setup, &format!("mem{round}"), &[])?);
        if setup.qemu.is_ok() {
            let guest = setup.guest(MEMORY, LOAD);
            let qemu = Qemu::start(&setup.place, &format!("qmem{round}"), &guest, None)?;
            settle(&mut Follower::new(&qemu.console))?;
            theirs.push(usage(qemu.pid())?);
        }
        device.push(ours(setup, &format!("dmem{round}"), &["--device", "ndma"])?);
    }
    let kinds: [Kind; 3] =
        [("RSS", |u| u.rss), ("PSS", |u| u.pss), ("private dirty", |u| u.private_dirty)];
    for (ours, tail) in [(&plain, ""), (&device, ", with ndma")] {
        for (name, of) in kinds {
            let mib = |all: &[Usage]| -> Samples {
                all.iter().map(|usage| of(usage) as f64 / 1024.0).collect()
            };
            let row = Row::new(&format!("{name}{tail}"), "MiB", Better::Lower, &mib(ours));
            section.row(row.against("QEMU microvm", &mib(&theirs)));
        }
    }
    section.note("RSS and PSS count pages of the binary and its libraries that were touched");
    if let Err(error) = &setup.qemu {
        section.note(format!("QEMU was not measured: {error:#}"));
    }
    Ok(section)
}

fn ours(setup: &Setup, name: &str, more: &[&str]) -> Result<Usage> {
    let cmdline = setup.cmdline(LOAD);
    let lease = setup.place.path(&format!("{name}.lease"));
    let lease = lease.to_str().context("the temporary folder's name is not UTF-8")?;
    let mut args = vec!["run", "--memory", MEMORY, "--cmdline", &cmdline, "--lease", lease];
    args.extend(more);
    let vm = Vm::start_with(&bin_folder().join("drogher"), &setup.place, name, &args, &[])?;
    settle(&mut Follower::new(&vm.console))?;
    usage(vm.pid())
}

fn settle(follower: &mut Follower) -> Result<()> {
    follower.ready()?;
    follower.statuses(3).map(drop)
}

#[cfg(test)]
#[path = "footprint_test.rs"]
mod tests;
