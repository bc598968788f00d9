/*
 * simkvm: the state of an SNP guest's vCPU that its launch measures
 *
 * When a launch is finished, KVM makes a page of what it was told about each
 * vCPU (sev_es_sync_vmsa(), in arch/x86/kvm/svm/sev.c), and the firmware
 * measures and encrypts it.  The layout is that of AMD64 APM volume 2,
 * appendix B, "Layout of VMCB", VMSA; in Linux, struct sev_es_save_area.
 *
 * Not modelled: CR2, PKRU and DR0 to DR3, which are 0 when a vCPU starts, and
 * KVM_SET_FPU.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "simkvm.h"

#define CR0_NW (1ULL << 29)
#define CR0_CD (1ULL << 30)
#define CR4_MCE (1ULL << 6)
#define DR7_FIXED (1ULL << 10)
#define EFER_SVME (1ULL << 12)
#define RFLAGS_FIXED 2ULL
#define X87_CONTROL 0x37f               /* after FNINIT */
#define SSE_CONTROL 0x1f80              /* after reset */
#define PAT_AFTER_RESET 0x0007040600070406ULL

/* Bits of XSTATE_BV, and what they are for in the area of XSAVE. */
#define XSTATE_X87 1ULL
#define XSTATE_SSE 2ULL
#define XSTATE_AVX 4ULL

typedef struct VmsaSegment {
    uint16_t selector, attributes;
    uint32_t limit;
    uint64_t base;
} VmsaSegment;

typedef struct Vmsa {
    VmsaSegment es, cs, ss, ds, fs, gs, gdtr, ldtr, idtr, tr;
    uint8_t reserved_0a0[0x2a];
    uint8_t vmpl, cpl;
    uint32_t reserved_0cc;
    uint64_t efer;
    uint8_t reserved_0d8[0x68];
    uint64_t xss, cr4, cr3, cr0, dr7, dr6, rflags, rip;
    uint8_t reserved_180[0x58];
    uint64_t rsp;
    uint8_t reserved_1e0[0x18];
    uint64_t rax, star, lstar, cstar, sfmask, kernel_gs_base;
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
    uint8_t reserved_240[0x28];
    uint64_t pat, debugctl;
    uint8_t reserved_278[0x90];
    uint64_t rcx, rdx, rbx, reserved_320, rbp, rsi, rdi;
    uint64_t r8, r9, r10, r11, r12, r13, r14, r15;
    uint8_t reserved_380[0x30];
    uint64_t features;
    uint8_t reserved_3b8[0x30];
    uint64_t xcr0;
    uint8_t reserved_3f0[0x10];
    uint64_t x87_dp;
    uint32_t mxcsr;
    uint16_t x87_ftw, x87_fsw, x87_fcw, x87_fop, x87_ds, x87_cs;
    uint64_t x87_rip;
    uint8_t x87_low[8][8];              /* bytes 0 to 7 of the registers */
    uint8_t x87_high[8][2];             /* bytes 8 and 9 */
    uint8_t xmm[0x100], ymm_high[0x100];
} Vmsa;

G_STATIC_ASSERT(offsetof(Vmsa, efer) == 0xd0);
G_STATIC_ASSERT(offsetof(Vmsa, rip) == 0x178);
G_STATIC_ASSERT(offsetof(Vmsa, rsp) == 0x1d8);
G_STATIC_ASSERT(offsetof(Vmsa, rax) == 0x1f8);
G_STATIC_ASSERT(offsetof(Vmsa, pat) == 0x268);
G_STATIC_ASSERT(offsetof(Vmsa, rdx) == 0x310);
G_STATIC_ASSERT(offsetof(Vmsa, features) == 0x3b0);
G_STATIC_ASSERT(offsetof(Vmsa, xcr0) == 0x3e8);
G_STATIC_ASSERT(offsetof(Vmsa, x87_fcw) == 0x410);
G_STATIC_ASSERT(offsetof(Vmsa, xmm) == 0x470);
G_STATIC_ASSERT(sizeof(Vmsa) == 0x670);

