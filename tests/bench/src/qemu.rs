//! QEMU as a peer: a microvm with the probe guest, and its monitor.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use drogher_tests::{DEADLINE, Place};
use serde_json::{Value, json};

/// The binary, as Debian names it.
pub const BINARY: &str = "qemu-system-x86_64";

/// The first line of `--version`; why there is none, if there is none.
pub fn version() -> Result<String> {
    let output = Command::new(BINARY).arg("--version").output();
    let output = output.with_context(|| {
        format!(
            "{BINARY} cannot be run: install Debian's package qemu-system-x86 for the comparison"
        )
    })?;
    ensure!(output.status.success(), "{BINARY} --version: {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

/// Where a guest's memory size, kernel and command line come from.
#[derive(Debug, Clone)]
pub struct Guest {
    /// The probe's ELF.
    pub kernel: PathBuf,
    /// Guest RAM, as both VMMs write it: `256M`.
    pub memory: String,
    /// The probe's options.
    pub cmdline: String,
}

/// The command of a microvm without devices besides its serial port.
pub fn command(guest: &Guest, firmware: Option<&str>) -> Command {
    let mut command = Command::new(BINARY);
    command.args(["-M", "microvm", "-accel", "kvm", "-cpu", "host,-arch-capabilities"]);
    command
        .args(["-m", &guest.memory, "-append", &guest.cmdline])
        .arg("-kernel")
        .arg(&guest.kernel);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    if let Some(firmware) = firmware {
        command.args(["-bios", firmware]);
    }
    command
}

/// The firmware with which QEMU starts fastest.
pub const QBOOT: &str = "qboot.rom";

/// A running QEMU; killed when dropped.
pub struct Qemu {
    child: Child,
    /// Where its guest's serial output goes.
    pub console: PathBuf,
    stderr: PathBuf,
    monitor: BufReader<UnixStream>,
}

impl Qemu {
    /// Starts one whose files are called `name`; with `incoming`, it waits for a guest there.
    pub fn start(place: &Place, name: &str, guest: &Guest, incoming: Option<&str>) -> Result<Self> {
        let console = place.path(&format!("{name}.console"));
        let stderr = place.path(&format!("{name}.stderr"));
        let socket = place.path(&format!("{name}.qmp"));
        let mut command = command(guest, Some(QBOOT));
        command.arg("-chardev").arg(format!("file,id=serial,path={}", console.display()));
        command.args(["-serial", "chardev:serial"]);
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", socket.display()));
        if let Some(address) = incoming {
            command.args(["-incoming", address]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&stderr)?);
        let mut child = command.spawn().with_context(|| format!("{BINARY} cannot be run"))?;
        let monitor = match connect(&mut child, &socket, &stderr) {
            Ok(monitor) => monitor,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        };
        let mut qemu = Self { child, console, stderr, monitor };
        qemu.line()?;
        qemu.execute("qmp_capabilities", &json!({}))?;
        Ok(qemu)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Runs one command of the monitor and returns its answer.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(self.monitor.get_mut(), "{request}").context("QEMU's monitor is gone")?;
        loop {
            let mut answer = self.line()?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refuses {command}: {error}");
            }
            // Events come in between.
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        let read = self.monitor.read_line(&mut line);
        if read.as_ref().is_ok_and(|bytes| *bytes > 0) {
            return Ok(serde_json::from_str(&line)?);
        }
        let said = std::fs::read_to_string(&self.stderr).unwrap_or_default();
        bail!("QEMU's monitor does not answer ({read:?}); QEMU said: {said}")
    }

    /// Moves its guest to `address`, at full speed, and returns `query-migrate` at the end.
    pub fn migrate(&mut self, address: &str, downtime_ms: u64) -> Result<Value> {
        // The default is 128 MiB/s.
        let parameters = json!({"max-bandwidth": 1u64 << 40, "downtime-limit": downtime_ms});
        self.execute("migrate-set-parameters", &parameters)?;
        self.execute("migrate", &json!({"uri": address}))?;
        let end = Instant::now() + DEADLINE;
        loop {
            let status = self.execute("query-migrate", &json!({}))?;
            match status["status"].as_str() {
                Some("completed") => return Ok(status),
                Some("failed" | "cancelled") => bail!("QEMU's migration has failed: {status}"),
                _ => ensure!(Instant::now() < end, "QEMU's migration does not end: {status}"),
            }
            // Often enough to be done soon, seldom enough not to be in its way.
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connect(child: &mut Child, socket: &Path, stderr: &Path) -> Result<BufReader<UnixStream>> {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Ok(stream) = UnixStream::connect(socket) {
            stream.set_read_timeout(Some(DEADLINE))?;
            stream.set_write_timeout(Some(DEADLINE))?;
            return Ok(BufReader::new(stream));
        }
        let said = || std::fs::read_to_string(stderr).unwrap_or_default();
        if let Some(status) = child.try_wait()? {
            bail!("QEMU ended early ({status}): {}", said());
        }
        ensure!(Instant::now() < end, "QEMU never opened its monitor: {}", said());
        std::thread::sleep(Duration::from_millis(2));
    }
}
