/*
 * A guest in a VM that takes another one's place, as for a reset
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "vcpu.h"

int main(int argc, char **argv)
{
    uint8_t *memory;
    int fd;

    make_vm(argc, argv);
    memory = make_shared(4 * PAGE, &fd);
    make_running_vcpu();
    need(!bind_slot(1, GPA, 4 * PAGE, memory, fd, 0), "binding a slot");
    answer_run("run-again-first-store", STORE, 0, 0x11);
    close(vm);
    answer_run("run-again-vm-is-closed", LOAD, 0, 0xff);
    munmap(run, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
    close(vcpu);
    close(fd);

    vm = ioctl(kvm, KVM_CREATE_VM, vm_type);
    need(vm >= 0, "a second VM");
    fd = make_gmem(4 * PAGE, MMAP | SHARED);
    need(mmap(memory, 4 * PAGE, PROT_READ | PROT_WRITE,
              MAP_SHARED | MAP_FIXED, fd, 0) == memory, "mmap");
    make_running_vcpu();
    need(!bind_slot(1, GPA, 4 * PAGE, memory, fd, 0), "binding a slot");
    answer_run("run-again-load", LOAD, 0, 0xff);
    memory[PAGE] = 0x22;
    answer_run("run-again-load-of-new", LOAD, PAGE, 0);
    answer_run("run-again-store", STORE, 2 * PAGE, 0x33);
    answer_touch("run-again-store-in-mapping", memory + 2 * PAGE);
    return 0;
}