/* The area of XSAVE, in its standard form. */
typedef struct Xsave {
    uint16_t fcw, fsw, ftw, fop;
    uint64_t rip, dp;
    uint32_t mxcsr, mxcsr_mask;
    uint8_t x87[8][16];
    uint8_t xmm[0x100];
    uint8_t reserved[0x60];
    uint64_t xstate_bv;
    uint8_t header[0x38];
    uint8_t ymm_high[0x100];
    uint8_t others[SIM_PAGE - 0x340];
} Xsave;

G_STATIC_ASSERT(offsetof(Xsave, xstate_bv) == 512);
G_STATIC_ASSERT(offsetof(Xsave, ymm_high) == 576);
G_STATIC_ASSERT(sizeof(Xsave) == sizeof(struct kvm_xsave));

/* As svm_set_segment() does. */
static VmsaSegment segment(const struct kvm_segment *s)
{
    bool present = s->present && !s->unusable;

    return (VmsaSegment) {
        .selector = s->selector,
        .attributes = (s->type & 15) | (s->s & 1) << 4 | (s->dpl & 3) << 5 |
                      present << 7 | (s->avl & 1) << 8 | (s->l & 1) << 9 |
                      (s->db & 1) << 10 | (s->g & 1) << 11,
        .limit = s->limit,
        .base = s->base,
    };
}

static VmsaSegment table(const struct kvm_dtable *t)
{
    return (VmsaSegment) { .limit = t->limit, .base = t->base };
}

static int get_sregs(SimVcpu *vcpu, Vmsa *vmsa)
{
    struct kvm_sregs2 s = {};
    int ret = sim_vcpu_get(vcpu, KVM_GET_SREGS2, &s);

    vmsa->es = segment(&s.es);
    vmsa->cs = segment(&s.cs);
    vmsa->ss = segment(&s.ss);
    vmsa->ds = segment(&s.ds);
    vmsa->fs = segment(&s.fs);
    vmsa->gs = segment(&s.gs);
    vmsa->gdtr = table(&s.gdt);
    vmsa->ldtr = segment(&s.ldt);
    vmsa->idtr = table(&s.idt);
    vmsa->tr = segment(&s.tr);
    vmsa->cpl = s.ss.dpl & 3;
    vmsa->efer = s.efer | EFER_SVME;
    /* svm_set_cr0(): a guest that has caches off is slow. */
    vmsa->cr0 = s.cr0 & ~(CR0_CD | CR0_NW);
    vmsa->cr3 = s.cr3;
    vmsa->cr4 = s.cr4 | CR4_MCE;        /* svm_set_cr4(): as the host has it */
    return ret;
}

static int get_regs(SimVcpu *vcpu, Vmsa *vmsa)
{
    struct kvm_regs r = {};
    int ret = sim_vcpu_get(vcpu, KVM_GET_REGS, &r);

    vmsa->rax = r.rax;
    vmsa->rbx = r.rbx;
    vmsa->rcx = r.rcx;
    vmsa->rdx = r.rdx;
    vmsa->rsi = r.rsi;
    vmsa->rdi = r.rdi;
    vmsa->rsp = r.rsp;
    vmsa->rbp = r.rbp;
    vmsa->r8 = r.r8;
    vmsa->r9 = r.r9;
    vmsa->r10 = r.r10;
    vmsa->r11 = r.r11;
    vmsa->r12 = r.r12;
    vmsa->r13 = r.r13;
    vmsa->r14 = r.r14;
    vmsa->r15 = r.r15;
    vmsa->rip = r.rip;
    vmsa->rflags = r.rflags | RFLAGS_FIXED;
    return ret;
}

static int get_debugregs(SimVcpu *vcpu, Vmsa *vmsa)
{
    struct kvm_debugregs d = {};
    int ret = sim_vcpu_get(vcpu, KVM_GET_DEBUGREGS, &d);

    vmsa->dr6 = d.dr6;
    vmsa->dr7 = d.dr7 | DR7_FIXED;
    return ret;
}

