/*
 * KVM_SET_MEMORY_ATTRIBUTES2 on a guest_memfd: what it accepts
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "conformance.h"

#define FILE_PAGES 8

int main(int argc, char **argv)
{
    struct gmem_memory_attributes2 args = {
        .size = PAGE, .attributes = PRIVATE,
    };
    char rule[32];
    uint8_t *map;
    int fd, ret;

    make_vm(argc, argv);
    fd = make_gmem(FILE_PAGES * PAGE, gmem_flags());
    ret = convert(fd, 0, PAGE, 0);
    answer_ret("convert", ret);
    if (ret) {
        end();
    }
    map = mmap(NULL, FILE_PAGES * PAGE, PROT_READ, MAP_SHARED, fd, 0);
    need(map != MAP_FAILED, "mmap");

    args.flags = 1;
    answer_ret("convert-flags", ioctl(fd, GMEM_SET_MEMORY_ATTRIBUTES2, &args));
    args.flags = 0;
    for (int i = 0; i < 11; i++) {
        args.reserved[i] = 1;
        snprintf(rule, sizeof(rule), "convert-reserved-%d", i);
        answer_ret(rule, ioctl(fd, GMEM_SET_MEMORY_ATTRIBUTES2, &args));
        args.reserved[i] = 0;
    }
    answer_ret("convert-null", ioctl(fd, GMEM_SET_MEMORY_ATTRIBUTES2, NULL));
    answer_ret("convert-unknown", convert(fd, 0, PAGE, PRIVATE | 1 << 2));
    answer_ret("convert-unknown-to-shared", convert(fd, 0, PAGE, 1));
    answer_ret("convert-size-0", convert(fd, 0, 0, PRIVATE));
    answer_ret("convert-unaligned-offset", convert(fd, 1, PAGE, PRIVATE));
    answer_ret("convert-unaligned-size", convert(fd, 0, PAGE + 1, PRIVATE));
    answer_ret("convert-overflow", convert(fd, -PAGE, 2 * PAGE, PRIVATE));
    answer_ret("convert-past-the-end",
               convert(fd, (FILE_PAGES - 1) * PAGE, 2 * PAGE, PRIVATE));
    answer_ret("convert-beyond-the-end",
               convert(fd, FILE_PAGES * PAGE, PAGE, PRIVATE));
    args.error_offset = 0x1234;
    args.size = 0;
    ioctl(fd, GMEM_SET_MEMORY_ATTRIBUTES2, &args);
    answer("convert-error-offset-of-einval", "0x%llx",
           (unsigned long long)args.error_offset);
    answer_touch("convert-refused-and-touched", map);

    answer_ret("convert-to-private", convert(fd, 0, 4 * PAGE, PRIVATE));
    answer_ret("convert-already-private", convert(fd, 0, 4 * PAGE, PRIVATE));
    answer_ret("convert-mixed", convert(fd, 0, FILE_PAGES * PAGE, PRIVATE));
    answer_ret("convert-to-shared", convert(fd, 0, FILE_PAGES * PAGE, 0));
    answer_ret("convert-already-shared", convert(fd, 0, PAGE, 0));
    return 0;
}
