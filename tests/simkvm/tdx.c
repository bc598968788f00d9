/*
 * simkvm: TDX: KVM_MEMORY_ENCRYPT_OP of a TDX VM and of its vCPUs
 *
 * The order is KVM_TDX_INIT_VM, then the vCPUs are created, and each has
 * KVM_TDX_INIT_VCPU; any number of KVM_TDX_INIT_MEM_REGION by a vCPU that
 * has; KVM_TDX_FINALIZE_VM.
 *
 * Faults: TDX_CAPABILITIES, TDX_INIT_VM, TDX_INIT_VCPU, TDX_INIT_MEM_REGION,
 * TDX_FINALIZE_VM, TDX_GET_CPUID fail a call before it does anything;
 * TDX_INIT_MEM_REGION_PAGE ends it at a page.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "simkvm.h"

#define INDEXED KVM_CPUID_FLAG_SIGNIFCANT_INDEX

#define ATTR_SEPT_VE_DISABLE (1ULL << 28)
#define SUPPORTED_ATTRS ATTR_SEPT_VE_DISABLE
#define XFAM_YMM (1ULL << 2)
#define XFAM_FIXED 3ULL                 /* x87, SSE */
#define SUPPORTED_XFAM (XFAM_FIXED | XFAM_YMM)
#define MAX_CPUID_ENTRIES 256           /* in one call */
#define TDVMCALL_EVENT_NOTIFY (1ULL << 1)

#define CPUID_1_ECX_FMA (1u << 12)
#define CPUID_1_ECX_X2APIC (1u << 21)
#define CPUID_7_EBX_AVX2 (1u << 5)

typedef struct Tdx {
    struct kvm_cpuid2 *cpuid;           /* as KVM_TDX_INIT_VM had it */
    uint64_t xfam;
    uint64_t shared_bit;                /* of a guest physical address */
} Tdx;

/* The bits that KVM_TDX_INIT_VM can choose. */
static const struct kvm_cpuid_entry2 configurable[] = {
    { .function = 1, .eax = 0x0fff3fff, .ebx = 0x00ff0000,
      .ecx = 0x31044d08, .edx = 0xb8400000 },
    { .function = 4, .index = 0, .flags = INDEXED, .eax = 0xffffffff,
      .ebx = 0xffffffff, .ecx = 0xffffffff, .edx = 0x7 },
    { .function = 4, .index = 3, .flags = INDEXED, .eax = 0xffffffff,
      .ebx = 0xffffffff, .ecx = 0xffffffff, .edx = 0x7 },
    { .function = 7, .index = 0, .flags = INDEXED, .ebx = 0xd02b9b18,
      .ecx = 0x03020fa4, .edx = 0x03814010 },
    { .function = 0x1f, .index = 0, .flags = INDEXED, .eax = 0x1f,
      .ebx = 0xffff, .ecx = 0xffff, .edx = 0xffffffff },
    { .function = 0x1f, .index = 1, .flags = INDEXED, .eax = 0x1f,
      .ebx = 0xffff, .ecx = 0xffff, .edx = 0xffffffff },
    { .function = 0x80000007, .edx = 0x100 },
    { .function = 0x80000008, .eax = 0x00ff0000, .ebx = 0x200 },
};

/* The bits that every TDX guest has. */
static const struct kvm_cpuid_entry2 fixed[] = {
    { .function = 1, .ecx = 0xc6faa217, .edx = 0x07a9fbff },
    { .function = 6, .eax = 0x4 },
    { .function = 7, .index = 0, .flags = INDEXED, .ebx = 0x219424c1,
      .ecx = 0x19000000, .edx = 0xfc000400 },
    { .function = 0xd, .index = 0, .flags = INDEXED, .eax = XFAM_FIXED },
    { .function = 0xd, .index = 1, .flags = INDEXED, .eax = 0xf },
    { .function = 0x80000001, .ecx = 0x00000121, .edx = 0x2c100800 },
    { .function = 0x80000007, .edx = 0x100 },
};

