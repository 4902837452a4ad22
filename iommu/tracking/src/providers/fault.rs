//! Provider `fault`: Write faults.

use std::sync::Arc;

use super::recorder::{Recorder, recording_provider};
use crate::address_space::{AddressSpace, TrackMode};
use crate::page_size::TrackingPageSize;
use crate::provider::{Class, Coverage, HarvestStats, Provider, ProviderError, ProviderKind};
use crate::sink::Sink;

recording_provider! {
    /// Write protection of the second stage: the first write after a clear takes the slow path,
    /// which records it. Reports the same pages as D bits do, at another cost.
    FaultProvider, ProviderKind::Fault, TrackMode::WriteFault
}
