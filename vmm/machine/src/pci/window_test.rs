use super::*;

#[test]
fn pieces_are_aligned_and_apart() {
    let mut window = BarWindow::new(MMIO_WINDOW);
    assert_eq!(window.allocate(0x1000), Ok(0xe000_0000));
    assert_eq!(window.allocate(0x10), Ok(0xe000_1000));
    assert_eq!(window.allocate(0x10_0000), Ok(0xe010_0000));
    assert_eq!(window.allocate(0x1000), Ok(0xe020_0000));
}

#[test]
fn a_full_window_says_so() {
    let mut window = BarWindow::new(0x1000..0x3000);
    assert_eq!(window.allocate(0x1000), Ok(0x1000));
    assert_eq!(
        window.allocate(0x2000),
        Err(WindowFull { size: 0x2000, used: 0x1000, len: 0x2000 })
    );
    assert!(window.allocate(1 << 63).is_err());
    assert_eq!(window.allocate(0x1000), Ok(0x2000));
}
