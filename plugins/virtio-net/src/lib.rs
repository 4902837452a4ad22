//! A virtio 1.x network card, modern PCI only, with one receive and one transmit queue.
//!
//! `DESIGN.md` says what it offers and how it is stopped and moved. The files, from the guest inwards:
//! [`device`] (calls in), [`regs`] (registers, by the virtio specification), [`worker`] (the thread and
//! how it is stopped), [`net`] (frames to buffers and back), [`ring`] (a split ring over DMA calls),
//! [`format`] (the saved state), [`params`], [`bus`].
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
pub mod device;
pub mod format;
pub mod net;
pub mod params;
pub mod regs;
pub mod ring;
pub mod worker;

#[cfg(test)]
mod testing;

drogher_plugin_sdk::export_plugin! {
    device: device::VirtioNet,
    id: "org.drogher.virtio-net",
    name: "virtio network card",
    version: env!("CARGO_PKG_VERSION"),
    vendor: "The drogher authors",
    licence: env!("CARGO_PKG_LICENSE"),
}

/// True if the mutant of this name is alive: feature `mutants`, and its name in `DROGHER_MUTANT`.
fn mutant(name: &str) -> bool {
    cfg!(feature = "mutants") && std::env::var("DROGHER_MUTANT").is_ok_and(|alive| alive == name)
}
