/*
 * KVM_PRE_FAULT_MEMORY
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "vcpu.h"

static void answer_pre_fault(const char *rule, uint64_t gpa, uint64_t size,
                             uint64_t flags)
{
    struct kvm_pre_fault_memory args = {
        .gpa = gpa, .size = size, .flags = flags,
    };
    int ret = ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &args);

    if (ret) {
        answer_ret(rule, ret);
    } else {
        answer(rule, "%d-left-0x%llx", ret, (unsigned long long)args.size);
    }
}

int main(int argc, char **argv)
{
    uint8_t *memory;
    int fd;

    make_vm(argc, argv);
    make_vcpu();
    memory = make_bindable(4 * PAGE, &fd);
    if (!ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_PRE_FAULT_MEMORY)) {
        skip("no KVM_PRE_FAULT_MEMORY here");
    }

    answer_pre_fault("pre-fault-no-slot", GPA, PAGE, 0);
    need(!bind_slot(1, GPA, 4 * PAGE, memory, fd, 0), "binding a slot");
    answer_pre_fault("pre-fault", GPA, 4 * PAGE, 0);
    answer_pre_fault("pre-fault-again", GPA, 4 * PAGE, 0);
    answer_pre_fault("pre-fault-past-the-slot", GPA + 3 * PAGE, 2 * PAGE, 0);
    answer_pre_fault("pre-fault-flags", GPA, PAGE, 1);
    answer_pre_fault("pre-fault-unaligned-gpa", GPA + 1, PAGE, 0);
    answer_pre_fault("pre-fault-unaligned-size", GPA, 1, 0);
    answer_pre_fault("pre-fault-size-0", GPA, 0, 0);
    answer_pre_fault("pre-fault-overflow", -PAGE, 2 * PAGE, 0);
    return 0;
}
