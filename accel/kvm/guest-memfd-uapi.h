/*
 * The kernel's guest_memfd interface, as far as headers may lack it
 *
 * What is in a released kernel has the names of linux/kvm.h.  What is not has
 * GMEM_ names, and only this header and guest-memfd.c use them: the numbers
 * may change until "guest_memfd: In-place conversion support" is released.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef ACCEL_KVM_GUEST_MEMFD_UAPI_H
#define ACCEL_KVM_GUEST_MEMFD_UAPI_H

#include <linux/kvm.h>

/* Linux 6.18 */
#ifndef KVM_CAP_GUEST_MEMFD_FLAGS
#define KVM_CAP_GUEST_MEMFD_FLAGS 244
#endif
#ifndef GUEST_MEMFD_FLAG_MMAP
#define GUEST_MEMFD_FLAG_MMAP (1ULL << 0)
#endif
#ifndef GUEST_MEMFD_FLAG_INIT_SHARED
#define GUEST_MEMFD_FLAG_INIT_SHARED (1ULL << 1)
#endif

/* In-place conversion: argument and number of the ioctl on a guest_memfd. */
struct gmem_memory_attributes2 {
    uint64_t offset;
    uint64_t size;
    uint64_t attributes;
    uint64_t flags;
    uint64_t error_offset;
    uint64_t reserved[11];
};

#define GMEM_SET_MEMORY_ATTRIBUTES2 \
    _IOWR(KVMIO, 0xd2, struct gmem_memory_attributes2)

#endif
