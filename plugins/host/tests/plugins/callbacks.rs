//! A panic, or no return, in each callback: the device is in ERROR by name, at once and for every
//! later call; its neighbour of the same plugin goes on.

use crate::bed::{Bed, alone, generous, hostile, hostile_rust, read64, short, until, write64};
use drogher_plugin_host::{Cause, Deadlines, Instance, InstanceError, Plugin, Read, State};
use std::time::{Duration, Instant};

type Act = fn(&Instance) -> Result<(), InstanceError>;

/// Each callback of a live instance, and how to get there.
const CALLS: [(&str, &str, Act); 14] = [
    ("region_read", "region_read", |device| device.region_read(0, 0x20, &mut [0; 8])),
    ("region_write", "region_write", |device| device.region_write(0, 0x20, &[0; 8])),
    ("doorbell", "doorbell", |device| device.doorbell(0)),
    ("config_read", "config_read", |device| device.config_read(0x100, &mut [0; 4])),
    ("config_write", "config_write", |device| device.config_write(0x100, &[0; 4])),
    ("set_state", "set_state", |device| device.set_state(State::PreCopy)),
    ("precopy_info", "precopy_info", |device| {
        device.set_state(State::PreCopy)?;
        device.precopy_info().map(|_| ())
    }),
    ("stop_copy_size", "stop_copy_size", |device| device.stop_copy_size().map(|_| ())),
    ("read_state", "migration.read", |device| {
        device.set_state(State::StopCopy)?;
        device.read_state(&mut [0; 8]).map(|_| ())
    }),
    ("write_state", "migration.write", |device| {
        device.set_state(State::Resuming)?;
        device.write_state(&[0; 8])
    }),
    ("enter_ndma", "ndma.enter", |device| device.enter_ndma()),
    ("leave_ndma", "ndma.leave", |device| {
        device.enter_ndma()?;
        device.leave_ndma()
    }),
    ("param_set", "params.set", |device| device.param_set("fault", "")),
    ("reset", "reset", |device| device.reset()),
];

/// A running device with a fault, and an honest neighbour.
fn pair(bed: &Bed, plugin: &Plugin, fault: &str, deadlines: Deadlines) -> (Instance, Instance) {
    let neighbour = bed.create(plugin, &[]).expect("creates");
    let device = bed.create_with(plugin, &[], deadlines).expect("creates");
    for device in [&neighbour, &device] {
        device.set_state(State::Running).expect("runs");
    }
    device.param_set("fault", fault).expect("sets");
    (device, neighbour)
}

fn cause(error: &InstanceError) -> Cause {
    use InstanceError::{Broken, NotMade};
    let (Broken { cause, instance } | NotMade { cause, instance }) = error else {
        panic!("{error}")
    };
    // The thing, what it did, and the way out.
    let text = error.to_string();
    assert!(instance.starts_with("dev") && text.contains(instance), "{text}");
    assert!(text.contains(&cause.to_string()), "{text}");
    assert!(["reset", "without it", "leave it out"].iter().any(|way| text.contains(way)), "{text}");
    (**cause).clone()
}

fn dead_as(device: &Instance, because: &Cause) {
    assert_eq!(device.state(), State::Error);
    assert_eq!(device.error().as_deref(), Some(because));
}

/// Every call answers at once, with the first error.
fn dead(device: &Instance, because: &Cause) {
    dead_as(device, because);
    let start = Instant::now();
    let answers = [
        device.region_read(0, 0, &mut [0; 4]),
        device.region_write(0, 0, &[0; 4]),
        device.doorbell(0),
        device.config_read(0x100, &mut [0; 4]),
        device.set_state(State::Stop),
        device.read_state(&mut [0; 4]).map(|_| ()),
        device.write_state(&[0; 4]),
        device.precopy_info().map(|_| ()),
        device.stop_copy_size().map(|_| ()),
        device.enter_ndma(),
        device.leave_ndma(),
        device.param_get("fault").map(|_| ()),
    ];
    for answer in answers {
        assert_eq!(cause(&answer.expect_err("in ERROR")), *because);
    }
    assert!(start.elapsed() < Duration::from_secs(2), "later calls waited");
}

fn alive(neighbour: &Instance) {
    write64(neighbour, 0x20, 42);
    assert_eq!(read64(neighbour, 0x20), 42);
    assert_eq!(neighbour.state(), State::Running);
}

