//! A plugin's functions, called.
//!
//! Invariant of this module: a [`Device`] is made by a plugin's `create` and consumed by `destroy`;
//! each call needs `&mut` of it, so calls into one instance never overlap. That the functions behave
//! as the interface says is the plugin's promise: it is native code in this process. What can be
//! checked of its answers is checked by the callers of this module.
#![expect(unsafe_code, reason = "Calls C functions of plugins and reads their tables")]

use crate::context::Context;
use crate::host_table::{self, HOST, OWN_REQUESTER};
use crate::load_error::TableError;
use crate::shared_bitmap::SharedBitmap;
use crate::sized::{Sized1, Table, blank, table};
use core::ffi::{CStr, c_void};
use drogher_plugin_abi as abi;
use std::sync::Arc;

/// How a call went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    /// The plugin said so.
    Status(i32),
    /// Its answer cannot be.
    Lie(String),
}

/// Not 0: a failure. Positive codes do not exist.
pub(crate) fn check(status: i32) -> Result<(), Failed> {
    match status {
        abi::DROGHER_OK => Ok(()),
        1.. => Err(Failed::Lie(format!("status {status}, which is positive"))),
        _ => Err(Failed::Status(status)),
    }
}

const MISSING: i32 = abi::DROGHER_ERR_NOTSUP;

/// What a plugin exports, beyond its identity.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) ops: abi::DeviceOps,
    raw: abi::Descriptor,
}

// SAFETY: functions and constant tables; calls are serialised by the users.
unsafe impl Send for Entry {}
// SAFETY: as above.
unsafe impl Sync for Entry {}

impl Entry {
    /// # Safety
    /// `raw` is a plugin's descriptor that has passed the checks of its head.
    pub(crate) unsafe fn new(raw: abi::Descriptor) -> Result<Entry, TableError> {
        // SAFETY: the caller's promise.
        let ops = unsafe { table(raw.device) }?;
        let name = abi::DeviceOps::NAME;
        if ops.flags != 0 {
            let value = u64::from(ops.flags);
            return Err(TableError::Field {
                table: name,
                field: "flags",
                value,
                rule: "must be 0",
            });
        }
        let needed = [
            ("create", ops.create.is_some()),
            ("destroy", ops.destroy.is_some()),
            ("describe", ops.describe.is_some()),
            ("reset", ops.reset.is_some()),
        ];
        for (function, there) in needed {
            if !there {
                return Err(TableError::NoFunction { table: name, function });
            }
        }
        Ok(Entry { ops, raw })
    }

    pub(crate) fn init(&self, context: &Arc<Context>) -> i32 {
        // The plugin may keep the pointer for ever: the context is never freed.
        let ctx = host_table::raw(context);
        core::mem::forget(context.clone());
        // SAFETY: the plugin's promises; the table is static.
        self.raw.init.map_or(abi::DROGHER_OK, |init| unsafe { init(&HOST, ctx) })
    }

    pub(crate) fn deinit(&self) {
        if let Some(deinit) = self.raw.deinit {
            // SAFETY: the plugin's promises.
            unsafe { deinit() }
        }
    }

    fn extension<T: Table>(&self, dev: *mut c_void, id: &CStr) -> Result<Option<T>, TableError> {
        let Some(get) = self.raw.get_extension else { return Ok(None) };
        // SAFETY: the plugin's promises; `dev` is NULL or an instance of it.
        let ptr = unsafe { get(dev, id.as_ptr(), id.count_bytes() as u64) };
        if ptr.is_null() {
            return Ok(None);
        }
        // SAFETY: the plugin's promises.
        unsafe { table(ptr.cast::<T>()) }.map(Some)
    }

    /// The parameter table, asked for without an instance.
    pub(crate) fn params(&self) -> Result<Option<abi::Params>, TableError> {
        self.extension(core::ptr::null_mut(), abi::DROGHER_EXT_PARAMS)
    }

    /// One parameter; its texts as bytes, bounded.
    pub(crate) fn param(&self, params: &abi::Params, n: u32) -> Result<RawParam, Failed> {
        let mut out: abi::ParamInfo = blank();
        let info = params.info.ok_or(Failed::Status(MISSING))?;
        // SAFETY: the plugin's promises; `out` says its size.
        check(unsafe { info(n, &mut out) })?;
        // SAFETY: the plugin's promises: constant texts.
        unsafe {
            Ok(RawParam {
                kind: out.kind,
                flags: out.flags,
                reserved: out.reserved,
                name: copy(out.name)?,
                default: copy(out.default_value)?,
                doc: copy(out.doc)?,
                min: out.min,
                max: out.max,
            })
        }
    }
}

