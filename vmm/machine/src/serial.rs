//! The serial console: a 16550A at COM1, its interrupt by irqfd, its bytes from and to the
//! [`console`](crate::console).

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};
use vm_superio::serial::{SerialEvents, SerialState};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::console::Output;
use crate::io_thread::{Interest, IoError, IoHandle, Next, WatchId};
use crate::record::StateError;

/// Ports of the device.
pub const PORTS: u16 = 8;
/// Bytes of the receive FIFO that vm-superio models.
const FIFO: usize = 64;
/// Registers in the saved form, before the FIFO's bytes.
const REGISTERS: usize = 9;

#[derive(Debug, Clone)]
struct Interrupt(Arc<EventFd>);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

#[derive(Debug, Clone)]
struct Writer(Arc<Output>);

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        bytes.iter().for_each(|&byte| self.0.put(byte));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Wakes the input watch when the guest has emptied the FIFO.
#[derive(Debug, Clone)]
struct Refill {
    io: IoHandle,
    watch: Arc<OnceLock<WatchId>>,
}

impl SerialEvents for Refill {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        if let Some(&id) = self.watch.get() {
            self.io.rearm(id);
        }
    }
}

type Uart = Serial<Interrupt, Refill, Writer>;

/// COM1. Registers may be accessed from any thread.
#[derive(Debug)]
pub struct Com1 {
    uart: Mutex<Uart>,
    interrupt: Interrupt,
    refill: Refill,
    output: Arc<Output>,
}

impl Com1 {
    /// A device after reset.
    ///
    /// # Errors
    /// The kernel has no eventfd left.
    pub fn new(output: Arc<Output>, io: &IoHandle) -> io::Result<Arc<Self>> {
        let interrupt = Interrupt(Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?));
        let refill = Refill { io: io.clone(), watch: Arc::new(OnceLock::new()) };
        let uart =
            Serial::with_events(interrupt.clone(), refill.clone(), Writer(Arc::clone(&output)));
        Ok(Arc::new(Self { uart: Mutex::new(uart), interrupt, refill, output }))
    }

    /// The eventfd of its interrupt line.
    #[must_use]
    pub fn interrupt(&self) -> &EventFd {
        &self.interrupt.0
    }

    /// Where its output goes.
    #[must_use]
    pub fn output(&self) -> &Output {
        &self.output
    }

    fn lock(&self) -> MutexGuard<'_, Uart> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Feeds it from `input` until that ends.
    ///
    /// # Errors
    /// `input` cannot be watched.
    pub fn attach_input(self: &Arc<Self>, input: OwnedFd) -> Result<(), IoError> {
        let watched =
            input.try_clone().map_err(|e| IoError::Watch { fd: -1, reason: e.to_string() })?;
        let weak = Arc::downgrade(self);
        let id =
            self.refill.io.add(watched, Interest::Read, Box::new(move || feed(&weak, &input)))?;
        // Only one input is ever attached.
        let _ = self.refill.watch.set(id);
        Ok(())
    }

    /// Registers and received bytes that the guest has not read.
    #[must_use]
    pub fn save(&self) -> Vec<u8> {
        let s = self.lock().state();
        let mut bytes = vec![
            s.baud_divisor_low,
            s.baud_divisor_high,
            s.interrupt_enable,
            s.interrupt_identification,
            s.line_control,
            s.line_status,
            s.modem_control,
            s.modem_status,
            s.scratch,
        ];
        bytes.extend_from_slice(&s.in_buffer);
        bytes
    }

    /// What [`load`](Self::load) would say of these bytes.
    ///
    /// # Errors
    /// They have the wrong size.
    pub fn check(bytes: &[u8]) -> Result<(), StateError> {
        parse(bytes).map(drop)
    }

    /// Takes saved state over. An interrupt that was asked for before the save is in the interrupt
    /// controllers' state, and is not asked for again.
    ///
    /// # Errors
    /// It has the wrong size.
    pub fn load(&self, bytes: &[u8]) -> Result<(), StateError> {
        let uart = Serial::from_state(
            &parse(bytes)?,
            self.interrupt.clone(),
            self.refill.clone(),
            Writer(Arc::clone(&self.output)),
        );
        // The library raises what is pending; EAGAIN: nothing was.
        let _ = self.interrupt.0.read();
        *self.lock() = uart.map_err(|e| bad(e.to_string()))?;
        Ok(())
    }
}

fn bad(reason: String) -> StateError {
    StateError::Device { device: "serial console", reason }
}

fn parse(bytes: &[u8]) -> Result<SerialState, StateError> {
    let Some((&[dll, dlh, ier, iir, lcr, lsr, mcr, msr, scr], fifo)) =
        bytes.split_first_chunk::<REGISTERS>()
    else {
        return Err(bad(format!("{} bytes are too few", bytes.len())));
    };
    if fifo.len() > FIFO {
        return Err(bad(format!("{} received bytes, at most {FIFO}", fifo.len())));
    }
    Ok(SerialState {
        baud_divisor_low: dll,
        baud_divisor_high: dlh,
        interrupt_enable: ier,
        interrupt_identification: iir,
        line_control: lcr,
        line_status: lsr,
        modem_control: mcr,
        modem_status: msr,
        scratch: scr,
        in_buffer: fifo.to_vec(),
    })
}

/// Moves input to the FIFO, as much as it takes. On the I/O thread.
fn feed(com1: &Weak<Com1>, input: &OwnedFd) -> Next {
    let Some(com1) = com1.upgrade() else { return Next::Remove };
    let mut uart = com1.lock();
    let mut buffer = [0; FIFO];
    let room = uart.fifo_capacity().min(FIFO);
    let Some(buffer) = buffer.get_mut(..room).filter(|b| !b.is_empty()) else {
        return Next::Pause;
    };
    match rustix::io::read(input, &mut *buffer) {
        Ok(0) => Next::Remove,
        Ok(n) => {
            if let Err(e) = uart.enqueue_raw_bytes(buffer.get(..n).unwrap_or_default()) {
                tracing::warn!("the serial console lost input: {e}");
            }
            Next::Keep
        }
        Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => Next::Keep,
        Err(e) => {
            tracing::warn!("the console's input ends: {e}");
            Next::Remove
        }
    }
}

impl DevicePio for Com1 {
    fn pio_read(&self, _base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        // A 16550 has byte registers; of a wider access only the first byte is one.
        if let (Some(first), Ok(offset)) = (data.first_mut(), u8::try_from(offset)) {
            *first = self.lock().read(offset);
        }
    }

    fn pio_write(&self, _base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if let (Some(&value), Ok(offset)) = (data.first(), u8::try_from(offset))
            && let Err(e) = self.lock().write(offset, value)
        {
            tracing::debug!("serial console: {e}");
        }
    }
}

#[cfg(test)]
#[path = "serial_test.rs"]
mod tests;
