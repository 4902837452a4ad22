use std::process::Command;
use std::time::Instant;

use super::*;
use crate::{Ports, WireSpec};
use drogher_plugin_host::{Received, Wires};

/// Set in the network namespace that the tests of this file run in.
const INSIDE: &str = "DROGHER_TAP_TEST";
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const KERNEL: [u8; 4] = [10, 9, 0, 1];
const GUEST: [u8; 4] = [10, 9, 0, 2];

/// Runs the test again where it may make taps; true if this is there.
fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let program = std::env::current_exe().expect("a path");
    let script = "ip tuntap add dev many mode tap multi_queue && ip tuntap add dev one mode tap \
                  && ip addr add 10.9.0.1/24 dev many && ip link set many up || exit 77; exec \"$@\"";
    let ran = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "sh", "-c", script, "sh"])
        .arg(program)
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .output();
    match ran {
        Ok(output) if output.status.code() == Some(77) || output.status.code() == Some(1) => {
            let why = String::from_utf8_lossy(&output.stderr);
            eprintln!("SKIPPED {test}: no tap can be made here: {why}");
        }
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.contains("1 passed"), "{output:?}");
        }
        Err(error) => eprintln!("SKIPPED {test}: no unshare here: {error}"),
    }
    false
}

/// Asks the kernel for its address.
fn arp() -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(MAC);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(MAC);
    frame.extend(GUEST);
    frame.extend([0; 6]);
    frame.extend(KERNEL);
    frame.resize(60, 0);
    frame
}

fn is_answer(frame: &[u8]) -> bool {
    frame.starts_with(&MAC)
        && frame.get(12..14) == Some(&[8, 6])
        && frame.get(20..22) == Some(&[0, 2])
        && frame.get(28..32) == Some(&KERNEL)
}

/// Asks until the kernel answers, at most ten seconds.
fn answered(ports: &Ports) -> bool {
    let begin = Instant::now();
    let mut frame = [0; FRAME_MAX];
    while begin.elapsed() < Duration::from_secs(10) {
        ports.send(0, &arp());
        if ports.wait(1, Duration::from_millis(50), &|| true) == 0 {
            continue;
        }
        while let Received::Frame(len) = ports.receive(0, &mut frame) {
            if is_answer(&frame[..len]) {
                return true;
            }
        }
    }
    false
}

fn tap(name: &str) -> Result<Ports, WireError> {
    Ports::prepare(&[WireSpec::Tap(name.into())], None, false)
}

#[test]
fn a_tap_is_handed_over_and_back() {
    if !inside("tap::tests::a_tap_is_handed_over_and_back") {
        return;
    }
    let (source, destination) = (tap("many").expect("there"), tap("many").expect("another queue"));
    source.send(0, &arp());
    assert_eq!(source.counts()[0].sent_dropped, 1, "prepared only");
    source.activate();
    assert!(answered(&source));
    assert_eq!(destination.counts()[0].arrived, 0, "its queue is detached");
    source.deactivate();
    let before = source.counts()[0];
    source.send(0, &arp());
    destination.activate();
    assert!(answered(&destination));
    let after = source.counts()[0];
    assert_eq!((after.sent, after.arrived), (before.sent, before.arrived), "it has let go");
    destination.deactivate();
    source.activate();
    assert!(answered(&source), "back again");
}

/// The kernel detaches no queue twice.
#[test]
fn a_queue_is_attached_while_the_wire_is_active_only() {
    if !inside("tap::tests::a_queue_is_attached_while_the_wire_is_active_only") {
        return;
    }
    let wire = TapWire::new("many".into());
    let detached = || {
        let queue = wire.shared.queue().clone().expect("prepared");
        turn(&queue, IFF_DETACH_QUEUE) == Err(Errno::INVAL)
    };
    wire.prepare().expect("there");
    assert!(detached());
    for _ in 0..2 {
        wire.activate(Arc::default());
        let begin = Instant::now();
        while !wire.send(&arp()) {
            assert!(begin.elapsed() < Duration::from_secs(10), "it comes up");
            std::thread::sleep(Duration::from_millis(1));
        }
        wire.deactivate();
        assert!(detached() && !wire.send(&arp()));
    }
}

#[test]
fn a_tap_that_goes_away_is_had_again() {
    if !inside("tap::tests::a_tap_that_goes_away_is_had_again") {
        return;
    }
    let ip = |args: &str| {
        let status = Command::new("ip").args(args.split(' ')).status().expect("ip runs");
        assert!(status.success(), "ip {args}");
    };
    let ports = tap("many").expect("there");
    ports.activate();
    assert!(answered(&ports));
    ip("link del many");
    ports.send(0, &arp());
    ip("tuntap add dev many mode tap multi_queue");
    ip("addr add 10.9.0.1/24 dev many");
    ip("link set many up");
    assert!(answered(&ports));
}

#[test]
fn what_is_no_tap_for_a_move_is_refused() {
    if !inside("tap::tests::what_is_no_tap_for_a_move_is_refused") {
        return;
    }
    for (name, word) in
        [("none", "ip tuntap add dev none"), ("one", "several queues"), ("lo", "lo")]
    {
        let error = tap(name).expect_err("no such tap").to_string();
        assert!(error.contains(word), "{error}");
    }
}

/// The kernel takes what is written to a detached queue, so nobody may be about to write when it is detached.
#[test]
fn a_frame_that_is_being_sent_is_waited_for() {
    let wire = TapWire::new("none".into());
    let shared = &wire.shared;
    for change in [Shared::lower, Shared::end] {
        shared.stop.store(false, Ordering::SeqCst);
        shared.raise();
        std::thread::scope(|scope| {
            let sends = shared.queue();
            let changes = scope.spawn(|| change(shared));
            std::thread::sleep(Duration::from_millis(30));
            assert!(shared.up.load(Ordering::SeqCst) && !changes.is_finished());
            drop(sends);
        });
        assert!(!shared.up.load(Ordering::SeqCst));
    }
    shared.raise();
    assert!(!shared.up.load(Ordering::SeqCst), "it was ended before it was up");
}
