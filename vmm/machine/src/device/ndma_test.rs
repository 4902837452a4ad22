//! The set with the real ndma plugin in it, doing DMA through the real IOMMU.

use std::path::PathBuf;
use std::time::Duration;

use drogher_iommu::{Memory, Oa};
use drogher_iommu_types::{DirtyBitmap, Gpa};
use drogher_ndma::{descriptor, regs};
use drogher_plugin_host::State;
use drogher_tracking::Wish;

use super::testing::{PATIENCE, RAM, Rig, wait};
use super::{DeviceSet, DeviceSpec};
use crate::tracking::{TrackingControl, Wishes};

const RING: u64 = 0x1000;
const ENTRIES: u64 = 256;
const SRC: u64 = 0x10_0000;
const DST: u64 = 0x20_0000;
const MIB: u64 = 1 << 20;

/// Where this build's plugins are: beside the tests, or one up.
fn dirs() -> Vec<PathBuf> {
    let exe = std::env::current_exe().expect("a path");
    exe.ancestors().skip(1).take(2).map(PathBuf::from).collect()
}

fn spec() -> DeviceSpec {
    DeviceSpec::new("ndma").with("scratch_kib", "16")
}

/// A running device with its ring set up and enabled.
fn running() -> Rig {
    running_as(&spec())
}

fn running_as(spec: &DeviceSpec) -> Rig {
    let specs = std::slice::from_ref(spec);
    let rig = Rig::with(|domain, wiring| DeviceSet::new(specs, &dirs(), domain, wiring));
    let rig = rig.expect("the plugin is built with this test");
    rig.run();
    set_up(&rig);
    rig
}

/// As a driver does.
fn set_up(rig: &Rig) {
    rig.drive(1);
    let bar = rig.bar(1, 0);
    rig.write32(bar + regs::RING_ENTRIES, ENTRIES as u32);
    rig.write32(bar + regs::RING_BASE, RING as u32);
    rig.write32(bar + regs::CONTROL, regs::CONTROL_ENABLE | regs::CONTROL_IRQ_ENABLE);
}

/// Puts a copy of `len` bytes into the ring.
fn copy(rig: &Rig, index: u64, src: u64, dst: u64, len: u64) {
    let at = RING + index % ENTRIES * descriptor::SIZE;
    for (offset, value) in [(8, src), (0x10, dst), (0x18, len), (0x20, 0), (0x28, 0)] {
        rig.memory.write(Oa(at + offset), &value.to_le_bytes()).expect("inside memory");
    }
    let flags = u64::from(descriptor::FLAG_OWN | descriptor::FLAG_IRQ);
    let head = 1 | flags << 16;
    rig.memory.write(Oa(at), &head.to_le_bytes()).expect("inside memory");
}

/// True once descriptor `index` is the driver's again, with status "ok".
fn done(rig: &Rig, index: u64) -> bool {
    let mut head = [0; 8];
    let at = RING + index % ENTRIES * descriptor::SIZE;
    rig.memory.read(Oa(at), &mut head).expect("inside memory");
    let head = u64::from_le_bytes(head);
    head >> 16 & u64::from(descriptor::FLAG_OWN) == 0 && head >> 32 == 1
}

fn ring(rig: &Rig) {
    assert!(rig.wiring.ring(rig.bar(1, 0) + regs::DOORBELL, 4), "the doorbell is bound");
}

fn text(rig: &Rig, at: u64) -> [u8; 8] {
    let mut text = [0; 8];
    rig.memory.read(Oa(at), &mut text).expect("inside memory");
    text
}

fn set_text(rig: &Rig, at: u64, text: &[u8; 8]) {
    rig.memory.write(Oa(at), text).expect("inside memory");
}

/// Goes on in another machine: stops, takes state and memory over, runs.
fn migrate(from: &Rig, early: Vec<u8>) -> Rig {
    let configs = from.set.describe().expect("it answers");
    assert_eq!(super::check(&configs, &dirs()), []);
    from.stop();
    let mut stream = early;
    stream.extend(from.state().remove(0));
    let to = Rig::with(|domain, wiring| DeviceSet::for_configs(&configs, &dirs(), domain, wiring));
    let to = to.expect("the same plugin");
    to.arrive(&[stream], &from.set.save());
    let mut memory = vec![0; RAM as usize];
    from.memory.read(Oa(0), &mut memory).expect("all of it");
    to.memory.write(Oa(0), &memory).expect("as large");
    to.run();
    to
}

