//! The handle on the host: DMA, interrupts, log.
//!
//! Invariant of this module: `Inner` holds copies of the host's tables, as far as both sides know them,
//! and a context on which it has called `retain` and not yet `release`, so every call below has a valid
//! context.
#![expect(unsafe_code, reason = "Calls the host's C functions")]

use crate::shim;
use drogher_plugin_abi as abi;
use std::ffi::CStr;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Sizes of the host's tables in version 1.0: no host has less.
const HOST_FIRST: usize = 88;
const DMA_FIRST: usize = 64;
const LOG_FIRST: usize = 56;
const PIN_FIRST: usize = 32;

/// Importance of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Something is broken.
    Error,
    /// Something is odd.
    Warn,
    /// Worth knowing, rare.
    Info,
    /// For those who look for a fault.
    Debug,
}

/// Why DMA failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaErrorKind {
    /// Unmapped, no permission or outside memory.
    Fault,
    /// The device may do no DMA now: its state, NDMA, or it was given up.
    NotAllowed,
    /// The instance is gone.
    Shutdown,
    /// Misaligned atomic operation or a range beyond 2^64.
    Invalid,
    /// Too many threads do DMA, or another device takes no more for now: try the rest later.
    Busy,
    /// Another status.
    Other(i32),
}

/// A DMA access that did not end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaError {
    /// Why.
    pub kind: DmaErrorKind,
    /// Where the access began.
    pub iova: u64,
    /// Bytes accessed from there before it failed.
    pub done: u64,
}

impl fmt::Display for DmaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DmaError { kind, iova, done } = self;
        match kind {
            DmaErrorKind::Fault => write!(f, "DMA fault after {done} bytes from IOVA {iova:#x}"),
            DmaErrorKind::NotAllowed => write!(f, "DMA at IOVA {iova:#x} not allowed now"),
            DmaErrorKind::Shutdown => write!(f, "DMA at IOVA {iova:#x} after the device's end"),
            DmaErrorKind::Invalid => write!(f, "DMA at IOVA {iova:#x}: misaligned or too long"),
            DmaErrorKind::Busy => write!(f, "DMA at IOVA {iova:#x}: busy after {done} bytes"),
            DmaErrorKind::Other(status) => write!(f, "DMA at IOVA {iova:#x}: status {status}"),
        }
    }
}

impl std::error::Error for DmaError {}

/// An interrupt that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqError {
    /// The device may send none now: its state, NDMA, or it was given up. It is lost.
    NotAllowed,
    /// The device has no such vector.
    NoVector,
}

impl fmt::Display for IrqError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            IrqError::NotAllowed => "Interrupt not allowed now",
            IrqError::NoVector => "No such interrupt vector",
        })
    }
}

impl std::error::Error for IrqError {}

struct Inner {
    table: abi::HostTable,
    ctx: *mut abi::HostCtx,
    dma: Option<abi::Dma>,
    log: Option<abi::DmaLogHost>,
    pin: Option<abi::DmaPinHost>,
    requester: u32,
    /// `fail` was called since the device was made.
    failed: AtomicBool,
}

// SAFETY: all functions of the table that are used here are tagged [any]; the tables are constant.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(release) = self.table.release {
            // SAFETY: gives back the one `retain` of `Host::new`.
            unsafe { release(self.ctx) }
        }
    }
}

/// The host, as one instance sees it. Cheap to clone, usable from any thread; after the instance's
/// end every function refuses. Addresses are IOVAs. An aligned access of 1, 2, 4 or 8 bytes is
/// single-copy atomic; one thread's calls take effect in order; inside a longer access order is
/// undefined.
#[derive(Clone)]
pub struct Host {
    inner: Arc<Inner>,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("requester", &self.inner.requester).finish_non_exhaustive()
    }
}

impl Host {
    /// Takes its own hold on the context.
    ///
    /// # Safety
    /// `table` is a host table, valid for ever; `ctx` is valid now.
    pub(crate) unsafe fn new(
        table: *const abi::HostTable,
        ctx: *mut abi::HostCtx,
        requester: u32,
    ) -> Option<Host> {
        // SAFETY: promised by the caller.
        let table = unsafe { shim::known(table, HOST_FIRST)? };
        let (retain, get_extension) = (table.retain?, table.get_extension?);
        let ask = |id: &CStr| {
            // SAFETY: `ctx` is valid; the id is a constant of that length.
            unsafe { get_extension(ctx, id.as_ptr(), id.count_bytes() as u64) }
        };
        // SAFETY: each answer is NULL or the table of its id.
        let (dma, log, pin) = unsafe {
            (
                shim::known(ask(abi::DROGHER_EXT_DMA).cast::<abi::Dma>(), DMA_FIRST),
                shim::known(ask(abi::DROGHER_EXT_DMA_LOG).cast::<abi::DmaLogHost>(), LOG_FIRST),
                shim::known(ask(abi::DROGHER_EXT_DMA_PIN).cast::<abi::DmaPinHost>(), PIN_FIRST),
            )
        };
        // SAFETY: `ctx` is valid; `Inner::drop` releases.
        unsafe { retain(ctx) };
        let failed = AtomicBool::new(false);
        Some(Host { inner: Arc::new(Inner { table, ctx, dma, log, pin, requester, failed }) })
    }

