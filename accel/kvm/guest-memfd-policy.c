/*
 * Which memslots on a guest_memfd are bound to it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "gmem/accel/kvm/guest-memfd-policy.h"
#include "gmem/accel/kvm/guest-memfd-uapi.h"

static bool overlap(const GuestMemfdSlot *a, const GuestMemfdSlot *b)
{
    return a->offset < b->offset + b->size && b->offset < a->offset + a->size;
}

static bool is_alias(const GuestMemfdSlots *slots, const GuestMemfdSlot *slot)
{
    const GuestMemfdSlot *other;

    QTAILQ_FOREACH(other, slots, next) {
        if (other != slot && other->bound && overlap(other, slot)) {
            return true;
        }
    }
    return false;
}

void guest_memfd_slot_decide(const GuestMemfdSlots *slots,
                             GuestMemfdSlot *slot)
{
    slot->bound = false;
    if (slot->as_id) {
        slot->reason = GUEST_MEMFD_PLAIN_REASON_SMM;
    } else if (slot->flags & KVM_MEM_READONLY) {
        slot->reason = GUEST_MEMFD_PLAIN_REASON_READ_ONLY;
    } else if (slot->flags & KVM_MEM_LOG_DIRTY_PAGES) {
        slot->reason = GUEST_MEMFD_PLAIN_REASON_DIRTY_LOG;
    } else if (is_alias(slots, slot)) {
        slot->reason = GUEST_MEMFD_PLAIN_REASON_ALIAS;
    } else {
        slot->bound = true;
    }
}