#[test]
fn a_copy_goes_through_ring_doorbell_and_interrupt() {
    let rig = running();
    set_text(&rig, SRC, b"drogher!");
    copy(&rig, 0, SRC, DST, 8);
    ring(&rig);
    wait("the copy", || done(&rig, 0));
    assert_eq!(&text(&rig, DST), b"drogher!");
    let mut interrupts = Vec::new();
    wait("the interrupt", || {
        interrupts.extend(rig.wiring.interrupts());
        !interrupts.is_empty()
    });
    assert_eq!(interrupts, [0x40]);
    assert!(rig.set.devices()[0].dma_stats().accesses > 0);
}

#[test]
fn it_goes_on_in_another_machine() {
    let from = running();
    copy(&from, 0, SRC, DST, 8);
    ring(&from);
    wait("the copy", || done(&from, 0));
    from.set.start_precopy().expect("it can");
    let early = from.precopy(0);
    assert!(early.len() > 16 << 10, "scratch memory is sent early");
    copy(&from, 1, SRC, DST, 8);
    ring(&from);
    wait("the copy", || done(&from, 1));
    let to = migrate(&from, early);
    assert_eq!(to.read32(to.bar(1, 0) + regs::NEXT), 2);
    set_text(&to, SRC, b"carried!");
    copy(&to, 2, SRC, DST, 8);
    ring(&to);
    wait("the copy", || done(&to, 2));
    assert_eq!(&text(&to, DST), b"carried!");
}

/// Caught mutant: `doorbell-dropped`.
#[test]
fn a_ring_that_nobody_has_read_is_not_lost() {
    let from = running();
    from.wiring.io_thread().park(PATIENCE).expect("parked");
    copy(&from, 0, SRC, DST, 8);
    ring(&from);
    let to = migrate(&from, Vec::new());
    assert!(!done(&from, 0));
    wait("the copy", || done(&to, 0));
}

/// Caught mutant: `masked-pending-dropped`.
#[test]
fn a_masked_completion_is_delivered_after_the_move() {
    let from = running();
    from.mask(1, 0, true);
    copy(&from, 0, SRC, DST, 8);
    ring(&from);
    let pba = from.bar(1, 4) + 0x800;
    wait("the pending bit", || from.read32(pba) == 1);
    let to = migrate(&from, Vec::new());
    assert!(to.wiring.interrupts().is_empty());
    to.mask(1, 0, false);
    assert_eq!(to.wiring.interrupts(), [0x40]);
}

/// Caught mutant: `device-not-quiesced`.
#[test]
fn under_load_there_is_no_dma_after_quiesce_and_stop() {
    for pre_copy in [false, true] {
        let rig = running();
        // Work for far longer than the stop takes.
        for index in 0..ENTRIES {
            copy(&rig, index, SRC, DST, MIB);
        }
        ring(&rig);
        let accesses = || rig.set.devices()[0].dma_stats().accesses;
        wait("the first copy", || done(&rig, 0));
        if pre_copy {
            rig.set.start_precopy().expect("it can");
        }
        rig.set.to_p2p_and_ndma().expect("quiesced");
        let quiet = accesses();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(accesses(), quiet, "DMA in NDMA");
        rig.set.to_stop().expect("stopped");
        rig.wiring.io_thread().park(PATIENCE).expect("parked");
        rig.set.drain_doorbells();
        rig.set.irqfds_off().expect("off");
        assert!(!rig.set.devices()[0].state().runs());
        assert!(!rig.state().is_empty());
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(accesses(), quiet, "DMA after the stop");
        rig.run();
        wait("the last copy", || done(&rig, ENTRIES - 1));
    }
}

