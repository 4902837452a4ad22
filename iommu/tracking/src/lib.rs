//! Which pages devices have written: providers of that, the policy that picks among them, and the
//! address space that they report for.
//!
//! Before anything starts, [`planner::plan`] turns devices, [`Policy`], [`Quirks`] and [`Costs`]
//! into a [`Plan`] for each address space, or into [`Refusal`]s; [`Explanation`] shows either. A
//! [`TrackedSpace`] runs a plan: [`TrackedSpace::start`], then everything is copied, then
//! [`TrackedSpace::harvest`] round by round. Devices come, go, enter and leave NDMA, and plans are
//! switched meanwhile, and no write is missed.
//!
//! No KVM, no plugin, no clock, no thread of its own: address spaces are behind [`AddressSpace`],
//! device logs behind [`DeviceLog`].
#![forbid(unsafe_code)]

mod address_space;
mod bits;
mod caps;
mod costs;
mod explain;
pub mod log_ranges;
mod members;
mod page_size;
mod pins;
mod plan;
pub mod planner;
mod policy;
mod provider;
pub mod providers;
mod rid_text;
mod sink;
mod space;
mod space_error;
mod switch;
mod tracker;

pub use address_space::{AddressSpace, AddressSpaceError, TrackMode};
pub use caps::{DeviceCaps, Dma, LogCaps, Pins, Preference, SpaceCaps};
pub use costs::{Costs, Measured};
pub use explain::Explanation;
pub use members::Device;
pub use page_size::{PageSizeError, TrackingPageSize};
pub use pins::{MAX_PINNED_RANGES, PinAccess, PinBoard, PinError, PinStats};
pub use plan::{Decider, DevicePlan, Plan, ProviderPlan, Reason, Refusal, RefusalCode};
pub use planner::Inputs;
pub use policy::{Choice, ChoiceError, DeviceRule, EarlyNdma, Policy, Quirk, Quirks, Wish};
pub use provider::{
    Class, Coverage, HarvestStats, Provider, ProviderError, ProviderKind, UnknownProvider,
};
pub use providers::{DeviceLog, LogFailure};
pub use sink::Sink;
pub use space::{SpaceHarvest, Started, Status, TrackedSpace};
pub use space_error::SpaceError;

#[cfg(test)]
mod bits_test;
#[cfg(test)]
mod log_ranges_test;
#[cfg(test)]
mod page_size_test;
#[cfg(test)]
mod pins_test;
#[cfg(test)]
mod policy_test;
#[cfg(test)]
mod sink_test;
