//! The machine under the migration engine: both hosts, the link, and what watches.
//!
//! The engine of `drogher-migrate` decides what happens and when; this module does it to a real
//! machine. `guest` is what a process runs, `source` and `destination` are the engine's hands on
//! it, `describe` is what one side tells the other before anything moves, `digest` is what
//! `--verify` compares.

mod describe;
mod destination;
mod digest;
mod error;
mod guest;
mod hook;
mod offer;
mod socket;
mod source;
mod watch;

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use drogher_migrate::control::Control;
use drogher_migrate::{
    DestinationEnd, DestinationOptions, DestinationOutcome, Env, Error, HeldLease, LinkError,
    Phase, Report, SourceEnd, SourceOptions, SourceOutcome, SystemClock,
};

use crate::tracking::Wishes;

pub use describe::Expectations;
pub use destination::{DestinationGuest, DestinationSetup};
pub use error::HostError;
pub use guest::{DeviceView, Guest, GuestError};
pub use hook::{HookError, TestHooks, VARIABLE as TEST_HOOK_VARIABLE};
pub use socket::SocketLink;
pub use source::SourceGuest;
pub use watch::Watch;

/// Moves `guest` to the process at the other end of `stream`, with this migration's own `wishes` of
/// tracking. Runs on the caller's thread until
/// the guest's fate is decided.
pub fn send(
    guest: &Arc<Guest>,
    stream: UnixStream,
    lease: HeldLease,
    control: &Control,
    mut watch: Watch,
    options: &SourceOptions,
    wishes: &Wishes,
) -> SourceEnd {
    let link = SocketLink::new(stream).and_then(|link| {
        watch.cuts(link.handle()?);
        Ok(link)
    });
    let mut link = match link {
        Ok(link) => link,
        Err(error) => {
            let why = Error::Link { phase: Phase::Setup, source: LinkError::Io(error) };
            return SourceEnd {
                outcome: SourceOutcome::Stays { why },
                lease: Some(lease),
                report: Report::default(),
            };
        }
    };
    let mut host = SourceGuest::new(Arc::clone(guest), wishes.clone());
    let env = Env { clock: &SystemClock, hooks: &mut watch, control };
    let end = drogher_migrate::send(&mut host, &mut link, lease, env, options);
    // It may have ended before its tracking was started.
    guest.tracking().forget();
    end
}

/// Receives the guest that the process at the other end of `stream` sends into `host`.
pub fn receive(
    host: &mut DestinationGuest,
    stream: UnixStream,
    control: &Control,
    mut watch: Watch,
    options: &DestinationOptions,
) -> DestinationEnd {
    let link = SocketLink::new(stream).and_then(|link| {
        watch.cuts(link.handle()?);
        Ok(link)
    });
    let mut link = match link {
        Ok(link) => link,
        Err(error) => {
            let why = Error::Link { phase: Phase::Setup, source: LinkError::Io(error) };
            return DestinationEnd {
                outcome: DestinationOutcome::NotTaken { why },
                lease: None,
                report: Report::default(),
            };
        }
    };
    let env = Env { clock: &SystemClock, hooks: &mut watch, control };
    drogher_migrate::receive(host, &mut link, env, options)
}
