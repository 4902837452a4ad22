//! Signals, full disks, closed pipes and stray connections: none of them costs a guest, and none
//! makes a process hang.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use drogher_control::api::{GuestState, MigrateLine};
use drogher_control::client::Client;
use drogher_migrate::Phase;
use drogher_migrate::wire::MAGIC;
use drogher_tests::{
    DEADLINE, LOAD, Migrating, Migration, Place, Vm, bin_folder, drogher, kvm, unhung,
};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::Signal;

const HOOK: &str = "DROGHER_TEST_HOOK";

/// Waits until `is` holds.
fn until(what: &str, mut is: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + DEADLINE;
    while !is()? {
        ensure!(Instant::now() < end, "never came: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A migration that the destination holds at a phase.
struct Held {
    place: Place,
    source: Vm,
    destination: Vm,
    migrating: Option<Migrating>,
    gate: PathBuf,
}

impl Held {
    fn at(phase: Phase) -> Result<Self> {
        let place = Place::new();
        let gate = place.path("gate");
        let hook = format!("destination:{phase}=wait:{}", gate.display());
        let mut source = place.run("a", LOAD, &[], &[])?;
        source.progress(2)?;
        let mut destination = place.receive("b", &[], &[(HOOK, &hook)])?;
        let migrating = Migration::start(&place, &source, &destination, &[])?;
        destination.wait_for_file(&place.path("gate.reached"))?;
        Ok(Self { place, source, destination, migrating: Some(migrating), gate })
    }

    fn end(&mut self) -> Result<Migration> {
        std::fs::write(&self.gate, "")?;
        self.migrating.take().context("ended once")?.end()
    }
}

#[test]
fn a_signal_to_a_destination_before_ready_leaves_the_guest_at_its_source() -> Result<()> {
    if !kvm("a_signal_to_a_destination_before_ready_leaves_the_guest_at_its_source") {
        return Ok(());
    }
    let cases = [
        (Phase::Setup, Signal::TERM),
        (Phase::Bulk, Signal::TERM),
        (Phase::Bulk, Signal::INT),
        (Phase::Resend, Signal::HUP),
        (Phase::DeviceState, Signal::INT),
        (Phase::Ready, Signal::TERM),
    ];
    for (phase, signal) in cases {
        let mut held = Held::at(phase)?;
        held.destination.signal(signal)?;
        let why = held.end()?.expect_stays().with_context(|| format!("{phase} {signal:?}"))?;
        ensure!(why.contains("aborted"), "{phase} {signal:?}: {why}");
        held.destination.expect_exit(1)?;
        let said = held.destination.stderr();
        ensure!(said.contains("aborted"), "{phase} {signal:?}: {said}");
        held.source.progress(2)?;
    }
    let mut held = Held::at(Phase::Bulk)?;
    held.destination.post("/v1/shutdown")?;
    held.end()?.expect_stays()?;
    held.destination.expect_exit(1)?;
    held.source.progress(2)
}

#[test]
fn a_signal_to_a_destination_after_ready_does_not_cost_the_guest() -> Result<()> {
    if !kvm("a_signal_to_a_destination_after_ready_does_not_cost_the_guest") {
        return Ok(());
    }
    for phase in [Phase::Commit, Phase::Running] {
        let mut held = Held::at(phase)?;
        held.destination.signal(Signal::TERM)?;
        held.end()?.expect_moved()?;
        held.source.expect_exit(0)?;
        held.destination.progress(2)?;
        let said = held.destination.stderr();
        ensure!(said.contains("too late"), "{phase}: {said}");
        held.destination.signal(Signal::TERM)?;
        held.destination.expect_exit(0)?;
        ensure!(held.place.path("lease").exists(), "the user has named it");
    }
    Ok(())
}

/// A pipe whose reader has gone.
fn broken_pipe() -> Result<OwnedFd> {
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    Ok(writer.into())
}

/// A pipe that is full, and nobody reads.
fn full_pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (reader, mut writer) = std::io::pipe()?;
    let flags = rustix::fs::fcntl_getfl(&writer)?;
    rustix::fs::fcntl_setfl(&writer, flags | rustix::fs::OFlags::NONBLOCK)?;
    while writer.write(&[b'x'; 4096]).is_ok() {}
    rustix::fs::fcntl_setfl(&writer, flags)?;
    Ok((reader.into(), writer.into()))
}

fn full_disk() -> Result<OwnedFd> {
    Ok(File::options().write(true).open("/dev/full")?.into())
}

/// `run` or `receive` with another standard error.
fn with_stderr(place: &Place, name: &str, args: &[&str], stderr: OwnedFd, log: &str) -> Result<Vm> {
    let mut command = drogher(args);
    command.args(["--console", "stdio"]).env("DROGHER_LOG", log);
    Vm::start_by(command, place, name, |command| {
        command.stderr(stderr);
    })
}

#[test]
fn whatever_becomes_of_standard_error_the_guest_moves() -> Result<()> {
    if !kvm("whatever_becomes_of_standard_error_the_guest_moves") {
        return Ok(());
    }
    for log in ["warn", "trace"] {
        let (_reader, full) = full_pipe()?;
        let (_other_reader, other_full) = full_pipe()?;
        let kinds = [
            ("a full disk", full_disk()?, full_disk()?),
            ("a broken pipe", broken_pipe()?, broken_pipe()?),
            ("a full pipe", full, other_full),
        ];
        for (what, ours, theirs) in kinds {
            let place = Place::new();
            let lease = place.path("lease");
            let lease = lease.to_str().context("UTF-8")?;
            let args = ["run", "--memory", "64M", "--device", "ndma", "--cmdline", LOAD, "--lease"];
            let args: Vec<_> = args.into_iter().chain([lease]).collect();
            let mut source = with_stderr(&place, "a", &args, ours, log)?;
            source.progress(2)?;
            let address = place.address("b.stream");
            let args = ["receive", "--listen", &address];
            let mut destination = with_stderr(&place, "b", &args, theirs, log)?;
            destination.wait_for_file(&place.path("b.stream"))?;
            let moved = place.migrate(&source, &destination, &[])?.expect_moved();
            moved.with_context(|| format!("{what}, {log}"))?;
            source.expect_exit(0)?;
            destination.progress(2).with_context(|| format!("{what}, {log}"))?;
            destination.post("/v1/shutdown")?;
            destination.expect_exit(0)?;
        }
    }
    Ok(())
}

#[test]
fn standard_output_that_cannot_be_written_is_an_error_and_not_that_of_a_migration() -> Result<()> {
    if !kvm("standard_output_that_cannot_be_written_is_an_error_and_not_that_of_a_migration") {
        return Ok(());
    }
    let place = Place::new();
    let mut source = place.run("a", LOAD, &[], &[])?;
    source.progress(1)?;
    let control = source.control.to_str().context("UTF-8")?.to_owned();
    let plugin = bin_folder().join("libdrogher_ndma.so");
    let plugin = plugin.to_str().context("UTF-8")?;
    let commands: [&[&str]; 4] = [
        &["status", "--control", &control],
        &["status", "--json", "--control", &control],
        &["pause", "--json", "--control", &control],
        &["plugin", "info", plugin],
    ];
    for args in commands {
        let output = drogher(args).stdout(full_disk()?).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1), "{args:?}: {} {said}", output.status);
        ensure!(said.contains("standard output") && !said.contains("panicked"), "{said}");
    }
    source.post("/v1/resume")?;
    let mut destination = place.receive("b", &[], &[])?;
    let to = place.address("b.stream");
    let args = ["migrate", "--json", "--control", &control, "--to", &to];
    let output = drogher(args).stdout(broken_pipe()?).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(0), "{}: {said}", output.status);
    destination.progress(1)
}

