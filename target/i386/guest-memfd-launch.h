/*
 * Launch of SEV-SNP and TDX guests: memory in place, and what is measured
 *
 * QEMU's launch code calls these in both ways of memory.  Where it is
 * separate, they do what QEMU does.  Firmware that cannot be launched ends
 * QEMU, as in QEMU itself; so does any other failure of a first launch.  All
 * are called with the BQL held.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef I386_GUEST_MEMFD_LAUNCH_H
#define I386_GUEST_MEMFD_LAUNCH_H

#include <linux/kvm.h>
#include "exec/hwaddr.h"
#include "hw/i386/tdvf.h"
#include "gmem/accel/kvm/guest-memfd.h"
#include "gmem/system/guest-memfd-launch.h"
#include "gmem/system/guest-memfd-rebuild.h"
#include "system/guest-memfd.h"

struct TdxGuest;

/**
 * guest_memfd_snp_check_policy: can this be a guest's policy?
 *
 * Ends QEMU if not: KVM refuses it, and does not say why.
 */
void guest_memfd_snp_check_policy(uint64_t policy);

/**
 * guest_memfd_snp_reset_vcpu: @cpu, in QEMU's state, starts where the firmware
 * says
 *
 * For all but the first, also if the firmware was read before @cpu was made.
 */
void guest_memfd_snp_reset_vcpu(CPUState *cpu);

/**
 * guest_memfd_snp_launch_check: can QEMU look at pages that it will launch?
 * @gpa, @size: bytes
 */
void guest_memfd_snp_launch_check(hwaddr gpa, hwaddr size);

/**
 * guest_memfd_snp_launch_range: make pages private, to be populated
 * @update: as for KVM_SEV_SNP_LAUNCH_UPDATE; its source changes in place
 *
 * Returns: 0; -errno where memory is separate.
 */
int guest_memfd_snp_launch_range(struct kvm_sev_snp_launch_update *update);

/**
 * guest_memfd_snp_launch_result: what KVM_SEV_SNP_LAUNCH_UPDATE has come to
 * @ret: its answer, 0 or -errno
 * @fw_error: the firmware's answer, 0 if it gave none
 *
 * Returns: -EAGAIN if it is to be called again, which an error that lasts gets
 * a few times only; else 0 or -errno.
 */
int guest_memfd_snp_launch_result(int ret, int fw_error);

/**
 * guest_memfd_snp_cpuid_page: where the firmware has corrected the CPUID page
 * @hva: where QEMU has written it
 */
void *guest_memfd_snp_cpuid_page(void *hva);

/**
 * guest_memfd_snp_required_memory: an IGVM file needs memory there
 * @gpa, @size: bytes
 *
 * In place, it becomes private like all RAM, when the launch is finished: the
 * file may still have contents for it.
 * Returns: 0, or -errno.
 */
int guest_memfd_snp_required_memory(hwaddr gpa, hwaddr size);

/**
 * guest_memfd_snp_has_hashes: are there hashes of a kernel to be measured?
 * @hashes: QEMU's table of them, or NULL
 *
 * QEMU makes hashes of some kinds of kernels only.
 * Returns: false with @errp set if it made none, and they are asked for.
 */
bool guest_memfd_snp_has_hashes(const void *hashes, Error **errp);

/**
 * guest_memfd_snp_launch_finish: all is populated; nothing is finished
 * @start: as for KVM_SEV_SNP_LAUNCH_START
 * @finish: as for KVM_SEV_SNP_LAUNCH_FINISH
 * @features: SEV_FEATURES as for KVM_SEV_INIT2; KVM adds that of SEV-SNP
 *
 * Returns: false if the guest cannot be launched; see
 * guest_memfd_launch_failed().
 */
bool guest_memfd_snp_launch_finish(
    const struct kvm_sev_snp_launch_start *start,
    const struct kvm_sev_snp_launch_finish *finish, uint64_t features);

/**
 * guest_memfd_tdx_contents: a section that is in the firmware's image
 *
 * In place, it is copied if the guest does not find it where the image has it.
 * Returns: what is to be populated.
 */
void *guest_memfd_tdx_contents(struct TdxGuest *tdx,
                               const TdxFirmwareEntry *entry);

/**
 * guest_memfd_tdx_section: zeroed memory for a section that is in no image
 *
 * Returns: MAP_FAILED if there is none, where memory is separate.  To be
 * given back by guest_memfd_tdx_section_free().
 */
void *guest_memfd_tdx_section(struct TdxGuest *tdx,
                              const TdxFirmwareEntry *entry);

/** guest_memfd_tdx_section_free: QEMU has no more use for it. */
void guest_memfd_tdx_section_free(const TdxFirmwareEntry *entry);

/**
 * guest_memfd_tdx_launch_range: make a section private, to be populated
 * @entry: its mem_ptr has the contents
 * @region: as for KVM_TDX_INIT_MEM_REGION; its source changes in place
 *
 * Returns: false as above, also if a step before has failed.
 */
bool guest_memfd_tdx_launch_range(const TdxFirmwareEntry *entry,
                                  struct kvm_tdx_init_mem_region *region);

/**
 * guest_memfd_tdx_launch_finish: all is populated; nothing is finalized
 * @image: the block that the firmware was loaded into
 *
 * Returns: false as above, also if a step before has failed.
 */
bool guest_memfd_tdx_launch_finish(const struct TdxGuest *tdx,
                                   RAMBlock *image);

#endif
