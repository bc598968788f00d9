/*
 * Touches of a page by a host process or a system call, in its initial state
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <sys/uio.h>
#include "conformance.h"

static uint8_t *map_new(uint64_t flags)
{
    int fd = make_gmem(PAGE, flags);
    uint8_t *map = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    need(map != MAP_FAILED, "mmap");
    close(fd);
    return map;
}

/* read() into the page, and another process's access to it */
static void answer_calls(const char *rules[3], uint8_t *page)
{
    struct iovec here = { .iov_len = 1 }, there = { page, 1 };
    uint8_t byte = 0x33;
    int fds[2];

    here.iov_base = &byte;
    need(!pipe(fds), "pipe");
    need(write(fds[1], &byte, 1) == 1, "write");
    answer_ret(rules[0], read(fds[0], page, 1));
    answer_ret(rules[1], write(fds[1], page, 1));
    answer_ret(rules[2],
               process_vm_readv(getpid(), &here, 1, &there, 1, 0));
    close(fds[0]);
    close(fds[1]);
}

int main(int argc, char **argv)
{
    const char *of_shared[] = {
        "read-into-shared", "write-from-shared", "process-vm-readv-shared",
    };
    const char *of_private[] = {
        "read-into-private", "write-from-private", "process-vm-readv-private",
    };
    uint64_t flags;
    uint8_t *page;

    make_vm(argc, argv);
    flags = gmem_flags();

    if (flags & MMAP) {
        page = map_new(MMAP);
        answer_touch("touch-private", page);
        answer_calls(of_private, page);
        answer_ret("madvise-populate-private",
                   madvise(page, PAGE, MADV_POPULATE_READ));
    }
    page = flags & SHARED ? map_new(MMAP | SHARED) : NULL;
    if (!page) {
        end();
    }
    answer_touch("touch-shared", page);
    answer_calls(of_shared, page);
    answer_touch("touch-shared-after-read", page);
    answer_ret("madvise-populate-shared",
               madvise(page, PAGE, MADV_POPULATE_WRITE));
    return 0;
}
