//! Wrong input of a user or a peer: an error that names the thing and the way out, and no harm.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::Output;

use anyhow::{Context, Result, ensure};
use drogher_migrate::wire::MAGIC;
use drogher_tests::{LOAD, Migration, Place, bin_folder, drogher, kvm};

/// Runs a command that has to fail, and returns its standard error.
fn fails(args: &[&str]) -> Result<String> {
    let Output { status, stderr, stdout } = drogher(args).output()?;
    let said = String::from_utf8_lossy(&stderr).into_owned();
    ensure!(!status.success(), "{args:?} succeeded");
    ensure!(status.code().is_some(), "{args:?} was killed: {status}\n{said}");
    ensure!(!said.contains("panicked"), "{args:?} panicked:\n{said}");
    ensure!(stdout.is_empty(), "{args:?} writes its error to standard output");
    Ok(said)
}

fn fails_with(args: &[&str], words: &[&str]) -> Result<()> {
    let said = fails(args)?;
    for word in words {
        ensure!(said.contains(word), "{args:?} does not name {word:?}:\n{said}");
    }
    Ok(())
}

#[test]
fn unknown_flags_and_keys_are_named() -> Result<()> {
    fails_with(&["run", "--memroy", "1G"], &["--memroy"])?;
    fails_with(&["frobnicate"], &["frobnicate"])?;
    fails_with(&["run", "--memory", "12Q"], &["12Q"])?;
    fails_with(&["run", "--memory", "1M"], &["16M"])?;
    fails_with(&["run", "--cpus", "9"], &["9", "1 to 8"])?;
    fails_with(&["run", "--cpu", "pentium"], &["pentium", "host or baseline"])?;
    fails_with(&["run", "--device", "ndma,scratch"], &["scratch", "key=value"])?;
    let place = Place::new();
    let file = place.path("vm.toml");
    std::fs::write(&file, "cpus = 1\nmemroy = '1G'\n")?;
    let path = file.to_str().context("UTF-8")?;
    fails_with(&["run", "--config", path], &[path, "memroy"])?;
    fails_with(&["run", "--config", "/nowhere.toml"], &["/nowhere.toml"])?;
    fails_with(&["receive", "--listen", "tcp:1.2.3.4"], &["tcp:1.2.3.4", "unix:PATH"])?;
    fails_with(&["status", "--control", "/nowhere.sock"], &["/nowhere.sock", "--control"])
}

#[test]
fn plugins_that_are_none_are_named() -> Result<()> {
    if !kvm("plugins_that_are_none_are_named") {
        return Ok(());
    }
    let place = Place::new();
    let text = place.path("text.so");
    std::fs::write(&text, "this is no plugin")?;
    let text = text.to_str().context("UTF-8")?;
    let plain = bin_folder().join("drogher");
    let plain = plain.to_str().context("UTF-8")?;
    fails_with(&["run", "--device", "nosuch"], &["nosuch", "--plugin-path"])?;
    fails_with(&["run", "--device", "/nowhere/x.so"], &["/nowhere/x.so"])?;
    fails_with(&["run", "--device", text], &[text, "ELF"])?;
    fails_with(&["plugin", "info", text], &[text, "ELF"])?;
    fails_with(&["plugin", "info", "/nowhere/x.so"], &["/nowhere/x.so"])?;
    fails_with(&["plugin", "info", plain], &["drogher_plugin_entry"])?;
    fails_with(&["run", "--device", "ndma,nosuch=1"], &["nosuch"])?;
    fails_with(&["run", "--device", "ndma,scratch_kib=banana"], &["scratch_kib", "banana"])
}

#[test]
fn plugin_info_shows_the_descriptor() -> Result<()> {
    let file = bin_folder().join("libdrogher_ndma.so");
    let output = drogher(["plugin", "info", file.to_str().context("UTF-8")?]).output()?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(output.status.success() && text.contains("ndma"), "{text}");
    Ok(())
}

#[test]
fn kernels_that_are_none_are_named() -> Result<()> {
    if !kvm("kernels_that_are_none_are_named") {
        return Ok(());
    }
    let place = Place::new();
    let text = place.path("kernel");
    std::fs::write(&text, "this is no kernel")?;
    let text = text.to_str().context("UTF-8")?;
    fails_with(&["run", "--kernel", text], &[text])?;
    fails_with(&["run", "--kernel", "/nowhere/vmlinux"], &["/nowhere/vmlinux"])?;
    let elf = bin_folder().join("drogher");
    fails_with(&["run", "--kernel", elf.to_str().context("UTF-8")?], &["PVH"])
}

