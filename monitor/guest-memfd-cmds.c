/*
 * query-guest-memfd, info guest-memfd
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "monitor/hmp.h"
#include "monitor/monitor.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-guest-memfd.h"
#include "qemu/cutils.h"
#include "qemu/module.h"
#include "system/guest-memfd.h"
#include "system/guest-memfd-compat.h"

static GuestMemfdHost *describe_host(const GuestMemfdCaps *caps)
{
    GuestMemfdHost *host = g_new0(GuestMemfdHost, 1);
    GuestMemfdCreateFlagList **tail = &host->flags;
    GuestMemfdCreateFlag flag;

    host->generation = caps->generation;
    host->missing = g_strdup(caps->missing);
    host->numa_policy = caps->numa_policy;
    for (flag = 0; flag < GUEST_MEMFD_CREATE_FLAG__MAX; flag++) {
        if (caps->flags & BIT_ULL(flag)) {
            QAPI_LIST_APPEND(tail, flag);
        }
    }
    return host;
}

static GuestMemfdSlotInfo *describe_slot(const GuestMemfdSlot *s)
{
    GuestMemfdSlotInfo *slot = g_new0(GuestMemfdSlotInfo, 1);

    slot->address_space = s->as_id ? GUEST_MEMFD_ADDRESS_SPACE_SMM
                                   : GUEST_MEMFD_ADDRESS_SPACE_MEMORY;
    slot->slot = s->slot;
    slot->gpa = s->gpa;
    slot->size = s->size;
    slot->offset = s->offset;
    slot->bound = s->bound;
    slot->has_reason = !s->bound;
    slot->reason = s->reason;
    return slot;
}

static GuestMemfdBlock *describe_block(const GuestMemfd *gmem)
{
    GuestMemfdBlock *block = g_new0(GuestMemfdBlock, 1);
    GuestMemfdSlotInfoList **tail = &block->slots;
    const GuestMemfdSlot *s;

    block->id = g_strdup(memory_region_name(gmem->rb->mr));
    block->size = gmem->rb->max_length;
    block->inode = gmem->inode;
    block->state = GUEST_MEMFD_PAGE_STATE_SHARED;
    block->has_allocated = guest_memfd_allocated(gmem, &block->allocated);
    QTAILQ_FOREACH(s, &gmem->slots, next) {
        QAPI_LIST_APPEND(tail, describe_slot(s));
    }
    block->counters = g_new0(GuestMemfdCounters, 1);
    block->counters->bound = gmem->bound;
    block->counters->plain = gmem->plain;
    block->counters->replaced = gmem->replaced;
    return block;
}

GuestMemfdInfo *qmp_query_guest_memfd(Error **errp)
{
    GuestMemfdInfo *info = g_new0(GuestMemfdInfo, 1);
    GuestMemfdBlockList **tail = &info->blocks;
    const GuestMemfd *gmem;

    info->host = describe_host(kvm_guest_memfd_caps());
    QTAILQ_FOREACH(gmem, guest_memfd_list(), next) {
        QAPI_LIST_APPEND(tail, describe_block(gmem));
    }
    return info;
}

static void print_host(Monitor *mon, const GuestMemfdHost *host)
{
    GuestMemfdCreateFlagList *f;

    monitor_printf(mon, "host: %s", GuestMemfdGeneration_str(host->generation));
    for (f = host->flags; f; f = f->next) {
        monitor_printf(mon, ", %s", GuestMemfdCreateFlag_str(f->value));
    }
    monitor_printf(mon, "%s\n", host->numa_policy ? ", numa-policy" : "");
    if (host->missing) {
        monitor_printf(mon, "  %s\n", host->missing);
    }
}

static void print_slot(Monitor *mon, const GuestMemfdSlotInfo *s)
{
    monitor_printf(mon, "  %016" PRIx64 "-%016" PRIx64 " @%010" PRIx64
                   " %s slot %" PRId64 " %s",
                   s->gpa, s->gpa + s->size - 1, s->offset,
                   GuestMemfdAddressSpace_str(s->address_space), s->slot,
                   s->bound ? "bound" : "plain");
    if (s->has_reason) {
        monitor_printf(mon, " (%s)", GuestMemfdPlainReason_str(s->reason));
    }
    monitor_printf(mon, "\n");
}

static void print_block(Monitor *mon, const GuestMemfdBlock *block)
{
    g_autofree char *size = size_to_str(block->size);
    g_autofree char *allocated = size_to_str(block->allocated);
    GuestMemfdSlotInfoList *s;

    monitor_printf(mon, "%s: %s, inode %" PRIu64 ", %s, %s allocated\n",
                   block->id, size, block->inode,
                   GuestMemfdPageState_str(block->state),
                   block->has_allocated ? allocated : "unknown number");
    for (s = block->slots; s; s = s->next) {
        print_slot(mon, s->value);
    }
    monitor_printf(mon, "  slots bound %" PRIu64 ", plain %" PRIu64
                   ", replaced %" PRIu64 " times\n", block->counters->bound,
                   block->counters->plain, block->counters->replaced);
}

static void hmp_info_guest_memfd(Monitor *mon, const QDict *qdict)
{
    g_autoptr(GuestMemfdInfo) info = qmp_query_guest_memfd(&error_abort);
    GuestMemfdBlockList *b;

    print_host(mon, info->host);
    for (b = info->blocks; b; b = b->next) {
        print_block(mon, b->value);
    }
}

static void guest_memfd_register_hmp(void)
{
    monitor_register_hmp("guest-memfd", true, hmp_info_guest_memfd);
}

type_init(guest_memfd_register_hmp)
