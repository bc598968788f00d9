/*
 * RAM blocks that are a KVM guest_memfd: access to pages that may be private
 *
 * For QEMU's headers about memory, so it must not need them.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef SYSTEM_GUEST_MEMFD_ACCESS_H
#define SYSTEM_GUEST_MEMFD_ACCESS_H

struct AddressSpace;
struct MemoryRegion;

/**
 * guest_memfd_some_hidden: are there blocks whose pages can be private?
 *
 * Set when the first one is made, before the guest runs, and never cleared.
 */
extern bool guest_memfd_some_hidden;

/**
 * guest_memfd_cache_is_direct: may a cached region have a pointer into @mr?
 * @mr: what it is a part of; any kind of region
 * @is_write: it will be written to
 *
 * Not if pages of @mr can be private: then each access is translated, and so
 * checked.  Needs no lock.
 */
bool guest_memfd_cache_is_direct(struct MemoryRegion *mr, bool is_write);

/* guest_memfd_shown: the slow part of guest_memfd_translated() */
struct MemoryRegion *guest_memfd_shown(struct MemoryRegion *mr,
                                       uint64_t offset, uint64_t *len);

/**
 * guest_memfd_translated: what to access instead of @mr
 * @mr: what an address was translated to; any kind of region
 * @offset: in @mr, bytes
 * @len: bytes that will be accessed at most; made less if pages that are
 *       hidden and others would mix
 *
 * A page is hidden while it is private, or about to be.
 * Needs no lock.  Returns: @mr; or a region that answers accesses with an
 * error, and cannot be mapped.
 */
static inline struct MemoryRegion *
guest_memfd_translated(struct MemoryRegion *mr, uint64_t offset, uint64_t *len)
{
    return likely(!guest_memfd_some_hidden) ? mr
           : guest_memfd_shown(mr, offset, len);
}

/**
 * guest_memfd_mapped: what to map instead of @mr
 * @mr, *@offset, *@len: what guest_memfd_translated() has left of an address
 * @is_write: what is mapped will be written to; else it will be read
 *
 * Needs no lock.
 * Returns: @mr; or, instead of the region that cannot be mapped, one that can,
 * and an offset in it and its length
 */
struct MemoryRegion *guest_memfd_mapped(struct MemoryRegion *mr,
                                        uint64_t *offset, uint64_t *len,
                                        bool is_write);

/** guest_memfd_is_hidden_region: is @mr what hidden pages are translated to? */
bool guest_memfd_is_hidden_region(const struct MemoryRegion *mr);

/**
 * guest_memfd_map_shared: address_space_map() for an address that another
 * process gets
 * @as, @addr, @len, @is_write: as there
 *
 * vhost's back ends keep the address, so it has to be memory of the
 * guest.  To be unmapped as usual.
 * Returns: NULL if it is not, with *@len 0.
 */
void *guest_memfd_map_shared(struct AddressSpace *as, uint64_t addr,
                             uint64_t *len, bool is_write);

/**
 * guest_memfd_on_sigbus: survive a touch of a page that is private
 * @code: si_code of the signal
 * @addr: si_addr
 *
 * Called by the signal's handler, in the thread that touched it.
 * Returns: whether the access can be tried again.
 */
bool guest_memfd_on_sigbus(int code, void *addr);

#endif
