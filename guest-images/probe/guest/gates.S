# Ring 0, as ring 3 sees it: interrupt gates, each a few integer instructions.
# Calls come first, then interrupts, then faults.

    .text
    .code64

# A call: ring 3 puts the address of the service into r11 and calls ring0. Of the software
# interrupts only `int3` gets through every hypervisor: one that runs guests in ring 3 of the host
# may have to emulate `int n`, and cannot.
    .globl ring0
ring0:      int3
ring0_next: ret
# The gate of int3: any other one is a fault.
breakpoint: cmpq $ring0_next, (%rsp)
            jne 1f
            jmpq *%r11
1:          pushq $0
            pushq $3
            jmp fault_common

# Port I/O: port in dx, value in al/ax/eax.
    .globl call_out8
call_out8:  outb %al, %dx
            iretq
    .globl call_out16
call_out16: outw %ax, %dx
            iretq
    .globl call_out32
call_out32: outl %eax, %dx
            iretq
    .globl call_in8
call_in8:   inb %dx, %al
            iretq
    .globl call_in32
call_in32:  inl %dx, %eax
            iretq
# Interrupts on, for good: the caller's saved RFLAGS.IF.
    .globl call_sti
call_sti:   orq $0x200, 16(%rsp)
            iretq
# Halts, unless the counter at rdi is not rax any more. The gate has cleared IF, so an interrupt
# comes either before the comparison or ends the halt.
    .globl call_halt
call_halt:  cmpq (%rdi), %rax
            jne 1f
            sti
            hlt
1:          iretq
# A fault with no IDT is a double fault with no IDT is a triple fault.
    .globl call_crash
call_crash: lidt no_idt
            ud2

# An interrupt: count it for its kind and for its processor, end it at the local APIC.
    .macro interrupt kind, processor
    incq interrupt_counts + 8 * \kind
    incq wake_counts + 64 * \processor
    pushq %rax
    movl $0xfee000b0, %eax
    movl $0, (%rax)
    popq %rax
    iretq
    .balign 8
    .endm

    # One entry and a word that says where it is, for Rust to fill the IDT from.
    .macro entry table, body:vararg
    .text
entry_\@: \body
    .section .data.\table, "aw"
    .quad entry_\@
    .endm

    .section .data.timer_entries, "aw"
    .balign 8
    .globl timer_entries
timer_entries:
    .set n, 0
    .rept 8                         # the LAPIC timer of processor n: kinds 0 to 7
    entry timer_entries, interrupt n, n
    .set n, n + 1
    .endr

    .section .data.device_entries, "aw"
    .balign 8
    .globl device_entries
device_entries:
    .set n, 8
    .rept 9                         # devices: kinds 8 to 15, all to processor 0; stray: 16
    entry device_entries, interrupt n, 0
    .set n, n + 1
    .endr

    .text
spurious:   iretq                   # has no end-of-interrupt

# A fault: keep what is known and go on in ring 3 at fault_main, on the fault stack.
    .macro fault vector, has_code
    .if !\has_code
    pushq $0
    .endif
    pushq $\vector
    jmp fault_common
    .balign 8
    .endm

fault_common:
    popq fault_vector
    popq fault_error
    movq (%rsp), %rax
    movq %rax, fault_rip
    movq %cr2, %rax
    movq %rax, fault_cr2
    movq $fault_main, (%rsp)
    movq $0x2b, 8(%rsp)
    movq $0x2, 16(%rsp)
    movq $(fault_stack + 0x4000 - 8), 24(%rsp)
    movq $0x23, 32(%rsp)
    iretq

    .section .data.fault_entries, "aw"
    .balign 8
    .globl fault_entries
fault_entries:
    .set n, 0
    .rept 32                        # #DF #TS #NP #SS #GP #PF #AC #CP #VC #SX push an error code
    entry fault_entries, fault n, ((0x60227d00 >> n) & 1)
    .set n, n + 1
    .endr

    .data
    .balign 8
    .globl breakpoint_entry, spurious_entry
breakpoint_entry: .quad breakpoint
spurious_entry: .quad spurious

    .bss
    .balign 64
    .globl wake_counts, interrupt_counts
wake_counts: .zero 64 * 8           # one cache line each
interrupt_counts: .zero 8 * 17
    .globl fault_vector, fault_error, fault_rip, fault_cr2
fault_vector: .quad 0
fault_error: .quad 0
fault_rip: .quad 0
fault_cr2: .quad 0
    .balign 16
fault_stack: .zero 0x4000
    .text
