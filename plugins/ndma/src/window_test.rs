use super::*;
use crate::testing::Rig;

fn fold(values: impl IntoIterator<Item = u64>) -> u64 {
    values.into_iter().fold(0, |sum: u64, value| sum.rotate_left(1).wrapping_add(value))
}

#[test]
fn every_aligned_access_is_taken_and_accounted_for() {
    let mut window = Window::default();
    let at = WINDOW + 16;
    assert!(window.write(at, &[0xAA]));
    assert!(window.write(at + 2, &[1, 2]));
    assert!(window.write(at + 4, &[3, 4, 5, 6]));
    assert!(window.write(WINDOW + WINDOW_BYTES as u64 - 8, &[7; 8]));
    assert_eq!(window.memory[16..24], [0xAA, 0, 1, 2, 3, 4, 5, 6]);
    let sum = fold([0xAA, 0x0201, 0x0605_0403, 0x0707_0707_0707_0707]);
    assert_eq!((window.writes, window.sum), (4, sum));
    let mut data = [0; 8];
    assert!(window.read(at, &mut data));
    assert_eq!(data, [0xAA, 0, 1, 2, 3, 4, 5, 6]);
}

#[test]
fn nothing_else_is_the_windows() {
    let mut window = Window::default();
    let end = WINDOW + WINDOW_BYTES as u64;
    for (offset, len) in [
        (0, 4),
        (WINDOW - 4, 4),
        (WINDOW - 4, 8),
        (WINDOW + 1, 2),
        (WINDOW + 4, 8),
        (WINDOW, 3),
        (WINDOW, 0),
        (WINDOW, 16),
        (end - 4, 8),
        (end, 4),
        (u64::MAX, 1),
    ] {
        assert!(!window.write(offset, &vec![1; len]), "{len} bytes at {offset:#x}");
        assert!(!window.read(offset, &mut vec![1; len]), "{len} bytes at {offset:#x}");
    }
    assert_eq!(window, Window::default());
}

#[test]
fn registers_say_what_came_and_a_reset_forgets() {
    let mut rig = Rig::new();
    assert_eq!(rig.get64(regs::WINDOW_BYTES), WINDOW_BYTES as u64);
    for value in 1..=100_u32 {
        rig.set(WINDOW + u64::from(value % 4 * 4), value);
    }
    assert_eq!((rig.get64(WINDOW_WRITES), rig.get(WINDOW_WRITES + 4)), (100, 0));
    assert_eq!(rig.get64(WINDOW_SUM), fold(1..=100));
    assert_eq!((rig.get(WINDOW), rig.get(WINDOW + 12)), (100, 99));
    rig.set(WINDOW_WRITES, 9);
    assert_eq!(rig.get(WINDOW_WRITES), 100, "read only");
    rig.set(regs::CONTROL, regs::CONTROL_RESET);
    assert_eq!((rig.get64(WINDOW_WRITES), rig.get64(WINDOW_SUM), rig.get(WINDOW)), (0, 0, 0));
}

#[test]
fn it_is_saved_and_loaded() {
    let mut rig = Rig::new();
    for value in 1..=7_u32 {
        rig.set(WINDOW + u64::from(value) * 4, value);
    }
    let state = rig.stop_and_save();
    let mut other = Rig::stopped(crate::testing::TestBus::new(), &[]);
    other.load_and_run(&state);
    assert_eq!((other.get64(WINDOW_WRITES), other.get64(WINDOW_SUM)), (7, fold(1..=7)));
    assert_eq!(other.get(WINDOW + 28), 7);
}
