//! The host's side of one instance: what its functions may do just now, and what it did.

use crate::instance_error::Cause;
use crate::pin_table::PinTable;
use drogher_iommu::{FaultReason, Requester};
use drogher_iommu_types::{Gpa, mutant};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Importance of a log line of a plugin.
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

/// What became of a write to an address that is not memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerWrite {
    /// Posted: it will arrive, after all that were taken before it.
    Taken,
    /// No other device is there.
    NotAPeer,
    /// One is, to which this device may not write.
    NotAllowed,
    /// It has no room for more just now; nothing was taken.
    Full,
    /// It takes nothing: it is in ERROR, or does not run.
    Closed,
}

/// What an instance needs of the machine. The functions are called from any thread, of the plugin's
/// too, and must not call into the instance, nor block for long: stopping a device waits for them.
pub trait HostServices: Send + Sync {
    /// The device triggers an MSI-X vector, below the number that it described. Only called while
    /// the device may interrupt: once a change to a stopped state or NDMA has returned, no more.
    fn irq(&self, vector: u16);

    /// The device writes `data`, up to 4096 bytes, at `gpa`, where there is no memory: perhaps to
    /// another device. Posted: returns at once, and calls into nobody. Only called with data while
    /// the device may write to others: once a change to a P2P or stopped state or NDMA has returned,
    /// no more. Without data it only asks whether there is somebody.
    fn peer_write(&self, gpa: u64, data: &[u8]) -> PeerWrite {
        let _ = (gpa, data);
        PeerWrite::NotAPeer
    }

    /// The device writes a line to the log: bounded in length and rate.
    fn log(&self, level: LogLevel, text: &str);

    /// The device went to ERROR; its DMA and interrupts have ended. Called once each time.
    fn failed(&self, cause: &Cause) {
        let _ = cause;
    }
}

/// What an instance did that is worth counting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// DMA refused because of state, NDMA or ERROR. Not 0: the plugin broke a promise.
    pub dma_refused: u64,
    /// Interrupts refused because of state, NDMA or ERROR.
    pub irqs_refused: u64,
    /// DMA that faulted: unmapped, no permission.
    pub dma_faults: u64,
    /// Interrupts delivered.
    pub irqs: u64,
    /// Lines of log left out because there were too many.
    pub log_dropped: u64,
}

/// Locks, also after a panic of another holder: the data stay consistent at each step.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lines of log in one second.
const LOG_RATE: u32 = 50;

struct LogBudget {
    since: Instant,
    lines: u32,
}

/// What only an instance has; a plugin as a whole has none.
pub(crate) struct DeviceSide {
    pub(crate) requester: Requester,
    pub(crate) services: Arc<dyn HostServices>,
}

/// What `host_ctx` points to; kept alive by reference counts on both sides.
pub(crate) struct Context {
    /// Instance or plugin, for messages.
    pub(crate) name: String,
    pub(crate) device: Option<DeviceSide>,
    /// Interrupts may pass. Held for reading while one does.
    irq_gate: RwLock<bool>,
    /// Writes to other devices may pass. Held for reading while one does.
    peer_gate: RwLock<bool>,
    pub(crate) vectors: AtomicU32,
    /// Set once, if the plugin pins.
    pub(crate) pins: OnceLock<PinTable>,
    /// After destroy, and once a call was late.
    shut: AtomicBool,
    /// The function of the plugin that the host is in, or was in last.
    calling: Mutex<&'static str>,
    last_error: Mutex<Option<String>>,
    /// Held while `broken` and the gates change together: `fail` comes from any thread at any time.
    /// Taken before all others.
    changing: Mutex<()>,
    broken: Mutex<Option<Arc<Cause>>>,
    log_budget: Mutex<LogBudget>,
    pub(crate) dma_refused: AtomicU64,
    pub(crate) dma_faults: AtomicU64,
    irqs_refused: AtomicU64,
    irqs: AtomicU64,
    log_dropped: AtomicU64,
}

/// What became of an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Irq {
    Delivered,
    Refused,
    NoVector,
}

impl Context {
    /// Closed: no DMA, no interrupts.
    pub(crate) fn new(name: String, device: Option<DeviceSide>) -> Arc<Context> {
        Arc::new(Context {
            name,
            device,
            irq_gate: RwLock::new(false),
            peer_gate: RwLock::new(false),
            vectors: AtomicU32::new(0),
            pins: OnceLock::new(),
            shut: AtomicBool::new(false),
            calling: Mutex::new("create"),
            last_error: Mutex::new(None),
            changing: Mutex::new(()),
            broken: Mutex::new(None),
            log_budget: Mutex::new(LogBudget { since: Instant::now(), lines: 0 }),
            dma_refused: AtomicU64::new(0),
            dma_faults: AtomicU64::new(0),
            irqs_refused: AtomicU64::new(0),
            irqs: AtomicU64::new(0),
            log_dropped: AtomicU64::new(0),
        })
    }

