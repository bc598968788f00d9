/*
 * Entry of the bare-metal guest: Multiboot for the first processor, a
 * real-mode trampoline for the others
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define MULTIBOOT_MAGIC 0x1BADB002
#define STACK_BITS      12              /* 4 KiB for each processor */
#define TRAMPOLINE      0x8000          /* the AP starts at CS 0x800, IP 0 */

        .section .multiboot, "a"
        .align  4
        .long   MULTIBOOT_MAGIC, 0, -MULTIBOOT_MAGIC

        .text
        .globl  _start
_start:
        cli
        lgdt    gdt_pointer
        movl    $stacks + (1 << STACK_BITS), %esp
        pushl   %ebx
        call    boot_main
1:      hlt
        jmp     1b

/* Copied to TRAMPOLINE by boot_main. */
        .globl  trampoline, trampoline_end
        .code16
trampoline:
        cli
        xorw    %ax, %ax
        movw    %ax, %ds
        lgdtl   TRAMPOLINE + ap_gdt_pointer - trampoline
        movl    $0x11, %eax             /* protected mode, ET */
        movl    %eax, %cr0
        ljmpl   $8, $ap_start
        .align  4
ap_gdt_pointer:
        .word   gdt_end - gdt - 1
        .long   gdt
trampoline_end:

        .code32
ap_start:
        movw    $16, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movl    $1, %eax
        lock xaddl %eax, cpus_started   /* %eax: number of this processor */
        movl    %eax, %edx
        incl    %edx
        shll    $STACK_BITS, %edx
        leal    stacks(%edx), %esp
        pushl   %eax
        call    cpu_main
1:      hlt
        jmp     1b

        .data
        .align  8
gdt:
        .quad   0
        .quad   0x00cf9a000000ffff      /* 8: flat code */
        .quad   0x00cf92000000ffff      /* 16: flat data */
gdt_end:
gdt_pointer:
        .word   gdt_end - gdt - 1
        .long   gdt
        .globl  cpus_started
cpus_started:
        .long   1                       /* the first one is number 0 */

        .bss
        .align  4096
stacks:
        .skip   16 << STACK_BITS
