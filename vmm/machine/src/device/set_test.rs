//! The set as a guest sees it while it runs.

use std::sync::Arc;

use drogher_plugin_host::State;

use super::testing::{ALL, BELL, Can, Rig, wait};
use crate::pci::MMIO_WINDOW;

#[test]
fn devices_sit_in_slots_in_order() {
    let rig = Rig::new(&[ALL, ALL]);
    assert_eq!(rig.config_read(0, 0), 0x00ff_d70e, "host bridge");
    assert_eq!(rig.config_read(1, 0), 0x7e57_d70e);
    assert_eq!(rig.config_read(2, 0), 0x7e57_d70e);
    assert_eq!(rig.config_read(3, 0), u32::MAX);
    let labels: Vec<_> = rig.set.devices().iter().map(|device| device.label()).collect();
    assert_eq!(labels, ["00:01.0 test.fake", "00:02.0 test.fake"]);
    assert_eq!((rig.bar(1, 0), rig.bar(1, 4)), (0xe000_0000, 0xe000_1000));
    assert_eq!((rig.bar(2, 0), rig.bar(2, 4)), (0xe000_2000, 0xe000_3000));
    assert_eq!(rig.config_read(1, 4) & 0xffff, 0, "decoding is the guest's to switch on");
    assert_eq!(rig.config_read(1, 0x40) >> 16, 1, "MSI-X with two vectors");
}

#[test]
fn registers_answer_while_memory_is_decoded() {
    let rig = Rig::new(&[ALL]);
    rig.run();
    let bar = rig.bar(1, 0);
    assert_eq!(rig.read32(bar), u32::MAX);
    rig.config_write(1, 4, 2);
    rig.write32(bar + 8, 0x1234_5678);
    assert_eq!(rig.read32(bar + 8), 0x1234_5678);
    assert_eq!(rig.read32(bar + 0x400), u32::MAX, "the device refuses: ones");
    assert_eq!(rig.read32(bar + 0xffe), u32::MAX, "across the end of the BAR");
    rig.config_write(1, 4, 0);
    assert_eq!(rig.read32(bar + 8), u32::MAX);
    rig.write32(bar + 8, 0);
    rig.config_write(1, 4, 2);
    assert_eq!(rig.read32(bar + 8), 0x1234_5678);
}

#[test]
fn a_moved_bar_takes_registers_and_doorbell_along() {
    let rig = Rig::running();
    let (old, new) = (rig.bar(1, 0), 0xe800_0000);
    assert_eq!(rig.wiring.doorbells(), [old + BELL]);
    rig.write32(old, 7);
    rig.config_write(1, 0x10, new as u32);
    assert_eq!(rig.wiring.doorbells(), [new + BELL]);
    assert_eq!((rig.read32(old), rig.read32(new)), (u32::MAX, 7));
    assert!(!rig.wiring.ring(old + BELL, 4));
    assert!(rig.wiring.ring(new + BELL, 4));
    wait("the doorbell", || rig.fakes[0].rung() == [0]);
    rig.config_write(1, 4, 4);
    assert!(rig.wiring.doorbells().is_empty(), "decoding off");
    rig.config_write(1, 4, 6);
    assert_eq!(rig.wiring.doorbells(), [new + BELL]);
}

#[test]
fn bars_outside_the_window_are_nowhere() {
    let rig = Rig::running();
    for base in [0, 0x1000, MMIO_WINDOW.start - 0x1000, MMIO_WINDOW.end, 0xfee0_0000, 0xffff_f000] {
        rig.config_write(1, 0x10, base as u32);
        assert_eq!(rig.read32(base), u32::MAX, "{base:#x}");
        assert!(rig.wiring.doorbells().is_empty(), "{base:#x}");
    }
    rig.config_write(1, 0x10, (MMIO_WINDOW.end - 0x1000) as u32);
    assert_eq!(rig.read32(MMIO_WINDOW.end - 0x1000), 0);
}

#[test]
fn bars_may_lie_on_top_of_each_other() {
    let rig = Rig::new(&[ALL, ALL]);
    rig.run();
    rig.drive(1);
    rig.drive(2);
    let (first, second) = (rig.bar(1, 0), rig.bar(2, 0));
    rig.write32(first, 1);
    rig.write32(second, 2);
    rig.config_write(2, 0x10, first as u32);
    assert_eq!(rig.read32(first), 1, "the lower slot wins");
    assert_eq!(rig.wiring.doorbells(), [first + BELL], "KVM takes one");
    rig.config_write(1, 0x10, second as u32);
    assert_eq!((rig.read32(first), rig.read32(second)), (2, 1), "they have changed places");
    // The second device's doorbell was refused; an exit rings it.
    rig.write32(first + BELL, 0);
    wait("the doorbell", || rig.fakes[1].rung() == [0]);
    assert!(rig.fakes[0].rung().is_empty());
}

