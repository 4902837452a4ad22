use super::*;

const TALK: &str = "\
probe: hello vcpus=1 ws=4096 tsc_khz=1000000 ndma=0\r\n\
probe: ready fill_ms=1\r\n\
probe: t=1.000 pages=10 checked=20 sweeps=1 dma=0 irqs=0 gap_us=9 max_gap_us=9 noise_us=3\r\n\
probe: blackout_us=700 noise_us=9\r\n\
probe: blackout_us=600 noise_us=9\r\n\
probe: t=2.000 pages=20 checked=40 sweeps=2 dma=0 irqs=0 gap_us=700 max_gap_us=700 noise_us=9\r\n";

#[test]
fn pieces_of_any_size_give_the_same() {
    for size in [1, 2, 7, 4096] {
        let mut console = Console::default();
        let mut lines = Vec::new();
        for piece in TALK.as_bytes().chunks(size) {
            lines.extend(console.feed(piece));
        }
        assert_eq!(lines.len(), 6);
        assert!(console.ready());
        assert_eq!(console.hello().map(|hello| hello.ws), Some(4096));
        assert_eq!(console.status_lines(), 2);
        assert_eq!(console.last().map(|status| status.pages), Some(20));
        assert_eq!(console.blackout(), Some(Blackout { blackout_us: 700, noise_us: 9 }));
        assert_eq!(console.fail(), None);
        assert!(console.bye().is_none());
    }
}

#[test]
fn the_first_fail_is_kept() {
    let mut console = Console::default();
    console.feed(TALK.as_bytes());
    console.feed(b"FAIL page at gpa=0x1000\r\nFAIL again\r\n");
    assert_eq!(console.fail(), Some("FAIL page at gpa=0x1000"));
    assert!(console.to_string().ends_with("FAIL page at gpa=0x1000"), "{console}");
}

#[test]
fn it_reads_well() {
    let mut console = Console::default();
    assert_eq!(console.to_string(), "probe: nothing checked yet");
    console.feed(TALK.as_bytes());
    let text = "probe: 2.0 s, 20 pages written, 40 checked (2 sweeps), \
                0 DMA descriptors by 0 interrupts, largest gap 700 µs (noise 9 µs), no FAIL";
    assert_eq!(console.to_string(), text);
}

#[test]
fn endless_lines_are_cut() {
    let mut console = Console::default();
    let lines = console.feed(&vec![b'x'; 3 * LINE_MAX]);
    assert_eq!(lines.len(), 2);
    assert!(console.partial.len() <= LINE_MAX);
}