/// A parameter as the plugin describes it.
pub(crate) struct RawParam {
    pub(crate) kind: u32,
    pub(crate) flags: u32,
    pub(crate) reserved: u32,
    pub(crate) name: Vec<u8>,
    pub(crate) default: Vec<u8>,
    pub(crate) doc: Vec<u8>,
    pub(crate) min: u64,
    pub(crate) max: u64,
}

/// # Safety
/// The text is readable for as many bytes as it says.
unsafe fn copy(text: abi::Str) -> Result<Vec<u8>, Failed> {
    if text.len > crate::text::MAX as u64 {
        return Err(Failed::Lie(format!("a text of {} bytes", text.len)));
    }
    if text.len == 0 {
        return Ok(Vec::new());
    }
    if text.ptr.is_null() {
        return Err(Failed::Lie(format!("a text of {} bytes at NULL", text.len)));
    }
    // SAFETY: the caller's promise; not NULL, bounded.
    Ok(unsafe { core::slice::from_raw_parts(text.ptr.cast::<u8>(), text.len as usize) }.to_vec())
}

/// One instance of a plugin's device.
pub(crate) struct Device {
    dev: *mut c_void,
    entry: Entry,
    pub(crate) migration: Option<abi::Migration>,
    pub(crate) ndma: Option<abi::Ndma>,
    pub(crate) params: Option<abi::Params>,
    pub(crate) log: Option<abi::DmaLog>,
    pub(crate) pin: Option<abi::DmaPin>,
    pub(crate) prefers: Option<abi::Prefers>,
    /// Besides the count that the plugin's pointer has.
    context: Arc<Context>,
}

// SAFETY: the interface binds calls to no thread.
unsafe impl Send for Device {}

impl Device {
    /// Calls `create`. The context is kept alive until `destroy`; for ever if that is never called, since
    /// what the plugin left running may use it.
    pub(crate) fn create(
        entry: Entry,
        context: &Arc<Context>,
        name: &str,
        params: &[(String, String)],
    ) -> Result<Device, Failed> {
        let text = |text: &str| abi::Str { ptr: text.as_ptr().cast(), len: text.len() as u64 };
        let params: Vec<_> = params
            .iter()
            .map(|(key, value)| abi::KeyValue { key: text(key), value: text(value) })
            .collect();
        let ctx = host_table::raw(context);
        core::mem::forget(context.clone());
        let info = abi::CreateInfo {
            size: size_of::<abi::CreateInfo>() as u32,
            flags: 0,
            host: &HOST,
            host_ctx: ctx,
            name: text(name),
            params: params.as_ptr(),
            param_count: params.len() as u64,
            requester: OWN_REQUESTER,
            reserved: 0,
        };
        context.enter("create");
        let mut dev = core::ptr::null_mut();
        // SAFETY: the plugin's promises; `info` and what it points to live during the call.
        let status = entry.ops.create.map_or(MISSING, |create| unsafe { create(&info, &mut dev) });
        if let Err(failed) = check(status) {
            // SAFETY: nothing of a device that was not made may use the context.
            unsafe { Arc::decrement_strong_count(ctx.cast::<Context>()) }
            return Err(failed);
        }
        if dev.is_null() {
            return Err(Failed::Lie("success without an instance".to_owned()));
        }
        let context = context.clone();
        Ok(Device {
            dev,
            entry,
            migration: None,
            ndma: None,
            params: None,
            log: None,
            pin: None,
            prefers: None,
            context,
        })
    }

    /// Before each call: names it, and refuses it for a device that was given up, so that a late call
    /// that returns after all is followed by none.
    fn enter(&self, call: &'static str) -> Result<(), Failed> {
        match self.context.enter(call) {
            true => Ok(()),
            false => Err(Failed::Status(abi::DROGHER_ERR_SHUTDOWN)),
        }
    }

