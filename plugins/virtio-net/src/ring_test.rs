use proptest::prelude::*;

use super::{Broken, Queue};
use crate::testing::{AVAIL, DATA, DESC, MEMORY, Plain, USED, queue};

const NEXT: u16 = 1;
const WRITE: u16 = 2;

#[test]
fn a_chain_is_taken_and_given_back() {
    let (bus, mut queue) = (Plain::new(), queue(4));
    assert_eq!(queue.waiting(&bus), Ok(0));
    bus.desc(3, DATA, 10, NEXT, 1);
    bus.desc(1, DATA + 100, 20, 0, 0);
    bus.offer(&queue, 0, 3);
    assert_eq!(queue.waiting(&bus), Ok(1));
    let chain = queue.look(&bus, 0, false).unwrap();
    assert_eq!((chain.head, chain.segments.len(), chain.len()), (3, 2, 30));
    assert_eq!(queue.give_back(&bus, &[(3, 7)], false), Ok(true));
    assert_eq!((bus.u16(USED + 2), bus.used(&queue, 0)), (1, (3, 7)));
    assert_eq!(queue.waiting(&bus), Ok(0));
    bus.put_u16(AVAIL, 1);
    bus.offer(&queue, 1, 3);
    assert_eq!(queue.give_back(&bus, &[(3, 0)], false), Ok(false), "no interrupt wanted");
}

#[test]
fn indexes_wrap_around() {
    let (bus, mut queue) = (Plain::new(), queue(4));
    (queue.next_avail, queue.next_used) = (0xfffe, 0xfffe);
    bus.desc(0, DATA, 1, 0, 0);
    for index in 0xfffe_u16..=0xffff {
        bus.offer(&queue, index, 0);
    }
    assert_eq!(queue.waiting(&bus), Ok(2));
    assert_eq!(queue.give_back(&bus, &[(0, 0), (0, 0)], false), Ok(true));
    assert_eq!((queue.next_avail, bus.u16(USED + 2)), (0, 0));
}

#[test]
fn what_no_driver_may_do_breaks_the_ring() {
    let broken = |set: &dyn Fn(&Plain)| {
        let (bus, queue) = (Plain::new(), queue(4));
        bus.desc(0, DATA, 10, 0, 0);
        bus.offer(&queue, 0, 0);
        set(&bus);
        queue.waiting(&bus).and_then(|_| queue.look(&bus, 0, false)).unwrap_err()
    };
    assert_eq!(broken(&|bus| bus.put_u16(AVAIL + 2, 5)), Broken::Index(5, 4));
    assert_eq!(broken(&|bus| bus.put_u16(AVAIL + 4, 4)), Broken::Descriptor(4, 4));
    assert_eq!(broken(&|bus| bus.desc(0, DATA, 10, NEXT, 9)), Broken::Descriptor(9, 4));
    assert_eq!(broken(&|bus| bus.desc(0, DATA, 10, NEXT, 0)), Broken::Loop);
    assert_eq!(broken(&|bus| bus.desc(0, DATA, 10, 4, 0)), Broken::Indirect);
    assert_eq!(broken(&|bus| bus.desc(0, DATA, 0, 0, 0)), Broken::Buffer(DATA, 0));
    let end = u64::MAX - 3;
    assert_eq!(broken(&|bus| bus.desc(0, end, 10, 0, 0)), Broken::Buffer(end, 10));
    assert_eq!(broken(&|bus| bus.desc(0, DATA, 10, WRITE, 0)), Broken::Direction);
    let far = Queue { avail: MEMORY as u64, ..queue(4) };
    assert_eq!(far.waiting(&Plain::new()), Err(Broken::Fault));
}

#[test]
fn only_sound_queues_can_be_enabled() {
    assert!(queue(256).is_sound(256));
    for bad in [
        queue(0),
        queue(3),
        queue(512),
        Queue { desc: DESC + 8, ..queue(4) },
        Queue { avail: AVAIL + 1, ..queue(4) },
        Queue { used: USED + 2, ..queue(4) },
        Queue { desc: u64::MAX - 15, ..queue(4) },
        Queue { used: u64::MAX - 3, ..queue(4) },
    ] {
        assert!(!bad.is_sound(256), "{bad:?}");
    }
}

/// The specification's vring_need_event, told in whole numbers: an interrupt if the event lies among
/// those that were given back just now.
#[test]
fn events_are_asked_for_by_index() {
    for (old, count) in [(0_u16, 1_u16), (5, 3), (0xffff, 2)] {
        for event in [old.wrapping_sub(1), old, old.wrapping_add(1), old.wrapping_add(count)] {
            let (bus, mut queue) = (Plain::new(), queue(8));
            (queue.next_avail, queue.next_used) = (old, old);
            bus.put_u16(AVAIL + 4 + 16, event);
            let used = vec![(0, 0); count.into()];
            let wanted = (0..count).any(|given| old.wrapping_add(given) == event);
            assert_eq!(queue.give_back(&bus, &used, true), Ok(wanted), "{old} {count} {event}");
        }
    }
    let (bus, mut queue) = (Plain::new(), queue(8));
    queue.next_avail = 7;
    bus.put_u16(AVAIL + 2, 9);
    assert_eq!(queue.ask(&bus, 2, true), Ok(false));
    assert_eq!(bus.u16(USED + 4 + 64), 9, "ring for the one after the two");
    assert_eq!(queue.ask(&bus, 1, true), Ok(true), "there it is");
}

proptest! {
    /// Any bytes where the rings are: an answer or an error, in bounded time.
    #[test]
    fn any_memory_is_survived(
        bytes in prop::collection::vec(any::<u8>(), 64..512),
        avail in prop::collection::vec(0_u16..6, 12),
        next in any::<u16>(),
        write in any::<bool>(),
    ) {
        let (bus, mut queue) = (Plain::new(), queue(4));
        queue.next_avail = next & 3;
        bus.put(DESC, &bytes);
        for (at, value) in avail.iter().enumerate() {
            bus.put_u16(AVAIL + 2 * at as u64, *value);
        }
        if let Ok(waiting) = queue.waiting(&bus) {
            prop_assert!(waiting <= 4);
            for ahead in 0..waiting {
                if let Ok(chain) = queue.look(&bus, ahead, write) {
                    prop_assert!((1..=4).contains(&chain.segments.len()));
                    prop_assert!(chain.head < 4);
                }
            }
        }
    }
}
