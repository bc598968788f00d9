/*
 * simkvm: SEV-SNP: /dev/sev, and KVM_MEMORY_ENCRYPT_OP of an SNP VM
 *
 * The order is KVM_SEV_INIT2, SNP_LAUNCH_START, any number of
 * SNP_LAUNCH_UPDATE, SNP_LAUNCH_FINISH.  There are two digests: that of the
 * pages of LAUNCH_UPDATE, and the one after the VMSA of each vCPU, which KVM
 * adds when the launch is finished.
 *
 * Faults: SEV_INIT2, SNP_LAUNCH_START, SNP_LAUNCH_UPDATE, SNP_LAUNCH_FINISH
 * fail a call before it does anything; SNP_LAUNCH_UPDATE_PAGE ends it at a
 * page; SNP_CPUID_REJECT, with any errno, has the firmware reject the values
 * in a CPUID page.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <linux/psp-sev.h>
#include "simkvm.h"

#define FEATURE_SNP 1ULL                /* KVM sets it for SNP guests */
#define VMSA_DEBUG_SWAP (1ULL << 5)
#define VMSA_GPA 0xfffffffff000ULL
#define PAGE_TYPE_VMSA 2
#define GHCB_VERSION 2                  /* the newest; SNP needs it */

/* Bits of a guest's policy. */
#define POLICY_ABI_VERSION 0xffffULL
#define POLICY_SMT (1ULL << 16)
#define POLICY_MUST_BE_ONE (1ULL << 17)
#define POLICY_DEBUG (1ULL << 19)
#define POLICY_SINGLE_SOCKET (1ULL << 20)
#define POLICY_VALID (POLICY_ABI_VERSION | POLICY_SMT | POLICY_MUST_BE_ONE | \
                      POLICY_DEBUG | POLICY_SINGLE_SOCKET)

/* The firmware's layout of an ID block */
typedef struct IdBlock {
    uint8_t digest[SIM_DIGEST];
    uint8_t family[16], image[16];
    uint32_t version, guest_svn;
    uint64_t policy;
} IdBlock;

G_STATIC_ASSERT(sizeof(IdBlock) == KVM_SEV_SNP_ID_BLOCK_SIZE);

/* A CPUID page: a count, padding to 16 bytes, and entries of 48 bytes. */
#define CPUID_PAGE_FIRST_EAX (16 + 24)

/* --- /dev/sev --- */

uint64_t sim_sev_vmsa_features(void)
{
    return VMSA_DEBUG_SWAP;
}

static int platform_status(void *user)
{
    struct sev_user_data_status status = {
        .api_major = 1,
        .api_minor = 55,
        .state = 1,                     /* initialized */
        .flags = SEV_STATUS_FLAGS_CONFIG_ES,
        .build = 21,
    };

    return sim_copy_to_user(user, &status, sizeof(status));
}

static int snp_platform_status(void *user)
{
    struct sev_user_data_snp_status status = {
        .api_major = 1,
        .api_minor = 55,
        .state = 1,
        .is_rmp_initialized = 1,
        .build_id = 21,
    };

    return sim_copy_to_user(user, &status, sizeof(status));
}

static const char *const device_commands[SEV_MAX] = {
    [SEV_FACTORY_RESET] = "SEV_FACTORY_RESET",
    [SEV_PLATFORM_STATUS] = "SEV_PLATFORM_STATUS",
    [SEV_PEK_GEN] = "SEV_PEK_GEN",
    [SEV_PEK_CSR] = "SEV_PEK_CSR",
    [SEV_PDH_GEN] = "SEV_PDH_GEN",
    [SEV_PDH_CERT_EXPORT] = "SEV_PDH_CERT_EXPORT",
    [SEV_PEK_CERT_IMPORT] = "SEV_PEK_CERT_IMPORT",
    [SEV_GET_ID] = "SEV_GET_ID",
    [SEV_GET_ID2] = "SEV_GET_ID2",
    [SNP_PLATFORM_STATUS] = "SNP_PLATFORM_STATUS",
    [SNP_COMMIT] = "SNP_COMMIT",
    [SNP_SET_CONFIG] = "SNP_SET_CONFIG",
    [SNP_VLEK_LOAD] = "SNP_VLEK_LOAD",
};