    /// Calls `destroy` and lets the context go.
    pub(crate) fn destroy(self) {
        self.context.enter("destroy");
        if let Some(destroy) = self.entry.ops.destroy {
            // SAFETY: the plugin's promises; the last call, `self` is consumed.
            unsafe { destroy(self.dev) }
        }
        // SAFETY: gives back what `create` kept; the plugin has promised not to use it any more.
        unsafe { Arc::decrement_strong_count(Arc::as_ptr(&self.context)) }
    }

    /// Asks for the extensions.
    pub(crate) fn load_extensions(&mut self) -> Result<(), TableError> {
        self.migration = self.extension(abi::DROGHER_EXT_MIGRATION)?;
        self.ndma = self.extension(abi::DROGHER_EXT_NDMA)?;
        self.params = self.extension(abi::DROGHER_EXT_PARAMS)?;
        self.log = self.extension(abi::DROGHER_EXT_DMA_LOG)?;
        self.pin = self.extension(abi::DROGHER_EXT_DMA_PIN)?;
        self.prefers = self.extension(abi::DROGHER_EXT_PREFERS)?;
        Ok(())
    }

    fn extension<T: Table>(&self, id: &CStr) -> Result<Option<T>, TableError> {
        match self.enter("get_extension") {
            Ok(()) => self.entry.extension(self.dev, id),
            Err(_) => Ok(None),
        }
    }

    pub(crate) fn ops(&self) -> &abi::DeviceOps {
        &self.entry.ops
    }

    pub(crate) fn describe(&mut self) -> Result<abi::DeviceInfo, Failed> {
        self.enter("describe")?;
        let mut out = blank();
        let f = self.entry.ops.describe.ok_or(Failed::Status(MISSING))?;
        // SAFETY: the plugin's promises; `out` says its size.
        check(unsafe { f(self.dev, &mut out) })?;
        Ok(out)
    }

    pub(crate) fn region_info(&mut self, n: u32) -> Result<abi::RegionInfo, Failed> {
        self.enter("region_info")?;
        let mut out = blank();
        let f = self.entry.ops.region_info.ok_or(Failed::Status(MISSING))?;
        // SAFETY: the plugin's promises; `out` says its size.
        check(unsafe { f(self.dev, n, &mut out) })?;
        Ok(out)
    }

    pub(crate) fn doorbell_info(&mut self, n: u32) -> Result<abi::DoorbellInfo, Failed> {
        self.enter("doorbell_info")?;
        let mut out = blank();
        let f = self.entry.ops.doorbell_info.ok_or(Failed::Status(MISSING))?;
        // SAFETY: the plugin's promises; `out` says its size.
        check(unsafe { f(self.dev, n, &mut out) })?;
        Ok(out)
    }

    pub(crate) fn reset(&mut self) -> Result<(), Failed> {
        self.enter("reset")?;
        let f = self.entry.ops.reset.ok_or(Failed::Status(MISSING))?;
        // SAFETY: the plugin's promises.
        check(unsafe { f(self.dev) })
    }

    pub(crate) fn config_read(&mut self, offset: u32, data: &mut [u8]) -> Result<(), Failed> {
        self.enter("config_read")?;
        let f = self.entry.ops.config_read.ok_or(Failed::Status(MISSING))?;
        let len = u32::try_from(data.len()).map_err(|_| Failed::Status(abi::DROGHER_ERR_INVAL))?;
        // SAFETY: the plugin's promises; `data` is initialised and writable for `len` bytes.
        check(unsafe { f(self.dev, offset, data.as_mut_ptr().cast(), len) })
    }

    pub(crate) fn config_write(&mut self, offset: u32, data: &[u8]) -> Result<(), Failed> {
        self.enter("config_write")?;
        let f = self.entry.ops.config_write.ok_or(Failed::Status(MISSING))?;
        let len = u32::try_from(data.len()).map_err(|_| Failed::Status(abi::DROGHER_ERR_INVAL))?;
        // SAFETY: the plugin's promises; `data` is readable for `len` bytes.
        check(unsafe { f(self.dev, offset, data.as_ptr().cast(), len) })
    }

    pub(crate) fn region_read(
        &mut self,
        region: u32,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), Failed> {
        self.enter("region_read")?;
        let f = self.entry.ops.region_read.ok_or(Failed::Status(MISSING))?;
        let len = u32::try_from(data.len()).map_err(|_| Failed::Status(abi::DROGHER_ERR_INVAL))?;
        // SAFETY: the plugin's promises; `data` is initialised and writable for `len` bytes.
        check(unsafe { f(self.dev, region, offset, data.as_mut_ptr().cast(), len) })
    }

