/*
 * KVM_SET_MEMORY_ATTRIBUTES on a VM: state that is kept VM-wide
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "conformance.h"

#define GPA 0x100000

int main(int argc, char **argv)
{
    struct kvm_memory_attributes args = {
        .address = GPA, .size = PAGE, .attributes = PRIVATE, .flags = 1,
    };
    int fd, ret;

    make_vm(argc, argv);

    /* The call has the number of the one on a guest_memfd. */
    fd = make_gmem(PAGE, 0);
    answer_ret("attributes-on-file",
               ioctl(fd, KVM_SET_MEMORY_ATTRIBUTES, &args));
    answer_ret("attributes2-on-vm", convert(vm, 0, PAGE, 0));

    ret = set_vm_state(GPA, PAGE, 0);
    answer_ret("attributes-to-shared", ret);
    if (ret && errno == ENOTTY) {
        end();
    }
    answer_ret("attributes-to-private", set_vm_state(GPA, PAGE, PRIVATE));
    answer_ret("attributes-flags",
               ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES, &args));
    answer_ret("attributes-unknown",
               set_vm_state(GPA, PAGE, PRIVATE | 1 << 2));
    answer_ret("attributes-size-0", set_vm_state(GPA, 0, PRIVATE));
    answer_ret("attributes-unaligned-gpa",
               set_vm_state(GPA + 1, PAGE, PRIVATE));
    answer_ret("attributes-unaligned-size",
               set_vm_state(GPA, PAGE + 1, PRIVATE));
    answer_ret("attributes-overflow",
               set_vm_state(-PAGE, 2 * PAGE, PRIVATE));
    answer_ret("attributes-already-private",
               set_vm_state(GPA, PAGE, PRIVATE));
    answer_ret("attributes-private-and-shared",
               set_vm_state(GPA, 2 * PAGE, PRIVATE));
    answer_ret("attributes-back-to-shared", set_vm_state(GPA, 2 * PAGE, 0));
    return 0;
}
