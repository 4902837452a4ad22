use super::*;

fn date(seconds: u64) -> [u8; 8] {
    [CENTURY, 9, 8, 7, 4, 2, 0, 6].map(|index| register(index, seconds))
}

#[test]
fn dates_are_right() {
    // Century, year, month, day, hour, minute, second, weekday (Sunday is 1), all BCD.
    assert_eq!(date(0), [0x19, 0x70, 1, 1, 0, 0, 0, 5]);
    assert_eq!(date(951_827_696), [0x20, 0x00, 2, 0x29, 0x12, 0x34, 0x56, 3]);
    assert_eq!(date(1_709_251_199), [0x20, 0x24, 2, 0x29, 0x23, 0x59, 0x59, 5]);
    assert_eq!(date(1_709_251_200), [0x20, 0x24, 3, 1, 0, 0, 0, 6]);
    assert_eq!(date(4_107_542_400), [0x21, 0x00, 3, 1, 0, 0, 0, 2]);
}

#[test]
fn registers_say_that_the_clock_runs() {
    let cmos = Cmos::default();
    let read = |index: u8| {
        cmos.pio_write(PioAddress(0x70), 0, &[index]);
        let mut data = [0xFF];
        cmos.pio_read(PioAddress(0x70), 1, &mut data);
        data[0]
    };
    assert_eq!((read(0x0A), read(0x0B), read(0x0D)), (0x26, 0x02, 0x80));
    assert_eq!(read(0x8B), 0x02, "the NMI mask is no part of the index");
    assert_eq!(read(0x40), 0, "no memory");
    assert_eq!(cmos.index(), 0x40);
    cmos.set_index(0xFF);
    assert_eq!(cmos.index(), 0x7F);
    let mut index = [0xFF];
    cmos.pio_read(PioAddress(0x70), 0, &mut index);
    assert_eq!(index, [0xFF], "the index cannot be read, as on the real chip");
}
