/*
 * virtio-balloon and RAM that is converted in place
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef SYSTEM_GUEST_MEMFD_BALLOON_H
#define SYSTEM_GUEST_MEMFD_BALLOON_H

#include "exec/hwaddr.h"
#include "system/memory.h"

/**
 * guest_memfd_balloon_block: the RAM block of a range that the guest reports
 * @as: where the device makes its accesses
 * @addr: the range's address in @as
 * @host: where QEMU has mapped that address for the device
 * @size: bytes
 * @offset: set to the range's offset in the block, in bytes
 *
 * Finds private memory, too, which the device has not mapped.  Called with the
 * BQL held, which keeps the block alive.
 * Returns: the block, or NULL if there is no RAM of the guest.
 */
RAMBlock *guest_memfd_balloon_block(AddressSpace *as, hwaddr addr, void *host,
                                    uint64_t size, ram_addr_t *offset);

/**
 * guest_memfd_balloon_discard: give pages back that the guest does not use
 * @rb: any RAM block
 * @offset, @size: bytes in it, multiples of its page size
 *
 * Private pages that the guest could not use again are left alone; the comment
 * at the top of guest-memfd-balloon.c has the reason.  Errors are reported,
 * and no harm to the guest.  Called with the BQL held.
 */
void guest_memfd_balloon_discard(RAMBlock *rb, uint64_t offset, uint64_t size);

#endif
