/*
 * Which memslots on a guest_memfd are bound to it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef ACCEL_KVM_GUEST_MEMFD_POLICY_H
#define ACCEL_KVM_GUEST_MEMFD_POLICY_H

#include "gmem/system/guest-memfd-internal.h"

/**
 * guest_memfd_slot_decide: set @slot->bound, or @slot->reason
 * @slots: the slots on the same file; @slot itself may be among them
 * @slot: all other members are given
 *
 * Bound is what a slot should be.  KVM refuses that for read-only and
 * dirty-logging slots, and for a range of the file that another slot binds;
 * so the address space of SMM, which repeats the whole of RAM, is plain.
 */
void guest_memfd_slot_decide(const GuestMemfdSlots *slots,
                             GuestMemfdSlot *slot);

#endif
