/*
 * Launch commands of a TDX VM: their order, and what they accept
 *
 * The answers are those of arch/x86/kvm/vmx/tdx.c in Linux: tdx_vm_ioctl(),
 * tdx_td_init(), tdx_vcpu_create(), tdx_vcpu_init(),
 * tdx_vcpu_init_mem_region() with kvm_gmem_populate(), tdx_td_finalize().
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "conformance.h"

#define GPA 0x100000ULL
#define FILE_PAGES 16
#define MAX_CPUID 64
#define MEASURE 1
#define SHARED_BIT (1ULL << 47)
#define X2APIC (1 << 21)

static int vcpu;
static uint8_t *source;

static struct {
    struct kvm_tdx_capabilities caps;
    struct kvm_cpuid_entry2 entries[MAX_CPUID];
} offered;

static int command(int fd, uint32_t id, uint32_t flags, void *data)
{
    struct kvm_tdx_cmd cmd = {
        .id = id, .flags = flags, .data = (uintptr_t)data,
    };

    return ioctl(fd, KVM_MEMORY_ENCRYPT_OP, &cmd);
}

static int init_vm(uint32_t flags, uint64_t attributes, uint64_t reserved)
{
    struct {
        struct kvm_tdx_init_vm args;
        struct kvm_cpuid_entry2 width;
    } init = {
        .args.attributes = attributes,
        .args.xfam = offered.caps.supported_xfam,
        .args.reserved = { reserved },
        .args.cpuid.nent = 1,
        .width = { .function = 0x80000008, .eax = 48 << 16 },
    };

    return command(vm, KVM_TDX_INIT_VM, flags, &init);
}

/* CPUID that KVM_TDX_INIT_VCPU accepts */
static void set_cpuid(void)
{
    struct {
        struct kvm_cpuid2 cpuid;
        struct kvm_cpuid_entry2 features;
    } set = {
        .cpuid.nent = 1,
        .features = { .function = 1, .ecx = X2APIC },
    };

    need(!ioctl(vcpu, KVM_SET_CPUID2, &set), "KVM_SET_CPUID2");
}

static void answer_region(const char *rule, uint64_t gpa, const void *from,
                          uint64_t pages, uint32_t flags)
{
    struct kvm_tdx_init_mem_region args = {
        .source_addr = (uintptr_t)from, .gpa = gpa, .nr_pages = pages,
    };
    int ret = command(vcpu, KVM_TDX_INIT_MEM_REGION, flags, &args);

    if (ret) {
        answer_ret(rule, ret);
    } else {
        answer(rule, "0-left-%llu", args.nr_pages);
    }
}

static void answer_pre_fault(const char *rule)
{
    struct kvm_pre_fault_memory args = { .gpa = GPA + 8 * PAGE, .size = PAGE };

    answer_ret(rule, ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &args));
}

static void answer_regions(void)
{
    const uint64_t private = GPA + 8 * PAGE;

    answer_region("tdx-region-flags", private, source, 1, 1 << 1);
    answer_region("tdx-region-no-pages", private, source, 0, 0);
    answer_region("tdx-region-unaligned-gpa", private + 1, source, 1, 0);
    answer_region("tdx-region-unaligned-source", private, source + 1, 1, 0);
    answer_region("tdx-region-shared-gpa", SHARED_BIT, source, 1, 0);
    answer_region("tdx-region-overflow", -PAGE, source, 2, 0);
    answer_region("tdx-region-no-slot", 2 * GPA, source, 1, 0);
    answer_region("tdx-region-shared", GPA, source, 1, 0);
    answer_region("tdx-region", private, source, 2, 0);
    answer_region("tdx-region-measured", private + 2 * PAGE, source, 2,
                  MEASURE);
    answer_region("tdx-region-null-source", private + 4 * PAGE, NULL, 1, 0);
}

int main(int argc, char **argv)
{
    struct kvm_enable_cap split = {
        .cap = KVM_CAP_SPLIT_IRQCHIP, .args = { 24 },
    };
    uint8_t *memory;
    int fd;

    make_vm(argc, argv);
    if (vm_type != KVM_X86_TDX_VM) {
        end();
    }
    source = make_anonymous(4 * PAGE);
    memset(source, 0x11, 4 * PAGE);
    memory = make_bindable(FILE_PAGES * PAGE, &fd);
    need(!bind_slot(1, GPA, FILE_PAGES * PAGE, memory, fd, 0),
         "binding a slot");
    set_state(fd, 8 * PAGE, GPA + 8 * PAGE, 8 * PAGE, PRIVATE);
    need(!ioctl(vm, KVM_ENABLE_CAP, &split), "KVM_CAP_SPLIT_IRQCHIP");

    answer_ret("tdx-capabilities-no-room",
               command(vm, KVM_TDX_CAPABILITIES, 0, &offered));
    offered.caps.cpuid.nent = MAX_CPUID;
    answer_ret("tdx-capabilities-flags",
               command(vm, KVM_TDX_CAPABILITIES, 1, &offered));
    answer_ret("tdx-capabilities",
               command(vm, KVM_TDX_CAPABILITIES, 0, &offered));
    answer_ret("tdx-unknown-command", command(vm, 100, 0, NULL));

    answer_fd("tdx-vcpu-before-init", ioctl(vm, KVM_CREATE_VCPU, 0));
    answer_ret("tdx-finalize-before-init",
               command(vm, KVM_TDX_FINALIZE_VM, 0, NULL));
    answer_ret("tdx-init-flags", init_vm(1, 0, 0));
    answer_ret("tdx-init-reserved", init_vm(0, 0, 1));
    answer_ret("tdx-init-unknown-attributes",
               init_vm(0, ~offered.caps.supported_attrs, 0));
    answer_ret("tdx-init", init_vm(0, 0, 0));
    answer_ret("tdx-init-twice", init_vm(0, 0, 0));

    vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    need(vcpu >= 0, "KVM_CREATE_VCPU");
    set_cpuid();
    answer_ret("tdx-init-vcpu-on-vm", command(vm, KVM_TDX_INIT_VCPU, 0, NULL));
    answer_region("tdx-region-before-init-vcpu", GPA, source, 1, 0);
    answer_ret("tdx-init-vcpu-flags",
               command(vcpu, KVM_TDX_INIT_VCPU, 1, NULL));
    answer_ret("tdx-init-vcpu", command(vcpu, KVM_TDX_INIT_VCPU, 0, NULL));
    answer_ret("tdx-init-vcpu-twice",
               command(vcpu, KVM_TDX_INIT_VCPU, 0, NULL));
    answer_regions();

    answer_pre_fault("tdx-pre-fault-before-finalize");
    answer_ret("tdx-finalize", command(vm, KVM_TDX_FINALIZE_VM, 0, NULL));
    answer_ret("tdx-finalize-twice",
               command(vm, KVM_TDX_FINALIZE_VM, 0, NULL));
    answer_pre_fault("tdx-pre-fault");
    answer_region("tdx-region-after-finalize", GPA + 8 * PAGE, source, 1, 0);
    answer_ret("tdx-init-after-finalize", init_vm(0, 0, 0));
    return 0;
}
