use super::{HEADER_BYTES, Options, Step, receive, transmit};
use crate::ring::Broken;
use crate::testing::{AVAIL, DATA, Plain, USED, queue};

const PLAIN: Options = Options { event_idx: false, merge: false };
const MERGE: Options = Options { event_idx: false, merge: true };
const NEXT: u16 = 1;
const WRITE: u16 = 2;

#[test]
fn a_frame_goes_out_however_it_lies() {
    let (bus, mut queue) = (Plain::new(), queue(8));
    let bytes: Vec<u8> = (0..80).map(|byte| if byte < 12 { 0 } else { byte }).collect();
    bus.put(DATA, &bytes);
    // In one buffer; header apart; cut inside the header.
    bus.desc(0, DATA, 80, 0, 0);
    bus.desc(1, DATA, 12, NEXT, 2);
    bus.desc(2, DATA + 12, 68, 0, 0);
    bus.desc(3, DATA, 5, NEXT, 4);
    bus.desc(4, DATA + 5, 75, 0, 0);
    for (index, head) in [0, 1, 3].into_iter().enumerate() {
        bus.offer(&queue, index as u16, head);
        assert_eq!(transmit(&bus, &mut queue, PLAIN), Ok(Step::Done { irq: true }));
        assert_eq!(bus.used(&queue, index as u16), (head.into(), 0));
    }
    assert_eq!(*bus.sent.lock().unwrap(), vec![bytes[12..].to_vec(); 3]);
    assert_eq!(transmit(&bus, &mut queue, PLAIN), Ok(Step::Idle));
}

#[test]
fn what_is_no_frame_is_given_back_unsent() {
    let (bus, mut queue) = (Plain::new(), queue(8));
    bus.desc(0, DATA, (HEADER_BYTES + 13) as u32, 0, 0);
    bus.desc(1, DATA, u32::MAX, 0, 0);
    bus.put(DATA + 100, &[0, 1]);
    bus.desc(2, DATA + 100, 80, 0, 0);
    for head in 0..3 {
        bus.offer(&queue, head, head);
        assert_eq!(transmit(&bus, &mut queue, PLAIN), Ok(Step::Done { irq: true }));
    }
    assert!(bus.sent.lock().unwrap().is_empty(), "too short, too long, with an offload");
    bus.desc(3, DATA, 80, WRITE, 0);
    bus.offer(&queue, 3, 3);
    assert_eq!(transmit(&bus, &mut queue, PLAIN), Err(Broken::Direction));
    assert_eq!(bus.u16(USED + 2), 3);
}

#[test]
fn a_frame_comes_into_one_buffer() {
    let (bus, mut queue) = (Plain::new(), queue(4));
    let frame = [7; 60];
    assert_eq!(receive(&bus, &mut queue, PLAIN, &frame), Ok(None), "no buffer yet");
    bus.desc(0, DATA, 12, NEXT | WRITE, 1);
    bus.desc(1, DATA + 500, 100, WRITE, 0);
    bus.offer(&queue, 0, 0);
    assert_eq!(receive(&bus, &mut queue, PLAIN, &frame), Ok(Some(Step::Done { irq: true })));
    assert_eq!(bus.used(&queue, 0), (0, 72));
    assert_eq!(bus.bytes(DATA, 13), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]);
    assert_eq!(bus.bytes(DATA + 500, 61), [&frame[..], &[0]].concat());
    bus.desc(2, DATA, 71, WRITE, 0);
    bus.offer(&queue, 1, 2);
    assert_eq!(receive(&bus, &mut queue, PLAIN, &frame), Ok(Some(Step::Done { irq: true })));
    assert_eq!(bus.used(&queue, 1), (2, 0), "too small: dropped");
}

#[test]
fn a_frame_is_spread_over_buffers_that_are_given_back_at_once() {
    let (bus, mut queue) = (Plain::new(), queue(4));
    let frame: Vec<u8> = (0..100).collect();
    for index in 0..4 {
        bus.desc(index, DATA + 64 * u64::from(index), 40, WRITE, 0);
    }
    bus.offer(&queue, 0, 2);
    bus.offer(&queue, 1, 0);
    assert_eq!(receive(&bus, &mut queue, MERGE, &frame), Ok(None), "room for 80 of 112");
    assert_eq!(bus.u16(USED + 2), 0);
    bus.offer(&queue, 2, 1);
    assert_eq!(receive(&bus, &mut queue, MERGE, &frame), Ok(Some(Step::Done { irq: true })));
    assert_eq!(bus.u16(USED + 2), 3);
    let used: Vec<_> = (0..3).map(|index| bus.used(&queue, index)).collect();
    assert_eq!(used, [(2, 40), (0, 40), (1, 32)]);
    assert_eq!(bus.bytes(DATA + 128, 12)[10..], [3, 0], "three buffers");
    let found = [bus.bytes(DATA + 140, 28), bus.bytes(DATA, 40), bus.bytes(DATA + 64, 32)].concat();
    assert_eq!(found, frame);
}

#[test]
fn a_frame_that_never_fits_is_dropped() {
    let (bus, mut queue) = (Plain::new(), queue(2));
    bus.desc(0, DATA, 40, WRITE, 0);
    bus.offer(&queue, 0, 0);
    bus.offer(&queue, 1, 0);
    assert_eq!(receive(&bus, &mut queue, MERGE, &[7; 100]), Ok(Some(Step::Idle)));
    assert_eq!((bus.u16(USED + 2), queue.next_avail), (0, 0), "its buffers are for the next");
    bus.put_u16(AVAIL + 2, 9);
    assert!(receive(&bus, &mut queue, MERGE, &[7; 60]).is_err());
}

/// Or it would stand in the way of all others for ever.
#[test]
fn nor_does_it_wait_where_one_chain_has_all_descriptors() {
    let (bus, mut queue) = (Plain::new(), queue(2));
    bus.desc(0, DATA, 40, NEXT | WRITE, 1);
    bus.desc(1, DATA + 40, 40, WRITE, 0);
    bus.offer(&queue, 0, 0);
    assert_eq!(receive(&bus, &mut queue, MERGE, &[7; 100]), Ok(Some(Step::Idle)));
    assert_eq!(receive(&bus, &mut queue, MERGE, &[8; 60]), Ok(Some(Step::Done { irq: true })));
    assert_eq!(bus.used(&queue, 0), (0, 72));
}
