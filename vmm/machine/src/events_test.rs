use super::*;
use std::sync::Arc;

#[test]
fn in_order_and_readable_while_one_waits() {
    let queue = EventQueue::new().expect("an eventfd");
    assert_eq!(queue.wait(Duration::ZERO), None);
    queue.push(GuestEvent::Reset);
    queue.push(GuestEvent::Shutdown);
    assert_eq!(queue.wait(Duration::ZERO), Some(GuestEvent::Reset));
    assert_eq!(queue.fd().read().ok(), Some(2), "still readable");
    assert_eq!(queue.wait(Duration::ZERO), Some(GuestEvent::Shutdown));
    queue.push(GuestEvent::Shutdown);
    assert_eq!(queue.wait(Duration::ZERO), Some(GuestEvent::Shutdown));
    assert!(queue.fd().read().is_err(), "nothing waits");
}

#[test]
fn a_waiter_is_woken() {
    let queue = Arc::new(EventQueue::new().expect("an eventfd"));
    let other = Arc::clone(&queue);
    let waiter = std::thread::spawn(move || other.wait(Duration::from_secs(60)));
    queue.push(GuestEvent::Reset);
    assert_eq!(waiter.join().expect("it ends"), Some(GuestEvent::Reset));
}

#[test]
fn bounded() {
    let queue = EventQueue::new().expect("an eventfd");
    (0..10 * MOST).for_each(|_| queue.push(GuestEvent::Reset));
    let taken = std::iter::from_fn(|| queue.wait(Duration::ZERO)).count();
    assert_eq!(taken, MOST);
}
