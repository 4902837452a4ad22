//! What the end-to-end tests share: real processes of the real binary, each with a deadline.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use drogher_control::api::{MigrateLine, Outcome, Status};
use drogher_control::client::Client;
use drogher_machine::tracking::TrackingStatus;
use drogher_migrate::Report;
use drogher_probe::Console;

/// Longest time for anything that a test waits for.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The load that tests run under, unless they say otherwise.
pub const LOAD: &str = "ws=8M rate=2000 dma=on dma_rate=400 status_ms=200";

/// False, and a loud word on standard error, where there is no KVM to test with.
#[must_use]
pub fn kvm(test: &str) -> bool {
    let there = File::options().read(true).write(true).open("/dev/kvm").is_ok();
    if !there {
        let line = format!("SKIPPED: {test}: no usable /dev/kvm\n");
        // Not through the test runner's capture: a skipped test must be seen.
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
    }
    there
}

/// The folder that holds the built binary and plugins.
///
/// # Panics
/// When the binary has not been built.
#[must_use]
pub fn bin_folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("DROGHER_BIN_DIR") {
        return folder.into();
    }
    let exe = std::env::current_exe().expect("the test's own path");
    let folder = exe.ancestors().nth(2).expect("target/PROFILE/deps/TEST").to_owned();
    assert!(
        folder.join("drogher").exists(),
        "{} has no drogher: run cargo build --workspace first",
        folder.display()
    );
    folder
}

/// A command of the binary, without hooks or mutants that the environment might name.
#[must_use]
pub fn drogher<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(bin_folder().join("drogher"));
    command.args(args).stdin(Stdio::null());
    command.env_remove("DROGHER_TEST_HOOK");
    command
}

/// A command that a hangup ends, also where whoever started the tests has it ignored (`nohup`).
#[must_use]
pub fn unhung(binary: &Path) -> Command {
    let mut command = Command::new("env");
    command.arg("--default-signal=HUP").arg(binary);
    command
}

/// A folder for one test's sockets, consoles and leases.
pub struct Place(tempfile::TempDir);

impl Place {
    /// A new one.
    ///
    /// # Panics
    /// When it can't be made.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it makes a folder")]
    pub fn new() -> Self {
        Self(tempfile::Builder::new().prefix("drogher-test-").tempdir().expect("a folder"))
    }

    /// A path in it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `unix:` and a path in it.
    #[must_use]
    pub fn address(&self, name: &str) -> String {
        format!("unix:{}", self.path(name).display())
    }

    /// Starts `drogher run` with a probe guest under `load`.
    pub fn run(&self, name: &str, load: &str, more: &[&str], env: &[(&str, &str)]) -> Result<Vm> {
        let lease = self.path("lease");
        let mut args = vec!["run", "--memory", "64M", "--cmdline", load, "--device", "ndma"];
        args.extend(["--lease", lease.to_str().context("UTF-8")?]);
        args.extend(more);
        Vm::start(self, name, &args, env)
    }

    /// Starts `drogher receive` at the socket `NAME.stream`, and waits until it listens.
    pub fn receive(&self, name: &str, more: &[&str], env: &[(&str, &str)]) -> Result<Vm> {
        let address = self.address(&format!("{name}.stream"));
        let mut args = vec!["receive", "--listen", &address];
        args.extend(more);
        let mut vm = Vm::start(self, name, &args, env)?;
        vm.wait_for_file(&self.path(&format!("{name}.stream")))?;
        Ok(vm)
    }

    /// Moves the guest of `source` to `destination` and waits for the end.
    pub fn migrate(&self, source: &Vm, destination: &Vm, more: &[&str]) -> Result<Migration> {
        Migration::start(self, source, destination, more)?.end()
    }
}

/// A `drogher run` or `drogher receive`; killed when dropped.
pub struct Vm {
    /// Its name in the test's folder.
    pub name: String,
    /// Its control socket.
    pub control: PathBuf,
    /// Where its guest's serial output goes.
    pub console: PathBuf,
    stderr: PathBuf,
    child: Child,
}

