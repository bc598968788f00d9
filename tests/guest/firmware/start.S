/*
 * From reset to C, on every vCPU
 *
 * The first vCPU comes from the reset vector, with CS where the image is; the
 * others run a copy of start16 at TRAMPOLINE.  All of them get their number,
 * which is their APIC id, and number 0 prepares memory.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "memory.h"
#include "services.h"

#define APIC_ID         0xfee00020
#define EFER            0xc0000080
#define EFER_LME        0x100
#define CR4_PAE         0x20
#define CR0_PE_ET       0x11
#define CR0_PG          0x80000000
#define CPUID_1GIB      26              /* in %edx of leaf 0x80000001 */
/* Present, writable; accessed and dirty, so that no processor writes them */
#define TABLE           0x63
#define LARGE_PAGE      0xe3

        .section .start, "ax"
        .globl  start16, start16_end
        .code16
start16:
        cli
        lgdtl   %cs:gdt_pointer - start16
        movl    $CR0_PE_ET, %eax
        movl    %eax, %cr0
        ljmpl   $8, $start32
        .align  4
gdt_pointer:
        .word   gdt_end - gdt - 1
        .long   gdt
        .globl  hypercall
        .code64
hypercall:
        vmmcall
        ret
start16_end:

        .align  8
gdt:    /* All accessed, so that processors do not write to them */
        .quad   0
        .quad   0x00cf9b000000ffff      /* 8: code, 32 bits */
        .quad   0x00cf93000000ffff      /* 16: data */
        .quad   0x00af9b000000ffff      /* 24: code, 64 bits */
gdt_end:

        .code32
start32:
        movw    $16, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movl    APIC_ID, %ebx
        shrl    $24, %ebx
        cmpl    $MAX_CPUS, %ebx
        jae     stray
        leal    1(%ebx), %esp
        shll    $STACK_SHIFT, %esp
        addl    $STACKS, %esp
        testl   %ebx, %ebx
        jnz     enter_long_mode

        /* Before it is used, memory of the firmware's own has to be shared. */
        movw    $START_PORT, %dx
        inb     %dx, %al
        cmpb    $START_PRIVATE, %al
        jne     own_memory_is_shared
        movl    $OWN_END >> 12, %ecx
        movw    $MODEL_PORT, %dx
        inb     %dx, %al
        cmpb    $MODEL_PRESENT, %al
        movl    $MAP_GPA_RANGE, %eax
        je      ask_model_to_share
        xorl    %edx, %edx
        vmmcall
        jmp     own_memory_is_shared
ask_model_to_share:
        xorl    %esi, %esi
        outb    %al, %dx

own_memory_is_shared:
        cld
        xorl    %eax, %eax
        movl    $LEVEL4, %edi
        movl    $(DATA_END - LEVEL4) / 4, %ecx
        rep stosl
        movl    $LEVEL3 + TABLE, LEVEL4

        movl    $0x80000001, %eax
        pushl   %ebx
        cpuid
        popl    %ebx
        btl     $CPUID_1GIB, %edx
        jc      gib_pages

        /* %eax: an entry's low half, %ecx: its number */
        movl    $GIB_BY_LEVEL2, mapped_gib
        movl    $LEVEL2 + TABLE, %eax
        xorl    %ecx, %ecx
1:      movl    %eax, LEVEL3(, %ecx, 8)
        addl    $4096, %eax
        incl    %ecx
        cmpl    $GIB_BY_LEVEL2, %ecx
        jb      1b
        xorl    %ecx, %ecx
1:      movl    %ecx, %eax
        shll    $21, %eax
        orl     $LARGE_PAGE, %eax
        movl    %eax, LEVEL2(, %ecx, 8)
        movl    %ecx, %eax
        shrl    $32 - 21, %eax
        movl    %eax, LEVEL2 + 4(, %ecx, 8)
        incl    %ecx
        cmpl    $GIB_BY_LEVEL2 * 512, %ecx
        jb      1b
        jmp     enter_long_mode

gib_pages:
        movl    $GIB_BY_LEVEL3, mapped_gib
        xorl    %ecx, %ecx
1:      movl    %ecx, %eax
        shll    $30, %eax
        orl     $LARGE_PAGE, %eax
        movl    %eax, LEVEL3(, %ecx, 8)
        movl    %ecx, %eax
        shrl    $32 - 30, %eax
        movl    %eax, LEVEL3 + 4(, %ecx, 8)
        incl    %ecx
        cmpl    $GIB_BY_LEVEL3, %ecx
        jb      1b

enter_long_mode:
        movl    $CR4_PAE, %eax
        movl    %eax, %cr4
        movl    $LEVEL4, %eax
        movl    %eax, %cr3
        movl    $EFER, %ecx
        rdmsr
        orl     $EFER_LME, %eax
        wrmsr
        movl    $CR0_PG | CR0_PE_ET, %eax
        movl    %eax, %cr0
        ljmpl   $24, $start64

/* There is no stack for it. */
stray:
        hlt
        jmp     stray

        .code64
start64:
        movl    %esp, %esp
        movl    %ebx, %edi
        call    cpu_main

/*
 * Exceptions: stubs of 16 bytes, one a vector, that put the vector and an
 * error code, if need be of 0, below what the processor has put there.
 */
        .text
        .globl  exception_stubs
        .align  16
exception_stubs:
        vector = 0
        .rept   32
        .align  16
        .if     !((0x60227d00 >> vector) & 1)
        pushq   $0
        .endif
        pushq   $vector
        jmp     exception
        vector = vector + 1
        .endr

exception:
        movq    %rsp, %rdi
        andq    $-16, %rsp
        call    exception_main

        .section .reset, "ax"
        .code16
        /* jmp start16: its offset in the segment is 0, from 0xfff3 on. */
        .byte   0xe9
        .word   0x10000 - 0xfff3
        .fill   13, 1, 0
