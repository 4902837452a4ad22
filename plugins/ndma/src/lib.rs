//! The ndma device: a small DMA engine with a descriptor ring, memory of its own, and a migration
//! that keeps every promise of the plugin interface. Read it first when you write a plugin.
//!
//! `DESIGN.md` is its datasheet. The files, from the guest inwards: [`device`] (calls in), [`regs`]
//! (registers), [`worker`] (the thread and how it is stopped), [`ring`] (one descriptor),
//! [`descriptor`] (layout and checks), [`ops`] (the payload), [`scratch`] (memory on the device),
//! [`window`] (memory for others to write to), [`migrate`], [`save`], [`load`] and [`format`] (the
//! saved state), [`params`], [`bus`], [`tracked`] (the parts that it can play for
//! dirty tracking).
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        reason = "A guest, a peer or a user must not be able to stop the process"
    )
)]

pub mod bus;
pub mod descriptor;
pub mod device;
pub mod format;
pub mod load;
pub mod migrate;
pub mod ops;
pub mod pace;
pub mod params;
pub mod regs;
pub mod ring;
pub mod save;
pub mod scratch;
pub mod tracked;
pub mod window;
pub mod worker;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod trace_test;

drogher_plugin_sdk::export_plugin! {
    device: device::Ndma,
    id: "org.drogher.ndma",
    name: "NDMA engine",
    version: env!("CARGO_PKG_VERSION"),
    vendor: "The drogher authors",
    licence: env!("CARGO_PKG_LICENSE"),
}

/// True if the mutant of this name (a deliberate fault, for proving that a test can fail) is
/// alive: feature `mutants`, and its name in the environment variable `DROGHER_MUTANT`.
fn mutant(name: &str) -> bool {
    cfg!(feature = "mutants") && std::env::var("DROGHER_MUTANT").is_ok_and(|alive| alive == name)
}
