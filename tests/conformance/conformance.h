/*
 * Common functions of the conformance programs: /dev/kvm, a VM, answers
 *
 * A program asks a kernel questions and prints the answers, "RULE: ANSWER".
 * It does not judge them: tests/conformance/answers has the expected ones.  Its
 * one argument is the type of the VM to ask with (default: 0).
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef CONFORMANCE_H
#define CONFORMANCE_H

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <linux/kvm.h>
#include "accel/kvm/guest-memfd-uapi.h"

#define PAGE 4096ULL
#define PRIVATE KVM_MEMORY_ATTRIBUTE_PRIVATE
#define MMAP GUEST_MEMFD_FLAG_MMAP
#define SHARED GUEST_MEMFD_FLAG_INIT_SHARED

static int kvm = -1;
static int vm = -1;
static unsigned long vm_type;

static inline void answer(const char *rule, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static inline void answer(const char *rule, const char *format, ...)
{
    va_list args;

    printf("%s: ", rule);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
    fflush(stdout);
}

#define NAME(error) [error] = #error
static const char *const errno_names[] = {
    NAME(EPERM), NAME(ENOENT), NAME(EINTR), NAME(EIO), NAME(ENXIO),
    NAME(E2BIG), NAME(EBADF), NAME(EAGAIN), NAME(ENOMEM), NAME(EACCES),
    NAME(EFAULT), NAME(EBUSY), NAME(EEXIST), NAME(ENODEV), NAME(EINVAL),
    NAME(ENOTTY), NAME(EFBIG), NAME(ENOSPC), NAME(ESPIPE), NAME(ENOSYS),
    NAME(EOPNOTSUPP), NAME(EHWPOISON), NAME(EBADFD), NAME(EOVERFLOW),
};
#undef NAME

/* The answer is what a call returned: a number, or the name of the errno. */
static inline void answer_ret(const char *rule, long ret)
{
    if (ret < 0) {
        const char *name = (size_t)errno < sizeof(errno_names) /
                           sizeof(errno_names[0]) ? errno_names[errno] : NULL;

        answer(rule, "%s", name ? name : strerror(errno));
    } else {
        answer(rule, "%ld", ret);
    }
}

/* The same for calls that return a descriptor; it is closed. */
static inline void answer_fd(const char *rule, int fd)
{
    if (fd < 0) {
        answer_ret(rule, fd);
    } else {
        answer(rule, "fd");
        close(fd);
    }
}

/*
 * The end of a program whose other questions make no sense for this VM.  The
 * reason for that is itself an answer, of this program or of another one.
 */
static inline void end(void) __attribute__((noreturn));

static inline void end(void)
{
    exit(0);
}

/* The program, or the rest of it, cannot ask here. */
static inline void skip(const char *format, ...)
    __attribute__((format(printf, 1, 2), noreturn));

static inline void skip(const char *format, ...)
{
    va_list args;

    printf("%s: SKIP ", program_invocation_short_name);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
    exit(0);
}

/* A call that the question needs failed, which is no answer. */
static inline void need(bool good, const char *what)
{
    if (!good) {
        fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what,
                strerror(errno));
        exit(1);
    }
}

static inline void open_kvm(void)
{
    kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0) {
        skip("no /dev/kvm here: %s", strerror(errno));
    }
}

/* A VM of the type in the command line, or the end of the program. */
static inline void make_vm(int argc, char **argv)
{
    open_kvm();
    vm_type = argc > 1 ? atoi(argv[1]) : KVM_X86_DEFAULT_VM;
    vm = ioctl(kvm, KVM_CREATE_VM, vm_type);
    if (vm < 0) {
        skip("no VM type %lu here", vm_type);
    }
}

static inline int create_gmem(int of_vm, uint64_t size, uint64_t flags)
{
    struct kvm_create_guest_memfd args = { .size = size, .flags = flags };

    return ioctl(of_vm, KVM_CREATE_GUEST_MEMFD, &args);
}

static inline int make_gmem(uint64_t size, uint64_t flags)
{
    int fd = create_gmem(vm, size, flags);

    need(fd >= 0, "KVM_CREATE_GUEST_MEMFD");
    return fd;
}

