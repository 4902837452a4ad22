use super::*;

#[test]
fn only_the_whole_request_counts() {
    let cases: [(u16, &[u8], Option<GuestEvent>); 12] = [
        (0x604, &[0x00, 0x20], Some(GuestEvent::Shutdown)),
        (0x604, &[0xFF, 0xFF], Some(GuestEvent::Shutdown)),
        (0x604, &[0xFF, 0xDF], None),
        (0x604, &[0x20], None),
        (0x604, &[0x00, 0x20, 0, 0], None),
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
