//! `drogher demo`: two processes of this binary, a guest under load, one live migration.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use drogher_control::api::{MigrateLine, MigrateRequest, Outcome, Status};
use drogher_control::client::Client;
use drogher_migrate::Report;
use drogher_probe::{Console, Line};

use crate::args::DemoArgs;
use crate::progress::{Progress, millis, table};
use crate::signals::{DIE_WITH, stop_flag};
use crate::words;

/// How long anything that the demo waits for may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// Exit status of a demo that a signal has ended.
const INTERRUPTED: u8 = 130;

/// Status lines of the guest to see before the move, and after it.
const LINES_BEFORE: u64 = 3;
const LINES_AFTER: u64 = 3;

/// `drogher demo`.
pub fn demo(args: &DemoArgs) -> anyhow::Result<u8> {
    let folder = tempfile::Builder::new().prefix("drogher-demo-").tempdir()?;
    let stop = stop_flag()?;
    let result = play(args, folder.path(), &stop);
    if stop.load(Ordering::Acquire) && result.is_err() {
        words::say("the demo was ended, and its processes with it");
        return Ok(INTERRUPTED);
    }
    if args.keep || result.is_err() {
        words::note(format_args!("sockets and consoles are kept in {}", folder.keep().display()));
    }
    result
}

fn play(args: &DemoArgs, folder: &Path, stop: &Arc<AtomicBool>) -> anyhow::Result<u8> {
    let place = |name: &str| folder.join(name);
    let listen = format!("unix:{}", place("stream").display());
    let load = format!("ws=64M rate=4000 dma=on dma_rate=500 vcpus={}", args.cpus);

    say("1. a guest boots in a first process: it writes 4000 pages/s over 64 MiB, and an emulated");
    say("   ndma device does 500 DMA descriptors/s to its memory; the guest checks every byte");
    let mut first = Process::start("first", folder, stop, |command| {
        command.args(["run", "--kernel", "probe", "--device", "ndma", "--cmdline", &load]);
        command.args(["--memory", &args.memory, "--cpus", &args.cpus.to_string()]);
        command.arg("--lease").arg(place("lease"));
    })?;
    first.watch(LINES_BEFORE)?;

    say("2. a second process waits for it, and the guest moves, running, from one to the other");
    let mut second = Process::start("second", folder, stop, |command| {
        command.args(["receive", "--listen", &listen]);
    })?;
    second.wait_for(&place("stream"))?;
    let report = migrate(&first.control, &listen, stop)?;
    let left = first.exit(DEADLINE)?;
    ensure!(left == Some(0), "the first process ended with status {left:?}, not 0");

    say("3. the guest goes on, and goes on checking, in the second process");
    second.watch(LINES_AFTER)?;
    let status: Status = Client::new(&second.control).get("/v1/status")?;
    let _: serde_json::Value =
        Client::new(&second.control).post("/v1/shutdown", &serde_json::json!({}))?;
    second.exit(DEADLINE)?;

    say("");
    say(&table(&report));
    say(&guest_view(&second.console, &report));
    say(&format!("  the guest   {} (pid {})", second.console, status.vm.pid));
    let verified = report.verified.as_ref().context("the migration was not verified")?;
    ensure!(verified.differing == 0, "{} pages differ", verified.differing);
    Ok(0)
}

fn say(text: &str) {
    // The demo goes on, and cleans up, whether or not anybody reads.
    let _ = words::print(format_args!("{text}\n"));
}

