//! The example in C, driven like a guest would.

use crate::bed::{Bed, MEMORY, compile, read64, write64};
use crate::tracked::{gpas, harvest};
use drogher_plugin_host::{InstanceError, ParamError, ParamKind, Plugin, Read, State};
use drogher_tracking::TrackingPageSize;

const COUNT: u64 = 0;
const TARGET: u64 = 8;
const ERRORS: u64 = 16;

fn counter() -> Option<Plugin> {
    let built = compile("c-counter/counter.c", "counter", &[])?;
    Some(Plugin::open(&built.file).expect("loads"))
}

#[test]
fn counts_writes_and_interrupts() {
    let Some(plugin) = counter() else { return };
    let bed = Bed::new();
    let device = bed.create(&plugin, &[("step", "3")]).expect("creates");
    let info = device.info();
    assert_eq!((info.vendor_id, info.device_id, info.vectors), (0xD70E, 0x0010, 1));
    assert_eq!((info.regions.len(), info.doorbells.len()), (1, 1));
    assert_eq!(device.state(), State::Stop);
    device.set_state(State::Running).expect("runs");
    write64(&device, TARGET, 0x1000);
    device.doorbell(0).expect("rings");
    device.doorbell(0).expect("rings");
    assert_eq!(read64(&device, COUNT) as u32, 6);
    assert_eq!(bed.u64(0x1000) as u32, 6);
    assert_eq!(bed.irqs(), 2);
    assert_eq!(device.dma_stats().bytes_written, 8);
    device.destroy().expect("ends");
}

#[test]
fn registers_of_every_width() {
    let Some(plugin) = counter() else { return };
    let bed = Bed::new();
    let device = bed.create(&plugin, &[]).expect("creates");
    device.set_state(State::Running).expect("runs");
    device.region_write(0, COUNT, &[0x44, 0x33, 0x22, 0x11]).expect("writes");
    for width in 1..=8 {
        let mut bytes = vec![0xFF; width];
        device.region_read(0, COUNT, &mut bytes).expect("reads");
        let expected = [0x44, 0x33, 0x22, 0x11, 0, 0, 0, 0];
        assert_eq!(bytes, expected.get(..width).expect("at most 8"));
    }
    let refused = device.region_write(0, 0x100, &[0]).expect_err("no such register");
    assert!(matches!(refused, InstanceError::Refused { status: -22, .. }), "{refused}");
    assert!(refused.to_string().contains("No such register"), "{refused}");
    assert_eq!(device.state(), State::Running, "a refusal changes nothing");
    for (region, offset, len) in
        [(0, 4096, 1), (0, 4093, 4), (0, u64::MAX, 8), (1, 0, 4), (0, 0, 9)]
    {
        let error = device.region_read(region, offset, &mut vec![0; len]).expect_err("outside");
        assert!(matches!(error, InstanceError::Outside { .. }), "{error}");
    }
    assert!(matches!(device.doorbell(1), Err(InstanceError::Outside { .. })));
    let error = device.config_read(0x100, &mut [0; 4]).expect_err("no area");
    assert!(matches!(error, InstanceError::Outside { .. }), "{error}");
}

#[test]
fn a_fault_is_an_error_of_the_device() {
    let Some(plugin) = counter() else { return };
    let bed = Bed::new();
    let device = bed.create(&plugin, &[]).expect("creates");
    device.set_state(State::Running).expect("runs");
    write64(&device, TARGET, crate::bed::MEMORY);
    device.doorbell(0).expect("rings");
    assert_eq!(read64(&device, ERRORS) as u32, 1);
    assert_eq!(device.stats().dma_faults, 1);
    assert_eq!(bed.domain.faults().total, 1);
}

#[test]
fn parameters() {
    let Some(plugin) = counter() else { return };
    let [step] = plugin.params() else { panic!("one parameter") };
    assert_eq!(step.kind, ParamKind::Number { min: 1, max: 1000 });
    assert!(step.runtime && step.compat && step.default == "1");
    let bed = Bed::new();
    type Given = &'static [(&'static str, &'static str)];
    type Expected = fn(&ParamError) -> bool;
    let wrong: [(Given, Expected); 5] = [
        (&[("stride", "3")], |e| matches!(e, ParamError::Unknown { .. })),
        (&[("step", "0")], |e| matches!(e, ParamError::Value { .. })),
        (&[("step", "+3")], |e| matches!(e, ParamError::Value { .. })),
        (&[("step", "")], |e| matches!(e, ParamError::Value { .. })),
        (&[("step", "3"), ("step", "4")], |e| matches!(e, ParamError::Twice { .. })),
    ];
    for (given, expected) in wrong {
        let error = bed.create(&plugin, given).expect_err("wrong");
        let InstanceError::Param { source, .. } = &error else { panic!("{error}") };
        assert!(expected(source), "{error}");
    }
    let device = bed.create(&plugin, &[]).expect("creates");
    assert_eq!(device.param_get("step").expect("gets"), "1");
    device.param_set("step", "77").expect("sets");
    assert_eq!(device.param_get("step").expect("gets"), "77");
    device.param_set("step", "1001").expect_err("too large");
    device.param_get("stride").expect_err("none");
}