/* Returns a pointer into @entries, non-const like that of strchr(). */
static struct kvm_cpuid_entry2 *
find_entry(const struct kvm_cpuid_entry2 *entries, uint32_t n,
           uint32_t function, uint32_t index)
{
    uint32_t i;

    for (i = 0; i < n; i++) {
        if (entries[i].function == function && entries[i].index == index) {
            return (struct kvm_cpuid_entry2 *)&entries[i];
        }
    }
    return NULL;
}

static void report_launch(SimVm *vm)
{
    char hex[2 * SIM_DIGEST + 1];
    g_autofree char *json = NULL;

    sim_digest_hex(vm->digest, hex);
    json = g_strdup_printf("{\"type\": \"tdx\", \"finished\": %s, \"digest\": "
                           "\"%s\", \"pages\": %" PRIu64 ", "
                           "\"measured-pages\": %" PRIu64 "}",
                           vm->launch == SIM_LAUNCH_FINISHED ? "true"
                           : "false", hex, vm->launch_pages,
                           vm->measured_pages);
    sim_report_launch(vm->number, json);
}

/* --- a VM --- */

static int capabilities(SimVm *vm, SimVcpu *vcpu, struct kvm_tdx_cmd *cmd,
                        GString *json)
{
    struct kvm_tdx_capabilities *user = (void *)(uintptr_t)cmd->data;
    struct kvm_tdx_capabilities caps = {
        .supported_attrs = SUPPORTED_ATTRS,
        .supported_xfam = SUPPORTED_XFAM,
        .user_tdvmcallinfo_1_r11 = TDVMCALL_EVENT_NOTIFY,
        .cpuid.nent = G_N_ELEMENTS(configurable),
    };
    uint32_t room;

    if (cmd->flags) {
        return sim_refuse(EINVAL, "KVM_TDX_CAPABILITIES: flags 0x%x",
                          cmd->flags);
    }
    if (sim_copy_from_user(&room, &user->cpuid.nent, sizeof(room))) {
        return sim_refuse(EFAULT, "KVM_TDX_CAPABILITIES: no struct "
                          "kvm_tdx_capabilities");
    }
    /* The emulator has to find out the number of entries by trying. */
    if (room < G_N_ELEMENTS(configurable)) {
        return -E2BIG;
    }
    return sim_copy_to_user(user, &caps, sizeof(caps)) ?:
           sim_copy_to_user(user->cpuid.entries, configurable,
                            sizeof(configurable));
}

/* Every entry is one that can be configured, in bits that can be. */
static int check_cpuid(const struct kvm_cpuid2 *cpuid)
{
    uint32_t i;

    for (i = 0; i < cpuid->nent; i++) {
        const struct kvm_cpuid_entry2 *e = &cpuid->entries[i];
        const struct kvm_cpuid_entry2 *c =
            find_entry(configurable, G_N_ELEMENTS(configurable), e->function,
                       e->index);

        if (!c || e->eax & ~c->eax || e->ebx & ~c->ebx || e->ecx & ~c->ecx ||
            e->edx & ~c->edx) {
            return sim_refuse(EINVAL, "KVM_TDX_INIT_VM: CPUID 0x%x.0x%x is "
                              "not to be configured so", e->function,
                              e->index);
        }
    }
    return 0;
}

/* Returns the emulator's list, or NULL and *ret. */
static struct kvm_cpuid2 *read_cpuid(const struct kvm_cpuid2 *user,
                                     uint32_t n, int *ret)
{
    size_t size = sizeof(*user) + n * sizeof(*user->entries);
    struct kvm_cpuid2 *cpuid;

    if (n > MAX_CPUID_ENTRIES) {
        *ret = sim_refuse(E2BIG, "KVM_TDX_INIT_VM: %u CPUID entries", n);
        return NULL;
    }
    cpuid = g_malloc0(size);
    *ret = sim_copy_from_user(cpuid, user, size);
    cpuid->nent = n;
    if (!*ret && cpuid->padding) {
        *ret = sim_refuse(EINVAL, "KVM_TDX_INIT_VM: padding is not zero");
    }
    if (!*ret) {
        *ret = check_cpuid(cpuid);
    }
    if (*ret) {
        g_clear_pointer(&cpuid, g_free);
    }
    return cpuid;
}

