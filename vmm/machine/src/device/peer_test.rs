//! Devices that write to each other, with devices that fail at will.

use std::sync::Arc;
use std::time::Duration;

use drogher_plugin_host::PeerWrite;

use crate::device::DeviceError;
use crate::device::fake::lock;
use crate::device::testing::{ALL, BELL, Can, LETTERS, Rig, letter_sum, wait};

/// Two devices that may write to each other, running and set up.
fn pair() -> Rig {
    let rig = stopped();
    rig.run();
    rig.drive(1);
    rig.drive(2);
    rig
}

fn stopped() -> Rig {
    let rig = Rig::new(&[ALL, ALL]);
    rig.set.allow_peer(0, 1).expect("two devices");
    rig.set.allow_peer(1, 0).expect("two devices");
    rig
}

/// Device `from` sends letters to the other; all are taken.
fn send(rig: &Rig, from: usize, letters: std::ops::Range<u64>) {
    let to = rig.bar(2 - from as u32, 0) + LETTERS;
    for letter in letters {
        let sent = rig.fakes[from].peer(to, &letter.to_le_bytes());
        assert_eq!(sent, Some(PeerWrite::Taken), "letter {letter}");
    }
}

fn got(rig: &Rig, index: usize, letters: std::ops::Range<u64>) -> bool {
    rig.fakes[index].letters() == (letters.end - letters.start, letter_sum(letters))
}

/// Moves all to a new machine, which runs on return.
fn migrate(from: &Rig) -> Rig {
    let to = stopped();
    from.stop();
    to.arrive(&from.state(), &from.set.save());
    to.run();
    to
}

#[test]
fn a_write_arrives_cut_in_order_and_rings_the_doorbell() {
    let rig = pair();
    let to = rig.bar(2, 0);
    for (at, data) in [(3, vec![1; 7]), (16, vec![2; 8]), (BELL, vec![0; 4]), (17, vec![3])] {
        assert_eq!(rig.fakes[0].peer(to + at, &data), Some(PeerWrite::Taken));
    }
    wait("all of it", || rig.fakes[1].writes().len() == 5);
    let expected: [(u64, &[u8]); 5] =
        [(3, &[1]), (4, &[1; 4]), (8, &[1; 2]), (16, &[2; 8]), (17, &[3])];
    let expected = expected.map(|(at, data)| (at, data.to_vec()));
    assert_eq!(rig.fakes[1].writes(), expected);
    wait("the doorbell", || rig.fakes[1].rung() == [0]);
    assert!(rig.fakes[0].writes().is_empty());
    let counts = rig.set.devices()[1].peer_counts();
    assert_eq!((counts.taken, counts.delivered, counts.dropped), (4, 4, 0));
}

#[test]
fn only_another_devices_decoded_bar_is_reached() {
    let rig = pair();
    let (own, other, table) = (rig.bar(1, 0), rig.bar(2, 0), rig.bar(2, 4));
    let write = |at: u64, data: &[u8]| rig.fakes[0].peer(at, data).expect("it runs");
    assert_eq!(write(own, &[1]), PeerWrite::NotAPeer, "its own");
    assert_eq!(write(table, &[1; 4]), PeerWrite::NotAPeer, "an MSI-X table");
    assert_eq!(write(other + 0xffc, &[1; 8]), PeerWrite::NotAPeer, "across the end");
    assert_eq!(write(0xe800_0000, &[1]), PeerWrite::NotAPeer, "nobody is there");
    assert_eq!(write(other, &[1]), PeerWrite::Taken);
    rig.config_write(2, 4, 4);
    assert_eq!(write(other, &[1]), PeerWrite::NotAPeer, "not decoded");
}

#[test]
fn nobody_may_without_being_allowed() {
    let rig = Rig::new(&[ALL, ALL, ALL]);
    rig.set.allow_peer(0, 1).expect("two devices");
    rig.run();
    (1..=3).for_each(|slot| rig.drive(slot));
    let bar = |index: usize| rig.bar(index as u32 + 1, 0);
    let write = |from: usize, to: usize| rig.fakes[from].peer(bar(to), &[1]);
    assert_eq!(write(0, 1), Some(PeerWrite::Taken));
    for (from, to) in [(1, 0), (0, 2), (2, 0), (2, 1), (1, 2)] {
        assert_eq!(write(from, to), Some(PeerWrite::NotAllowed), "{from} to {to}");
    }
    let own = rig.set.allow_peer(1, 1).expect_err("itself");
    assert!(matches!(own, DeviceError::OwnPeer { .. }), "{own}");
    let none = rig.set.allow_peer(0, 9).expect_err("no such device");
    assert!(matches!(none, DeviceError::NoDevice(9)), "{none}");
}

