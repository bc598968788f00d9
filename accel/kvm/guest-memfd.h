/*
 * KVM guest_memfd: the kernel interface, memslots, and what a vCPU exits for
 *
 * accel/stubs/ has what is needed without KVM.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef ACCEL_KVM_GUEST_MEMFD_H
#define ACCEL_KVM_GUEST_MEMFD_H

#include "qapi/qapi-types-guest-memfd.h"
#include "hw/core/cpu.h"

struct kvm_run;
struct KVMMemoryListener;
struct KVMSlot;

/**
 * GuestMemfdCaps: what the host's KVM can do for this VM
 * @generation: see the QAPI type
 * @flags: the bits KVM_CREATE_GUEST_MEMFD accepts (KVM_CAP_GUEST_MEMFD_FLAGS)
 * @numa_policy: mbind() on a mapping is kept in the file (Linux 6.19)
 * @missing: what stands in the way of a mappable guest_memfd: BIT() of each
 *           GuestMemfdMissing; 0 if nothing does
 * @missing_text: the same as a clause for an error message; NULL if @missing is
 *                0.  Static.
 */
typedef struct GuestMemfdCaps {
    GuestMemfdGeneration generation;
    uint64_t flags;
    bool numa_policy;
    uint32_t missing;
    const char *missing_text;
} GuestMemfdCaps;

/* accel/kvm/guest-memfd.c */

/**
 * kvm_guest_memfd_caps: what the host can do
 *
 * Asks the kernel once, when first called with KVM running.  Never fails:
 * without KVM the answer is generation "none".  The result is static.
 */
const GuestMemfdCaps *kvm_guest_memfd_caps(void);

/**
 * kvm_guest_memfd_create: create a mappable guest_memfd, all shared
 * @size: bytes, a multiple of the host's page size
 *
 * Returns: a file descriptor with close-on-exec set, which the caller owns;
 * or -1 with @errp set.
 */
int kvm_guest_memfd_create(uint64_t size, Error **errp);

/**
 * kvm_guest_memfd_set_private: convert a range of a file
 * @fd: the guest_memfd
 * @offset, @size: bytes, multiples of the host's page size
 * @error_offset: set to the offset of the first busy page on -EAGAIN
 *
 * One system call, made without waiting for anything of QEMU's.  Needs no
 * lock.
 * Returns: 0; or -errno, and then no page has changed.
 */
int kvm_guest_memfd_set_private(int fd, uint64_t offset, uint64_t size,
                                bool private, uint64_t *error_offset);

/**
 * kvm_guest_memfd_set_region: create, change or delete a memslot
 * @kml: the listener of its address space; its slots lock is held
 * @slot: as kvm-all.c has filled it in; size 0 means delete
 * @new: the slot does not exist yet
 * @ret: 0 or -errno
 *
 * Returns: false, with nothing done, if the slot is not on a guest_memfd.
 */
bool kvm_guest_memfd_set_region(struct KVMMemoryListener *kml,
                                struct KVMSlot *slot, bool new, int *ret);

/**
 * kvm_guest_memfd_region_result: what becomes of a memslot that KVM refuses
 * @slot: as above; need not be on a guest_memfd
 * @ret: 0 or -errno of KVM, which was reported
 *
 * Our caller's caller aborts on an error, even where a slot may be missing.
 * Returns: 0 there; else @ret.
 */
int kvm_guest_memfd_region_result(const struct KVMSlot *slot, int ret);

/**
 * kvm_guest_memfd_commit: bind slots that were aliases and no longer are
 * @kml: its memory transaction has just been carried out; slots lock held
 */
void kvm_guest_memfd_commit(struct KVMMemoryListener *kml);

/* accel/kvm/guest-memfd-exit.c: called by the vCPU's thread without the BQL */

/**
 * kvm_guest_memfd_hypercall: serve a hypercall of a guest
 * @run: of @cpu, which left with KVM_EXIT_HYPERCALL
 * @ret: set to what to do with the vCPU; 0: run it
 *
 * All of these are called by the vCPU's thread, without the BQL.
 * Returns: false if it is none of ours.
 */
bool kvm_guest_memfd_hypercall(CPUState *cpu, struct kvm_run *run, int *ret);

/**
 * kvm_guest_memfd_resume: continue a hypercall that was interrupted
 *
 * Before @cpu enters KVM.
 * Returns: false; or true if it was interrupted again, or is given up, with
 * @ret as above.
 */
bool kvm_guest_memfd_resume(CPUState *cpu, struct kvm_run *run, int *ret);

/**
 * kvm_guest_memfd_memory_fault: serve a KVM_EXIT_MEMORY_FAULT
 *
 * Returns: what to do with the vCPU; 0: run it; less: it cannot go on, and
 * the reason was reported.
 */
int kvm_guest_memfd_memory_fault(CPUState *cpu, struct kvm_run *run);

/**
 * kvm_guest_memfd_retry: may KVM_RUN be tried again?
 * @error: what it failed with, -errno
 */
bool kvm_guest_memfd_retry(CPUState *cpu, struct kvm_run *run, int error);

/**
 * kvm_guest_memfd_is_mmio: is a KVM_EXIT_MMIO one?
 *
 * Returns: false if it is about private memory, which was reported.
 */
bool kvm_guest_memfd_is_mmio(struct kvm_run *run);

/**
 * kvm_guest_memfd_vcpu_is_lost: has a failed reset left nothing of @cpu?
 *
 * Called by a signal handler, too.
 */
bool kvm_guest_memfd_vcpu_is_lost(const CPUState *cpu);

#endif