static int get_xcrs(SimVcpu *vcpu, Vmsa *vmsa)
{
    struct kvm_xcrs x;
    int ret = sim_vcpu_get(vcpu, KVM_GET_XCRS, &x);
    uint32_t i;

    vmsa->xcr0 = XSTATE_X87;
    for (i = 0; !ret && i < MIN(x.nr_xcrs, G_N_ELEMENTS(x.xcrs)); i++) {
        if (x.xcrs[i].xcr == 0) {
            vmsa->xcr0 = x.xcrs[i].value;
        }
    }
    return ret;
}

/* KVM takes the parts that XSTATE_BV has; the others are as after reset. */
static int get_xsave(SimVcpu *vcpu, Vmsa *vmsa)
{
    Xsave x;
    int ret = sim_vcpu_get(vcpu, KVM_GET_XSAVE, &x);
    size_t i;

    vmsa->x87_fcw = X87_CONTROL;
    vmsa->mxcsr = SSE_CONTROL;
    if (ret) {
        return ret;
    }
    if (x.xstate_bv & XSTATE_X87) {
        vmsa->x87_fcw = x.fcw;
        vmsa->x87_fsw = x.fsw;
        vmsa->x87_ftw = x.ftw;
        vmsa->x87_fop = x.fop;
        vmsa->x87_rip = x.rip;
        vmsa->x87_dp = x.dp;
        for (i = 0; i < G_N_ELEMENTS(x.x87); i++) {
            memcpy(vmsa->x87_low[i], x.x87[i], 8);
            memcpy(vmsa->x87_high[i], x.x87[i] + 8, 2);
        }
    }
    if (x.xstate_bv & XSTATE_SSE) {
        memcpy(vmsa->xmm, x.xmm, sizeof(vmsa->xmm));
    }
    if (x.xstate_bv & XSTATE_AVX) {
        memcpy(vmsa->ymm_high, x.ymm_high, sizeof(vmsa->ymm_high));
    }
    if (x.xstate_bv & (XSTATE_X87 | XSTATE_SSE | XSTATE_AVX)) {
        vmsa->mxcsr = x.mxcsr;
    }
    return 0;
}

static void get_msrs(SimVcpu *vcpu, Vmsa *vmsa)
{
    vmsa->star = sim_vcpu_msr(vcpu, 0xc0000081, 0);
    vmsa->lstar = sim_vcpu_msr(vcpu, 0xc0000082, 0);
    vmsa->cstar = sim_vcpu_msr(vcpu, 0xc0000083, 0);
    vmsa->sfmask = sim_vcpu_msr(vcpu, 0xc0000084, 0);
    vmsa->kernel_gs_base = sim_vcpu_msr(vcpu, 0xc0000102, 0);
    vmsa->sysenter_cs = sim_vcpu_msr(vcpu, 0x174, 0);
    vmsa->sysenter_esp = sim_vcpu_msr(vcpu, 0x175, 0);
    vmsa->sysenter_eip = sim_vcpu_msr(vcpu, 0x176, 0);
    vmsa->debugctl = sim_vcpu_msr(vcpu, 0x1d9, 0);
    vmsa->pat = sim_vcpu_msr(vcpu, 0x277, PAT_AFTER_RESET);
    vmsa->xss = sim_vcpu_msr(vcpu, 0xda0, 0);
}

int sim_vmsa(SimVcpu *vcpu, uint64_t features, uint8_t page[SIM_PAGE])
{
    Vmsa *vmsa = (Vmsa *)page;
    int ret;

    memset(page, 0, SIM_PAGE);
    ret = get_sregs(vcpu, vmsa) ?: get_regs(vcpu, vmsa) ?:
          get_debugregs(vcpu, vmsa) ?: get_xcrs(vcpu, vmsa) ?:
          get_xsave(vcpu, vmsa);
    if (ret) {
        return ret;
    }
    get_msrs(vcpu, vmsa);
    vmsa->features = features;
    if (vmsa->dr7 != DR7_FIXED) {
        return sim_refuse(EINVAL, "SNP_LAUNCH_FINISH: vCPU %d has DR7 0x%"
                          PRIx64 ": breakpoints", vcpu->id, vmsa->dr7);
    }
    return 0;
}
