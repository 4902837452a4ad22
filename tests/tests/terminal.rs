//! A shell with job control on a terminal of its own: what its keys do to a guest.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use drogher_control::api::{GuestState, Status};
use drogher_control::client::Client;
use drogher_tests::{DEADLINE, Place, bin_folder, kvm};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

const LOAD: &str = "ws=8M rate=100 status_ms=200";

/// An interactive shell; killed when dropped, and its terminal hung up.
struct Shell {
    keys: File,
    seen: Arc<Mutex<Vec<u8>>>,
    child: Child,
}

impl Shell {
    fn start() -> Result<Self> {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        let name = ptsname(&ours, Vec::new())?;
        let theirs = File::options().read(true).write(true).open(name.to_str()?)?;
        let child = Command::new("setsid")
            .args(["--ctty", "--wait", "bash", "--norc", "--noprofile", "-i"])
            .env("PS1", "$ ")
            .env("TERM", "dumb")
            .env_remove("DROGHER_TEST_HOOK")
            .stdin(theirs.try_clone()?)
            .stdout(theirs.try_clone()?)
            .stderr(Stdio::from(theirs))
            .spawn()
            .context("setsid and bash are needed")?;
        let keys = File::from(ours);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (mut screen, all) = (keys.try_clone()?, Arc::clone(&seen));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut buffer) {
                all.lock().expect("no panic").extend(&buffer[..count]);
            }
        });
        Ok(Self { keys, seen, child })
    }

    fn screen(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().expect("no panic")).into_owned()
    }

    fn press(&mut self, keys: &str) -> Result<()> {
        Ok(self.keys.write_all(keys.as_bytes())?)
    }

    /// Waits until the screen shows `text`.
    fn shows(&self, text: &str) -> Result<()> {
        until(|| self.screen().contains(text))
            .with_context(|| format!("the screen does not show {text:?}:\n{}", self.screen()))
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn until(mut holds: impl FnMut() -> bool) -> Result<()> {
    let end = Instant::now() + DEADLINE;
    while !holds() {
        ensure!(Instant::now() < end, "not within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn run(place: &Place) -> String {
    let binary = bin_folder().join("drogher");
    let (binary, control) = (binary.display(), place.path("control"));
    format!("{binary} run --memory 64M --cmdline '{LOAD}' --control {}", control.display())
}

#[test]
fn keys_pressed_for_a_shell_do_not_stop_a_guest_in_the_background() -> Result<()> {
    if !kvm("keys_pressed_for_a_shell_do_not_stop_a_guest_in_the_background") {
        return Ok(());
    }
    let place = Place::new();
    let mut shell = Shell::start()?;
    shell.press(&format!("{} &\n", run(&place)))?;
    shell.shows("in the background: no keys go to the guest")?;
    shell.shows("probe: t=")?;
    // The shell reads this; a process in the background that did would be stopped.
    shell.press("echo for-the-$((1 + 1))-shell\n\n")?;
    shell.shows("for-the-2-shell")?;
    let lines = shell.screen().matches("probe: t=").count();
    until(|| shell.screen().matches("probe: t=").count() >= lines + 3)?;
    let client = Client::new(&place.path("control"));
    let status: Status = client.get("/v1/status")?;
    ensure!(status.vm.state == GuestState::Running);
    ensure!(!shell.screen().contains("Stopped"), "{}", shell.screen());
    let _: serde_json::Value = client.post("/v1/shutdown", &serde_json::json!({}))?;
    shell.shows("shut down on request")
}

#[test]
fn the_escape_ends_a_guest_in_the_foreground_and_the_terminal_is_as_before() -> Result<()> {
    if !kvm("the_escape_ends_a_guest_in_the_foreground_and_the_terminal_is_as_before") {
        return Ok(());
    }
    let place = Place::new();
    let mut shell = Shell::start()?;
    shell.press(&format!("{}; echo code=$?; stty -a\n", run(&place)))?;
    shell.shows("probe: t=")?;
    // Ctrl-C is the guest's.
    shell.press("\x03")?;
    let lines = shell.screen().matches("probe: t=").count();
    until(|| shell.screen().matches("probe: t=").count() >= lines + 3)?;
    shell.press("\x01x")?;
    shell.shows("code=0")?;
    shell.shows(" icanon")
}
