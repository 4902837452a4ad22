//! The set on its way from one machine to another, and back again from every step.

use std::sync::Arc;

use drogher_plugin_host::State;
use proptest::prelude::*;

use super::testing::{ALL, BELL, Can, PATIENCE, Rig, wait};
use super::{DeviceError, StateRead};

/// Moves `from` to a fresh machine, which runs on return.
fn arrive(from: &Rig, mut states: Vec<Vec<u8>>) -> Rig {
    let cans = vec![ALL; from.set.len()];
    let to = Rig::new(&cans);
    for (all, rest) in states.iter_mut().zip(from.state()) {
        all.extend(rest);
    }
    to.arrive(&states, &from.set.save());
    to.run();
    to
}

#[test]
fn all_of_a_device_arrives() {
    let from = Rig::running();
    let bar = from.bar(1, 0);
    from.config_write(1, 0x10, 0xe400_0000);
    from.config_write(1, 0x3c, 11);
    from.write32(0xe400_0004, 42);
    from.mask(1, 1, true);
    from.config_write(0, 4, 2);
    from.set.start_precopy().expect("it can");
    let early = from.precopy(0);
    assert!(!early.is_empty());
    from.write32(0xe400_0008, 43);
    from.stop();
    let to = arrive(&from, vec![early]);
    assert_eq!((to.read32(0xe400_0004), to.read32(0xe400_0008)), (42, 43));
    assert_eq!(to.read32(bar), u32::MAX);
    assert_eq!((to.config_read(1, 0x3c) & 0xff, to.config_read(0, 4) & 0xffff), (11, 2));
    assert_eq!(to.wiring.doorbells(), [0xe400_0000 + BELL]);
    assert!(to.fakes[0].dma());
    to.fakes[0].irq(0);
    to.fakes[0].irq(1);
    assert_eq!(to.wiring.interrupts(), [0x40]);
    to.mask(1, 1, false);
    assert_eq!(to.wiring.interrupts(), [0x41]);
}

/// Caught mutant: `doorbell-dropped`.
#[test]
fn a_doorbell_rung_and_not_read_is_rung_at_the_destination() {
    let from = Rig::running();
    let bell = from.bar(1, 0) + BELL;
    // The I/O thread does not come to it before it is parked.
    from.wiring.io_thread().park(PATIENCE).expect("parked");
    assert!(from.wiring.ring(bell, 4));
    from.stop();
    assert!(from.fakes[0].rung().is_empty());
    let to = arrive(&from, vec![vec![]]);
    assert_eq!(to.fakes[0].rung(), [0]);
    // And not once more at the next move.
    to.stop();
    let next = arrive(&to, vec![vec![]]);
    assert!(next.fakes[0].rung().is_empty());
}

#[test]
fn a_doorbell_rung_and_not_read_is_rung_after_a_rollback() {
    let from = Rig::running();
    from.wiring.io_thread().park(PATIENCE).expect("parked");
    assert!(from.wiring.ring(from.bar(1, 0) + BELL, 4));
    from.stop();
    from.run();
    from.wiring.io_thread().unpark();
    assert_eq!(from.fakes[0].rung(), [0]);
}

/// Caught mutant: `masked-pending-dropped`.
#[test]
fn a_pending_vector_arrives_pending() {
    let from = Rig::running();
    from.mask(1, 0, true);
    from.fakes[0].irq(0);
    from.stop();
    let to = arrive(&from, vec![vec![]]);
    assert!(to.wiring.interrupts().is_empty(), "it is masked");
    to.mask(1, 0, false);
    assert_eq!(to.wiring.interrupts(), [0x40]);
}

#[test]
fn an_interrupt_while_irqfds_are_off_is_delivered_when_they_are_on() {
    let from = Rig::running();
    from.set.irqfds_off().expect("off");
    from.fakes[0].irq(1);
    assert!(from.wiring.interrupts().is_empty());
    from.stop();
    let to = arrive(&from, vec![vec![]]);
    assert_eq!(to.wiring.interrupts(), [0x41], "at the destination");
    from.run();
    assert_eq!(from.wiring.interrupts(), [0x41], "or after a rollback");
}

