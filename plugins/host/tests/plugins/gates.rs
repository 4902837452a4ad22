//! No DMA and no interrupt where there must be none, whatever the plugin does.

use crate::bed::{Bed, MEMORY, generous, hostile, hostile_rust, read64, until, write64};
use drogher_plugin_host::{Instance, Plugin, State};

/// Where the hostile worker counts.
const AT: u64 = 0x3000;
const IOVA: u64 = 0x00;

fn running(bed: &Bed) -> Instance {
    let device = bed.create(&hostile_rust(), &[]).expect("creates");
    device.set_state(State::Running).expect("runs");
    write64(&device, IOVA, AT);
    until("the worker counts and interrupts", || bed.u64(AT) > 3 && bed.irqs() > 3);
    device
}

/// The worker tries on, and neither its DMA nor its interrupts come through.
fn silent(bed: &Bed, device: &Instance) {
    let (count, irqs, accesses) = (bed.u64(AT), bed.irqs(), device.dma_stats().accesses);
    let before = device.stats();
    until("the worker tried", || {
        let now = device.stats();
        now.dma_refused > before.dma_refused + 20 && now.irqs_refused > before.irqs_refused + 20
    });
    assert_eq!((bed.u64(AT), bed.irqs()), (count, irqs), "DMA or interrupts after the gate closed");
    assert_eq!(device.dma_stats().accesses, accesses);
}

#[test]
fn no_dma_after_stop() {
    let bed = Bed::new();
    let device = running(&bed);
    for state in [State::Stop, State::StopCopy, State::Stop, State::Resuming] {
        device.set_state(state).expect("stops");
        silent(&bed, &device);
    }
    device.set_state(State::Running).expect("runs on");
    let count = bed.u64(AT);
    until("the worker counts again", || bed.u64(AT) > count);
}

#[test]
fn no_dma_in_ndma() {
    let bed = Bed::new();
    let device = running(&bed);
    assert!(device.has_ndma() && !device.in_ndma());
    device.enter_ndma().expect("enters");
    assert!(device.in_ndma());
    silent(&bed, &device);
    assert_eq!(read64(&device, IOVA), AT, "registers answer");
    // Over state changes too.
    device.set_state(State::PreCopy).expect("pre-copies");
    silent(&bed, &device);
    device.set_state(State::Stop).expect("stops");
    device.set_state(State::Running).expect("runs");
    silent(&bed, &device);
    device.leave_ndma().expect("leaves");
    let count = bed.u64(AT);
    until("the worker counts again", || bed.u64(AT) > count);
}

#[test]
fn leaving_ndma_while_stopped_opens_nothing() {
    let bed = Bed::new();
    let device = running(&bed);
    device.enter_ndma().expect("enters");
    device.set_state(State::Stop).expect("stops");
    device.leave_ndma().expect("leaves");
    silent(&bed, &device);
    device.set_state(State::Running).expect("runs");
    let count = bed.u64(AT);
    until("the worker counts again", || bed.u64(AT) > count);
}

#[test]
fn no_dma_before_running_nor_after_reset() {
    let bed = Bed::new();
    let device = running(&bed);
    device.reset().expect("resets");
    assert_eq!(device.state(), State::Stop);
    device.set_state(State::Running).expect("runs");
    assert_eq!(read64(&device, IOVA), 0);
    write64(&device, IOVA, AT);
    let count = bed.u64(AT);
    until("the worker counts again", || bed.u64(AT) > count);
    device.enter_ndma().expect("enters");
    device.reset().expect("resets");
    assert!(!device.in_ndma(), "a reset leaves NDMA");
}

#[test]
fn no_dma_after_an_error() {
    let bed = Bed::new();
    let device = running(&bed);
    device.param_set("fault", "panic:doorbell").expect("sets");
    device.doorbell(0).expect_err("panics");
    assert_eq!(device.state(), State::Error);
    silent(&bed, &device);
}

/// Everything at once, from several threads, while the worker counts: whatever came of it, afterwards
/// the gates are as the state says.
#[test]
fn a_storm_of_calls() {
    let bed = Bed::new();
    let device = bed.create_with(&hostile_rust(), &[], generous()).expect("creates");
    let mut seeds = 1_u64..;
    std::thread::scope(|scope| {
        for seed in seeds.by_ref().take(4) {
            let device = &device;
            scope.spawn(move || {
                let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
                for _ in 0..1500 {
                    // xorshift64
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let state = State::ALL.get((random >> 8) as usize % 8).copied();
                    // Any of them may be refused; none may hang, and nothing may panic.
                    let _ = match random % 16 {
                        0 => device.reset(),
                        1 => device.enter_ndma(),
                        2 => device.leave_ndma(),
                        3 => device.param_set("fault", "fail:doorbell"),
                        4 => device.param_set("fault", ""),
                        5 => device.doorbell(0),
                        6 => device.read_state(&mut [0; 3]).map(|_| ()),
                        7 => device.write_state(&[0; 3]),
                        8 => device.region_read(0, IOVA, &mut [0; 8]),
                        9..12 => device.region_write(0, IOVA, &AT.to_le_bytes()),
                        _ => device.set_state(state.unwrap_or(State::Running)),
                    };
                }
            });
        }
    });
    let _ = device.param_set("fault", "");
    device.reset().expect("resets");
    device.set_state(State::Running).expect("runs");
    write64(&device, IOVA, AT);
    let count = bed.u64(AT);
    until("the worker counts", || bed.u64(AT) > count);
    device.set_state(State::Stop).expect("stops");
    silent(&bed, &device);
}

#[test]
fn dma_stays_inside_memory() {
    let Some(built) = hostile(&[]) else { return };
    let plugin = Plugin::open(&built.file).expect("loads");
    let bed = Bed::new();
    let device = bed.create(&plugin, &[]).expect("creates");
    device.set_state(State::Running).expect("runs");
    write64(&device, 0, 0x40);
    assert_eq!(bed.u64(0x40), u64::from_ne_bytes([0xEE; 8]), "inside is allowed");
    for iova in [MEMORY, MEMORY - 32, 1 << 47, 1 << 48, u64::MAX - 31, u64::MAX, 0xdead_beef_0000] {
        let error = device.region_write(0, 0, &iova.to_le_bytes()).expect_err("outside");
        assert!(error.to_string().contains("status -14"), "{iova:#x}: {error}");
        assert_eq!(device.state(), State::Running);
    }
    assert_eq!(device.stats().dma_faults, 7);
    assert_eq!(bed.u64(MEMORY - 8), u64::from_ne_bytes([0xEE; 8]), "up to the end is done");
}

#[test]
fn a_flood_of_log_is_dammed() {
    let Some(built) = hostile(&["LOG_FLOOD"]) else { return };
    let plugin = Plugin::open(&built.file).expect("loads");
    let bed = Bed::new();
    let device = bed.create(&plugin, &[]).expect("creates");
    device.doorbell(0).expect("floods");
    let lines = bed.machine.lines.lock().expect("not poisoned");
    assert!(!lines.is_empty() && lines.len() < 500, "{}", lines.len());
    assert!(device.stats().log_dropped > 500);
    assert!(lines.iter().all(|(_, text)| text.chars().count() <= 4096 && !text.contains('\n')));
}