    /// Lets DMA and interrupts pass. Does nothing if the device is broken.
    pub(crate) fn open(&self) {
        let _changing = lock(&self.changing);
        if self.broken().is_some() {
            return;
        }
        if let Some(device) = &self.device {
            device.requester.restore();
        }
        *self.irq_gate.write().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Lets writes to other devices pass, as far as DMA does. Does nothing if the device is broken.
    pub(crate) fn open_to_peers(&self) {
        let _changing = lock(&self.changing);
        if self.broken().is_none() {
            *self.peer_gate.write().unwrap_or_else(PoisonError::into_inner) = true;
        }
    }

    /// Ends writes to other devices: on return none is under way.
    pub(crate) fn close_to_peers(&self) {
        if !mutant!("p2p-gate-open") {
            *self.peer_gate.write().unwrap_or_else(PoisonError::into_inner) = false;
        }
    }

    /// A write of the device to what is not memory.
    pub(crate) fn peer_write(&self, gpa: Gpa, data: &[u8]) -> Result<(), FaultReason> {
        let Some(device) = &self.device else { return Err(FaultReason::NotMapped) };
        let open = self.peer_gate.read().unwrap_or_else(PoisonError::into_inner);
        // With the gate closed it only asks: not every address without memory is a peer's.
        let data = if *open { data } else { &[] };
        match device.services.peer_write(gpa.0, data) {
            PeerWrite::Taken if *open => Ok(()),
            PeerWrite::Taken | PeerWrite::Full if !*open => Err(FaultReason::Revoked),
            PeerWrite::Taken | PeerWrite::Full => Err(FaultReason::PeerBusy),
            PeerWrite::NotAPeer | PeerWrite::NotAllowed | PeerWrite::Closed => {
                Err(FaultReason::NotMapped)
            }
        }
    }

    /// Ends DMA and interrupts: on return none is under way. The text says what stayed in flight.
    pub(crate) fn close(&self) -> Result<(), String> {
        self.close_to_peers();
        *self.irq_gate.write().unwrap_or_else(PoisonError::into_inner) = false;
        match &self.device {
            Some(device) => device.requester.revoke().map_err(|error| error.to_string()),
            None => Ok(()),
        }
    }

    /// As [`Self::close`], at the entry to NDMA.
    pub(crate) fn close_for_ndma(&self) -> Result<(), String> {
        if mutant!("ndma-still-dma") { Ok(()) } else { self.close() }
    }

    /// Moves the device to ERROR; the first cause stays.
    pub(crate) fn break_down(&self, cause: Cause) -> Arc<Cause> {
        let cause = {
            // Until the gates are closed, so that no reset falls between and has its gates closed.
            let _changing = lock(&self.changing);
            let cause = {
                let mut broken = lock(&self.broken);
                if let Some(cause) = &*broken {
                    return cause.clone();
                }
                broken.insert(Arc::new(cause)).clone()
            };
            if let Err(what) = self.close() {
                tracing::error!(device = self.name, what, "DMA in flight did not end");
            }
            cause
        };
        if let Some(device) = &self.device {
            device.services.failed(&cause);
        }
        cause
    }

    /// A call was late: the device is given up. Nothing is called for it any more, and what it calls
    /// is refused.
    pub(crate) fn give_up(&self, deadline: Duration) -> Arc<Cause> {
        let cause = self.break_down(Cause::Late { call: self.calling(), deadline });
        self.shut();
        cause
    }

    pub(crate) fn broken(&self) -> Option<Arc<Cause>> {
        lock(&self.broken).clone()
    }

    /// Before a reset.
    pub(crate) fn mend(&self) {
        let _changing = lock(&self.changing);
        *lock(&self.broken) = None;
    }

    /// The host is about to call this function of the plugin; false if it must not any more.
    pub(crate) fn enter(&self, call: &'static str) -> bool {
        if self.is_shut() {
            return false;
        }
        *lock(&self.calling) = call;
        true
    }

    /// The function that was called last.
    pub(crate) fn calling(&self) -> &'static str {
        *lock(&self.calling)
    }

    pub(crate) fn shut(&self) {
        self.shut.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_shut(&self) -> bool {
        self.shut.load(Ordering::SeqCst)
    }

    pub(crate) fn set_last_error(&self, text: String) {
        *lock(&self.last_error) = Some(text);
    }

    /// What the plugin said about its failure.
    pub(crate) fn take_last_error(&self) -> Option<String> {
        lock(&self.last_error).take()
    }

    pub(crate) fn irq(&self, vector: u32) -> Irq {
        let Some(device) = &self.device else { return Irq::Refused };
        let vector = match u16::try_from(vector) {
            Ok(number) if vector < self.vectors.load(Ordering::SeqCst) => number,
            _ => return Irq::NoVector,
        };
        let open = self.irq_gate.read().unwrap_or_else(PoisonError::into_inner);
        if !*open {
            self.irqs_refused.fetch_add(1, Ordering::Relaxed);
            return Irq::Refused;
        }
        device.services.irq(vector);
        self.irqs.fetch_add(1, Ordering::Relaxed);
        Irq::Delivered
    }

    pub(crate) fn log(&self, level: LogLevel, text: &str) {
        {
            let mut budget = lock(&self.log_budget);
            if budget.since.elapsed() >= Duration::from_secs(1) {
                *budget = LogBudget { since: Instant::now(), lines: 0 };
            }
            if budget.lines >= LOG_RATE {
                self.log_dropped.fetch_add(1, Ordering::Relaxed);
                return;
            }
            budget.lines += 1;
        }
        match &self.device {
            Some(device) => device.services.log(level, text),
            None => tracing::info!(plugin = self.name, ?level, "{text}"),
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            dma_refused: self.dma_refused.load(Ordering::Relaxed),
            irqs_refused: self.irqs_refused.load(Ordering::Relaxed),
            dma_faults: self.dma_faults.load(Ordering::Relaxed),
            irqs: self.irqs.load(Ordering::Relaxed),
            log_dropped: self.log_dropped.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
#[path = "context_test.rs"]
mod tests;