/// Caught mutant: `device-not-quiesced`.
#[test]
fn no_dma_and_no_interrupt_after_quiesce_and_stop() {
    for pre_copy in [false, true] {
        let rig = Rig::running();
        if pre_copy {
            rig.set.start_precopy().expect("it can");
        }
        assert!(rig.fakes[0].dma());
        rig.set.to_p2p_and_ndma().expect("quiesced");
        assert!(rig.fakes[0].in_ndma() && !rig.fakes[0].dma(), "in NDMA");
        rig.fakes[0].irq(0);
        rig.set.to_stop().expect("stopped");
        assert!(!rig.fakes[0].state().runs() && !rig.fakes[0].dma(), "stopped");
        rig.fakes[0].irq(0);
        assert!(rig.wiring.interrupts().is_empty());
        assert!(!rig.set.holds_permits());
    }
}

#[test]
fn starts_and_stops_are_two_passes() {
    let rig =
        Rig::new(&[ALL, Can { pre_copy: false, ndma: false, ..ALL }, Can { p2p: false, ..ALL }]);
    rig.run();
    let starts = ["1 RUNNING_P2P", "2 RUNNING_P2P", "1 RUNNING", "2 RUNNING", "3 RUNNING"];
    assert_eq!(rig.calls(), starts);
    rig.set.start_precopy().expect("they can");
    assert_eq!(rig.calls(), ["1 PRE_COPY", "3 PRE_COPY"]);
    rig.set.to_p2p_and_ndma().expect("quiesced");
    assert_eq!(rig.calls(), ["1 PRE_COPY_P2P", "2 RUNNING_P2P", "1 NDMA", "3 NDMA"]);
    rig.set.to_stop().expect("stopped");
    assert_eq!(rig.calls(), ["1 STOP_COPY", "2 STOP", "3 STOP_COPY"], "sessions go on");
    rig.run();
    let back = [
        "1 STOP",
        "1 no NDMA",
        "1 RUNNING_P2P",
        "2 RUNNING_P2P",
        "3 STOP",
        "3 no NDMA", //
        "1 RUNNING",
        "2 RUNNING",
        "3 RUNNING",
    ];
    assert_eq!(rig.calls(), back);
}

#[test]
fn a_source_rolls_back_from_every_step() {
    for steps in 0..=7 {
        let rig = Rig::running();
        let bar = rig.bar(1, 0);
        rig.write32(bar, 42);
        let mut buf = [0; 256];
        let mut todo: [Box<dyn FnMut()>; 7] = [
            Box::new(|| rig.set.start_precopy().expect("it can")),
            Box::new(|| drop(rig.precopy(0))),
            Box::new(|| rig.set.to_p2p_and_ndma().expect("quiesced")),
            Box::new(|| rig.set.to_stop().expect("stopped")),
            Box::new(|| {
                rig.set.drain_doorbells();
                rig.set.irqfds_off().expect("off");
            }),
            Box::new(|| assert_ne!(rig.set.stop_copy_read(0, &mut buf).ok(), None)),
            Box::new(|| {
                assert_eq!(rig.state().len(), 1);
                assert!(!rig.set.save().is_empty());
            }),
        ];
        todo.iter_mut().take(steps).for_each(|step| step());
        drop(todo);
        let lease = rig.run();
        assert_eq!(Arc::strong_count(&lease), 2, "a new permit after {steps} steps");
        assert_eq!(rig.fakes[0].state(), State::Running, "after {steps} steps");
        assert!(rig.fakes[0].dma() && !rig.fakes[0].in_ndma());
        assert_eq!(rig.read32(bar), 42);
        rig.fakes[0].irq(0);
        assert_eq!(rig.wiring.interrupts(), [0x40]);
        assert!(rig.wiring.ring(bar + BELL, 4));
        wait("the doorbell", || rig.fakes[0].rung() == [0]);
        // And it can be moved afterwards.
        rig.set.start_precopy().expect("it can");
        let early = rig.precopy(0);
        rig.stop();
        assert_eq!(arrive(&rig, vec![early]).read32(bar), 42, "after {steps} steps");
    }
}