/* Flags that KVM_CREATE_GUEST_MEMFD accepts for this VM */
static inline uint64_t gmem_flags(void)
{
    uint64_t flags = 0;

    for (int bit = 0; bit < 64; bit++) {
        int fd = create_gmem(vm, PAGE, 1ULL << bit);

        if (fd >= 0) {
            flags |= 1ULL << bit;
            close(fd);
        }
    }
    return flags;
}

/* A mapped file whose pages start shared, or the end of the program. */
static inline uint8_t *make_shared(uint64_t size, int *fd)
{
    uint8_t *map;

    if (!(gmem_flags() & SHARED)) {
        end();
    }
    *fd = make_gmem(size, MMAP | SHARED);
    map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
    need(map != MAP_FAILED, "mmap");
    return map;
}

static inline uint8_t *make_anonymous(uint64_t size)
{
    uint8_t *map = mmap(NULL, size, PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    need(map != MAP_FAILED, "mmap");
    return map;
}

/*
 * A file to bind slots to, and memory for their userspace_addr: the file's
 * mapping if its pages can be shared, else separate memory.
 */
static inline uint8_t *make_bindable(uint64_t size, int *fd)
{
    if (ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD) <= 0) {
        end();
    }
    if (gmem_flags() & SHARED) {
        return make_shared(size, fd);
    }
    *fd = make_gmem(size, 0);
    return make_anonymous(size);
}

static inline int set_slot(uint32_t slot, uint32_t flags, uint64_t gpa,
                           uint64_t size, void *hva, int fd, uint64_t offset)
{
    struct kvm_userspace_memory_region2 region = {
        .slot = slot, .flags = flags, .guest_phys_addr = gpa,
        .memory_size = size, .userspace_addr = (uintptr_t)hva,
        .guest_memfd = fd, .guest_memfd_offset = offset,
    };

    return ioctl(vm, KVM_SET_USER_MEMORY_REGION2, &region);
}

static inline int bind_slot(uint32_t slot, uint64_t gpa, uint64_t size,
                            void *hva, int fd, uint64_t offset)
{
    return set_slot(slot, KVM_MEM_GUEST_MEMFD, gpa, size, hva, fd, offset);
}

static inline int delete_slot(uint32_t slot)
{
    return set_slot(slot, 0, 0, 0, NULL, 0, 0);
}

/* The ioctl on the VM, and that on a guest_memfd. */
static inline int set_vm_state(uint64_t gpa, uint64_t size, uint64_t attributes)
{
    struct kvm_memory_attributes args = {
        .address = gpa, .size = size, .attributes = attributes,
    };

    return ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES, &args);
}

static inline int convert(int fd, uint64_t offset, uint64_t size,
                          uint64_t attributes)
{
    struct gmem_memory_attributes2 args = {
        .offset = offset, .size = size, .attributes = attributes,
    };

    return ioctl(fd, GMEM_SET_MEMORY_ATTRIBUTES2, &args);
}

/* Convert by the one of the two that this kernel has. */
static inline void set_state(int fd, uint64_t offset, uint64_t gpa,
                             uint64_t size, uint64_t attributes)
{
    if (convert(fd, offset, size, attributes) && errno == ENOTTY) {
        need(!set_vm_state(gpa, size, attributes),
             "KVM_SET_MEMORY_ATTRIBUTES");
    }
}

static sigjmp_buf touch_jump;

static inline void touch_failed(int sig)
{
    siglongjmp(touch_jump, sig);
}

/* Read a byte: its value, or -1 for SIGBUS. */
static inline int touch(const uint8_t *byte)
{
    struct sigaction action = { .sa_handler = touch_failed }, old;
    int value = -1;

    sigaction(SIGBUS, &action, &old);
    if (!sigsetjmp(touch_jump, 1)) {
        /* volatile: the access must not be optimized away. */
        value = *(const volatile uint8_t *)byte;
    }
    sigaction(SIGBUS, &old, NULL);
    return value;
}

static inline void answer_touch(const char *rule, const uint8_t *byte)
{
    int value = touch(byte);

    if (value < 0) {
        answer(rule, "SIGBUS");
    } else {
        answer(rule, "0x%02x", value);
    }
}

#endif
