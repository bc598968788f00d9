/*
 * A host process's view of pages that are converted in place
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <sys/uio.h>
#include "conformance.h"

#define GPA 0x100000
#define PUNCH (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)

static void answer_calls(uint8_t *page)
{
    uint8_t byte = 0x33;
    struct iovec here = { &byte, 1 }, there = { page, 1 };
    int fds[2];

    need(!pipe(fds), "pipe");
    need(write(fds[1], &byte, 1) == 1, "write");
    answer_ret("converted-read-into", read(fds[0], page, 1));
    answer_ret("converted-write-from", write(fds[1], page, 1));
    answer_ret("converted-process-vm-readv",
               process_vm_readv(getpid(), &here, 1, &there, 1, 0));
    answer_ret("converted-madvise-populate",
               madvise(page, PAGE, MADV_POPULATE_READ));
}

int main(int argc, char **argv)
{
    uint8_t *map, *other;
    int fd;

    make_vm(argc, argv);
    map = make_shared(8 * PAGE, &fd);
    if (convert(fd, 0, PAGE, 0)) {
        end();
    }
    memset(map, 0x11, 4 * PAGE);
    other = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, PAGE);
    need(other != MAP_FAILED, "mmap");

    need(!convert(fd, PAGE, PAGE, PRIVATE), "conversion");
    answer_touch("converted", map + PAGE);
    answer_touch("converted-in-another-mapping", other);
    answer_touch("converted-page-before", map);
    answer_touch("converted-page-after", map + 2 * PAGE);
    answer_calls(map + PAGE);
    munmap(other, PAGE);
    other = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, PAGE);
    answer("converted-mapped-anew", other == MAP_FAILED ? "no" : "mapped");
    answer_touch("converted-in-new-mapping", other);

    /* The state is the file's. */
    need(!bind_slot(1, GPA, 8 * PAGE, map, fd, 0), "binding a slot");
    answer_touch("converted-after-binding", map + PAGE);
    need(!delete_slot(1), "deleting a slot");
    answer_touch("converted-after-slot-deletion", map + PAGE);
    need(!convert(fd, PAGE, PAGE, 0), "conversion");
    if (vm_type == KVM_X86_SW_PROTECTED_VM) {
        answer_touch("converted-back", map + PAGE);
        answer_touch("converted-back-in-another-mapping", other);
    }

    need(!convert(fd, PAGE, PAGE, PRIVATE), "conversion");
    answer_ret("converted-hole", fallocate(fd, PUNCH, PAGE, PAGE));
    answer_touch("converted-hole-touched", map + PAGE);
    answer_ret("converted-preallocated",
               fallocate(fd, FALLOC_FL_KEEP_SIZE, PAGE, PAGE));
    answer_touch("converted-preallocated-touched", map + PAGE);
    if (vm_type == KVM_X86_SW_PROTECTED_VM) {
        need(!convert(fd, PAGE, PAGE, 0), "conversion");
        answer_touch("converted-hole-back", map + PAGE);
        need(!convert(fd, 2 * PAGE, PAGE, PRIVATE), "conversion");
        answer_ret("converted-madvise-remove",
                   madvise(map + 2 * PAGE, PAGE, MADV_REMOVE));
        need(!convert(fd, 2 * PAGE, PAGE, 0), "conversion");
        answer_touch("converted-removed-back", map + 2 * PAGE);
    }
    /* Absent pages have a state as well. */
    need(!convert(fd, 6 * PAGE, PAGE, PRIVATE), "conversion");
    answer_touch("converted-absent", map + 6 * PAGE);
    answer_touch("converted-absent-page-after", map + 7 * PAGE);

    /* A file whose pages start private. */
    fd = make_gmem(PAGE, MMAP);
    map = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0);
    need(map != MAP_FAILED, "mmap");
    answer_touch("converted-init-private", map);
    need(!convert(fd, 0, PAGE, 0), "conversion");
    answer_touch("converted-init-private-to-shared", map);
    return 0;
}
