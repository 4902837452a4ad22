//! A plug that gives back what is sent.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{Inbox, Wire, WireError};

/// Its own other end.
#[derive(Debug, Default)]
pub struct Loopback(Mutex<Option<Arc<Inbox>>>);

impl Loopback {
    fn set(&self, inbox: Option<Arc<Inbox>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = inbox;
    }
}

impl Wire for Loopback {
    fn prepare(&self) -> Result<(), WireError> {
        Ok(())
    }

    fn activate(&self, inbox: Arc<Inbox>) {
        self.set(Some(inbox));
    }

    fn deactivate(&self) {
        self.set(None);
    }

    fn send(&self, frame: &[u8]) -> bool {
        let inbox = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        inbox.is_some_and(|inbox| inbox.push(frame))
    }
}