/// A listening socket whose queue is full, and what fills it.
fn full_queue(path: &Path) -> Result<(OwnedFd, Vec<UnixStream>)> {
    let kind = (AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC);
    let socket = rustix::net::socket_with(kind.0, kind.1, kind.2, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, 0)?;
    let mut filling = Vec::new();
    loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let client = rustix::net::socket_with(kind.0, kind.1, flags, None)?;
        if rustix::net::connect(&client, &SocketAddrUnix::new(path)?).is_err() {
            return Ok((socket, filling));
        }
        filling.push(client.into());
    }
}

#[test]
fn a_destination_that_does_not_accept_is_given_up_in_time() -> Result<()> {
    if !kvm("a_destination_that_does_not_accept_is_given_up_in_time") {
        return Ok(());
    }
    let place = Place::new();
    let _full = full_queue(&place.path("b.stream"))?;
    let mut source = place.run("a", LOAD, &[], &[])?;
    source.progress(1)?;
    let to = place.address("b.stream");
    let mut children = Vec::new();
    for _ in 0..20 {
        let mut command = drogher(["migrate", "--to", &to, "--control"]);
        let stderr = std::process::Stdio::piped();
        children.push(command.arg(&source.control).stderr(stderr).spawn()?);
    }
    let mut said = String::new();
    for mut child in children {
        child.stderr.take().context("stderr")?.read_to_string(&mut said)?;
        ensure!(child.wait()?.code() == Some(1), "{said}");
    }
    ensure!(said.contains("queue of connections is full"), "{said}");
    ensure!(source.status()?.vm.state == GuestState::Running);
    // Nor can it be taken for a dead socket.
    let output = drogher(["receive", "--listen", &to]).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1) && said.contains("in use"), "{said}");
    source.progress(1)
}