/// Caught mutant: `no-grace-phase`.
#[test]
fn what_is_under_way_at_the_stop_arrives_before_it() {
    let rig = pair();
    let shut = lock(&rig.fakes[1].door);
    send(&rig, 0, 0..100);
    assert!(rig.fakes[1].writes().is_empty());
    let to = std::thread::scope(|scope| {
        let migrated = scope.spawn(|| migrate(&rig));
        // The stop has begun, finds everything still on its way, and waits for it. What is let go before
        // that may arrive by itself.
        let inbox = rig.set.devices()[1].inbox.get().expect("it has one");
        wait("the grace phase", || inbox.awaited());
        drop(shut);
        migrated.join().expect("it migrates")
    });
    assert!(got(&to, 1, 0..100), "{:?}", to.fakes[1].letters());
    send(&to, 0, 0..10);
    send(&to, 1, 0..10);
    wait("letters", || got(&to, 0, 0..10));
}

#[test]
fn the_grace_phase_lasts_until_the_last_call_has_returned() {
    let rig = pair();
    let shut = lock(&rig.fakes[1].door);
    send(&rig, 0, 0..1);
    // Out of the queue, and in the call.
    let error = rig.set.grace_of(Duration::from_millis(50)).expect_err("it is not there yet");
    let text = error.to_string();
    assert!(text.starts_with("00:02.0 test.fake has not got 1 writes"), "{text}");
    drop(shut);
    rig.set.grace_of(Duration::from_secs(20)).expect("now it is");
    assert!(got(&rig, 1, 0..1));
}

#[test]
fn a_device_is_not_saved_without_what_was_sent_to_it() {
    let rig = pair();
    // The last moment before it stops, as without a grace phase.
    rig.set.devices()[1].inbox.get().expect("it has one").hold();
    send(&rig, 0, 0..2);
    rig.set.to_stop().expect("stopped");
    let mut buf = [0; 256];
    let error = rig.set.stop_copy_read(1, &mut buf).expect_err("letters wait");
    assert!(matches!(error, DeviceError::Undelivered { writes: 2, .. }), "{error}");
    rig.run();
    wait("the letters", || got(&rig, 1, 0..2));
}

#[test]
fn a_rollback_opens_the_gates_again() {
    let rig = pair();
    send(&rig, 0, 0..5);
    rig.stop();
    assert!(got(&rig, 1, 0..5), "the grace phase is over");
    assert_eq!(rig.fakes[0].peer(rig.bar(2, 0), &[1]), None);
    rig.run();
    send(&rig, 0, 5..9);
    wait("letters", || got(&rig, 1, 0..9));
}

/// Each letter is passed on in the call that brings it, for ever: nothing recurses, nothing waits for
/// itself, and what there is no room for is refused.
#[test]
fn a_to_b_to_a_neither_recurses_nor_deadlocks_with_full_queues() {
    let rig = pair();
    let (first, second) = (rig.bar(1, 0) + LETTERS, rig.bar(2, 0) + LETTERS);
    rig.fakes[0].pass_on(second);
    rig.fakes[1].pass_on(first);
    let (shut, closed) = (lock(&rig.fakes[0].door), lock(&rig.fakes[1].door));
    let fill = |from: usize, to: u64| {
        // One is in a call, where it stays; then the queue is filled.
        send(&rig, from, 0..1);
        let target = &rig.set.devices()[1 - from];
        wait("the call", || target.inbox.get().expect("it has one").delivers());
        let mut sent = 1_u64;
        while rig.fakes[from].peer(to, &sent.to_le_bytes()) == Some(PeerWrite::Taken) {
            sent += 1;
        }
        sent
    };
    let (to_second, to_first) = (fill(0, second), fill(1, first));
    assert!(to_second > 100 && to_first > 100, "{to_second} {to_first}");
    assert_eq!(rig.fakes[0].peer(second, &[1; 8]), Some(PeerWrite::Full));
    assert_eq!(rig.fakes[0].peer(second, &[]), Some(PeerWrite::Taken), "only asked");
    drop((shut, closed));
    let both = || (rig.fakes[0].letters().0, rig.fakes[1].letters().0);
    wait("both go on", || {
        let (a, b) = both();
        a > 3 * to_first && b > 3 * to_second
    });
    // It ends when they may send no more.
    rig.set.to_p2p_and_ndma().expect("quiet");
    let (a, b) = (rig.set.devices()[0].peer_counts(), rig.set.devices()[1].peer_counts());
    assert_eq!((a.taken, b.taken), (a.delivered, b.delivered));
    assert_eq!((a.delivered, b.delivered), both());
    // What was refused was refused, and nothing else is missing.
    let refused = rig.fakes.iter().map(|fake| fake.not_passed_on() as u64).sum::<u64>();
    assert_eq!(a.taken + b.taken, to_first + to_second + both().0 + both().1 - refused);
}

