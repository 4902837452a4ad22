//! KVM's calls that kvm-ioctls does not have, or not in the form needed here.
#![expect(
    unsafe_code,
    reason = "system calls on KVM's descriptors; every argument is a live \
    structure of the size that the call's number says"
)]

use std::io;
use std::os::fd::AsRawFd;

use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_clear_dirty_log,
    kvm_clear_dirty_log__bindgen_ty_1, kvm_device_attr, kvm_dirty_log, kvm_dirty_log__bindgen_ty_1,
    kvm_dtable, kvm_ioeventfd, kvm_segment,
};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{ioctl_ior_nr, ioctl_iow_nr, ioctl_iowr_nr};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

ioctl_iow_nr!(KVM_GET_DIRTY_LOG, KVMIO, 0x42, kvm_dirty_log);
ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);
ioctl_iow_nr!(KVM_IOEVENTFD, KVMIO, 0x79, kvm_ioeventfd);
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);
ioctl_iow_nr!(KVM_HAS_DEVICE_ATTR, KVMIO, 0xe3, kvm_device_attr);
ioctl_iow_nr!(KVM_X86_SETUP_MCE, KVMIO, 0x9c, u64);
ioctl_ior_nr!(KVM_GET_SREGS2, KVMIO, 0xcc, Sregs2);
ioctl_iow_nr!(KVM_SET_SREGS2, KVMIO, 0xcd, Sregs2);

/// `struct kvm_sregs2`, in a form that can be read from and written to bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable)]
pub struct Sregs2 {
    pub cs: kvm_segment,
    pub ds: kvm_segment,
    pub es: kvm_segment,
    pub fs: kvm_segment,
    pub gs: kvm_segment,
    pub ss: kvm_segment,
    pub tr: kvm_segment,
    pub ldt: kvm_segment,
    pub gdt: kvm_dtable,
    pub idt: kvm_dtable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    pub apic_base: u64,
    pub flags: u64,
    pub pdptrs: [u64; 4],
}

const _: () =
    assert!(std::mem::size_of::<Sregs2>() == std::mem::size_of::<kvm_bindings::kvm_sregs2>());

fn check(ret: i32) -> io::Result<()> {
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// KVM_GET_DIRTY_LOG of one slot into `words`, which must hold a bit for each page of the slot.
pub fn get_dirty_log(vm: &impl AsRawFd, slot: u32, words: &mut [u64]) -> io::Result<()> {
    let arg = kvm_dirty_log {
        slot,
        padding1: 0,
        __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 { dirty_bitmap: words.as_mut_ptr().cast() },
    };
    // SAFETY: KVM writes one bit for each page of the slot, rounded up to whole words; the callers
    // in `dirty_log` size `words` by the slot they registered.
    check(unsafe { ioctl_with_ref(vm, KVM_GET_DIRTY_LOG(), &arg) })
}

/// KVM_CLEAR_DIRTY_LOG: write-protects again the pages whose bits are set in `words`, bit 0 being
/// `first_page` of the slot.
pub fn clear_dirty_log(
    vm: &impl AsRawFd,
    slot: u32,
    first_page: u64,
    num_pages: u32,
    words: &[u64],
) -> io::Result<()> {
    if (words.len() as u64) * 64 < u64::from(num_pages) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let arg = kvm_clear_dirty_log {
        slot,
        num_pages,
        first_page,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
            dirty_bitmap: words.as_ptr().cast_mut().cast(),
        },
    };
    // SAFETY: KVM only reads `num_pages` bits, rounded up to whole words; checked above.
    check(unsafe { ioctl_with_ref(vm, KVM_CLEAR_DIRTY_LOG(), &arg) })
}

/// KVM_IOEVENTFD for an MMIO address without data match; `width` 0 takes any.
pub fn ioeventfd(
    vm: &impl AsRawFd,
    address: u64,
    width: u32,
    fd: &impl AsRawFd,
    assign: bool,
) -> io::Result<()> {
    let arg = kvm_ioeventfd {
        addr: address,
        len: width,
        fd: fd.as_raw_fd(),
        flags: if assign { 0 } else { 1 << kvm_bindings::kvm_ioeventfd_flag_nr_deassign },
        ..Default::default()
    };
    // SAFETY: KVM reads the structure and takes its own reference to the eventfd.
    check(unsafe { ioctl_with_ref(vm, KVM_IOEVENTFD(), &arg) })
}

fn tsc_offset_attr(address: u64) -> kvm_device_attr {
    kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: address,
    }
}

/// True if KVM_VCPU_TSC_OFFSET exists.
pub fn has_tsc_offset(vcpu: &impl AsRawFd) -> bool {
    // SAFETY: KVM only looks at group and attribute.
    check(unsafe { ioctl_with_ref(vcpu, KVM_HAS_DEVICE_ATTR(), &tsc_offset_attr(0)) }).is_ok()
}

/// The guest's TSC minus the host's.
pub fn get_tsc_offset(vcpu: &impl AsRawFd) -> io::Result<u64> {
    let mut value = 0u64;
    let arg = tsc_offset_attr((&raw mut value) as u64);
    // SAFETY: the attribute is eight bytes, written to `addr`, which lives until after the call.
    check(unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR(), &arg) })?;
    Ok(value)
}

/// Sets the guest's TSC minus the host's.
pub fn set_tsc_offset(vcpu: &impl AsRawFd, value: u64) -> io::Result<()> {
    let arg = tsc_offset_attr((&raw const value) as u64);
    // SAFETY: the attribute is eight bytes, read from `addr`, which lives until after the call.
    check(unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &arg) })
}

/// KVM_X86_SETUP_MCE: what IA32_MCG_CAP says, the number of banks in its lowest byte.
pub fn setup_mce(vcpu: &impl AsRawFd, capabilities: u64) -> io::Result<()> {
    // SAFETY: KVM reads the eight bytes.
    check(unsafe { ioctl_with_ref(vcpu, KVM_X86_SETUP_MCE(), &capabilities) })
}

/// KVM_GET_SREGS2.
pub fn get_sregs2(vcpu: &impl AsRawFd) -> io::Result<Sregs2> {
    let mut regs = Sregs2::new_zeroed();
    // SAFETY: KVM fills the structure, whose size is in the call's number.
    check(unsafe { ioctl_with_mut_ref(vcpu, KVM_GET_SREGS2(), &mut regs) })?;
    Ok(regs)
}

/// KVM_SET_SREGS2.
pub fn set_sregs2(vcpu: &impl AsRawFd, regs: &Sregs2) -> io::Result<()> {
    // SAFETY: KVM reads the structure, whose size is in the call's number.
    check(unsafe { ioctl_with_ref(vcpu, KVM_SET_SREGS2(), regs) })
}
