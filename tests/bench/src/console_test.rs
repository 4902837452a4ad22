use super::*;

fn line(gap: u64) -> String {
    format!("probe: t=1.000 pages=1 checked=1 sweeps=0 dma=0 irqs=0 extra=0 gap_us={gap}\r\n")
}

fn place() -> drogher_tests::Place {
    drogher_tests::Place::new()
}

#[test]
fn a_line_that_the_move_cuts_in_two_is_one_line() {
    let place = place();
    let (a, b) = (place.path("a"), place.path("b"));
    let cut = line(7);
    std::fs::write(&a, format!("probe: ready\r\n{}{}", line(3), &cut[..20])).expect("writes");
    let mut follower = Follower::new(&a);
    follower.ready().expect("ready");
    std::fs::write(&b, format!("{}{}", &cut[20..], line(9))).expect("writes");
    assert!(follower.moved_to(&b).expect("reads"), "in the middle of a line");
    let gaps: Vec<_> =
        follower.statuses(2).expect("two lines").iter().map(|status| status.gap_us).collect();
    assert_eq!(gaps, [7, 9]);
}

#[test]
fn between_lines_is_not_in_the_middle() {
    let place = place();
    let a = place.path("a");
    std::fs::write(&a, line(1)).expect("writes");
    let mut follower = Follower::new(&a);
    assert!(!follower.moved_to(&place.path("b")).expect("reads"));
}

#[test]
fn a_fault_of_the_guest_ends_the_measuring() {
    let place = place();
    let a = place.path("a");
    std::fs::write(&a, "FAIL page at gpa=0x1000\r\n").expect("writes");
    let error = Follower::new(&a).statuses(1).expect_err("a fault");
    assert!(error.to_string().contains("FAIL page at gpa=0x1000"), "{error}");
}
