/*
 * RAM blocks that are a KVM guest_memfd: what discard listeners see of them
 *
 * A discard listener (VFIO and the like) maps the pages of a block for a
 * device, which pins them.  It must have no page that is private, or on its
 * way there.  So each block whose pages can be private is a source of its
 * region's RamDiscardManager, beside others such as virtio-mem: a page is
 * populated here while it is shown (see guest-memfd-access.c).
 *
 * While a launch is not finished, listeners see nothing of a block.  Its
 * memory is shared then, but will all be private: VFIO would map every page,
 * one by one, only to unmap it, and may run out of mappings.
 *
 * A listener comes, goes and is notified with the BQL held, and while there is
 * one, chunks are converted with the BQL held only.  That a vCPU thread without
 * the BQL sees a listener which is just coming follows from the conversion
 * lock: the manager enters the listener into its list before it asks for
 * populated pages, and the answer is given under that lock; a vCPU thread looks
 * at the list and converts a chunk in one critical section of it.  So either
 * the listener finds the chunk converted, or the vCPU thread sees the listener.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/atomic.h"
#include "qemu/lockable.h"
#include "gmem/system/guest-memfd-internal.h"
#include "system/memory.h"
#include "system/ram-discard-manager.h"
#include "system/ramblock.h"

#define TYPE_GUEST_MEMFD_DISCARD_SOURCE "guest-memfd-discard-source"
OBJECT_DECLARE_SIMPLE_TYPE(GuestMemfdDiscardSource, GUEST_MEMFD_DISCARD_SOURCE)

/**
 * GuestMemfdDiscardSource:
 * @gmem: the block, which owns this object
 */
struct GuestMemfdDiscardSource {
    Object parent_obj;

    GuestMemfd *gmem;
};

OBJECT_DEFINE_SIMPLE_TYPE_WITH_INTERFACES(GuestMemfdDiscardSource,
                                          guest_memfd_discard_source,
                                          GUEST_MEMFD_DISCARD_SOURCE, OBJECT,
                                          { TYPE_RAM_DISCARD_SOURCE },
                                          { })

static uint64_t discard_source_granularity(const RamDiscardSource *source,
                                           const MemoryRegion *mr)
{
    return qemu_real_host_page_size();
}

static bool discard_source_is_populated(const RamDiscardSource *source,
                                        const MemoryRegionSection *section)
{
    GuestMemfd *gmem = GUEST_MEMFD_DISCARD_SOURCE(source)->gmem;

    QEMU_LOCK_GUARD(&gmem->state.lock);
    return !gmem->state.launching &&
           !guest_memfd_any_private(gmem, section->offset_within_region,
                                    int128_get64(section->size));
}

static RamDiscardManager *discard_manager(const GuestMemfd *gmem)
{
    return memory_region_get_ram_discard_manager(gmem->rb->mr);
}

bool guest_memfd_has_listeners(const GuestMemfd *gmem)
{
    return gmem->discard_source &&
           qatomic_read(&discard_manager(gmem)->rdl_list.lh_first);
}

int guest_memfd_notify_populate(GuestMemfd *gmem, uint64_t offset,
                                uint64_t size)
{
    return ram_discard_manager_notify_populate(discard_manager(gmem),
                                               gmem->discard_source, offset,
                                               size);
}

void guest_memfd_notify_discard(GuestMemfd *gmem, uint64_t offset,
                                uint64_t size)
{
    ram_discard_manager_notify_discard(discard_manager(gmem),
                                       gmem->discard_source, offset, size);
}

void guest_memfd_notify_discard_all(GuestMemfd *gmem)
{
    if (gmem->discard_source) {
        ram_discard_manager_notify_discard_all(discard_manager(gmem),
                                               gmem->discard_source);
    }
}

int guest_memfd_notify_populate_all(GuestMemfd *gmem)
{
    return gmem->discard_source
           ? ram_discard_manager_replay_populated_to_listeners(
                 discard_manager(gmem))
           : 0;
}

bool guest_memfd_discard_init(GuestMemfd *gmem, Error **errp)
{
    Object *source = object_new(TYPE_GUEST_MEMFD_DISCARD_SOURCE);
    int ret;

    GUEST_MEMFD_DISCARD_SOURCE(source)->gmem = gmem;
    ret = memory_region_add_ram_discard_source(gmem->rb->mr,
                                               RAM_DISCARD_SOURCE(source));
    if (ret < 0) {
        error_setg_errno(errp, -ret, "cannot manage which pages of memory "
                         "'%s' devices may map",
                         memory_region_name(gmem->rb->mr));
        object_unref(source);
        return false;
    }
    gmem->discard_source = RAM_DISCARD_SOURCE(source);
    return true;
}

void guest_memfd_discard_end(GuestMemfd *gmem)
{
    Object *source = OBJECT(gmem->discard_source);

    if (source) {
        memory_region_del_ram_discard_source(gmem->rb->mr,
                                             gmem->discard_source);
        gmem->discard_source = NULL;
        object_unref(source);
    }
}

static void guest_memfd_discard_source_init(Object *obj)
{
}

static void guest_memfd_discard_source_finalize(Object *obj)
{
}

static void guest_memfd_discard_source_class_init(ObjectClass *oc,
                                                  const void *data)
{
    RamDiscardSourceClass *source = RAM_DISCARD_SOURCE_CLASS(oc);

    source->get_min_granularity = discard_source_granularity;
    source->is_populated = discard_source_is_populated;
}