#[test]
fn requests_before_the_engine_has_begun_are_heard() -> Result<()> {
    if !kvm("requests_before_the_engine_has_begun_are_heard") {
        return Ok(());
    }
    let place = Place::new();
    let _full = full_queue(&place.path("b.stream"))?;
    let mut source = place.run("a", LOAD, &[], &[])?;
    source.progress(1)?;
    let control = source.control.clone();
    let ask = |to: String| {
        let client = Client::new(&control);
        std::thread::spawn(move || {
            let request = serde_json::json!({"to": to});
            client.post_lines("/v1/migrate", &request, |_: MigrateLine| ()).unwrap_err().to_string()
        })
    };
    let migrating = ask(place.address("b.stream"));
    until("an abort that is heard", || Ok(source.post("/v1/abort").is_ok()))?;
    let why = migrating.join().map_err(|_| anyhow::anyhow!("it was not refused"))?;
    ensure!(why.contains("given up before"), "{why}");
    source.progress(1)?;

    let mut migrating = ask(place.address("b.stream"));
    until("the second migration", || {
        // One of the requests below may have come first, and this have been refused for it.
        if migrating.is_finished() {
            migrating = ask(place.address("b.stream"));
            std::thread::sleep(Duration::from_millis(200));
        }
        let refused = source.post("/v1/migrate").err().map(|error| error.to_string());
        ensure!(refused.is_some(), "a request without a body");
        let request = serde_json::json!({"to": place.address("c.stream")});
        let client = Client::new(&source.control);
        let error = client.post_lines("/v1/migrate", &request, |_: MigrateLine| ());
        Ok(error.is_err_and(|error| error.to_string().contains("going on already")))
    })?;
    source.signal(Signal::TERM)?;
    let why = migrating.join().map_err(|_| anyhow::anyhow!("it was not refused"))?;
    ensure!(why.contains("given up before"), "{why}");
    source.expect_exit(0)
}

fn fifo(path: &Path) -> Result<()> {
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    Ok(rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0)?)
}

/// Runs a command that has to end by itself with `code`; what it says on standard error.
fn ends<S: AsRef<OsStr>>(args: &[S], code: i32) -> Result<String> {
    says(&mut drogher(args), code)
}

fn says(command: &mut Command, code: i32) -> Result<String> {
    let mut child = command.stderr(std::process::Stdio::piped()).spawn()?;
    let end = Instant::now() + DEADLINE;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
            None => {
                child.kill()?;
                child.wait()?;
                bail!("it does not end: {command:?}");
            }
        }
    };
    let mut said = String::new();
    child.stderr.take().context("stderr")?.read_to_string(&mut said)?;
    ensure!(status.code() == Some(code), "{command:?}: {status}\n{said}");
    ensure!(!said.contains("panicked"), "{command:?}: {said}");
    Ok(said)
}

