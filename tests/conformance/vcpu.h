/*
 * A vCPU that runs a few instructions in real mode
 *
 * The code is in a plain slot of its own, so that KVM can emulate it; its data
 * is at GPA, where ds:0 points.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef CONFORMANCE_VCPU_H
#define CONFORMANCE_VCPU_H

#include "conformance.h"

#define GPA 0x80000ULL
#define CODE_GPA 0x10000ULL
#define CODE_SLOT 100
#define DONE_PORT 0x80

/* Where each piece of code starts; it ends with a write to DONE_PORT. */
enum { STORE = 0x00, LOAD = 0x10, OUTS = 0x20, HYPERCALL = 0x30 };

static int vcpu = -1;
static struct kvm_run *run;

/* A vCPU without code.  VM types that need launch commands have none here. */
static inline void make_vcpu(void)
{
    int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

    if (vm_type > KVM_X86_SW_PROTECTED_VM) {
        end();
    }
    vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    need(vcpu >= 0, "KVM_CREATE_VCPU");
    run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    need(run != MAP_FAILED, "mmap of kvm_run");
}

static inline void make_running_vcpu(void)
{
    static const uint8_t code[] = {
        [STORE] = 0x88, 0x04, 0xe6, DONE_PORT,          /* mov %al,(%si) */
        [LOAD] = 0x8a, 0x04, 0xe6, DONE_PORT,           /* mov (%si),%al */
        [OUTS] = 0x6e,                                  /* outsb */
        [HYPERCALL] = 0x0f, 0x01, 0xd9, 0xe6, DONE_PORT,    /* vmmcall */
    };
    uint8_t *memory;
    struct kvm_sregs sregs;

    if (getenv("SIMKVM_SCRIPTED")) {
        skip("the model runs no guest code");
    }
    make_vcpu();
    memory = make_anonymous(PAGE);
    memcpy(memory, code, sizeof(code));
    need(!set_slot(CODE_SLOT, 0, CODE_GPA, PAGE, memory, -1, 0),
         "a slot for code");
    need(!ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
    sregs.cs.base = CODE_GPA;
    sregs.cs.selector = CODE_GPA >> 4;
    sregs.ds.base = GPA;
    sregs.ds.selector = GPA >> 4;
    need(!ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
}

/* Run one piece of code on ds:@offset with @al.  Returns KVM_RUN's result. */
static inline int run_code(unsigned start, uint64_t offset, uint8_t al)
{
    struct kvm_regs regs = {
        .rip = start, .rsi = offset, .rax = al, .rdx = DONE_PORT, .rflags = 2,
    };

    /* Complete the last exit first. */
    run->immediate_exit = 1;
    ioctl(vcpu, KVM_RUN, 0);
    run->immediate_exit = 0;
    need(!ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
    return ioctl(vcpu, KVM_RUN, 0);
}

/* The answer is the byte that the code put out, or the reason for none. */
static inline void answer_exit(const char *rule, int ret)
{
    if (ret && run->exit_reason == KVM_EXIT_MEMORY_FAULT) {
        answer(rule, "memory-fault-%s-0x%llx-0x%llx",
               run->memory_fault.flags == PRIVATE ? "private" :
               run->memory_fault.flags ? "other" : "shared",
               run->memory_fault.gpa, run->memory_fault.size);
    } else if (ret) {
        int error = errno;

        need(!run->exit_reason, "an exit reason besides the error");
        errno = error;
        answer_ret(rule, ret);
    } else if (run->exit_reason == KVM_EXIT_IO &&
               run->io.direction == KVM_EXIT_IO_OUT) {
        answer(rule, "0x%02x", ((uint8_t *)run)[run->io.data_offset]);
    } else if (run->exit_reason == KVM_EXIT_MMIO) {
        answer(rule, "mmio-%s-0x%llx", run->mmio.is_write ? "write" : "read",
               run->mmio.phys_addr);
    } else if (run->exit_reason == KVM_EXIT_HYPERCALL) {
        answer(rule, "hypercall-%llu", run->hypercall.nr);
    } else {
        answer(rule, "exit-%u", run->exit_reason);
    }
}

static inline void answer_run(const char *rule, unsigned start,
                              uint64_t offset, uint8_t al)
{
    answer_exit(rule, run_code(start, offset, al));
}

#endif
