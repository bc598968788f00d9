/*
 * simkvm: ioctls on /dev/kvm, on a VM and on what belongs to it
 *
 * In kvm mode each of these descriptors is the real KVM's, and a call that
 * has no entry here, or one that is for scripted mode only, goes there.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <stdarg.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include "simkvm.h"
#include "ioctl-names.h"

#define VCPU_PAGES 3                    /* kvm_run, port I/O, coalesced MMIO */
#define MAX_VCPUS 1024
#define GPA_BITS 52

typedef enum SimWhere {
    BOTH,                               /* modelled in both modes */
    SCRIPTED,                           /* kvm mode leaves it to the kernel */
} SimWhere;

typedef struct SimCall {
    unsigned long request;
    const char *name;
    SimWhere where;
    int (*fn)(void *object, void *arg);
    bool uncopied;                      /* the argument ends in an array */
} SimCall;

#define CALL(name, where, fn) { (uint32_t)(name), #name, where, fn, false }
#define CALL_ARRAY(name, where, fn) \
    { (uint32_t)(name), #name, where, fn, true }

/* --- capabilities --- */

static const struct {
    int cap;
    int value;
} scripted_caps[] = {
    { KVM_CAP_IRQCHIP, 1 },
    { KVM_CAP_USER_MEMORY, 1 },
    { KVM_CAP_SET_TSS_ADDR, 1 },
    { KVM_CAP_EXT_CPUID, 1 },
    { KVM_CAP_NR_VCPUS, 8 },
    { KVM_CAP_MAX_VCPUS, MAX_VCPUS },
    { KVM_CAP_MAX_VCPU_ID, MAX_VCPUS },
    { KVM_CAP_NR_MEMSLOTS, 32764 },
    { KVM_CAP_MP_STATE, 1 },
    { KVM_CAP_COALESCED_MMIO, 2 },      /* page of the ring in kvm_run */
    { KVM_CAP_COALESCED_PIO, 1 },
    { KVM_CAP_SYNC_MMU, 1 },
    { KVM_CAP_DESTROY_MEMORY_REGION_WORKS, 1 },
    { KVM_CAP_JOIN_MEMORY_REGIONS_WORKS, 1 },
    { KVM_CAP_USER_NMI, 1 },
    { KVM_CAP_SET_GUEST_DEBUG, 1 },
    { KVM_CAP_SET_GUEST_DEBUG2, 0x1f0003 },
    { KVM_CAP_X86_ROBUST_SINGLESTEP, 1 },
    { KVM_CAP_IRQ_ROUTING, 4096 },
    { KVM_CAP_IRQ_INJECT_STATUS, 1 },
    { KVM_CAP_MCE, 32 },
    { KVM_CAP_IRQFD, 1 },
    { KVM_CAP_IRQFD_RESAMPLE, 1 },
    { KVM_CAP_PIT2, 1 },
    { KVM_CAP_PIT_STATE2, 1 },
    { KVM_CAP_IOEVENTFD, 1 },
    { KVM_CAP_IOEVENTFD_ANY_LENGTH, 1 },
    { KVM_CAP_SET_IDENTITY_MAP_ADDR, 1 },
    { KVM_CAP_ADJUST_CLOCK, 14 },
    { KVM_CAP_INTERNAL_ERROR_DATA, 1 },
    { KVM_CAP_VCPU_EVENTS, 1 },
    { KVM_CAP_DEBUGREGS, 1 },
    { KVM_CAP_XSAVE, 1 },
    { KVM_CAP_XSAVE2, 4096 },           /* bytes */
    { KVM_CAP_XCRS, 1 },
    { KVM_CAP_TSC_CONTROL, 1 },
    { KVM_CAP_GET_TSC_KHZ, 1 },
    { KVM_CAP_TSC_DEADLINE_TIMER, 1 },
    { KVM_CAP_KVMCLOCK_CTRL, 1 },
    { KVM_CAP_SIGNAL_MSI, 1 },
    { KVM_CAP_DEVICE_CTRL, 1 },
    { KVM_CAP_ENABLE_CAP_VM, 1 },
    { KVM_CAP_SPLIT_IRQCHIP, 1 },
    { KVM_CAP_X2APIC_API, 3 },
    { KVM_CAP_IMMEDIATE_EXIT, 1 },
    { KVM_CAP_GET_MSR_FEATURES, 1 },
    { KVM_CAP_EXCEPTION_PAYLOAD, 1 },
    { KVM_CAP_X86_USER_SPACE_MSR, 7 },
    { KVM_CAP_X86_MSR_FILTER, 1 },
    { KVM_CAP_SREGS2, 1 },
    { KVM_CAP_VM_ATTRIBUTES, 0 },
    { KVM_CAP_SYS_ATTRIBUTES, 1 },
    { KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1 },
    { KVM_CAP_X86_APIC_BUS_CYCLES_NS, 1 },
};

/*
 * What differs by generation and VM type, in both modes.  Returns false if
 * the capability is none of these.  @vm may be NULL: the system's answer.
 */
static bool modelled_cap(SimVm *vm, int cap, int *value)
{
    bool private = vm ? sim_vm_has_private(vm)
                      : sim_config.vm_types & ~(1u << KVM_X86_DEFAULT_VM);

    switch (cap) {
    case KVM_CAP_USER_MEMORY2:
    case KVM_CAP_MEMORY_FAULT_INFO:
    case KVM_CAP_PRE_FAULT_MEMORY:
        *value = 1;
        break;
    case KVM_CAP_EXIT_HYPERCALL:
        *value = 1 << KVM_HC_MAP_GPA_RANGE;
        break;
    case KVM_CAP_MEMORY_ATTRIBUTES:
        *value = private && !sim_in_place() ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0;
        break;
    case SIM_CAP_GMEM_ATTRIBUTES:
        *value = private && sim_in_place() ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0;
        break;
    case KVM_CAP_GUEST_MEMFD:
        *value = sim_has_gmem(vm);
        break;
    case KVM_CAP_GUEST_MEMFD_FLAGS:
        *value = sim_gmem_flags(vm);
        break;
    case KVM_CAP_VM_TYPES:
        *value = sim_config.vm_types;
        break;
    case KVM_CAP_READONLY_MEM:
        *value = sim_has_readonly(vm);
        break;
    case KVM_CAP_X86_SMM:
        *value = sim_address_spaces(vm) > 1;
        break;
    case KVM_CAP_MULTI_ADDRESS_SPACE:
        *value = sim_address_spaces(vm);
        break;
    default:
        return false;
    }
    return true;
}

static int check_extension(SimVm *vm, void *arg)
{
    int cap = (uintptr_t)arg, value;
    size_t i;

    if (!modelled_cap(vm, cap, &value)) {
        if (sim_config.kvm) {
            return SIM_PASS;
        }
        value = 0;
        for (i = 0; i < G_N_ELEMENTS(scripted_caps); i++) {
            if (scripted_caps[i].cap == cap) {
                value = scripted_caps[i].value;
            }
        }
    } else if (sim_config.kvm && sim_address_spaces(vm) > 1 &&
               (cap == KVM_CAP_X86_SMM ||
                cap == KVM_CAP_MULTI_ADDRESS_SPACE)) {
        /* The real KVM says whether there is SMM. */
        return SIM_PASS;
    }
    sim_detail("\"cap\": %d", cap);
    return value;
}

/* --- /dev/kvm --- */

static void nothing(void *object)
{
}

int sim_open_kvm(int flags)
{
    int fd = sim_config.kvm ? sim_real_open("/dev/kvm", flags)
                            : memfd_create("simkvm-kvm", flags & O_CLOEXEC ?
                                           MFD_CLOEXEC : 0);

    return fd < 0 ? -errno : sim_file_add(fd, SIM_SYSTEM, NULL, nothing);
}

static int system_check_extension(void *object, void *arg)
{
    return check_extension(NULL, arg);
}

static int get_api_version(void *object, void *arg)
{
    return KVM_API_VERSION;
}

static int get_vcpu_mmap_size(void *object, void *arg)
{
    return VCPU_PAGES * SIM_PAGE;
}

static int get_supported_cpuid(void *object, void *arg)
{
    g_autofree struct kvm_cpuid2 *have = sim_cpuid_supported();
    struct kvm_cpuid2 *cpuid = arg;

    if (cpuid->nent < have->nent) {
        return -E2BIG;
    }
    memcpy(cpuid, have, sizeof(*have) + have->nent * sizeof(*have->entries));
    return 0;
}

static int get_emulated_cpuid(void *object, void *arg)
{
    ((struct kvm_cpuid2 *)arg)->nent = 0;
    return 0;
}

static int get_msr_list(struct kvm_msr_list *list, const uint32_t *have,
                        uint32_t n)
{
    uint32_t room = list->nmsrs;

    list->nmsrs = n;
    if (room < n) {
        return -E2BIG;
    }
    memcpy(list->indices, have, n * sizeof(*have));
    return 0;
}

static int get_msr_index_list(void *object, void *arg)
{
    return get_msr_list(arg, sim_msrs, sim_nr_msrs);
}

static int get_msr_feature_index_list(void *object, void *arg)
{
    static const uint32_t features[] = { 0x8b, 0xc0011029 };

    return get_msr_list(arg, features, G_N_ELEMENTS(features));
}

static int get_feature_msrs(void *object, void *arg)
{
    struct kvm_msrs *msrs = arg;
    uint32_t i;

    for (i = 0; i < msrs->nmsrs; i++) {
        msrs->entries[i].data = 0;
    }
    return msrs->nmsrs;
}

static int get_mce_cap(void *object, void *arg)
{
    /* MCG_CTL_P, MCG_SER_P */
    *(uint64_t *)arg = 1 << 8 | 1 << 24;
    return 0;
}

static int system_get_attr(void *object, void *arg)
{
    struct kvm_device_attr *attr = arg;
    uint64_t value;

    if (attr->group == KVM_X86_GRP_SEV &&
        attr->attr == KVM_X86_SEV_VMSA_FEATURES) {
        value = sim_sev_vmsa_features();
    } else if (sim_config.kvm) {
        return SIM_PASS;
    } else if (!attr->group && attr->attr == KVM_X86_XCOMP_GUEST_SUPP) {
        value = 7;                      /* x87, SSE, AVX */
    } else {
        return -ENXIO;
    }
    return sim_copy_to_user((void *)(uintptr_t)attr->addr, &value,
                            sizeof(value));
}

static int system_has_attr(void *object, void *arg)
{
    uint64_t value;
    struct kvm_device_attr attr = *(struct kvm_device_attr *)arg;

    attr.addr = (uintptr_t)&value;
    return system_get_attr(object, &attr);
}

static void vm_closed(void *object)
{
    sim_vm_unref(object);
}

static int create_vm(void *object, void *arg)
{
    uintptr_t type = (uintptr_t)arg;
    SimVm *vm;
    int fd;

    sim_detail("\"type\": %zu", (size_t)type);
    if (type >= 32 || !(sim_config.vm_types >> type & 1)) {
        return -EINVAL;
    }
    vm = g_new0(SimVm, 1);
    fd = sim_config.kvm ? sim_real_create_vm(vm)
                        : memfd_create("simkvm-vm", MFD_CLOEXEC);
    if (fd < 0) {
        g_free(vm);
        return sim_config.kvm ? fd : -errno;
    }
    vm->refs = 1;
    vm->type = type;
    vm->number = sim_count(SIM_VMS, 1);
    sim_count(SIM_VMS_ALIVE, 1);
    pthread_mutex_init(&vm->lock, NULL);
    vm->slots = g_ptr_array_new_with_free_func((GDestroyNotify)sim_slot_free);
    vm->gmems = g_ptr_array_new();
    vm->vcpus = g_ptr_array_new();
    vm->ioeventfds = g_array_new(FALSE, FALSE, sizeof(struct kvm_ioeventfd));
    vm->kept = sim_kept_new();
    sim_bitmap_init(&vm->private, 1ULL << (GPA_BITS - SIM_PAGE_SHIFT));
    sim_detail("\"type\": %zu, \"vm\": %" PRIu64, (size_t)type, vm->number);
    return sim_file_add(fd, SIM_VM, vm, vm_closed);
}

static const SimCall system_calls[] = {
    CALL(KVM_GET_API_VERSION, SCRIPTED, get_api_version),
    CALL(KVM_CHECK_EXTENSION, BOTH, system_check_extension),
    CALL(KVM_CREATE_VM, BOTH, create_vm),
    CALL(KVM_GET_VCPU_MMAP_SIZE, SCRIPTED, get_vcpu_mmap_size),
    CALL_ARRAY(KVM_GET_SUPPORTED_CPUID, SCRIPTED, get_supported_cpuid),
    CALL_ARRAY(KVM_GET_EMULATED_CPUID, SCRIPTED, get_emulated_cpuid),
    CALL_ARRAY(KVM_GET_MSR_INDEX_LIST, SCRIPTED, get_msr_index_list),
    CALL_ARRAY(KVM_GET_MSR_FEATURE_INDEX_LIST, SCRIPTED,
               get_msr_feature_index_list),
    CALL_ARRAY(KVM_GET_MSRS, SCRIPTED, get_feature_msrs),
    CALL(KVM_X86_GET_MCE_CAP_SUPPORTED, SCRIPTED, get_mce_cap),
    CALL(KVM_HAS_DEVICE_ATTR, BOTH, system_has_attr),
    CALL(KVM_GET_DEVICE_ATTR, BOTH, system_get_attr),
    {}
};

/* --- a VM --- */

SimVm *sim_vm_ref(SimVm *vm)
{
    __atomic_fetch_add(&vm->refs, 1, __ATOMIC_RELAXED);
    return vm;
}

void sim_vm_unref(SimVm *vm)
{
    if (__atomic_sub_fetch(&vm->refs, 1, __ATOMIC_ACQ_REL)) {
        return;
    }
    sim_tdx_free(vm);
    if (sim_config.kvm) {
        sim_real_free_vm(vm);
    }
    g_ptr_array_free(vm->slots, TRUE);
    g_ptr_array_free(vm->gmems, TRUE);
    g_ptr_array_free(vm->vcpus, TRUE);
    g_array_free(vm->ioeventfds, TRUE);
    g_hash_table_destroy(vm->kept);
    sim_bitmap_free(&vm->private);
    if (vm->mrtd) {
        g_checksum_free(vm->mrtd);
    }
    pthread_mutex_destroy(&vm->lock);
    g_free(vm);
    sim_count(SIM_VMS_ALIVE, -1);
}

static int vm_check_extension(void *object, void *arg)
{
    return check_extension(object, arg);
}

static int create_vcpu(void *object, void *arg)
{
    SimVm *vm = object;
    uintptr_t id = (uintptr_t)arg;
    bool there = false;
    guint i;

    if (id >= MAX_VCPUS) {
        return -EINVAL;
    }
    if (vm->type == KVM_X86_TDX_VM && vm->launch == SIM_LAUNCH_NONE) {
        return sim_refuse(EIO, "KVM_CREATE_VCPU before KVM_TDX_INIT_VM");
    }
    if (vm->type == KVM_X86_SNP_VM && vm->launch == SIM_LAUNCH_FINISHED) {
        return -EINVAL;                 /* it would not be measured */
    }
    pthread_mutex_lock(&vm->lock);
    for (i = 0; i < vm->vcpus->len; i++) {
        there |= ((SimVcpu *)g_ptr_array_index(vm->vcpus, i))->id == (int)id;
    }
    pthread_mutex_unlock(&vm->lock);
    return there ? -EEXIST : sim_vcpu_create(vm, id);
}

static int set_region2(void *object, void *arg)
{
    const struct kvm_userspace_memory_region2 *r = arg;

    sim_detail("\"vm\": %" PRIu64 ", \"slot\": %u, \"flags\": %u, \"gpa\": %"
               PRIu64 ", \"size\": %" PRIu64 ", \"offset\": %" PRIu64,
               ((SimVm *)object)->number, r->slot, r->flags,
               (uint64_t)r->guest_phys_addr, (uint64_t)r->memory_size,
               r->flags & KVM_MEM_GUEST_MEMFD
               ? (uint64_t)r->guest_memfd_offset : 0);
    return sim_set_region(object, r);
}

static int set_region1(void *object, void *arg)
{
    const struct kvm_userspace_memory_region *old = arg;
    struct kvm_userspace_memory_region2 r = {
        .slot = old->slot,
        .flags = old->flags,
        .guest_phys_addr = old->guest_phys_addr,
        .memory_size = old->memory_size,
        .userspace_addr = old->userspace_addr,
    };

    if (r.flags & ~(KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY)) {
        return sim_refuse(EINVAL, "KVM_SET_USER_MEMORY_REGION: flags 0x%x",
                          r.flags);
    }
    return set_region2(object, &r);
}

static int create_guest_memfd(void *object, void *arg)
{
    struct kvm_create_guest_memfd *args = arg;

    sim_detail("\"size\": %" PRIu64 ", \"flags\": %" PRIu64 ", \"vm\": %"
               PRIu64, (uint64_t)args->size, (uint64_t)args->flags,
               ((SimVm *)object)->number);
    return sim_gmem_create(object, args);
}

static int set_attributes(void *object, void *arg)
{
    struct kvm_memory_attributes *args = arg;

    sim_detail("\"gpa\": %" PRIu64 ", \"size\": %" PRIu64
               ", \"attributes\": %" PRIu64, (uint64_t)args->address,
               (uint64_t)args->size, (uint64_t)args->attributes);
    return sim_vm_set_attributes(object, args);
}

static int not_of_a_vm(void *object, void *arg)
{
    return sim_refuse(ENOTTY, "KVM_SET_MEMORY_ATTRIBUTES2 on a VM");
}

static int vm_encrypt_op(void *object, void *arg)
{
    SimVm *vm = object;
    int ret;

    switch (vm->type) {
    case KVM_X86_SNP_VM:
        ret = sim_sev_vm_op(vm, arg);
        break;
    case KVM_X86_TDX_VM:
        ret = sim_tdx_vm_op(vm, arg);
        break;
    default:
        return -ENOTTY;
    }
    sim_vm_sample_launch(vm);
    return ret;
}

static int vm_enable_cap(void *object, void *arg)
{
    const struct kvm_enable_cap *cap = arg;
    SimVm *vm = object;

    sim_detail("\"cap\": %u", cap->cap);
    switch (cap->cap) {
    case KVM_CAP_EXIT_HYPERCALL:
        if (cap->args[0] & ~(1ULL << KVM_HC_MAP_GPA_RANGE)) {
            return sim_refuse(EINVAL, "KVM_CAP_EXIT_HYPERCALL: 0x%" PRIx64,
                              (uint64_t)cap->args[0]);
        }
        vm->hypercalls = cap->args[0];
        /* Without this exit, guests use a port instead, see real.c. */
        if (sim_config.kvm) {
            sim_real_ioctl(vm->real, KVM_ENABLE_CAP, arg);
        }
        return 0;
    case KVM_CAP_X86_APIC_BUS_CYCLES_NS:
        if (vm->vcpus->len) {
            return -EINVAL;
        }
        return sim_config.kvm ? SIM_PASS : 0;
    }
    if (sim_config.kvm) {
        return SIM_PASS;
    }
    switch (cap->cap) {
    case KVM_CAP_SPLIT_IRQCHIP:
        vm->irqchip = true;
        return 0;
    case KVM_CAP_X2APIC_API:
    case KVM_CAP_EXCEPTION_PAYLOAD:
    case KVM_CAP_X86_TRIPLE_FAULT_EVENT:
    case KVM_CAP_X86_USER_SPACE_MSR:
    case KVM_CAP_MAX_VCPU_ID:
        return 0;
    }
    sim_unmodelled("KVM_ENABLE_CAP of capability %u", cap->cap);
}

static int create_irqchip(void *object, void *arg)
{
    SimVm *vm = object;

    if (vm->irqchip) {
        return -EEXIST;
    }
    vm->irqchip = true;
    return 0;
}

static int accept(void *object, void *arg)
{
    return 0;
}

static int ioeventfd(void *object, void *arg)
{
    const struct kvm_ioeventfd *e = arg;
    SimVm *vm = object;
    int ret = 0;
    guint i;

    pthread_mutex_lock(&vm->lock);
    if (!(e->flags & KVM_IOEVENTFD_FLAG_DEASSIGN)) {
        g_array_append_val(vm->ioeventfds, *e);
    } else {
        ret = -ENOENT;
        for (i = 0; i < vm->ioeventfds->len; i++) {
            struct kvm_ioeventfd *have =
                &g_array_index(vm->ioeventfds, struct kvm_ioeventfd, i);

            if (have->addr == e->addr && have->len == e->len &&
                have->fd == e->fd && have->datamatch == e->datamatch) {
                g_array_remove_index_fast(vm->ioeventfds, i);
                ret = 0;
                break;
            }
        }
    }
    pthread_mutex_unlock(&vm->lock);
    return ret;
}

bool sim_ioeventfd_signal(SimVm *vm, bool port, uint64_t addr, uint32_t len,
                          uint64_t value)
{
    bool found = false;
    guint i;

    pthread_mutex_lock(&vm->lock);
    for (i = 0; !found && i < vm->ioeventfds->len; i++) {
        struct kvm_ioeventfd *e =
            &g_array_index(vm->ioeventfds, struct kvm_ioeventfd, i);

        found = e->addr == addr && (!e->len || e->len == len) &&
                !(e->flags & KVM_IOEVENTFD_FLAG_PIO) == !port &&
                (!(e->flags & KVM_IOEVENTFD_FLAG_DATAMATCH) ||
                 e->datamatch == value);
        if (found) {
            eventfd_write(e->fd, 1);
        }
    }
    pthread_mutex_unlock(&vm->lock);
    return found;
}

static int get_dirty_log(void *object, void *arg)
{
    return sim_get_dirty_log(object, arg);
}

static int irq_line_status(void *object, void *arg)
{
    ((struct kvm_irq_level *)arg)->status = 1;
    return 0;
}

/* There are none: KVM_CAP_BINARY_STATS_FD is 0. */
static int get_stats_fd(void *object, void *arg)
{
    return -ENOTTY;
}

static int signal_msi(void *object, void *arg)
{
    return 1;                           /* delivered */
}

static int get_tsc_khz(void *object, void *arg)
{
    return SIM_TSC_KHZ;
}

/* In a TDX guest, it is the TDX module's and not the real KVM's. */
static int set_tsc_khz(void *object, void *arg)
{
    SimVm *vm = object;

    return sim_config.kvm && vm->type != KVM_X86_TDX_VM ? SIM_PASS : 0;
}

/* A device that only assigned devices need */
static int create_device(void *object, void *arg)
{
    sim_unmodelled("KVM_CREATE_DEVICE of type %u",
                   ((struct kvm_create_device *)arg)->type);
}

static const SimCall vm_calls[] = {
    CALL(KVM_CHECK_EXTENSION, BOTH, vm_check_extension),
    CALL(KVM_CREATE_VCPU, BOTH, create_vcpu),
    CALL(KVM_SET_USER_MEMORY_REGION, BOTH, set_region1),
    CALL(KVM_SET_USER_MEMORY_REGION2, BOTH, set_region2),
    CALL(KVM_CREATE_GUEST_MEMFD, BOTH, create_guest_memfd),
    CALL(KVM_SET_MEMORY_ATTRIBUTES, BOTH, set_attributes),
    { (uint32_t)GMEM_SET_MEMORY_ATTRIBUTES2, "KVM_SET_MEMORY_ATTRIBUTES2",
      BOTH, not_of_a_vm },
    CALL_ARRAY(KVM_MEMORY_ENCRYPT_OP, BOTH, vm_encrypt_op),
    CALL(KVM_ENABLE_CAP, BOTH, vm_enable_cap),
    CALL(KVM_GET_DIRTY_LOG, SCRIPTED, get_dirty_log),
    CALL(KVM_SET_TSS_ADDR, SCRIPTED, accept),
    CALL(KVM_SET_IDENTITY_MAP_ADDR, SCRIPTED, accept),
    CALL(KVM_SET_BOOT_CPU_ID, SCRIPTED, accept),
    CALL(KVM_CREATE_IRQCHIP, SCRIPTED, create_irqchip),
    CALL(KVM_CREATE_PIT2, SCRIPTED, accept),
    CALL_ARRAY(KVM_SET_GSI_ROUTING, SCRIPTED, accept),
    CALL(KVM_IRQFD, SCRIPTED, accept),
    CALL(KVM_IOEVENTFD, SCRIPTED, ioeventfd),
    CALL(KVM_IRQ_LINE, SCRIPTED, accept),
    CALL(KVM_IRQ_LINE_STATUS, SCRIPTED, irq_line_status),
    CALL(KVM_SIGNAL_MSI, SCRIPTED, signal_msi),
    CALL(KVM_REGISTER_COALESCED_MMIO, SCRIPTED, accept),
    CALL(KVM_UNREGISTER_COALESCED_MMIO, SCRIPTED, accept),
    CALL(KVM_X86_SET_MSR_FILTER, SCRIPTED, accept),
    CALL(KVM_SET_TSC_KHZ, BOTH, set_tsc_khz),
    CALL(KVM_GET_TSC_KHZ, SCRIPTED, get_tsc_khz),
    CALL(KVM_GET_STATS_FD, SCRIPTED, get_stats_fd),
    CALL(KVM_CREATE_DEVICE, SCRIPTED, create_device),
    {}
};

/* --- a guest_memfd --- */

static int convert(void *object, void *arg)
{
    struct gmem_memory_attributes2 *args = arg;
    SimGmem *gmem = object;
    int ret = sim_gmem_convert(gmem, args);

    sim_detail("\"file\": %" PRIu64 ", \"offset\": %" PRIu64 ", \"size\": %"
               PRIu64 ", \"attributes\": %" PRIu64 ", \"error-offset\": %"
               PRIu64, gmem->number, args->offset, args->size,
               args->attributes, args->error_offset);
    return ret;
}

static const SimCall gmem_calls[] = {
    { (uint32_t)GMEM_SET_MEMORY_ATTRIBUTES2, "KVM_SET_MEMORY_ATTRIBUTES2",
      BOTH, convert },
    {}
};

/* --- dispatch --- */

static __thread char detail[512];

void sim_detail(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(detail, sizeof(detail), format, args);
    va_end(args);
}

/* SET_* and GET_* of state that is only kept. */
static int keep(SimKind kind, void *object, const SimKept *kept, bool set,
                void *arg)
{
    SimVm *vm = object;
    SimVcpu *vcpu = object;
    pthread_mutex_t *lock = kind == SIM_VM ? &vm->lock : &vcpu->lock;
    int ret;

    pthread_mutex_lock(lock);
    ret = sim_kept_access(kind == SIM_VM ? vm->kept : vcpu->kept, kept, set,
                          arg);
    pthread_mutex_unlock(lock);
    return ret;
}

static const SimCall *find(SimKind kind, unsigned long request)
{
    static const SimCall *const tables[] = {
        [SIM_SYSTEM] = system_calls,
        [SIM_VM] = vm_calls,
        [SIM_GMEM] = gmem_calls,
    };
    const SimCall *call = kind < G_N_ELEMENTS(tables) ? tables[kind] : NULL;

    for (; call && call->request; call++) {
        if (call->request == request) {
            return call;
        }
    }
    return NULL;
}

static const char *const kind_names[] = {
    [SIM_SYSTEM] = "/dev/kvm",
    [SIM_VM] = "VM",
    [SIM_VCPU] = "vCPU",
    [SIM_GMEM] = "guest_memfd",
    [SIM_SEV] = "/dev/sev",
};

/* The argument is copied, as a kernel does: it may be anywhere. */
static int answer(const SimCall *call, void *object, void *arg)
{
    uint64_t copy[64];
    size_t size = _IOC_SIZE(call->request);
    int ret;

    if (!size || call->uncopied) {
        return call->fn(object, arg);
    }
    g_assert(size <= sizeof(copy));
    if (_IOC_DIR(call->request) & _IOC_WRITE &&
        sim_copy_from_user(copy, arg, size)) {
        return -EFAULT;
    }
    ret = call->fn(object, copy);
    if (_IOC_DIR(call->request) & _IOC_READ && ret != SIM_PASS &&
        sim_copy_to_user(arg, copy, size)) {
        return -EFAULT;
    }
    return ret;
}

int sim_ioctl(SimKind kind, void *object, int fd, unsigned long request,
              void *arg)
{
    const SimCall *call;
    const SimKept *kept;
    bool set;
    int ret;

    detail[0] = '\0';
    if (kind == SIM_SEV) {
        return sim_sev_device_ioctl(request, arg);
    }
    if (kind == SIM_VCPU) {
        ret = sim_vcpu_ioctl(object, fd, request, arg);
        if (ret != SIM_PASS) {
            return ret;
        }
        if (sim_config.kvm) {
            return sim_real_ioctl(fd, request, arg);
        }
    }

    call = find(kind, request);
    if (call && (call->where == BOTH || !sim_config.kvm)) {
        ret = sim_fault_ioctl(call->name) ?: answer(call, object, arg);
        if (ret == SIM_PASS) {
            ret = sim_real_ioctl(fd, request, arg);
        }
        sim_log(call->name, ret, detail[0] ? "%s" : NULL, detail);
        return ret;
    }
    if (kind == SIM_GMEM) {
        return -ENOTTY;
    }
    if (sim_config.kvm) {
        return sim_real_ioctl(fd, request, arg);
    }
    kept = sim_kept_find(kind, request, &set);
    if (kept) {
        ret = keep(kind, object, kept, set, arg);
        sim_log(set ? kept->set_name : kept->get_name, ret, NULL);
        return ret;
    }
    sim_unmodelled("%s (ioctl 0x%lx) on a %s", ioctl_names[_IOC_NR(request)]
                   ?: "an unknown call", request, kind_names[kind]);
}

/* --- /dev/sev --- */

int sim_open_sev(int flags)
{
    int fd = memfd_create("simkvm-sev", flags & O_CLOEXEC ? MFD_CLOEXEC : 0);

    return fd < 0 ? -errno : sim_file_add(fd, SIM_SEV, NULL, nothing);
}
