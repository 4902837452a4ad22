//! The ports of one device, and the wires in them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use drogher_plugin_host::{Received, Wires};

use crate::inbox::Bell;
use crate::loopback::Loopback;
use crate::tap::TapWire;
use crate::unix::UnixWire;
use crate::wire::NoWire;
use crate::{Inbox, Pcap, Wire, WireError, WireSpec};

/// What became of the frames of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WireCounts {
    /// Sent by the device and taken by the wire.
    pub sent: u64,
    /// Sent by the device and dropped.
    pub sent_dropped: u64,
    /// Come from the wire.
    pub arrived: u64,
    /// Come from the wire and dropped, for want of room or a good length.
    pub arrived_dropped: u64,
}

struct Port {
    spec: WireSpec,
    wire: Box<dyn Wire>,
    inbox: Arc<Inbox>,
    sent: AtomicU64,
    dropped: AtomicU64,
}

/// The ports of one device. Made idle; [`activate`](Self::activate) lets frames pass.
pub struct Ports {
    ports: Vec<Port>,
    bell: Arc<Bell>,
    capture: Option<Arc<Pcap>>,
}

impl std::fmt::Debug for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ports").field("ports", &self.ports.len()).finish_non_exhaustive()
    }
}

impl Ports {
    /// Prepares a wire for each port, and the capture of all of them; with `create` a capture that is
    /// not there is made. No frame passes yet.
    ///
    /// # Errors
    /// The first thing that cannot be had.
    pub fn prepare(
        wires: &[WireSpec],
        capture: Option<&PathBuf>,
        create: bool,
    ) -> Result<Self, WireError> {
        let bell = Arc::new(Bell::default());
        let capture = capture.map(|path| Pcap::open(path, create)).transpose()?.map(Arc::new);
        let port = |spec: &WireSpec| {
            let wire: Box<dyn Wire> = match spec {
                WireSpec::None => Box::new(NoWire),
                WireSpec::Loopback => Box::new(Loopback::default()),
                WireSpec::Unix(path) => Box::new(UnixWire::new(path.clone())),
                WireSpec::Tap(name) => Box::new(TapWire::new(name.clone())),
            };
            wire.prepare()?;
            let inbox = Arc::new(Inbox::new(Arc::clone(&bell), capture.clone()));
            Ok(Port {
                spec: spec.clone(),
                wire,
                inbox,
                sent: AtomicU64::new(0),
                dropped: AtomicU64::new(0),
            })
        };
        let ports = wires.iter().map(port).collect::<Result<_, _>>()?;
        Ok(Self { ports, bell, capture })
    }

    /// Frames pass from now on. For who holds the right to run the guest.
    pub fn activate(&self) {
        for port in &self.ports {
            port.wire.activate(Arc::clone(&port.inbox));
        }
    }

    /// On return no frame passes. What has arrived before stays.
    pub fn deactivate(&self) {
        for port in &self.ports {
            port.wire.deactivate();
        }
        if let Some(capture) = &self.capture {
            capture.settle();
        }
    }

    /// What became of the frames, by port.
    #[must_use]
    pub fn counts(&self) -> Vec<WireCounts> {
        let count = |port: &Port| {
            let (arrived, arrived_dropped) = port.inbox.counts();
            let (sent, sent_dropped) =
                (port.sent.load(Ordering::Relaxed), port.dropped.load(Ordering::Relaxed));
            WireCounts { sent, sent_dropped, arrived, arrived_dropped }
        };
        self.ports.iter().map(count).collect()
    }

    /// What is in each port.
    pub fn specs(&self) -> impl Iterator<Item = &WireSpec> {
        self.ports.iter().map(|port| &port.spec)
    }

    fn port(&self, port: u32) -> Option<&Port> {
        usize::try_from(port).ok().and_then(|port| self.ports.get(port))
    }
}

impl Drop for Ports {
    fn drop(&mut self) {
        self.deactivate();
    }
}

impl Wires for Ports {
    fn send(&self, port: u32, frame: &[u8]) {
        let Some(port) = self.port(port) else { return };
        if let Some(capture) = &self.capture {
            capture.write(frame);
        }
        let count = if port.wire.send(frame) { &port.sent } else { &port.dropped };
        count.fetch_add(1, Ordering::Relaxed);
    }

    fn receive(&self, port: u32, buffer: &mut [u8]) -> Received {
        self.port(port).map_or(Received::Nothing, |port| port.inbox.take(buffer))
    }

    fn wait(&self, ports: u64, time_out: Duration, passes: &dyn Fn() -> bool) -> u64 {
        self.bell.wait(time_out, || {
            if !passes() {
                return 0;
            }
            let waits = |(number, port): (u32, &Port)| {
                let bit = 1_u64.checked_shl(number).unwrap_or(0) & ports;
                if bit != 0 && !port.inbox.is_empty() { bit } else { 0 }
            };
            (0..).zip(&self.ports).map(waits).fold(0, |all, bit| all | bit)
        })
    }

    fn wake(&self) {
        self.bell.wake();
    }

    fn look(&self) {
        self.bell.look();
    }
}

#[cfg(test)]
#[path = "ports_test.rs"]
mod tests;
