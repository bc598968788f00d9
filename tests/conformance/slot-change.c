/*
 * A bound memslot cannot be changed, only deleted; a plain one can
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "conformance.h"

#define GPA 0x100000
#define BOUND KVM_MEM_GUEST_MEMFD
#define LOG KVM_MEM_LOG_DIRTY_PAGES

int main(int argc, char **argv)
{
    uint8_t *memory;
    int fd;

    make_vm(argc, argv);
    memory = make_bindable(4 * PAGE, &fd);

    need(!bind_slot(1, GPA, 2 * PAGE, memory, fd, 0), "binding a slot");
    answer_ret("bound-again", bind_slot(1, GPA, 2 * PAGE, memory, fd, 0));
    answer_ret("bound-move", bind_slot(1, 2 * GPA, 2 * PAGE, memory, fd, 0));
    answer_ret("bound-shrink", bind_slot(1, GPA, PAGE, memory, fd, 0));
    answer_ret("bound-other-offset",
               bind_slot(1, GPA, 2 * PAGE, memory, fd, 2 * PAGE));
    answer_ret("bound-other-hva",
               bind_slot(1, GPA, 2 * PAGE, memory + PAGE, fd, 0));
    answer_ret("bound-to-plain",
               set_slot(1, 0, GPA, 2 * PAGE, memory, -1, 0));
    answer_ret("bound-to-logging",
               set_slot(1, BOUND | LOG, GPA, 2 * PAGE, memory, fd, 0));
    answer_ret("bound-delete", delete_slot(1));
    answer_ret("bound-delete-twice", delete_slot(1));
    answer_ret("bound-anew", bind_slot(1, GPA, 2 * PAGE, memory, fd, 0));
    need(!delete_slot(1), "deleting a slot");

    need(!set_slot(1, 0, GPA, 2 * PAGE, memory, -1, 0), "a plain slot");
    answer_ret("plain-again", set_slot(1, 0, GPA, 2 * PAGE, memory, -1, 0));
    answer_ret("plain-log", set_slot(1, LOG, GPA, 2 * PAGE, memory, -1, 0));
    answer_ret("plain-log-no-more",
               set_slot(1, 0, GPA, 2 * PAGE, memory, -1, 0));
    answer_ret("plain-to-read-only",
               set_slot(1, KVM_MEM_READONLY, GPA, 2 * PAGE, memory, -1, 0));
    answer_ret("plain-to-bound", bind_slot(1, GPA, 2 * PAGE, memory, fd, 0));
    answer_ret("plain-shrink", set_slot(1, 0, GPA, PAGE, memory, -1, 0));
    answer_ret("plain-other-hva",
               set_slot(1, 0, GPA, 2 * PAGE, memory + PAGE, -1, 0));
    answer_ret("plain-move",
               set_slot(1, 0, 2 * GPA, 2 * PAGE, memory, -1, 0));
    return 0;
}
