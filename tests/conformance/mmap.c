/*
 * mmap() of a guest_memfd
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "conformance.h"

static void answer_mmap(const char *rule, int fd, size_t size, int prot,
                        int flags, off_t offset)
{
    void *map = mmap(NULL, size, prot, flags, fd, offset);

    if (map == MAP_FAILED) {
        answer_ret(rule, -1);
    } else {
        answer(rule, "mapped");
        munmap(map, size);
    }
}

int main(int argc, char **argv)
{
    int rw = PROT_READ | PROT_WRITE;
    uint8_t *map, *tail;
    int fd;

    make_vm(argc, argv);

    fd = make_gmem(4 * PAGE, 0);
    answer_mmap("mmap-without-flag", fd, PAGE, rw, MAP_SHARED, 0);
    close(fd);
    if (!(gmem_flags() & MMAP)) {
        end();
    }
    fd = make_gmem(4 * PAGE, MMAP);
    answer_mmap("mmap-with-flag", fd, 4 * PAGE, rw, MAP_SHARED, 0);
    answer_mmap("mmap-private-mapping", fd, PAGE, rw, MAP_PRIVATE, 0);
    answer_mmap("mmap-private-mapping-read-only", fd, PAGE, PROT_READ,
                MAP_PRIVATE, 0);
    answer_mmap("mmap-exec", fd, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, 0);
    answer_mmap("mmap-none", fd, PAGE, PROT_NONE, MAP_SHARED, 0);
    answer_mmap("mmap-unaligned-offset", fd, PAGE, rw, MAP_SHARED, 1);
    answer_mmap("mmap-past-the-end", fd, 8 * PAGE, rw, MAP_SHARED, 0);

    map = make_shared(4 * PAGE, &fd);
    answer_ret("mprotect-exec", mprotect(map, PAGE, PROT_READ | PROT_EXEC));
    tail = mmap(NULL, 2 * PAGE, rw, MAP_SHARED, fd, 3 * PAGE);
    need(tail != MAP_FAILED, "mmap");
    map[3 * PAGE] = 0x11;
    answer_touch("mmap-offset-same-page", tail);
    answer_touch("touch-past-the-end", tail + PAGE);
    close(fd);
    answer_touch("touch-after-close", map + 3 * PAGE);
    return 0;
}
