use super::*;

fn lapic(lvt: u32) -> kvm_lapic_state {
    let mut state = kvm_lapic_state::default();
    for (slot, byte) in state.regs.iter_mut().skip(0x320).zip(lvt.to_le_bytes()) {
        *slot = std::os::raw::c_char::from_ne_bytes([byte]);
    }
    state
}

#[test]
fn an_expired_deadline_expires_again_only_where_one_is_awaited() {
    const DEADLINE_MODE: u32 = 2 << 17;
    const MASKED: u32 = 1 << 16;
    let cases = [
        (Some(77), DEADLINE_MODE | 0x20, Some(77)),
        (Some(77), 0, Some(77)),
        (Some(0), DEADLINE_MODE | 0x20, Some(1)),
        (Some(0), DEADLINE_MODE | MASKED, None),
        (Some(0), 0, None),
        (Some(0), 1 << 17, None),
        (None, DEADLINE_MODE, None),
    ];
    for (saved, lvt, expected) in cases {
        assert_eq!(deadline_to_set(saved, &lapic(lvt)), expected, "{saved:?} {lvt:#x}");
    }
}

#[test]
fn the_buffer_holds_what_kvm_announces() {
    assert!(xsave_buffer(0).expect("none").is_none());
    assert!(xsave_buffer(4096).expect("one").is_some_and(|buffer| buffer.as_slice().is_empty()));
    let buffer = xsave_buffer(11_008).expect("one").expect("needed");
    assert_eq!(buffer.as_slice().len(), (11_008 - 4096) / 4);
}