impl Vm {
    fn start(place: &Place, name: &str, args: &[&str], env: &[(&str, &str)]) -> Result<Self> {
        Self::start_with(&bin_folder().join("drogher"), place, name, args, env)
    }

    /// The same with another binary.
    pub fn start_with(
        binary: &Path,
        place: &Place,
        name: &str,
        args: &[&str],
        env: &[(&str, &str)],
    ) -> Result<Self> {
        let mut command = unhung(binary);
        command.args(args).args(["--console", "stdio"]);
        command.env_remove("DROGHER_TEST_HOOK").envs(env.iter().copied());
        Self::start_by(command, place, name, |_| {})
    }

    /// The same with any command that ends in arguments of `run` or `receive`; `change` has the last
    /// word.
    pub fn start_by(
        mut command: Command,
        place: &Place,
        name: &str,
        change: impl FnOnce(&mut Command),
    ) -> Result<Self> {
        let control = place.path(&format!("{name}.control"));
        let console = place.path(&format!("{name}.console"));
        let stderr = place.path(&format!("{name}.stderr"));
        command.arg("--control").arg(&control).stdin(Stdio::piped());
        command.stdout(File::create(&console)?).stderr(File::create(&stderr)?);
        change(&mut command);
        let child = command.spawn()?;
        Ok(Self { name: name.to_owned(), control, console, stderr, child })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        Ok(rustix::process::kill_process(pid, signal)?)
    }

    /// What it has written to standard error.
    #[must_use]
    pub fn stderr(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// What its guest has written, as a probe's console.
    pub fn probe(&self) -> Result<Console> {
        let mut console = Console::default();
        let mut bytes = Vec::new();
        match File::open(&self.console) {
            Ok(mut file) => file.read_to_end(&mut bytes)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error.into()),
        };
        console.feed(&bytes);
        if let Some(fail) = console.fail() {
            bail!("the guest in {} found a fault: {fail}", self.name);
        }
        Ok(console)
    }

