//! What a machine has besides vCPUs and PCI devices: serial console, CMOS clock, interval timer, power
//! button.
//!
//! Three of them act without a vCPU: the timer ticks in the kernel, and KVM injects the console's and
//! the button's interrupt from a work queue. While the machine is held still neither does, so the interrupt
//! controllers can be read in peace, and are the same however often they are read.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::kvm_pit_state2;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use zerocopy::IntoBytes;

use crate::cmos::Cmos;
use crate::console::{ConsoleConfig, Output};
use crate::irqchip::{self, PIT_STOPPED};
use crate::layout;
use crate::machine::MachineError;
use crate::record::{Reader, StateError, Tag, Writer};
use crate::serial::{self, Com1};
use crate::vm::{Vm, VmError, refused};
use crate::wiring::Wiring;

#[derive(Default)]
struct State {
    /// The irqfds are on, the timer ticks.
    runs: bool,
    /// The timer's state while it does not tick, unless it has never run.
    pit: Option<kvm_pit_state2>,
}

/// The platform devices of one machine. Held still after creation.
pub(crate) struct Platform {
    com1: Arc<Com1>,
    cmos: Arc<Cmos>,
    button: EventFd,
    state: Mutex<State>,
    vm: Arc<Vm>,
}

impl Platform {
    /// COM1 and CMOS on the ports, COM1's input watched.
    pub(crate) fn new(vm: &Arc<Vm>, console: ConsoleConfig) -> Result<Self, MachineError> {
        fn failed<E: std::error::Error + Send + Sync + 'static>(
            what: &'static str,
        ) -> impl FnOnce(E) -> MachineError {
            move |e| MachineError::Platform { what, source: Box::new(e) }
        }
        let (input, output) = console.open()?;
        let output = Output::new(output, vm.io());
        let com1 = Com1::new(output, vm.io()).map_err(failed("serial console"))?;
        let ports = layout::COM1..layout::COM1 + serial::PORTS;
        vm.claim_pio(ports, Arc::clone(&com1) as _).map_err(failed("serial console"))?;
        if let Some(input) = input
            && let Err(e) = com1.attach_input(input)
        {
            // A regular file or /dev/null: epoll cannot watch it, and the guest runs without.
            tracing::info!("the console has no input: {e}");
        }
        let cmos = Arc::new(Cmos::default());
        let ports = layout::CMOS_PORT..layout::CMOS_PORT + 2;
        vm.claim_pio(ports, Arc::clone(&cmos) as _).map_err(failed("CMOS clock"))?;
        let button = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(failed("power button"))?;
        Ok(Self { com1, cmos, button, state: Mutex::default(), vm: Arc::clone(vm) })
    }

    // Plain values, whole at any time: a panic elsewhere cannot have torn them.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the console's output goes.
    pub(crate) fn console(&self) -> &Output {
        self.com1.output()
    }

    fn set_pit(&self, pit: &kvm_pit_state2) -> Result<(), VmError> {
        self.vm.fd().set_pit2(pit).map_err(refused("set the interval timer"))
    }

    /// Interrupts without a vCPU: eventfd, GSI, and what they are called.
    fn lines(&self) -> [(&EventFd, u32, &'static str); 2] {
        [
            (self.com1.interrupt(), layout::COM1_GSI, "serial console"),
            (&self.button, layout::BUTTON_GSI, "power button"),
        ]
    }

    /// Raises the power button's interrupt. Its line is edge triggered, and has no state.
    pub(crate) fn press_power_button(&self) -> io::Result<()> {
        // Under the lock: what is counted while the line is off would be forgotten.
        if !self.state().runs {
            return Err(io::Error::other("the machine is held still"));
        }
        self.button.write(1)
    }

    /// Stops the timer and takes the irqfds off. On return every interrupt of theirs is
    /// in the interrupt controllers. vCPUs and I/O thread are parked. Idempotent.
    pub(crate) fn hold(&self) -> Result<(), VmError> {
        let mut state = self.state();
        if !state.runs {
            return Ok(());
        }
        for (line, gsi, name) in self.lines() {
            let refused = refused(format!("unbind the interrupt of the {name}"));
            self.vm.fd().unregister_irqfd(line, gsi).map_err(refused)?;
        }
        state.runs = false;
        let pit = self.vm.fd().get_pit2().map_err(refused("get the interval timer"))?;
        state.pit = Some(pit);
        let mut stopped = pit;
        if let Some(first) = stopped.channels.first_mut() {
            // Only the first channel interrupts.
            first.mode = PIT_STOPPED;
        }
        self.set_pit(&stopped)
    }

    /// Undoes [`hold`](Self::hold). Idempotent.
    pub(crate) fn release(&self) -> Result<(), VmError> {
        let mut state = self.state();
        if state.runs {
            return Ok(());
        }
        for (line, gsi, name) in self.lines() {
            let refused = refused(format!("bind the interrupt of the {name}"));
            self.vm.fd().register_irqfd(line, gsi).map_err(refused)?;
            // KVM has taken notice of what was counted, but not taken it out.
            let _ = line.read();
        }
        state.runs = true;
        state.pit.take().map_or(Ok(()), |pit| self.set_pit(&pit))
    }

    pub(crate) fn save(&self, writer: &mut Writer<'_>) -> Result<(), StateError> {
        let fd = self.vm.fd();
        let pit = match self.state().pit {
            Some(pit) => pit,
            None => fd.get_pit2().map_err(|e| StateError::errno("get the interval timer", e))?,
        };
        writer.put(Tag::Pit, 0, pit.as_bytes());
        writer.put(Tag::Serial, 0, &self.com1.save());
        writer.put(Tag::Cmos, 0, &[self.cmos.index()]);
        Ok(())
    }

    /// Checks saved state without taking it; what is returned goes to [`load`](Self::load).
    pub(crate) fn parse<'a>(&self, reader: &Reader<'a>) -> Result<Saved<'a>, StateError> {
        let [cmos] = reader.get::<[u8; 1]>(Tag::Cmos, 0)?;
        let serial = reader.bytes(Tag::Serial, 0)?;
        Com1::check(serial)?;
        Ok(Saved { pit: irqchip::parse_pit(reader)?, serial, cmos })
    }

    /// Takes saved state over; a timer that is held ticks from [`release`](Self::release) on.
    pub(crate) fn load(&self, saved: &Saved<'_>) -> Result<(), StateError> {
        self.cmos.set_index(saved.cmos);
        self.com1.load(saved.serial)?;
        let mut state = self.state();
        if state.runs {
            let fd = self.vm.fd();
            return fd
                .set_pit2(&saved.pit)
                .map_err(|e| StateError::errno("set the interval timer", e));
        }
        state.pit = Some(saved.pit);
        Ok(())
    }
}

/// Saved state of the platform devices, checked.
pub(crate) struct Saved<'a> {
    pit: kvm_pit_state2,
    serial: &'a [u8],
    cmos: u8,
}
