/*
 * mbind() on the mapping: is a policy kept, and by the file?
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <sys/syscall.h>
#include <linux/mempolicy.h>
#include "conformance.h"

static void answer_policy(const char *rule, void *address)
{
    int mode = -1;
    long ret = syscall(SYS_get_mempolicy, &mode, NULL, 0UL, address,
                       MPOL_F_ADDR);

    if (ret) {
        answer_ret(rule, ret);
    } else {
        answer(rule, "%s", mode == MPOL_BIND ? "kept" : "default");
    }
}

int main(int argc, char **argv)
{
    unsigned long nodes = 1;
    uint8_t *map, *other;
    long ret;
    int fd;

    make_vm(argc, argv);
    map = make_shared(4 * PAGE, &fd);
    ret = syscall(SYS_mbind, map, 2 * PAGE, MPOL_BIND, &nodes, 64UL, 0U);
    if (ret && errno == ENOSYS) {
        skip("no NUMA in this kernel");
    }
    answer_ret("mbind", ret);
    answer_policy("mbind-policy", map);
    answer_policy("mbind-policy-outside", map + 3 * PAGE);
    munmap(map, 4 * PAGE);
    other = mmap(NULL, 4 * PAGE, PROT_READ, MAP_SHARED, fd, 0);
    need(other != MAP_FAILED, "mmap");
    answer_policy("mbind-policy-in-another-mapping", other);
    return 0;
}