    /// Waits until its guest has written `lines` more status lines, each with more work checked.
    pub fn progress(&mut self, lines: u64) -> Result<()> {
        let goal = self.probe()?.status_lines() + lines;
        let end = Instant::now() + DEADLINE;
        loop {
            let console = self.probe()?;
            if console.status_lines() >= goal {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended early: {status}\n{}", self.name, self.stderr());
            }
            ensure!(
                Instant::now() < end,
                "the guest in {} says nothing\n{console}\n{}",
                self.name,
                self.stderr()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until its guest has written `lines` status lines in all.
    pub fn reach(&self, lines: u64) -> Result<()> {
        let end = Instant::now() + DEADLINE;
        while self.probe()?.status_lines() < lines {
            ensure!(Instant::now() < end, "the guest in {} says nothing", self.name);
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Types a character on the guest's serial line.
    pub fn type_in(&mut self, key: u8) -> Result<()> {
        let stdin = self.child.stdin.as_mut().context("the guest has no input")?;
        stdin.write_all(&[key])?;
        Ok(stdin.flush()?)
    }

    /// True if its guest writes nothing for `time`.
    pub fn is_silent(&self, time: Duration) -> Result<bool> {
        let size = || std::fs::metadata(&self.console).map_or(0, |metadata| metadata.len());
        self.probe()?;
        let before = size();
        std::thread::sleep(time);
        Ok(size() == before)
    }

    /// Its status.
    pub fn status(&self) -> Result<Status> {
        Ok(Client::new(&self.control).get("/v1/status")?)
    }

    /// A POST without a body.
    pub fn post(&self, path: &str) -> Result<()> {
        let _: serde_json::Value = Client::new(&self.control).post(path, &serde_json::json!({}))?;
        Ok(())
    }

    /// Waits until `path` exists.
    pub fn wait_for_file(&mut self, path: &Path) -> Result<()> {
        let end = Instant::now() + DEADLINE;
        while !path.exists() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended early: {status}\n{}", self.name, self.stderr());
            }
            ensure!(Instant::now() < end, "{} never made {}", self.name, path.display());
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Waits for its end.
    pub fn exit(&mut self) -> Result<ExitStatus> {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < end, "{} does not end\n{}", self.name, self.stderr());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// True while it has not ended.
    pub fn is_alive(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Asserts that it ends with `code`.
    pub fn expect_exit(&mut self, code: i32) -> Result<()> {
        let status = self.exit()?;
        ensure!(status.code() == Some(code), "{}: {status}\n{}", self.name, self.stderr());
        Ok(())
    }

    /// Asserts that a signal ended it.
    pub fn expect_killed(&mut self) -> Result<()> {
        let status = self.exit()?;
        ensure!(status.signal() == Some(9), "{}: {status}\n{}", self.name, self.stderr());
        Ok(())
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {} on standard error:\n{}", self.name, self.stderr());
        }
        // Ended already, most often.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A `drogher migrate --json` that is going on; killed when dropped.
pub struct Migrating {
    child: Child,
    output: PathBuf,
    stderr: PathBuf,
}

/// A migration that has ended.
#[derive(Debug)]
pub struct Migration {
    /// Exit status of `drogher migrate`.
    pub code: Option<i32>,
    /// What became of the guest, if the source could still say so.
    pub outcome: Option<Outcome>,
    /// In words.
    pub message: String,
    /// Figures, if the source could still give them.
    pub report: Option<Report>,
    /// How DMA was tracked, if it came to that.
    pub tracking: Option<TrackingStatus>,
    /// All lines.
    pub lines: Vec<MigrateLine>,
}

impl Migration {
    /// Starts to move the guest of `source` to `destination`.
    pub fn start(place: &Place, source: &Vm, destination: &Vm, more: &[&str]) -> Result<Migrating> {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let output = place.path(&format!("migrate-{count}.json"));
        let stderr = place.path(&format!("migrate-{count}.stderr"));
        let mut command = drogher(["migrate", "--json", "--control"]);
        command.arg(&source.control);
        command.args(["--to", &place.address(&format!("{}.stream", destination.name))]);
        command.args(more);
        command.stdout(File::create(&output)?).stderr(File::create(&stderr)?);
        Ok(Migrating { child: command.spawn()?, output, stderr })
    }

    /// Asserts that the guest has moved.
    pub fn expect_moved(self) -> Result<Report> {
        ensure!(
            self.outcome == Some(Outcome::Moved) && self.code == Some(0),
            "not moved: exit {:?}, {:?}: {}",
            self.code,
            self.outcome,
            self.message
        );
        self.report.context("no report")
    }

    /// Asserts that the guest has stayed, and returns why.
    pub fn expect_stays(self) -> Result<String> {
        ensure!(
            self.outcome == Some(Outcome::Stays) && self.code == Some(1),
            "it did not stay: exit {:?}, {:?}: {}",
            self.code,
            self.outcome,
            self.message
        );
        Ok(self.message)
    }
}

impl Migrating {
    /// Waits for the end.
    pub fn end(mut self) -> Result<Migration> {
        let end = Instant::now() + DEADLINE;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(Instant::now() < end, "drogher migrate does not end");
            std::thread::sleep(Duration::from_millis(2));
        };
        let text = std::fs::read_to_string(&self.output)?;
        let lines: Vec<MigrateLine> =
            text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let mut migration = Migration {
            code: status.code(),
            outcome: None,
            message: std::fs::read_to_string(&self.stderr)?,
            report: None,
            tracking: None,
            lines,
        };
        if let Some(MigrateLine::Outcome { outcome, message, report, tracking }) =
            migration.lines.last()
        {
            migration.tracking = tracking.as_deref().cloned();
            migration.outcome = Some(*outcome);
            migration.message.clone_from(message);
            migration.report = Some((**report).clone());
        }
        Ok(migration)
    }
}

impl Drop for Migrating {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