#[test]
fn a_migration_given_up_while_running_leaves_a_running_device() {
    let rig = Rig::running();
    rig.set.start_precopy().expect("it can");
    rig.precopy(0);
    rig.set.end_precopy().expect("it can");
    assert_eq!(rig.fakes[0].state(), State::Running);
    rig.calls();
    rig.set.end_precopy().expect("again");
    assert!(rig.calls().is_empty());
}

#[test]
fn a_failed_stop_is_named_and_rolled_back() {
    for refusal in ["PRE_COPY_P2P", "ndma", "STOP_COPY"] {
        let rig = Rig::new(&[ALL, ALL]);
        let lease = rig.run();
        rig.set.start_precopy().expect("they can");
        rig.fakes[1].refuse(refusal);
        let stopped = rig.set.to_p2p_and_ndma().and_then(|()| rig.set.to_stop());
        let error = stopped.expect_err(refusal).to_string();
        assert!(error.starts_with("00:02.0 test.fake"), "{error}");
        assert!(Arc::strong_count(&lease) > 1, "what may run keeps its permit");
        rig.fakes[1].forgive();
        rig.run();
        for fake in &rig.fakes {
            assert_eq!((fake.state(), fake.in_ndma()), (State::Running, false), "{refusal}");
        }
    }
}

#[test]
fn a_device_that_breaks_while_it_stops_gives_its_permit_back() {
    let rig = Rig::running();
    rig.fakes[0].break_down("late");
    rig.set.to_p2p_and_ndma().expect("nothing to do");
    rig.set.to_stop().expect("in ERROR it cannot do anything");
    assert!(!rig.set.holds_permits());
    let error = rig.set.stop_copy_read(0, &mut [0; 64]).expect_err("it has no state");
    assert!(matches!(error, DeviceError::Failed { .. }), "{error}");
    let down = rig.set.run(&mut |_| Ok(Box::new(()))).expect("permits are free");
    assert_eq!(down.len(), 1, "the VM lives");
}

/// Offset of the advanced-features control register.
const AF_CONTROL: u32 = 0x50;

#[test]
fn a_reset_in_the_middle_of_precopy_is_followed_by_the_destination() {
    let from = Rig::running();
    let bar = from.bar(1, 0);
    from.write32(bar, 0xdead);
    from.set.start_precopy().expect("it can");
    let mut stream = from.precopy(0);
    assert!(!stream.is_empty());
    from.config_write(1, AF_CONTROL, 1);
    assert_eq!(from.fakes[0].state(), State::PreCopy, "pre-copy goes on");
    from.config_write(1, 0x10, bar as u32);
    from.config_write(1, 0x20, 0xe000_1000);
    from.drive(1);
    from.write32(bar + 4, 1);
    // Once with more pre-copy before the stop, once without.
    stream.extend(from.precopy(0));
    from.config_write(1, AF_CONTROL, 1);
    from.stop();
    let to = arrive(&from, vec![stream]);
    assert!(to.calls().contains(&"1 reset".to_owned()), "it is told to forget");
    assert_eq!(to.fakes[0].memory(), [0; 64]);
}

#[test]
fn a_session_that_a_pause_has_ended_is_void() {
    let from = Rig::running();
    from.write32(from.bar(1, 0), 42);
    from.set.start_precopy().expect("it can");
    let early = from.precopy(0);
    from.set.to_stop().expect("paused");
    from.run();
    from.write32(from.bar(1, 0), 43);
    from.stop();
    let to = arrive(&from, vec![early]);
    assert!(to.calls().contains(&"1 reset".to_owned()), "it is told to forget");
    assert_eq!(to.read32(to.bar(1, 0)), 43);
}

