/*
 * A guest's accesses to shared pages, through bound and plain slots
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "vcpu.h"

#define LOG KVM_MEM_LOG_DIRTY_PAGES

static uint8_t *memory;
static int fd;

static void answer_log(const char *rule)
{
    uint64_t bits = -1;
    struct kvm_dirty_log log = { .slot = 1, .dirty_bitmap = &bits };

    need(!ioctl(vm, KVM_GET_DIRTY_LOG, &log), "KVM_GET_DIRTY_LOG");
    answer(rule, "0x%llx", (unsigned long long)bits);
}

static void bind(void)
{
    need(!bind_slot(1, GPA, 4 * PAGE, memory, fd, 0), "binding a slot");
}

static void plain(uint32_t flags)
{
    need(!set_slot(1, flags, GPA, 4 * PAGE, memory, -1, 0), "a plain slot");
}

int main(int argc, char **argv)
{
    uint8_t *other;

    make_vm(argc, argv);
    memory = make_bindable(4 * PAGE, &fd);
    make_running_vcpu();

    answer_run("run-store-without-slot", STORE, 0, 0x11);
    answer_run("run-load-without-slot", LOAD, 0, 0x11);
    bind();
    answer_run("run-store-bound", STORE, 0, 0x11);
    answer_touch("run-store-bound-in-mapping", memory);
    memory[PAGE] = 0x22;
    answer_run("run-load-bound", LOAD, PAGE, 0);
    answer_run("run-load-bound-absent", LOAD, 2 * PAGE, 0xff);

    /* A slot replaced between two runs. */
    need(!delete_slot(1), "deleting a slot");
    answer_run("run-load-after-slot-deletion", LOAD, 0, 0);
    plain(0);
    answer_run("run-load-plain", LOAD, 0, 0);
    answer_run("run-store-plain", STORE, 0, 0x33);
    plain(LOG);
    answer_run("run-store-logging", STORE, PAGE, 0x44);
    answer_log("run-dirty-log");
    answer_log("run-dirty-log-again");
    answer_run("run-store-logging-again", STORE, 2 * PAGE, 0x44);
    answer_log("run-dirty-log-third");
    need(!delete_slot(1), "deleting a slot");
    bind();
    answer_run("run-load-bound-again", LOAD, 0, 0);
    answer_run("run-load-bound-again-logged", LOAD, PAGE, 0);

    need(!delete_slot(1), "deleting a slot");
    plain(KVM_MEM_READONLY);
    answer_run("run-load-read-only", LOAD, 0, 0);
    answer_run("run-store-read-only", STORE, 0, 0x55);
    answer_touch("run-store-read-only-in-mapping", memory);

    if (!(gmem_flags() & SHARED)) {
        end();
    }
    /* A processor goes to the file; emulation goes through userspace_addr. */
    memory[0] = 0x66;
    other = make_anonymous(4 * PAGE);
    other[0] = 0x77;
    need(!delete_slot(1), "deleting a slot");
    need(!bind_slot(1, GPA, 4 * PAGE, other, fd, 0), "binding a slot");
    need(!run_code(LOAD, 0, 0) && run->exit_reason == KVM_EXIT_IO, "a load");
    if (((uint8_t *)run)[run->io.data_offset] == 0x77) {
        skip("KVM emulates what the guest does");
    }
    munmap(memory, 4 * PAGE);
    close(fd);
    answer_run("run-load-closed-file", LOAD, 3 * PAGE, 0);
    return 0;
}
