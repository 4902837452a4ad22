//! The first thing that went wrong, whichever processor met it. It is printed by the first.

use core::cell::UnsafeCell;
use core::fmt::{Arguments, Write};
use core::sync::atomic::{AtomicU8, Ordering};

const NONE: u8 = 0;
const WRITING: u8 = 1;
const SET: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(NONE);
static TEXT: Text = Text(UnsafeCell::new(Buffer { bytes: [0; 400], used: 0 }));

struct Text(UnsafeCell<Buffer>);

// SAFETY: written by whoever moved STATE from NONE to WRITING, read once STATE is SET.
unsafe impl Sync for Text {}

struct Buffer {
    bytes: [u8; 400],
    used: usize,
}

impl Write for Buffer {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        // What does not fit is cut: the beginning says what is wrong.
        for (place, byte) in self.bytes.iter_mut().skip(self.used).zip(text.bytes()) {
            *place = byte;
            self.used += 1;
        }
        Ok(())
    }
}

/// Keeps `what` if it is the first; every processor stops writing when it next looks.
pub fn fail(what: Arguments) {
    if STATE.compare_exchange(NONE, WRITING, Ordering::Acquire, Ordering::Relaxed).is_ok() {
        // SAFETY: only the one that moved STATE comes here, and readers wait for SET.
        let _ = unsafe { &mut *TEXT.0.get() }.write_fmt(what);
        STATE.store(SET, Ordering::Release);
    }
}

/// Whether something has gone wrong.
pub fn failed() -> bool {
    STATE.load(Ordering::Relaxed) != NONE
}

/// What went wrong first.
pub fn text() -> Option<&'static str> {
    (STATE.load(Ordering::Acquire) == SET).then(|| {
        // SAFETY: SET means that the text is not written any more.
        let text = unsafe { &*TEXT.0.get() };
        text.bytes.get(..text.used).and_then(|bytes| str::from_utf8(bytes).ok()).unwrap_or("?")
    })
}