int sim_sev_device_ioctl(unsigned long request, void *arg)
{
    struct sev_issue_cmd *issue = arg;
    void *data;
    int ret;

    if (request != (uint32_t)SEV_ISSUE_CMD) {
        return -ENOTTY;
    }
    if (issue->cmd >= SEV_MAX) {
        return sim_refuse(EINVAL, "/dev/sev: command %u", issue->cmd);
    }
    data = (void *)(uintptr_t)issue->data;
    switch (issue->cmd) {
    case SEV_PLATFORM_STATUS:
        ret = platform_status(data);
        break;
    case SNP_PLATFORM_STATUS:
        ret = snp_platform_status(data);
        break;
    default:
        sim_unmodelled("%s of /dev/sev", device_commands[issue->cmd]);
    }
    issue->error = SEV_RET_SUCCESS;
    sim_log(device_commands[issue->cmd], ret, NULL);
    return ret;
}

/* Is it an open /dev/sev? */
static bool is_sev_device(int fd)
{
    SimFile *file;

    /* Its object is NULL. */
    sim_file_get(fd, SIM_SEV, &file);
    sim_file_put(file);
    return file;
}

/* --- launch --- */

/* Padding has to be zero: a later kernel may give it a meaning. */
static void check_padding(const char *name, const void *padding, size_t len)
{
    const uint8_t *bytes = padding;
    size_t i;

    for (i = 0; sim_config.strict && i < len; i++) {
        if (bytes[i]) {
            sim_violation("%s: padding is not zero", name);
        }
    }
}

static void report_launch(SimVm *vm)
{
    bool finished = vm->launch == SIM_LAUNCH_FINISHED;
    char hex[2 * SIM_DIGEST + 1], final[2 * SIM_DIGEST + 1];
    g_autofree char *after = NULL, *json = NULL;

    sim_digest_hex(vm->digest, hex);
    sim_digest_hex(vm->final, final);
    after = finished ? g_strdup_printf("\"%s\"", final) : g_strdup("null");
    json = g_strdup_printf("{\"type\": \"snp\", \"finished\": %s, \"digest\": "
                           "\"%s\", \"digest-after-vmsas\": %s, \"pages\": %"
                           PRIu64 ", \"measured-pages\": %" PRIu64 "}",
                           finished ? "true" : "false", hex, after,
                           vm->launch_pages, vm->measured_pages);
    sim_report_launch(vm->number, json);
}

static int init2(SimVm *vm, struct kvm_sev_cmd *cmd, GString *json)
{
    struct kvm_sev_init args;

    if (vm->launch != SIM_LAUNCH_NONE) {
        /* sev_mem_enc_ioctl(): from now on, commands of SNP guests only. */
        return sim_refuse(EPERM, "KVM_SEV_INIT2: done before");
    }
    if (vm->vcpus->len) {
        return sim_refuse(EINVAL, "KVM_SEV_INIT2: there are vCPUs");
    }
    if (sim_copy_from_user(&args, (void *)(uintptr_t)cmd->data,
                           sizeof(args))) {
        return sim_refuse(EFAULT, "KVM_SEV_INIT2: no struct kvm_sev_init");
    }
    if (args.flags || args.vmsa_features & ~sim_sev_vmsa_features() ||
        args.ghcb_version > GHCB_VERSION ||
        (args.ghcb_version && args.ghcb_version < GHCB_VERSION)) {
        return sim_refuse(EINVAL, "KVM_SEV_INIT2: flags 0x%x, VMSA features "
                          "0x%" PRIx64 " of 0x%" PRIx64 ", GHCB version %u",
                          args.flags, (uint64_t)args.vmsa_features,
                          sim_sev_vmsa_features(), args.ghcb_version);
    }
    check_padding("KVM_SEV_INIT2", &args.pad1, sizeof(args.pad1));
    check_padding("KVM_SEV_INIT2", args.pad2, sizeof(args.pad2));
    vm->launch = SIM_LAUNCH_INIT;
    vm->features = args.vmsa_features | FEATURE_SNP;
    g_string_printf(json, "\"vmsa-features\": %" PRIu64,
                    (uint64_t)args.vmsa_features);
    return 0;
}

