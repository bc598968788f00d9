/*
 * Descriptors that a memslot can be bound to, and the slot after their close
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "conformance.h"

#define GPA 0x100000

int main(int argc, char **argv)
{
    uint8_t *memory;
    int fd, other, foreign, copy, second;

    make_vm(argc, argv);
    memory = make_bindable(PAGE, &fd);

    answer_ret("slot-bad-fd", bind_slot(1, GPA, PAGE, memory, -1, 0));
    foreign = memfd_create("foreign", MFD_CLOEXEC);
    need(foreign >= 0 && !ftruncate(foreign, PAGE), "memfd_create");
    answer_ret("slot-foreign-fd",
               bind_slot(1, GPA, PAGE, memory, foreign, 0));
    answer_ret("slot-fd-of-the-vm", bind_slot(1, GPA, PAGE, memory, vm, 0));
    other = ioctl(kvm, KVM_CREATE_VM, vm_type);
    need(other >= 0, "a second VM");
    other = create_gmem(other, PAGE, 0);
    need(other >= 0, "KVM_CREATE_GUEST_MEMFD");
    answer_ret("slot-fd-of-another-vm",
               bind_slot(1, GPA, PAGE, memory, other, 0));

    /* The slot knows the file, not the descriptor. */
    copy = dup(fd);
    answer_ret("slot-by-duplicate", bind_slot(1, GPA, PAGE, memory, copy, 0));
    answer_ret("close-duplicate", close(copy));
    answer("slot-after-duplicate-is-closed", "%s",
           bind_slot(2, 2 * GPA, PAGE, memory, fd, 0) ? "bound" : "free");

    /* The file is not mapped any more, either. */
    munmap(memory, PAGE);
    answer_ret("close-bound-file", close(fd));
    memory = make_bindable(PAGE, &second);
    answer_ret("slot-over-slot-of-closed-file",
               bind_slot(2, GPA, PAGE, memory, second, 0));
    answer_ret("slot-delete-of-closed-file", delete_slot(1));
    answer_ret("slot-after-that",
               bind_slot(1, GPA, PAGE, memory, second, 0));
    return 0;
}
