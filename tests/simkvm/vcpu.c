/*
 * simkvm: ioctls on a vCPU, and state that is set and given back
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <stddef.h>
#include <stdlib.h>
#include "simkvm.h"

#define VCPU_PAGES 3                    /* as KVM_GET_VCPU_MMAP_SIZE says */
#define MAX_FAULTS 1000                 /* for one page without progress */

/* --- kept state --- */

#define KEPT(kind, get, set, size)                                      \
    { kind, (uint32_t)(get), (uint32_t)(set), #get, #set, #set, size }
#define KEPT_AS(kind, get, set, size, key)                              \
    { kind, (uint32_t)(get), (uint32_t)(set), #get, #set, key, size }

static const SimKept kept_table[] = {
    KEPT(SIM_VM, KVM_GET_CLOCK, KVM_SET_CLOCK, sizeof(struct kvm_clock_data)),
    KEPT(SIM_VM, KVM_GET_PIT2, KVM_SET_PIT2, sizeof(struct kvm_pit_state2)),
    KEPT(SIM_VM, KVM_GET_IRQCHIP, KVM_SET_IRQCHIP, sizeof(struct kvm_irqchip)),
    KEPT(SIM_VCPU, KVM_GET_REGS, KVM_SET_REGS, sizeof(struct kvm_regs)),
    KEPT_AS(SIM_VCPU, KVM_GET_SREGS2, KVM_SET_SREGS2,
            sizeof(struct kvm_sregs2), "sregs"),
    /* The old structure is the beginning of the newer one. */
    KEPT_AS(SIM_VCPU, KVM_GET_SREGS, KVM_SET_SREGS,
            offsetof(struct kvm_sregs, interrupt_bitmap), "sregs"),
    KEPT(SIM_VCPU, KVM_GET_FPU, KVM_SET_FPU, sizeof(struct kvm_fpu)),
    KEPT_AS(SIM_VCPU, KVM_GET_XSAVE, KVM_SET_XSAVE, sizeof(struct kvm_xsave),
            "xsave"),
    KEPT_AS(SIM_VCPU, KVM_GET_XSAVE2, 0, sizeof(struct kvm_xsave), "xsave"),
    KEPT(SIM_VCPU, KVM_GET_XCRS, KVM_SET_XCRS, sizeof(struct kvm_xcrs)),
    KEPT(SIM_VCPU, KVM_GET_LAPIC, KVM_SET_LAPIC,
         sizeof(struct kvm_lapic_state)),
    KEPT(SIM_VCPU, KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS,
         sizeof(struct kvm_vcpu_events)),
    KEPT(SIM_VCPU, KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS,
         sizeof(struct kvm_debugregs)),
    KEPT(SIM_VCPU, KVM_GET_MP_STATE, KVM_SET_MP_STATE,
         sizeof(struct kvm_mp_state)),
};

const SimKept *sim_kept_find(SimKind kind, unsigned long request, bool *set)
{
    size_t i;

    for (i = 0; i < G_N_ELEMENTS(kept_table); i++) {
        const SimKept *kept = &kept_table[i];

        if (kept->kind == kind && request &&
            (kept->get == request || kept->set == request)) {
            *set = kept->set == request;
            return kept;
        }
    }
    return NULL;
}

GHashTable *sim_kept_new(void)
{
    return g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
}

/* The buffer of the state, a page of zeros at first */
static void *kept_buffer(GHashTable *table, const char *key)
{
    void *buffer = g_hash_table_lookup(table, key);

    if (!buffer) {
        buffer = g_malloc0(SIM_PAGE);
        g_hash_table_insert(table, g_strdup(key), buffer);
    }
    return buffer;
}

int sim_kept_access(GHashTable *table, const SimKept *kept, bool set,
                    void *arg)
{
    g_autofree char *key = g_strdup(kept->key);
    void *buffer;

    G_STATIC_ASSERT(sizeof(struct kvm_xsave) <= SIM_PAGE);
    if (kept->set == (uint32_t)KVM_SET_IRQCHIP) {
        uint32_t chip = ((struct kvm_irqchip *)arg)->chip_id;

        if (chip > 2) {
            return -EINVAL;
        }
        g_free(key);
        key = g_strdup_printf("%s %u", kept->key, chip);
        buffer = kept_buffer(table, key);
        ((struct kvm_irqchip *)buffer)->chip_id = chip;
    } else {
        buffer = kept_buffer(table, key);
    }
    memcpy(set ? buffer : arg, set ? arg : buffer, kept->size);
    return 0;
}

int sim_vcpu_get(SimVcpu *vcpu, unsigned long request, void *state)
{
    const SimKept *kept;
    bool set;
    int ret;

    if (sim_config.kvm) {
        return sim_real_ioctl(vcpu->fd, request, state);
    }
    kept = sim_kept_find(SIM_VCPU, request, &set);
    pthread_mutex_lock(&vcpu->lock);
    ret = sim_kept_access(vcpu->kept, kept, false, state);
    pthread_mutex_unlock(&vcpu->lock);
    return ret;
}

uint64_t sim_vcpu_msr(SimVcpu *vcpu, uint32_t index, uint64_t otherwise)
{
    uint64_t *value;

    if (sim_config.kvm) {
        struct {
            struct kvm_msrs head;
            struct kvm_msr_entry entry;
        } msrs = {
            .head.nmsrs = 1,
            .entry.index = index,
        };

        return sim_real_ioctl(vcpu->fd, KVM_GET_MSRS, &msrs) == 1
               ? msrs.entry.data : otherwise;
    }
    pthread_mutex_lock(&vcpu->lock);
    value = g_hash_table_lookup(vcpu->msrs, &index);
    otherwise = value ? *value : otherwise;
    pthread_mutex_unlock(&vcpu->lock);
    return otherwise;
}

/* A vCPU after reset, with its local APIC */
static void reset_state(SimVcpu *vcpu)
{
    struct kvm_regs *regs = kept_buffer(vcpu->kept, "KVM_SET_REGS");
    struct kvm_sregs2 *sregs = kept_buffer(vcpu->kept, "sregs");
    struct kvm_mp_state *mp = kept_buffer(vcpu->kept, "KVM_SET_MP_STATE");
    struct kvm_xcrs *xcrs = kept_buffer(vcpu->kept, "KVM_SET_XCRS");
    struct kvm_lapic_state *lapic = kept_buffer(vcpu->kept, "KVM_SET_LAPIC");
    struct kvm_debugregs *debug = kept_buffer(vcpu->kept,
                                              "KVM_SET_DEBUGREGS");

    regs->rip = 0xfff0;
    regs->rflags = 2;
    sregs->cs.base = 0xffff0000;
    sregs->cs.selector = 0xf000;
    sregs->cr0 = 0x60000010;
    sregs->apic_base = vcpu->id ? 0xfee00800 : 0xfee00900;
    mp->mp_state = vcpu->id && vcpu->vm->irqchip ? KVM_MP_STATE_UNINITIALIZED
                                                 : KVM_MP_STATE_RUNNABLE;
    debug->dr6 = 0xffff0ff0;
    debug->dr7 = 0x400;
    xcrs->nr_xcrs = 1;
    xcrs->xcrs[0].value = 1;
    lapic->regs[0x23] = vcpu->id;       /* APIC ID */
    lapic->regs[0x30] = 0x14;           /* version */
    lapic->regs[0x32] = 5;              /* highest LVT entry */
}

/* --- a vCPU --- */

static void vcpu_closed(void *object)
{
    SimVcpu *vcpu = object;
    SimVm *vm = vcpu->vm;

    pthread_mutex_lock(&vm->lock);
    g_ptr_array_remove(vm->vcpus, vcpu);
    pthread_mutex_unlock(&vm->lock);
    sim_script_leave(vcpu);
    sim_count(SIM_VCPUS_ALIVE, -1);
    sim_real_free_vcpu(vcpu);
    sim_real_munmap(vcpu->run, VCPU_PAGES * SIM_PAGE);
    g_hash_table_destroy(vcpu->kept);
    g_hash_table_destroy(vcpu->msrs);
    g_free(vcpu->cpuid);
    pthread_mutex_destroy(&vcpu->lock);
    g_free(vcpu);
    sim_vm_unref(vm);
}

int sim_vcpu_create(SimVm *vm, int id)
{
    int fd = sim_config.kvm
             ? sim_real_ioctl(vm->real, KVM_CREATE_VCPU, (void *)(uintptr_t)id)
             : memfd_create("simkvm-vcpu", MFD_CLOEXEC);
    SimVcpu *vcpu;

    if (fd < 0) {
        return sim_config.kvm ? fd : -errno;
    }
    if (!sim_config.kvm && ftruncate(fd, VCPU_PAGES * SIM_PAGE)) {
        return -errno;
    }
    vcpu = g_new0(SimVcpu, 1);
    vcpu->vm = sim_vm_ref(vm);
    vcpu->id = id;
    vcpu->fd = fd;
    vcpu->run = sim_real_mmap(NULL, VCPU_PAGES * SIM_PAGE,
                              PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    g_assert(vcpu->run != MAP_FAILED);
    pthread_mutex_init(&vcpu->lock, NULL);
    vcpu->kept = sim_kept_new();
    vcpu->msrs = g_hash_table_new_full(g_int_hash, g_int_equal, g_free,
                                       g_free);
    reset_state(vcpu);
    sim_count(SIM_VCPUS_ALIVE, 1);
    pthread_mutex_lock(&vm->lock);
    g_ptr_array_add(vm->vcpus, vcpu);
    pthread_mutex_unlock(&vm->lock);
    return sim_file_add(fd, SIM_VCPU, vcpu, vcpu_closed);
}

static int get_msrs(SimVcpu *vcpu, struct kvm_msrs *msrs)
{
    uint32_t i;

    for (i = 0; i < msrs->nmsrs; i++) {
        uint64_t *value = g_hash_table_lookup(vcpu->msrs,
                                              &msrs->entries[i].index);

        msrs->entries[i].data = value ? *value : 0;
    }
    return msrs->nmsrs;
}

static int set_msrs(SimVcpu *vcpu, const struct kvm_msrs *msrs)
{
    uint32_t i;

    for (i = 0; i < msrs->nmsrs; i++) {
        g_hash_table_insert(vcpu->msrs,
                            g_memdup2(&msrs->entries[i].index,
                                      sizeof(uint32_t)),
                            g_memdup2(&msrs->entries[i].data,
                                      sizeof(uint64_t)));
    }
    return msrs->nmsrs;
}

static size_t cpuid_bytes(uint32_t entries)
{
    return sizeof(struct kvm_cpuid2) +
           entries * sizeof(struct kvm_cpuid_entry2);
}

static int set_cpuid(SimVcpu *vcpu, const struct kvm_cpuid2 *cpuid)
{
    g_free(vcpu->cpuid);
    vcpu->cpuid = g_memdup2(cpuid, cpuid_bytes(cpuid->nent));
    return 0;
}

static int get_cpuid(SimVcpu *vcpu, struct kvm_cpuid2 *cpuid)
{
    uint32_t have = vcpu->cpuid ? vcpu->cpuid->nent : 0;

    if (cpuid->nent < have) {
        return -E2BIG;
    }
    cpuid->nent = have;
    if (have) {
        memcpy(cpuid->entries, vcpu->cpuid->entries,
               have * sizeof(*cpuid->entries));
    }
    return 0;
}

/* Paging is off: a linear address is a physical one. */
static int translate(struct kvm_translation *t)
{
    t->physical_address = t->linear_address;
    t->valid = t->writeable = 1;
    t->usermode = 0;
    return 0;
}

static bool aligned(uint64_t n)
{
    return n % SIM_PAGE == 0;
}

/*
 * Maps pages that the guest has not touched yet.  In the model, it allocates
 * them, and has no other effect.
 */
static int pre_fault_range(SimVcpu *vcpu, struct kvm_pre_fault_memory *range)
{
    SimVm *vm = vcpu->vm;
    bool some = false;
    int ret = sim_fault("KVM_PRE_FAULT_MEMORY", NULL);

    if (ret) {
        return ret;
    }
    if (range->flags || !range->size || !aligned(range->gpa) ||
        !aligned(range->size) || range->gpa + range->size <= range->gpa) {
        return sim_refuse(EINVAL, "KVM_PRE_FAULT_MEMORY: 0x%" PRIx64 " bytes "
                          "at 0x%" PRIx64 ", flags 0x%" PRIx64,
                          (uint64_t)range->size, (uint64_t)range->gpa,
                          (uint64_t)range->flags);
    }
    if ((vm->type == KVM_X86_SNP_VM || vm->type == KVM_X86_TDX_VM) &&
        vm->launch != SIM_LAUNCH_FINISHED) {
        return -EOPNOTSUPP;
    }
    while (range->size && !ret) {
        uint8_t byte;

        pthread_mutex_lock(&vm->lock);
        ret = sim_guest_access(vm, range->gpa, &byte, 1, false);
        pthread_mutex_unlock(&vm->lock);
        if (!ret) {
            range->gpa += SIM_PAGE;
            range->size -= SIM_PAGE;
            some = true;
        }
    }
    return some ? 0 : ret;
}

static int pre_fault(SimVcpu *vcpu, void *arg)
{
    struct kvm_pre_fault_memory range;
    int ret = sim_copy_from_user(&range, arg, sizeof(range));

    if (!ret) {
        ret = pre_fault_range(vcpu, &range);
    }
    return sim_copy_to_user(arg, &range, sizeof(range)) ?: ret;
}

/* --- exits --- */

int sim_exit(SimVcpu *vcpu, uint32_t reason, const char *name)
{
    vcpu->run->exit_reason = reason;
    sim_count(SIM_EXITS, 1);
    sim_log(name, 0, "\"vcpu\": %d", vcpu->id);
    return 0;
}

int sim_exit_hypercall(SimVcpu *vcpu, uint64_t gpa, uint64_t pages,
                       bool private)
{
    struct kvm_run *run = vcpu->run;

    run->hypercall.nr = KVM_HC_MAP_GPA_RANGE;
    run->hypercall.args[0] = gpa;
    run->hypercall.args[1] = pages;
    run->hypercall.args[2] = private ? KVM_MAP_GPA_RANGE_ENCRYPTED
                                     : KVM_MAP_GPA_RANGE_DECRYPTED;
    run->hypercall.ret = 0;
    run->hypercall.flags = KVM_EXIT_HYPERCALL_LONG_MODE;
    return sim_exit(vcpu, KVM_EXIT_HYPERCALL, "KVM_EXIT_HYPERCALL");
}

uint64_t sim_hypercall_answer(SimVcpu *vcpu)
{
    uint64_t ret = vcpu->run->hypercall.ret;

    if (sim_config.strict && ret != 0 && ret != EINVAL && ret != EAGAIN) {
        sim_violation("hypercall.ret is %" PRId64 ", which no KVM_RUN takes "
                      "for an SNP or TDX guest", (int64_t)ret);
    }
    return ret;
}

int sim_exit_memory_fault(SimVcpu *vcpu, uint64_t gpa, uint64_t size,
                          bool private)
{
    struct kvm_run *run = vcpu->run;

    run->memory_fault.flags = private ? KVM_MEMORY_EXIT_FLAG_PRIVATE : 0;
    run->memory_fault.gpa = gpa;
    run->memory_fault.size = size;
    sim_exit(vcpu, KVM_EXIT_MEMORY_FAULT, "KVM_EXIT_MEMORY_FAULT");
    return -EFAULT;
}

void sim_check_progress(uint64_t faults, uint64_t gpa, bool private)
{
    if (faults > MAX_FAULTS) {
        sim_violation("%d memory faults at 0x%" PRIx64 ", and the page is "
                      "still not %s", MAX_FAULTS, gpa,
                      private ? "private" : "shared");
    }
}

static int encrypt_op(SimVcpu *vcpu, void *arg)
{
    int ret = -ENOTTY;

    if (vcpu->vm->type == KVM_X86_TDX_VM) {
        ret = sim_tdx_vcpu_op(vcpu, arg);
        sim_vm_sample_launch(vcpu->vm);
    }
    return ret;
}

/* Calls that are modelled in both modes */
static int common_ioctl(SimVcpu *vcpu, int fd, unsigned long request,
                        void *arg, const char **name)
{
    switch (request) {
    case KVM_RUN:
        return sim_config.kvm ? sim_real_run(vcpu, fd)
                              : sim_script_run(vcpu);
    case (uint32_t)KVM_MEMORY_ENCRYPT_OP:
        *name = "KVM_MEMORY_ENCRYPT_OP";
        return encrypt_op(vcpu, arg);
    case (uint32_t)KVM_SET_CPUID2:
        return sim_config.kvm && vcpu->vm->type == KVM_X86_TDX_VM
               ? sim_real_set_cpuid(fd, arg) : SIM_PASS;
    case (uint32_t)KVM_PRE_FAULT_MEMORY:
        *name = "KVM_PRE_FAULT_MEMORY";
        return pre_fault(vcpu, arg);
    case KVM_GET_TSC_KHZ:
        return vcpu->vm->type == KVM_X86_TDX_VM || !sim_config.kvm
               ? SIM_TSC_KHZ : SIM_PASS;
    }
    return SIM_PASS;
}

static int scripted_ioctl(SimVcpu *vcpu, unsigned long request, void *arg,
                          const char **name)
{
    switch (request) {
    case (uint32_t)KVM_GET_MSRS:
        *name = "KVM_GET_MSRS";
        return get_msrs(vcpu, arg);
    case (uint32_t)KVM_SET_MSRS:
        *name = "KVM_SET_MSRS";
        return set_msrs(vcpu, arg);
    case (uint32_t)KVM_SET_CPUID2:
        *name = "KVM_SET_CPUID2";
        return sim_fault_ioctl(*name) ?: set_cpuid(vcpu, arg);
    case (uint32_t)KVM_GET_CPUID2:
        *name = "KVM_GET_CPUID2";
        return get_cpuid(vcpu, arg);
    case (uint32_t)KVM_TRANSLATE:
        *name = "KVM_TRANSLATE";
        return translate(arg);
    case KVM_KVMCLOCK_CTRL:
        *name = "KVM_KVMCLOCK_CTRL";
        return -EINVAL;                 /* the guest has no kvmclock */
    case KVM_GET_STATS_FD:
        *name = "KVM_GET_STATS_FD";
        return -ENOTTY;                 /* KVM_CAP_BINARY_STATS_FD is 0 */
    case KVM_SET_TSC_KHZ:
    case KVM_NMI:
    case KVM_SMI:
    case (uint32_t)KVM_INTERRUPT:
    case (uint32_t)KVM_SET_SIGNAL_MASK:
    case (uint32_t)KVM_SET_GUEST_DEBUG:
    case (uint32_t)KVM_TPR_ACCESS_REPORTING:
    case (uint32_t)KVM_SET_VAPIC_ADDR:
    case (uint32_t)KVM_X86_SETUP_MCE:
    case (uint32_t)KVM_X86_SET_MCE:
        *name = "accepted";
        return 0;
    }
    return SIM_PASS;
}

int sim_vcpu_ioctl(SimVcpu *vcpu, int fd, unsigned long request, void *arg)
{
    const char *name = NULL;
    int ret = common_ioctl(vcpu, fd, request, arg, &name);

    if (ret == SIM_PASS && !sim_config.kvm) {
        pthread_mutex_lock(&vcpu->lock);
        ret = scripted_ioctl(vcpu, request, arg, &name);
        pthread_mutex_unlock(&vcpu->lock);
    }
    if (name) {
        sim_log(name, ret, "\"vcpu\": %d", vcpu->id);
    }
    return ret;
}