static int launch_start(SimVm *vm, struct kvm_sev_cmd *cmd, GString *json)
{
    struct kvm_sev_snp_launch_start args;

    if (vm->launch == SIM_LAUNCH_NONE) {
        return sim_refuse(ENOTTY, "SNP_LAUNCH_START before KVM_SEV_INIT2");
    }
    if (vm->launch != SIM_LAUNCH_INIT) {
        return sim_refuse(EINVAL, "SNP_LAUNCH_START: done before");
    }
    if (sim_copy_from_user(&args, (void *)(uintptr_t)cmd->data,
                           sizeof(args))) {
        return sim_refuse(EFAULT, "SNP_LAUNCH_START: no struct "
                          "kvm_sev_snp_launch_start");
    }
    if (args.flags || args.policy & ~POLICY_VALID ||
        !(args.policy & POLICY_MUST_BE_ONE)) {
        return sim_refuse(EINVAL, "SNP_LAUNCH_START: flags 0x%x, policy 0x%"
                          PRIx64, args.flags, (uint64_t)args.policy);
    }
    check_padding("SNP_LAUNCH_START", args.pad0, sizeof(args.pad0));
    check_padding("SNP_LAUNCH_START", args.pad1, sizeof(args.pad1));
    if (!is_sev_device(cmd->sev_fd)) {
        return sim_refuse(EBADF, "SNP_LAUNCH_START: descriptor %d is no "
                          "/dev/sev", (int)cmd->sev_fd);
    }
    vm->launch = SIM_LAUNCH_STARTED;
    vm->sev_fd = cmd->sev_fd;
    vm->policy = args.policy;
    report_launch(vm);
    g_string_printf(json, "\"policy\": %" PRIu64, (uint64_t)args.policy);
    sim_json_hex(json, "workarounds", args.gosvw, sizeof(args.gosvw));
    return 0;
}

typedef struct Update {
    SimVm *vm;
    struct kvm_sev_cmd *cmd;
    uint8_t type;
    void *source;               /* of the page at hand, or NULL */
} Update;

/* The firmware rejects the CPUID page, and writes values that it accepts. */
static int reject_cpuid(Update *update, uint8_t *page)
{
    page[CPUID_PAGE_FIRST_EAX] ^= 1;
    if (update->source) {
        sim_copy_to_user(update->source, page, SIM_PAGE);
    }
    update->cmd->error = SEV_RET_INVALID_PARAM;
    return -EIO;
}

/* The firmware's part of SNP_LAUNCH_UPDATE, for one page */
static int take_page(void *opaque, uint64_t gpa, uint8_t *page)
{
    Update *update = opaque;
    SimVm *vm = update->vm;
    const uint8_t *measured = NULL;

    switch (update->type) {
    case KVM_SEV_SNP_PAGE_TYPE_NORMAL:
        measured = page;
        vm->measured_pages++;
        break;
    case KVM_SEV_SNP_PAGE_TYPE_ZERO:
        memset(page, 0, SIM_PAGE);
        break;
    case KVM_SEV_SNP_PAGE_TYPE_SECRETS:
        /* The firmware's own; begins with its version. */
        memset(page, 0, SIM_PAGE);
        page[0] = 3;
        break;
    case KVM_SEV_SNP_PAGE_TYPE_CPUID:
        if (sim_fault("SNP_CPUID_REJECT", NULL)) {
            return reject_cpuid(update, page);
        }
        break;
    }
    sim_measure_snp(vm->digest, update->type, gpa, measured);
    return 0;
}

