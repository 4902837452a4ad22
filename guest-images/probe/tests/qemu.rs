//! The probe runs under QEMU as well, so that the two can be measured against each other. QEMU is
//! optional: where there is none, this says so.

#[path = "harness/skip.rs"]
mod skip;

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use drogher_probe::{Console, Dma, Options};
use skip::{say_skipped, skipped};

const QEMU: &str = "qemu-system-x86_64";
/// Far longer than it takes on the busiest machine.
const PATIENCE: Duration = Duration::from_secs(100);

/// A QEMU that ends with the test.
struct Qemu {
    child: Child,
    output: Receiver<Vec<u8>>,
    console: Console,
    transcript: String,
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Qemu {
    fn boot(machine: &str, options: &Options) -> Self {
        let name = format!("probe-{machine}.elf");
        let image = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::write(&image, drogher_probe::ELF).expect("The image can be written");
        let mut child = Command::new(QEMU)
            .args(["-M", machine, "-accel", "kvm", "-cpu", "host,-arch-capabilities", "-m", "256"])
            .args(["-display", "none", "-monitor", "none", "-serial", "stdio", "-net", "none"])
            .args(["-no-reboot", "-append", &options.to_string()])
            .arg("-kernel")
            .arg(&image)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("QEMU starts");
        let mut stdout = child.stdout.take().expect("It is piped");
        let (sender, output) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = stdout.read(&mut buffer) {
                if sender.send(buffer[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        let (console, transcript) = (Console::default(), String::new());
        Self { child, output, console, transcript }
    }

    /// Reads on until the console is as wanted, or there is nothing more.
    fn read_until(&mut self, what: &str, wanted: impl Fn(&Console) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !wanted(&self.console) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(bytes) => {
                    self.transcript.push_str(&String::from_utf8_lossy(&bytes));
                    self.console.feed(&bytes);
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("No {what}:\n{}", self.transcript)
                }
            }
        }
    }

    /// Waits for its end; true if it was a good one.
    fn ends_well(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.child.try_wait().expect("It is our child") {
                Some(status) => return status.success(),
                None if Instant::now() >= deadline => panic!("It does not end"),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

/// Boots, works, is checked, and ends when it is told to.
fn runs_on(machine: &str, test: &str) {
    if skipped(test) {
        return;
    }
    if Command::new(QEMU).arg("--version").stdout(Stdio::null()).status().is_err() {
        return say_skipped(test, &format!("no {QEMU}"));
    }
    let options = Options {
        ws: 8 << 20,
        rate: 2_000,
        dma: Dma::Off,
        status_ms: 100,
        sweep_ms: 200,
        ..Options::DEFAULT
    };
    let mut qemu = Qemu::boot(machine, &options);
    qemu.read_until("sweep", |console| console.last().is_some_and(|last| last.sweeps >= 2));
    let hello = qemu.console.hello().expect("It comes first");
    assert_eq!((hello.vcpus, hello.ws, hello.ndma), (1, 8 << 20, 0), "{}", qemu.transcript);
    assert!(qemu.console.status_lines() >= 2, "{}", qemu.transcript);
    let letter = qemu.child.stdin.as_mut().expect("It is piped").write_all(b"S");
    letter.expect("It reads");
    qemu.read_until("bye", |console| console.bye().is_some());
    let bye = qemu.console.bye().expect("Just seen");
    assert!(bye.ok && bye.totals.pages > 0, "{}", qemu.transcript);
    assert_eq!(qemu.console.fail(), None, "{}", qemu.transcript);
    assert!(qemu.ends_well(), "{}", qemu.transcript);
}

#[test]
fn it_runs_on_microvm() {
    runs_on("microvm", "it_runs_on_microvm");
}

/// With firmware before it, PCI, and an ACPI port to power off by.
#[test]
fn it_runs_on_q35() {
    runs_on("q35", "it_runs_on_q35");
}
