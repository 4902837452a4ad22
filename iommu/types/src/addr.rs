//! Addresses and requester ids, one type each, so that none can stand in for another.

use std::fmt;

/// Log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in the page that dirty state is kept for.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// The bits of an address inside its page.
pub const PAGE_MASK: u64 = PAGE_SIZE - 1;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// The first byte of page number `page`; `None` if that does not fit 64 bits.
            #[must_use]
            pub const fn from_page(page: u64) -> Option<Self> {
                if page > u64::MAX >> PAGE_SHIFT { None } else { Some(Self(page << PAGE_SHIFT)) }
            }

            /// The number of the page that holds this address.
            #[must_use]
            pub const fn page(self) -> u64 {
                self.0 >> PAGE_SHIFT
            }

            /// Bytes from the start of the page to this address.
            #[must_use]
            pub const fn page_offset(self) -> u64 {
                self.0 & PAGE_MASK
            }

            /// True on a page's first byte.
            #[must_use]
            pub const fn is_page_aligned(self) -> bool {
                self.page_offset() == 0
            }

            /// The first byte of the page that holds this address.
            #[must_use]
            pub const fn page_start(self) -> Self {
                Self(self.0 & !PAGE_MASK)
            }

            /// This address plus `bytes`; `None` if it wraps.
            #[must_use]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

address! {
    /// I/O virtual address: what a device puts on the bus. In bytes.
    Iova
}
address! {
    /// Guest physical address: what dirty state is kept by. In bytes.
    Gpa
}
address! {
    /// Output address of the second stage: byte offset into the one mapping of guest RAM.
    ///
    /// The host virtual address is that mapping's base plus this offset, so a wrong entry can at
    /// worst be out of bounds, never a wild pointer.
    Oa
}

/// A number of pages of [`PAGE_SIZE`] bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageCount(pub u64);

impl PageCount {
    /// The pages in bytes; saturates.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0.saturating_mul(PAGE_SIZE)
    }

    /// The pages needed for this many bytes, the last one perhaps in part.
    #[must_use]
    pub const fn covering(bytes: u64) -> Self {
        Self(bytes.div_ceil(PAGE_SIZE))
    }
}

impl fmt::Display for PageCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl std::ops::Add for PageCount {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl std::ops::AddAssign for PageCount {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

/// Requester id of a PCI function: bus in bits 15:8, device in 7:3, function in 2:0.
///
/// Displays as `bb:dd.f`, as lspci does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rid(pub u16);

impl Rid {
    /// The id of a function; `None` if `device` is over 31 or `function` over 7.
    #[must_use]
    pub const fn new(bus: u8, device: u8, function: u8) -> Option<Self> {
        if device > 31 || function > 7 {
            return None;
        }
        Some(Self(((bus as u16) << 8) | ((device as u16) << 3) | function as u16))
    }

    /// Bus number.
    #[must_use]
    pub const fn bus(self) -> u8 {
        self.0.to_be_bytes()[0]
    }

    /// Device number, 0 to 31.
    #[must_use]
    pub const fn device(self) -> u8 {
        self.0.to_be_bytes()[1] >> 3
    }

    /// Function number, 0 to 7.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.0.to_be_bytes()[1] & 7
    }
}

impl fmt::Display for Rid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{:x}", self.bus(), self.device(), self.function())
    }
}
