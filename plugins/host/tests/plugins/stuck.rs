//! Plugins that are late, or that must not be called: what is called after, what they can still do, and
//! how their process ends.

use crate::bed::{Bed, Built, ENDED, alone, hostile, short, until, words};
use drogher_plugin_host::{Instance, LoadError, Plugin, State, exit_now};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A deadline that loading meets on a slow machine, and a hang does not.
const LOADING: Duration = Duration::from_millis(500);

/// The hostile plugin, writing its calls to a file.
struct Noted {
    built: Built,
    calls: PathBuf,
    _dir: tempfile::TempDir,
}

impl Noted {
    fn new(defines: &[&str]) -> Option<Noted> {
        let dir = tempfile::tempdir().expect("a folder");
        let calls = dir.path().join("calls");
        let noted = format!("CALLS=\"{}\"", calls.display());
        let built = hostile(&[&[noted.as_str()], defines].concat())?;
        Some(Noted { built, calls, _dir: dir })
    }

    fn lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.calls).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn count(&self, call: &str) -> usize {
        self.lines().iter().filter(|line| *line == call).count()
    }

    fn running(&self, bed: &Bed) -> Instance {
        let plugin = Plugin::open(&self.built.file).expect("loads");
        let device = bed.create_with(&plugin, &[], short()).expect("creates");
        device.set_state(State::Running).expect("runs");
        device
    }
}

#[test]
fn a_late_call_that_returns_finds_everything_shut() {
    let Some(noted) = Noted::new(&["SLOW=\"region_read\""]) else { return };
    let bed = Bed::new();
    let device = noted.running(&bed);
    device.region_read(0, 0, &mut [0; 8]).expect_err("late");
    let before = noted.lines().len();
    until("it returned", || noted.lines().len() > before);
    let last = noted.lines().pop().expect("a line");
    assert_eq!(last, "late dma -108 irq -108", "all is DROGHER_ERR_SHUTDOWN");
    assert_eq!((bed.u64(0x1000), bed.irqs()), (0, 0));
    let lines = bed.machine.lines.lock().expect("not poisoned").clone();
    assert!(lines.iter().all(|(_, text)| text != "late"), "{lines:?}");
    assert_eq!(bed.machine.failures.lock().expect("not poisoned").len(), 1);
    // Nothing is called for it, not even the end.
    device.reset().expect_err("given up");
    drop(device);
    let calls = noted.lines();
    assert_eq!(calls.last().map(String::as_str), Some("late dma -108 irq -108"), "{calls:?}");
}

#[test]
fn a_late_call_of_several_is_the_last() {
    for (slow, next) in [("create", "describe"), ("set_state", "get_state"), ("reset", "get_state")]
    {
        let Some(noted) = Noted::new(&[&format!("SLOW=\"{slow}\"")]) else { return };
        let bed = Bed::new();
        let plugin = Plugin::open(&noted.built.file).expect("loads");
        match bed.create_with(&plugin, &[], short()) {
            Ok(device) if slow == "reset" => device.reset().expect_err("late"),
            Ok(device) => device.set_state(State::Running).expect_err("late"),
            Err(error) => error,
        };
        // It wakes a second after it began.
        std::thread::sleep(Duration::from_millis(1500));
        let calls = noted.lines();
        assert_eq!(noted.count(slow), 1, "{calls:?}");
        assert_eq!(noted.count(next), 0, "{calls:?}");
        assert_eq!(noted.count("destroy"), 0, "{calls:?}");
    }
}

#[test]
fn a_device_that_is_refused_is_destroyed() {
    for define in ["NO_VENDOR", "NO_REGION_READ", "FATAL=\"describe\""] {
        let Some(noted) = Noted::new(&[define]) else { return };
        let plugin = Plugin::open(&noted.built.file).expect("loads");
        Bed::new().create(&plugin, &[]).expect_err("refused");
        assert_eq!(noted.count("destroy"), 1, "{define}");
    }
    let Some(noted) = Noted::new(&["FATAL=\"create\""]) else { return };
    let plugin = Plugin::open(&noted.built.file).expect("loads");
    Bed::new().create(&plugin, &[]).expect_err("refused");
    assert_eq!(noted.count("destroy"), 0, "there was none");
}

#[test]
fn a_thread_that_does_not_end_keeps_nobody() {
    if !alone("stuck::a_thread_that_does_not_end_keeps_nobody") {
        return;
    }
    let Some(noted) = Noted::new(&["THREAD_END_HANGS"]) else { return };
    let bed = Bed::new();
    noted.running(&bed).destroy().expect("destroyed");
    drop(noted.running(&bed));
    assert_eq!(noted.count("destroy"), 2);
}

#[test]
fn what_was_refused_is_not_tried_again() {
    let Some(noted) = Noted::new(&["INIT_FAILS"]) else { return };
    let first = Plugin::open(&noted.built.file).expect_err("no cards");
    assert!(matches!(first, LoadError::Init { .. }), "{first}");
    let second = Plugin::open(&noted.built.file).expect_err("no cards");
    assert!(matches!(second, LoadError::Before { .. }), "{second}");
    let text = second.to_string();
    assert!(text.contains("no cards today") && text.contains("start anew"), "{text}");
    let link = noted.built.dir.path().join("hard.so");
    std::fs::hard_link(&noted.built.file, &link).expect("links");
    Plugin::open(&link).expect_err("the same file");
    assert_eq!(noted.count("init"), 1, "once per process");
}

