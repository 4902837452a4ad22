//! Why a vCPU cannot go on, in words, with its registers.

use std::fmt::Write as _;

use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, kvm_regs, kvm_segment, kvm_sregs,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::Shared;
use crate::events::GuestEvent;

/// What may be behind it, and the way out.
const EMULATED: &str = "\nThis host's KVM emulates what it cannot run natively, and does not know this \
    instruction. Stock kernels want a KVM on VMX or SVM; without one, scripts/lab starts a machine that has it.";

/// An exit after which the guest does not go on.
pub(super) struct Stop {
    triple_fault: bool,
    reason: String,
}

impl Stop {
    pub(super) fn from_exit(exit: &VcpuExit<'_>, shared: &Shared) -> Self {
        let reason = match exit {
            VcpuExit::Shutdown => {
                return Self {
                    triple_fault: true,
                    reason: "KVM_EXIT_SHUTDOWN: triple fault".into(),
                };
            }
            VcpuExit::InternalError => {
                let (suberror, data) = shared.page.internal_error();
                let name = match suberror {
                    KVM_INTERNAL_ERROR_EMULATION => "instruction emulation failed",
                    KVM_INTERNAL_ERROR_SIMUL_EX => "exceptions at the same time",
                    KVM_INTERNAL_ERROR_DELIVERY_EV => "fault while delivering an event",
                    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "unexpected hardware exit",
                    _ => "unknown",
                };
                let hint = match suberror {
                    KVM_INTERNAL_ERROR_EMULATION => EMULATED,
                    _ => "",
                };
                format!(
                    "KVM_EXIT_INTERNAL_ERROR: sub-error {suberror} ({name}), data {data:#x?}{hint}"
                )
            }
            VcpuExit::FailEntry(hardware, cpu) => {
                format!("KVM_EXIT_FAIL_ENTRY: hardware reason {hardware:#x} on host CPU {cpu}")
            }
            VcpuExit::MemoryFault { flags, gpa, size } => {
                format!("KVM_EXIT_MEMORY_FAULT: {size} bytes at GPA {gpa:#x}, flags {flags:#x}")
            }
            VcpuExit::SystemEvent(kind, data) => {
                format!("KVM_EXIT_SYSTEM_EVENT: type {kind}, data {data:#x?}")
            }
            other => format!("unexpected exit {other:?}"),
        };
        Self { triple_fault: false, reason }
    }

    pub(super) fn from_error(error: std::io::Error) -> Self {
        Self { triple_fault: false, reason: format!("KVM_RUN failed: {error}") }
    }

    pub(super) fn into_event(self, id: u8, fd: &VcpuFd) -> GuestEvent {
        let report = format!("vCPU {id} stopped: {}\n{}", self.reason, registers(fd));
        if self.triple_fault {
            GuestEvent::TripleFault { report }
        } else {
            GuestEvent::InternalError { report }
        }
    }
}

/// The registers, several a line; says so where KVM refuses them.
fn registers(fd: &VcpuFd) -> String {
    match (fd.get_regs(), fd.get_sregs()) {
        (Ok(regs), Ok(sregs)) => format(&regs, &sregs),
        (Err(e), _) | (_, Err(e)) => format!("KVM does not give its registers: {e}\n"),
    }
}

fn format(r: &kvm_regs, s: &kvm_sregs) -> String {
    let mut text = String::new();
    let rows: [&[(&str, u64)]; 6] = [
        &[("rip", r.rip), ("rflags", r.rflags), ("rsp", r.rsp), ("rbp", r.rbp)],
        &[("rax", r.rax), ("rbx", r.rbx), ("rcx", r.rcx), ("rdx", r.rdx)],
        &[("rsi", r.rsi), ("rdi", r.rdi), ("r8", r.r8), ("r9", r.r9)],
        &[("r10", r.r10), ("r11", r.r11), ("r12", r.r12), ("r13", r.r13)],
        &[("r14", r.r14), ("r15", r.r15), ("cr0", s.cr0), ("cr2", s.cr2)],
        &[("cr3", s.cr3), ("cr4", s.cr4), ("efer", s.efer), ("apic", s.apic_base)],
    ];
    for row in rows {
        for (name, value) in row {
            // Writing to a string cannot fail.
            let _ = write!(text, " {name:>6}={value:016x}");
        }
        text.push('\n');
    }
    let segments: [(&str, &kvm_segment); 7] = [
        ("cs", &s.cs),
        ("ss", &s.ss),
        ("ds", &s.ds),
        ("es", &s.es),
        ("fs", &s.fs),
        ("gs", &s.gs),
        ("tr", &s.tr),
    ];
    for (name, g) in segments {
        let _ = writeln!(
            text,
            " {name:>6}={:04x} base={:016x} limit={:08x} type={:x} dpl={} l={} db={}",
            g.selector, g.base, g.limit, g.type_, g.dpl, g.l, g.db
        );
    }
    for (name, t) in [("gdt", &s.gdt), ("idt", &s.idt)] {
        let _ = writeln!(text, " {name:>6}={:016x} limit={:04x}", t.base, t.limit);
    }
    text
}
