//! Writes to other devices pass in RUNNING and PRE_COPY, outside NDMA, and nowhere else.

use std::sync::atomic::Ordering;

use crate::bed::{Bed, PEER, hostile_rust, read64, until, write64};
use drogher_plugin_host::{Instance, State};

/// Where the hostile worker's target is told it, and what it has counted.
const TARGET: u64 = 0x28;
const SENT: u64 = 0x30;
const NOT_ALLOWED: u64 = 0x38;

fn running(bed: &Bed) -> Instance {
    let device = bed.create(&hostile_rust(), &[]).expect("creates");
    device.set_state(State::Running).expect("runs");
    write64(&device, TARGET, PEER);
    writes(bed);
    device
}

fn writes(bed: &Bed) {
    let before = bed.peer_writes();
    until("the peer is written to", || bed.peer_writes() > before + 3);
}

/// The worker tries on, is told that it may not, and the peer gets nothing.
fn silent(bed: &Bed, device: &Instance) {
    let (writes, refused) = (bed.peer_writes(), device.stats().dma_refused);
    until("the worker tried", || device.stats().dma_refused > refused + 20);
    assert_eq!(bed.peer_writes(), writes, "a write after the gate closed");
}

/// Caught mutant: `p2p-gate-open`.
#[test]
fn none_in_p2p_states() {
    let bed = Bed::new();
    let device = running(&bed);
    for (p2p, on) in [(State::RunningP2p, State::Running), (State::PreCopyP2p, State::PreCopy)] {
        device.set_state(p2p).expect("goes");
        let told = read64(&device, NOT_ALLOWED);
        silent(&bed, &device);
        assert!(read64(&device, NOT_ALLOWED) > told, "it is told DROGHER_ERR_PERM");
        device.set_state(on).expect("goes on");
        writes(&bed);
    }
}

#[test]
fn none_in_ndma_nor_stopped_nor_broken() {
    let bed = Bed::new();
    let device = running(&bed);
    device.enter_ndma().expect("enters");
    silent(&bed, &device);
    device.set_state(State::RunningP2p).expect("goes");
    device.leave_ndma().expect("leaves");
    silent(&bed, &device);
    device.set_state(State::Running).expect("goes on");
    writes(&bed);
    device.set_state(State::Stop).expect("stops");
    silent(&bed, &device);
    device.set_state(State::Running).expect("runs");
    writes(&bed);
    device.param_set("fault", "fail:doorbell").expect("sets");
    let _ = device.doorbell(0);
    assert_eq!(device.state(), State::Error);
    silent(&bed, &device);
}

#[test]
fn all_arrive_once_and_in_order() {
    let bed = Bed::new();
    let device = running(&bed);
    bed.machine.full.store(true, Ordering::SeqCst);
    let sent = read64(&device, SENT);
    std::thread::sleep(std::time::Duration::from_millis(5));
    assert!(read64(&device, SENT) <= sent + 1, "a full peer takes nothing");
    bed.machine.full.store(false, Ordering::SeqCst);
    writes(&bed);
    device.set_state(State::RunningP2p).expect("goes");
    let got = bed.machine.peer.lock().expect("not poisoned").clone();
    until("all are counted", || read64(&device, SENT) == got.len() as u64);
    assert_eq!(got, (0..got.len() as u64).collect::<Vec<_>>());
    assert_eq!(device.stats().dma_faults, 0, "a full peer is no fault");
}

/// In a P2P state an address where nobody is stays a fault, not a broken promise.
#[test]
fn a_fault_is_a_fault_in_p2p_too() {
    let bed = Bed::new();
    let device = running(&bed);
    device.set_state(State::RunningP2p).expect("goes");
    write64(&device, TARGET, PEER + 0x1000);
    let before = device.stats();
    until("faults", || device.stats().dma_faults > before.dma_faults + 5);
    assert!(device.stats().dma_refused <= before.dma_refused + 1);
}