#[test]
fn a_device_in_error_takes_nothing_and_holds_nobody_up() {
    let rig = pair();
    let shut = lock(&rig.fakes[1].door);
    send(&rig, 0, 0..50);
    rig.fakes[1].break_down("burned");
    drop(shut);
    let counts = || rig.set.devices()[1].peer_counts();
    wait("all are dropped", || counts().dropped == 50);
    assert_eq!(rig.fakes[0].peer(rig.bar(2, 0), &[1]), Some(PeerWrite::Closed));
    rig.set.to_p2p_and_ndma().expect("nothing to wait for");
    rig.run_all_but_failed();
    // A reset brings it back.
    rig.set.device(1).expect("there").reset(true).expect("reset");
    rig.drive(2);
    send(&rig, 0, 0..3);
    wait("letters", || got(&rig, 1, 0..3));
}

#[test]
fn a_reset_drops_what_waits() {
    let rig = pair();
    let shut = lock(&rig.fakes[1].door);
    send(&rig, 0, 0..50);
    std::thread::scope(|scope| {
        let reset = scope.spawn(|| rig.set.device(1).expect("there").reset(true));
        let counts = || rig.set.devices()[1].peer_counts();
        // One may be in its call already.
        wait("the queue is dropped", || counts().dropped >= 49);
        drop(shut);
        reset.join().expect("no panic").expect("reset");
    });
    assert_eq!(rig.fakes[1].letters().0, 0, "all came before, or not at all");
    rig.drive(2);
    send(&rig, 0, 0..3);
    wait("letters", || got(&rig, 1, 0..3));
}

#[test]
fn a_device_that_does_not_come_up_takes_nothing_and_holds_nobody_up() {
    let rig = pair();
    rig.fakes[1].refuse("RUNNING");
    rig.set.device(1).expect("there").reset(true).expect_err("it does not run on");
    rig.drive(2);
    let letter = || rig.fakes[0].peer(rig.bar(2, 0) + LETTERS, &[1; 8]);
    assert_eq!(letter(), Some(PeerWrite::Closed));
    rig.stop();
    rig.run_all_but_failed();
    assert_eq!(letter(), Some(PeerWrite::Closed));
    rig.stop();
    rig.fakes[1].forgive();
    rig.run();
    assert_eq!(letter(), Some(PeerWrite::Taken));
}

#[test]
fn a_device_without_p2p_states_that_may_write_is_a_blocker() {
    let plain = Can { p2p: false, ..ALL };
    let rig = Rig::new(&[plain, ALL]);
    rig.set.allow_peer(1, 0).expect("two devices");
    assert!(rig.set.blockers().is_empty(), "it may only be written to");
    rig.set.allow_peer(0, 1).expect("two devices");
    let blockers = rig.set.blockers();
    let said: Vec<_> = blockers.iter().map(|blocker| blocker.device.as_deref()).collect();
    assert_eq!(said, [Some("00:01.0 test.fake")], "{blockers:?}");
    assert!(blockers[0].reason.contains("P2P"), "{blockers:?}");
}

#[test]
fn the_threads_end_with_the_set() {
    let rig = pair();
    send(&rig, 0, 0..10);
    let fake = Arc::downgrade(&rig.fakes[1]);
    drop(rig);
    wait("everything is gone", || fake.upgrade().is_none());
}

#[test]
fn pairs_are_named_by_vm_peers() {
    let keys = ["vm.name=a,vm.peers=b", "vm.name=b,vm.peers=a", "vm.peers=a+b"];
    let rig = Rig::with_keys(&[ALL, ALL, ALL], &keys);
    rig.run();
    (1..=3).for_each(|slot| rig.drive(slot));
    let write = |from: usize, to: u32| rig.fakes[from].peer(rig.bar(to + 1, 0), &[1]);
    for (from, to) in [(0, 1), (1, 0), (2, 0), (2, 1)] {
        assert_eq!(write(from, to), Some(PeerWrite::Taken), "{from} to {to}");
    }
    for (from, to) in [(0, 2), (1, 2)] {
        assert_eq!(write(from, to), Some(PeerWrite::NotAllowed), "{from} to {to}");
    }
}

#[test]
fn a_peer_that_there_is_not_is_refused_by_name() {
    let refused =
        |keys: &[&str]| Rig::try_with_keys(&[ALL, ALL], keys).err().expect("no such peer");
    let error = refused(&["vm.name=a,vm.peers=nonsuch", "vm.name=b"]);
    let text = error.to_string();
    let expected = "00:01.0 test.fake (a): vm.peers names \"nonsuch\"";
    assert!(text.starts_with(expected) && text.ends_with("are: a, b"), "{text}");
    let error = refused(&["vm.name=a,vm.peers=a"]);
    assert!(matches!(error, DeviceError::OwnPeer { .. }), "{error}");
}