static const char *page_type_name(uint8_t type)
{
    switch (type) {
    case KVM_SEV_SNP_PAGE_TYPE_NORMAL:
        return "normal";
    case KVM_SEV_SNP_PAGE_TYPE_ZERO:
        return "zero";
    case KVM_SEV_SNP_PAGE_TYPE_UNMEASURED:
        return "unmeasured";
    case KVM_SEV_SNP_PAGE_TYPE_SECRETS:
        return "secrets";
    case KVM_SEV_SNP_PAGE_TYPE_CPUID:
        return "cpuid";
    default:
        return NULL;
    }
}

static int check_update(SimVm *vm, const struct kvm_sev_snp_launch_update *u)
{
    bool zero = u->type == KVM_SEV_SNP_PAGE_TYPE_ZERO;

    if (!u->len || u->len % SIM_PAGE || u->flags || !page_type_name(u->type)) {
        return sim_refuse(EINVAL, "SNP_LAUNCH_UPDATE: length 0x%" PRIx64
                          ", type %u, flags 0x%x", (uint64_t)u->len, u->type,
                          u->flags);
    }
    check_padding("SNP_LAUNCH_UPDATE", &u->pad0, sizeof(u->pad0));
    check_padding("SNP_LAUNCH_UPDATE", &u->pad1, sizeof(u->pad1));
    check_padding("SNP_LAUNCH_UPDATE", u->pad2, sizeof(u->pad2));
    if (!zero && u->uaddr % SIM_PAGE) {
        return sim_refuse(EINVAL, "SNP_LAUNCH_UPDATE: source 0x%" PRIx64
                          " is not aligned", (uint64_t)u->uaddr);
    }
    if (!zero && !u->uaddr && !sim_in_place()) {
        return sim_refuse(sim_config.generation == SIM_G0 ? EIO : EINVAL,
                          "SNP_LAUNCH_UPDATE without a source");
    }
    return 0;
}

static int launch_update(SimVm *vm, struct kvm_sev_cmd *cmd, GString *json)
{
    struct kvm_sev_snp_launch_update args;
    Update update = { .vm = vm, .cmd = cmd };
    void *data = (void *)(uintptr_t)cmd->data;
    char hex[2 * SIM_DIGEST + 1];
    uint64_t gpa, pages = 0;
    SimSlot *slot;
    int ret = 0;

    if (vm->launch < SIM_LAUNCH_STARTED) {
        return sim_refuse(EINVAL, "SNP_LAUNCH_UPDATE before "
                          "SNP_LAUNCH_START");
    }
    if (sim_copy_from_user(&args, data, sizeof(args))) {
        return sim_refuse(EFAULT, "SNP_LAUNCH_UPDATE: no struct "
                          "kvm_sev_snp_launch_update");
    }
    ret = check_update(vm, &args);
    if (ret) {
        return ret;
    }
    if (vm->launch == SIM_LAUNCH_FINISHED) {
        cmd->error = SEV_RET_INVALID_GUEST_STATE;
        return sim_refuse(EIO, "SNP_LAUNCH_UPDATE after SNP_LAUNCH_FINISH");
    }
    if (!is_sev_device(cmd->sev_fd)) {
        return sim_refuse(EIO, "SNP_LAUNCH_UPDATE: descriptor %d is no "
                          "/dev/sev", (int)cmd->sev_fd);
    }
    update.type = args.type;
    gpa = args.gfn_start << SIM_PAGE_SHIFT;
    slot = sim_slot_find(vm, gpa);
    if (gpa >> SIM_PAGE_SHIFT != args.gfn_start || !slot ||
        !(slot->flags & KVM_MEM_GUEST_MEMFD)) {
        return sim_refuse(EINVAL, "SNP_LAUNCH_UPDATE: page 0x%" PRIx64 " has "
                          "no slot with a guest_memfd",
                          (uint64_t)args.gfn_start);
    }

    while (args.len && gpa < slot->gpa + slot->size) {
        ret = sim_fault("SNP_LAUNCH_UPDATE_PAGE", NULL);
        if (ret) {
            break;
        }
        update.source = update.type == KVM_SEV_SNP_PAGE_TYPE_ZERO ? NULL
                        : (void *)(uintptr_t)args.uaddr;
        ret = sim_populate(vm, gpa, update.source, take_page, &update);
        if (ret) {
            break;
        }
        pages++;
        gpa += SIM_PAGE;
        args.gfn_start++;
        args.len -= SIM_PAGE;
        if (update.source) {
            args.uaddr += SIM_PAGE;
        }
    }
    vm->launch_pages += pages;
    sim_count(SIM_POPULATED, pages);
    report_launch(vm);
    sim_digest_hex(vm->digest, hex);
    g_string_printf(json, "\"gpa\": %" PRIu64 ", \"pages\": %" PRIu64
                    ", \"left\": %" PRIu64 ", \"type\": \"%s\", \"source\": "
                    "%s, \"error\": %u, \"measured\": \"%s\"",
                    gpa - (pages << SIM_PAGE_SHIFT), pages,
                    (uint64_t)args.len >> SIM_PAGE_SHIFT,
                    page_type_name(args.type),
                    update.source ? "true" : "false", cmd->error, hex);
    if (!pages) {
        /* KVM turns every error into EIO; the firmware's has a reason. */
        if (ret == -EIO && !cmd->error) {
            cmd->error = SEV_RET_INVALID_PAGE_STATE;
        }
        return -EIO;
    }
    return sim_copy_to_user(data, &args, sizeof(args));
}

