/*
 * Contents: zeroed once, and how long they stay
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "conformance.h"

#define GPA 0x100000

int main(int argc, char **argv)
{
    uint8_t *map, *other;
    int fd;

    make_vm(argc, argv);
    map = make_shared(4 * PAGE, &fd);

    answer_touch("contents-at-first", map);
    need(!fallocate(fd, FALLOC_FL_KEEP_SIZE, PAGE, PAGE), "fallocate");
    answer_touch("contents-preallocated", map + PAGE);

    map[0] = 0x11;
    need(!fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 4 * PAGE), "fallocate");
    answer_touch("contents-after-preallocation", map);
    madvise(map, PAGE, MADV_DONTNEED);
    answer_touch("contents-after-dontneed", map);
    other = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0);
    need(other != MAP_FAILED, "mmap");
    answer_touch("contents-in-another-mapping", other);

    need(!bind_slot(1, GPA, 4 * PAGE, map, fd, 0), "binding a slot");
    answer_touch("contents-after-binding", map);
    need(!delete_slot(1), "deleting a slot");
    answer_touch("contents-after-slot-deletion", map);
    need(!bind_slot(2, 2 * GPA, 4 * PAGE, map, fd, 0), "binding a slot");
    answer_touch("contents-after-binding-elsewhere", map);

    need(!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE),
         "fallocate");
    answer_touch("contents-after-hole", map);
    map[PAGE] = 0x22;
    answer_ret("madvise-remove", madvise(map + PAGE, PAGE, MADV_REMOVE));
    answer_touch("contents-after-madvise-remove", map + PAGE);

    map[2 * PAGE] = 0x33;
    close(fd);
    close(vm);
    answer_touch("contents-after-vm-and-file-are-closed", map + 2 * PAGE);
    return 0;
}
