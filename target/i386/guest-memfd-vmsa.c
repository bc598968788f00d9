/*
 * What KVM makes of a vCPU's state for the launch of an SEV-SNP guest
 *
 * Linux, sev_es_sync_vmsa(): the save area as KVM has it for the processor,
 * with the registers; AMD64 APM volume 2, appendix B.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "sev.h"
#include "gmem/target/i386/guest-memfd-vmsa.h"

/* x87 control word and MXCSR as after FINIT, and as a processor resets it */
#define X87_FCW 0x37f
#define SSE_MXCSR 0x1f80

QEMU_BUILD_BUG_ON(sizeof(struct sev_es_save_area) > GUEST_MEMFD_VMSA_SIZE);

/* Bits of a descriptor's second half, without limit and base in between */
static struct vmcb_seg segment(const SegmentCache *seg)
{
    return (struct vmcb_seg) {
        .selector = seg->selector,
        .attrib = extract32(seg->flags, 8, 8) |
                  extract32(seg->flags, 20, 4) << 8,
        .limit = seg->limit,
        .base = seg->base,
    };
}

uint8_t *guest_memfd_vmsa(const CPUState *cpu, uint64_t features)
{
    const CPUX86State *env = &X86_CPU(cpu)->env;
    struct sev_es_save_area *save = g_malloc0(GUEST_MEMFD_VMSA_SIZE);

    save->es = segment(&env->segs[R_ES]);
    save->cs = segment(&env->segs[R_CS]);
    save->ss = segment(&env->segs[R_SS]);
    save->ds = segment(&env->segs[R_DS]);
    save->fs = segment(&env->segs[R_FS]);
    save->gs = segment(&env->segs[R_GS]);
    save->gdtr = segment(&env->gdt);
    save->ldtr = segment(&env->ldt);
    save->idtr = segment(&env->idt);
    save->tr = segment(&env->tr);
    save->cpl = extract32(env->segs[R_SS].flags, DESC_DPL_SHIFT, 2);

    /* KVM sets SVME and MCE for itself, and clears CD and NW. */
    save->efer = env->efer | MSR_EFER_SVME;
    save->cr0 = env->cr[0] & ~(uint64_t)(CR0_CD_MASK | CR0_NW_MASK);
    save->cr3 = env->cr[3];
    save->cr4 = env->cr[4] | CR4_MCE_MASK;
    save->xcr0 = env->xcr0;
    save->xss = env->xss;
    save->dr6 = env->dr[6];
    save->dr7 = env->dr[7];
    save->g_pat = env->pat;

    save->star = env->star;
    save->lstar = env->lstar;
    save->cstar = env->cstar;
    save->sfmask = env->fmask;
    save->kernel_gs_base = env->kernelgsbase;
    save->sysenter_cs = env->sysenter_cs;
    save->sysenter_esp = env->sysenter_esp;
    save->sysenter_eip = env->sysenter_eip;

    save->rip = env->eip;
    save->rflags = env->eflags;
    save->rax = env->regs[R_EAX];
    save->rbx = env->regs[R_EBX];
    save->rcx = env->regs[R_ECX];
    save->rdx = env->regs[R_EDX];
    save->rsp = env->regs[R_ESP];
    save->rbp = env->regs[R_EBP];
    save->rsi = env->regs[R_ESI];
    save->rdi = env->regs[R_EDI];
    save->r8 = env->regs[8];
    save->r9 = env->regs[9];
    save->r10 = env->regs[10];
    save->r11 = env->regs[11];
    save->r12 = env->regs[12];
    save->r13 = env->regs[13];
    save->r14 = env->regs[14];
    save->r15 = env->regs[15];

    save->sev_features = features;

    /*
     * Not QEMU's state, which is 0 for all vCPUs but the first: XSTATE_BV is 0
     * then, so KVM leaves its own as it was when the vCPU was made.
     */
    save->x87_fcw = X87_FCW;
    save->mxcsr = SSE_MXCSR;
    return (uint8_t *)save;
}