/*
 * Measures the state of the vCPUs, in the order of their creation.  The pages
 * are the firmware's from then on, even if the launch fails: it cannot be
 * done twice.
 */
static int measure_vmsas(SimVm *vm)
{
    g_autofree uint8_t *page = g_malloc(SIM_PAGE);
    guint i;
    int ret;

    if (vm->has_vmsas) {
        return sim_refuse(EINVAL, "SNP_LAUNCH_FINISH: the vCPUs' state was "
                          "measured before");
    }
    memcpy(vm->final, vm->digest, SIM_DIGEST);
    for (i = 0; i < vm->vcpus->len; i++) {
        ret = sim_vmsa(g_ptr_array_index(vm->vcpus, i), vm->features, page);
        if (ret) {
            return ret;
        }
        sim_measure_snp(vm->final, PAGE_TYPE_VMSA, VMSA_GPA, page);
        vm->has_vmsas = true;
    }
    return 0;
}

/* What the firmware checks of an ID block.  Returns its error. */
static uint32_t check_id_block(SimVm *vm, const IdBlock *block)
{
    if (block->version != 1) {
        return SEV_RET_INVALID_PARAM;
    }
    if (memcmp(block->digest, vm->final, SIM_DIGEST)) {
        return SEV_RET_BAD_MEASUREMENT;
    }
    if (block->policy != vm->policy) {
        return SEV_RET_POLICY_FAILURE;
    }
    return SEV_RET_SUCCESS;
}

/* The emulator's ID block and the proof that it is the guest owner's. */
static int read_id_block(SimVm *vm, struct kvm_sev_cmd *cmd,
                         const struct kvm_sev_snp_launch_finish *args,
                         GString *json)
{
    IdBlock block;
    uint8_t auth[KVM_SEV_SNP_ID_AUTH_SIZE];

    if (!args->id_block_en) {
        return 0;
    }
    if (!args->id_block_uaddr || !args->id_auth_uaddr) {
        return sim_refuse(EINVAL, "SNP_LAUNCH_FINISH: no ID block");
    }
    if (sim_copy_from_user(&block, (void *)(uintptr_t)args->id_block_uaddr,
                           sizeof(block)) ||
        sim_copy_from_user(auth, (void *)(uintptr_t)args->id_auth_uaddr,
                           sizeof(auth))) {
        return sim_refuse(EFAULT, "SNP_LAUNCH_FINISH: ID block at 0x%" PRIx64
                          ", 0x%" PRIx64, (uint64_t)args->id_block_uaddr,
                          (uint64_t)args->id_auth_uaddr);
    }
    sim_json_hex(json, "id-block", &block, sizeof(block));
    sim_json_hex(json, "id-auth", auth, sizeof(auth));
    cmd->error = check_id_block(vm, &block);
    return cmd->error ? -EIO : 0;
}

