//! Tracking of the DMA of a machine's devices: address spaces, what the operator wants, the plan
//! that comes of it, and the plan at work in a migration.
//!
//! `drogher-tracking` decides and tracks; here it meets real devices. [`Spaces`] has one second stage
//! and one tracked space for each address space that devices name; [`TrackingControl`] plans, starts,
//! harvests, switches and stops all of them together.

mod control;
mod counts;
mod measure;
mod operator;
mod plan;
mod spaces;
mod view;

pub use control::{TrackingControl, TrackingError};
pub use operator::{Require, Wishes};
pub use plan::{IOMMU_MODEL, RefusalList, Subject, blockers, explain};
pub use spaces::{RamMap, Space, Spaces, SpacesError};
pub use view::{DeviceTracking, SpaceTracking, TrackerView, TrackingStatus};

pub use drogher_tracking::{
    Choice, Class, DeviceRule, Explanation, Policy, ProviderKind, RefusalCode, TrackingPageSize,
    Wish,
};

#[cfg(test)]
mod control_test;
