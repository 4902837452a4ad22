//! The dispute of 2021 on who tracks the pages that devices dirty, row by row: 34 positions and the
//! 7 steps of a migration, a test each. `iommu/DESIGN.md` has the table of rows, positions and tests.

#[path = "../../iommu/tracking/tests/common/mod.rs"]
mod common;
mod moving;

mod allocations;
mod chooses;
mod dirty;
mod granularity;
mod steps;
mod trigger;