#[test]
fn a_bar_may_move_while_state_is_read() {
    let from = Rig::running();
    from.set.start_precopy().expect("it can");
    let early = from.precopy(0);
    from.config_write(1, 0x10, 0xf123_4000);
    from.config_write(1, 4, 4);
    from.config_write(1, 4, 6);
    from.wiring.io_thread().park(PATIENCE).expect("parked");
    assert!(from.wiring.ring(0xf123_4000 + BELL, 4));
    from.stop();
    let to = arrive(&from, vec![early]);
    assert_eq!(to.wiring.doorbells(), [0xf123_4000 + BELL]);
    assert_eq!(to.fakes[0].rung(), [0]);
}

#[test]
fn an_unmoved_bar_costs_no_binding_in_the_blackout() {
    let from = Rig::running();
    from.stop();
    let to = Rig::new(&[ALL]);
    to.set.begin_resume().expect("ready");
    let before = to.wiring.bindings();
    to.set.load_chunk(0, &from.state()[0]).expect("good state");
    to.set.commit().expect("taken");
    to.set.load(&from.set.save()).expect("good registers");
    to.run();
    assert_eq!((before, to.wiring.bindings()), (1, 1));
    assert!(to.wiring.ring(from.bar(1, 0) + BELL, 4));
    wait("the doorbell", || to.fakes[0].rung() == [0]);
}

#[test]
fn a_guess_about_doorbells_is_taken_back() {
    let from = Rig::new(&[ALL]);
    from.run();
    from.stop();
    let to = arrive(&from, vec![vec![]]);
    assert!(to.wiring.doorbells().is_empty(), "the guest has decoding off");
}

#[test]
fn state_is_bounded_by_what_was_announced() {
    let rig = Rig::running();
    let max = rig.set.describe().expect("it answers")[0].max_state;
    rig.set.start_precopy().expect("it can");
    let (mut sent, mut buf) = (0_u64, vec![0; 1 << 20]);
    // The guest dirties the device as fast as it is read: pre-copy must end all the same.
    let bar = rig.bar(1, 0);
    for _ in 0..2_000_000 {
        rig.write32(bar, 1);
        match rig.set.precopy_read(0, &mut buf).expect("readable") {
            StateRead::Bytes(len) => sent += len as u64,
            other => {
                assert_eq!(other, StateRead::NoMoreNow);
                break;
            }
        }
    }
    assert!(sent <= max / 2, "{sent} of {max}");
    rig.stop();
    assert_eq!(rig.state().len(), 1);
}

#[test]
fn state_can_be_looked_at_on_both_sides() {
    let look = |rig: &Rig| {
        let mut state = Vec::new();
        rig.set.inspect_state(0, |piece| state.extend_from_slice(piece)).expect("it stands");
        state
    };
    let from = Rig::running();
    from.write32(from.bar(1, 0) + 4, 77);
    assert!(from.set.inspect_state(0, |_| ()).is_err(), "not while it runs");
    from.set.start_precopy().expect("it can");
    let mut stream = from.precopy(0);
    from.stop();
    stream.extend(&from.state()[0]);
    let host = from.set.save();
    let here = look(&from);
    assert_eq!(from.set.stop_copy_read(0, &mut [0; 64]).expect("over"), StateRead::End);
    let to = Rig::new(&[ALL]);
    to.arrive(&[stream], &host);
    assert_eq!(look(&to), here);
    assert_eq!(to.set.save(), host);
    to.run();
    assert_eq!(to.read32(to.bar(1, 0) + 4), 77);
    from.run();
    assert_eq!(from.read32(from.bar(1, 0) + 4), 77, "a look does not keep it from going on");
}

