//! What watches a migration on its own thread: test hooks, and whoever wants the events.

use std::os::unix::net::UnixStream;

use drogher_migrate::link::Hooks;
use drogher_migrate::phase::{Phase, Side};
use drogher_migrate::report::Event;

use super::hook::TestHooks;

/// Hands events to a sink, and phases to the test hooks that the environment names.
pub struct Watch {
    sink: Box<dyn FnMut(&Event) + Send>,
    hooks: TestHooks,
    link: Option<UnixStream>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("hooks", &self.hooks).finish_non_exhaustive()
    }
}

impl Watch {
    /// Sends events to `sink`, which is called during the downtime as well: it has to be short.
    #[must_use]
    pub fn new(hooks: TestHooks, sink: impl FnMut(&Event) + Send + 'static) -> Self {
        Self { sink: Box::new(sink), hooks, link: None }
    }

    /// The connection that the hook `cut` cuts.
    pub(super) fn cuts(&mut self, link: UnixStream) {
        self.link = Some(link);
    }
}

impl Hooks for Watch {
    fn reached(&mut self, side: Side, phase: Phase) {
        self.hooks.reached(side, phase, self.link.as_ref());
    }

    fn event(&mut self, event: &Event) {
        (self.sink)(event);
    }
}
