//! Plain types shared by the crates of drogher: addresses, requester ids and the dirty bitmap.
//!
//! No dependencies and no I/O. Ranges are half-open everywhere.
#![forbid(unsafe_code)]

mod addr;
mod bitmap;
pub mod mutant;
mod patience;
pub mod plugin;
mod runs;

pub use addr::{Gpa, Iova, Oa, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, PageCount, Rid};
pub use bitmap::{BitmapError, DirtyBitmap};
pub use patience::Patience;
pub use runs::Runs;

#[cfg(test)]
mod addr_test;
#[cfg(test)]
mod bitmap_test;