#[test]
fn files_that_never_end_or_never_open_are_named_at_once() -> Result<()> {
    if !kvm("files_that_never_end_or_never_open_are_named_at_once") {
        return Ok(());
    }
    let place = Place::new();
    let pipe = place.path("fifo");
    fifo(&pipe)?;
    let pipe = pipe.to_str().context("UTF-8")?;
    let listen = place.address("stream");
    let said = ends(&["run", "--console", pipe], 1)?;
    ensure!(said.contains(pipe) && said.contains("nobody reads"), "{said}");
    let said = ends(&["receive", "--listen", &listen, "--console", pipe], 1)?;
    ensure!(said.contains(pipe) && said.contains("nobody reads"), "{said}");
    for file in [pipe, "/dev/zero", "/"] {
        for flag in ["--kernel", "--initrd"] {
            let said = ends(&["run", "--console", "none", flag, file], 1)?;
            ensure!(said.contains(file) && said.contains("not a regular file"), "{said}");
        }
    }
    let said = ends(&["run", "--config", "/dev/zero"], 1)?;
    ensure!(said.contains("/dev/zero") && said.contains("more than"), "{said}");
    ensure!(!place.path("stream").exists());
    Ok(())
}

#[test]
fn what_is_wrong_with_a_destination_shows_before_it_listens() -> Result<()> {
    if !kvm("what_is_wrong_with_a_destination_shows_before_it_listens") {
        return Ok(());
    }
    let place = Place::new();
    let listen = place.address("stream");
    let missing = place.path("no/such");
    let missing = missing.to_str().context("UTF-8")?;
    let wrong: [(&[&str], &str); 3] = [
        (&["--device", "nope"], "nope"),
        (&["--console", missing], missing),
        (&["--lease", missing], missing),
    ];
    for (args, word) in wrong {
        let args: Vec<_> = ["receive", "--listen", &listen].iter().chain(args).copied().collect();
        let said = ends(&args, 1)?;
        ensure!(said.contains(word), "{args:?}: {said}");
        ensure!(!place.path("stream").exists(), "{args:?}");
    }
    for command in [&["run"][..], &["receive", "--listen", &listen]] {
        let said = says(drogher(command).env(HOOK, "source:nonsense=kill"), 1)?;
        ensure!(said.contains(HOOK) && said.contains("nonsense"), "{said}");
    }
    Ok(())
}

#[test]
fn wrong_command_lines_end_with_2() -> Result<()> {
    let wrong: [&[&str]; 10] = [
        &["run", "--cpus", "0"],
        &["run", "--cpus", "256"],
        &["run", "--memory", "17M"],
        &["run", "--device", "ndma,"],
        &["receive", "--listen", "x"],
        &["receive", "--listen", "unix:/tmp/x", "--memory", "17"],
        &["receive", "--listen", "unix:/tmp/x", "--cpus", "99"],
        &["migrate", "--control", "/tmp/x", "--to", "x"],
        &["demo", "--memory", "1"],
        &["demo", "--cpus", "9"],
    ];
    for args in wrong {
        ends(args, 2)?;
    }
    Ok(())
}

#[test]
fn a_lease_whose_path_cannot_be_told_is_refused() -> Result<()> {
    if !kvm("a_lease_whose_path_cannot_be_told_is_refused") {
        return Ok(());
    }
    let place = Place::new();
    let mut path = place.path("lease").into_os_string();
    path.push(OsStr::from_bytes(b"\xff"));
    let said = ends(&[OsStr::new("run"), OsStr::new("--lease"), &path], 1)?;
    ensure!(said.contains("UTF-8") && said.contains("--lease"), "{said}");
    let listen = place.address("stream");
    let args = ["receive", "--listen", &listen, "--lease"].map(OsStr::new);
    let said = ends(&args.into_iter().chain([&*path]).collect::<Vec<_>>(), 1)?;
    ensure!(said.contains("UTF-8"), "{said}");
    ensure!(!place.path("stream").exists());
    Ok(())
}

#[test]
fn a_waiting_destination_outlives_whoever_is_no_source() -> Result<()> {
    if !kvm("a_waiting_destination_outlives_whoever_is_no_source") {
        return Ok(());
    }
    let place = Place::new();
    let mut source = place.run("a", LOAD, &[], &[])?;
    source.progress(1)?;
    let mut destination = place.receive("b", &[], &[])?;
    let listen = place.address("b.stream");
    let said = ends(&["receive", "--listen", &listen, "--console", "none"], 1)?;
    ensure!(said.contains("in use") && !said.contains("control"), "{said}");
    let connect = || UnixStream::connect(place.path("b.stream"));
    // Silent ones, more than are kept, beside the source that will come.
    let silent = (0..20).map(|_| connect()).collect::<Result<Vec<_>, _>>()?;
    let mut half = connect()?;
    half.write_all(&MAGIC[..5])?;
    drop(connect()?);
    let mut noise = connect()?;
    noise.write_all(b"GET /v1/status HTTP/1.1\r\n\r\n")?;
    // It is closed, and the destination waits on.
    noise.set_read_timeout(Some(DEADLINE))?;
    let closed = noise.read(&mut [0; 16]);
    ensure!(closed.as_ref().is_ok_and(|&count| count == 0) || closed.is_err(), "{closed:?}");
    ensure!(destination.status()?.vm.state == GuestState::Waiting);
    place.migrate(&source, &destination, &[])?.expect_moved()?;
    drop(silent);
    destination.progress(1)
}