    pub(crate) fn region_write(
        &mut self,
        region: u32,
        offset: u64,
        data: &[u8],
    ) -> Result<(), Failed> {
        self.enter("region_write")?;
        let f = self.entry.ops.region_write.ok_or(Failed::Status(MISSING))?;
        let len = u32::try_from(data.len()).map_err(|_| Failed::Status(abi::DROGHER_ERR_INVAL))?;
        // SAFETY: the plugin's promises; `data` is readable for `len` bytes.
        check(unsafe { f(self.dev, region, offset, data.as_ptr().cast(), len) })
    }

    pub(crate) fn doorbell(&mut self, n: u32) -> Result<(), Failed> {
        self.enter("doorbell")?;
        let f = self.entry.ops.doorbell.ok_or(Failed::Status(MISSING))?;
        // SAFETY: the plugin's promises.
        check(unsafe { f(self.dev, n) })
    }

    pub(crate) fn set_state(&mut self, state: u32) -> Result<(), Failed> {
        self.enter("set_state")?;
        let f = self.migration.and_then(|m| m.set_state).ok_or(Failed::Status(MISSING))?;
        // SAFETY: the plugin's promises.
        check(unsafe { f(self.dev, state) })
    }

    pub(crate) fn get_state(&mut self) -> Result<u32, Failed> {
        self.enter("get_state")?;
        let f = self.migration.and_then(|m| m.get_state).ok_or(Failed::Status(MISSING))?;
        let mut state = abi::DROGHER_STATE_ERROR;
        // SAFETY: the plugin's promises.
        check(unsafe { f(self.dev, &mut state) })?;
        Ok(state)
    }

    pub(crate) fn precopy_info(&mut self) -> Result<abi::PrecopyInfo, Failed> {
        self.enter("precopy_info")?;
        let mut out = blank();
        let f = self.migration.and_then(|m| m.precopy_info).ok_or(Failed::Status(MISSING))?;
        // SAFETY: the plugin's promises; `out` says its size.
        check(unsafe { f(self.dev, &mut out) })?;
        Ok(out)
    }

    pub(crate) fn stop_copy_size(&mut self) -> Result<u64, Failed> {
        self.enter("stop_copy_size")?;
        let f = self.migration.and_then(|m| m.stop_copy_size).ok_or(Failed::Status(MISSING))?;
        let mut bytes = 0;
        // SAFETY: the plugin's promises.
        check(unsafe { f(self.dev, &mut bytes) })?;
        Ok(bytes)
    }

    /// Bytes that the plugin says it gave, not yet checked.
    pub(crate) fn read(&mut self, data: &mut [u8]) -> Result<u64, Failed> {
        self.enter("migration.read")?;
        let f = self.migration.and_then(|m| m.read).ok_or(Failed::Status(MISSING))?;
        let mut done = 0;
        let len = data.len() as u64;
        // SAFETY: the plugin's promises; `data` is initialised and writable for `len` bytes.
        check(unsafe { f(self.dev, data.as_mut_ptr().cast(), len, &mut done) })?;
        Ok(done)
    }

    pub(crate) fn write(&mut self, data: &[u8]) -> Result<(), Failed> {
        self.enter("migration.write")?;
        let f = self.migration.and_then(|m| m.write).ok_or(Failed::Status(MISSING))?;
        // SAFETY: the plugin's promises; `data` is readable for its length.
        check(unsafe { f(self.dev, data.as_ptr().cast(), data.len() as u64) })
    }

    pub(crate) fn set_ndma(&mut self, enter: bool) -> Result<(), Failed> {
        self.enter(if enter { "ndma.enter" } else { "ndma.leave" })?;
        let f = self.ndma.and_then(|ndma| if enter { ndma.enter } else { ndma.leave });
        // SAFETY: the plugin's promises.
        check(unsafe { f.ok_or(Failed::Status(MISSING))?(self.dev) })
    }

