/*
 * KVM_HC_MAP_GPA_RANGE: a guest asks for a conversion
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "vcpu.h"

/* linux/kvm_para.h */
#define MAP_GPA_RANGE 12
#define TO_PRIVATE (1 << 4)

static int enable(uint64_t mask)
{
    struct kvm_enable_cap cap = {
        .cap = KVM_CAP_EXIT_HYPERCALL, .args = { mask },
    };

    return ioctl(vm, KVM_ENABLE_CAP, &cap);
}

static int hypercall(uint64_t gpa, uint64_t pages, uint64_t attributes)
{
    struct kvm_regs regs = {
        .rip = HYPERCALL, .rflags = 2, .rax = MAP_GPA_RANGE,
        .rbx = gpa, .rcx = pages, .rdx = attributes,
    };

    run->immediate_exit = 1;
    ioctl(vcpu, KVM_RUN, 0);
    run->immediate_exit = 0;
    need(!ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
    return ioctl(vcpu, KVM_RUN, 0);
}

/* The guest's %eax after the hypercall */
static void answer_eax(const char *rule)
{
    struct kvm_regs regs;

    need(!ioctl(vcpu, KVM_GET_REGS, &regs), "KVM_GET_REGS");
    answer(rule, "%d", (int)regs.rax);
}

/* The VMM answers @ret. */
static void answer_ret_given(const char *rule, uint64_t ret)
{
    need(!hypercall(GPA, 1, TO_PRIVATE) &&
         run->exit_reason == KVM_EXIT_HYPERCALL, "a hypercall");
    run->hypercall.ret = ret;
    need(!ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
    answer_eax(rule);
}

int main(int argc, char **argv)
{
    int ret;

    make_vm(argc, argv);
    make_running_vcpu();

    answer_ret("hypercall-enable-unknown", enable(1 << 1));
    ret = hypercall(GPA, 1, TO_PRIVATE);
    if (ret || run->exit_reason != KVM_EXIT_IO) {
        skip("the guest cannot make a hypercall in real mode here");
    }
    answer_exit("hypercall-not-enabled", ret);
    answer_eax("hypercall-not-enabled-eax");
    answer_ret("hypercall-enable", enable(1 << MAP_GPA_RANGE));

    ret = hypercall(GPA, 2, TO_PRIVATE);
    answer_exit("hypercall-exit", ret);
    answer("hypercall-gpa", "0x%llx", run->hypercall.args[0]);
    answer("hypercall-pages", "%llu", run->hypercall.args[1]);
    answer("hypercall-attributes", "0x%llx", run->hypercall.args[2]);
    answer("hypercall-ret-at-first", "%llu", run->hypercall.ret);
    answer_ret_given("hypercall-ret-0", 0);
    answer_ret_given("hypercall-ret-einval", EINVAL);
    answer_ret_given("hypercall-ret-eagain", EAGAIN);
    answer_ret_given("hypercall-ret-other", 7);

    answer_exit("hypercall-to-shared", hypercall(GPA, 1, 0));
    answer_exit("hypercall-unknown-attributes", hypercall(GPA, 1, 1 << 5));
    ret = hypercall(GPA + 1, 1, 0);
    answer_exit("hypercall-unaligned", ret);
    answer_eax("hypercall-unaligned-eax");
    ret = hypercall(GPA, 0, 0);
    answer_exit("hypercall-no-pages", ret);
    answer_eax("hypercall-no-pages-eax");
    return 0;
}