#[test]
fn a_guest_is_not_moved_to_its_own_process() -> Result<()> {
    if !kvm("a_guest_is_not_moved_to_its_own_process") {
        return Ok(());
    }
    let place = Place::new();
    let mut source = place.run("a", LOAD, &[], &[])?;
    source.progress(1)?;
    let own = place.address("a.control");
    let control = source.control.to_str().context("UTF-8")?.to_owned();
    let said = ends(&["migrate", "--control", &control, "--to", &own], 1)?;
    ensure!(said.contains("own process") && said.contains("drogher receive"), "{said}");
    source.progress(1)
}

#[test]
fn a_control_socket_that_has_a_successor_leaves_its_file() -> Result<()> {
    if !kvm("a_control_socket_that_has_a_successor_leaves_its_file") {
        return Ok(());
    }
    let place = Place::new();
    let mut first = place.run("a", LOAD, &[], &[])?;
    first.progress(1)?;
    std::fs::remove_file(&first.control)?;
    let args =
        ["run", "--memory", "64M", "--device", "ndma", "--cmdline", LOAD, "--console", "none"];
    let mut second = Vm::start_by(drogher(args), &place, "a", |_| {})?;
    let control = second.control.clone();
    second.wait_for_file(&control)?;
    first.signal(Signal::TERM)?;
    first.expect_exit(0)?;
    until("the second guest", || Ok(second.status()?.vm.state == GuestState::Running))?;
    ensure!(second.status()?.vm.pid == second.pid());
    second.post("/v1/shutdown")?;
    second.expect_exit(0)?;
    ensure!(!control.exists());
    Ok(())
}

/// `run` or `receive` that looks for its runtime folder in `folder`.
fn in_folder(place: &Place, name: &str, args: &[&str], folder: &str) -> Result<Vm> {
    let path = place.path(folder);
    if !path.exists() {
        std::fs::create_dir(&path)?;
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&path, private)?;
    }
    let mut command = unhung(&bin_folder().join("drogher"));
    command.args(args).args(["--console", "stdio"]).env("XDG_RUNTIME_DIR", path);
    command.env_remove(HOOK);
    Vm::start_by(command, place, name, |_| {})
}

fn files_in(place: &Place, folder: &str) -> Result<usize> {
    Ok(std::fs::read_dir(place.path(folder))?.count())
}

#[test]
fn a_lease_that_nobody_named_goes_with_the_guest_and_a_named_one_stays() -> Result<()> {
    if !kvm("a_lease_that_nobody_named_goes_with_the_guest_and_a_named_one_stays") {
        return Ok(());
    }
    let place = Place::new();
    let run = ["run", "--memory", "64M", "--device", "ndma", "--cmdline", LOAD];
    let mut source = in_folder(&place, "a", &run, "here")?;
    source.progress(1)?;
    ensure!(files_in(&place, "here")? == 1);
    let listen = place.address("b.stream");
    let mut destination = in_folder(&place, "b", &["receive", "--listen", &listen], "there")?;
    destination.wait_for_file(&place.path("b.stream"))?;
    place.migrate(&source, &destination, &[])?.expect_moved()?;
    source.expect_exit(0)?;
    ensure!(files_in(&place, "here")? == 1, "the destination holds it");
    destination.progress(1)?;
    // A terminal that goes away ends a guest as SIGTERM does.
    destination.signal(Signal::HUP)?;
    destination.expect_exit(0)?;
    ensure!(files_in(&place, "here")? == 0, "the destination has removed it");
    ensure!(!destination.control.exists());

    let named = place.path("here/drogher-mine.lease");
    let named = named.to_str().context("UTF-8")?;
    let args: Vec<_> = run.into_iter().chain(["--lease", named]).collect();
    let mut vm = in_folder(&place, "c", &args, "here")?;
    vm.progress(1)?;
    vm.post("/v1/shutdown")?;
    vm.expect_exit(0)?;
    ensure!(Path::new(named).exists(), "the user has named it");
    Ok(())
}