static int launch_finish(SimVm *vm, struct kvm_sev_cmd *cmd, GString *json)
{
    struct kvm_sev_snp_launch_finish args;
    int ret;

    if (vm->launch == SIM_LAUNCH_NONE) {
        return sim_refuse(ENOTTY, "SNP_LAUNCH_FINISH before KVM_SEV_INIT2");
    }
    if (vm->launch == SIM_LAUNCH_INIT) {
        return sim_refuse(EINVAL, "SNP_LAUNCH_FINISH before "
                          "SNP_LAUNCH_START");
    }
    if (sim_copy_from_user(&args, (void *)(uintptr_t)cmd->data,
                           sizeof(args))) {
        return sim_refuse(EFAULT, "SNP_LAUNCH_FINISH: no struct "
                          "kvm_sev_snp_launch_finish");
    }
    if (args.flags) {
        return sim_refuse(EINVAL, "SNP_LAUNCH_FINISH: flags 0x%x",
                          args.flags);
    }
    check_padding("SNP_LAUNCH_FINISH", args.pad0, sizeof(args.pad0));
    check_padding("SNP_LAUNCH_FINISH", args.pad1, sizeof(args.pad1));
    if (vm->launch == SIM_LAUNCH_FINISHED) {
        cmd->error = SEV_RET_INVALID_GUEST_STATE;
        return sim_refuse(EIO, "SNP_LAUNCH_FINISH: done before");
    }
    if (!is_sev_device(vm->sev_fd)) {
        return sim_refuse(EBADF, "SNP_LAUNCH_FINISH: /dev/sev was closed");
    }
    ret = measure_vmsas(vm) ?: read_id_block(vm, cmd, &args, json);
    if (ret) {
        return ret;
    }
    sim_vm_launch_finished(vm);
    report_launch(vm);
    sim_json_hex(json, "host-data", args.host_data, sizeof(args.host_data));
    g_string_append_printf(json, ", \"author-key\": %u, \"vcek-disabled\": %u",
                           args.auth_key_en, args.vcek_disabled);
    sim_json_hex(json, "measured", vm->digest, SIM_DIGEST);
    sim_json_hex(json, "measured-with-vmsas", vm->final, SIM_DIGEST);
    return 0;
}

/* --- KVM_MEMORY_ENCRYPT_OP --- */

static const struct {
    uint32_t id;
    const char *name;
    int (*fn)(SimVm *vm, struct kvm_sev_cmd *cmd, GString *json);
} ops[] = {
    { KVM_SEV_INIT2, "SEV_INIT2", init2 },
    { KVM_SEV_SNP_LAUNCH_START, "SNP_LAUNCH_START", launch_start },
    { KVM_SEV_SNP_LAUNCH_UPDATE, "SNP_LAUNCH_UPDATE", launch_update },
    { KVM_SEV_SNP_LAUNCH_FINISH, "SNP_LAUNCH_FINISH", launch_finish },
};

int sim_sev_vm_op(SimVm *vm, struct kvm_sev_cmd *cmd)
{
    g_autoptr(GString) json = g_string_new(NULL);
    size_t i;
    int ret;

    /* Emulators ask with a NULL argument whether there is SEV. */
    if (!cmd) {
        return 0;
    }
    for (i = 0; i < G_N_ELEMENTS(ops); i++) {
        if (ops[i].id == cmd->id) {
            break;
        }
    }
    if (i == G_N_ELEMENTS(ops)) {
        return sim_refuse(EINVAL, "KVM_MEMORY_ENCRYPT_OP: command %u on an "
                          "SNP VM", cmd->id);
    }
    check_padding(ops[i].name, &cmd->pad0, sizeof(cmd->pad0));
    cmd->error = SEV_RET_SUCCESS;
    ret = sim_fault(ops[i].name, NULL);
    if (!ret) {
        pthread_mutex_lock(&vm->lock);
        ret = ops[i].fn(vm, cmd, json);
        pthread_mutex_unlock(&vm->lock);
    }
    sim_log(ops[i].name, ret, json->len ? "%s" : NULL, json->str);
    return ret;
}