static int init_vm(SimVm *vm, SimVcpu *vcpu, struct kvm_tdx_cmd *cmd,
                   GString *json)
{
    struct kvm_tdx_init_vm *user = (void *)(uintptr_t)cmd->data;
    const struct kvm_cpuid_entry2 *width;
    struct kvm_tdx_init_vm args;
    struct kvm_cpuid2 *cpuid;
    uint32_t bits;
    size_t i;
    Tdx *tdx;
    int ret;

    if (vm->launch != SIM_LAUNCH_NONE || cmd->flags) {
        return sim_refuse(EINVAL, "KVM_TDX_INIT_VM: done before, or flags "
                          "0x%x", cmd->flags);
    }
    if (sim_copy_from_user(&args, user, sizeof(args))) {
        return sim_refuse(EFAULT, "KVM_TDX_INIT_VM: no struct "
                          "kvm_tdx_init_vm");
    }
    for (i = 0; i < G_N_ELEMENTS(args.reserved); i++) {
        if (args.reserved[i]) {
            return sim_refuse(EINVAL, "KVM_TDX_INIT_VM: reserved[%zu] is "
                              "not zero", i);
        }
    }
    if (args.attributes & ~SUPPORTED_ATTRS || args.xfam & ~SUPPORTED_XFAM ||
        (args.xfam & XFAM_FIXED) != XFAM_FIXED) {
        return sim_refuse(EINVAL, "KVM_TDX_INIT_VM: attributes 0x%" PRIx64
                          ", XFAM 0x%" PRIx64, (uint64_t)args.attributes,
                          (uint64_t)args.xfam);
    }
    cpuid = read_cpuid(&user->cpuid, args.cpuid.nent, &ret);
    if (!cpuid) {
        return ret;
    }
    width = find_entry(cpuid->entries, cpuid->nent, 0x80000008, 0);
    bits = width ? width->eax >> 16 & 0xff : 0;
    if (bits != 48 && bits != 52) {
        g_free(cpuid);
        return sim_refuse(EINVAL, "KVM_TDX_INIT_VM: %u guest physical "
                          "address bits", bits);
    }
    tdx = vm->tdx = g_new0(Tdx, 1);
    tdx->cpuid = cpuid;
    tdx->xfam = args.xfam;
    tdx->shared_bit = 1ULL << (bits - 1);
    vm->mrtd = g_checksum_new(G_CHECKSUM_SHA384);
    sim_measure_tdx_digest(vm->mrtd, vm->digest);
    vm->launch = SIM_LAUNCH_STARTED;
    report_launch(vm);
    g_string_printf(json, "\"attributes\": %" PRIu64 ", \"xfam\": %" PRIu64
                    ", \"cpuid-entries\": %u", (uint64_t)args.attributes,
                    (uint64_t)args.xfam, cpuid->nent);
    sim_json_hex(json, "mrconfigid", args.mrconfigid, sizeof(args.mrconfigid));
    sim_json_hex(json, "mrowner", args.mrowner, sizeof(args.mrowner));
    sim_json_hex(json, "mrownerconfig", args.mrownerconfig,
                 sizeof(args.mrownerconfig));
    return 0;
}

static int finalize_vm(SimVm *vm, SimVcpu *vcpu, struct kvm_tdx_cmd *cmd,
                       GString *json)
{
    char hex[2 * SIM_DIGEST + 1];
    guint i;

    if (vm->launch != SIM_LAUNCH_STARTED || cmd->flags) {
        return sim_refuse(EINVAL, "KVM_TDX_FINALIZE_VM: flags 0x%x, or before "
                          "KVM_TDX_INIT_VM, or done before", cmd->flags);
    }
    /* KVM does not mind, but from now on it cannot be done any more. */
    for (i = 0; sim_config.strict && i < vm->vcpus->len; i++) {
        SimVcpu *each = g_ptr_array_index(vm->vcpus, i);

        if (!each->tdx_initialized) {
            sim_violation("KVM_TDX_FINALIZE_VM: vCPU %d had no "
                          "KVM_TDX_INIT_VCPU", each->id);
        }
    }
    sim_vm_launch_finished(vm);
    report_launch(vm);
    sim_digest_hex(vm->digest, hex);
    g_string_printf(json, "\"measured\": \"%s\"", hex);
    return 0;
}

