//! Payloads of fixed layout.

use super::{At, WireError};

/// `N` bytes from `at` on; zeroes where there are none.
pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    if let Some(from) = bytes.get(at..at + N) {
        out.copy_from_slice(from);
    }
    out
}

/// Puts a field at `at`, if there is room.
pub(crate) fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + field.len()) {
        place.copy_from_slice(field);
    }
}

macro_rules! message {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub(crate) struct $name {
            $($(#[$fdoc])* pub(crate) $field: $ty,)*
        }

        impl $name {
            /// Bytes of the payload.
            pub(crate) const BYTES: usize = 0 $(+ size_of::<$ty>())*;

            /// The payload.
            pub(crate) fn encode(&self) -> [u8; Self::BYTES] {
                let mut bytes = [0; Self::BYTES];
                let mut from = 0;
                $(
                    put(&mut bytes, from, &self.$field.to_le_bytes());
                    from += size_of::<$ty>();
                )*
                let _ = from;
                bytes
            }

            /// Reads it from the front of `bytes`; the rest is returned too.
            pub(crate) fn split(bytes: &[u8], at: At) -> Result<(Self, &[u8]), WireError> {
                let size = || WireError::Size {
                    at,
                    what: concat!(stringify!($name), " fields"),
                    length: bytes.len(),
                };
                let (head, tail) = bytes.split_at_checked(Self::BYTES).ok_or_else(size)?;
                let mut from = 0;
                $(
                    let $field = <$ty>::from_le_bytes(array(head, from));
                    from += size_of::<$ty>();
                )*
                let _ = from;
                Ok((Self { $($field,)* }, tail))
            }

            /// Reads a payload that is nothing else.
            #[allow(dead_code, reason = "messages with a tail do not use it")]
            pub(crate) fn decode(bytes: &[u8], at: At) -> Result<Self, WireError> {
                match Self::split(bytes, at)? {
                    (message, []) => Ok(message),
                    _ => Err(WireError::Size {
                        at,
                        what: concat!(stringify!($name), " fields"),
                        length: bytes.len(),
                    }),
                }
            }
        }
    };
}

message! {
    /// The source has reached a phase.
    PhaseReached {
        /// `Phase` as a number.
        phase: u32,
        /// The round.
        round: u32,
    }
}
message! {
    /// Before a piece of a device's state.
    DeviceData {
        /// Index of the device in the configuration block.
        device: u32,
        /// Zero.
        reserved: u32,
    }
}
message! {
    /// A device's state is complete.
    DeviceEnd {
        /// Index of the device in the configuration block.
        device: u32,
        /// Zero.
        reserved: u32,
        /// Bytes of its state in all.
        total: u64,
        /// Hash of them in order.
        hash: u64,
    }
}
message! {
    /// A round has been sent.
    Sync {
        /// Its number.
        round: u32,
        /// Zero.
        reserved: u32,
    }
}
message! {
    /// The answer to a sync.
    Synced {
        /// The round.
        round: u32,
        /// Zero.
        reserved: u32,
        /// Time that the destination worked on the end of the round, in microseconds.
        busy_us: u64,
    }
}
message! {
    /// All has been sent.
    Handover {
        /// Epoch in which the guest was stopped.
        epoch: u64,
        /// Bit 0: the user had paused the VM. Bit 1: verify.
        flags: u64,
        /// Bytes of machine state.
        machine_bytes: u64,
        /// Hash of them.
        machine_hash: u64,
    }
}
message! {
    /// Before hashes of pages.
    Digests {
        /// The first page.
        first: u64,
    }
}
message! {
    /// Before the name of a part of the state.
    StateHash {
        /// Its hash.
        hash: u64,
    }
}
message! {
    /// An epoch: ready to run on from it, or committed to it.
    Epoch {
        /// The epoch.
        epoch: u64,
    }
}
message! {
    /// The configuration is accepted.
    Accept {
        /// The optional features chosen.
        features: u64,
    }
}
message! {
    /// The guest runs at the destination.
    Running {
        /// The epoch that it runs in.
        epoch: u64,
        /// When it ran, on the host's monotonic clock, in nanoseconds.
        at_ns: u64,
    }
}

/// The VM arrives paused.
pub(crate) const HANDOVER_PAUSED: u64 = 1;
/// Both sides hash and compare before READY.
pub(crate) const HANDOVER_VERIFY: u64 = 2;
