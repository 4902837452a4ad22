//! The probe guest, embedded as a PVH ELF, and what a host needs to talk to it.
//!
//! * [`ELF`] is the guest image: load it with any PVH loader (`linux-loader`, `qemu -kernel`).
//! * [`Options`] is its kernel command line: `Options { rate: 5000, ..Options::default() }.to_string()`.
//! * [`Line`], [`Status`] and [`Console`] read what it prints on COM1.
//!
//! The guest's sources are in `guest/`; [`logic`] is compiled into both the guest and this
//! library, so that its unit tests run on the host. `DESIGN.md` holds the command line's grammar,
//! the format of each line and how the guest is arranged.

pub mod console;
pub mod line;
pub mod logic;

pub use console::Console;
pub use line::{Blackout, Bye, Hello, Line, Status};
pub use logic::options::{Action, BadOption, Dma, Idle, Options, RATE_MAX, Trigger};

/// The guest: a static x86-64 ELF with a PVH entry (`XEN_ELFNOTE_PHYS32_ENTRY`), loaded at 1 MiB.
pub static ELF: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/probe.elf"));
