//! The thread of a vCPU: wait for a permit, run the guest, serve its exits, leave cleanly.

use kvm_ioctls::{VcpuExit, VcpuFd};

use drogher_iommu_types::mutant;

use super::Shared;
use super::control::Control;
use super::report;
use crate::bus::Bus;
use crate::events::GuestEvent;

/// After a stop was asked for, an access may need several re-entries to complete: an MMIO access
/// across a page, or a string operation. More than these would be an endless loop in KVM.
const MOST_COMPLETIONS: usize = 1024;

/// What an exit led to.
enum After {
    /// Enter the guest again.
    Go,
    /// KVM_RUN was interrupted, with nothing pending.
    Interrupted,
    /// The guest cannot or shall not go on.
    Event(GuestEvent),
}

/// Tells the owner that the thread is gone, however it ended.
struct Ended<'a>(&'a Control);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.ended();
    }
}

pub(super) fn main(shared: &Shared) {
    super::kick::unblock();
    let _ended = Ended(&shared.control);
    while let Some(permit) = shared.control.next() {
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(shared)));
        if ran.is_err() {
            let report = format!("The thread of vCPU {} panicked in a device's code", shared.id);
            shared.vm.events().push(GuestEvent::InternalError { report });
        }
        // In this order: who sees the thread parked may count on the permit being gone.
        drop(permit);
        shared.control.parked();
    }
}

fn run(shared: &Shared) {
    let mut inner = shared.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let fd = &mut inner.fd;
    if shared.vm.caps().kvmclock_ctrl && !mutant!("pause-untold") {
        // By a flag in its clock page: its watchdogs then do not take the time that it stood for a fault.
        // A guest that has no such page yet has nothing to be told, which KVM calls invalid.
        let _ = fd.kvmclock_ctrl();
    }
    while !shared.control.stopping() {
        if let After::Event(event) = enter(shared, fd) {
            stop_at(shared, fd, event);
            return;
        }
    }
    complete(shared, fd);
}

/// The guest ended or cannot go on: leave it as cleanly as any other stop, then say so.
fn stop_at(shared: &Shared, fd: &mut VcpuFd, event: GuestEvent) {
    if matches!(event, GuestEvent::Shutdown | GuestEvent::Reset) {
        complete(shared, fd);
    }
    shared.vm.events().push(event);
}

/// Enters KVM with `immediate_exit` until nothing is pending: only then have the registers and
/// RAM taken in the result of the last port or MMIO access (KVM API, 5: `kvm_run`).
fn complete(shared: &Shared, fd: &mut VcpuFd) {
    if mutant!("pending-pio-not-completed") {
        return;
    }
    shared.page.set_immediate_exit(true);
    for _ in 0..MOST_COMPLETIONS {
        match enter(shared, fd) {
            After::Go => {}
            After::Interrupted => return,
            After::Event(event) => {
                shared.vm.events().push(event);
                return;
            }
        }
    }
    let report = format!("vCPU {} has an access that never completes", shared.id);
    shared.vm.events().push(GuestEvent::InternalError { report });
}

/// One KVM_RUN and the exit that ended it.
fn enter(shared: &Shared, fd: &mut VcpuFd) -> After {
    let bus = shared.vm.bus();
    let stop = match fd.run() {
        Ok(VcpuExit::IoOut(port, data)) => return port_write(bus, port, data, element(shared)),
        Ok(VcpuExit::IoIn(port, data)) => {
            data.chunks_mut(element(shared)).for_each(|d| bus.pio_read(port, d));
            return After::Go;
        }
        Ok(VcpuExit::MmioRead(gpa, data)) => {
            bus.mmio_read(gpa, data);
            return After::Go;
        }
        Ok(VcpuExit::MmioWrite(gpa, data)) => {
            bus.mmio_write(gpa, data);
            return After::Go;
        }
        // Not with an in-kernel local APIC, where the vCPU waits in the kernel; harmless if so.
        Ok(VcpuExit::Hlt | VcpuExit::IrqWindowOpen) => return After::Go,
        Ok(VcpuExit::Intr) => return After::Interrupted,
        Ok(exit) => report::Stop::from_exit(&exit, shared),
        Err(e) => match e.errno() {
            libc::EINTR => return After::Interrupted,
            // A vCPU that waits to be started by another one.
            libc::EAGAIN => return After::Go,
            errno => report::Stop::from_error(std::io::Error::from_raw_os_error(errno)),
        },
    };
    After::Event(stop.into_event(shared.id, fd))
}

/// Size of one element of a port access. A string instruction hands over several at once.
fn element(shared: &Shared) -> usize {
    shared.page.io_element().max(1)
}

fn port_write(bus: &Bus, port: u16, data: &[u8], element: usize) -> After {
    let mut event = None;
    for value in data.chunks(element) {
        event = bus.pio_write(port, value).or(event);
    }
    event.map_or(After::Go, After::Event)
}

#[cfg(test)]
#[path = "thread_test.rs"]
mod tests;