#[test]
fn a_doorbell_rings_by_exit_too_but_only_in_its_width() {
    let rig = Rig::running();
    let bell = rig.bar(1, 0) + BELL;
    rig.write32(bell, 99);
    wait("the doorbell", || rig.fakes[0].rung() == [0]);
    rig.set.mmio().write(bell, &[1, 2]);
    rig.write32(bell + 4, 0);
    rig.write32(bell, 99);
    wait("the second ring", || rig.fakes[0].rung() == [0, 0]);
}

#[test]
fn dma_needs_the_bus_master_bit_and_a_running_device() {
    let rig = Rig::new(&[ALL]);
    let fake = &rig.fakes[0];
    rig.config_write(1, 4, 4);
    assert!(!fake.dma(), "stopped");
    rig.run();
    assert!(fake.dma());
    rig.config_write(1, 4, 2);
    assert!(!fake.dma(), "bus master off");
    rig.config_write(1, 4, 6);
    assert!(fake.dma());
}

#[test]
fn interrupts_follow_table_masks_and_control() {
    let rig = Rig::running();
    let fake = &rig.fakes[0];
    fake.irq(1);
    fake.irq(0);
    assert_eq!(rig.wiring.interrupts(), [0x40, 0x41]);
    rig.mask(1, 0, true);
    fake.irq(0);
    assert!(rig.wiring.interrupts().is_empty());
    assert_eq!(rig.read32(rig.bar(1, 4) + 0x800), 1, "PBA");
    rig.mask(1, 0, false);
    assert_eq!(rig.wiring.interrupts(), [0x40]);
    rig.config_write(1, 0x40, 0xc000_0000);
    fake.irq(1);
    assert!(rig.wiring.interrupts().is_empty(), "function mask");
    rig.config_write(1, 0x40, 0x8000_0000);
    assert_eq!(rig.wiring.interrupts(), [0x41]);
    rig.config_write(1, 0x40, 0);
    fake.irq(1);
    rig.config_write(1, 0x40, 0x8000_0000);
    assert!(rig.wiring.interrupts().is_empty(), "MSI-X off: dropped, there is no INTx");
    rig.config_write(1, 4, 2);
    fake.irq(1);
    rig.config_write(1, 4, 6);
    assert!(rig.wiring.interrupts().is_empty(), "bus master off: no MSI");
}

#[test]
fn a_message_to_elsewhere_is_no_interrupt() {
    let rig = Rig::running();
    let table = rig.bar(1, 4);
    for (low, high) in [(0x1000_u32, 0_u32), (0xfed0_0000, 0), (0xfef0_0000, 0), (0xfee0_0000, 1)] {
        rig.write32(table, low);
        rig.write32(table + 4, high);
        rig.fakes[0].irq(0);
        assert!(rig.wiring.interrupts().is_empty(), "{high:#x}:{low:#x}");
    }
    rig.write32(table, 0xfee0_1000);
    rig.write32(table + 4, 0);
    rig.fakes[0].irq(0);
    rig.fakes[0].irq(1);
    assert_eq!(rig.wiring.interrupts(), [0x40, 0x41]);
    assert!(rig.set.devices()[0].interrupt_counts().dropped >= 3);
}

/// Offset of the advanced-features control register.
const AF_CONTROL: u32 = 0x50;

#[test]
fn the_guest_resets_a_function() {
    let rig = Rig::running();
    let bar = rig.bar(1, 0);
    rig.write32(bar, 7);
    rig.mask(1, 0, true);
    rig.fakes[0].irq(0);
    rig.calls();
    assert_eq!(rig.config_read(1, AF_CONTROL - 4), 0x0306_0013, "the capability is where we think");
    rig.config_write(1, AF_CONTROL, 1);
    assert_eq!(rig.calls(), ["1 reset", "1 RUNNING"]);
    assert_eq!(rig.config_read(1, 4) & 0xffff, 0);
    assert_eq!((rig.bar(1, 0), rig.read32(bar)), (0, u32::MAX));
    assert!(!rig.fakes[0].dma(), "bus master is off");
    assert!(rig.wiring.doorbells().is_empty());
    rig.config_write(1, 0x10, bar as u32);
    rig.config_write(1, 0x20, 0xe000_1000);
    rig.drive(1);
    assert_eq!(rig.read32(bar), 0, "power-on contents");
    assert!(rig.wiring.interrupts().is_empty(), "what was pending is forgotten");
    rig.fakes[0].irq(0);
    assert_eq!(rig.wiring.interrupts(), [0x40]);
}

#[test]
fn a_machine_reset_assigns_bars_anew() {
    let rig = Rig::running();
    let bar = rig.bar(1, 0);
    rig.write32(bar, 7);
    rig.config_write(1, 0x10, 0xf000_0000);
    rig.config_write(0, 4, 0x6);
    rig.set.reset().expect("all devices can");
    assert_eq!(rig.bar(1, 0), bar);
    assert_eq!(rig.config_read(1, 4) & 0xffff, 0);
    assert_eq!(rig.config_read(0, 4) & 0xffff, 0);
    assert_eq!(rig.fakes[0].state(), State::Running);
    rig.drive(1);
    assert_eq!(rig.read32(bar), 0);
}

