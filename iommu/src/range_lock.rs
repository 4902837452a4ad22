//! One lock for every range: who holds one keeps out those whose range meets it, and nobody else.
//!
//! First come, first served: a waiter is let in before anyone who came later and meets its range,
//! so that a large range is not kept waiting by small ones for ever. Everyone holds one range at a
//! time, so there is no deadlock; every holder's own waits have deadlines, so there is an end.

use std::ops::Range;

use crate::sync::{Condvar, Mutex, lock, wait};

#[derive(Default)]
pub(crate) struct RangeLock {
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// Holders and waiters, in the order in which they came.
#[derive(Default)]
struct Queue {
    next: u64,
    tickets: Vec<(u64, Range<u64>)>,
    /// Waiters: to wake nobody would cost a system call all the same.
    waiting: usize,
}

impl Queue {
    fn is_first(&self, ticket: u64, range: &Range<u64>) -> bool {
        let mut before = self.tickets.iter().take_while(|(other, _)| *other != ticket);
        !before.any(|(_, other)| other.start < range.end && range.start < other.end)
    }
}

/// A range that is held until this is dropped.
pub(crate) struct Held<'a> {
    lock: &'a RangeLock,
    ticket: u64,
}

impl RangeLock {
    /// Waits until nobody before holds or wants a part of `range`.
    pub(crate) fn lock(&self, range: Range<u64>) -> Held<'_> {
        let mut queue = lock(&self.queue);
        let ticket = queue.next;
        queue.next += 1;
        queue.tickets.push((ticket, range.clone()));
        while !queue.is_first(ticket, &range) {
            queue.waiting += 1;
            queue = wait(&self.changed, queue);
            queue.waiting -= 1;
        }
        Held { lock: self, ticket }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut queue = lock(&self.lock.queue);
        queue.tickets.retain(|(ticket, _)| *ticket != self.ticket);
        let wake = queue.waiting > 0;
        drop(queue);
        if wake {
            self.lock.changed.notify_all();
        }
    }
}
