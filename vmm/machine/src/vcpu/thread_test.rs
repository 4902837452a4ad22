use crate::common::{self, LONG, asm};
use crate::console::ConsoleConfig;
use crate::vcpu::msrs;
use drogher_iommu_types::Oa;

/// MSR_KVM_SYSTEM_TIME_NEW: where the guest's clock page is, and that it is on.
const SYSTEM_TIME: u32 = 0x4B56_4D01;
const CLOCK_PAGE: u64 = 0x8_0000;
/// `flags` of `pvclock_vcpu_time_info`, and PVCLOCK_GUEST_STOPPED in it.
const FLAGS: u64 = CLOCK_PAGE + 29;
const GUEST_STOPPED: u8 = 2;

#[test]
fn a_guest_is_told_that_it_stood_still() {
    if common::skipped("a_guest_is_told_that_it_stood_still") {
        return;
    }
    let machine = common::machine(asm::SPIN, ConsoleConfig::None);
    if !machine.vm().caps().kvmclock_ctrl {
        return;
    }
    let flags = || {
        let mut flags = [0];
        machine.ram().read_at(Oa(FLAGS), &mut flags).expect("inside RAM");
        flags[0] & GUEST_STOPPED
    };
    {
        let inner = machine.vcpu(0).inner().expect("parked");
        assert!(msrs::set_one(&inner.fd, SYSTEM_TIME, CLOCK_PAGE | 1), "KVM has its clock");
    }
    machine.start(vec![()]).expect("it starts");
    common::until("the flag", || flags() == GUEST_STOPPED);
    machine.pause_vcpus(LONG).expect("it stops");
    // As the guest does when it has seen it.
    machine.ram().write_at(Oa(FLAGS), &[0]).expect("inside RAM");
    machine.start(vec![()]).expect("it goes on");
    common::until("the flag again", || flags() == GUEST_STOPPED);
}
