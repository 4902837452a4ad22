//! What a plugin says of tracking its DMA: a log of its own, pins, a preference.

use super::Instance;
use super::create::Refusal;
use super::log::PluginLog;
use crate::load_error::TableError;
use crate::pin_table::PinTable;
use crate::raw::Device;
use drogher_plugin_abi as abi;
use drogher_tracking::{
    DeviceLog, LogCaps, PinBoard, Pins, Preference, ProviderKind, TrackingPageSize,
};
use std::sync::Arc;

/// What a new device has of them, checked.
pub(super) struct Extensions {
    log: Option<LogCaps>,
    pins: Pins,
    preference: Option<Preference>,
}

impl Instance {
    pub(super) fn take_extensions(&mut self, extensions: Extensions) {
        let Extensions { log, pins, preference } = extensions;
        (self.log, self.pins, self.preference) = (log, pins, preference);
        if let (Pins::Some | Pins::All, Some(device)) = (pins, &self.context.device) {
            let span = device.requester.domain().span();
            // Set once: a context is of one instance.
            let _ = self.context.pins.set(PinTable::new(span, pins == Pins::All));
        }
    }

    /// Its own log of the pages that it writes to, if it has one, and what that can do. It may be used
    /// beyond the instance's end, where it only has errors.
    pub fn device_log(&self) -> Option<(LogCaps, Arc<dyn DeviceLog>)> {
        let caps = self.log?;
        Some((caps, Arc::new(PluginLog::new(self.line.clone(), caps))))
    }

    /// Which of its writes it makes to memory that it has pinned.
    pub fn pins(&self) -> Pins {
        self.pins
    }

    /// Where its pins count, if it pins. It covers what was mapped in its domain when it was made.
    pub fn pin_board(&self) -> Option<Arc<PinBoard>> {
        self.context.pins.get().map(|pins| pins.board.clone())
    }

    /// How its plugin would have its DMA tracked.
    pub fn preference(&self) -> Option<Preference> {
        self.preference.clone()
    }
}

/// Checks the tables, and asks for the preference.
pub(super) fn describe(device: &mut Device) -> Result<Extensions, Refusal> {
    let log = device.log.as_ref().map(log_caps).transpose().map_err(Refusal::Table)?;
    let pins = match &device.pin {
        None => Pins::None,
        Some(pin) => pin_kind(pin, device.migration.is_some()).map_err(Refusal::Table)?,
    };
    let raw = device.preference().map_err(|failed| Refusal::Call("prefers.get", failed))?;
    let preference = match raw {
        None => None,
        Some((raw, reason)) => wish(&raw, &reason).map_err(Refusal::Table)?,
    };
    Ok(Extensions { log, pins, preference })
}

fn log_caps(raw: &abi::DmaLog) -> Result<LogCaps, TableError> {
    let table = "drogher_dma_log";
    let field = |field, value, rule| TableError::Field { table, field, value, rule };
    if raw.flags & !abi::DROGHER_DMA_LOG_FLAGS != 0 || raw.reserved != 0 {
        let value = u64::from(raw.flags);
        return Err(field("flags", value, "unknown bits and reserved fields must be 0"));
    }
    let shared = raw.flags & abi::DROGHER_DMA_LOG_SHARED != 0;
    let functions = [
        ("start", raw.start.is_some()),
        ("report", shared || raw.report.is_some()),
        ("stop", raw.stop.is_some()),
    ];
    for (function, there) in functions {
        if !there {
            return Err(TableError::NoFunction { table, function });
        }
    }
    let rule = "must be a power of two from 4 KiB to 2 MiB";
    let size = |name, bytes| TrackingPageSize::new(bytes).map_err(|_| field(name, bytes, rule));
    let min_page_size = size("min_page", raw.min_page)?;
    let max_page_size = size("max_page", raw.max_page)?;
    if max_page_size < min_page_size {
        return Err(field("max_page", raw.max_page, "must be >= min_page"));
    }
    if raw.max_ranges == 0 || raw.max_ranges > abi::DROGHER_DMA_LOG_RANGES_MAX {
        return Err(field("max_ranges", u64::from(raw.max_ranges), "must be 1 to 256"));
    }
    Ok(LogCaps { min_page_size, max_page_size, max_ranges: raw.max_ranges as usize })
}

fn pin_kind(raw: &abi::DmaPin, has_states: bool) -> Result<Pins, TableError> {
    let table = "drogher_dma_pin";
    if raw.flags & !abi::DROGHER_PIN_FLAGS != 0 {
        let (value, rule) = (u64::from(raw.flags), "unknown bits must be 0");
        return Err(TableError::Field { table, field: "flags", value, rule });
    }
    if raw.unmap.is_none() {
        return Err(TableError::NoFunction { table, function: "unmap" });
    }
    if !has_states {
        // A device that is not told of STOP would write on.
        return Err(TableError::Missing {
            table: "drogher_migration, which drogher_dma_pin needs,",
        });
    }
    Ok(if raw.flags & abi::DROGHER_PIN_ONLY != 0 { Pins::All } else { Pins::Some })
}

fn wish(raw: &abi::Preference, reason: &[u8]) -> Result<Option<Preference>, TableError> {
    let table = "drogher_preference";
    let field = |field, value, rule| TableError::Field { table, field, value, rule };
    let provider = match raw.tracker {
        abi::DROGHER_TRACKER_NONE => return Ok(None),
        abi::DROGHER_TRACKER_IOMMU => ProviderKind::Iommu,
        abi::DROGHER_TRACKER_DEVICE => ProviderKind::Device,
        abi::DROGHER_TRACKER_PINNED => ProviderKind::Pinned,
        abi::DROGHER_TRACKER_FAULT => ProviderKind::Fault,
        abi::DROGHER_TRACKER_ALL => ProviderKind::All,
        other => {
            let rule = "must be one of DROGHER_TRACKER_*";
            return Err(field("tracker", u64::from(other), rule));
        }
    };
    let page_size = match raw.page_size {
        0 => None,
        bytes => Some(TrackingPageSize::new(bytes).map_err(|_| {
            field("page_size", bytes, "must be 0 or a power of two from 4 KiB to 2 MiB")
        })?),
    };
    let cost_hint_ns = Some(raw.cost_hint_ns).filter(|ns| *ns != 0);
    let reason = crate::text::lossy(reason);
    Ok(Some(Preference { provider, page_size, cost_hint_ns, reason }))
}