#[test]
fn moves_with_a_latched_doorbell() {
    let Some(plugin) = counter() else { return };
    let bed = Bed::new();
    let source = bed.create(&plugin, &[("step", "5")]).expect("creates");
    source.set_state(State::Running).expect("runs");
    write64(&source, TARGET, 0x2000);
    source.doorbell(0).expect("rings");
    source.set_state(State::Stop).expect("stops");
    source.doorbell(0).expect("latches");
    source.set_state(State::StopCopy).expect("stops");
    source.doorbell(0).expect("latches, before the first byte is read");
    assert_eq!((bed.u64(0x2000), bed.irqs()), (5, 1), "nothing happens after STOP");
    let mut image = Vec::new();
    let mut piece = [0; 7];
    while let Read::Bytes(n) = source.read_state(&mut piece).expect("reads") {
        image.extend_from_slice(piece.get(..n).expect("at most 7"));
    }
    assert_eq!(image.len() as u64, source.stop_copy_size().expect("a size"));
    assert_eq!(source.read_state(&mut piece).expect("reads"), Read::End, "for ever");
    let late = source.doorbell(0).expect_err("would be lost");
    assert!(matches!(late, InstanceError::WrongState { .. }), "{late}");

    let target = bed.create(&plugin, &[("step", "5")]).expect("creates");
    target.set_state(State::Resuming).expect("resumes");
    for byte in &image {
        target.write_state(&[*byte]).expect("writes");
    }
    target.set_state(State::Stop).expect("takes it");
    assert_eq!((bed.u64(0x2000), bed.irqs()), (5, 1));
    target.set_state(State::Running).expect("runs");
    assert_eq!((bed.u64(0x2000), bed.irqs()), (10, 2), "the latched doorbell rang");
    assert_eq!(read64(&target, COUNT) as u32, 10);
}

#[test]
fn wrong_state_data_are_refused() {
    let Some(plugin) = counter() else { return };
    let bed = Bed::new();
    let device = bed.create(&plugin, &[]).expect("creates");
    device.set_state(State::Resuming).expect("resumes");
    device.write_state(&[0xAA; 24]).expect("not looked at yet");
    let error = device.set_state(State::Running).expect_err("no saved counter");
    assert!(matches!(error, InstanceError::Refused { status: -22, .. }), "{error}");
    assert_eq!(device.state(), State::Resuming);
    let error = device.write_state(&[0; 1]).expect_err("too many");
    assert!(error.to_string().contains("More bytes"), "{error}");
    device.reset().expect("the way out");
    assert_eq!(device.state(), State::Stop);
    device.set_state(State::Running).expect("runs again");
}

#[test]
fn all_instances_at_once() {
    let Some(plugin) = counter() else { return };
    let bed = Bed::new();
    let devices: Vec<_> = (0..4).map(|_| bed.create(&plugin, &[]).expect("creates")).collect();
    std::thread::scope(|scope| {
        for device in &devices {
            device.set_state(State::Running).expect("runs");
            // Two vCPUs on each.
            for _ in 0..2 {
                scope.spawn(|| (0..200).for_each(|_| device.doorbell(0).expect("rings")));
            }
        }
    });
    assert!(devices.iter().all(|device| read64(device, COUNT) as u32 == 400));
    assert_eq!(bed.irqs(), 1600);
}

#[test]
fn its_log_has_what_it_wrote() {
    let Some(plugin) = counter() else { return };
    let bed = Bed::new();
    let device = bed.create(&plugin, &[]).expect("creates");
    device.set_state(State::Running).expect("runs");
    let (_, log) = device.device_log().expect("has one");
    let k4 = TrackingPageSize::K4;
    let started = log.start(&gpas(&[0..0x10000, 0x20000..MEMORY]), k4).expect("starts");
    assert_eq!(started, k4);
    for target in [0x1000, 0x8FFE, 0x10000, 0x20000] {
        write64(&device, TARGET, target);
        device.doorbell(0).expect("rings");
    }
    assert_eq!(bed.u64(0x20000) as u32, 4);
    assert_eq!(harvest(&*log, k4), [1, 8, 9, 0x20]);
    log.stop().expect("stops");
    device.doorbell(0).expect("rings");
    assert_eq!(read64(&device, COUNT) as u32, 5, "it goes on without");
    assert_eq!(read64(&device, ERRORS), 0);
}
