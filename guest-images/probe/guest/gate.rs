//! Ring 0's services, by software interrupt: see `gates.S`. Under a KVM that emulates ring 0 one
//! costs some tens of microseconds, on hardware well under one.

use core::arch::asm;

/// First vector of the calls in `gates.S`, in their order.
pub const FIRST_CALL: usize = 0x80;
/// How many there are.
pub const CALLS: usize = 8;

pub fn out8(port: u16, value: u8) {
    // SAFETY: ring 0 does `out dx, al` and returns; no register changes.
    unsafe { asm!("int 0x80", in("dx") port, in("al") value, options(nostack, preserves_flags)) }
}

pub fn out16(port: u16, value: u16) {
    // SAFETY: as `out8`.
    unsafe { asm!("int 0x81", in("dx") port, in("ax") value, options(nostack, preserves_flags)) }
}

pub fn out32(port: u16, value: u32) {
    // SAFETY: as `out8`.
    unsafe { asm!("int 0x82", in("dx") port, in("eax") value, options(nostack, preserves_flags)) }
}

pub fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: ring 0 does `in al, dx` and returns.
    unsafe { asm!("int 0x83", in("dx") port, out("al") value, options(nostack, preserves_flags)) }
    value
}

pub fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: as `in8`.
    unsafe { asm!("int 0x84", in("dx") port, out("eax") value, options(nostack, preserves_flags)) }
    value
}

/// Interrupts on, for this processor and for good.
pub fn enable_interrupts() {
    // SAFETY: the IDT is filled; handlers change no register and use their own stack.
    unsafe { asm!("int 0x85", options(nostack, preserves_flags)) }
}

/// Halts until an interrupt, unless `*counter` is not `seen` any more.
pub fn halt_unless_changed(counter: *const u64, seen: u64) {
    // SAFETY: ring 0 reads one aligned word and halts with interrupts on.
    unsafe {
        asm!("int 0x86", in("rdi") counter, in("rax") seen, options(nostack, preserves_flags));
    }
}

/// Triple fault.
pub fn crash() -> ! {
    // SAFETY: nothing of this guest runs afterwards.
    unsafe { asm!("int 0x87", options(noreturn)) }
}