#[test]
fn two_processes_on_one_lease() -> Result<()> {
    if !kvm("two_processes_on_one_lease") {
        return Ok(());
    }
    let place = Place::new();
    let mut first = place.run("a", LOAD, &[], &[])?;
    first.progress(1)?;
    let lease = place.path("lease");
    let lease = lease.to_str().context("UTF-8")?;
    fails_with(
        &["run", "--memory", "64M", "--console", "none", "--lease", lease],
        &[lease, "held by another process", &first.pid().to_string()],
    )?;
    first.progress(1)?;
    let precious = place.path("precious");
    std::fs::write(&precious, "no lease at all, but somebody's text")?;
    let precious = precious.to_str().context("UTF-8")?;
    fails_with(&["run", "--console", "none", "--lease", precious], &[precious, "not a lease"])?;
    ensure!(std::fs::read_to_string(precious)?.starts_with("no lease"));
    Ok(())
}

#[test]
fn a_stream_of_noise_is_refused() -> Result<()> {
    if !kvm("a_stream_of_noise_is_refused") {
        return Ok(());
    }
    let place = Place::new();
    // xorshift64, so that a failure can be repeated.
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for case in 0..8_usize {
        let mut receiver = place.receive(&format!("r{case}"), &[], &[])?;
        let mut stream = UnixStream::connect(place.path(&format!("r{case}.stream")))?;
        let noise: Vec<u8> = (0..case * 4096)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()[3]
            })
            .collect();
        // It may hang up before it has read all.
        let _ = stream.write_all(&MAGIC).and_then(|()| stream.write_all(&noise));
        drop(stream);
        receiver.expect_exit(1)?;
        let said = receiver.stderr();
        ensure!(!said.contains("panicked") && said.contains("drogher:"), "{said}");
    }
    Ok(())
}

#[test]
fn a_destination_that_cannot_take_the_guest_names_every_reason_and_the_guest_runs_on() -> Result<()>
{
    if !kvm("a_destination_that_cannot_take_the_guest_names_every_reason_and_the_guest_runs_on") {
        return Ok(());
    }
    let place = Place::new();
    // Plugins that the destination does not have, as files of another name.
    let ndma = bin_folder().join("libdrogher_ndma.so");
    let mut source = place.run("a", LOAD, &["--device", "ndma,scratch_kib=128"], &[])?;
    source.progress(2)?;
    // A binary in a folder without plugins finds none.
    let bare = place.path("bare");
    std::fs::create_dir(&bare)?;
    std::fs::copy(bin_folder().join("drogher"), bare.join("drogher"))?;
    let lonely = drogher_tests::Vm::start_with(
        &bare.join("drogher"),
        &place,
        "lonely",
        &["receive", "--listen", &place.address("lonely.stream")],
        &[],
    )?;
    let mut lonely = lonely;
    lonely.wait_for_file(&place.path("lonely.stream"))?;
    let why = Migration::start(&place, &source, &lonely, &[])?.end()?.expect_stays()?;
    ensure!(why.matches("plugin-missing").count() == 2, "both devices are named: {why}");
    ensure!(why.contains("--plugin-path"), "{why}");
    lonely.expect_exit(1)?;
    source.progress(2)?;
    ensure!(ndma.exists());
    let mut good = place.receive("good", &[], &[])?;
    Migration::start(&place, &source, &good, &[])?.end()?.expect_moved()?;
    good.progress(2)
}

/// The binary in a mount namespace of its own, in which `prepare` has been done first.
fn fails_where(prepare: &str, words: &[&str]) -> Result<()> {
    let binary = bin_folder().join("drogher");
    let script = format!("{prepare} && exec {} run --console none", binary.display());
    let unshare = |script: &str| {
        let args = ["--mount", "--map-root-user", "sh", "-c", script];
        std::process::Command::new("unshare").args(args).output()
    };
    if !unshare(prepare).is_ok_and(|output| output.status.success()) {
        let line = format!("SKIPPED: no mount namespace for: {prepare}\n");
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
        return Ok(());
    }
    let output = unshare(&script)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{}: {said}", output.status);
    for word in words {
        ensure!(said.contains(word), "after {prepare:?}, {word:?} is not named:\n{said}");
    }
    Ok(())
}

#[test]
fn a_host_without_kvm_is_told_what_to_do() -> Result<()> {
    fails_where("mount -t tmpfs none /dev", &["/dev/kvm", "kvm_intel or kvm_amd"])?;
    // Something of that name which is not KVM.
    let touch = "mount -t tmpfs none /dev && touch /dev/kvm";
    fails_where(touch, &["/dev/kvm", "not KVM"])
}