#[test]
fn an_init_that_hangs_is_left_alone() {
    let Some(noted) = Noted::new(&["HANG=\"init\""]) else { return };
    let error = Plugin::open_within(&noted.built.file, LOADING).expect_err("hangs");
    assert!(matches!(error, LoadError::Late { call: "init", .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("init did not return within") && text.contains("restart"), "{text}");
    let error = Plugin::open_within(&noted.built.file, LOADING).expect_err("hangs");
    assert!(matches!(error, LoadError::Before { .. }), "{error}");
    assert_eq!(noted.count("init"), 1);
    // Others can be loaded: the linker is free.
    let Some(other) = hostile(&[]) else { return };
    Plugin::open(&other.file).expect("loads");
}

#[test]
fn parameters_that_hang_are_left_alone() {
    let Some(noted) = Noted::new(&["PARAMS=1", "HANG=\"params.info\""]) else { return };
    let error = Plugin::open_within(&noted.built.file, LOADING).expect_err("hangs");
    assert!(matches!(error, LoadError::Late { call: "params.info", .. }), "{error}");
}

/// In a process of its own, which must end although the dynamic linker's lock is held for ever.
#[test]
fn a_constructor_that_hangs_is_left_alone() {
    if !alone("stuck::a_constructor_that_hangs_is_left_alone") {
        return;
    }
    let Some(good) = hostile(&["MINOR=1"]) else { exit_now(ENDED) };
    Plugin::open(&good.file).expect("loads");
    let Some(stuck) = hostile(&["CONSTRUCTOR_HANGS"]) else { exit_now(ENDED) };
    let error = Plugin::open_within(&stuck.file, LOADING).expect_err("hangs");
    assert!(matches!(error, LoadError::Late { call: "loading", .. }), "{error}");
    let Some(other) = hostile(&[]) else { exit_now(ENDED) };
    let error = Plugin::open(&other.file).expect_err("the linker is busy");
    assert!(matches!(error, LoadError::LinkerBusy { .. }), "{error}");
    let text = error.to_string();
    for file in [&stuck.file, &other.file] {
        assert!(text.contains(&file.display().to_string()), "{text}");
    }
    Plugin::deinit_all();
    exit_now(ENDED)
}

#[test]
fn a_destructor_that_hangs_keeps_no_process() {
    if !alone("stuck::a_destructor_that_hangs_keeps_no_process") {
        return;
    }
    let Some(built) = hostile(&["DESTRUCTOR_HANGS"]) else { exit_now(ENDED) };
    Plugin::open(&built.file).expect("loads");
    exit_now(ENDED)
}

#[test]
fn a_replaced_file_is_not_taken_for_the_old_one() {
    let Some(built) = hostile(&[]) else { return };
    let plugin = Plugin::open(&built.file).expect("loads");
    let Some(other) = hostile(&["ID=\"org.drogher.test.other\""]) else { return };
    std::fs::rename(&other.file, &built.file).expect("replaces");
    let error = Plugin::open(&built.file).expect_err("another file");
    assert!(words(&error).contains("it was replaced meanwhile"), "{}", words(&error));
    assert_eq!(plugin.descriptor().id, "org.drogher.test.hostile");
}

/// In a process of its own: afterwards no plugin can be used.
#[test]
fn the_last_call() {
    if !alone("stuck::the_last_call") {
        return;
    }
    let Some(idle) = Noted::new(&[]) else { return };
    Plugin::open(&idle.built.file).expect("loads");
    let Some(used) = Noted::new(&["MINOR=1"]) else { return };
    let bed = Bed::new();
    let device = used.running(&bed);
    let Some(stuck) = Noted::new(&["MINOR=2", "HANG=\"region_read\""]) else { return };
    stuck.running(&bed).region_read(0, 0, &mut [0; 8]).expect_err("hangs");
    let Some(hangs) = Noted::new(&["MINOR=3", "HANG=\"deinit\""]) else { return };
    Plugin::open(&hangs.built.file).expect("loads");
    Plugin::deinit_all();
    let counts = [&idle, &used, &stuck, &hangs].map(|noted| noted.count("deinit"));
    assert_eq!(counts, [1, 0, 0, 1], "not while an instance lives, nor beside a stuck call");
    let error = Plugin::open(&idle.built.file).expect_err("it was told of the end");
    assert!(words(&error).contains("this process ends"), "{}", words(&error));
    drop(device);
    Plugin::deinit_all();
    let counts = [&idle, &used, &stuck, &hangs].map(|noted| noted.count("deinit"));
    assert_eq!(counts, [1, 1, 0, 1], "at most once");
}

#[test]
fn a_pipe_is_not_waited_for() {
    let dir = tempfile::tempdir().expect("a folder");
    let pipe = dir.path().join("pipe.so");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs");
    assert!(made.success());
    let error = Plugin::inspect(&pipe).expect_err("no file");
    assert!(matches!(error, LoadError::NotAFile { .. }), "{error}");
    Plugin::find_by_id("x", &[dir.path().to_owned()]).expect_err("none there");
    assert!(Path::new(&pipe).exists());
}