void sim_tdx_free(SimVm *vm)
{
    Tdx *tdx = vm->tdx;

    if (tdx) {
        g_free(tdx->cpuid);
        g_free(tdx);
    }
}

/* --- a vCPU --- */

/* vCPUs have commands until the launch is finished. */
static int check_vcpu_op(SimVm *vm, const char *name)
{
    if (vm->launch != SIM_LAUNCH_STARTED) {
        return sim_refuse(EINVAL, "%s before KVM_TDX_INIT_VM, or after "
                          "KVM_TDX_FINALIZE_VM", name);
    }
    return 0;
}

/* In kvm mode, the real KVM has what was set. */
static bool has_x2apic(SimVcpu *vcpu)
{
    const struct kvm_cpuid_entry2 *e;
    bool has = sim_config.kvm;

    pthread_mutex_lock(&vcpu->lock);
    if (vcpu->cpuid) {
        e = find_entry(vcpu->cpuid->entries, vcpu->cpuid->nent, 1, 0);
        has = e && e->ecx & CPUID_1_ECX_X2APIC;
    }
    pthread_mutex_unlock(&vcpu->lock);
    return has;
}

static int init_vcpu(SimVm *vm, SimVcpu *vcpu, struct kvm_tdx_cmd *cmd,
                     GString *json)
{
    int ret = check_vcpu_op(vm, "KVM_TDX_INIT_VCPU");

    if (ret) {
        return ret;
    }
    if (cmd->flags || vcpu->tdx_initialized) {
        return sim_refuse(EINVAL, "KVM_TDX_INIT_VCPU of vCPU %d: flags 0x%x, "
                          "or done before", vcpu->id, cmd->flags);
    }
    if (!has_x2apic(vcpu)) {
        return sim_refuse(EINVAL, "KVM_TDX_INIT_VCPU of vCPU %d: no X2APIC in "
                          "its CPUID", vcpu->id);
    }
    vcpu->tdx_initialized = true;
    g_string_printf(json, "\"vcpu\": %d, \"rcx\": %" PRIu64, vcpu->id,
                    (uint64_t)cmd->data);
    return 0;
}

typedef struct Region {
    SimVm *vm;
    bool measure;
} Region;

/* TDH.MEM.PAGE.ADD, TDH.MR.EXTEND */
static int take_page(void *opaque, uint64_t gpa, uint8_t *page)
{
    Region *region = opaque;

    sim_measure_tdx_add(region->vm->mrtd, gpa);
    if (region->measure) {
        sim_measure_tdx_extend(region->vm->mrtd, gpa, page);
        region->vm->measured_pages++;
    }
    return 0;
}

static int check_region(const Tdx *tdx,
                        const struct kvm_tdx_init_mem_region *r)
{
    uint64_t last = r->gpa + (r->nr_pages << SIM_PAGE_SHIFT) - 1;

    if (r->source_addr % SIM_PAGE || r->gpa % SIM_PAGE || !r->nr_pages ||
        last < r->gpa || r->gpa & tdx->shared_bit || last & tdx->shared_bit) {
        return sim_refuse(EINVAL, "KVM_TDX_INIT_MEM_REGION: %" PRIu64
                          " pages at gpa 0x%" PRIx64 ", source 0x%" PRIx64,
                          (uint64_t)r->nr_pages, (uint64_t)r->gpa,
                          (uint64_t)r->source_addr);
    }
    if (!r->source_addr && !sim_in_place()) {
        return sim_refuse(sim_config.generation == SIM_G0 ? EINVAL
                          : EOPNOTSUPP,
                          "KVM_TDX_INIT_MEM_REGION without a source");
    }
    return 0;
}

