//! Plugins that hang or break, in the real binary: an error that names the thing and the way out, the
//! process ends, or the VM lives on.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use drogher_tests::{DEADLINE, LOAD, Migration, Place, Vm, drogher, kvm};

/// The hostile plugin in C, built with `defines`; `None`, and a loud word, without a compiler.
fn hostile(place: &Place, name: &str, defines: &[&str]) -> Result<Option<PathBuf>> {
    let plugins = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins");
    let file = place.path(&format!("{name}.so"));
    let output = Command::new("cc")
        .args(["-std=gnu11", "-shared", "-fPIC", "-pthread", "-fvisibility=hidden"])
        .args(defines.iter().map(|define| format!("-D{define}")))
        .arg("-I")
        .arg(plugins.join("abi/include"))
        .arg("-o")
        .arg(&file)
        .arg(plugins.join("examples/hostile-c/hostile.c"))
        .output();
    match output {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("SKIPPED: no compiler cc");
            Ok(None)
        }
        Err(error) => Err(error).context("cc"),
        Ok(output) => {
            let words = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{defines:?}: {words}");
            Ok(Some(file))
        }
    }
}

/// A VM with an ndma device under load, and a hostile device beside it.
fn run(place: &Place, name: &str, file: &Path) -> Result<Vm> {
    place.run(name, LOAD, &["--device", file.to_str().context("UTF-8")?], &[])
}

/// What the VM says of its second device: state, and the error.
fn second(vm: &Vm) -> Result<(String, Option<String>)> {
    let status = vm.status()?;
    let device = status.vm.devices.get(1).context("two devices")?;
    Ok((device.state.clone(), device.error.clone()))
}

#[test]
fn a_plugin_that_cannot_be_started_is_named_and_the_process_ends() -> Result<()> {
    if !kvm("a_plugin_that_cannot_be_started_is_named_and_the_process_ends") {
        return Ok(());
    }
    let place = Place::new();
    let cases: [(&str, &str, &[&str]); 8] = [
        ("constructor", "CONSTRUCTOR_HANGS", &["loading did not return within", "restart without"]),
        ("init", "HANG=\"init\"", &["init did not return within", "restart without"]),
        ("create", "HANG=\"create\"", &["create did not return within", "leave it out"]),
        ("describe", "HANG=\"describe\"", &["describe did not return within", "leave it out"]),
        ("broken", "FATAL=\"create\"", &["create broke the device", "leave it out"]),
        ("destroy", "NO_VENDOR -DHANG=\"destroy\"", &["PCI vendor id 0xffff"]),
        ("refuses", "INIT_FAILS", &["no cards today"]),
        ("symbol", "NEEDS_MORE", &["undefined symbol: drogher_no_such_function"]),
    ];
    // All at once: most of the time goes into waiting for deadlines.
    let mut started = Vec::new();
    for (name, define, words) in cases {
        let defines: Vec<_> = define.split(" -D").collect();
        let Some(file) = hostile(&place, name, &defines)? else { return Ok(()) };
        let path = file.to_str().context("UTF-8")?;
        let args = ["run", "--memory", "64M", "--device", path];
        started.push((name, words, Vm::start_with(&binary(), &place, name, &args, &[])?));
    }
    for (name, words, mut vm) in started {
        vm.expect_exit(1)?;
        let said = vm.stderr();
        for word in words.iter().chain(&[&*format!("{name}.so")]) {
            ensure!(said.contains(word), "{name} does not name {word:?}:\n{said}");
        }
        ensure!(!said.contains("panicked"), "{said}");
    }
    Ok(())
}

fn binary() -> PathBuf {
    drogher_tests::bin_folder().join("drogher")
}

#[test]
fn an_orderly_end_destroys_devices_and_tells_their_plugins() -> Result<()> {
    if !kvm("an_orderly_end_destroys_devices_and_tells_their_plugins") {
        return Ok(());
    }
    let place = Place::new();
    let calls = place.path("calls");
    let noted = format!("CALLS=\"{}\"", calls.display());
    // Its destructor hangs, and does not keep the process.
    let Some(file) = hostile(&place, "noted", &[&noted, "DESTRUCTOR_HANGS"])? else {
        return Ok(());
    };
    let path = file.to_str().context("UTF-8")?;
    let args = ["run", "--memory", "64M", "--cmdline", "seconds=1", "--console", "none"];
    let mut child = drogher(args.into_iter().chain(["--device", path])).spawn()?;
    let end = Instant::now() + DEADLINE;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() < end => std::thread::sleep(Duration::from_millis(10)),
            None => {
                child.kill()?;
                child.wait()?;
                bail!("the process does not end");
            }
        }
    };
    ensure!(status.success(), "{status}");
    let calls = std::fs::read_to_string(&calls)?;
    let last: Vec<_> = calls.lines().rev().take(2).collect();
    ensure!(last == ["deinit", "destroy"], "{calls}");
    Ok(())
}

#[test]
fn a_device_that_does_not_start_costs_itself() -> Result<()> {
    if !kvm("a_device_that_does_not_start_costs_itself") {
        return Ok(());
    }
    let place = Place::new();
    let cases = [
        ("fatal", "FATAL=\"RUNNING\"", "set_state broke the device"),
        ("hang", "HANG=\"RUNNING\"", "set_state did not return within"),
    ];
    for (name, define, words) in cases {
        let Some(file) = hostile(&place, name, &[define])? else { return Ok(()) };
        let mut vm = run(&place, name, &file)?;
        vm.progress(2)?;
        let (state, error) = second(&vm)?;
        ensure!(state == "ERROR", "{name}: {state}");
        ensure!(error.as_ref().is_some_and(|error| error.contains(words)), "{name}: {error:?}");
        let said = vm.stderr();
        ensure!(said.contains("org.drogher.test.hostile") && said.contains(words), "{said}");
        vm.post("/v1/shutdown")?;
        vm.expect_exit(0)?;
    }
    Ok(())
}