#[test]
fn a_device_in_error_is_named_and_costs_only_itself() {
    let rig = Rig::new(&[ALL, ALL]);
    rig.run();
    rig.drive(1);
    rig.drive(2);
    rig.fakes[0].break_down("the wire melted");
    assert_eq!(rig.read32(rig.bar(1, 0)), u32::MAX);
    assert_eq!(rig.read32(rig.bar(2, 0)), 0);
    let why = "the wire melted".to_owned();
    assert_eq!(rig.set.failed(), [("00:01.0 test.fake".to_owned(), why)]);
    let blockers = rig.set.blockers();
    assert_eq!(blockers.len(), 1);
    assert_eq!(blockers[0].device.as_deref(), Some("00:01.0 test.fake"));
    assert!(blockers[0].reason.contains("the wire melted"), "{}", blockers[0].reason);
    let refused = rig.set.start_precopy().expect_err("it cannot be saved");
    assert!(refused.to_string().contains("00:01.0"), "{refused}");
    rig.set.end_precopy().expect("the other one is back");
    // The guest's driver gets it out of ERROR.
    rig.config_write(1, AF_CONTROL, 1);
    assert!(rig.set.failed().is_empty() && rig.set.blockers().is_empty());
    assert_eq!(rig.fakes[0].state(), State::Running);
}

#[test]
fn a_device_that_cannot_start_does_not_keep_the_others() {
    let rig = Rig::new(&[ALL, ALL]);
    rig.fakes[0].refuse("RUNNING");
    let down = rig.set.run(&mut |_| Ok(Box::new(()))).expect("permits are free");
    assert_eq!(down.len(), 1);
    assert!(down[0].to_string().contains("00:01.0"), "{}", down[0]);
    assert_eq!(rig.fakes[1].state(), State::Running);
}

#[test]
fn nothing_runs_without_its_permit() {
    let rig = Rig::new(&[ALL, ALL]);
    let mut given = 0;
    let refused = rig.set.run(&mut |device| {
        given += 1;
        if device.starts_with("00:02") { Err("the lease is gone".into()) } else { Ok(Box::new(())) }
    });
    assert!(refused.expect_err("no permit").to_string().contains("00:02.0"));
    assert_eq!(given, 2);
    assert!(rig.calls().is_empty() && !rig.set.holds_permits());
    let lease = rig.run();
    assert_eq!(Arc::strong_count(&lease), 3);
    rig.set.to_stop().expect("stopped");
    assert_eq!(Arc::strong_count(&lease), 1, "permits are given back at the stop");
}

#[test]
fn the_configuration_block_says_what_a_device_is() {
    let rig = Rig::new(&[ALL]);
    let configs = rig.set.describe().expect("it answers");
    let config = &configs[0];
    assert_eq!(config.label(), "00:01.0 test.fake");
    assert_eq!((config.state_version, config.state_min_reader), (2, 2));
    assert_eq!(config.params[0].key, "colour");
    assert_eq!((config.regions[0].bytes, config.vectors), (0x1000, 2));
    assert!(config.max_state >= 64);
    let shape = rig.set.devices()[0].shape();
    assert!(super::describe::refusals(shape, config).is_empty());
    let mut other = config.clone();
    other.state_version = 3;
    other.state_min_reader = 3;
    other.vectors = 3;
    other.abi_major = 2;
    let codes: Vec<_> = super::describe::refusals(shape, &other);
    let codes: Vec<_> = codes.iter().map(|blocker| blocker.code.name()).collect();
    assert_eq!(codes, ["plugin-abi", "device-state", "device-shape"], "all at once");
}

#[test]
fn a_device_without_migration_is_a_blocker() {
    let rig = Rig::new(&[ALL, Can { migrate: false, ..ALL }]);
    let blockers = rig.set.blockers();
    assert_eq!(blockers.len(), 1);
    assert_eq!(blockers[0].code.name(), "not-migratable");
    assert_eq!(blockers[0].device.as_deref(), Some("00:02.0 test.fake"));
    let plugin = super::check(&rig.set.describe().expect("they answer"), &[]);
    assert_eq!(plugin.len(), 2, "each missing plugin is named");
    assert_eq!(plugin[0].code.name(), "plugin-missing");
}

#[test]
fn a_set_leaves_nothing_behind() {
    let rig = Rig::running();
    let (wiring, fake) = (Arc::clone(&rig.wiring), Arc::clone(&rig.fakes[0]));
    assert_eq!(wiring.lines(), 2);
    drop(rig);
    assert!(wiring.doorbells().is_empty());
    assert_eq!(wiring.lines(), 0);
    assert_eq!(Arc::strong_count(&fake), 1, "nobody holds the device");
}
