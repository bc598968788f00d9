/*
 * fallocate() on a guest_memfd: modes, alignment, ends
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "conformance.h"

#define KEEP FALLOC_FL_KEEP_SIZE
#define PUNCH FALLOC_FL_PUNCH_HOLE

static const struct {
    const char *rule;
    int mode;
    off_t offset, size;
} cases[] = {
    { "fallocate-without-keep-size", 0, 0, PAGE },
    { "fallocate", KEEP, 0, 4 * PAGE },
    { "fallocate-again", KEEP, 0, 4 * PAGE },
    { "fallocate-past-the-end", KEEP, 3 * PAGE, 2 * PAGE },
    { "fallocate-size-0", KEEP, 0, 0 },
    { "fallocate-unaligned-offset", KEEP, 1, PAGE },
    { "fallocate-unaligned-size", KEEP, 0, PAGE + 1 },
    { "fallocate-negative-offset", KEEP, -PAGE, PAGE },
    { "fallocate-zero-range", KEEP | FALLOC_FL_ZERO_RANGE, 0, PAGE },
    { "fallocate-unshare-range", KEEP | FALLOC_FL_UNSHARE_RANGE, 0, PAGE },
    { "fallocate-collapse-range", FALLOC_FL_COLLAPSE_RANGE, 0, PAGE },
    { "hole", PUNCH | KEEP, 0, PAGE },
    { "hole-again", PUNCH | KEEP, 0, PAGE },
    { "hole-without-keep-size", PUNCH, 0, PAGE },
    { "hole-past-the-end", PUNCH | KEEP, 3 * PAGE, 4 * PAGE },
    { "hole-beyond-the-end", PUNCH | KEEP, 4 * PAGE, PAGE },
    { "hole-unaligned-offset", PUNCH | KEEP, 1, PAGE },
    { "hole-unaligned-size", PUNCH | KEEP, 0, PAGE - 1 },
    { "hole-size-0", PUNCH | KEEP, 0, 0 },
};

int main(int argc, char **argv)
{
    int fd;

    make_vm(argc, argv);
    fd = make_gmem(4 * PAGE, 0);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        answer_ret(cases[i].rule, fallocate(fd, cases[i].mode, cases[i].offset,
                                            cases[i].size));
    }
    return 0;
}
