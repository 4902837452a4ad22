use super::*;

fn passage(same_boot: bool) -> Passage {
    // One second of guest time; the other host's TSC started elsewhere.
    Passage {
        same_boot,
        guest_ns: (5_000_000_000, 6_000_000_000),
        host_tsc: (1_000_000, 9_000_000),
    }
}

#[test]
fn on_one_host_the_offset_is_kept() {
    assert_eq!(passage(true).offset(0, 2_000_000), 0);
    assert_eq!(passage(true).offset(u64::MAX - 7, 2_000_000), u64::MAX - 7);
}

#[test]
fn on_another_host_the_guest_sees_the_time_that_passed() {
    let (khz, offset) = (2_000_000, 123u64.wrapping_sub(1_000_000));
    // At the save the guest read host_tsc.0 + offset; a second of 2 GHz later it must read this.
    let guest_then = 1_000_000u64.wrapping_add(offset);
    let new = passage(false).offset(offset, khz);
    assert_eq!(9_000_000u64.wrapping_add(new), guest_then + 2_000_000_000);
}

#[test]
fn without_offsets_ticks_are_added() {
    let before = host_tsc();
    let same = passage(true).ticks_since(before, 2_000_000);
    assert!(same <= host_tsc() - before);
    assert_eq!(passage(true).ticks_since(u64::MAX, 1), 0, "never backwards");
    let now = host_tsc();
    let other = Passage { host_tsc: (1_000_000, now), ..passage(false) };
    let ticks = other.ticks_since(1_000_500, 2_000_000);
    assert!(ticks >= 2_000_000_000 - 500 && ticks <= 2_000_000_000 + (host_tsc() - now));
}

#[test]
fn the_clock_runs_on_with_and_without_kvms_help() {
    let data = kvm_clock_data { clock: 5_000, realtime: 1_000, ..Default::default() };
    let state = ClockState { data, boot_id: [1; 16] };
    let set = to_set(&state, KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC, 1_700);
    assert_eq!((set.clock, set.realtime, set.flags), (5_000, 1_000, KVM_CLOCK_REALTIME));
    let set = to_set(&state, 0, 1_700);
    assert_eq!((set.clock, set.realtime, set.flags), (5_700, 0, 0));
    assert_eq!(to_set(&state, 0, 900).clock, 5_000, "never backwards");
}

#[test]
fn long_times_do_not_wrap() {
    assert_eq!(ns_to_ticks(u64::MAX, 5_000_000), u64::MAX);
    assert_eq!(ns_to_ticks(86_400_000_000_000 * 365, 3_000_000), 94_608_000_000_000_000);
}

#[test]
fn this_boot_has_a_name() {
    assert_ne!(boot_id(), [0; 16]);
    assert_eq!(boot_id(), boot_id());
}

/// A pause between the reading of two clocks is not taken for a difference between them.
#[test]
fn the_clock_is_read_again_after_a_pause() {
    let of = |clock, flags| kvm_clock_data { clock, flags, ..Default::default() };
    // Real time at each look, and the guest's clock at each: the first pair has 3 ms between.
    let mut looks = [0, 3_000_000, 3_100_000, 3_110_000].into_iter();
    let mut guest = [10_000, 3_115_000].into_iter();
    let get = || Ok::<_, ()>(of(guest.next().expect("two reads"), 0));
    let data = read_clock(get, || looks.next().expect("four looks"), || 7).unwrap();
    assert_eq!((data.clock, data.realtime, data.host_tsc), (3_115_000, 3_105_000, 7));
    // Never close: the closest.
    let (mut at, mut step, mut reads) = (0, 0, 0);
    let looks = || {
        step += 1;
        at += if step == 6 { 30_000 } else { 1_000_000 };
        at
    };
    let get = || {
        reads += 1;
        Ok::<_, ()>(of(reads, 0))
    };
    assert_eq!(read_clock(get, looks, || 0).unwrap().clock, 3);
    // KVM says both.
    let mut reads = 0;
    let get = || {
        reads += 1;
        let all = KVM_CLOCK_HOST_TSC | KVM_CLOCK_REALTIME;
        Ok::<_, ()>(kvm_clock_data { realtime: 5, host_tsc: 6, ..of(1, all) })
    };
    let mut late = 0;
    let late = || {
        late += 1_000_000;
        late
    };
    let data = read_clock(get, late, || 0).unwrap();
    assert_eq!((data.realtime, data.host_tsc, reads), (5, 6, 1));
}

#[test]
fn the_clock_is_set_again_after_a_pause() {
    let at = |clock, realtime| ClockState {
        data: kvm_clock_data { clock, realtime, ..Default::default() },
        boot_id: [0; 16],
    };
    let saved = at(1_000_000, 50_000_000);
    // What there is after each try: 2 ms behind, then close.
    let mut tries = [at(1_500_000, 52_500_000), at(4_500_000, 53_510_000)].into_iter();
    let now = until_close(&saved, || Ok::<_, ()>(tries.next().expect("two tries"))).unwrap();
    assert_eq!(now, at(4_500_000, 53_510_000));
    // 1 ms behind is not close at first, but after so many tries.
    let mut count = 0;
    let behind = || {
        count += 1;
        Ok::<_, ()>(at(1_000_000, 51_000_000))
    };
    until_close(&saved, behind).unwrap();
    assert_eq!(count, 7, "20 us doubled six times");
    // It never is: that ends too.
    let mut count = 0;
    let never = || {
        count += 1;
        Ok::<_, ()>(at(1_000_000, 60_000_000))
    };
    until_close(&saved, never).unwrap();
    assert_eq!(count, TRIES);
}