#[test]
fn a_panic_in_each_callback() {
    let plugin = hostile_rust();
    let bed = Bed::new();
    for (method, call, act) in CALLS {
        let fault = format!("panic:{method}");
        let (device, neighbour) = pair(&bed, &plugin, &fault, generous());
        let error = act(&device).expect_err("panics");
        let text = format!("Panicked: out of my mind in {method}");
        assert_eq!(cause(&error), Cause::Fatal { call, text });
        dead(&device, &cause(&error));
        alive(&neighbour);
        // A panicked device is made anew; its fault is a parameter and stays.
        device.reset().expect("resets");
        assert_eq!(device.state(), State::Stop);
        assert_eq!(device.param_get("fault").expect("gets"), fault);
    }
}

#[test]
fn no_return_from_each_callback() {
    let plugin = hostile_rust();
    let bed = Bed::new();
    for (method, call, act) in CALLS {
        let fault = format!("hang:{method}");
        let (device, neighbour) = pair(&bed, &plugin, &fault, short());
        let error = act(&device).expect_err("hangs");
        let late = Cause::Late { call, deadline: Duration::from_millis(200) };
        assert_eq!(cause(&error), late);
        dead(&device, &late);
        let error = device.reset().expect_err("its thread is stuck");
        assert_eq!(cause(&error), late);
        alive(&neighbour);
        assert_eq!(cause(&device.destroy().expect_err("cannot be ended")), late);
        alive(&neighbour);
    }
}

#[test]
fn a_panic_or_refusal_at_creation() {
    let plugin = hostile_rust();
    let bed = Bed::new();
    for (fault, words) in [
        ("panic:create", "Panicked: out of my mind in create"),
        ("panic:info", "Panicked: out of my mind in info"),
        ("refuse:create", "not in the mood"),
    ] {
        let fault = [("fault", fault)];
        let error = bed.create_with(&plugin, &fault, generous()).expect_err("no device");
        assert!(error.to_string().contains(words), "{error}");
    }
    bed.create(&plugin, &[]).expect("the plugin still works");
}

#[test]
fn a_panic_at_the_end_is_caught() {
    let plugin = hostile_rust();
    let bed = Bed::new();
    let fault = [("fault", "panic:drop")];
    let device = bed.create_with(&plugin, &fault, generous()).expect("creates");
    device.destroy().expect("ends");
    bed.create(&plugin, &[]).expect("the plugin still works");
}

#[test]
fn no_return_at_the_end() {
    let plugin = hostile_rust();
    let bed = Bed::new();
    let device = bed.create_with(&plugin, &[("fault", "hang:drop")], short()).expect("creates");
    let late = Cause::Late { call: "destroy", deadline: Duration::from_millis(200) };
    assert_eq!(cause(&device.destroy().expect_err("hangs")), late);
    bed.create(&plugin, &[]).expect("the plugin still works");
}

/// In a process of its own: a plugin whose `create` is stuck makes no more devices.
#[test]
fn no_return_from_create() {
    if !alone("callbacks::no_return_from_create") {
        return;
    }
    let plugin = hostile_rust();
    let bed = Bed::new();
    let neighbour = bed.create(&plugin, &[]).expect("creates");
    neighbour.set_state(State::Running).expect("runs");
    let late = Cause::Late { call: "create", deadline: Duration::from_millis(200) };
    let error = bed.create_with(&plugin, &[("fault", "hang:create")], short()).expect_err("hangs");
    assert_eq!(cause(&error), late);
    assert_eq!(cause(&bed.create(&plugin, &[]).expect_err("still stuck")), late);
    alive(&neighbour);
}

/// One call of `set_state` for each state, panicking or hanging there.
const STATES: [(&str, &[State]); 7] = [
    ("RunningP2p", &[State::Stop]),
    ("Running", &[State::Stop, State::Running]),
    ("Stop", &[State::Stop]),
    ("StopCopy", &[State::StopCopy]),
    ("Resuming", &[State::Resuming]),
    ("PreCopy", &[State::PreCopy]),
    ("PreCopyP2p", &[State::PreCopyP2p]),
];

fn through(device: &Instance, states: &[State]) -> Result<(), InstanceError> {
    states.iter().try_for_each(|state| device.set_state(*state))
}

