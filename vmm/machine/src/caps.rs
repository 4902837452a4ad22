//! What this host's KVM can do, asked once; what the machine cannot be without.

use kvm_bindings::{
    KVM_CAP_ADJUST_CLOCK, KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_IMMEDIATE_EXIT,
    KVM_CAP_IOEVENTFD_ANY_LENGTH, KVM_CAP_KVMCLOCK_CTRL, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    KVM_CAP_MCE, KVM_CAP_PMU_CAPABILITY, KVM_CAP_SREGS2, KVM_CAP_VCPU_ATTRIBUTES,
    KVM_CAP_X86_TRIPLE_FAULT_EVENT, KVM_CAP_XSAVE2, KVM_PMU_CAP_DISABLE,
};
use kvm_ioctls::{Cap, Kvm, VmFd};

use crate::vm::VmError;

/// The capabilities that choose between two ways of doing something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caps {
    /// Bits of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: 1 manual protect, 2 initially set.
    pub manual_dirty_log: u64,
    /// KVM_GET_SREGS2 exists, which has the PDPTRs.
    pub sregs2: bool,
    /// Bytes of the extended state, by KVM_GET_XSAVE2; 0 if there is only KVM_GET_XSAVE, and so
    /// 4096.
    pub xsave2_bytes: usize,
    /// Flags that KVM_GET_CLOCK and KVM_SET_CLOCK know.
    pub clock_flags: u32,
    /// vCPU attributes exist, KVM_VCPU_TSC_OFFSET perhaps among them.
    pub vcpu_attributes: bool,
    /// vcpu_events can carry an exception's payload.
    pub exception_payload: bool,
    /// vcpu_events can carry a pending triple fault.
    pub triple_fault_event: bool,
    /// A guest can be told that it stood still.
    pub kvmclock_ctrl: bool,
    /// Banks for machine checks can be had.
    pub mce: bool,
    /// Performance counters can be switched off.
    pub pmu_off: bool,
    /// An ioeventfd of any width is possible.
    pub ioeventfd_any_length: bool,
    /// The local APIC timer has its TSC-deadline mode.
    pub tsc_deadline: bool,
    /// Entries that the interrupt routing table may have.
    pub max_routes: usize,
    /// vCPUs that a VM may have.
    pub max_vcpus: usize,
}

/// What no machine can be made without, by the name that KVM's documentation gives it.
const NEEDED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::PitState2, "KVM_CAP_PIT_STATE2"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
    (Cap::GetTscKhz, "KVM_CAP_GET_TSC_KHZ"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

const _: () = assert!(KVM_CAP_IMMEDIATE_EXIT == Cap::ImmediateExit as u32);

impl Caps {
    /// Asks KVM.
    ///
    /// # Errors
    /// `MissingCapability` names the first one that is needed and absent.
    pub fn query(kvm: &Kvm, vm: &VmFd) -> Result<Self, VmError> {
        for &(cap, name) in NEEDED {
            if !vm.check_extension(cap) {
                return Err(VmError::MissingCapability(name));
            }
        }
        let number = |cap: u32| u32::try_from(vm.check_extension_raw(cap.into())).unwrap_or(0);
        Ok(Self {
            manual_dirty_log: u64::from(number(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)) & 3,
            sregs2: number(KVM_CAP_SREGS2) > 0,
            xsave2_bytes: number(KVM_CAP_XSAVE2) as usize,
            clock_flags: number(KVM_CAP_ADJUST_CLOCK),
            vcpu_attributes: number(KVM_CAP_VCPU_ATTRIBUTES) > 0,
            exception_payload: number(KVM_CAP_EXCEPTION_PAYLOAD) > 0,
            triple_fault_event: number(KVM_CAP_X86_TRIPLE_FAULT_EVENT) > 0,
            kvmclock_ctrl: number(KVM_CAP_KVMCLOCK_CTRL) > 0,
            mce: number(KVM_CAP_MCE) > 0,
            pmu_off: number(KVM_CAP_PMU_CAPABILITY) & KVM_PMU_CAP_DISABLE != 0,
            ioeventfd_any_length: number(KVM_CAP_IOEVENTFD_ANY_LENGTH) > 0,
            tsc_deadline: vm.check_extension(Cap::TscDeadlineTimer),
            max_routes: usize::try_from(vm.check_extension_int(Cap::IrqRouting)).unwrap_or(0),
            max_vcpus: kvm.get_max_vcpus(),
        })
    }
}
