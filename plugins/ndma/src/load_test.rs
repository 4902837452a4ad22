use super::*;
use crate::format::{TAIL_BYTES, WINDOW_SECTION_BYTES, put_header, put_scratch, put_tail};
use proptest::prelude::*;

const PAGES: usize = 2;

fn regs() -> Registers {
    Registers {
        enabled: true,
        irq_enabled: true,
        halted: false,
        doorbell: true,
        error: 1,
        ring_entries: 16,
        ring_base: 0x4000,
        next: 15,
        completed: 0x1_0000_0001,
        bytes: 77,
    }
}

fn stream(regs: &Registers) -> Vec<u8> {
    let mut out = Vec::new();
    put_header(&mut out, (PAGES * PAGE) as u64);
    put_scratch(&mut out, 0, &[1; PAGE]);
    put_scratch(&mut out, 1, &[2; PAGE]);
    put_scratch(&mut out, 0, &[3; PAGE]);
    put_tail(&mut out, regs, &window());
    out
}

fn window() -> Window {
    let mut window = Window::default();
    assert!(window.write(crate::regs::WINDOW + 8, &[1, 2, 3, 4]));
    window
}

/// [`stream`] as version 1 wrote it.
fn old_stream() -> Vec<u8> {
    let mut out = with(8, &[1]);
    let end = out.split_off(out.len() - SECTION_BYTES);
    out.truncate(out.len() - SECTION_BYTES - WINDOW_SECTION_BYTES);
    [out, end].concat()
}

fn load(bytes: &[u8]) -> Result<Loaded, LoadError> {
    let mut load = Load::new(PAGES);
    load.write(bytes)?;
    load.finish()
}

/// Offset of the registers' payload in [`stream`].
fn registers_at() -> usize {
    stream(&regs()).len() - TAIL_BYTES + SECTION_BYTES
}

fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut stream = stream(&regs());
    stream[at..at + bytes.len()].copy_from_slice(bytes);
    stream
}

#[test]
fn pieces_of_any_size_give_the_same() {
    for piece in [1, 7, 4096, 1 << 20] {
        let mut load = Load::new(PAGES);
        for piece in stream(&regs()).chunks(piece) {
            load.write(piece).unwrap();
        }
        let loaded = load.finish().unwrap();
        assert_eq!((loaded.regs, loaded.window), (regs(), window()));
        assert_eq!(loaded.scratch, [[3; PAGE], [2; PAGE]].concat());
    }
}

#[test]
fn a_state_of_version_1_has_no_window() {
    let loaded = load(&old_stream()).unwrap();
    assert_eq!((loaded.regs, loaded.window), (regs(), Window::default()));
}

#[test]
fn a_state_that_ends_early_is_refused_wherever_it_ends() {
    let whole = stream(&regs());
    let mut load = Load::new(PAGES);
    for at in 0..whole.len() {
        let cut = Load {
            expect: load.expect,
            part: Vec::new(),
            scratch: Vec::new(),
            seen: vec![true; PAGES],
            regs: Some(regs()),
            has_window: false,
            window: None,
        };
        let error = cut.finish().unwrap_err();
        assert!(matches!(error, LoadError::Truncated(_)), "{error} at {at}");
        load.write(&whole[at..=at]).unwrap();
    }
    assert!(load.finish().is_ok());
}

#[test]
fn what_is_wrong_is_named() {
    let at = registers_at();
    let trailing = [stream(&regs()), vec![0]].concat();
    for (bytes, expected) in [
        (with(0, b"x"), "begins with"),
        (with(8, &[3]), "version 3, this device reads versions 1 to 2"),
        (with(8, &[0]), "version 0"),
        (with(8, &[1]), "unknown kind 4"),
        (with(12, &[9]), "0x9"),
        (with(16, &[0, 0x40]), "16384 bytes of scratch memory, this device 8192 (scratch_kib)"),
        (with(24, &[9]), "unknown kind 9"),
        (with(28, &[0]), "Scratch section of 4096 bytes, it must have 4104"),
        (with(32, &[1]), "offset 0x1,"),
        (with(32, &[0, 0x20]), "offset 0x2000,"),
        (with(32, &[0, 0xF0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]), "offset 0xfffffffffffff000,"),
        (with(at, &[2]), "field enabled is a flag and cannot be 2"),
        (with(at + 4, &[3]), "field irq_enabled"),
        (with(at + 8, &[0, 1]), "field halted"),
        (with(at + 12, &[0xFF; 4]), "field doorbell"),
        (with(at + 16, &[4]), "field error cannot be 0x4"),
        (with(at + 20, &[15]), "field ring_entries cannot be 0xf"),
        (with(at + 20, &[0]), "field enabled cannot be 0x1"),
        (with(at + 24, &[1]), "field ring_base cannot be 0x4001"),
        (with(at + 24, &[0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]), "field ring_base"),
        (with(at + 32, &[16]), "field next cannot be 0x10"),
        (with(at + 36, &[1]), "field next cannot be 0x10000000f"),
        (trailing, "goes on for 1 bytes"),
    ] {
        let text = load(&bytes).unwrap_err().to_string();
        assert!(text.contains(expected), "{text:?} lacks {expected:?}");
    }
}

#[test]
fn nothing_may_be_missing_or_double() {
    let mut out = Vec::new();
    put_header(&mut out, (PAGES * PAGE) as u64);
    put_scratch(&mut out, 0, &[1; PAGE]);
    put_tail(&mut out, &regs(), &window());
    assert_eq!(load(&out).unwrap_err(), LoadError::MissingPage(4096));

    let mut out = stream(&regs());
    let end = out.split_off(out.len() - SECTION_BYTES);
    let window = out.split_off(out.len() - SECTION_BYTES - WINDOW_SECTION_BYTES);
    let regs = out.split_off(out.len() - SECTION_BYTES - REGISTERS_BYTES);
    let sections = |sections: &[&[u8]]| load(&[out.as_slice(), &sections.concat(), &end].concat());
    assert_eq!(sections(&[&regs, &window, &regs]).unwrap_err(), LoadError::Twice(Kind::Registers));
    assert_eq!(sections(&[&regs, &window, &window]).unwrap_err(), LoadError::Twice(Kind::Window));
    assert_eq!(sections(&[&window]).unwrap_err(), LoadError::MissingRegisters);
    assert_eq!(sections(&[&regs]).unwrap_err(), LoadError::MissingWindow);
    assert!(sections(&[&window, &regs]).is_ok());
    assert_eq!(load(&[]).unwrap_err(), LoadError::Truncated("header"));
}

proptest! {
    /// Any change of any byte is refused, or gives a device that could exist.
    #[test]
    fn damage_never_passes_as_an_impossible_device(at in any::<prop::sample::Index>(), bit in 0_u8..8) {
        let mut bytes = stream(&regs());
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(loaded) = load(&bytes) {
            prop_assert_eq!(loaded.regs.check(), Ok(()));
            prop_assert_eq!(loaded.scratch.len(), PAGES * PAGE);
        }
    }

    #[test]
    fn random_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..2000), keep in 0_usize..200) {
        let mut all = stream(&regs());
        all.truncate(keep);
        all.extend(bytes);
        prop_assert!(load(&all).is_err());
    }
}
