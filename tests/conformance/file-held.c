/*
 * Powers of a process that has nothing of a VM but a file of its memory
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <sys/wait.h>
#include "conformance.h"

#define SIZE (4 * PAGE)

/* Pages, by their use */
enum { CONVERTED, PUNCHED, WRITTEN };

/* Another process, which has inherited the descriptor. */
static void hold(int fd)
{
    char path[32];
    uint8_t *map;

    answer_fd("held-create-on-vm", create_gmem(vm, PAGE, MMAP | SHARED));
    close(vm);
    close(kvm);

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    answer_fd("held-open-for-reading", open(path, O_RDONLY));
    map = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    need(map != MAP_FAILED, "mmap");
    answer_touch("held-contents", map + PUNCHED * PAGE);
    map[WRITTEN * PAGE] = 0x22;
    answer_ret("held-hole",
               fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                         PUNCHED * PAGE, PAGE));
    answer_ret("held-convert",
               convert(fd, CONVERTED * PAGE, PAGE, PRIVATE));
    answer_touch("held-converted-contents", map + CONVERTED * PAGE);
}

int main(int argc, char **argv)
{
    uint8_t *map;
    int fd, status;
    pid_t child;

    make_vm(argc, argv);
    map = make_shared(SIZE, &fd);
    memset(map, 0x11, SIZE);

    child = fork();
    need(child >= 0, "fork");
    if (!child) {
        munmap(map, SIZE);
        hold(fd);
        _exit(0);
    }
    need(waitpid(child, &status, 0) == child && !status, "the other process");

    /* The owner has made no call meanwhile. */
    answer_touch("held-owner-written", map + WRITTEN * PAGE);
    answer_touch("held-owner-punched", map + PUNCHED * PAGE);
    answer_touch("held-owner-converted", map + CONVERTED * PAGE);
    return 0;
}