#[test]
fn a_panic_on_the_way_to_each_state() {
    let plugin = hostile_rust();
    let bed = Bed::new();
    for (state, way) in STATES {
        let (device, neighbour) = pair(&bed, &plugin, &format!("panic:{state}"), generous());
        let text = format!("Panicked: out of my mind in {state}");
        let error = through(&device, way).expect_err(state);
        assert_eq!(cause(&error), Cause::Fatal { call: "set_state", text });
        dead(&device, &cause(&error));
        alive(&neighbour);
        device.reset().expect("resets");
        device.param_set("fault", "").expect("sets");
        through(&device, way).expect("goes there now");
    }
}

#[test]
fn no_return_on_the_way_to_each_state() {
    let plugin = hostile_rust();
    let bed = Bed::new();
    for (state, way) in STATES {
        let (device, neighbour) = pair(&bed, &plugin, &format!("hang:{state}"), short());
        let error = through(&device, way).expect_err(state);
        let late = Cause::Late { call: "set_state", deadline: short().state };
        assert_eq!(cause(&error), late, "{state}");
        dead(&device, &late);
        alive(&neighbour);
    }
}

/// Each function of the C interface that a live instance has, and how to get there.
const IN_C: [(&str, Act); 14] = [
    ("region_read", |device| device.region_read(0, 0, &mut [0; 8])),
    ("region_write", |device| device.region_write(0, 0, &[0; 8])),
    ("doorbell", |device| device.doorbell(0)),
    ("set_state", |device| device.set_state(State::Stop)),
    ("get_state", |device| device.set_state(State::Stop)),
    ("precopy_info", |device| {
        device.set_state(State::PreCopy)?;
        device.precopy_info().map(|_| ())
    }),
    ("stop_copy_size", |device| device.stop_copy_size().map(|_| ())),
    ("migration.read", |device| {
        device.set_state(State::StopCopy)?;
        device.read_state(&mut [0; 8]).map(|_| ())
    }),
    ("migration.write", |device| {
        device.set_state(State::Resuming)?;
        device.write_state(&[0; 8])
    }),
    ("ndma.enter", |device| device.enter_ndma()),
    ("ndma.leave", |device| {
        device.enter_ndma()?;
        device.leave_ndma()
    }),
    ("params.get", |device| device.param_get("x").map(|_| ())),
    ("params.set", |device| device.param_set("x", "1")),
    ("reset", |device| device.reset()),
];

fn act_in_c(what: &str, call: &str, act: Act, deadlines: Deadlines) -> Option<InstanceError> {
    let built = hostile(&[&format!("{what}=\"{call}\""), "NDMA", "PARAMS=1"])?;
    let plugin = Plugin::open(&built.file).expect("loads");
    let bed = Bed::new();
    let device = bed.create_with(&plugin, &[], deadlines).expect("creates");
    let error = device.set_state(State::Running).and_then(|()| act(&device)).expect_err(call);
    dead_as(&device, &cause(&error));
    Some(error)
}

#[test]
fn a_fatal_error_of_each_function_in_c() {
    for (call, act) in IN_C {
        let Some(error) = act_in_c("FATAL", call, act, generous()) else { return };
        let text = "(no reason given)".to_owned();
        assert_eq!(cause(&error), Cause::Fatal { call, text });
    }
}

#[test]
fn no_return_from_each_function_in_c() {
    for (call, act) in IN_C {
        let Some(error) = act_in_c("HANG", call, act, short()) else { return };
        assert_eq!(cause(&error), Cause::Late { call, deadline: short().call });
    }
}

/// What the host asks of a new device names itself too.
#[test]
fn no_return_from_each_first_call() {
    for call in ["create", "describe", "region_info", "doorbell_info"] {
        let Some(built) = hostile(&[&format!("HANG=\"{call}\"")]) else { return };
        let plugin = Plugin::open(&built.file).expect("loads");
        let error = Bed::new().create_with(&plugin, &[], short()).expect_err(call);
        assert_eq!(cause(&error), Cause::Late { call, deadline: short().call });
        let error = Bed::new().create_with(&plugin, &[], short()).expect_err("still stuck");
        assert_eq!(cause(&error), Cause::Late { call, deadline: short().call });
    }
    for call in ["create", "describe", "region_info", "doorbell_info"] {
        let Some(built) = hostile(&[&format!("FATAL=\"{call}\"")]) else { return };
        let plugin = Plugin::open(&built.file).expect("loads");
        let error = Bed::new().create(&plugin, &[]).expect_err(call);
        let text = "(no reason given)".to_owned();
        assert_eq!(cause(&error), Cause::Fatal { call, text });
    }
}