    fn dma(
        &self,
        iova: u64,
        call: impl FnOnce(&abi::Dma, *mut abi::HostCtx, u32, &mut u64) -> Option<i32>,
    ) -> Result<(), DmaError> {
        let mut done = 0;
        let status = self
            .inner
            .dma
            .as_ref()
            .and_then(|dma| call(dma, self.inner.ctx, self.inner.requester, &mut done))
            .unwrap_or(abi::DROGHER_ERR_NOTSUP);
        match dma_kind(status) {
            None => Ok(()),
            Some(kind) => Err(DmaError { kind, iova, done }),
        }
    }

    /// A logged access; the bytes done.
    pub(crate) fn logged(
        &self,
        iova: u64,
        call: impl FnOnce(&abi::DmaLogHost, *mut abi::HostCtx, u32, &mut u64) -> Option<i32>,
    ) -> Result<u64, DmaError> {
        let mut done = 0;
        let status = self
            .log_table()
            .and_then(|log| call(log, self.inner.ctx, self.inner.requester, &mut done))
            .unwrap_or(abi::DROGHER_ERR_NOTSUP);
        match dma_kind(status) {
            None => Ok(done),
            Some(kind) => Err(DmaError { kind, iova, done }),
        }
    }

    pub(crate) fn log_table(&self) -> Option<&abi::DmaLogHost> {
        self.inner.log.as_ref()
    }

    /// The table, the context, and the requester.
    pub(crate) fn pin_table(&self) -> Option<(&abi::DmaPinHost, *mut abi::HostCtx, u32)> {
        self.inner.pin.as_ref().map(|pin| (pin, self.inner.ctx, self.inner.requester))
    }

    /// Reads guest memory.
    pub fn dma_read(&self, iova: u64, data: &mut [u8]) -> Result<(), DmaError> {
        self.dma(iova, |dma, ctx, requester, done| {
            let (to, len) = (data.as_mut_ptr().cast(), data.len() as u64);
            // SAFETY: valid context; `data` is writable for `len` bytes.
            Some(unsafe { dma.read?(ctx, requester, iova, to, len, done) })
        })
    }

    /// Writes guest memory, or posts a write to another device.
    pub fn dma_write(&self, iova: u64, data: &[u8]) -> Result<(), DmaError> {
        self.dma(iova, |dma, ctx, requester, done| {
            let (from, len) = (data.as_ptr().cast(), data.len() as u64);
            // SAFETY: valid context; `data` is readable for `len` bytes.
            Some(unsafe { dma.write?(ctx, requester, iova, from, len, done) })
        })
    }

    /// Sets `len` bytes of guest memory to `byte`.
    pub fn dma_fill(&self, iova: u64, byte: u8, len: u64) -> Result<(), DmaError> {
        self.dma(iova, |dma, ctx, requester, done| {
            // SAFETY: valid context.
            Some(unsafe { dma.fill?(ctx, requester, iova, byte, len, done) })
        })
    }

    /// Reads a little-endian number; atomic if aligned.
    pub fn dma_read_u32(&self, iova: u64) -> Result<u32, DmaError> {
        let mut data = [0; 4];
        self.dma_read(iova, &mut data)?;
        Ok(u32::from_le_bytes(data))
    }

    /// Reads a little-endian number; atomic if aligned.
    pub fn dma_read_u64(&self, iova: u64) -> Result<u64, DmaError> {
        let mut data = [0; 8];
        self.dma_read(iova, &mut data)?;
        Ok(u64::from_le_bytes(data))
    }

    /// Writes a little-endian number; atomic if aligned.
    pub fn dma_write_u32(&self, iova: u64, value: u32) -> Result<(), DmaError> {
        self.dma_write(iova, &value.to_le_bytes())
    }

    /// Writes a little-endian number; atomic if aligned.
    pub fn dma_write_u64(&self, iova: u64, value: u64) -> Result<(), DmaError> {
        self.dma_write(iova, &value.to_le_bytes())
    }

    /// Adds, wrapping; returns the value before. `iova` is a multiple of 4.
    pub fn dma_fetch_add_u32(&self, iova: u64, add: u32) -> Result<u32, DmaError> {
        let mut old = 0;
        self.dma(iova, |dma, ctx, requester, _| {
            // SAFETY: valid context; `old` is writable.
            Some(unsafe { dma.fetch_add_u32?(ctx, requester, iova, add, &mut old) })
        })?;
        Ok(old)
    }

