/*
 * Facts for the runner: the VM types, and the generation of a VM
 *
 * Without an argument, the types; with one, the generation of such a VM and
 * whether it has private memory.  Asked by behaviour: capability numbers
 * differ between kernels.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "conformance.h"

static const char *generation(void)
{
    uint64_t flags = gmem_flags();
    int fd = create_gmem(vm, PAGE, flags);

    /* A request for the state that a page has changes nothing. */
    if (fd >= 0 && (!convert(fd, 0, PAGE, flags & SHARED ? 0 : PRIVATE) ||
                    errno != ENOTTY)) {
        return "G2";
    }
    return (flags & (MMAP | SHARED)) == (MMAP | SHARED) ? "G1" : "G0";
}

static bool has_private_memory(void)
{
    int fd = create_gmem(vm, PAGE, 0);

    return (fd >= 0 && !convert(fd, 0, PAGE, PRIVATE)) ||
           !set_vm_state(0, PAGE, PRIVATE);
}

int main(int argc, char **argv)
{
    make_vm(argc, argv);
    if (argc < 2) {
        answer("vm-types", "0x%x",
               ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_VM_TYPES) ?: 1);
    } else {
        answer("generation", "%s", generation());
        answer("memory", has_private_memory() ? "private" : "ordinary");
    }
    return 0;
}
