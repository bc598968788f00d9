/*
 * Events of RAM blocks that are a KVM guest_memfd
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "qapi/qapi-events-guest-memfd.h"
#include "system/guest-memfd-events.h"

void guest_memfd_event_pinned(const char *id, uint64_t offset)
{
    qapi_event_send_guest_memfd_page_pinned(id, offset);
}

void guest_memfd_event_touched(const char *id, uint64_t offset,
                               uint64_t touched, uint64_t denied)
{
    qapi_event_send_guest_memfd_private_touched(id, offset, touched, denied);
}
