//! Rows 1 to 6: who chooses, and with which knobs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;

use drogher_tests::{LOAD, Place, drogher};
use drogher_tracking::{
    Choice, Class, Costs, Decider, DeviceCaps, DeviceRule, Inputs, Plan, Policy, Preference,
    ProviderKind, Quirk, Quirks, SpaceCaps, TrackingPageSize, Wish, planner,
};

use crate::common::Bench;
use crate::moving::{Copy, move_under_load, write_somewhere};

/// Plans for one device that has a log, by what is said.
fn decide(change: impl FnOnce(&mut DeviceCaps), policy: &Policy, quirks: &Quirks) -> Plan {
    let bench = Bench::new(64);
    let mut caps = bench.logging(1).caps;
    change(&mut caps);
    let space = SpaceCaps::of("s", "test-iommu", bench.space.as_ref());
    let inputs = Inputs { policy, quirks, costs: &Costs::default() };
    planner::plan(&[(space, vec![caps])], inputs).expect("a plan").remove(0)
}

fn prefers_its_log(caps: &mut DeviceCaps) {
    caps.preference = Some(Preference {
        provider: ProviderKind::Device,
        page_size: Some(TrackingPageSize::K64),
        cost_hint_ns: Some(900),
        reason: "its tracker costs nothing".into(),
    });
}

/// What an operator says of one device.
fn rule(device: &str, choice: &str) -> Policy {
    let choice = choice.parse().expect("a choice");
    let devices = vec![DeviceRule { device: device.into(), choice }];
    Policy { global: Choice::default(), devices }
}

#[test]
fn seed_01_a_plugin_knows_its_best_default_and_nobody_has_to_measure() {
    let plan = decide(prefers_its_log, &Policy::default(), &Quirks::default());
    let device = &plan.devices[0];
    assert_eq!(
        (device.provider, device.reason.by),
        (Some(ProviderKind::Device), Decider::Preference)
    );
    assert_eq!(device.page_size, TrackingPageSize::K64);
    assert!(device.reason.text.contains("its tracker costs nothing"), "{}", device.reason);
    // One that says nothing gets a default, and a reason too.
    let plan = decide(|_| {}, &Policy::default(), &Quirks::default());
    assert_eq!(plan.devices[0].provider, Some(ProviderKind::Iommu));
    assert!(!plan.devices[0].reason.text.is_empty());
}

#[test]
fn seed_02_the_operator_chooses_and_every_choice_ends_in_the_same_memory() {
    for (choice, kind) in [
        ("provider=iommu", ProviderKind::Iommu),
        ("provider=device", ProviderKind::Device),
        ("provider=fault", ProviderKind::Fault),
        ("provider=all", ProviderKind::All),
    ] {
        let bench = Bench::new(512);
        let device = bench.logging(1);
        let plan = bench.plan(choice, &[]);
        assert_eq!(plan.devices[0].provider, Some(kind), "{choice}");
        let sent = move_under_load(&bench, &[&device], &plan);
        assert!(sent > 0, "{choice}");
        let all = kind == ProviderKind::All;
        assert_eq!(sent == 6 * 512, all, "{choice}: only `all` sends all pages each time: {sent}");
    }
    let bench = Bench::new(512);
    let device = bench.pinning(1);
    move_under_load(&bench, &[&device], &bench.plan("provider=pinned", &[]));
}

#[test]
fn seed_03_a_quirk_flips_the_default_and_the_operator_overrides_the_quirk() {
    let quirks = Quirks(vec![Quirk {
        plugin: "test".into(),
        iommu_model: Some("test-iommu".into()),
        provider: ProviderKind::Fault,
        page_size: None,
        reason: "erratum: its D bits come late".into(),
    }]);
    let plan = decide(prefers_its_log, &Policy::default(), &quirks);
    let device = &plan.devices[0];
    assert_eq!((device.provider, device.reason.by), (Some(ProviderKind::Fault), Decider::Quirk));
    assert!(device.reason.text.contains("erratum"), "{}", device.reason);
    let plan = decide(prefers_its_log, &rule("dev1", "provider=iommu"), &quirks);
    let device = &plan.devices[0];
    assert_eq!((device.provider, device.reason.by), (Some(ProviderKind::Iommu), Decider::Operator));
    // Of another IOMMU it says nothing.
    let mut elsewhere = quirks;
    elsewhere.0[0].iommu_model = Some("another".into());
    let plan = decide(prefers_its_log, &Policy::default(), &elsewhere);
    assert_eq!(plan.devices[0].reason.by, Decider::Preference);
}

#[test]
fn seed_04_a_drivers_own_knobs_are_opaque_and_an_unknown_one_is_a_load_error() {
    if !drogher_tests::kvm("seed_04") {
        return;
    }
    let output = drogher(["run", "--console", "none", "--device", "ndma,no_such_knob=1"])
        .output()
        .expect("it runs");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && words.contains("no_such_knob"), "{words}");
}

