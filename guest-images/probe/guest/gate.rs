//! Ring 0's services, by way of `int3`: see `gates.S`. Under a KVM that emulates ring 0 one costs
//! some tens of microseconds, on hardware well under one.

use core::arch::asm;

/// Calls a service of `gates.S`. It changes no register but those named; the flags come back with
/// its `iretq`.
macro_rules! ring0 {
    ($service:literal $($operands:tt)*) => {
        asm!(concat!("lea r11, [rip + ", $service, "]"), "call ring0", out("r11") _ $($operands)*)
    };
}

pub fn out8(port: u16, value: u8) {
    // SAFETY: ring 0 does `out dx, al` and returns.
    unsafe { ring0!("call_out8", in("dx") port, in("al") value) }
}

pub fn out16(port: u16, value: u16) {
    // SAFETY: ring 0 does `out dx, ax` and returns.
    unsafe { ring0!("call_out16", in("dx") port, in("ax") value) }
}

pub fn out32(port: u16, value: u32) {
    // SAFETY: ring 0 does `out dx, eax` and returns.
    unsafe { ring0!("call_out32", in("dx") port, in("eax") value) }
}

pub fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: ring 0 does `in al, dx` and returns.
    unsafe { ring0!("call_in8", in("dx") port, out("al") value) }
    value
}

pub fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: ring 0 does `in eax, dx` and returns.
    unsafe { ring0!("call_in32", in("dx") port, out("eax") value) }
    value
}

/// Interrupts on, for this processor and for good.
pub fn enable_interrupts() {
    // SAFETY: the IDT is filled; handlers change no register and use their own stack.
    unsafe { ring0!("call_sti") }
}

/// Halts until an interrupt, unless `*counter` is not `seen` any more.
pub fn halt_unless_changed(counter: *const u64, seen: u64) {
    // SAFETY: ring 0 reads one aligned word and halts with interrupts on.
    unsafe { ring0!("call_halt", in("rdi") counter, in("rax") seen) }
}

/// Triple fault.
pub fn crash() -> ! {
    // SAFETY: nothing of this guest runs afterwards.
    unsafe { ring0!("call_crash") }
    loop {
        core::hint::spin_loop();
    }
}