    /// Adds, wrapping; returns the value before. `iova` is a multiple of 8.
    pub fn dma_fetch_add_u64(&self, iova: u64, add: u64) -> Result<u64, DmaError> {
        let mut old = 0;
        self.dma(iova, |dma, ctx, requester, _| {
            // SAFETY: valid context; `old` is writable.
            Some(unsafe { dma.fetch_add_u64?(ctx, requester, iova, add, &mut old) })
        })?;
        Ok(old)
    }

    /// Stores `new` if the value is `expected`; returns the value before. `iova`: multiple of 4.
    pub fn dma_compare_swap_u32(
        &self,
        iova: u64,
        expected: u32,
        new: u32,
    ) -> Result<u32, DmaError> {
        let mut old = 0;
        self.dma(iova, |dma, ctx, requester, _| {
            // SAFETY: valid context; `old` is writable.
            Some(unsafe { dma.compare_swap_u32?(ctx, requester, iova, expected, new, &mut old) })
        })?;
        Ok(old)
    }

    /// Stores `new` if the value is `expected`; returns the value before. `iova`: multiple of 8.
    pub fn dma_compare_swap_u64(
        &self,
        iova: u64,
        expected: u64,
        new: u64,
    ) -> Result<u64, DmaError> {
        let mut old = 0;
        self.dma(iova, |dma, ctx, requester, _| {
            // SAFETY: valid context; `old` is writable.
            Some(unsafe { dma.compare_swap_u64?(ctx, requester, iova, expected, new, &mut old) })
        })?;
        Ok(old)
    }

    /// Triggers an MSI-X vector.
    pub fn irq(&self, vector: u16) -> Result<(), IrqError> {
        let Some(irq) = self.inner.table.irq else {
            return Err(IrqError::NotAllowed);
        };
        // SAFETY: valid context.
        match unsafe { irq(self.inner.ctx, u32::from(vector)) } {
            abi::DROGHER_OK => Ok(()),
            abi::DROGHER_ERR_NOENT => Err(IrqError::NoVector),
            _ => Err(IrqError::NotAllowed),
        }
    }

    /// Writes a line to the host's log.
    pub fn log(&self, level: LogLevel, text: &str) {
        let level = match level {
            LogLevel::Error => abi::DROGHER_LOG_ERROR,
            LogLevel::Warn => abi::DROGHER_LOG_WARN,
            LogLevel::Info => abi::DROGHER_LOG_INFO,
            LogLevel::Debug => abi::DROGHER_LOG_DEBUG,
        };
        if let Some(log) = self.inner.table.log {
            // SAFETY: valid context and text.
            unsafe { log(self.inner.ctx, level, text.as_ptr().cast(), text.len() as u64) }
        }
    }

    /// Declares the device broken, from any thread: the host ends its DMA and interrupts at once and
    /// moves it to ERROR. A reset drops the device and creates it anew.
    pub fn fail(&self, text: &str) {
        self.inner.failed.store(true, Ordering::SeqCst);
        if let Some(fail) = self.inner.table.fail {
            // SAFETY: valid context and text.
            unsafe { fail(self.inner.ctx, text.as_ptr().cast(), text.len() as u64) }
        }
    }

    /// Starts a worker thread. If it panics the device is declared broken with the panic's text. The
    /// device must see to it that the worker is parked in the states that need it, and joined when
    /// the device is dropped.
    pub fn spawn(
        &self,
        name: &str,
        work: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<std::thread::JoinHandle<()>> {
        let host = self.clone();
        // A NUL would be a panic.
        let thread_name = name.replace('\0', "");
        std::thread::Builder::new().name(thread_name.clone()).spawn(move || {
            if let Err(text) = crate::shim::guard(work) {
                host.fail(&format!("Worker {thread_name} panicked: {text}"));
            }
        })
    }

    /// Whether `fail` was called since the last question.
    pub(crate) fn take_failed(&self) -> bool {
        self.inner.failed.swap(false, Ordering::SeqCst)
    }

    pub(crate) fn set_last_error(&self, text: &str) {
        if let Some(set) = self.inner.table.set_last_error {
            // SAFETY: valid context and text.
            unsafe { set(self.inner.ctx, text.as_ptr().cast(), text.len() as u64) }
        }
    }
}

/// `None`: all is well.
fn dma_kind(status: i32) -> Option<DmaErrorKind> {
    Some(match status {
        abi::DROGHER_OK => return None,
        abi::DROGHER_ERR_FAULT => DmaErrorKind::Fault,
        abi::DROGHER_ERR_PERM => DmaErrorKind::NotAllowed,
        abi::DROGHER_ERR_SHUTDOWN => DmaErrorKind::Shutdown,
        abi::DROGHER_ERR_INVAL => DmaErrorKind::Invalid,
        abi::DROGHER_ERR_BUSY => DmaErrorKind::Busy,
        other => DmaErrorKind::Other(other),
    })
}