/// All files below a folder that end in `.rs`, tests left out.
fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry")) {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() && name != "tests" {
            sources(&path, into);
        } else if name.ends_with(".rs")
            && !name.ends_with("_test.rs")
            && name != "testing.rs"
            && name != "fake.rs"
        {
            into.push(path);
        }
    }
}

#[test]
fn seed_05_no_part_of_the_vmm_knows_a_device() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    for folder in ["iommu", "vmm/migrate", "vmm/machine/src", "vmm/control/src", "plugins/host/src"]
    {
        sources(&root.join(folder), &mut files);
    }
    assert!(files.len() > 100, "the sources are found");
    // Plugin ids as in the descriptors, and PCI ids as the devices have them.
    let names = ["org.drogher.ndma", "libdrogher_ndma", "mlx5", "virtio"];
    for file in files {
        let text = fs::read_to_string(&file).expect("a source").to_lowercase();
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let code = code.collect::<Vec<_>>().join("\n");
        for name in names {
            assert!(!code.contains(name), "{} names {name}", file.display());
        }
    }
}

#[test]
fn seed_06_a_cache_of_translations_that_is_never_flushed_fails_loudly() {
    // A hint may say that the device does better with translations of its own; what it caches has
    // to be given up in time, or the harvest says so and reports everything.
    let bench = Bench::new(64);
    let device = bench.plain(1);
    bench.tracked.start(&bench.plan("", &[])).expect("started");
    device.write_page(3);
    bench.space.fail_harvest.store(true, Ordering::SeqCst);
    let into = bench.bitmap();
    let harvest = bench.tracked.harvest(into.range(), &into).expect("no page is lost");
    assert_eq!((harvest.failed, harvest.class), (1, Class::AllMapped));
    assert_eq!(into.count().0, 64, "everything counts as dirty");
    let status = bench.tracked.status();
    assert_eq!(status.failures, 1);
    assert!(status.last_failure.is_some(), "and it is known why");
    // Where exactness is required, it is an error.
    let bench = Bench::new(64);
    let _device = bench.plain(1);
    bench.tracked.start(&bench.plan("require=exact", &[])).expect("started");
    bench.space.fail_harvest.store(true, Ordering::SeqCst);
    let into = bench.bitmap();
    bench.tracked.harvest(into.range(), &into).expect_err("not exact");
}

/// A preference is only that: whatever is chosen, nothing is lost.
#[test]
fn seed_01_a_preference_that_does_not_cover_the_device_is_passed_over() {
    let wants_pins = |caps: &mut DeviceCaps| {
        caps.preference = Some(Preference {
            provider: ProviderKind::Pinned,
            page_size: None,
            cost_hint_ns: None,
            reason: "pins".into(),
        });
    };
    let plan = decide(wants_pins, &Policy::default(), &Quirks::default());
    assert_eq!(plan.devices[0].provider, Some(ProviderKind::Iommu), "it never pins");
    let bench = Bench::new(128);
    let device = bench.plain(1);
    let mut copy = Copy::begin(&bench, &bench.plan("", &[]));
    write_somewhere(&device, 128, 1);
    copy.round();
    copy.end();
}

#[test]
fn seed_02_auto_is_a_wish_like_the_others() {
    let policy = rule("dev1", "provider=auto");
    assert_eq!(policy.devices[0].choice.provider, Some(Wish::Auto));
    let plan = decide(prefers_its_log, &policy, &Quirks::default());
    assert_eq!(plan.devices[0].reason.by, Decider::Preference);
}

/// A device that the VMM has never heard of, by another maker, in C, moves like ours.
#[test]
fn seed_05_a_third_plugin_that_nobody_knows_moves() -> anyhow::Result<()> {
    if !drogher_tests::kvm("seed_05") {
        return Ok(());
    }
    let place = Place::new();
    let folder = place.path("plugins");
    std::fs::create_dir(&folder)?;
    let file = folder.join("unknown.so");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let built = Command::new("cc")
        .args(["-std=c11", "-shared", "-fPIC", "-O2", "-I"])
        .arg(root.join("plugins/abi/include"))
        .arg("-o")
        .arg(&file)
        .arg(root.join("plugins/examples/c-counter/counter.c"))
        .status()?;
    assert!(built.success());
    let device = file.to_str().expect("UTF-8").to_owned();
    let mut source = place.run("a", LOAD, &["--device", &device], &[])?;
    source.progress(2)?;
    let plugins = folder.to_str().expect("UTF-8").to_owned();
    let mut destination = place.receive("b", &["--plugin-path", &plugins], &[])?;
    let report = place.migrate(&source, &destination, &["--verify"])?.expect_moved()?;
    let verified = report.verified.expect("it was asked for");
    assert_eq!((verified.differing, verified.differing_states.len()), (0, 0));
    destination.progress(2)?;
    assert_eq!(destination.status()?.vm.devices.len(), 2);
    Ok(())
}
