/*
 * simkvm: the processor that scripted mode offers
 *
 * Much the same on every machine, so that tests give the same results: an AMD
 * processor with AVX2, 48 bits of physical address and no SVM.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "simkvm.h"

#define INDEXED KVM_CPUID_FLAG_SIGNIFCANT_INDEX

static const struct kvm_cpuid_entry2 supported[] = {
    { .function = 0, .eax = 0x10, .ebx = 0x68747541, .ecx = 0x444d4163,
      .edx = 0x69746e65 },
    { .function = 1, .eax = 0x00a10f11, .ecx = 0xf7f83203,
      .edx = 0x178bfbff },
    { .function = 6, .eax = 0x4 },
    { .function = 7, .index = 0, .flags = INDEXED, .ebx = 0x219c07a9,
      .ecx = 0x00400004, .edx = 0x20000010 },
    { .function = 0xb, .index = 0, .flags = INDEXED },
    { .function = 0xd, .index = 0, .flags = INDEXED, .eax = 0x7, .ebx = 0x340,
      .ecx = 0x340 },
    { .function = 0xd, .index = 1, .flags = INDEXED, .eax = 0x7 },
    { .function = 0xd, .index = 2, .flags = INDEXED, .eax = 0x100,
      .ebx = 0x240 },
    { .function = 0x80000000, .eax = 0x80000021, .ebx = 0x68747541,
      .ecx = 0x444d4163, .edx = 0x69746e65 },
    { .function = 0x80000001, .eax = 0x00a10f11, .ebx = 0x40000000,
      .ecx = 0x004003f3, .edx = 0x2fd3fbff },
    { .function = 0x80000005, .eax = 0xff48ff40, .ebx = 0xff48ff40,
      .ecx = 0x20080140, .edx = 0x20080140 },
    { .function = 0x80000006, .eax = 0x5c002200, .ebx = 0x6c004200,
      .ecx = 0x02006140, .edx = 0x01009140 },
    { .function = 0x80000007, .edx = 0x100 },
    { .function = 0x80000008, .eax = 0x303030, .ebx = 0x0111d205,
      .ecx = 0x7007 },
    { .function = 0x8000000a },
    { .function = 0x8000001d, .index = 0, .flags = INDEXED, .eax = 0x121,
      .ebx = 0x01c0003f, .ecx = 0x3f },
    { .function = 0x8000001d, .index = 1, .flags = INDEXED, .eax = 0x122,
      .ebx = 0x01c0003f, .ecx = 0x3f },
    { .function = 0x8000001d, .index = 2, .flags = INDEXED, .eax = 0x143,
      .ebx = 0x01c0003f, .ecx = 0x3ff, .edx = 0x2 },
    { .function = 0x8000001d, .index = 3, .flags = INDEXED, .eax = 0x163,
      .ebx = 0x03c0003f, .ecx = 0x7fff, .edx = 0x1 },
    { .function = 0x8000001e },
    { .function = 0x8000001f, .eax = 0x1f, .ebx = 0x33, .ecx = 0x1fd },
    { .function = 0x80000021, .eax = 0x45 },
    /* "KVMKVMKVM" */
    { .function = 0x40000000, .eax = 0x40000001, .ebx = 0x4b4d564b,
      .ecx = 0x564b4d56, .edx = 0x4d },
    { .function = 0x40000001, .eax = 0x01007efb },
};

const uint32_t sim_msrs[] = {
    0x10,                               /* TSC */
    0x11, 0x12, 0x4b564d00, 0x4b564d01, /* kvmclock */
    0x4b564d02, 0x4b564d03, 0x4b564d04, 0x4b564d05, 0x4b564d06, 0x4b564d07,
    0x3b,                               /* TSC_ADJUST */
    0x174, 0x175, 0x176,                /* SYSENTER */
    0x1a0,                              /* MISC_ENABLE */
    0x17a, 0x17b,                       /* MCG_STATUS, MCG_CTL */
    0x1d9, 0x277, 0x6e0,                /* DEBUGCTL, PAT, TSC_DEADLINE */
    0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084, 0xc0000102, 0xc0000103,
    0xc0010015, 0xc0010117,             /* HWCR, VM_HSAVE_PA */
};
const uint32_t sim_nr_msrs = G_N_ELEMENTS(sim_msrs);

struct kvm_cpuid2 *sim_cpuid_supported(void)
{
    struct kvm_cpuid2 *cpuid = g_malloc0(sizeof(*cpuid) + sizeof(supported));

    cpuid->nent = G_N_ELEMENTS(supported);
    memcpy(cpuid->entries, supported, sizeof(supported));
    return cpuid;
}