fn migrate(control: &Path, listen: &str, stop: &AtomicBool) -> anyhow::Result<Report> {
    let request = MigrateRequest {
        to: listen.to_owned(),
        downtime_ms: None,
        timeout_s: Some(60),
        timeout_strategy: None,
        tracking: Default::default(),
        verify: true,
        page_hash: None,
    };
    let mut progress = Progress::new(std::io::stdout());
    let mut end = None;
    let client = Client::new(control);
    client.post_lines("/v1/migrate", &request, |line: MigrateLine| {
        if stop.load(Ordering::Acquire) {
            // A migration that can't be aborted any more ends by itself.
            let _ = client.post::<_, serde_json::Value>("/v1/abort", &serde_json::json!({}));
        }
        match line {
            MigrateLine::Outcome { outcome, message, report, .. } => {
                end = Some((outcome, message, report));
            }
            line => progress.show(&line),
        }
    })?;
    match end {
        Some((Outcome::Moved, _, report)) => Ok(*report),
        Some((_, message, _)) => bail!("the guest was not moved: {message}"),
        None => bail!("the source did not say what became of the guest"),
    }
}

/// The blackout as the guest saw it, which includes the verification.
fn guest_view(console: &Console, report: &Report) -> String {
    let Some(blackout) = console.blackout() else {
        return "  guest saw   no gap that stands out from its scheduling noise".into();
    };
    let verify = report.downtime.verify_us;
    format!(
        "  guest saw   a gap of {}, {} of it for verifying; the largest in the second before: {}",
        millis(blackout.blackout_us),
        millis(verify),
        millis(blackout.noise_us),
    )
}

/// A child process with a guest's console in a file.
struct Process {
    name: &'static str,
    child: Child,
    control: PathBuf,
    output: File,
    console: Console,
    stop: Arc<AtomicBool>,
}

impl Process {
    fn start(
        name: &'static str,
        folder: &Path,
        stop: &Arc<AtomicBool>,
        arguments: impl FnOnce(&mut Command),
    ) -> anyhow::Result<Self> {
        let control = folder.join(format!("{name}.control"));
        let console = folder.join(format!("{name}.console"));
        File::create(&console)?;
        let mut command = Command::new(std::env::current_exe()?);
        arguments(&mut command);
        command.arg("--control").arg(&control).arg("--console").arg(&console);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.env(DIE_WITH, std::process::id().to_string());
        let child = command.spawn().with_context(|| format!("the {name} process"))?;
        let output = File::open(&console)?;
        let stop = Arc::clone(stop);
        Ok(Self { name, child, control, output, console: Console::default(), stop })
    }

    /// Fails once somebody has asked for the end of the demo.
    fn go_on(&self) -> anyhow::Result<()> {
        ensure!(!self.stop.load(Ordering::Acquire), "the demo was ended");
        Ok(())
    }

    /// Shows the guest's lines until there were `lines` more status lines.
    fn watch(&mut self, lines: u64) -> anyhow::Result<()> {
        let end = Instant::now() + DEADLINE;
        let goal = self.console.status_lines() + lines;
        while self.console.status_lines() < goal {
            ensure!(Instant::now() < end, "the guest in the {} process says nothing", self.name);
            self.go_on()?;
            if let Some(status) = self.child.try_wait()? {
                bail!("the {} process ended early: {status}", self.name);
            }
            let mut bytes = Vec::new();
            self.output.read_to_end(&mut bytes)?;
            for line in self.console.feed(&bytes) {
                match line {
                    Line::Fail(text) => bail!("the guest found a fault: {text}"),
                    Line::Status(status) => say(&format!(
                        "   guest: {:.1} s, {} pages written, {} checked, {} DMA descriptors checked",
                        status.t.as_secs_f64(),
                        status.pages,
                        status.checked,
                        status.dma
                    )),
                    _ => {}
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn wait_for(&mut self, path: &Path) -> anyhow::Result<()> {
        let end = Instant::now() + DEADLINE;
        while !path.exists() {
            ensure!(Instant::now() < end, "the {} process is not ready", self.name);
            self.go_on()?;
            if let Some(status) = self.child.try_wait()? {
                bail!("the {} process ended early: {status}", self.name);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// The exit status, or none if a signal ended it.
    fn exit(&mut self, deadline: Duration) -> anyhow::Result<Option<i32>> {
        let end = Instant::now() + deadline;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code());
            }
            ensure!(Instant::now() < end, "the {} process does not end", self.name);
            self.go_on()?;
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Ended already, if all went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