#[test]
fn a_hangup_that_is_ignored_from_the_start_stays_ignored() -> Result<()> {
    if !kvm("a_hangup_that_is_ignored_from_the_start_stays_ignored") {
        return Ok(());
    }
    let place = Place::new();
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(bin_folder().join("drogher"));
    command.args(["run", "--memory", "64M", "--device", "ndma", "--cmdline", LOAD]);
    command.args(["--console", "stdio", "--lease"]).arg(place.path("lease")).env_remove(HOOK);
    let mut vm = Vm::start_by(command, &place, "a", |_| {})?;
    vm.progress(1)?;
    vm.signal(Signal::HUP)?;
    vm.progress(3)?;
    vm.signal(Signal::TERM)?;
    vm.expect_exit(0)
}

#[test]
fn an_arrived_guest_shows_the_lease_path_of_its_own_side() -> Result<()> {
    if !kvm("an_arrived_guest_shows_the_lease_path_of_its_own_side") {
        return Ok(());
    }
    let place = Place::new();
    std::os::unix::fs::symlink(place.path(""), place.path("link"))?;
    let mut source = place.run("a", LOAD, &[], &[])?;
    source.progress(1)?;
    let lease = place.path("link/lease");
    let lease = lease.to_str().context("UTF-8")?;
    // It is asked as soon as its source knows that it runs.
    let destination = place.receive("b", &["--lease", lease], &[])?;
    place.migrate(&source, &destination, &[])?.expect_moved()?;
    let vm = destination.status()?.vm;
    ensure!(vm.state == GuestState::Running && vm.lease.as_deref() == Some(lease), "{vm:?}");
    Ok(())
}

#[test]
fn a_file_size_limit_is_an_error_and_no_death() -> Result<()> {
    if !kvm("a_file_size_limit_is_an_error_and_no_death") {
        return Ok(());
    }
    let place = Place::new();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -f 0; exec \"$@\"", "sh"]).arg(bin_folder().join("drogher"));
    command.args(["run", "--console", "none", "--lease"]).arg(place.path("lease"));
    let said = says(command.env_remove(HOOK), 1)?;
    ensure!(said.contains("File too large"), "{said}");
    Ok(())
}

/// The processes whose parent is `pid`.
fn children_of(pid: u32) -> Result<Vec<u32>> {
    let mut children = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(child) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
        if parent == Some(&pid.to_string()) {
            children.push(child);
        }
    }
    Ok(children)
}

#[test]
fn a_demo_that_is_ended_leaves_no_process_behind() -> Result<()> {
    if !kvm("a_demo_that_is_ended_leaves_no_process_behind") {
        return Ok(());
    }
    for signal in [Signal::TERM, Signal::INT, Signal::KILL] {
        let place = Place::new();
        std::fs::create_dir(place.path("tmp"))?;
        let mut command = drogher(["demo", "--memory", "128M"]);
        command.env("TMPDIR", place.path("tmp")).stdout(full_disk()?);
        let mut demo = command.stderr(File::create(place.path("stderr"))?).spawn()?;
        let mut children = Vec::new();
        let pid = demo.id();
        until("the demo's guest", || {
            children = children_of(pid)?;
            Ok(!children.is_empty())
        })?;
        let pid = rustix::process::Pid::from_child(&demo);
        rustix::process::kill_process(pid, signal)?;
        let mut status = None;
        until("the end of the demo", || {
            status = demo.try_wait()?;
            Ok(status.is_some())
        })?;
        let status = status.context("it has ended")?;
        // One that it was just about to start has the same fate.
        until("the end of its processes", || {
            Ok(children.iter().all(|child| {
                let stat = std::fs::read_to_string(format!("/proc/{child}/stat"));
                stat.is_err() || stat.is_ok_and(|stat| stat.contains(") Z "))
            }))
        })?;
        if signal != Signal::KILL {
            ensure!(status.code() == Some(130), "{signal:?}: {status}");
            let left = files_in(&place, "tmp")?;
            ensure!(left == 0, "{signal:?} leaves {left} files");
        }
    }
    Ok(())
}
