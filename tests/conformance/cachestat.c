/*
 * cachestat() counts the pages that a guest_memfd has
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <sys/syscall.h>
#include "conformance.h"

#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif

static void answer_pages(const char *rule, int fd, uint64_t offset,
                         uint64_t size)
{
    struct {
        uint64_t offset, size;
    } range = { offset, size };
    struct {
        uint64_t cache, dirty, writeback, evicted, recently_evicted;
    } pages;
    long ret = syscall(SYS_cachestat, fd, &range, &pages, 0);

    answer_ret(rule, ret ? ret : (long)pages.cache);
}

int main(int argc, char **argv)
{
    int fd;

    make_vm(argc, argv);
    fd = make_gmem(16 * PAGE, 0);
    answer_pages("cachestat-at-first", fd, 0, 0);
    need(!fallocate(fd, FALLOC_FL_KEEP_SIZE, PAGE, 6 * PAGE), "fallocate");
    answer_pages("cachestat-preallocated", fd, 0, 0);
    answer_pages("cachestat-of-a-range", fd, 4 * PAGE, 8 * PAGE);
    need(!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2 * PAGE,
                    2 * PAGE), "fallocate");
    answer_pages("cachestat-after-hole", fd, 0, 0);
    close(fd);

    make_shared(16 * PAGE, &fd)[5 * PAGE] = 1;
    answer_pages("cachestat-after-touch", fd, 0, 0);
    return 0;
}