/// A migration meets the fault: it is given up, names device and call, and the guest runs on at its
/// source with its other device.
fn gives_up(faults: &[(&str, &str)], call: &str) -> Result<()> {
    let place = Place::new();
    for (what, at) in faults {
        let name = format!("{what}-{at}");
        let define = format!("{what}=\"{at}\"");
        let Some(file) = hostile(&place, &name, &["NDMA", &define])? else { return Ok(()) };
        let mut source = run(&place, &name, &file)?;
        source.progress(1)?;
        let folder = file.parent().and_then(Path::to_str).context("UTF-8")?;
        // The destination finds the plugin by its id.
        let mut destination =
            place.receive(&format!("to-{name}"), &["--plugin-path", folder], &[])?;
        let why = Migration::start(&place, &source, &destination, &[])?.end()?.expect_stays()?;
        for word in ["org.drogher.test.hostile", call] {
            ensure!(why.contains(word), "{name}: {why:?} does not name {word:?}");
        }
        let broke = if *what == "HANG" { "did not return within" } else { "broke the device" };
        ensure!(why.contains(broke), "{name}: {why}");
        source.progress(2)?;
        let (state, error) = second(&source)?;
        ensure!(state == "ERROR" && error.is_some(), "{name}: {state} {error:?}");
        destination.expect_exit(1)?;
        // The folder holds one file with this id at a time.
        std::fs::remove_file(&file)?;
        source.post("/v1/shutdown")?;
        source.expect_exit(0)?;
    }
    Ok(())
}

#[test]
fn a_device_that_breaks_while_the_guest_runs_ends_the_migration_only() -> Result<()> {
    if !kvm("a_device_that_breaks_while_the_guest_runs_ends_the_migration_only") {
        return Ok(());
    }
    gives_up(&[("FATAL", "PRE_COPY"), ("HANG", "PRE_COPY")], "set_state")?;
    gives_up(&[("FATAL", "precopy_info"), ("HANG", "precopy_info")], "precopy_info")?;
    gives_up(&[("FATAL", "stop_copy_size"), ("HANG", "stop_copy_size")], "stop_copy_size")?;
    gives_up(&[("FATAL", "migration.read"), ("HANG", "migration.read")], "migration.read")
}

#[test]
fn a_device_that_breaks_while_the_guest_stands_ends_the_migration_only() -> Result<()> {
    if !kvm("a_device_that_breaks_while_the_guest_stands_ends_the_migration_only") {
        return Ok(());
    }
    gives_up(&[("FATAL", "PRE_COPY_P2P"), ("HANG", "PRE_COPY_P2P")], "set_state")?;
    gives_up(&[("FATAL", "ndma.enter"), ("HANG", "ndma.enter")], "ndma.enter")?;
    gives_up(&[("FATAL", "STOP_COPY"), ("HANG", "STOP_COPY")], "set_state")
}

#[test]
fn a_device_that_breaks_at_the_destination_leaves_the_guest_at_its_source() -> Result<()> {
    if !kvm("a_device_that_breaks_at_the_destination_leaves_the_guest_at_its_source") {
        return Ok(());
    }
    let cases = [
        ("CONSTRUCTOR_HANGS", "loading did not return"),
        ("HANG=\"init\"", "init did not return"),
        ("HANG=\"create\"", "create did not return"),
        ("FATAL=\"create\"", "create broke the device"),
        ("HANG=\"RESUMING\"", "set_state did not return"),
        ("FATAL=\"migration.write\"", "migration.write broke the device"),
        ("HANG=\"migration.write\"", "migration.write did not return"),
        // A device is made in this state: only the end of a load goes there.
        ("FATAL=\"STOP\"", "set_state broke the device"),
        ("HANG=\"STOP\"", "set_state did not return"),
    ];
    let place = Place::new();
    let Some(good) = hostile(&place, "good", &[])? else { return Ok(()) };
    let mut source = run(&place, "source", &good)?;
    for (case, (define, words)) in cases.into_iter().enumerate() {
        let folder = format!("bad-{case}");
        std::fs::create_dir(place.path(&folder))?;
        let Some(bad) = hostile(&place, &format!("{folder}/bad"), &[define])? else {
            return Ok(());
        };
        let dir = bad.parent().and_then(Path::to_str).context("UTF-8")?;
        let mut destination = place.receive(&format!("to-{case}"), &["--plugin-path", dir], &[])?;
        let why = Migration::start(&place, &source, &destination, &[])?.end()?.expect_stays()?;
        destination.expect_exit(1)?;
        let said = destination.stderr();
        ensure!(said.contains(words), "{define}: {said}\n{why}");
        ensure!(said.contains("org.drogher.test.hostile") || said.contains("bad.so"), "{said}");
        ensure!(!said.contains("panicked"), "{said}");
        source.progress(2)?;
        let (state, error) = second(&source)?;
        ensure!(state == "RUNNING" && error.is_none(), "{define}: {state} {error:?}");
    }
    // And a good one takes it.
    let dir = good.parent().and_then(Path::to_str).context("UTF-8")?;
    let mut destination = place.receive("good", &["--plugin-path", dir], &[])?;
    Migration::start(&place, &source, &destination, &[])?.end()?.expect_moved()?;
    destination.progress(2)
}
