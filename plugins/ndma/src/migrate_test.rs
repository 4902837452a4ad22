use super::*;
use crate::regs;
use crate::scratch::PAGE;
use crate::testing::{Access, Desc, Rig, TestBus, assert_same, noise};
use drogher_plugin_sdk::Device;
use proptest::prelude::*;

const SRC: u64 = 0x10_0000;
const DST: u64 = 0x20_0000;
const SCRATCH: u64 = 65536;

/// A stopped device on a bus of its own with the same memory.
fn peer(rig: &Rig) -> Rig {
    let memory = rig.bus.world().memory.clone();
    Rig::stopped(TestBus::with_memory(memory), &[])
}

/// All scratch memory, as the guest sees it.
fn scratch(rig: &mut Rig) -> Vec<u8> {
    assert_eq!(rig.run(Desc::new(6, 0, DST, SCRATCH)), (1, SCRATCH));
    rig.bus.bytes(DST, SCRATCH as usize)
}

fn store(rig: &mut Rig, at: u64, len: u64, seed: u64) {
    rig.bus.put(SRC, &noise(len as usize, seed));
    assert_eq!(rig.run(Desc::new(5, SRC, at, len)), (1, len));
}

/// Fails with the mutant `stop-not-quiesced`.
#[test]
fn after_stop_there_is_no_access_and_no_interrupt() {
    let mut rig = Rig::with_ring(64);
    for index in 0..64 {
        rig.put(index, Desc::new(2, 0, DST + index * 8, 8));
    }
    rig.bus.world().block = Some(DST + 24);
    rig.device.doorbell(0).unwrap();
    rig.bus.wait_blocked();
    // Released once the worker is asked to park, or, if nobody asks, after the stop.
    let release = std::thread::spawn({
        let bus = rig.bus.clone();
        move || {
            std::thread::sleep(std::time::Duration::from_millis(200));
            bus.unblock();
        }
    });
    rig.go(&[State::RunningP2p, State::Stop]);
    rig.bus.world().silent = true;
    rig.device.doorbell(0).unwrap();
    release.join().unwrap();
    // The end of the instance waits for the descriptor at hand, if there is one.
    drop(rig.device);
    let world = rig.bus.world();
    assert_eq!(world.violations, []);
    assert_eq!(world.log.last(), Some(&Access::Irq(0)));
}

#[test]
fn p2p_states_start_no_descriptor() {
    let mut rig = Rig::with_ring(8);
    for path in [&[State::RunningP2p][..], &[State::PreCopyP2p], &[State::RunningP2p]] {
        rig.go(path);
        rig.bus.world().silent = true;
        rig.put(0, Desc::new(2, 0, DST, 8));
        rig.device.doorbell(0).unwrap();
        assert_ne!(rig.get(regs::STATUS) & regs::STATUS_BUSY, 0);
    }
    assert_eq!(rig.bus.world().violations, []);
    rig.bus.world().silent = false;
    rig.go(&[State::Running]);
    rig.settle();
    assert!(!rig.owned(0));
}

#[test]
fn without_pre_copy_stop_copy_has_it_all() {
    let mut rig = Rig::with_ring(8);
    store(&mut rig, 0, SCRATCH, 9);
    let state = rig.stop_and_save();
    assert_eq!(rig.device.read_state(&mut [0; 9]).unwrap(), Read::End);
    let mut other = peer(&rig);
    other.load_and_run(&state);
    assert_eq!(other.get64(regs::COMPLETED), 1);
    assert_same(&scratch(&mut other), &noise(SCRATCH as usize, 9));
}

#[test]
fn declared_size_is_what_stop_copy_gives() {
    let mut rig = Rig::with_ring(8);
    let declared = rig.device.stop_copy_size().unwrap();
    assert_eq!(rig.stop_and_save().len() as u64, declared);
    rig.go(&[State::Stop, State::RunningP2p, State::PreCopyP2p, State::PreCopy]);
    let info = rig.device.precopy_info().unwrap();
    assert_eq!(info.initial_bytes + TAIL_BYTES as u64, declared);
    rig.read_state(10_000, 777);
    store(&mut rig, 1, 2, 3);
    rig.go(&[State::PreCopyP2p]);
    let declared = rig.device.stop_copy_size().unwrap();
    rig.go(&[State::StopCopy]);
    assert_eq!(rig.read_state(usize::MAX, 777).len() as u64, declared);
}

#[test]
fn a_rollback_runs_on_and_the_next_migration_sends_everything() {
    let mut rig = Rig::with_ring(8);
    let back: [&[State]; 4] = [
        &[State::Running],
        &[State::PreCopyP2p, State::RunningP2p, State::Running],
        &[State::PreCopyP2p, State::StopCopy, State::Stop, State::RunningP2p, State::Running],
        &[State::PreCopyP2p, State::RunningP2p, State::Stop, State::RunningP2p, State::Running],
    ];
    for (round, path) in back.into_iter().enumerate() {
        store(&mut rig, 100 * round as u64, 5000, round as u64);
        rig.go(&[State::PreCopy]);
        let info = rig.device.precopy_info().unwrap();
        assert_eq!((info.initial_bytes, info.dirty_bytes), (24 + 16 * (16 + PAGE as u64), 0));
        rig.read_state(30_000 * (round + 1), 4096);
        rig.go(path);
        assert!(rig.device.precopy_info().is_err() && rig.device.read_state(&mut [0]).is_err());
    }
    let expected = scratch(&mut rig);
    let mut other = peer(&rig);
    other.load_and_run(&rig.stop_and_save());
    assert_same(&scratch(&mut other), &expected);
}

