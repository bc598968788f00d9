/*
 * Events of RAM blocks that are a KVM guest_memfd
 *
 * A guest can bring them about as often as it likes, so QEMU's monitor sends
 * one a second for each event and block.  An event that comes too early waits,
 * and replaces one that waits already: the last one is always sent.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef SYSTEM_GUEST_MEMFD_EVENTS_H
#define SYSTEM_GUEST_MEMFD_EVENTS_H

#include "qapi/qapi-emit-events.h"
#include "qobject/qdict.h"

/**
 * guest_memfd_event_pinned: a conversion waits for a page that is pinned
 * @id: name of the block's memory region; copied
 * @offset: of that page, in bytes of the block
 *
 * This and guest_memfd_event_touched() can be called by any thread, with the
 * BQL or without.  They take mutexes and allocate memory, so not by a signal
 * handler, nor with a spinlock held.  A call costs some microseconds even if
 * the event has to wait: collect what can happen at every access of a device.
 */
void guest_memfd_event_pinned(const char *id, uint64_t offset);

/**
 * guest_memfd_event_touched: the guest has aimed a device at private memory
 * @id: name of the block's memory region; copied
 * @offset: of the last page that this was about, in bytes of the block
 * @touched: private pages that were touched so far
 * @denied: accesses that were refused so far
 *
 * Can be called as guest_memfd_event_pinned() can.
 */
void guest_memfd_event_touched(const char *id, uint64_t offset,
                               uint64_t touched, uint64_t denied);

/* For the monitor, which limits the rate of our events for each block */
static inline bool guest_memfd_event_is_ours(unsigned event)
{
    return event == QAPI_EVENT_GUEST_MEMFD_PAGE_PINNED ||
           event == QAPI_EVENT_GUEST_MEMFD_PRIVATE_TOUCHED;
}

static inline unsigned guest_memfd_event_hash(unsigned event,
                                              const QDict *data)
{
    return guest_memfd_event_is_ours(event)
           ? g_str_hash(qdict_get_str(data, "id")) : 0;
}

/* Both are data of @event. */
static inline bool guest_memfd_event_equal(unsigned event, const QDict *a,
                                           const QDict *b)
{
    return !guest_memfd_event_is_ours(event) ||
           g_str_equal(qdict_get_str(a, "id"), qdict_get_str(b, "id"));
}

#endif
