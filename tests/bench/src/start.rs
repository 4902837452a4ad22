//! From the start of a process until its guest's first output.

use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use drogher_tests::DEADLINE;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::qemu::{self, Guest, QBOOT};
use crate::setup::Setup;
use crate::stats::Samples;
use crate::table::{Better, Row, Section};

const MEMORY: &str = "256M";
/// The guest leaves the device alone: setting it up is the guest's own time.
const LOAD: &str = "ws=16M rate=0 dma=off";

/// Measures processes by turns.
pub fn measure(setup: &Setup) -> Result<Section> {
    let guest = setup.guest(MEMORY, LOAD);
    let ours = |devices: &[&str]| {
        let mut command = drogher_tests::drogher(["run", "--memory", MEMORY, "--cmdline"]);
        command.arg(&guest.cmdline).arg("--lease").arg(setup.place.path("start.lease"));
        command.args(devices.iter().flat_map(|device| ["--device", device]));
        command
    };
    let theirs = |guest: &Guest, firmware| {
        let mut command = qemu::command(guest, firmware);
        command.args(["-serial", "stdio"]);
        command
    };
    let mut plain = Samples::new();
    let mut with_device = Samples::new();
    let mut qboot = Samples::new();
    let mut default = Samples::new();
    let mut section =
        Section::new(format!("Start: process start to the guest's first output; {MEMORY} guest"));
    let rounds = setup.count(21, 4);
    for round in 0..rounds {
        if round % 5 == 0 {
            setup.say(&format!("start: round {} of {rounds}", round + 1));
        }
        plain.push(first_output(ours(&[]))?);
        if setup.qemu.is_ok() {
            qboot.push(first_output(theirs(&guest, Some(QBOOT)))?);
        }
        with_device.push(first_output(ours(&["ndma"]))?);
        // Its default firmware may take seconds.
        if setup.qemu.is_ok() && round < 3 {
            default.push(first_output(theirs(&guest, None))?);
        }
    }
    let row = |name, ours| Row::new(name, "ms", Better::Lower, ours);
    section.row(row("start", &plain).against("QEMU microvm, qboot", &qboot));
    section.row(row("start", &plain).against("QEMU microvm, default firmware", &default));
    section.row(row("start, with ndma", &with_device).against("QEMU microvm, qboot", &qboot));
    section.note("a millisecond of each is the guest's own, which measures its timer");
    if let Err(error) = &setup.qemu {
        section.note(format!("QEMU was not measured: {error:#}"));
    }
    Ok(section)
}

/// Milliseconds until the process has written a byte. It is killed then.
fn first_output(mut command: Command) -> Result<f64> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let begin = Instant::now();
    let mut child = command.spawn().with_context(|| format!("{command:?} cannot be run"))?;
    let first = wait(&mut child, &command);
    let taken = begin.elapsed();
    let _ = child.kill();
    let _ = child.wait();
    first.map(|()| taken.as_secs_f64() * 1e3)
}

fn wait(child: &mut Child, command: &Command) -> Result<()> {
    let stdout: &ChildStdout = child.stdout.as_ref().context("its output is piped")?;
    let end = Instant::now() + DEADLINE;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "no output of {command:?}");
        let slice = Timespec::try_from(left.min(Duration::from_secs(1)))?;
        let mut fds = [PollFd::new(stdout, PollFlags::IN)];
        match poll(&mut fds, Some(&slice)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) if fds[0].revents().contains(PollFlags::IN) => return Ok(()),
            Ok(_) => bail!("{command:?} ended without output"),
            Err(error) => return Err(error.into()),
        }
    }
}
