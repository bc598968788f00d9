/*
 * A guest's accesses to private pages
 *
 * A software-protected VM takes an access to be what the state is.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "vcpu.h"

int main(int argc, char **argv)
{
    uint8_t *memory;
    int fd;

    make_vm(argc, argv);
    if (vm_type == KVM_X86_DEFAULT_VM) {
        end();
    }
    memory = make_bindable(4 * PAGE, &fd);
    make_running_vcpu();
    need(!bind_slot(1, GPA, 4 * PAGE, memory, fd, 0), "binding a slot");
    memset(memory, 0x11, 4 * PAGE);

    answer_run("run-shared", LOAD, 0, 0);
    set_state(fd, 0, GPA, 2 * PAGE, PRIVATE);
    answer_run("run-private-at-first", LOAD, 0, 0xff);
    answer_run("run-private-store", STORE, 0, 0x22);
    answer_touch("run-private-in-mapping", memory);
    answer_run("run-private-load", LOAD, 0, 0);
    answer_run("run-shared-beside-private", LOAD, 2 * PAGE, 0);

    /* Data that KVM itself reads to emulate the instruction. */
    answer_run("run-private-emulated", OUTS, 0, 0);

    /* The state survives the slot. */
    need(!delete_slot(1), "deleting a slot");
    need(!bind_slot(1, GPA, 4 * PAGE, memory, fd, 0), "binding a slot");
    answer_run("run-private-after-slot-deletion", LOAD, 0, 0);

    need(!delete_slot(1), "deleting a slot");
    need(!set_slot(1, 0, GPA, 4 * PAGE, memory, -1, 0), "a plain slot");
    answer_run("run-private-through-plain", LOAD, 0, 0);
    answer_run("run-private-through-plain-store", STORE, 0, 0x33);
    answer_run("run-shared-through-plain", LOAD, 2 * PAGE, 0);

    set_state(fd, 0, GPA, PAGE, 0);
    answer_run("run-back-to-shared", LOAD, 0, 0);
    memory[0] = 0x44;
    need(!delete_slot(1), "deleting a slot");
    need(!bind_slot(1, GPA, 4 * PAGE, memory, fd, 0), "binding a slot");
    answer_run("run-back-to-shared-host-store", LOAD, 0, 0);
    set_state(fd, 0, GPA, PAGE, PRIVATE);
    answer_run("run-private-again", LOAD, 0, 0);
    need(!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE),
         "fallocate");
    answer_run("run-private-hole", LOAD, 0, 0xff);

    if (!convert(fd, 0, PAGE, 0)) {
        /* With the file, its state is gone. */
        end();
    }
    munmap(memory, 4 * PAGE);
    close(fd);
    answer_run("run-private-closed-file", LOAD, PAGE, 0);
    return 0;
}
