use super::*;

#[test]
fn status_line() {
    let line = "probe: t=12.005 pages=12000 checked=3400 sweeps=5 dma=2400 irqs=150 extra=2 \
                gap_us=812 max_gap_us=1034 noise_us=700 later=1\r\n";
    let status = Status {
        t: Duration::from_millis(12_005),
        pages: 12_000,
        checked: 3400,
        sweeps: 5,
        dma: 2400,
        irqs: 150,
        extra: 2,
        gap_us: 812,
        max_gap_us: 1034,
        noise_us: 700,
    };
    assert_eq!(Line::parse(line), Line::Status(status));
}

#[test]
fn the_other_lines() {
    let hello = Line::parse("probe: hello vcpus=2 ws=16777216 rate=max tsc_khz=1996250 ndma=1");
    let want = Hello { vcpus: 2, ws: 16 << 20, tsc_khz: 1_996_250, ndma: 1 };
    assert_eq!(hello, Line::Hello(want));
    assert_eq!(Line::parse("probe: ready fill_ms=80"), Line::Ready);
    let blackout = Blackout { blackout_us: 900, noise_us: 40 };
    assert_eq!(Line::parse("probe: blackout_us=900 noise_us=40"), Line::Blackout(blackout));
    let Line::Bye(bye) = Line::parse("probe: bye t=1.000 pages=7 result=ok") else {
        panic!("A bye line is read as one");
    };
    assert!(bye.ok);
    assert_eq!(bye.totals.pages, 7);
    let Line::Bye(bye) = Line::parse("probe: bye t=1.000 result=fail") else {
        panic!("A bye line is read as one");
    };
    assert!(!bye.ok);
}

#[test]
fn strange_lines_are_kept() {
    assert_eq!(Line::parse("FAIL page at 0x1000"), Line::Fail("FAIL page at 0x1000".into()));
    assert_eq!(Line::parse("probe: device reset"), Line::Note("device reset".into()));
    assert_eq!(Line::parse("SeaBIOS"), Line::Other("SeaBIOS".into()));
    assert_eq!(Line::parse(""), Line::Other(String::new()));
    let wild = Line::parse("probe: t=99999999999999999999.x pages=-3");
    assert_eq!(wild, Line::Status(Status::default()));
}
