/*
 * KVM_CREATE_VM: exactly the types that KVM_CAP_VM_TYPES lists
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "conformance.h"

int main(int argc, char **argv)
{
    unsigned long offered, created = 0;
    int fd;

    make_vm(argc, argv);

    offered = ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_VM_TYPES);
    for (int type = 0; type < 32; type++) {
        fd = ioctl(kvm, KVM_CREATE_VM, type);
        if (fd >= 0) {
            created |= 1UL << type;
            close(fd);
        }
    }
    answer("vm-types-offered-and-created", "%s",
           offered == created ? "same" : "differ");
    answer("vm-types-of-system-and-of-vm", "%s",
           ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_VM_TYPES) == (int)offered ?
           "same" : "differ");
    answer("vm-type-this", "%s", offered & 1UL << vm_type ? "offered" : "no");
    answer_fd("vm-type-31", ioctl(kvm, KVM_CREATE_VM, 31UL));
    answer_fd("vm-type-32", ioctl(kvm, KVM_CREATE_VM, 32UL));
    answer_fd("vm-type-64-bits", ioctl(kvm, KVM_CREATE_VM, 1UL << 32));
    return 0;
}
