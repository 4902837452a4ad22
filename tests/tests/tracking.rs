//! How DMA is tracked, between real processes: address spaces, providers, early NDMA, refusals,
//! switching while rounds run, and what explains it.

use std::process::Output;

use anyhow::{Context, Result, ensure};
use drogher_machine::device::DeviceParams;
use drogher_machine::tracking::{Class, Explanation, ProviderKind, TrackingStatus};
use drogher_tests::{LOAD, Migration, Place, Vm, drogher, kvm};

/// The first device is the one that every test machine has.
const SECOND: [&str; 2] = ["--device", "ndma,vm.name=second"];

fn output(args: &[&str]) -> Result<Output> {
    Ok(drogher(args).output()?)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// So dense that no round, however short, passes without a write of a device.
const DENSE: &str = "ws=16M rate=10000 dma=on dma_rate=8000 status_ms=200";

/// Moves a guest with these devices beside the first, with these flags, and compares every page.
fn moved(more: &[&str], flags: &[&str]) -> Result<TrackingStatus> {
    let place = Place::new();
    let mut source = place.run("a", DENSE, more, &[])?;
    source.progress(2)?;
    let mut destination = place.receive("b", &[], &[])?;
    let flags: Vec<_> = ["--verify"].iter().chain(flags).copied().collect();
    let migration = place.migrate(&source, &destination, &flags)?;
    let tracking = migration.tracking.clone();
    let report = migration.expect_moved()?;
    let verified = report.verified.context("it was asked for")?;
    ensure!(verified.differing == 0 && verified.differing_states.is_empty(), "{verified:?}");
    ensure!(report.rounds.iter().any(|round| round.dirty_by_dma > 0), "{:?}", report.rounds);
    source.expect_exit(0)?;
    destination.progress(3)?;
    let status = destination.status()?;
    ensure!(status.vm.tracking.is_some_and(|tracking| !tracking.active), "at rest there");
    tracking.context("no word of tracking")
}

fn providers(status: &TrackingStatus) -> Vec<Option<ProviderKind>> {
    status.devices.iter().map(|device| device.provider).collect()
}

#[test]
fn two_devices_move_in_one_space_and_in_two_by_every_provider() -> Result<()> {
    if !kvm("two_devices_move_in_one_space_and_in_two_by_every_provider") {
        return Ok(());
    }
    for second in ["ndma,vm.name=second", "ndma,vm.name=second,vm.space=other"] {
        for (tracker, kind) in [("iommu", ProviderKind::Iommu), ("fault", ProviderKind::Fault)] {
            let status = moved(&["--device", second], &["--tracker", tracker])?;
            let spaces = if second.contains("vm.space") { 2 } else { 1 };
            ensure!(status.spaces.len() == spaces, "{status:?}");
            ensure!(providers(&status) == [Some(kind), Some(kind)], "{status:?}");
            for space in &status.spaces {
                ensure!(space.class == Class::Exact && space.tracked_pages > 0, "{space:?}");
                ensure!(space.wide_pages == 0 && space.note.is_none(), "{space:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn logs_pins_and_raw_devices_that_log_lose_no_page() -> Result<()> {
    if !kvm("logs_pins_and_raw_devices_that_log_lose_no_page") {
        return Ok(());
    }
    // The second device, what covers it, and what its own tracker's reports are worth.
    for (keys, provider, class) in [
        ("log=on,vm.tracker=device", ProviderKind::Device, Class::Exact),
        ("log=on,vm.iommu=off,vm.tracker=device", ProviderKind::Device, Class::Exact),
        ("log=on,prefers=device,vm.space=other", ProviderKind::Device, Class::Exact),
        ("pin=all,vm.space=other,vm.tracker=pinned", ProviderKind::Pinned, Class::Pinned),
        ("pin=some,vm.space=other,vm.tracker=fault", ProviderKind::Fault, Class::Pinned),
    ] {
        let device = format!("ndma,vm.name=second,{keys}");
        let status = moved(&["--device", &device], &["--downtime-ms", "2000"])?;
        let second = &status.devices[1];
        ensure!((second.provider, second.class) == (Some(provider), class), "{keys}: {second:?}");
        let of_second = |device: &Option<String>| device.as_deref() == Some("00:02.0");
        let trackers = || status.spaces.iter().flat_map(|space| &space.trackers);
        let own = trackers().find(|tracker| of_second(&tracker.device));
        ensure!(own.is_some_and(|tracker| tracker.pages > 0), "{keys}: {status:?}");
        let told = !keys.contains("prefers") || second.reason.contains("the plugin prefers device");
        ensure!(told, "{second:?}");
    }
    Ok(())
}

#[test]
fn what_nothing_tracks_is_all_sent_and_said_to_be() -> Result<()> {
    if !kvm("what_nothing_tracks_is_all_sent_and_said_to_be") {
        return Ok(());
    }
    let flags = ["--tracker", "all", "--downtime-ms", "2000"];
    let status = moved(&SECOND, &flags)?;
    let space = &status.spaces[0];
    ensure!(space.wide_pages >= 64 << 8, "{space:?}");
    ensure!(space.note.as_deref().is_some_and(|note| note.contains("degraded")), "{space:?}");
    // In a space of its own it widens nothing else.
    let alone = ["--device", "ndma,ndma=off,vm.name=second,vm.space=other,vm.tracker=all"];
    let status = moved(&alone, &["--downtime-ms", "2000"])?;
    let classes: Vec<_> = status.spaces.iter().map(|space| space.wide_pages > 0).collect();
    ensure!(classes == [false, true], "{status:?}");
    Ok(())
}

#[test]
fn an_untracked_device_that_stands_early_lets_the_rounds_converge() -> Result<()> {
    if !kvm("an_untracked_device_that_stands_early_lets_the_rounds_converge") {
        return Ok(());
    }
    let devices = ["--device", "ndma,vm.name=second,vm.tracker=all"];
    let flags = ["--early-ndma", "second", "--require", "exact"];
    let status = moved(&devices, &flags)?;
    let [first, second] = &status.devices[..] else { anyhow::bail!("{status:?}") };
    ensure!(first.stood_us.is_none() && second.early_ndma, "{status:?}");
    ensure!(second.stood_us.is_some_and(|us| us > 0), "how long it stood: {status:?}");
    // Everything mapped once, when it entered; not at each harvest.
    let space = &status.spaces[0];
    ensure!(space.wide_pages == 0 && space.carried_pages >= 64 << 8, "{space:?}");
    Ok(())
}

#[test]
fn a_raw_device_is_refused_by_name_and_the_guest_runs_on() -> Result<()> {
    if !kvm("a_raw_device_is_refused_by_name_and_the_guest_runs_on") {
        return Ok(());
    }
    let place = Place::new();
    let devices = ["--device", "ndma,vm.name=pass,vm.iommu=off"];
    let mut source = place.run("a", LOAD, &devices, &[])?;
    source.progress(2)?;
    let mut destination = place.receive("b", &[], &[])?;
    let migration = place.migrate(&source, &destination, &["--early-ndma", "nobody"])?;
    ensure!(migration.code == Some(1), "{migration:?}");
    for word in ["raw-device", "pass, 00:02.0, org.drogher.ndma", "no-such-device", "nobody"] {
        ensure!(migration.message.contains(word), "{word}: {}", migration.message);
    }
    source.progress(3)?;
    ensure!(destination.is_alive()?, "nobody has bothered it");
    let refusals = source.status()?.vm.tracking.context("a status")?.refusals;
    ensure!(refusals.len() == 1, "{refusals:?}");
    let explained = output(&["explain", "--control", control(&source)?])?;
    let (code, words) = (explained.status.code(), text(&explained.stdout));
    ensure!(code == Some(1) && words.contains("raw-device"), "{code:?} {words}");
    Ok(())
}

fn control(vm: &Vm) -> Result<&str> {
    vm.control.to_str().context("UTF-8")
}

/// Switches the trackers of a guest.
fn switch(vm: &Vm, args: &[&str]) -> Result<()> {
    let all: Vec<_> = ["tracking", "--control", control(vm)?].iter().chain(args).copied().collect();
    let output = output(&all)?;
    ensure!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    Ok(())
}

#[test]
fn trackers_are_switched_while_rounds_run_and_no_page_differs() -> Result<()> {
    if !kvm("trackers_are_switched_while_rounds_run_and_no_page_differs") {
        return Ok(());
    }
    let place = Place::new();
    // Held in a round's end, so that each switch is known to come while rounds run.
    let gate = place.path("gate");
    let hook = format!("source:forecast=wait:{}", gate.display());
    let env = [("DROGHER_TEST_HOOK", hook.as_str())];
    let devices = ["--device", "ndma,log=on,vm.name=second,vm.space=other"];
    let mut source = place.run("a", LOAD, &devices, &env)?;
    source.progress(2)?;
    let mut destination = place.receive("b", &[], &[])?;
    switch(&source, &["--tracker", "all"])?;
    let rest = source.status()?.vm.tracking.context("a status")?;
    ensure!(!rest.active && providers(&rest) == [Some(ProviderKind::All); 2], "{rest:?}");

    let migrating = Migration::start(&place, &source, &destination, &["--verify"])?;
    source.wait_for_file(&place.path("gate.reached"))?;
    for (device, tracker) in [
        ("second", "iommu"),
        ("00:01.0", "fault"),
        ("second", "device"),
        ("second", "all"),
        ("second", "device"),
        ("second", "fault"),
        ("00:01.0", "iommu"),
    ] {
        switch(&source, &["--device", device, "--tracker", tracker, "--page", "16K"])?;
    }
    let refused = output(&["tracking", "--control", control(&source)?, "--tracker", "device"])?;
    ensure!(!refused.status.success(), "the first has no log");
    ensure!(text(&refused.stderr).contains("no-provider"), "{}", text(&refused.stderr));
    let active = source.status()?.vm.tracking.context("a status")?;
    let expected = [Some(ProviderKind::Iommu), Some(ProviderKind::Fault)];
    ensure!(active.active && providers(&active) == expected, "{active:?}");
    std::fs::File::create(&gate)?;
    let report = migrating.end()?.expect_moved()?;
    let verified = report.verified.context("it was asked for")?;
    ensure!(verified.differing == 0, "{verified:?}");
    destination.progress(3)
}

#[test]
fn an_aborted_migration_leaves_devices_that_go_on() -> Result<()> {
    if !kvm("an_aborted_migration_leaves_devices_that_go_on") {
        return Ok(());
    }
    let place = Place::new();
    let gate = place.path("gate");
    let hook = format!("source:forecast=wait:{}", gate.display());
    let devices = ["--device", "ndma,vm.name=second,vm.tracker=all,vm.ndma=early"];
    let mut source = place.run("a", LOAD, &devices, &[("DROGHER_TEST_HOOK", &hook)])?;
    source.progress(2)?;
    let destination = place.receive("b", &[], &[])?;
    let migrating = Migration::start(&place, &source, &destination, &[])?;
    source.wait_for_file(&place.path("gate.reached"))?;
    let dma = |source: &Vm| -> Result<u64> { Ok(source.probe()?.last().context("it runs")?.dma) };
    source.post("/v1/abort")?;
    std::fs::File::create(&gate)?;
    migrating.end()?.expect_stays()?;
    let before = dma(&source)?;
    // More than what was under way: both devices go on, or the probe would miss its answers.
    source.progress(10)?;
    ensure!(dma(&source)? > before);
    let mut again = place.receive("c", &[], &[])?;
    place.migrate(&source, &again, &["--verify"])?.expect_moved()?;
    again.progress(3)
}

#[test]
fn what_the_vmm_was_told_of_a_device_travels_with_it() -> Result<()> {
    if !kvm("what_the_vmm_was_told_of_a_device_travels_with_it") {
        return Ok(());
    }
    let place = Place::new();
    let devices = ["--device", "ndma,vm.name=second,vm.space=other,vm.tracker=fault"];
    let mut source = place.run("a", LOAD, &devices, &[])?;
    source.progress(2)?;
    let wrong = ["--device", "ndma", "--device", "ndma,vm.space=main"];
    let other = place.receive("other", &wrong, &[])?;
    let why = place.migrate(&source, &other, &[])?.expect_stays()?;
    ensure!(why.contains("vm.space is other, not main"), "{why}");
    let mut here = source;
    for name in ["b", "c"] {
        let there = place.receive(name, &[], &[])?;
        let migration = place.migrate(&here, &there, &["--verify"])?;
        let tracking = migration.tracking.clone().context("no word of tracking")?;
        migration.expect_moved()?;
        let second = &tracking.devices[1];
        ensure!((second.device.as_str(), second.space.as_str()) == ("second", "other"));
        ensure!(second.provider == Some(ProviderKind::Fault), "{second:?}");
        here = there;
    }
    here.progress(3)
}

#[test]
fn explain_needs_no_guest_and_says_who_decided() -> Result<()> {
    let explain = |args: &[&str]| {
        let all: Vec<_> = ["explain", "--json"].iter().chain(args).copied().collect();
        let output = output(&all)?;
        let explanation: Explanation =
            serde_json::from_slice(&output.stdout).with_context(|| text(&output.stderr))?;
        anyhow::Ok((output.status.code(), explanation))
    };
    let devices = ["--device", "ndma,vm.name=a,vm.tracker=fault", "--device", "ndma,vm.space=b"];
    let (code, explanation) = explain(&devices)?;
    ensure!(code == Some(0) && explanation.possible && explanation.spaces.len() == 2);
    let shown = explanation.to_string();
    for word in ["Address space main: exact", "Address space b", "fault", "operator", "ns a round"]
    {
        ensure!(shown.contains(word), "{word}: {shown}");
    }
    let refused = ["--device", "ndma,vm.iommu=off,vm.name=raw", "--early-ndma", "x"];
    let (code, explanation) = explain(&refused)?;
    ensure!(code == Some(1) && explanation.refusals.len() == 2, "{explanation}");
    let (_, explanation) = explain(&["--device", "ndma,ndma=off,vm.ndma=early"])?;
    ensure!(explanation.to_string().contains("no-ndma (00:01.0"), "{explanation}");
    let human = output(&["explain", "--device", "ndma", "--tracker", "all"])?;
    let human = text(&human.stdout);
    ensure!(human.contains("all-mapped") && human.contains("degraded"), "{human}");
    Ok(())
}

#[test]
fn parameters_are_listed_got_and_refused() -> Result<()> {
    if !kvm("parameters_are_listed_got_and_refused") {
        return Ok(());
    }
    let place = Place::new();
    let mut source = place.run("a", LOAD, &SECOND, &[])?;
    source.progress(1)?;
    let params = |args: &[&str]| {
        let all: Vec<_> = ["params"].iter().chain(args).copied().collect();
        output(&all)
    };
    let socket = control(&source)?;
    let list = params(&["list", "--control", socket, "--json"])?;
    let list: Vec<DeviceParams> = serde_json::from_slice(&list.stdout)?;
    ensure!(list.len() == 2 && list[1].name.as_deref() == Some("second"), "{list:?}");
    let param = &list[0].params[0];
    ensure!((param.name.as_str(), param.kind.as_str()) == ("scratch_kib", "number"), "{param:?}");
    let human = text(&params(&["list", "--control", socket, "second"])?.stdout);
    ensure!(human.contains("scratch_kib=64 (number 4..=65536, default 64, fixed at"), "{human}");
    let got = params(&["get", "--control", socket, "second", "scratch_kib"])?;
    ensure!(text(&got.stdout) == "64\n");
    for (args, word) in [
        (&["set", "--control", socket, "second", "scratch_kib=128"][..], "at the start only"),
        (&["set", "--control", socket, "second", "colour=red"], "there are: scratch_kib"),
        (&["set", "--control", socket, "third", "scratch_kib=64"], "00:02.0"),
        (&["set", "--control", socket, "second", "scratch_kib"], "NAME=VALUE"),
        (&["set", "--control", socket, "second", "rate_mib=fast"], "from 0 to 1048576"),
        (&["get", "--control", socket, "second", "colour"], "there are: scratch_kib"),
    ] {
        let output = params(args)?;
        let error = text(&output.stderr);
        ensure!(!output.status.success() && error.contains(word), "{args:?}: {error}");
    }
    source.progress(2)
}

#[test]
fn a_parameter_set_while_the_guest_runs_moves_with_the_device() -> Result<()> {
    if !kvm("a_parameter_set_while_the_guest_runs_moves_with_the_device") {
        return Ok(());
    }
    let place = Place::new();
    let mut source = place.run("a", LOAD, &SECOND, &[])?;
    source.progress(1)?;
    let rate = |vm: &Vm, device: &str| -> Result<String> {
        let got = output(&["params", "get", "--control", control(vm)?, device, "rate_mib"])?;
        ensure!(got.status.success(), "{}", text(&got.stderr));
        Ok(text(&got.stdout))
    };
    let slow = ["params", "set", "--control", control(&source)?, "second", "rate_mib=64"];
    let set = output(&slow)?;
    ensure!(set.status.success(), "{}", text(&set.stderr));
    ensure!(rate(&source, "second")? == "64\n" && rate(&source, "00:01.0")? == "0\n");
    let list = output(&["params", "list", "--control", control(&source)?, "second"])?;
    ensure!(text(&list.stdout).contains("rate_mib=64 (number 0..=1048576, default 0, settable"));
    let mut destination = place.receive("b", &[], &[])?;
    place.migrate(&source, &destination, &["--verify"])?.expect_moved()?;
    source.expect_exit(0)?;
    destination.progress(2)?;
    ensure!(rate(&destination, "second")? == "64\n" && rate(&destination, "00:01.0")? == "0\n");
    Ok(())
}

#[test]
fn wrong_words_about_tracking_are_refused_before_a_guest_starts() -> Result<()> {
    for (args, word) in [
        (&["run", "--device", "ndma,vm.tracker=magic"][..], "iommu, device, pinned, fault or all"),
        (&["run", "--device", "ndma,vm.speed=9"], "vm.tracking_page"),
        (&["run", "--tracker", "magic"], "or auto"),
        (&["run", "--tracking-page", "12K"], "power of two"),
        (&["run", "--require", "some"], "exact or any"),
    ] {
        let output = output(args)?;
        let error = text(&output.stderr);
        ensure!(output.status.code() == Some(2) && error.contains(word), "{args:?}: {error}");
    }
    if kvm("wrong_words_about_tracking_are_refused_before_a_guest_starts") {
        let place = Place::new();
        let lease = place.path("lease");
        let lease = lease.to_str().context("UTF-8")?;
        let twice = ["--device", "ndma,vm.name=a", "--device", "ndma,vm.name=a"];
        for (more, word) in [
            (&["--device", "ndma", "--early-ndma", "nobody"][..], "no-such-device"),
            (&twice, "give each device another vm.name"),
        ] {
            let head = ["run", "--memory", "32M", "--console", "none", "--lease", lease];
            let output = output(&head.iter().chain(more).copied().collect::<Vec<_>>())?;
            let error = text(&output.stderr);
            ensure!(output.status.code() == Some(1) && error.contains(word), "{more:?}: {error}");
        }
    }
    Ok(())
}
