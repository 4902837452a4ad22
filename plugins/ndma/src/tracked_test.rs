#![allow(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]

use super::*;
use crate::descriptor::{FLAG_IRQ, FLAG_OWN};
use crate::testing::{Access, Act, Desc, MEMORY, RING, Rig, TestBus, assert_same, gpa, noise};
use drogher_plugin_sdk::{Device, LogReport, LogStart, Params, State};

fn ways(given: &[(&str, &str)]) -> Ways {
    Ways::new(&Params::new(crate::params::SPECS, given).unwrap()).unwrap()
}

/// All of memory.
fn whole(page_size: u64) -> LogStart {
    LogStart { ranges: vec![0..MEMORY as u64], page_size, bitmap: None }
}

/// The IOVA pages that a harvest of the log, or else of the pins, has to copy.
fn harvest(bus: &TestBus, log: &Log, page_size: u64, ways: &Ways) -> Vec<u64> {
    if ways.log == LogWay::Off {
        let mut world = bus.world();
        let mut ranges = std::mem::take(&mut world.unpinned);
        ranges.extend(world.pins.iter().cloned());
        return ranges.iter().flat_map(|range| range.start >> 12..=(range.end - 1) >> 12).collect();
    }
    let pages = MEMORY as u64 / page_size;
    let mut words = vec![0; pages.div_ceil(64) as usize];
    log.report(0, &mut LogReport::new(&mut words, pages)).unwrap();
    let dirty = (0..pages).filter(|page| words[(page / 64) as usize] >> (page % 64) & 1 != 0);
    let small = page_size >> 12;
    // The GPA of a page, to and fro.
    dirty
        .flat_map(|page| page * small..(page + 1) * small)
        .map(|page| gpa(page << 12) >> 12)
        .collect()
}

/// Random writes, and before and after every store a harvest that copies what it reports: the copy,
/// which knows nothing else, is equal to memory in the end.
fn nothing_is_missed(given: &[(&str, &str)], page_size: u64) {
    let (bus, log, ways) = (TestBus::new(), Arc::new(Log::default()), ways(given));
    let start = whole(page_size);
    assert_eq!(log.start(start), page_size);
    let shadow = Arc::new(Mutex::new(vec![0; MEMORY]));
    let copy = {
        let (bus, log, ways, shadow) = (bus.clone(), log.clone(), ways.clone(), shadow.clone());
        move || {
            for page in harvest(&bus, &log, page_size, &ways) {
                let at = (page << 12) as usize;
                shadow.lock().unwrap()[at..at + 4096].copy_from_slice(&bus.bytes(page << 12, 4096));
            }
        }
    };
    bus.world().around = Some(Act(Arc::new(copy.clone())));
    let device = Tracked::new(bus.clone(), ways, log.clone());
    for round in 0..200_u64 {
        let random = noise(16, round + 1);
        let number = |at: usize| u64::from_le_bytes(random[at..at + 8].try_into().unwrap());
        let iova = number(0) % (MEMORY as u64 - 20_000);
        let len = match round % 3 {
            0 => 8,
            1 => number(8) as usize % 5000,
            _ => number(8) as usize % 20_000,
        };
        device.write(iova, &noise(len, round + 7)).unwrap();
        if round % 4 == 0 {
            device.finish();
        }
    }
    device.finish();
    assert_eq!(bus.world().pins, []);
    bus.world().around = None;
    copy();
    assert_same(&shadow.lock().unwrap(), &bus.world().memory);
}

#[test]
fn every_write_is_in_the_log() {
    nothing_is_missed(&[("log", "on")], 4096);
    nothing_is_missed(&[("log", "on")], 65536);
}

#[test]
fn every_write_is_pinned() {
    nothing_is_missed(&[("pin", "all")], 4096);
}

#[test]
fn a_pinned_write_is_in_the_log_after_its_store() {
    nothing_is_missed(&[("log", "on"), ("pin", "some")], 4096);
    nothing_is_missed(&[("log", "on"), ("pin", "all")], 16384);
}

