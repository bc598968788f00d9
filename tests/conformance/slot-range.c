/*
 * Which ranges a bound memslot may have
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "conformance.h"

#define GPA 0x100000
#define FILE_PAGES 16

int main(int argc, char **argv)
{
    uint8_t *memory;
    int fd, last;

    make_vm(argc, argv);
    memory = make_bindable(FILE_PAGES * PAGE, &fd);
    last = ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS) - 1;

    answer_ret("slot-delete-absent", delete_slot(1));
    answer_ret("slot-unaligned-size",
               bind_slot(1, GPA, PAGE + 1, memory, fd, 0));
    answer_ret("slot-unaligned-gpa",
               bind_slot(1, GPA + 1, PAGE, memory, fd, 0));
    answer_ret("slot-unaligned-hva",
               bind_slot(1, GPA, PAGE, memory + 1, fd, 0));
    answer_ret("slot-kernel-hva",
               bind_slot(1, GPA, PAGE, (void *)-PAGE, fd, 0));
    answer_ret("slot-unaligned-offset",
               bind_slot(1, GPA, PAGE, memory, fd, 1));
    answer_ret("slot-offset-overflow",
               bind_slot(1, GPA, 2 * PAGE, memory, fd, -PAGE));
    answer_ret("slot-gpa-overflow",
               bind_slot(1, -PAGE, 2 * PAGE, memory, fd, 0));
    answer_ret("slot-past-end-of-file",
               bind_slot(1, GPA, 2 * PAGE, memory, fd,
                         (FILE_PAGES - 1) * PAGE));
    answer_ret("slot-beyond-end-of-file",
               bind_slot(1, GPA, PAGE, memory, fd, FILE_PAGES * PAGE));
    answer_ret("slot-id-too-large",
               bind_slot(last + 1, GPA, PAGE, memory, fd, 0));
    answer_ret("slot-no-such-address-space",
               bind_slot(1 | 2 << 16, GPA, PAGE, memory, fd, 0));

    /* Pages 4 to 7 of the file at GPA. */
    answer_ret("slot-last-id",
               bind_slot(last, GPA, 4 * PAGE, memory, fd, 4 * PAGE));
    answer_ret("slot-overlap-in-gpa",
               bind_slot(1, GPA + 3 * PAGE, PAGE, memory, fd, 0));
    answer_ret("slot-overlap-in-gpa-plain",
               set_slot(1, 0, GPA + 3 * PAGE, PAGE, memory, -1, 0));
    answer_ret("slot-overlap-in-file",
               bind_slot(1, 2 * GPA, PAGE, memory, fd, 7 * PAGE));
    answer_ret("slot-overlap-in-file-at-start",
               bind_slot(1, 2 * GPA, 2 * PAGE, memory, fd, 3 * PAGE));
    answer_ret("slot-overlap-in-file-plain",
               set_slot(1, 0, 2 * GPA, PAGE, memory, -1, 0));
    answer_ret("slot-next-in-file",
               bind_slot(2, 3 * GPA, PAGE, memory, fd, 8 * PAGE));
    answer_ret("slot-next-in-gpa",
               bind_slot(3, GPA + 4 * PAGE, PAGE, memory, fd, 0));

    /* userspace_addr is not compared with the file's mapping. */
    answer_ret("slot-other-memory-as-hva",
               bind_slot(4, 4 * GPA, PAGE, make_anonymous(PAGE), fd,
                         2 * PAGE));
    need(!delete_slot(last), "deleting a slot");
    answer_ret("slot-in-place-of-a-deleted-one",
               bind_slot(5, GPA, 4 * PAGE, memory, fd, 4 * PAGE));
    return 0;
}