static int init_mem_region(SimVm *vm, SimVcpu *vcpu, struct kvm_tdx_cmd *cmd,
                           GString *json)
{
    bool measure = cmd->flags & KVM_TDX_MEASURE_MEMORY_REGION;
    Region region = { vm, measure };
    void *data = (void *)(uintptr_t)cmd->data;
    struct kvm_tdx_init_mem_region args;
    char hex[2 * SIM_DIGEST + 1];
    uint64_t pages = 0;
    bool source;
    int ret = check_vcpu_op(vm, "KVM_TDX_INIT_MEM_REGION");

    if (ret) {
        return ret;
    }
    if (!vcpu->tdx_initialized ||
        cmd->flags & ~KVM_TDX_MEASURE_MEMORY_REGION) {
        return sim_refuse(EINVAL, "KVM_TDX_INIT_MEM_REGION: flags 0x%x, or "
                          "vCPU %d had no KVM_TDX_INIT_VCPU", cmd->flags,
                          vcpu->id);
    }
    if (sim_copy_from_user(&args, data, sizeof(args))) {
        return sim_refuse(EFAULT, "KVM_TDX_INIT_MEM_REGION: no struct "
                          "kvm_tdx_init_mem_region");
    }
    ret = check_region(vm->tdx, &args);
    if (ret) {
        return ret;
    }
    source = args.source_addr;

    while (args.nr_pages) {
        ret = sim_fault("TDX_INIT_MEM_REGION_PAGE", NULL);
        if (ret) {
            break;
        }
        ret = sim_populate(vm, args.gpa, (void *)(uintptr_t)args.source_addr,
                           take_page, &region);
        if (ret) {
            break;
        }
        pages++;
        args.gpa += SIM_PAGE;
        args.nr_pages--;
        if (source) {
            args.source_addr += SIM_PAGE;
        }
    }
    vm->launch_pages += pages;
    sim_count(SIM_POPULATED, pages);
    sim_measure_tdx_digest(vm->mrtd, vm->digest);
    report_launch(vm);
    sim_digest_hex(vm->digest, hex);
    g_string_printf(json, "\"vcpu\": %d, \"gpa\": %" PRIu64 ", \"pages\": %"
                    PRIu64 ", \"left\": %" PRIu64 ", \"measure\": %s, "
                    "\"source\": %s, \"measured\": \"%s\"", vcpu->id,
                    (uint64_t)args.gpa - (pages << SIM_PAGE_SHIFT), pages,
                    (uint64_t)args.nr_pages, measure ? "true" : "false",
                    source ? "true" : "false", hex);
    return sim_copy_to_user(data, &args, sizeof(args)) ?: ret;
}

/* The guest's CPUID: that of KVM_TDX_INIT_VM, with the fixed bits */
static struct kvm_cpuid2 *guest_cpuid(const Tdx *tdx)
{
    uint32_t n = tdx->cpuid->nent;
    struct kvm_cpuid2 *cpuid =
        g_malloc0(sizeof(*cpuid) +
                  (n + G_N_ELEMENTS(fixed)) * sizeof(*cpuid->entries));
    size_t i;

    cpuid->nent = n;
    memcpy(cpuid->entries, tdx->cpuid->entries, n * sizeof(*cpuid->entries));
    for (i = 0; i < G_N_ELEMENTS(fixed); i++) {
        const struct kvm_cpuid_entry2 *f = &fixed[i];
        struct kvm_cpuid_entry2 *e =
            find_entry(cpuid->entries, cpuid->nent, f->function, f->index);

        if (!e) {
            e = &cpuid->entries[cpuid->nent++];
            *e = (struct kvm_cpuid_entry2) {
                .function = f->function,
                .index = f->index,
                .flags = f->flags,
            };
        }
        e->eax |= f->eax;
        e->ebx |= f->ebx;
        e->ecx |= f->ecx;
        e->edx |= f->edx;
        if (tdx->xfam & XFAM_YMM) {
            if (f->function == 1) {
                e->ecx |= CPUID_1_ECX_FMA;
            } else if (f->function == 7) {
                e->ebx |= CPUID_7_EBX_AVX2;
            } else if (f->function == 0xd && f->index == 0) {
                e->eax |= XFAM_YMM;
            }
        }
    }
    return cpuid;
}

