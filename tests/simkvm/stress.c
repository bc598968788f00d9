/*
 * simkvm: a small VMM whose threads use the same memory at the same time
 *
 * It is linked with the model, so that a sanitizer sees both (tests/simkvm/
 * tsan).  The vCPUs' scripts, in the file that SIMKVM names, ask for
 * conversions until they shut down; a thread each serves them, while others
 * map, touch, punch and bind the same memory.
 *
 * With the argument "hostile", requests may be invalid, and slots stay as they
 * are.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include "simkvm.h"

#define SIZE (16ULL << 20)
#define VCPUS 4

static int vm, file;
static bool hostile;
static int vcpus_left = VCPUS;

static void must(bool ok, const char *what)
{
    if (!ok) {
        perror(what);
        exit(1);
    }
}

static int convert(uint64_t gpa, uint64_t size, bool private)
{
    struct gmem_memory_attributes2 args = {
        .offset = gpa,
        .size = size,
        .attributes = private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0,
    };
    int ret;

    do {
        ret = ioctl(file, GMEM_SET_MEMORY_ATTRIBUTES2, &args);
    } while (ret && errno == EAGAIN);
    must(!ret, "conversion");
    return ret;
}

/* Carries a request out, if docs/page-state-changes.md grants it. */
static bool grant(uint64_t gpa, uint64_t pages, uint64_t attributes)
{
    bool private = attributes & KVM_MAP_GPA_RANGE_ENCRYPTED;
    uint64_t size = pages * SIM_PAGE;

    if (attributes >> 5 || gpa % SIM_PAGE || !pages ||
        size / SIM_PAGE != pages || gpa + size < gpa ||
        (private && gpa + size > SIZE)) {
        return false;
    }
    if (gpa < SIZE) {
        convert(gpa, MIN(size, SIZE - gpa), private);
    }
    return true;
}

static void *run_vcpu(void *opaque)
{
    int fd = ioctl(vm, KVM_CREATE_VCPU, opaque);
    struct kvm_run *run;

    must(fd >= 0, "KVM_CREATE_VCPU");
    run = mmap(NULL, 3 * SIM_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    must(run != MAP_FAILED, "mmap of a vCPU");
    for (;;) {
        if (ioctl(fd, KVM_RUN, 0)) {
            must(errno == EFAULT &&
                 (hostile || run->exit_reason == KVM_EXIT_MEMORY_FAULT),
                 "KVM_RUN");
            /* A software-protected guest's memory fault converts nothing. */
            if (!hostile) {
                convert(run->memory_fault.gpa, run->memory_fault.size,
                        run->memory_fault.flags &
                        KVM_MEMORY_EXIT_FLAG_PRIVATE);
            }
        } else if (run->exit_reason == KVM_EXIT_HYPERCALL) {
            bool granted = grant(run->hypercall.args[0],
                                 run->hypercall.args[1],
                                 run->hypercall.args[2]);

            run->hypercall.ret = granted ? 0 : EINVAL;
        } else if (run->exit_reason != KVM_EXIT_MMIO) {
            must(run->exit_reason == KVM_EXIT_SHUTDOWN, "exit");
            break;
        }
    }
    munmap(run, 3 * SIM_PAGE);
    close(fd);
    __atomic_sub_fetch(&vcpus_left, 1, __ATOMIC_RELEASE);
    return NULL;
}

/* A second mapping, as a back end in another process has one */
static void *touch(void *opaque)
{
    uint64_t i = 0;

    while (__atomic_load_n(&vcpus_left, __ATOMIC_ACQUIRE)) {
        uint64_t offset = i++ * 7919 * SIM_PAGE % SIZE;
        char byte = 1;
        int fd = dup(file);
        char *p = mmap(NULL, SIM_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
                       offset);
        struct iovec to = { p, 1 }, from = { &byte, 1 };

        must(p != MAP_FAILED, "mmap");
        /* Only the state of the page decides whether this goes. */
        process_vm_writev(getpid(), &from, 1, &to, 1, 0);
        must(!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                        offset, SIM_PAGE), "fallocate");
        munmap(p, SIM_PAGE);
        close(fd);
    }
    return NULL;
}

/* Memslots come and go beside those that are in use. */
static void *bind_slots(void *opaque)
{
    struct kvm_create_guest_memfd args = {
        .size = SIZE,
        .flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED,
    };
    int fd = ioctl(vm, KVM_CREATE_GUEST_MEMFD, &args);
    void *p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    struct kvm_userspace_memory_region2 region = {
        .slot = 1,
        .flags = KVM_MEM_GUEST_MEMFD,
        .guest_phys_addr = 1ULL << 32,
        .userspace_addr = (uintptr_t)p,
        .guest_memfd = fd,
    };

    must(fd >= 0 && p != MAP_FAILED, "second guest_memfd");
    while (__atomic_load_n(&vcpus_left, __ATOMIC_ACQUIRE)) {
        region.memory_size = SIZE;
        must(!ioctl(vm, KVM_SET_USER_MEMORY_REGION2, &region), "slot");
        region.memory_size = 0;
        must(!ioctl(vm, KVM_SET_USER_MEMORY_REGION2, &region), "no slot");
    }
    munmap(p, SIZE);
    close(fd);
    return NULL;
}

int main(int argc, char **argv)
{
    struct kvm_enable_cap hypercalls = {
        .cap = KVM_CAP_EXIT_HYPERCALL,
        .args[0] = 1 << KVM_HC_MAP_GPA_RANGE,
    };
    struct kvm_create_guest_memfd args = {
        .size = SIZE,
        .flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED,
    };
    struct kvm_userspace_memory_region2 region = {
        .flags = KVM_MEM_GUEST_MEMFD,
        .memory_size = SIZE,
    };
    pthread_t threads[VCPUS + 2];
    size_t n = G_N_ELEMENTS(threads);
    int kvm = open("/dev/kvm", O_RDWR);
    void *p;
    size_t i;

    hostile = argc == 2 && !strcmp(argv[1], "hostile");
    vm = ioctl(kvm, KVM_CREATE_VM, (void *)KVM_X86_SW_PROTECTED_VM);
    must(vm >= 0, "KVM_CREATE_VM");
    must(!ioctl(vm, KVM_ENABLE_CAP, &hypercalls), "KVM_CAP_EXIT_HYPERCALL");
    file = ioctl(vm, KVM_CREATE_GUEST_MEMFD, &args);
    p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    must(file >= 0 && p != MAP_FAILED, "guest_memfd");
    region.userspace_addr = (uintptr_t)p;
    region.guest_memfd = file;
    must(!ioctl(vm, KVM_SET_USER_MEMORY_REGION2, &region), "memslot");

    for (i = 0; i < VCPUS; i++) {
        pthread_create(&threads[i], NULL, run_vcpu, (void *)i);
    }
    pthread_create(&threads[VCPUS], NULL, touch, NULL);
    if (hostile) {
        n--;
    } else {
        pthread_create(&threads[VCPUS + 1], NULL, bind_slots, NULL);
    }
    for (i = 0; i < n; i++) {
        pthread_join(threads[i], NULL);
    }
    munmap(p, SIZE);
    close(file);
    close(vm);
    close(kvm);
    return 0;
}