#[test]
fn a_load_is_refused_when_it_is_cut_or_damaged() {
    let from = Rig::running();
    from.stop();
    let (state, host) = (from.state().remove(0), from.set.save());
    for len in 0..state.len() {
        let to = Rig::new(&[ALL]);
        to.set.begin_resume().expect("ready");
        to.set.load_chunk(0, &state[..len]).expect("good so far");
        let refused = to.set.commit().expect_err("cut");
        assert!(refused.to_string().starts_with("00:01.0 test.fake"), "{refused}");
    }
    let to = Rig::new(&[ALL]);
    assert!(to.set.load_chunk(0, &state).is_err(), "not ready");
    assert!(to.set.commit().is_err());
    assert!(matches!(to.set.load_chunk(1, &state), Err(DeviceError::NoDevice(1))));
    to.set.begin_resume().expect("ready");
    let damaged = to.set.load_chunk(0, &[9, 0, 0, 0, 0]);
    assert!(matches!(damaged, Err(DeviceError::Frame { .. })));
    let before = to.set.save();
    for len in 0..host.len() {
        assert!(to.set.load(&host[..len]).is_err(), "{len}");
        assert_eq!(to.set.save(), before, "a refused state changes nothing");
    }
    let longer = [&host[..], &[0]].concat();
    assert!(to.set.load(&longer).is_err());
    let two = Rig::new(&[ALL, ALL]);
    assert!(two.set.load(&host).is_err(), "another number of functions");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Every bit of the host-owned state, turned over: refused, or taken and given back the same.
    #[test]
    fn damaged_registers_are_refused_or_whole(seed in any::<u64>(), flips in 1..4_usize) {
        let from = Rig::running();
        from.stop();
        let good = from.set.save();
        let to = Rig::new(&[ALL]);
        to.set.begin_resume().expect("ready");
        let mut random = seed | 1;
        for _ in 0..40 {
            let mut bad = good.clone();
            for _ in 0..flips {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let bit = (random >> 8) as usize % (bad.len() * 8);
                bad[bit / 8] ^= 1 << (bit % 8);
            }
            let before = to.set.save();
            match to.set.load(&bad) {
                Ok(()) => prop_assert_eq!(to.set.save(), bad),
                Err(_) => prop_assert_eq!(to.set.save(), before),
            }
        }
    }

    /// A guest that does anything to its registers, on a machine that is moved now and then, sees what
    /// it would see on one that stays.
    #[test]
    fn a_moved_machine_answers_as_one_that_stayed(
        acts in prop::collection::vec((0..8_u8, any::<u32>(), any::<u32>()), 1..40),
        moves in prop::collection::vec(0..40_usize, 1..3),
    ) {
        let stays = Rig::running();
        let mut goes = Rig::running();
        for (number, (kind, at, value)) in acts.into_iter().enumerate() {
            if moves.contains(&number) {
                goes.set.start_precopy().expect("it can");
                let early = goes.precopy(0);
                goes.stop();
                goes = arrive(&goes, vec![early]);
            }
            let act = |rig: &Rig| match kind {
                0 => rig.config_write(1, at & 0xfc, value),
                1 => rig.write32(0xe000_1000 + u64::from(at & 0x3c), value),
                2 => rig.write32(0xe000_1000 + u64::from(at & 0x10) + 12, value & 1),
                3 => rig.write32(0xe000_0000 + u64::from(at & 0x3c), value),
                4 => rig.fakes[0].irq((at & 1) as u16),
                5 => rig.config_write(1, 4, value & 6),
                6 => rig.config_write(1, 0x40, value & 0xc000_0000),
                _ => { rig.config_read(1, at & 0xfc); }
            };
            act(&stays);
            act(&goes);
            for register in (0..256).step_by(4) {
                prop_assert_eq!(stays.config_read(1, register), goes.config_read(1, register));
            }
            for address in (0..64).step_by(4).map(|at| 0xe000_1000 + at).chain([0xe000_1800]) {
                prop_assert_eq!(stays.read32(address), goes.read32(address), "{:#x}", address);
            }
            prop_assert_eq!(stays.wiring.interrupts(), goes.wiring.interrupts());
            prop_assert_eq!(stays.fakes[0].memory(), goes.fakes[0].memory());
            prop_assert_eq!(stays.fakes[0].dma(), goes.fakes[0].dma());
            prop_assert_eq!(stays.wiring.doorbells(), goes.wiring.doorbells());
        }
    }
}
