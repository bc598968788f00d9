/*
 * A guest_memfd as a file: its size is fixed; read() and write() fail
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <sys/stat.h>
#include "conformance.h"

int main(int argc, char **argv)
{
    char byte = 1;
    struct stat st;
    int fd;

    make_vm(argc, argv);
    fd = make_gmem(4 * PAGE, 0);

    answer_ret("ftruncate-larger", ftruncate(fd, 8 * PAGE));
    answer_ret("ftruncate-smaller", ftruncate(fd, PAGE));
    answer_ret("ftruncate-same-size", ftruncate(fd, 4 * PAGE));
    answer_ret("read", read(fd, &byte, 1));
    answer_ret("write", write(fd, &byte, 1));
    answer_ret("pread", pread(fd, &byte, 1, 0));
    answer_ret("pwrite", pwrite(fd, &byte, 1, 0));
    answer_ret("lseek-end", lseek(fd, 0, SEEK_END));
    answer_ret("lseek-data", lseek(fd, 0, SEEK_DATA));
    answer_ret("fsync", fsync(fd));
    answer_ret("fchmod", fchmod(fd, 0600));

    need(!fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 4 * PAGE), "fallocate");
    need(!fstat(fd, &st), "fstat");
    answer("stat-size", "0x%llx", (unsigned long long)st.st_size);
    answer("stat-blocks", "%lld", (long long)st.st_blocks);
    answer("stat-is-regular", "%s", S_ISREG(st.st_mode) ? "yes" : "no");
    return 0;
}