#[test]
fn what_is_written_is_what_was_to_be_whichever_way() {
    for pin in ["off", "some", "all"] {
        for log in ["off", "on"] {
            let bus = TestBus::new();
            let device =
                Tracked::new(bus.clone(), ways(&[("pin", pin), ("log", log)]), Arc::default());
            for (iova, len) in [(0, 1), (4095, 2), (5, 70_000), (0x20_0000, 0)] {
                let data = noise(len, iova + 1);
                device.write(iova, &data).unwrap();
                assert_same(&bus.bytes(iova, len), &data);
                device.finish();
            }
            bus.world().no_write = 0x5000..0x5001;
            let fault = device.write(0x3800, &[1; 0x4000]).unwrap_err();
            // A pin that cannot be had ends at the page.
            assert_eq!(fault, Fault { done: 0x1800 }, "pin={pin} log={log}");
            device.write(u64::MAX - 3, &[1; 8]).unwrap_err();
        }
    }
}

fn busy(given: &[(&str, &str)]) -> Rig {
    let mut rig = Rig::on(TestBus::new(), given);
    rig.enable(64);
    let fill = |index| Desc {
        flags: FLAG_OWN | FLAG_IRQ,
        ..Desc::new(2, 0, 0x10_0000 + index * 0x8000, 0x6000)
    };
    (0..8).for_each(|index| rig.put(index, fill(index)));
    rig
}

#[test]
fn nothing_is_pinned_in_stop() {
    for pin in ["some", "all"] {
        let mut rig = busy(&[("pin", pin)]);
        rig.bus.world().block = Some(0x10_1000);
        rig.device.doorbell(0).unwrap();
        rig.bus.wait_blocked();
        assert!(!rig.bus.world().pins.is_empty());
        rig.bus.unblock();
        rig.go(&[State::RunningP2p, State::Stop]);
        assert_eq!(rig.bus.world().pins, [], "pin={pin}");
        let writes = rig.bus.world().log.iter().filter(|a| matches!(a, Access::Write(..))).count();
        assert!(writes > 5);
    }
}

#[test]
fn an_unmap_waits_for_the_pins_to_be_given_back() {
    let mut rig = busy(&[("pin", "all")]);
    rig.device.doorbell(0).unwrap();
    rig.device.unmap(0x10_0000, 0x6000).unwrap();
    rig.settle();
    assert_eq!(rig.bus.world().pins, []);
    assert!(!rig.owned(7));
}

#[test]
fn a_log_goes_over_the_guests_reset_and_ends_with_the_hosts() {
    let mut rig = busy(&[("log", "on")]);
    let start = whole(4096);
    rig.device.log_start(start).unwrap();
    rig.kick();
    rig.set(crate::regs::CONTROL, crate::regs::CONTROL_RESET);
    let mut words = vec![0; MEMORY / 4096 / 64];
    let pages = MEMORY as u64 / 4096;
    rig.device.log_report(0, &mut LogReport::new(&mut words, pages)).unwrap();
    let page = gpa(RING) >> 12;
    assert_ne!(words[0] >> page & 1, 0, "descriptors were handed back");
    let dirty: u32 = words.iter().map(|word| word.count_ones()).sum();
    assert_eq!(dirty, 8 * 6 + 1);
    rig.device.reset().unwrap();
    rig.device.log_report(0, &mut LogReport::new(&mut words, pages)).unwrap_err();
}

#[test]
fn it_is_what_its_parameters_say() {
    let rig = Rig::stopped(TestBus::new(), &[]);
    assert!(rig.device.has_ndma() && rig.device.log_caps().is_none());
    assert!(rig.device.pin_kind().is_none() && rig.device.preference().is_none());
    let given = [
        ("log", "shared"),
        ("log_min_kib", "16"),
        ("pin", "all"),
        ("ndma", "off"),
        ("prefers", "pinned"),
        ("prefers_page_kib", "64"),
    ];
    let rig = Rig::stopped(TestBus::new(), &given);
    let caps = rig.device.log_caps().unwrap();
    assert_eq!((caps.min_page, caps.max_page, caps.shared), (16 << 10, 2 << 20, true));
    assert!(!rig.device.has_ndma());
    assert_eq!(rig.device.pin_kind(), Some(drogher_plugin_sdk::PinKind::Only));
    let wish = rig.device.preference().unwrap();
    assert_eq!(
        (wish.tracker, wish.page_size),
        (drogher_plugin_sdk::Tracker::Pinned, Some(64 << 10))
    );
}
