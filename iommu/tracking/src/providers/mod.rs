//! The providers, one a file.

mod all;
mod device;
mod fault;
mod iommu;
mod pinned;
mod recorder;

pub use all::AllProvider;
pub use device::{DeviceLog, DeviceProvider, LogFailure};
pub use fault::FaultProvider;
pub use iommu::IommuProvider;
pub use pinned::PinnedProvider;
#[cfg(test)]
mod all_test;
#[cfg(test)]
mod device_test;
#[cfg(test)]
mod pinned_test;
#[cfg(test)]
mod recorder_test;
