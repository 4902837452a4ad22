//! States: the ways that the host goes, and what a refusal on the way leaves.

use crate::bed::{Bed, hostile, hostile_rust, read64, write64};
use drogher_plugin_host::{InstanceError, Plugin, Read, State, StateFormat};

const SCRATCH: u64 = 0x20;

fn read_all(device: &drogher_plugin_host::Instance) -> Vec<u8> {
    let mut all = Vec::new();
    let mut piece = [0; 3];
    loop {
        match device.read_state(&mut piece).expect("reads") {
            Read::Bytes(n) => all.extend_from_slice(piece.get(..n).expect("at most 3")),
            Read::NoMoreNow | Read::End => return all,
        }
    }
}

#[test]
fn from_every_state_to_every_state() {
    let plugin = hostile_rust();
    let bed = Bed::new();
    for from in State::ALL.into_iter().filter(|state| *state != State::Error) {
        for to in State::ALL {
            let device = bed.create(&plugin, &[]).expect("creates");
            device.set_state(from).expect("from STOP every state can be reached");
            let possible = to != State::Error && !(from == State::StopCopy && to.pre_copies());
            match device.set_state(to) {
                Ok(()) => assert!(possible && device.state() == to, "{from} {to}"),
                Err(InstanceError::NoWay { .. }) => {
                    assert!(!possible && device.state() == from, "{from} {to}");
                }
                Err(error) => panic!("{from} {to}: {error}"),
            }
        }
    }
}

#[test]
fn pre_copy_and_stop_copy_are_one_stream() {
    let plugin = hostile_rust();
    let bed = Bed::new();
    let source = bed.create(&plugin, &[]).expect("creates");
    let format =
        StateFormat { version: 1, min_reader: 1, oldest_read: 1, p2p: true, pre_copy: true };
    assert_eq!(source.state_format(), Some(format));
    source.set_state(State::Running).expect("runs");
    write64(&source, SCRATCH, 0x1122_3344_5566_7788);
    source.set_state(State::PreCopy).expect("pre-copies");
    assert_eq!(source.precopy_info().expect("sizes").dirty_bytes, 8);
    let mut stream = read_all(&source);
    write64(&source, SCRATCH, 0x99AA_BBCC_DDEE_FF00);
    source.set_state(State::StopCopy).expect("stops");
    stream.extend(read_all(&source));
    assert_eq!(stream.len(), 16);
    let target = bed.create(&plugin, &[]).expect("creates");
    target.set_state(State::Resuming).expect("resumes");
    target.write_state(&stream).expect("writes");
    target.set_state(State::Running).expect("runs");
    assert_eq!(read64(&target, SCRATCH), 0x99AA_BBCC_DDEE_FF00);
}

#[test]
fn calls_in_the_wrong_state() {
    let plugin = hostile_rust();
    let bed = Bed::new();
    let device = bed.create(&plugin, &[]).expect("creates");
    let wrong = |result: Result<(), InstanceError>| {
        assert!(matches!(result, Err(InstanceError::WrongState { .. })), "{result:?}");
    };
    wrong(device.region_read(0, 0, &mut [0; 4]));
    wrong(device.region_write(0, 0, &[0; 4]));
    wrong(device.read_state(&mut [0; 4]).map(|_| ()));
    wrong(device.write_state(&[0; 4]));
    wrong(device.precopy_info().map(|_| ()));
    wrong(device.enter_ndma());
    device.doorbell(0).expect("latches");
    let mut bytes = [0; 2];
    device.config_read(0x102, &mut bytes).expect("the configuration space always answers");
    assert_eq!(bytes, [2, 2]);
    device.config_write(0x10E, &[1, 2]).expect("writes");
    device.config_write(0x10F, &[1, 2]).expect_err("outside");
    device.set_state(State::Resuming).expect("resumes");
    wrong(device.doorbell(0));
    device.set_state(State::Running).expect("runs");
    wrong(device.read_state(&mut [0; 4]).map(|_| ()));
    assert!(device.stop_copy_size().is_ok());
}

#[test]
fn a_refused_step_leaves_the_state_before_it() {
    let plugin = hostile_rust();
    let bed = Bed::new();
    let device = bed.create(&plugin, &[]).expect("creates");
    device.set_state(State::Running).expect("runs");
    device.param_set("fault", "refuse:Stop").expect("sets");
    let error = device.set_state(State::Resuming).expect_err("by way of STOP");
    assert!(matches!(error, InstanceError::Refused { status: -5, .. }), "{error}");
    assert!(error.to_string().contains("RUNNING_P2P to STOP: not this one"), "{error}");
    assert_eq!(device.state(), State::RunningP2p);
    device.set_state(State::Running).expect("goes back");
}

#[test]
fn a_refused_step_leaves_a_session_of_reading_open() {
    let plugin = hostile_rust();
    let bed = Bed::new();
    let device = bed.create(&plugin, &[("fault", "refuse:Stop")]).expect("creates");
    device.set_state(State::StopCopy).expect("stops");
    device.doorbell(0).expect("latches, before the first byte is read");
    assert_eq!(device.read_state(&mut [0; 3]).expect("reads"), Read::Bytes(3));
    device.set_state(State::Stop).expect_err("refused");
    assert_eq!(device.state(), State::StopCopy);
    let error = device.doorbell(0).expect_err("would be lost");
    assert!(matches!(error, InstanceError::WrongState { .. }), "{error}");
    assert_eq!(device.read_state(&mut [0; 8]).expect("reads on"), Read::Bytes(5));
}

#[test]
fn a_device_without_states_has_gates() {
    let Some(built) = hostile(&["MIGRATION_FLAGS=1", "NO_PRECOPY_INFO"]) else { return };
    let plugin = Plugin::open(&built.file).expect("loads");
    let bed = Bed::new();
    let device = bed.create(&plugin, &[]).expect("creates");
    assert!(matches!(device.set_state(State::PreCopy), Err(InstanceError::NoWay { .. })));
    assert!(matches!(device.set_state(State::RunningP2p), Err(InstanceError::NoWay { .. })));
    device.set_state(State::Running).expect("directly");
    device.set_state(State::StopCopy).expect("by way of STOP");
    assert!(matches!(device.enter_ndma(), Err(InstanceError::Unsupported { what: "NDMA", .. })));
}

#[test]
fn formats_of_neighbours() {
    let format =
        StateFormat { version: 3, min_reader: 2, oldest_read: 1, p2p: false, pre_copy: false };
    assert!(format.reads(3, 3) && format.reads(1, 1) && format.reads(9, 3));
    assert!(!format.reads(4, 4), "written for newer readers");
    assert!(!StateFormat { oldest_read: 2, ..format }.reads(1, 1), "too old");
}
