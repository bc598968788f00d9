/*
 * KVM_GET_DIRTY_LOG: which slots have one
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "conformance.h"

#define GPA 0x100000

static void answer_log(const char *rule, uint32_t slot)
{
    uint64_t bits = -1;
    struct kvm_dirty_log log = { .slot = slot, .dirty_bitmap = &bits };
    int ret = ioctl(vm, KVM_GET_DIRTY_LOG, &log);

    if (ret) {
        answer_ret(rule, ret);
    } else {
        answer(rule, "0x%llx", (unsigned long long)bits);
    }
}

int main(int argc, char **argv)
{
    uint8_t *memory;
    int fd;

    make_vm(argc, argv);
    memory = make_bindable(4 * PAGE, &fd);

    answer_log("dirty-log-of-no-slot", 1);
    need(!bind_slot(1, GPA, 4 * PAGE, memory, fd, 0), "binding a slot");
    answer_log("dirty-log-of-bound", 1);
    need(!delete_slot(1), "deleting a slot");
    need(!set_slot(1, 0, GPA, 4 * PAGE, memory, -1, 0), "a plain slot");
    answer_log("dirty-log-of-plain", 1);
    need(!set_slot(1, KVM_MEM_LOG_DIRTY_PAGES, GPA, 4 * PAGE, memory, -1, 0),
         "logging");
    answer_log("dirty-log-of-logging", 1);
    /* The host's own writes are not the guest's. */
    memory[PAGE] = 1;
    answer_log("dirty-log-after-host-write", 1);
    return 0;
}
