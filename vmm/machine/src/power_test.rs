use super::*;

#[test]
fn only_the_whole_request_counts() {
    let cases: [(u16, &[u8], Option<GuestEvent>); 17] = [
        (0x604, &[0x00, 0x20], Some(GuestEvent::Shutdown)),
        (0x604, &[0xFF, 0xFF], Some(GuestEvent::Shutdown)),
        (0x604, &[0xFF, 0xDF], None),
        (0x604, &[0x20], None),
        (0x604, &[0x00, 0x20, 0, 0], None),
        (0x600, &[0x34], Some(GuestEvent::Shutdown)),
        (0x600, &[0xF7], Some(GuestEvent::Shutdown)),
        (0x600, &[0x14], None),
        (0x600, &[0x24], None),
        (0x601, &[0x34], None),
        (0xCF9, &[0x04], Some(GuestEvent::Reset)),
        (0xCF9, &[0x02], None),
        (0xCF9, &[0x04, 0], None),
        (0x64, &[0xFE], Some(GuestEvent::Reset)),
        (0x64, &[0xFF], None),
        (0x60, &[0xFE], None),
        (0x604, &[], None),
    ];
    for (port, data, event) in cases {
        assert_eq!(decode(port, data), event, "{port:#x} {data:x?}");
    }
}
