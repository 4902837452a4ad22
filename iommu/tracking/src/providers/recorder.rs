//! A domain that records by itself: what the providers `iommu` and `fault` share.

use std::sync::Arc;

use crate::address_space::{AddressSpace, TrackMode};
use crate::page_size::TrackingPageSize;
use crate::provider::{HarvestStats, ProviderError, ProviderKind, Switch};
use crate::sink::Sink;

/// The domain's recording in one mode.
pub(crate) struct Recorder {
    space: Arc<dyn AddressSpace>,
    mode: TrackMode,
    pub(crate) page_size: TrackingPageSize,
    switch: Switch,
}

impl Recorder {
    pub(crate) fn new(
        kind: ProviderKind,
        mode: TrackMode,
        space: Arc<dyn AddressSpace>,
        page_size: TrackingPageSize,
    ) -> Self {
        Self { space, mode, page_size, switch: Switch::off(kind) }
    }

    pub(crate) fn start(&mut self) -> Result<(), ProviderError> {
        self.switch.start(|| Ok(self.space.start_tracking(self.mode)?))
    }

    pub(crate) fn harvest(&mut self, sink: &Sink<'_>) -> Result<HarvestStats, ProviderError> {
        self.switch.check()?;
        if self.page_size == TrackingPageSize::K4 {
            return Ok(self.space.read_and_clear_dirty(sink.range(), sink.bitmap())?);
        }
        sink.widened(self.page_size, |range, bitmap| {
            Ok(self.space.read_and_clear_dirty(range, bitmap).map(drop)?)
        })
    }

    pub(crate) fn stop(&mut self) -> Result<(), ProviderError> {
        self.switch.stop()?;
        self.space.stop_tracking();
        Ok(())
    }
}

/// A domain goes on recording if its provider is dropped; nobody could start it again.
impl Drop for Recorder {
    fn drop(&mut self) {
        if self.switch.check().is_ok() {
            self.space.stop_tracking();
        }
    }
}

/// The provider over a [`Recorder`] in one mode.
macro_rules! recording_provider {
    ($(#[$doc:meta])* $name:ident, $kind:expr, $mode:expr) => {
        $(#[$doc])*
        pub struct $name(Recorder);

        impl $name {
            /// Off, over the address space that the devices share.
            #[must_use]
            pub fn new(space: Arc<dyn AddressSpace>, page_size: TrackingPageSize) -> Self {
                Self(Recorder::new($kind, $mode, space, page_size))
            }
        }

        impl Provider for $name {
            fn kind(&self) -> ProviderKind {
                $kind
            }

            fn class(&self) -> Class {
                Class::Exact
            }

            fn covers(&self) -> Coverage {
                Coverage::Space
            }

            fn page_size(&self) -> TrackingPageSize {
                self.0.page_size
            }

            fn can_change_page_size(&self) -> bool {
                true
            }

            fn set_page_size(&mut self, size: TrackingPageSize) -> bool {
                // The domain records by its leaves; the size only says how wide a bit is reported.
                self.0.page_size = size;
                true
            }

            fn start(&mut self) -> Result<(), ProviderError> {
                self.0.start()
            }

            fn harvest(&mut self, sink: &Sink<'_>) -> Result<HarvestStats, ProviderError> {
                self.0.harvest(sink)
            }

            fn stop(&mut self) -> Result<(), ProviderError> {
                self.0.stop()
            }
        }
    };
}
pub(crate) use recording_provider;
