use std::sync::Arc;
use std::time::{Duration, Instant};

use drogher_plugin_host::{Received, Wires};

use super::{Ports, WireCounts};
use crate::{INBOX_FRAMES, WireSpec};

const LONG: Duration = Duration::from_secs(20);

fn loopback() -> Ports {
    Ports::prepare(&[WireSpec::None, WireSpec::Loopback], None, false).unwrap()
}

#[test]
fn frames_pass_while_active_only() {
    let ports = loopback();
    let mut buffer = [0; 100];
    ports.send(1, &[1; 20]);
    assert_eq!(ports.receive(1, &mut buffer), Received::Nothing, "prepared is not active");
    ports.activate();
    ports.send(1, &[2; 20]);
    ports.send(0, &[2; 20]);
    assert_eq!(ports.receive(1, &mut buffer[..19]), Received::TooLong(20));
    assert_eq!(ports.receive(1, &mut buffer), Received::Frame(20));
    assert_eq!(buffer[..21], [&[2; 20][..], &[0]].concat());
    assert_eq!(ports.receive(0, &mut buffer), Received::Nothing);
    assert_eq!(ports.receive(7, &mut buffer), Received::Nothing, "no such port");
    ports.send(1, &[3; 20]);
    ports.deactivate();
    ports.send(1, &[4; 20]);
    assert_eq!(ports.receive(1, &mut buffer), Received::Frame(20), "it had arrived");
    assert_eq!(buffer[0], 3);
    assert_eq!(ports.receive(1, &mut buffer), Received::Nothing);
    let none = WireCounts { sent_dropped: 1, ..WireCounts::default() };
    let looped = WireCounts { sent: 2, sent_dropped: 2, arrived: 2, arrived_dropped: 0 };
    assert_eq!(ports.counts(), [none, looped]);
}

#[test]
fn a_full_port_drops_and_counts() {
    let ports = loopback();
    ports.activate();
    for _ in 0..INBOX_FRAMES + 3 {
        ports.send(1, &[1; 20]);
    }
    ports.send(1, &[1; 13]);
    let counts = ports.counts()[1];
    assert_eq!((counts.arrived, counts.arrived_dropped), (INBOX_FRAMES as u64, 4));
}

#[test]
fn a_wait_ends_with_a_frame_a_wake_or_its_time() {
    let ports = Arc::new(loopback());
    ports.activate();
    assert_eq!(ports.wait(3, Duration::from_millis(1), &|| true), 0);
    ports.wake();
    assert_eq!(ports.wait(3, LONG, &|| true), 0, "woken before");
    ports.send(1, &[1; 20]);
    assert_eq!(ports.wait(3, LONG, &|| true), 2);
    assert_eq!(ports.wait(1, Duration::from_millis(1), &|| true), 0, "at another port");
    assert_eq!(ports.wait(3, Duration::from_millis(1), &|| false), 0, "nothing passes");
    let mut buffer = [0; 64];
    ports.receive(1, &mut buffer);
    let begin = Instant::now();
    let waiter = std::thread::spawn({
        let ports = Arc::clone(&ports);
        move || (ports.wait(2, LONG, &|| true), ports.wait(2, LONG, &|| true))
    });
    ports.send(1, &[1; 20]);
    while !waiter.is_finished() {
        ports.wake();
        std::thread::yield_now();
        assert!(begin.elapsed() < LONG);
    }
    waiter.join().unwrap();
}
