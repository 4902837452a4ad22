use super::*;

fn caps(tsc_deadline: bool) -> Caps {
    Caps {
        manual_dirty_log: 3,
        sregs2: true,
        xsave2_bytes: 4096,
        clock_flags: 14,
        vcpu_attributes: true,
        exception_payload: true,
        triple_fault_event: true,
        kvmclock_ctrl: true,
        mce: tsc_deadline,
        pmu_off: true,
        ioeventfd_any_length: true,
        tsc_deadline,
        max_routes: 4096,
        max_vcpus: 4,
    }
}

fn entry(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
}

#[test]
fn what_cannot_be_moved_is_not_advertised() {
    let mut one = entry(1, 0, [0, 0, u32::MAX, u32::MAX]);
    adjust(&mut one, &caps(false));
    assert_eq!(one.ecx & (VMX | PDCM | TSC_DEADLINE), 0);
    assert_eq!(one.edx, !(MCE | MCA));
    let mut seven = entry(7, 0, [1, u32::MAX, u32::MAX, u32::MAX]);
    adjust(&mut seven, &caps(true));
    assert_eq!((seven.ebx, seven.ecx), (!(SGX | INTEL_PT), !(SHADOW_STACK | SGX_LAUNCH)));
    let mut sub_leaf = entry(7, 1, [u32::MAX; 4]);
    adjust(&mut sub_leaf, &caps(true));
    assert_eq!((sub_leaf.ebx, sub_leaf.ecx), (u32::MAX, u32::MAX), "other bits in sub-leaf 1");
    let mut one = entry(1, 0, [0, 0, 0, u32::MAX]);
    adjust(&mut one, &caps(true));
    assert_eq!(one.edx, u32::MAX, "banks for machine checks can be had");
    assert_eq!(one.ecx, UNDER_HYPERVISOR | X2APIC | TSC_DEADLINE);
    let mut extended = entry(0x8000_0001, 0, [7, 7, u32::MAX, 7]);
    adjust(&mut extended, &caps(true));
    assert_eq!(extended.ecx & (SVM | PERF_CORE), 0);
    for function in [0xA, 0x12, 0x14, 0x1C, 0x8000_000A, 0x8000_0022] {
        let mut counters = entry(function, 0, [u32::MAX; 4]);
        adjust(&mut counters, &caps(true));
        assert_eq!((counters.eax, counters.ebx, counters.ecx, counters.edx), (0, 0, 0, 0));
    }
    let mut hypervisor = entry(HYPERVISOR, 0, [0x4000_0001, 1, 2, 3]);
    adjust(&mut hypervisor, &caps(true));
    assert_eq!((hypervisor.eax, hypervisor.ebx), (TIMING, 1));
}

#[test]
fn each_vcpu_has_its_own_id_in_one_socket() {
    let of = |e, id, count: u32| topology(e, id, count, count.next_power_of_two().trailing_zeros());
    let one = of(entry(1, 0, [0, 0xFFFF_FFFF, 0, 0]), 2, 3);
    assert_eq!((one.ebx, one.edx), (0x0203_FFFF, HTT));
    let alone = of(entry(1, 0, [0, 0, 0, u32::MAX]), 0, 1);
    assert_eq!((alone.ebx, alone.edx & HTT), (0x0001_0000, 0));
    let leaf = |index| of(entry(0xB, index, [9; 4]), 2, 3);
    assert_eq!((leaf(0).eax, leaf(0).ebx, leaf(0).ecx, leaf(0).edx), (0, 1, 0x100, 2));
    assert_eq!((leaf(1).eax, leaf(1).ebx, leaf(1).ecx, leaf(1).edx), (2, 3, 0x201, 2));
    assert_eq!((leaf(2).eax, leaf(2).ebx, leaf(2).ecx, leaf(2).edx), (0, 0, 2, 2));
    // Level 3 is shared by three, level 1 by nobody; four ids are reserved.
    let (l3, l1) = (3 << 5 | 3, 1 << 5 | 1);
    assert_eq!(of(entry(4, 3, [l3, 0, 0, 0]), 0, 3).eax, l3 | 2 << 14 | 3 << 26);
    assert_eq!(of(entry(4, 0, [l1, 0, 0, 0]), 0, 3).eax, l1 | 3 << 26);
    assert_eq!(of(entry(4, 4, [0; 4]), 0, 3).eax, 0, "the end of the list stays it");
    assert_eq!(of(entry(0x8000_0008, 0, [0x3030, 0, 0xF0FF, 0]), 1, 4).ecx, 0x2003);
    assert_eq!(of(entry(0x8000_001E, 0, [9, 0xFFFF, 9, 9]), 1, 4).eax, 1);
}
