//! The process around a machine: its configuration, its control socket, its life and its end.
//!
//! See `DESIGN.md` for how the threads share a guest.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod api;
pub mod client;
pub mod config;
pub mod http;
pub mod lease_path;
pub mod process;
pub mod server;
pub mod socket;
