//! The C header is what this crate says, compiles as C11 and C++17, and has the same sizes, offsets
//! and values there.
//!
//! `DROGHER_BLESS=1 cargo test -p drogher-plugin-abi` writes the header anew.

mod compile;
mod generate;
mod layout;
