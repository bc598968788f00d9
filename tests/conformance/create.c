/*
 * KVM_CREATE_GUEST_MEMFD: arguments, and the file
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "conformance.h"

int main(int argc, char **argv)
{
    struct kvm_create_guest_memfd args = { .size = PAGE };
    uint64_t accepted;
    int fd, reported;

    make_vm(argc, argv);

    accepted = gmem_flags();
    answer("create-flags", "0x%llx", (unsigned long long)accepted);
    reported = ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD_FLAGS);
    answer("create-flags-reported", "0x%x", reported);
    answer_fd("create-all-flags-at-once", create_gmem(vm, PAGE, accepted));

    answer_fd("create-size-0", create_gmem(vm, 0, 0));
    answer_fd("create-unaligned", create_gmem(vm, PAGE + 1, 0));
    answer_fd("create-negative", create_gmem(vm, 1ULL << 63, 0));
    answer_fd("create-4-tib", create_gmem(vm, 4ULL << 40, 0));
    answer_fd("create-from-null", ioctl(vm, KVM_CREATE_GUEST_MEMFD, NULL));
    args.reserved[5] = 1;
    answer_fd("create-reserved-not-0", ioctl(vm, KVM_CREATE_GUEST_MEMFD,
                                             &args));

    fd = make_gmem(PAGE, 0);
    answer("create-close-on-exec", "%s",
           fcntl(fd, F_GETFD) & FD_CLOEXEC ? "yes" : "no");
    answer("create-access", "%s",
           (fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDWR ? "O_RDWR" : "other");
    return 0;
}