#[test]
fn a_worker_that_panics() {
    let plugin = hostile_rust();
    let bed = Bed::new();
    let neighbour = bed.create(&plugin, &[]).expect("creates");
    neighbour.set_state(State::Running).expect("runs");
    let device = bed.create_with(&plugin, &[("fault", "panic:worker")], generous());
    // It may panic before the device is ready.
    let error = match &device {
        Ok(device) => {
            until("the worker's panic is seen", || device.state() == State::Error);
            (*device.error().expect("why")).clone()
        }
        Err(error) => cause(error),
    };
    let text = "Worker hostile panicked: worker out of its mind".to_owned();
    assert_eq!(error, Cause::Failed { text });
    alive(&neighbour);
}

#[test]
fn a_reset_after_a_workers_panic_makes_the_device_anew() {
    let plugin = hostile_rust();
    let bed = Bed::new();
    let (device, _neighbour) = pair(&bed, &plugin, "", generous());
    // It may panic before the call has returned.
    let _ = device.param_set("fault", "panic:worker-once");
    until("the worker's panic is seen", || device.state() == State::Error);
    device.reset().expect("resets");
    device.set_state(State::Running).expect("runs");
    write64(&device, 0, 0x3000);
    until("the new worker counts", || bed.u64(0x3000) > 3);
}

#[test]
fn a_device_may_give_itself_up() {
    let plugin = hostile_rust();
    let bed = Bed::new();
    let (device, neighbour) = pair(&bed, &plugin, "fail:doorbell", Deadlines::default());
    let error = device.doorbell(0).expect_err("burned");
    let failed = Cause::Failed { text: "the doorbell burned".to_owned() };
    assert_eq!(cause(&error), failed);
    dead(&device, &failed);
    alive(&neighbour);
    device.reset().expect("resets");
    device.set_state(State::Running).expect("runs");
    alive(&device);
}

#[test]
fn the_sdk_checks_its_own_device() {
    let plugin = hostile_rust();
    let bed = Bed::new();
    let (device, _neighbour) = pair(&bed, &plugin, "lie:read_state", Deadlines::default());
    device.set_state(State::StopCopy).expect("stops");
    let error = device.read_state(&mut [0; 8]).expect_err("a lie");
    assert!(error.to_string().contains("says 9 bytes of state, asked for 8"), "{error}");
    device.reset().expect("resets");
    device.param_set("fault", "").expect("sets");
    device.set_state(State::StopCopy).expect("stops");
    assert_eq!(device.read_state(&mut [0; 8]).expect("reads"), Read::Bytes(8));
}

#[test]
fn parameters_of_the_sdk() {
    let plugin = hostile_rust();
    let bed = Bed::new();
    let names: Vec<_> = plugin.params().iter().map(|param| param.name.as_str()).collect();
    assert_eq!(names, ["fault", "size", "wide"]);
    let device = bed.create(&plugin, &[("size", "7"), ("wide", "true")]).expect("creates");
    assert_eq!(device.param_get("size").expect("gets"), "7");
    assert_eq!(device.param_get("wide").expect("gets"), "true");
    device.param_set("size", "8").expect_err("at the start only");
    bed.create(&plugin, &[("size", "10")]).expect_err("out of bounds");
    bed.create(&plugin, &[("wide", "yes")]).expect_err("no such value");
}

/// Accesses of other vCPUs wait behind a stuck call no longer than its deadline, then answer.
#[test]
fn other_callers_of_a_stuck_device_are_freed() {
    let plugin = hostile_rust();
    let bed = Bed::new();
    let (device, neighbour) = pair(&bed, &plugin, "hang:region_read", short());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let error = device.region_read(0, 0, &mut [0; 4]).expect_err("hangs");
                assert!(matches!(cause(&error), Cause::Late { call: "region_read", .. }));
            });
        }
    });
    alive(&neighbour);
}
