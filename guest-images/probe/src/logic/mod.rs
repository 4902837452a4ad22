//! What the guest decides and checks, apart from the machine that it runs on.
//!
//! Core-only and free of `unsafe`: `guest/main.rs` includes this folder by path, and the host
//! runs its unit tests.

pub mod checksum;
pub mod heartbeat;
pub mod options;
pub mod pace;
pub mod pattern;
pub mod plan;
