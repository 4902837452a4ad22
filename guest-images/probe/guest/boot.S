# From the PVH entry to ring 3 in as few instructions as will do: a hypervisor may have to emulate
# everything that runs in ring 0. Application processors come the same way, from tramp.S.
#
# Everything is mapped user-accessible and writable, so Rust, in ring 3, fills in the rest of the
# descriptor tables before anything can use them.

    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18                  # name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_start

    .text
    .code32
    .globl pvh_start
pvh_start:                          # 32-bit flat segments, paging off, ebx = start info
    movl %ebx, start_info
    movl $task_states, %eax         # the base of the first TSS, in the descriptor's four places
    movw %ax, tss_descriptors + 2
    shrl $16, %eax
    movb %al, tss_descriptors + 4
    movb %ah, tss_descriptors + 7
    .globl start32
start32:                            # the same for every processor
    movl $0x620, %eax               # CR4: PAE, OSFXSR, OSXMMEXCPT
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx          # EFER: LME
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl $0x80000033, %eax          # CR0: PG, NE, ET, MP, PE
    movl %eax, %cr0
    lgdt gdt_pointer
    ljmpl $0x08, $start64

    .code64
start64:
    movw $0x23, %ax
    movw %ax, %ds
    movw %ax, %es
    movl start_rsp0, %esp
    lidt idt_pointer
    movw start_tr, %ax
    ltr %ax
    pushq $0x23                     # to ring 3, interrupts off, IOPL 0
    pushq start_rsp3
    pushq $0x2
    pushq $0x2b
    pushq start_rip
    iretq

    .data
    .balign 8
    .globl start_info, start_rsp0, start_rsp3, start_rip, start_tr
start_info: .quad 0
start_rsp0: .quad ring0_stacks + 512
start_rsp3: .quad first_stack + 0x10000 - 8
start_rip:  .quad guest_main
start_tr:   .quad 0x30

    .balign 16
    .globl gdt, tss_descriptors
gdt:
    .quad 0
    .quad 0x00af9b000000ffff        # 0x08 ring 0 code, 64 bits
    .quad 0x00cf93000000ffff        # 0x10 ring 0 data
    .quad 0x00cf9b000000ffff        # 0x18 ring 0 code, 32 bits
    .quad 0x00cff3000000ffff        # 0x20 ring 3 data
    .quad 0x00affb000000ffff        # 0x28 ring 3 code, 64 bits
tss_descriptors:                    # 0x30 + 16 n
    .rept 8
    .quad 0x0000890000000067, 0
    .endr
gdt_end:
    .globl gdt_pointer
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
    .balign 8
idt_pointer:
    .word 4095
    .quad idt
    .balign 8
    .globl no_idt
no_idt:
    .word 0
    .quad 0

    .balign 16
    .globl task_states
task_states:                        # 104 bytes each; only RSP0 and the I/O map base matter
    .set n, 0
    .rept 8
    .long 0
    .quad ring0_stacks + 512 * (n + 1)
    .zero 90
    .word 104
    .set n, n + 1
    .endr

    # 8 GiB, identity, in pages of 2 MiB. Accessed and dirty are set beforehand: a walk then
    # never writes to these tables.
    .balign 4096
pml4:
    .quad pdpt + 0x27
    .zero 4088
pdpt:
    .set n, 0
    .rept 8
    .quad pds + 4096 * n + 0x27
    .set n, n + 1
    .endr
    .zero 4032
pds:
    .set n, 0
    .rept 4096
    .quad n * 0x200000 + 0xe7
    .set n, n + 1
    .endr

    .bss
    .balign 4096
    .globl idt, ring0_stacks
idt: .zero 4096
ring0_stacks: .zero 512 * 8
    .balign 16
    .globl first_stack
first_stack: .zero 0x10000
