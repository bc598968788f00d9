/*
 * Which memslots on a guest_memfd are bound to it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "qemu/units.h"
#include "gmem/accel/kvm/guest-memfd-policy.h"
#include "gmem/accel/kvm/guest-memfd-uapi.h"

#define BOUND -1

typedef struct PolicyCase {
    const char *name;
    unsigned as_id;
    uint32_t flags;
    uint64_t offset;
    uint64_t size;
    int want;       /* BOUND, or a GuestMemfdPlainReason */
} PolicyCase;

/* There is a bound slot on [1 MiB, 2 MiB), a plain one on [4 MiB, 5 MiB). */
static const PolicyCase cases[] = {
    { "ordinary RAM is bound",
      0, 0, 0, 1 * MiB, BOUND },
    { "a read-only section is plain",
      0, KVM_MEM_READONLY, 0, 1 * MiB, GUEST_MEMFD_PLAIN_REASON_READ_ONLY },
    { "a section that logs dirty pages is plain",
      0, KVM_MEM_LOG_DIRTY_PAGES, 0, 1 * MiB,
      GUEST_MEMFD_PLAIN_REASON_DIRTY_LOG },
    { "a read-only section that logs is read-only first",
      0, KVM_MEM_READONLY | KVM_MEM_LOG_DIRTY_PAGES, 0, 1 * MiB,
      GUEST_MEMFD_PLAIN_REASON_READ_ONLY },
    { "SMM is plain even where nothing else binds",
      1, 0, 0, 1 * MiB, GUEST_MEMFD_PLAIN_REASON_SMM },
    { "SMM is plain whatever its flags are",
      1, KVM_MEM_READONLY | KVM_MEM_LOG_DIRTY_PAGES, 1 * MiB, 1 * MiB,
      GUEST_MEMFD_PLAIN_REASON_SMM },
    { "the same range again is an alias",
      0, 0, 1 * MiB, 1 * MiB, GUEST_MEMFD_PLAIN_REASON_ALIAS },
    { "a part of it is an alias",
      0, 0, 1 * MiB + 4 * KiB, 4 * KiB, GUEST_MEMFD_PLAIN_REASON_ALIAS },
    { "a range around it is an alias",
      0, 0, 0, 3 * MiB, GUEST_MEMFD_PLAIN_REASON_ALIAS },
    { "one page of overlap at the start is an alias",
      0, 0, 0, 1 * MiB + 4 * KiB, GUEST_MEMFD_PLAIN_REASON_ALIAS },
    { "one page of overlap at the end is an alias",
      0, 0, 2 * MiB - 4 * KiB, 1 * MiB, GUEST_MEMFD_PLAIN_REASON_ALIAS },
    { "the page before is none",
      0, 0, 1 * MiB - 4 * KiB, 4 * KiB, BOUND },
    { "the page behind is none",
      0, 0, 2 * MiB, 4 * KiB, BOUND },
    { "the range of a plain slot is none",
      0, 0, 4 * MiB, 1 * MiB, BOUND },
    { "a read-only alias is read-only",
      0, KVM_MEM_READONLY, 1 * MiB, 1 * MiB,
      GUEST_MEMFD_PLAIN_REASON_READ_ONLY },
    { "the end of a huge file",
      0, 0, INT64_MAX - 1 * MiB + 1, 1 * MiB, BOUND },
};

static void test_policy(const void *data)
{
    const PolicyCase *c = data;
    GuestMemfdSlots slots = QTAILQ_HEAD_INITIALIZER(slots);
    GuestMemfdSlot bound = { .offset = 1 * MiB, .size = 1 * MiB,
                             .bound = true };
    GuestMemfdSlot plain = { .as_id = 1, .offset = 4 * MiB, .size = 1 * MiB };
    GuestMemfdSlot slot = { .as_id = c->as_id, .flags = c->flags,
                            .offset = c->offset, .size = c->size };

    QTAILQ_INSERT_TAIL(&slots, &bound, next);
    QTAILQ_INSERT_TAIL(&slots, &plain, next);
    guest_memfd_slot_decide(&slots, &slot);
    g_assert_cmpint(slot.bound ? BOUND : (int)slot.reason, ==, c->want);
}

/* Deciding again about a bound slot must not find itself in the way. */
static void test_not_its_own_alias(void)
{
    GuestMemfdSlots slots = QTAILQ_HEAD_INITIALIZER(slots);
    GuestMemfdSlot slot = { .size = 1 * MiB, .bound = true };

    QTAILQ_INSERT_TAIL(&slots, &slot, next);
    guest_memfd_slot_decide(&slots, &slot);
    g_assert_true(slot.bound);
}

static void test_empty(void)
{
    GuestMemfdSlots slots = QTAILQ_HEAD_INITIALIZER(slots);
    GuestMemfdSlot slot = { .size = 1 * MiB };

    guest_memfd_slot_decide(&slots, &slot);
    g_assert_true(slot.bound);
}

int main(int argc, char **argv)
{
    int i;

    g_test_init(&argc, &argv, NULL);
    for (i = 0; i < ARRAY_SIZE(cases); i++) {
        g_autofree char *path = g_strdup_printf("/guest-memfd/policy/%s",
                                                cases[i].name);
        g_test_add_data_func(path, &cases[i], test_policy);
    }
    g_test_add_func("/guest-memfd/policy/the first slot is bound", test_empty);
    g_test_add_func("/guest-memfd/policy/a slot is not its own alias",
                    test_not_its_own_alias);
    return g_test_run();
}