static int get_cpuid(SimVm *vm, SimVcpu *vcpu, struct kvm_tdx_cmd *cmd,
                     GString *json)
{
    struct kvm_cpuid2 *user = (void *)(uintptr_t)cmd->data;
    g_autofree struct kvm_cpuid2 *cpuid = NULL;
    uint32_t room;
    int ret = check_vcpu_op(vm, "KVM_TDX_GET_CPUID");

    if (ret) {
        return ret;
    }
    if (cmd->flags) {
        return sim_refuse(EINVAL, "KVM_TDX_GET_CPUID: flags 0x%x",
                          cmd->flags);
    }
    if (sim_copy_from_user(&room, &user->nent, sizeof(room))) {
        return sim_refuse(EFAULT, "KVM_TDX_GET_CPUID: no struct kvm_cpuid2");
    }
    cpuid = guest_cpuid(vm->tdx);
    if (room < cpuid->nent) {
        return sim_copy_to_user(&user->nent, &cpuid->nent,
                                sizeof(cpuid->nent)) ?: -E2BIG;
    }
    return sim_copy_to_user(user, cpuid, sizeof(*cpuid) +
                            cpuid->nent * sizeof(*cpuid->entries));
}

/* --- KVM_MEMORY_ENCRYPT_OP --- */

typedef struct Op {
    uint32_t id;
    const char *name;
    int (*fn)(SimVm *vm, SimVcpu *vcpu, struct kvm_tdx_cmd *cmd,
              GString *json);
} Op;

static const Op vm_ops[] = {
    { KVM_TDX_CAPABILITIES, "TDX_CAPABILITIES", capabilities },
    { KVM_TDX_INIT_VM, "TDX_INIT_VM", init_vm },
    { KVM_TDX_FINALIZE_VM, "TDX_FINALIZE_VM", finalize_vm },
    {}
};

static const Op vcpu_ops[] = {
    { KVM_TDX_INIT_VCPU, "TDX_INIT_VCPU", init_vcpu },
    { KVM_TDX_INIT_MEM_REGION, "TDX_INIT_MEM_REGION", init_mem_region },
    { KVM_TDX_GET_CPUID, "TDX_GET_CPUID", get_cpuid },
    {}
};

static int run_op(const Op *op, SimVm *vm, SimVcpu *vcpu,
                  struct kvm_tdx_cmd *cmd)
{
    g_autoptr(GString) json = g_string_new(NULL);
    int ret;

    if (!cmd) {
        return sim_refuse(EFAULT, "KVM_MEMORY_ENCRYPT_OP without a struct "
                          "kvm_tdx_cmd");
    }
    while (op->name && op->id != cmd->id) {
        op++;
    }
    if (!op->name || cmd->hw_error) {
        return sim_refuse(EINVAL, "KVM_MEMORY_ENCRYPT_OP: command %u of a TDX "
                          "%s, hw_error 0x%" PRIx64, cmd->id,
                          vcpu ? "vCPU" : "VM", (uint64_t)cmd->hw_error);
    }
    ret = sim_fault(op->name, NULL);
    if (!ret) {
        pthread_mutex_lock(&vm->lock);
        ret = op->fn(vm, vcpu, cmd, json);
        pthread_mutex_unlock(&vm->lock);
    }
    sim_log(op->name, ret, json->len ? "%s" : NULL, json->str);
    return ret;
}

int sim_tdx_vm_op(SimVm *vm, struct kvm_tdx_cmd *cmd)
{
    return run_op(vm_ops, vm, NULL, cmd);
}

int sim_tdx_vcpu_op(SimVcpu *vcpu, struct kvm_tdx_cmd *cmd)
{
    return run_op(vcpu_ops, vcpu->vm, vcpu, cmd);
}
