/*
 * Stand-in for guest-memfd-discard.c and QEMU's RamDiscardManager, for tests of
 * the conversion engine.  To be included once in a program.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef TEST_DISCARD_MANAGER_H
#define TEST_DISCARD_MANAGER_H

#include "qemu/atomic.h"
#include "qemu/queue.h"
#include "system/guest-memfd.h"
#include "system/memory.h"
#include "system/ram-discard-manager.h"

/**
 * TestManager: the discard listeners of one block
 * @listeners: @count of them; changes with the BQL held, but @count may be
 *             read without it
 * @lost: called if a populate was undone: the listener has lost these pages
 * @looked_at: if not NULL, called when @count has been read
 */
typedef struct TestManager {
    QLIST_HEAD(, RamDiscardListener) listeners;
    unsigned count;
    void (*lost)(RamDiscardListener *rdl, const MemoryRegionSection *section);
    void (*looked_at)(void);
} TestManager;

static inline void test_manager_add(TestManager *m, RamDiscardListener *rdl)
{
    QLIST_INSERT_HEAD(&m->listeners, rdl, next);
    qatomic_inc(&m->count);
}

static inline void test_manager_remove(TestManager *m, RamDiscardListener *rdl)
{
    QLIST_REMOVE(rdl, next);
    qatomic_dec(&m->count);
}

/* Sets @part to the part of a range that @rdl has registered; false: none. */
static inline bool test_manager_part(const RamDiscardListener *rdl,
                                     uint64_t offset, uint64_t size,
                                     MemoryRegionSection *part)
{
    *part = *rdl->section;
    return memory_region_section_intersect_range(part, offset, size);
}

static inline void test_manager_discard(TestManager *m, uint64_t offset,
                                        uint64_t size)
{
    MemoryRegionSection part;
    RamDiscardListener *rdl;

    QLIST_FOREACH(rdl, &m->listeners, next) {
        if (test_manager_part(rdl, offset, size, &part)) {
            rdl->notify_discard(rdl, &part);
        }
    }
}

/* Only the listeners up to @last were notified. */
static inline void test_manager_undo(TestManager *m, RamDiscardListener *last,
                                     uint64_t offset, uint64_t size)
{
    MemoryRegionSection part;
    RamDiscardListener *rdl;
    bool notified = true;

    QLIST_FOREACH(rdl, &m->listeners, next) {
        if (test_manager_part(rdl, offset, size, &part)) {
            if (notified) {
                rdl->notify_discard(rdl, &part);
            }
            m->lost(rdl, &part);
        }
        notified &= rdl != last;
    }
}

static inline int test_manager_populate(TestManager *m, uint64_t offset,
                                        uint64_t size)
{
    MemoryRegionSection part;
    RamDiscardListener *rdl;

    QLIST_FOREACH(rdl, &m->listeners, next) {
        int ret = test_manager_part(rdl, offset, size, &part)
                  ? rdl->notify_populate(rdl, &part) : 0;

        if (ret) {
            test_manager_undo(m, rdl, offset, size);
            return ret;
        }
    }
    return 0;
}

/** test_manager_of: a block's manager; defined by the including program. */
TestManager *test_manager_of(const GuestMemfd *gmem);

bool guest_memfd_has_listeners(const GuestMemfd *gmem)
{
    TestManager *m = test_manager_of(gmem);
    bool any = qatomic_read(&m->count);

    if (m->looked_at) {
        m->looked_at();
    }
    return any;
}

int guest_memfd_notify_populate(GuestMemfd *gmem, uint64_t offset,
                                uint64_t size)
{
    return test_manager_populate(test_manager_of(gmem), offset, size);
}

void guest_memfd_notify_discard(GuestMemfd *gmem, uint64_t offset,
                                uint64_t size)
{
    test_manager_discard(test_manager_of(gmem), offset, size);
}

#endif