    pub(crate) fn param_get(&mut self, name: &str) -> Result<Vec<u8>, Failed> {
        self.enter("params.get")?;
        let f = self.params.and_then(|params| params.get).ok_or(Failed::Status(MISSING))?;
        let mut value = vec![0; crate::text::MAX];
        let mut len = 0;
        let (name, name_len) = (name.as_ptr().cast(), name.len() as u64);
        let (to, cap) = (value.as_mut_ptr().cast(), value.len() as u64);
        // SAFETY: the plugin's promises; name and buffer are as long as said.
        check(unsafe { f(self.dev, name, name_len, to, cap, &mut len) })?;
        if len > cap {
            return Err(Failed::Lie(format!("{len} bytes in a buffer of {cap}")));
        }
        value.truncate(len as usize);
        Ok(value)
    }

    pub(crate) fn param_set(&mut self, name: &str, value: &str) -> Result<(), Failed> {
        self.enter("params.set")?;
        let f = self.params.and_then(|params| params.set).ok_or(Failed::Status(MISSING))?;
        let (name, name_len) = (name.as_ptr().cast(), name.len() as u64);
        // SAFETY: the plugin's promises; the texts are as long as said.
        check(unsafe { f(self.dev, name, name_len, value.as_ptr().cast(), value.len() as u64) })
    }

    /// Returns the page size that the plugin says it has chosen, not yet checked.
    pub(crate) fn log_start(&mut self, start: &Start<'_>) -> Result<u64, Failed> {
        self.enter("dma-log.start")?;
        let f = self.log.and_then(|log| log.start).ok_or(Failed::Status(MISSING))?;
        let mut info: abi::LogStart = blank();
        info.ranges = start.ranges.as_ptr();
        info.range_count = start.ranges.len() as u64;
        info.page_size = start.page_size;
        info.page_shift = start.page_size.trailing_zeros();
        info.fd = -1;
        if let Some((bitmap, first_gpa)) = start.bitmap {
            (info.words, info.word_count, info.fd) = bitmap.parts();
            info.first_gpa = first_gpa;
        }
        // SAFETY: the plugin's promises; what `info` points to lives during the call, and the bitmap
        // until the caller has ended the log.
        check(unsafe { f(self.dev, &mut info) })?;
        Ok(info.page_size)
    }

    /// `words` are zeroed, and as many as the pages of the range need.
    pub(crate) fn log_report(
        &mut self,
        gpa: u64,
        len: u64,
        words: &mut [u64],
    ) -> Result<(), Failed> {
        self.enter("dma-log.report")?;
        let f = self.log.and_then(|log| log.report).ok_or(Failed::Status(MISSING))?;
        let count = words.len() as u64;
        // SAFETY: the plugin's promises; `words` is initialised and writable.
        check(unsafe { f(self.dev, gpa, len, words.as_mut_ptr(), count) })
    }

    pub(crate) fn log_stop(&mut self) -> Result<(), Failed> {
        self.enter("dma-log.stop")?;
        let f = self.log.and_then(|log| log.stop).ok_or(Failed::Status(MISSING))?;
        // SAFETY: the plugin's promises.
        check(unsafe { f(self.dev) })
    }

    pub(crate) fn unmap(&mut self, iova: u64, len: u64) -> Result<(), Failed> {
        self.enter("dma-pin.unmap")?;
        let f = self.pin.and_then(|pin| pin.unmap).ok_or(Failed::Status(MISSING))?;
        // SAFETY: the plugin's promises.
        check(unsafe { f(self.dev, iova, len) })
    }

    /// What the plugin prefers, and its reason as bytes; neither checked.
    pub(crate) fn preference(&mut self) -> Result<Option<(abi::Preference, Vec<u8>)>, Failed> {
        let Some(prefers) = self.prefers else { return Ok(None) };
        self.enter("prefers.get")?;
        let f = prefers.get.ok_or(Failed::Status(MISSING))?;
        let mut out: abi::Preference = blank();
        // SAFETY: the plugin's promises; `out` says its size.
        check(unsafe { f(self.dev, &mut out) })?;
        // SAFETY: the plugin's promise: the text is valid until `destroy`.
        let reason = unsafe { copy(out.reason) }?;
        Ok(Some((out, reason)))
    }
}

/// What a log is started with.
pub(crate) struct Start<'a> {
    pub(crate) ranges: &'a [abi::GpaRange],
    pub(crate) page_size: u64,
    /// With the GPA that its first bit stands for.
    pub(crate) bitmap: Option<(&'a SharedBitmap, u64)>,
}
