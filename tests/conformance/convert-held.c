/*
 * Conversion to private while a page of the file is held
 *
 * A page in a pipe is held.  The model cannot see that, so its configuration
 * has a pin:
 * simkvm: pin 0x2000 0x1000 times=1
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <sys/uio.h>
#include "conformance.h"

#define HELD 2

int main(int argc, char **argv)
{
    struct gmem_memory_attributes2 args = {
        .size = 4 * PAGE, .attributes = PRIVATE,
    };
    struct iovec page = { .iov_len = PAGE };
    uint8_t *map, out[PAGE];
    int fd, ret, fds[2];

    make_vm(argc, argv);
    /* The pin is for the first file of the process. */
    fd = create_gmem(vm, 4 * PAGE, MMAP | SHARED);
    if (fd < 0) {
        end();
    }
    map = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    need(map != MAP_FAILED, "mmap");
    memset(map, 0x11, 4 * PAGE);
    need(!pipe(fds), "pipe");
    page.iov_base = map + HELD * PAGE;
    answer_ret("vmsplice-of-shared", vmsplice(fds[1], &page, 1, 0));
    ret = convert(fd, 0, PAGE, 0);
    if (ret) {
        end();
    }

    ret = ioctl(fd, GMEM_SET_MEMORY_ATTRIBUTES2, &args);
    answer_ret("convert-held", ret);
    answer("convert-held-error-offset", "0x%llx",
           (unsigned long long)args.error_offset);
    answer_touch("convert-held-page-before", map);
    answer_touch("convert-held-page", map + HELD * PAGE);
    answer_touch("convert-held-page-after", map + 3 * PAGE);
    answer_ret("convert-held-to-shared", convert(fd, 0, 4 * PAGE, 0));
    need(read(fds[0], out, PAGE) == PAGE, "read");
    answer_ret("convert-no-longer-held", convert(fd, 0, 4 * PAGE, PRIVATE));
    answer_touch("convert-no-longer-held-and-touched", map + HELD * PAGE);
    return 0;
}