#[test]
fn a_function_reset_gives_a_fresh_device() {
    let rig = running();
    copy(&rig, 0, SRC, DST, 8);
    ring(&rig);
    wait("the copy", || done(&rig, 0));
    let bar = rig.bar(1, 0);
    rig.config_write(1, 0x50, 1);
    assert_eq!(rig.set.devices()[0].state(), State::Running);
    rig.config_write(1, 0x10, bar as u32);
    rig.config_write(1, 4, 2);
    assert_eq!(rig.read32(bar + regs::NEXT), 0);
    assert_eq!(rig.read32(bar + regs::RING_BASE), 0);
    assert_eq!(rig.read32(bar), 0x414d_444e, "it answers");
}

#[test]
fn what_cannot_arrive_is_said_at_once() {
    let rig = running();
    let good = rig.set.describe().expect("it answers").remove(0);
    let mut newer = good.clone();
    (newer.slot, newer.state_version, newer.state_min_reader) = (2 << 3, 999, 999);
    newer.vectors += 1;
    let mut odd = good.clone();
    odd.slot = 3 << 3;
    odd.params[0].value = "15".into();
    let mut strange = good.clone();
    strange.slot = 4 << 3;
    strange.plugin = "no.such.plugin".into();
    let mut misplaced = good.clone();
    misplaced.slot = 9 << 3;
    let blockers = super::check(&[good, newer, odd, strange, misplaced], &dirs());
    let said: Vec<_> = blockers
        .iter()
        .map(|blocker| (blocker.code.name(), blocker.device.as_deref().unwrap_or("")))
        .map(|(code, device)| format!("{code} {}", device.get(..7).unwrap_or("")))
        .collect();
    let expected = [
        "device-state 00:02.0",
        "device-shape 00:02.0",
        "device-params 00:03.0",
        "plugin-missing 00:04.0",
        "device-shape 00:09.0",
    ];
    assert_eq!(said, expected, "{blockers:?}");
}

#[test]
fn a_wrong_device_is_refused_by_name() {
    let make = |spec: DeviceSpec| {
        let made =
            Rig::with(|domain, wiring| DeviceSet::new(&[spec], &dirs(), domain, wiring)).err();
        let error: Box<dyn std::error::Error> = made.expect("it cannot be made").into();
        let causes = std::iter::successors(Some(error.as_ref()), |error| error.source());
        causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
    };
    assert!(make(DeviceSpec::new("nonsuch")).contains("nonsuch"));
    assert!(make(DeviceSpec::new("/proc/self/exe")).contains("/proc/self/exe"));
    let unknown = make(DeviceSpec::new("ndma").with("colour", "blue"));
    assert!(unknown.contains("colour"), "{unknown}");
}

/// Offset of the advanced-features control register.
const AF_CONTROL: u32 = 0x50;

#[test]
fn a_log_that_a_reset_by_the_guest_has_ended_is_exact_again() {
    for way in ["on", "shared"] {
        let rig = running_as(&spec().with("log", way));
        let control = TrackingControl::default();
        let wishes = Wishes { tracker: Some(Wish::Device), ..Wishes::default() };
        control.prepare(&rig.set, &rig.spaces, &wishes).expect("a plan");
        control.start().expect("it starts");
        let harvest = || {
            let found = DirtyBitmap::new(Gpa(0)..Gpa(RAM)).expect("aligned");
            control.harvest(&(Gpa(0)..Gpa(RAM)), &found).expect("harvested");
            found.runs().flat_map(|run| run.start.page()..run.end.page()).collect::<Vec<_>>()
        };
        let work = |index| {
            copy(&rig, index, SRC, DST, 8);
            ring(&rig);
            wait("the copy", || done(&rig, index));
            // Past the copy's last step: its interrupt.
            wait("the interrupt", || !rig.wiring.interrupts().is_empty());
            harvest()
        };
        let exact = [RING >> 12, DST >> 12];
        assert_eq!(work(0), exact, "log={way}");
        let bars = [0, 4].map(|bar| (0x10 + 4 * bar, rig.bar(1, bar)));
        rig.config_write(1, AF_CONTROL, 1);
        for (register, base) in bars {
            rig.config_write(1, register, base as u32);
        }
        set_up(&rig);
        let all = (RAM >> 12) as usize;
        assert_eq!((work(0).len(), work(1).len()), (all, all), "log={way}: twice everything");
        assert_eq!(work(2), exact, "log={way}");
        control.stop(&rig.set).expect("it stops");
    }
}
