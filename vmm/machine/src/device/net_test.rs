//! The set with the virtio network card in it: its capabilities, and the life of its wires.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use drogher_plugin_host::Wires;
use drogher_wires::{Ports, put_frame};

use super::testing::{PATIENCE, Rig, wait};
use super::{DeviceError, DeviceSet, Permit};

/// Where this build's plugins are: beside the tests, or one up.
fn dirs() -> Vec<PathBuf> {
    let exe = std::env::current_exe().expect("a path");
    exe.ancestors().skip(1).take(2).map(PathBuf::from).collect()
}

fn rig(device: &str) -> Result<Rig, DeviceError> {
    let specs = [device.parse().expect("a device")];
    Rig::with(|spaces, wiring| DeviceSet::new(&specs, &dirs(), spaces, wiring))
}

fn ports(rig: &Rig) -> Arc<Ports> {
    Arc::clone(rig.set.devices()[0].ports.as_ref().expect("it has a port"))
}

#[test]
fn a_driver_finds_the_virtio_capabilities() {
    let rig = rig("virtio-net,mac=02:00:00:00:00:07").expect("the plugin is built");
    assert_eq!(rig.config_read(1, 0), 0x1041_1af4);
    let (mut at, mut found) = (rig.config_read(1, 0x34) & 0xff, Vec::new());
    while at != 0 {
        let head = rig.config_read(1, at);
        if head & 0xff == 9 {
            found.push((head >> 24, rig.config_read(1, at + 8), at));
        }
        at = head >> 8 & 0xff;
    }
    let kinds: Vec<_> = found.iter().map(|(kind, offset, _)| (*kind, *offset)).collect();
    assert_eq!(kinds, [(1, 0), (2, 0x3000), (3, 0x1000), (4, 0x2000), (5, 0)]);
    let (notify, window) = (found[1].2, found[4].2);
    assert_eq!(rig.config_read(1, notify + 16), 4, "the notify multiplier");
    rig.run();
    // The window is the device's to serve, its head is ours; an access over both gets both.
    rig.config_write(1, window + 8, 0x2000);
    rig.config_write(1, window + 12, 4);
    assert_eq!(rig.config_read(1, window + 8), 0x2000);
    assert_eq!(rig.config_read(1, window + 16), 2, "the address's first bytes");
    assert_eq!(rig.config_read(1, window) & 0xff_00ff, 0x14_0009);
    rig.config_write(1, notify + 16, 9);
    assert_eq!(rig.config_read(1, notify + 16), 4, "constant");
    rig.set.device(0).expect("one").reset(true).expect("reset");
    assert_eq!(rig.config_read(1, window + 8), 0);
}

/// Tries the wire at the moment when it is given back.
struct Tried(Arc<Ports>);

impl Drop for Tried {
    fn drop(&mut self) {
        self.0.send(0, &[0; 60]);
    }
}

fn run(rig: &Rig) {
    let ports = ports(rig);
    let down = rig.set.run(&mut |_| Ok(Box::new(Tried(Arc::clone(&ports))) as Permit));
    assert!(down.expect("permits are free").is_empty());
}

fn accept(listener: &UnixListener) -> UnixStream {
    let peer = listener.accept().expect("a connection").0;
    peer.set_read_timeout(Some(PATIENCE)).expect("set");
    peer
}

fn say(peer: &mut UnixStream) {
    let mut frame = Vec::new();
    put_frame(&mut frame, &[1; 60]);
    peer.write_all(&frame).expect("written");
}

#[test]
fn frames_pass_while_a_permit_is_held() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("wire");
    let device = format!("virtio-net,vm.net=unix:{}", path.display());
    let error = rig(&device).err().expect("nobody listens");
    let cause = std::error::Error::source(&error).expect("a cause").to_string();
    assert!(cause.contains("start the other end first"), "{error}: {cause}");
    let listener = UnixListener::bind(&path).expect("bound");
    let rig = rig(&device).expect("somebody listens");
    let mut peer = accept(&listener);
    say(&mut peer);
    std::thread::sleep(Duration::from_millis(60));
    assert_eq!(ports(&rig).counts()[0].arrived, 0, "prepared only");
    run(&rig);
    wait("a frame", || ports(&rig).counts()[0].arrived == 1);
    rig.stop();
    assert_eq!(peer.read(&mut [0]).expect("the end"), 0);
    let counts = ports(&rig).counts()[0];
    assert_eq!((counts.sent, counts.sent_dropped), (0, 1), "sent with the permit gone");
    // It goes on, as after a move that was given up.
    run(&rig);
    let mut peer = accept(&listener);
    say(&mut peer);
    wait("another", || ports(&rig).counts()[0].arrived == 2);
}

#[test]
fn a_wire_without_a_port_is_refused() {
    for key in ["vm.net=loopback", "vm.pcap=/nonexistent/a"] {
        let error = rig(&format!("ndma,{key}")).err().expect("no port").to_string();
        assert!(error.contains("has 0 Ethernet ports, so vm."), "{error}");
    }
    let error = rig("virtio-net,vm.net1=loopback").err().expect("no port").to_string();
    assert!(error.contains("has 1 Ethernet ports, so vm.net1"), "{error}");
    let error = rig("virtio-net,vm.pcap=/nonexistent/a").err().expect("no folder");
    let cause = std::error::Error::source(&error).expect("a cause").to_string();
    assert!(cause.contains("capture file /nonexistent/a"), "{cause}");
}

/// What a source names on this host is not opened at its word, and never made.
#[test]
fn a_peer_makes_no_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.pcap");
    let source = rig(&format!("virtio-net,vm.pcap={}", path.display())).expect("made");
    assert!(path.exists());
    let configs = source.set.describe().expect("described");
    std::fs::remove_file(&path).expect("removed");
    let arrive = || {
        Rig::with(|spaces, wiring| DeviceSet::for_configs(&configs, &dirs(), spaces, wiring)).err()
    };
    assert!(arrive().is_some_and(|error| error.to_string().contains("wire cannot be had")));
    assert!(!path.exists());
    std::fs::write(&path, b"precious and longer than a header is").expect("written");
    assert!(arrive().is_some());
    assert_eq!(std::fs::read(&path).expect("read"), b"precious and longer than a header is");
}