#[test]
fn a_refused_load_keeps_resuming_and_reset_recovers() {
    let mut rig = Rig::with_ring(8);
    store(&mut rig, 0, 100, 1);
    let state = rig.stop_and_save();
    let mut other = peer(&rig);
    other.go(&[State::Resuming]);
    other.device.write_state(&state[..1000]).unwrap();
    let error = other.device.set_state(State::Resuming, State::Stop).unwrap_err();
    assert!(error.text().contains("ends early"), "{error}");
    let later = other.device.write_state(&state[1000..]).unwrap_err();
    assert_eq!(later.text(), error.text());
    assert!(other.device.set_state(State::Resuming, State::Stop).is_err());
    other.device.reset().unwrap();
    other.state = State::Stop;
    other.load_and_run(&state);
    assert_eq!(scratch(&mut other)[..100], noise(100, 1));
}

#[test]
fn nothing_of_a_bad_state_reaches_the_device() {
    let mut rig = Rig::with_ring(8);
    store(&mut rig, 0, SCRATCH, 1);
    let mut state = rig.stop_and_save();
    let ring_entries = state.len() - TAIL_BYTES + SECTION_BYTES + 20;
    state[ring_entries] = 3;
    let mut other = peer(&rig);
    other.go(&[State::Resuming]);
    let error = other.device.write_state(&state).unwrap_err();
    assert!(error.text().contains("ring_entries"), "{error}");
    let shown = other.get(regs::RING_ENTRIES);
    assert_eq!(shown, 0);
}

#[test]
fn another_scratch_size_is_refused_by_name() {
    let state = Rig::with_ring(8).stop_and_save();
    let mut other = Rig::stopped(TestBus::new(), &[("scratch_kib", "128")]);
    other.go(&[State::Resuming]);
    let error = other.device.write_state(&state).unwrap_err();
    assert!(error.text().contains("scratch_kib"), "{error}");
}

#[test]
fn calls_out_of_place_are_refused() {
    let mut rig = Rig::new();
    assert!(rig.device.write_state(&[0; 8]).is_err());
    assert!(rig.device.read_state(&mut [0; 8]).is_err());
    assert!(rig.device.precopy_info().is_err());
}

/// The worker stores into scratch while the state is read; whatever moment the stop hits, both
/// sides end up the same once the rest of the ring is done.
#[test]
fn stores_race_with_pre_copy_and_none_is_lost() {
    for round in 0..20_u64 {
        let mut rig = Rig::with_ring(256);
        for index in 0..256 {
            let at = noise(2, round * 1000 + index);
            let at = u64::from(u16::from_le_bytes([at[0], at[1]])) % (SCRATCH - 600);
            rig.put(index, Desc::new(5, SRC + index * 640, at, 600));
            rig.bus.put(SRC + index * 640, &noise(600, index + round));
        }
        rig.go(&[State::PreCopy]);
        rig.device.doorbell(0).unwrap();
        let mut state = rig.read_state(10_000 * (1 + round as usize), 900);
        state.extend(rig.stop_and_save());
        let mut other = peer(&rig);
        other.load_and_run(&state);
        other.settle();
        rig.go(&[State::Stop, State::RunningP2p, State::Running]);
        rig.settle();
        assert_eq!(rig.get64(regs::COMPLETED), 256);
        assert_eq!(other.get64(regs::COMPLETED), 256);
        assert_same(&scratch(&mut rig), &scratch(&mut other));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Incremental state: any reads, between any stores, add up to the memory.
    #[test]
    fn pre_copy_reads_add_up(
        rounds in prop::collection::vec(
            (0_u64..SCRATCH - 9000, 1_u64..9000, any::<u64>(), 0_usize..40_000), 0..12),
        piece in 1_usize..9000,
        end_in_pre_copy in any::<bool>(),
    ) {
        let mut rig = Rig::with_ring(8);
        rig.go(&[State::PreCopy]);
        let mut state = Vec::new();
        for (at, len, seed, read) in rounds {
            store(&mut rig, at, len, seed);
            state.extend(rig.read_state(read, piece));
        }
        if end_in_pre_copy {
            state.extend(rig.read_state(usize::MAX, piece));
            let info = rig.device.precopy_info().unwrap();
            prop_assert_eq!((info.initial_bytes, info.dirty_bytes), (0, 0));
        }
        state.extend(rig.stop_and_save());
        let mut other = peer(&rig);
        other.load_and_run(&state);
        rig.go(&[State::Stop, State::RunningP2p, State::Running]);
        assert_same(&scratch(&mut rig), &scratch(&mut other));
    }
}
