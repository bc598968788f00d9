/*
 * Capability numbers, and how they depend on the VM
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "conformance.h"

/* KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES: in no header yet. */
#define CAP_GMEM_ATTRIBUTES 252

static void answer_cap(const char *rule, int fd, int cap)
{
    answer(rule, "0x%x", ioctl(fd, KVM_CHECK_EXTENSION, cap));
}

int main(int argc, char **argv)
{
    int on_vm, on_file;

    make_vm(argc, argv);

    answer_cap("cap-user-memory2", vm, KVM_CAP_USER_MEMORY2);
    answer_cap("cap-memory-fault-info", vm, KVM_CAP_MEMORY_FAULT_INFO);
    answer_cap("cap-exit-hypercall", vm, KVM_CAP_EXIT_HYPERCALL);
    answer_cap("cap-guest-memfd", vm, KVM_CAP_GUEST_MEMFD);
    answer_cap("cap-guest-memfd-flags", vm, KVM_CAP_GUEST_MEMFD_FLAGS);
    answer_cap("cap-guest-memfd-flags-of-system", kvm,
               KVM_CAP_GUEST_MEMFD_FLAGS);
    answer_cap("cap-memory-attributes", vm, KVM_CAP_MEMORY_ATTRIBUTES);
    answer_cap("cap-guest-memfd-memory-attributes", vm, CAP_GMEM_ATTRIBUTES);
    answer_cap("cap-nr-memslots", vm, KVM_CAP_NR_MEMSLOTS);

    on_vm = ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_MEMORY_ATTRIBUTES);
    on_file = ioctl(kvm, KVM_CHECK_EXTENSION, CAP_GMEM_ATTRIBUTES);
    answer("cap-attributes-of-vm-and-of-file", "%s",
           on_vm > 0 && on_file > 0 ? "both" : "not-both");
    return 0;
}
