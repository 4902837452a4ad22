//! Impossible answers: each is refused with words that name it, and nothing is believed.

use crate::bed::{Bed, hostile, words};
use drogher_plugin_host::{Cause, InstanceError, Plugin, Read, State};

fn load(defines: &[&str]) -> Option<Plugin> {
    let built = hostile(defines)?;
    Some(Plugin::open(&built.file).expect("loads"))
}

#[test]
fn impossible_devices_are_not_made() {
    let cases = [
        ("NULL_INSTANCE", "success without an instance"),
        ("POSITIVE_STATUS", "status 7"),
        ("NO_VENDOR", "PCI vendor id 0xffff"),
        ("WIDE_CLASS", "0x1000000 has more than 24 bits"),
        ("MANY_REGIONS", "5 regions, at most 4"),
        ("MANY_VECTORS", "2049 MSI-X vectors, at most 2048"),
        ("MANY_DOORBELLS", "4294967295 doorbells, at most 1024"),
        ("CONFIG_IN_HEADER", "Configuration area 0x40+0x10"),
        ("RESERVED_INFO", "reserved2 is 0x1"),
        ("REGION_SIZE=4097", "Region 0 has 0x1001 bytes"),
        ("REGION_SIZE=0", "Region 0 has 0x0 bytes"),
        ("REGION_SIZE=8", "Region 0 has 0x8 bytes"),
        ("REGION_SIZE=0x100000000ull", "Region 0 has 0x100000000 bytes"),
        ("REGION_SIZE=0x8000000000000000ull", "Region 0 has 0x8000000000000000 bytes"),
        ("REGION_INDEX=4", "BAR index 4"),
        ("REGION_INDEX=0xFFFFFFFF", "BAR index 4294967295"),
        ("REGION_FLAGS=8", "region_info.flags is 0x8"),
        ("REGION_FLAGS=3", "I/O ports are neither"),
        ("REGION_MAPPED", "map_length is 0x1000"),
        ("DOORBELL_OFFSET=4096", "ends outside its region"),
        ("DOORBELL_OFFSET=0xFFFFFFFFFFFFFFFCull", "ends outside its region"),
        ("DOORBELL_OFFSET=2", "is misaligned"),
        ("DOORBELL_WIDTH=3", "has no width"),
        ("NO_REGION_READ", "no function region_read"),
        ("MIGRATION_SHORT", "drogher_migration says it has 24 bytes"),
        ("MIGRATION_FLAGS=9", "drogher_migration.flags is 0x9"),
        ("MIGRATION_FLAGS=2", "DROGHER_MIGRATION_STOP_COPY must be set"),
        ("MIN_READER=4", "must be <= state_version"),
        ("NO_PRECOPY_INFO", "no function precopy_info"),
    ];
    let bed = Bed::new();
    for (define, expected) in cases {
        let Some(plugin) = load(&[define]) else { return };
        let error = bed.create(&plugin, &[]).expect_err(define);
        assert!(words(&error).contains(expected), "{define}: {}", words(&error));
    }
}

/// Makes a device, has something done to it, and sees it in ERROR for a lie.
fn caught(
    defines: &[&str],
    act: impl Fn(&drogher_plugin_host::Instance) -> Result<(), InstanceError>,
) {
    let Some(plugin) = load(defines) else { return };
    let bed = Bed::new();
    let device = bed.create(&plugin, &[]).expect("creates");
    let error = act(&device).expect_err("a lie");
    let InstanceError::Broken { cause, .. } = &error else { panic!("{defines:?}: {error}") };
    assert!(matches!(**cause, Cause::Lied { .. }), "{defines:?}: {error}");
    assert_eq!(device.state(), State::Error);
    assert_eq!(device.error().as_ref(), Some(cause));
    let failures = bed.machine.failures.lock().expect("not poisoned").clone();
    assert_eq!(failures, [(**cause).clone()], "the machine is told once");
}

#[test]
fn impossible_states() {
    for define in ["STATE_NOT_REACHED", "STATE_ERROR", "STATE_UNKNOWN", "STATE_FAILS_HALFWAY"] {
        caught(&[define], |device| device.set_state(State::Running));
    }
    caught(&["RESET_RUNS"], |device| device.reset());
}

#[test]
fn impossible_state_data() {
    let read = |state: State| {
        move |device: &drogher_plugin_host::Instance| {
            device.set_state(state)?;
            let mut piece = [0; 64];
            while let Read::Bytes(_) = device.read_state(&mut piece)? {}
            Ok(())
        }
    };
    caught(&["READ_TOO_MUCH"], read(State::StopCopy));
    caught(&["READ_HUGE"], read(State::PreCopy));
    caught(&["NO_MORE_IN_STOP_COPY"], read(State::StopCopy));
    caught(&["END_IN_PRE_COPY"], read(State::PreCopy));
}

#[test]
fn impossible_statuses_and_lengths() {
    caught(&["READ_POSITIVE"], |device| {
        device.set_state(State::Running)?;
        device.region_read(0, 0, &mut [0; 4])
    });
    caught(&["PARAMS=1"], |device| device.param_get("x").map(|_| ()));
}

#[test]
fn estimates_may_be_anything() {
    let Some(plugin) = load(&["ENDLESS_SIZES"]) else { return };
    let bed = Bed::new();
    let device = bed.create(&plugin, &[]).expect("creates");
    assert_eq!(device.stop_copy_size().expect("a size"), u64::MAX);
    device.set_state(State::PreCopy).expect("pre-copies");
    assert_eq!(device.precopy_info().expect("sizes").initial_bytes, u64::MAX);
    assert_eq!(device.state(), State::PreCopy);
}

#[test]
fn a_liar_can_be_reset() {
    let Some(plugin) = load(&["READ_TOO_MUCH"]) else { return };
    let bed = Bed::new();
    let device = bed.create(&plugin, &[]).expect("creates");
    device.set_state(State::StopCopy).expect("stops");
    device.read_state(&mut [0; 8]).expect_err("a lie");
    device.region_read(0, 0, &mut [0; 4]).expect_err("in ERROR");
    device.reset().expect("resets");
    assert_eq!((device.state(), device.error()), (State::Stop, None));
    device.set_state(State::Running).expect("runs");
    device.region_read(0, 0, &mut [0; 4]).expect("answers");
}
