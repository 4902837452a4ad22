//! Real plugins, in C and in Rust, honest and not, loaded and driven.

mod bed;
mod callbacks;
mod counter;
mod gates;
mod lies;
mod load;
mod logs;
mod migrate;
mod peers;
mod pins;
mod stuck;
mod tracked;
