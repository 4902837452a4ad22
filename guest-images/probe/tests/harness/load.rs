//! Memory with the probe in it, and processors as PVH wants them.
#![expect(unsafe_code, reason = "guest memory is handed to KVM here")]

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_start_info};
use linux_loader::loader::{Cmdline, Elf, KernelLoader, load_cmdline};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

const START_INFO: u64 = 0x6000;
const MEMORY_MAP: u64 = 0x7000;
const COMMAND_LINE: u64 = 0x2_0000;
const MAGIC: u32 = 0x336e_c578;
/// Where the second range of RAM is when there is more than this.
const LOW_END: usize = 64 << 20;
const HIGH: u64 = 4 << 30;

/// RAM with the probe loaded, and its entry. Anything over 64 MiB is put above 4 GiB, so that
/// the probe meets both with little memory.
pub fn memory(vm: &VmFd, bytes: usize, line: &str) -> (GuestMemoryMmap, u64) {
    let low = bytes.min(LOW_END);
    let mut ranges = vec![(GuestAddress(0), low)];
    if bytes > low {
        ranges.push((GuestAddress(HIGH), bytes - low));
    }
    let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&ranges).expect("RAM is mapped");
    for (slot, region) in memory.iter().enumerate() {
        let userspace_addr = region.get_host_address(vm_memory::MemoryRegionAddress(0));
        let region = kvm_userspace_memory_region {
            slot: u32::try_from(slot).expect("Two slots"),
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: userspace_addr.expect("The region has a start") as u64,
            flags: 0,
        };
        // SAFETY: the mapping lives as long as `memory`, which the machine keeps longer than
        // its vCPUs run.
        unsafe { vm.set_user_memory_region(region) }.expect("KVM takes the slot");
    }
    let image = &mut std::io::Cursor::new(drogher_probe::ELF);
    let loaded = Elf::load(&memory, None, image, None).expect("The probe is an ELF");
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        panic!("The probe has no PVH entry: {:?}", loaded.pvh_boot_cap);
    };
    let mut command_line = Cmdline::new(2048).expect("A length");
    command_line.insert_str(line).expect("The options fit");
    load_cmdline(&memory, GuestAddress(COMMAND_LINE), &command_line).expect("It fits");
    let map: Vec<_> = memory
        .iter()
        .map(|region| hvm_memmap_table_entry {
            addr: region.start_addr().0,
            size: region.len(),
            type_: 1,
            reserved: 0,
        })
        .collect();
    let info = hvm_start_info {
        magic: MAGIC,
        version: 1,
        cmdline_paddr: COMMAND_LINE,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: u32::try_from(map.len()).expect("Two entries"),
        ..hvm_start_info::default()
    };
    let mut params = BootParams::new(&info, GuestAddress(START_INFO));
    params.set_sections(&map, GuestAddress(MEMORY_MAP));
    PvhBootConfigurator::write_bootparams(&params, &memory).expect("The boot parameters fit");
    (memory, entry.0)
}

/// A vCPU: at the PVH entry, or waiting for its STARTUP.
pub fn vcpu(kvm: &Kvm, vm: &VmFd, id: u64, entry: Option<u64>) -> VcpuFd {
    let vcpu = vm.create_vcpu(id).expect("KVM makes a vCPU");
    let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).expect("KVM has CPUID");
    for leaf in cpuid.as_mut_slice().iter_mut().filter(|leaf| leaf.function == 1) {
        leaf.ebx = leaf.ebx & 0x00ff_ffff | u32::try_from(id).expect("Few vCPUs") << 24;
    }
    vcpu.set_cpuid2(&cpuid).expect("KVM takes CPUID");
    let Some(entry) = entry else { return vcpu };
    let flat = |type_, selector| kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    };
    let mut sregs = vcpu.get_sregs().expect("A vCPU has registers");
    sregs.cs = flat(0xb, 0x8);
    [sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss] = [flat(0x3, 0x10); 5];
    sregs.tr = kvm_segment { limit: 0x67, type_: 0xb, present: 1, ..kvm_segment::default() };
    sregs.cr0 = 0x11;
    vcpu.set_sregs(&sregs).expect("KVM takes registers");
    let regs = kvm_regs { rip: entry, rbx: START_INFO, rflags: 2, ..kvm_regs::default() };
    vcpu.set_regs(&regs).expect("KVM takes registers");
    vcpu
}
