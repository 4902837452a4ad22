use proptest::prelude::*;

use super::*;

const IDENTITY: Identity = Identity {
    vendor: 0xd70e,
    device: 1,
    subsystem_vendor: 0x1234,
    subsystem: 0x5678,
    class: 0x08_0100,
    revision: 3,
};

/// BAR0 4 KiB; BAR2/3 64-bit prefetchable 8 GiB; BAR4 64 KiB with MSI-X; function reset.
fn function() -> ConfigSpace {
    let bars = [
        BarSpec::memory32(0, 0x1000),
        BarSpec { index: 2, size: 8 << 30, kind: BarKind::Memory64, prefetchable: true },
        BarSpec::memory32(4, 0x1_0000),
    ];
    let mut config = ConfigSpace::new(&IDENTITY, &bars).expect("a valid function");
    config.add_msix(5, 4, 0, 0x8000).expect("MSI-X fits");
    config.add_function_reset().expect("the capability fits");
    config
}

fn read32(config: &ConfigSpace, offset: u16) -> u32 {
    let mut data = [0; 4];
    config.read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn read8(config: &ConfigSpace, offset: u16) -> u8 {
    let mut data = [0; 1];
    config.read(offset, &mut data);
    data[0]
}

fn write32(config: &mut ConfigSpace, offset: u16, value: u32) -> Effects {
    config.write(offset, &value.to_le_bytes())
}

/// Offset of a capability, found as a guest finds it.
fn find(config: &ConfigSpace, id: u8) -> Option<u16> {
    assert_eq!(read32(config, regs::COMMAND) >> 16 & 0x10, 0x10, "status says: a list");
    let mut at = read8(config, regs::CAPABILITIES);
    for _ in 0..48 {
        if at == 0 {
            return None;
        }
        assert_eq!(at & 3, 0, "capabilities are dword aligned");
        if read8(config, at.into()) == id {
            return Some(at.into());
        }
        at = read8(config, u16::from(at) + 1);
    }
    panic!("the capability list is a loop");
}

#[test]
fn header_reads_as_described() {
    let config = function();
    assert_eq!(read32(&config, 0x00), 0x0001_d70e);
    assert_eq!(read32(&config, 0x04), 0x0010_0000);
    assert_eq!(read32(&config, 0x08), 0x0801_0003);
    assert_eq!(read32(&config, 0x0c), 0);
    assert_eq!(read32(&config, 0x2c), 0x5678_1234);
    assert_eq!(read32(&config, 0x30), 0, "no expansion ROM");
    assert_eq!(read32(&config, 0x3c), 0, "no INTx pin");
    let (mut byte, mut word) = ([0; 1], [0; 2]);
    config.read(0x0b, &mut byte);
    config.read(0x0a, &mut word);
    assert_eq!((byte[0], u16::from_le_bytes(word)), (0x08, 0x0801));
}

#[test]
fn identity_is_read_only() {
    let mut config = function();
    for offset in [0x00, 0x08, 0x2c, 0x30, 0x34] {
        let before = read32(&config, offset);
        assert_eq!(write32(&mut config, offset, u32::MAX), Effects::default());
        assert_eq!(read32(&config, offset), before, "offset {offset:#x}");
    }
}

#[test]
fn bars_size_as_every_guest_does_it() {
    let mut config = function();
    let golden = [
        (0x10, 0xffff_f000),
        (0x14, 0),
        (0x18, 0x0000_000c),
        (0x1c, 0xffff_fffe),
        (0x20, 0xffff_0000),
        (0x24, 0),
    ];
    for (offset, mask) in golden {
        write32(&mut config, offset, u32::MAX);
        assert_eq!(read32(&config, offset), mask, "offset {offset:#x}");
    }
}

#[test]
fn bars_hold_addresses_and_say_where_they_are() {
    let mut config = function();
    write32(&mut config, 0x10, 0xe000_1fff);
    assert_eq!(read32(&config, 0x10), 0xe000_1000);
    assert_eq!(config.bar_range(0), Some(0xe000_1000..0xe000_2000));
    write32(&mut config, 0x18, 0x1234_5678);
    write32(&mut config, 0x1c, 0x0000_000b);
    assert_eq!(read32(&config, 0x18), 0xc);
    assert_eq!(config.bar_range(2), Some(0xa_0000_0000..0xc_0000_0000));
    assert_eq!(config.bar_range(3), None, "the upper half is no BAR of its own");
    assert_eq!(config.bar_range(4), None, "address 0 is nowhere");
    // A range that would end beyond 2^64.
    write32(&mut config, 0x1c, u32::MAX);
    assert_eq!(config.bar_range(2), None);
}

#[test]
fn bars_can_be_written_byte_by_byte() {
    let mut config = function();
    for (offset, byte) in [(0x10, 0xff), (0x11, 0x2f), (0x12, 0x34), (0x13, 0xe0)] {
        config.write(offset, &[byte]);
    }
    assert_eq!(read32(&config, 0x10), 0xe034_2000);
    config.write(0x12, &[0x99, 0xe1]);
    assert_eq!(read32(&config, 0x10), 0xe199_2000);
}

#[test]
fn firmware_assigns_bars() {
    let mut config = function();
    config.assign_bar(0, 0xe000_3000).expect("aligned");
    config.assign_bar(2, 16 << 30).expect("aligned");
    assert_eq!(config.bar_range(0), Some(0xe000_3000..0xe000_4000));
    assert_eq!(config.bar_range(2), Some(16 << 30..24 << 30));
    assert_eq!(read32(&config, 0x18), 0xc, "flags stay");
    let unaligned = config.assign_bar(0, 0xe000_0800);
    assert_eq!(unaligned, Err(ConfigError::Address { index: 0, address: 0xe000_0800 }));
    assert!(config.assign_bar(4, 1 << 32).is_err(), "too high for 32 bits");
    assert_eq!(config.assign_bar(3, 0), Err(ConfigError::NoBar { index: 3 }));
}

#[test]
fn effects_name_what_changed() {
    let mut config = function();
    let quiet = write32(&mut config, 0x10, 0xe000_0000);
    assert_eq!(quiet, Effects::default(), "decoding is off");
    let on = config.write(regs::COMMAND, &[0x06]);
    assert_eq!(on, Effects { mapping: true, bus_master: true, ..Effects::default() });
    assert_eq!(config.write(regs::COMMAND, &[0x06]), Effects::default(), "no change");
    let moved = write32(&mut config, 0x10, 0xe100_0000);
    assert_eq!(moved, Effects { mapping: true, ..Effects::default() });
    let off = config.write(regs::COMMAND, &[0x04]);
    assert_eq!(off, Effects { mapping: true, ..Effects::default() });
}

#[test]
fn command_keeps_only_what_means_something() {
    let mut config = function();
    config.write(regs::COMMAND, &[0xff, 0xff]);
    assert_eq!(config.command(), regs::COMMAND_WRITABLE);
    config.write(regs::STATUS, &[0xff, 0xff]);
    assert_eq!(read32(&config, regs::COMMAND) >> 16, 0x10);
}

#[test]
fn capability_walk_finds_msix_and_function_reset() {
    let config = function();
    let msix = find(&config, regs::CAP_MSIX).expect("MSI-X is listed");
    assert_eq!(read32(&config, msix) >> 16, 4, "table size is N - 1; off, not masked");
    assert_eq!(read32(&config, msix + 4), 4, "table in BAR 4 at 0");
    assert_eq!(read32(&config, msix + 8), 0x8004, "PBA in BAR 4 at 0x8000");
    let af = find(&config, regs::CAP_ADVANCED_FEATURES).expect("function reset is listed");
    assert_eq!(read32(&config, af) >> 16, 0x0306);
    assert_eq!(find(&config, 0x10), None, "no PCI Express capability");
}

#[test]
fn msix_control_bits_are_followed() {
    let mut config = function();
    let msix = find(&config, regs::CAP_MSIX).expect("MSI-X is listed");
    assert_eq!(config.msix_control(), (false, false));
    let effects = config.write(msix + 2, &0xc7ff_u16.to_le_bytes());
    assert_eq!(effects, Effects { msix: true, ..Effects::default() });
    assert_eq!(config.msix_control(), (true, true));
    assert_eq!(read32(&config, msix) >> 16, 0xc004, "the size is read-only");
    config.write(msix + 3, &[0x80]);
    assert_eq!(config.msix_control(), (true, false), "by a byte access too");
}

#[test]
fn function_reset_is_asked_for_and_reads_zero() {
    let mut config = function();
    let af = find(&config, regs::CAP_ADVANCED_FEATURES).expect("function reset is listed");
    let effects = config.write(af + 4, &[1]);
    assert_eq!(effects, Effects { function_reset: true, ..Effects::default() });
    assert_eq!(read8(&config, af + 4), 0);
    assert!(write32(&mut config, af + 4, 1).function_reset, "by a dword too");
    assert_eq!(config.write(af + 4, &[0xfe]), Effects::default());
}

#[test]
fn reset_takes_everything_back_but_identity() {
    let mut config = function();
    config.assign_bar(0, 0xe000_0000).expect("aligned");
    for offset in (0..256).step_by(4) {
        write32(&mut config, offset, u32::MAX);
    }
    config.reset();
    assert_eq!(config.command(), 0);
    assert_eq!(config.bar_range(0), None);
    assert_eq!(config.msix_control(), (false, false));
    let (fresh, reset) = (function(), config);
    assert_eq!(fresh.values, reset.values);
}

#[test]
fn the_end_of_the_space_is_a_wall() {
    let mut config = function();
    let mut data = [0; 8];
    config.read(0xfc, &mut data);
    assert_eq!(data, [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    config.read(0xffff, &mut data);
    assert_eq!(data, [0xff; 8]);
    assert_eq!(config.write(0xfe, &[0xff; 64]), Effects::default());
    assert_eq!(config.write(0xffff, &[0xff; 8]), Effects::default());
}

#[test]
fn bad_descriptions_are_refused_by_name() {
    let none = Identity { vendor: 0xffff, ..IDENTITY };
    assert!(matches!(ConfigSpace::new(&none, &[]), Err(ConfigError::Identity { .. })));
    let wide = Identity { class: 0x100_0000, ..IDENTITY };
    assert!(matches!(ConfigSpace::new(&wide, &[]), Err(ConfigError::Identity { .. })));
    for (index, size) in [(0, 0x1800), (0, 8), (6, 0x1000), (255, 0x1000), (0, 1 << 32), (0, 0)] {
        let made = ConfigSpace::new(&IDENTITY, &[BarSpec::memory32(index, size)]);
        assert_eq!(made.err(), Some(ConfigError::Bar { index, size }), "{index} {size:#x}");
    }
    let wide_last =
        BarSpec { index: 5, size: 0x1000, kind: BarKind::Memory64, prefetchable: false };
    assert!(matches!(ConfigSpace::new(&IDENTITY, &[wide_last]), Err(ConfigError::Bar { .. })));
    let wide = BarSpec { index: 0, ..wide_last };
    let clash = [wide, BarSpec::memory32(1, 0x1000)];
    let made = ConfigSpace::new(&IDENTITY, &clash);
    assert_eq!(made.err(), Some(ConfigError::BarTaken { index: 1 }));
    let mut config = function();
    assert_eq!(config.add_msix(0, 4, 0, 0), Err(ConfigError::Vectors { vectors: 0 }));
    assert_eq!(config.add_msix(2049, 4, 0, 0), Err(ConfigError::Vectors { vectors: 2049 }));
    assert_eq!(config.add_msix(1, 5, 0, 0), Err(ConfigError::NoBar { index: 5 }));
    let big = config.add_capability(regs::CAP_VENDOR, &[0; 200], &[]);
    assert!(matches!(big, Err(ConfigError::CapabilityFull { id: 0x09, len: 202, .. })));
}

#[test]
fn saved_state_comes_back() {
    let mut config = function();
    config.assign_bar(0, 0xe000_0000).expect("aligned");
    config.write(regs::COMMAND, &[0x06, 0x04]);
    config.write(regs::INTERRUPT_LINE, &[11]);
    let mut out = Writer::new();
    config.save(&mut out);
    let saved = out.finish();
    let mut other = function();
    other.load(&mut Reader::new(&saved)).expect("its own state");
    assert_eq!(other.values, config.values);
}

#[test]
fn a_state_of_another_device_is_refused_untouched() {
    let other = Identity { device: 2, ..IDENTITY };
    let mut out = Writer::new();
    ConfigSpace::new(&other, &[]).expect("valid").save(&mut out);
    let saved = out.finish();
    let mut config = function();
    let before = config.values;
    let refused = config.load(&mut Reader::new(&saved));
    assert_eq!(refused, Err(StateError::ReadOnly { offset: 2, found: 2, here: 1 }));
    assert!(matches!(
        config.load(&mut Reader::new(&saved[..255])),
        Err(StateError::Truncated { wanted: 256, left: 255, .. })
    ));
    assert_eq!(config.values, before);
}

proptest! {
    /// Whatever a guest writes, in whatever pieces: no panic, read-only bits stay, ranges are whole.
    #[test]
    fn any_accesses_keep_the_invariants(
        accesses in prop::collection::vec((any::<u16>(), prop::collection::vec(any::<u8>(), 0..10)), 0..200)
    ) {
        let mut config = function();
        let fresh = function();
        for (offset, data) in accesses {
            // Mostly inside, sometimes anywhere.
            let offset = if offset & 0x8000 == 0 { offset & 0xff } else { offset };
            config.write(offset, &data);
            let mut back = vec![0; data.len()];
            config.read(offset, &mut back);
        }
        for (at, mask) in config.writable.iter().enumerate() {
            prop_assert_eq!((config.values[at] ^ fresh.values[at]) & !mask, 0);
        }
        for bar in config.bars() {
            if let Some(range) = config.bar_range(bar.index) {
                prop_assert_eq!(range.end - range.start, bar.size);
                prop_assert_eq!(range.start % bar.size, 0);
            }
        }
        let mut out = Writer::new();
        config.save(&mut out);
        let saved = out.finish();
        let mut other = function();
        prop_assert_eq!(other.load(&mut Reader::new(&saved)), Ok(()));
        prop_assert_eq!(other.values, config.values);
    }

    /// Random bytes as a state: refused, or taken with all read-only bits right.
    #[test]
    fn random_states_are_refused_or_whole(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut config = function();
        let before = config.values;
        if config.load(&mut Reader::new(&bytes)).is_err() {
            prop_assert_eq!(config.values, before);
        }
    }
}
