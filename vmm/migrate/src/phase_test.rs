use super::Phase;

#[test]
fn names_and_numbers_go_both_ways() {
    for (number, phase) in Phase::ALL.into_iter().enumerate() {
        assert_eq!(Phase::from_name(phase.name()), Some(phase));
        assert_eq!(Phase::from_number(u32::try_from(number).unwrap()), Some(phase));
        assert_eq!(serde_json::to_string(&phase).unwrap(), format!("\"{phase}\""));
    }
    assert_eq!(Phase::from_number(17), None);
    assert_eq!(Phase::from_name("bulk "), None);
}

#[test]
fn the_seven_steps_come_in_their_order() {
    // A phase may share its step with a neighbour, and the rounds in the middle repeat; before
    // and after them a step, once left, does not come back.
    let tail = &Phase::ALL[Phase::PauseVcpus as usize..];
    let steps: Vec<_> = tail.iter().filter_map(|p| p.seven_step()).collect();
    let mut distinct = steps.clone();
    distinct.dedup();
    assert_eq!(distinct.len(), 3);
    assert!(distinct[0].contains("P2P grace") && distinct[2].contains("device state"));
}
