# Where an application processor begins, copied to a page below 1 MiB: real mode, CS = that page.

    .section .rodata
    .code16
    .globl tramp_begin, tramp_end
tramp_begin:
    cli
    lgdtl %cs:(tramp_gdt - tramp_begin)
    movl $0x11, %eax                # ET, PE; caching on, as the boot processor has it
    movl %eax, %cr0
    ljmpl $0x18, $ap_start32
    .balign 4
tramp_gdt:
    .word 0x2f
    .long gdt
tramp_end:

    .text
    .code32
ap_start32:
    movw $0x10, %ax
    movw %ax, %ds
    jmp start32
    .code64
