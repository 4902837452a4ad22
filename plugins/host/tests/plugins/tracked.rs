//! Helpers for the device in C that can be tracked in every way.

use crate::bed::{Bed, compile, read64, write64};
use drogher_iommu_types::{DirtyBitmap, Gpa};
use drogher_plugin_host::{Deadlines, Instance, Plugin, State};
use drogher_tracking::{DeviceLog, TrackingPageSize};
use std::ops::Range;
use std::sync::Arc;

pub const IOVA: u64 = 0x00;
pub const LEN: u64 = 0x08;
pub const ACCESS: u64 = 0x10;
pub const HANDLE: u64 = 0x18;
const STATUS: u64 = 0x20;
pub const DONE: u64 = 0x28;
pub const RUNS: u64 = 0x30;
const COMMAND: u64 = 0x38;
pub const UNMAPS: u64 = 0x40;
pub const FIRST_RUN: u64 = 0x48;

pub const PIN: u64 = 1;
pub const UNPIN: u64 = 2;
pub const MARK: u64 = 3;
pub const LOGGED: u64 = 4;
pub const STORE: u64 = 5;
pub const PLAIN: u64 = 6;
pub const ADD: u64 = 7;
pub const LAST_BIT: u64 = 8;
pub const NO_ROOM: u64 = 9;

pub const READ: u64 = 1;
pub const WRITE: u64 = 2;

pub const PAGE: u64 = 4096;

pub struct Tracked {
    pub bed: Bed,
    pub device: Instance,
}

impl std::ops::Deref for Tracked {
    type Target = Instance;

    fn deref(&self) -> &Instance {
        &self.device
    }
}

pub fn plugin(defines: &[&str]) -> Option<Plugin> {
    let built = compile("hostile-c/tracked.c", "tracked", defines)?;
    Some(Plugin::open(&built.file).expect("loads"))
}

impl Tracked {
    /// Running; `None` without a compiler.
    pub fn running(defines: &[&str]) -> Option<Tracked> {
        Self::with(defines, Deadlines::default())
    }

    pub fn with(defines: &[&str], deadlines: Deadlines) -> Option<Tracked> {
        let plugin = plugin(defines)?;
        let bed = Bed::new();
        let device = bed.create_with(&plugin, &[], deadlines).expect("creates");
        device.set_state(State::Running).expect("runs");
        Some(Tracked { bed, device })
    }

    /// One operation; its status.
    pub fn act(&self, command: u64, registers: &[(u64, u64)]) -> i64 {
        for (register, value) in registers {
            write64(&self.device, *register, *value);
        }
        write64(&self.device, COMMAND, command);
        read64(&self.device, STATUS) as i64
    }

    pub fn pin(&self, iova: u64, len: u64, access: u64) -> i64 {
        self.act(PIN, &[(IOVA, iova), (LEN, len), (ACCESS, access)])
    }

    pub fn get(&self, register: u64) -> u64 {
        read64(&self.device, register)
    }

    /// Its log, started over `ranges`.
    pub fn log(&self, ranges: &[Range<u64>], page_size: TrackingPageSize) -> Arc<dyn DeviceLog> {
        let (_, log) = self.device_log().expect("has one");
        log.start(&gpas(ranges), page_size).expect("starts");
        log
    }
}

pub fn gpas(ranges: &[Range<u64>]) -> Vec<Range<Gpa>> {
    ranges.iter().map(|range| Gpa(range.start)..Gpa(range.end)).collect()
}

/// The dirty pages of a bitmap.
pub fn pages(bitmap: &DirtyBitmap) -> Vec<u64> {
    bitmap.runs().flat_map(|run| run.start.page()..run.end.page()).collect()
}

/// What a log reports of the first MiB.
pub fn harvest(log: &dyn DeviceLog, page_size: TrackingPageSize) -> Vec<u64> {
    let all = Gpa(0)..Gpa(crate::bed::MEMORY);
    let bitmap = DirtyBitmap::new(all.clone()).expect("aligned");
    log.report(&all, page_size, &bitmap).expect("reports");
    pages(&bitmap)
}
