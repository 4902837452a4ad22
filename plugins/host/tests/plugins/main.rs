//! Real plugins, in C and in Rust, honest and not, loaded and driven.
#![allow(
    clippy::single_range_in_vec_init,
    clippy::reversed_empty_ranges,
    reason = "lists of one range, and ranges that are wrong, are meant"
)]

mod bed;
mod callbacks;
mod counter;
mod fuzzed;
mod gates;
mod lies;
mod load;
mod logs;
mod migrate;
mod peers;
mod pins;
mod stuck;
mod tracked;
