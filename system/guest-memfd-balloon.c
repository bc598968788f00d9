/*
 * virtio-balloon and RAM that is converted in place
 *
 * A guest gives pages to its balloon (inflate), or reports free ones, and
 * QEMU punches a hole there.  The guest finds zeros when it uses such a page
 * again.  That holds for shared pages of every guest.
 *
 * Private pages of an SEV-SNP or TDX guest are left alone.  The guest has
 * accepted them once (PVALIDATE, TDG.MEM.PAGE.ACCEPT), and the platform takes
 * that back when the host removes the page.  The guest's driver knows nothing
 * of it and does not accept the page again, so the guest would die when it
 * uses the page.  To give private memory back, such a guest has to convert it
 * to shared before.
 *
 * A software-protected guest accepts nothing (takes_any_state): an absent
 * page is zeros in either state, so its private pages are punched, too.
 *
 * A page that another vCPU converts meanwhile is treated as what it was.  The
 * guest said that it does not use the page, so it is to blame for the rest.
 *
 * Reports come as buffers that the device has mapped.  QEMU maps dummy RAM in
 * the place of private pages (see guest-memfd-access.c), so the block is found
 * by the address that the guest has given.
 *
 * Where private memory is separate, all of this is QEMU's.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "hw/core/boards.h"
#include "system/confidential-guest-support.h"
#include "gmem/system/guest-memfd-internal.h"
#include "system/memory.h"
#include "system/ramblock.h"
#include "gmem/system/guest-memfd-balloon.h"
#include "gmem/trace.h"

static bool block_can_be_private(const RAMBlock *rb)
{
    return rb && rb->gmem && guest_memfd_can_be_private(rb->gmem);
}

RAMBlock *guest_memfd_balloon_block(AddressSpace *as, hwaddr addr, void *host,
                                    uint64_t size, ram_addr_t *offset)
{
    RAMBlock *rb = qemu_ram_block_from_host(host, false, offset);
    MemoryRegionSection section;

    if (!guest_memfd_in_place() || block_can_be_private(rb)) {
        return rb;
    }
    /* An IOMMU that translates @addr is no RAM, so nothing is found. */
    section = memory_region_find(as->root, addr, size);
    rb = NULL;
    if (section.mr) {
        if (memory_region_is_ram(section.mr) &&
            !memory_region_is_rom(section.mr) &&
            int128_eq(section.size, int128_make64(size))) {
            rb = section.mr->ram_block;
            *offset = section.offset_within_region;
        }
        memory_region_unref(section.mr);
    }
    return block_can_be_private(rb) ? rb : NULL;
}

void guest_memfd_balloon_discard(RAMBlock *rb, uint64_t offset, uint64_t size)
{
    const uint64_t page_size = qemu_real_host_page_size();
    uint64_t page = offset / page_size, end = (offset + size) / page_size;
    uint64_t next, kept = 0;

    if (!block_can_be_private(rb) || current_machine->cgs->takes_any_state) {
        ram_block_discard_range(rb, offset, size);
        return;
    }
    for (; page < end; page = next) {
        bool shared = guest_memfd_next_page(rb->gmem, page, end, true) == page;

        next = guest_memfd_next_page(rb->gmem, page + 1, end, !shared);
        if (shared) {
            ram_block_discard_range(rb, page * page_size,
                                    (next - page) * page_size);
        } else {
            kept += (next - page) * page_size;
        }
    }
    trace_guest_memfd_balloon_discard(rb->gmem->inode, offset, size, kept);
}
