/*
 * A VM is closed and another one takes its place, as for a reset
 *
 * The new VM's file is mapped where the old one's was.  Meanwhile a page of
 * the old file is in a pipe.  The model cannot see that, so its configuration
 * has a pin:
 * simkvm: pin 0x2000 0x1000 times=1
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <sys/uio.h>
#include "conformance.h"

#define GPA 0x100000
#define SIZE (4 * PAGE)
#define HELD 2

static uint8_t *map_file(void *where, int fd)
{
    uint8_t *map = mmap(where, SIZE, PROT_READ | PROT_WRITE,
                        MAP_SHARED | (where ? MAP_FIXED : 0), fd, 0);

    need(map != MAP_FAILED, "mmap");
    return map;
}

/* The old VM lives as long as its file, and is not in the way. */
static void replace_vm(void *memory, int old)
{
    answer_ret("again-close-vm", close(vm));
    vm = ioctl(kvm, KVM_CREATE_VM, vm_type);
    need(vm >= 0, "a second VM");
    answer_ret("again-bind-old-file",
               bind_slot(1, GPA, SIZE, memory, old, 0));
    answer_ret("again-convert-old-file", convert(old, 0, PAGE, PRIVATE));
    answer_ret("again-convert-old-file-back", convert(old, 0, PAGE, 0));
}

static void separate_memory(void)
{
    void *memory = make_anonymous(SIZE);
    int old = make_gmem(SIZE, 0);

    need(!bind_slot(1, GPA, SIZE, memory, old, 0), "binding a slot");
    replace_vm(memory, old);
    answer_ret("again-bind-new-file",
               bind_slot(1, GPA, SIZE, memory, make_gmem(SIZE, 0), 0));
    close(old);
    answer_ret("again-delete-slot", delete_slot(1));
}

int main(int argc, char **argv)
{
    struct iovec page = { .iov_len = PAGE };
    uint8_t *memory, *other, out[PAGE];
    int old, new, fds[2];

    make_vm(argc, argv);
    if (ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD) <= 0) {
        end();
    }
    /* The pin is for the first file of the process. */
    old = create_gmem(vm, SIZE, MMAP | SHARED);
    if (old < 0) {
        separate_memory();
        return 0;
    }
    memory = map_file(NULL, old);
    other = map_file(NULL, old);
    memset(memory + PAGE, 0x11, SIZE - PAGE);
    need(!bind_slot(1, GPA, SIZE, memory, old, 0), "binding a slot");
    need(!pipe(fds), "pipe");
    page.iov_base = memory + HELD * PAGE;
    need(vmsplice(fds[1], &page, 1, 0) == PAGE, "vmsplice");

    replace_vm(memory, old);
    new = make_gmem(SIZE, MMAP | SHARED);
    answer("again-mapped-over", "%s", map_file(memory, new) == memory
           ? "there" : "elsewhere");
    answer_touch("again-new-contents", memory + PAGE);
    answer_touch("again-old-contents", other + PAGE);
    answer_ret("again-bind-new-file",
               bind_slot(1, GPA, SIZE, memory, new, 0));
    memory[PAGE] = 0x22;
    answer_touch("again-old-contents-after-store", other + PAGE);

    answer_ret("again-convert-old-file-held", convert(old, 0, SIZE, PRIVATE));
    answer_ret("again-convert-new-file", convert(new, 0, SIZE, PRIVATE));
    answer_ret("again-convert-new-file-back", convert(new, 0, PAGE, 0));
    answer_touch("again-page-converted-back", memory);

    close(old);
    answer_touch("again-old-contents-after-close", other + PAGE);
    munmap(other, SIZE);
    /* Only the pipe has the page now. */
    need(read(fds[0], out, PAGE) == PAGE, "read");
    answer("again-held-page", "0x%02x", out[0]);
    answer_ret("again-delete-slot", delete_slot(1));
    return 0;
}
