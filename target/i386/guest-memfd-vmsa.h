/*
 * What KVM makes of a vCPU's state for the launch of an SEV-SNP guest
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef I386_GUEST_MEMFD_VMSA_H
#define I386_GUEST_MEMFD_VMSA_H

#include "hw/core/cpu.h"

/* The gpa that KVM names for the page of any VMSA. */
#define GUEST_MEMFD_VMSA_GPA 0xFFFFFFFFF000ULL
#define GUEST_MEMFD_VMSA_SIZE 4096      /* bytes: the area, then zeros */

/**
 * guest_memfd_vmsa: the page that the platform measures for a vCPU
 * @cpu: its state is what KVM was given
 * @features: of the guest, SEV_FEATURES
 *
 * Returns: GUEST_MEMFD_VMSA_SIZE bytes, to be freed.  BQL held.
 */
uint8_t *guest_memfd_vmsa(const CPUState *cpu, uint64_t features);

#endif
