/*
 * Which flags a memslot may have, and by which ioctl
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "conformance.h"

#define GPA 0x100000
#define BOUND KVM_MEM_GUEST_MEMFD

static uint8_t *memory;
static int fd;

/* Make a slot with these flags, and take it away again. */
static void answer_slot(const char *rule, uint32_t flags)
{
    int ret = set_slot(1, flags, GPA, PAGE, memory, fd, 0);

    answer_ret(rule, ret);
    if (!ret) {
        need(!delete_slot(1), "deleting a slot");
    }
}

static void answer_v1(const char *rule, uint32_t flags)
{
    struct kvm_userspace_memory_region region = {
        .slot = 1, .flags = flags, .guest_phys_addr = GPA,
        .memory_size = PAGE, .userspace_addr = (uintptr_t)memory,
    };
    int ret = ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region);

    answer_ret(rule, ret);
    if (!ret) {
        need(!delete_slot(1), "deleting a slot");
    }
}

int main(int argc, char **argv)
{
    make_vm(argc, argv);
    memory = make_bindable(4 * PAGE, &fd);

    answer_slot("slot-bound", BOUND);
    answer_slot("slot-bound-read-only", BOUND | KVM_MEM_READONLY);
    answer_slot("slot-bound-logging", BOUND | KVM_MEM_LOG_DIRTY_PAGES);
    answer_slot("slot-bound-unknown-flag", BOUND | 1U << 3);
    answer_slot("slot-plain", 0);
    answer_slot("slot-plain-logging", KVM_MEM_LOG_DIRTY_PAGES);
    answer_slot("slot-plain-read-only", KVM_MEM_READONLY);
    answer_slot("slot-plain-read-only-logging",
                KVM_MEM_READONLY | KVM_MEM_LOG_DIRTY_PAGES);
    answer_slot("slot-plain-unknown-flag", 1U << 3);
    answer_v1("slot-v1-plain", 0);
    answer_v1("slot-v1-bound", BOUND);
    return 0;
}
