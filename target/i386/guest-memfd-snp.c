/*
 * SEV-SNP: launch in place, and the launch digest
 *
 * The digest is a chain of SHA-384 over one record a page, in the order of
 * the launch (SEV-SNP ABI specification, SNP_LAUNCH_UPDATE, PAGE_INFO).
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include <linux/psp-sev.h>
#include "hw/i386/guest-memfd-firmware.h"
#include "hw/i386/pc.h"
#include "hw/i386/x86.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/memalign.h"
#include "qemu/units.h"
#include "system/kvm.h"
#include "cpu.h"
#include "sev.h"
#include "gmem/target/i386/guest-memfd-launch.h"
#include "gmem/target/i386/guest-memfd-vmsa.h"

#define SNP_PAGE_SIZE (4 * KiB)
/* The SEV-ES reset block of OVMF: where vCPUs start */
#define SEV_RESET_GUID "00f771de-1a7e-4fcb-890e-68c77e2fb44e"

#define SNP_POLICY_ONE BIT_ULL(17)      /* SEV-SNP ABI specification, POLICY */
#define SNP_PAGE_TYPE_VMSA 2    /* KVM adds these pages itself */

/* Answers of EIO in a row that end a launch; see the use. */
#define SNP_EIO_TRIES 10

typedef struct SnpPageInfo {
    uint8_t digest[GUEST_MEMFD_DIGEST];     /* so far */
    uint8_t contents[GUEST_MEMFD_DIGEST];   /* of the page, or zeros */
    uint16_t length;                        /* of this record */
    uint8_t type;
    uint8_t zeros[5];       /* no IMI page, no permissions of other VMPLs */
    uint64_t gpa;
} QEMU_PACKED SnpPageInfo;

QEMU_BUILD_BUG_ON(sizeof(SnpPageInfo) != 0x70);

/* SEV-SNP ABI specification, ID block */
typedef struct SnpIdBlock {
    uint8_t digest[GUEST_MEMFD_DIGEST];
    uint8_t family_id[16];
    uint8_t image_id[16];
    uint32_t version;
    uint32_t guest_svn;
    uint64_t policy;
} QEMU_PACKED SnpIdBlock;

QEMU_BUILD_BUG_ON(sizeof(SnpIdBlock) != KVM_SEV_SNP_ID_BLOCK_SIZE);

static uint8_t snp_digest[GUEST_MEMFD_DIGEST];
static void *snp_cpuid_page;

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
        return "unknown";
    }
}

/* @contents: NULL if they do not count */
static void measure(uint8_t type, hwaddr gpa, hwaddr size,
                    const uint8_t *contents)
{
    hwaddr at;

    if (QSIMPLEQ_EMPTY(guest_memfd_launch())) {
        memset(snp_digest, 0, sizeof(snp_digest));
    }
    for (at = 0; at < size; at += SNP_PAGE_SIZE) {
        SnpPageInfo info = {
            .length = cpu_to_le16(sizeof(info)),
            .type = type,
            .gpa = cpu_to_le64(gpa + at),
        };

        memcpy(info.digest, snp_digest, sizeof(info.digest));
        if (contents) {
            guest_memfd_launch_digest(contents + at, SNP_PAGE_SIZE,
                                      info.contents, &error_fatal);
        }
        guest_memfd_launch_digest(&info, sizeof(info), snp_digest,
                                  &error_fatal);
    }
}

/*
 * Normal pages are the firmware and the hashes of a kernel.  But an IGVM file
 * has measured pages without contents, too.
 */
static bool has_igvm(void)
{
    return X86_MACHINE(current_machine)->igvm;
}

void guest_memfd_snp_check_policy(uint64_t policy)
{
    if (!(policy & SNP_POLICY_ONE)) {
        error_report("policy=0x%" PRIx64 " of sev-snp-guest cannot be: bit 17 "
                     "is always set, as in 0x30000 (which also allows SMT)",
                     policy);
        exit(EXIT_FAILURE);
    }
}

void guest_memfd_snp_reset_vcpu(CPUState *cpu)
{
    CPUX86State *env = cpu_env(cpu);
    uint32_t start;
    uint8_t *data;

    if (!sev_snp_enabled() || !cpu->cpu_index ||
        !guest_memfd_has_tables(NULL) ||
        !pc_system_ovmf_table_find(SEV_RESET_GUID, &data, NULL)) {
        return;
    }
    start = ldl_le_p(data);
    cpu_x86_load_seg_cache(env, R_CS, 0xf000, start & 0xffff0000, 0xffff,
                           env->segs[R_CS].flags);
    env->eip = start & 0xffff;
}

void guest_memfd_snp_launch_check(hwaddr gpa, hwaddr size)
{
    if (guest_memfd_in_place()) {
        /* What QEMU makes of a gpa: the page that it is in. */
        guest_memfd_launch_host(ROUND_DOWN(gpa, SNP_PAGE_SIZE), size,
                                &error_fatal);
    }
}

int guest_memfd_snp_launch_range(struct kvm_sev_snp_launch_update *update)
{
    hwaddr gpa = update->gfn_start * SNP_PAGE_SIZE;
    hwaddr size = update->len;
    const char *type = page_type_name(update->type);
    bool measured = update->type == KVM_SEV_SNP_PAGE_TYPE_NORMAL;
    bool written = update->type != KVM_SEV_SNP_PAGE_TYPE_ZERO &&
                   update->type != KVM_SEV_SNP_PAGE_TYPE_SECRETS;
    void *host = (void *)(uintptr_t)update->uaddr;
    Error *err = NULL;
    int ret;

    if (!guest_memfd_in_place()) {
        ret = kvm_set_memory_attributes_private(gpa, size);
        /* Other sizes are refused by KVM. */
        if (ret || !QEMU_IS_ALIGNED(size, SNP_PAGE_SIZE)) {
            return ret;
        }
        measure(update->type, gpa, size, measured ? host : NULL);
        guest_memfd_launch_note(gpa, size, type, measured ? host : NULL,
                                &error_fatal);
        return 0;
    }

    host = guest_memfd_launch_host(gpa, size, &error_fatal);
    if (update->type == KVM_SEV_SNP_PAGE_TYPE_NORMAL && !has_igvm() &&
        !guest_memfd_launch_check_contents(gpa, size, type, &err)) {
        guest_memfd_launch_failed(err);
        return -EIO;
    }
    measure(update->type, gpa, size, measured ? host : NULL);
    update->uaddr = 0;
    if (update->type == KVM_SEV_SNP_PAGE_TYPE_CPUID) {
        /*
         * The firmware checks what it is to hold, and if it does not agree,
         * corrects the source.  The guest's page could not be read any more.
         */
        qemu_vfree(snp_cpuid_page);
        snp_cpuid_page = qemu_memalign(SNP_PAGE_SIZE, size);
        memcpy(snp_cpuid_page, host, size);
        update->uaddr = (uintptr_t)snp_cpuid_page;
    }
    if (!guest_memfd_launch_range(gpa, size, type, written, measured, &err)) {
        guest_memfd_launch_failed(err);
        return -EIO;
    }
    return 0;
}

int guest_memfd_snp_launch_result(int ret, int fw_error)
{
    static unsigned tries;

    /*
     * A signal ends the call between two pages, and the call says how far it
     * came.  If that is the first page, KVM answers EIO, as it does for every
     * failure there.  The signal is handled by now, so the next call gets
     * past it; a failure that lasts does not.  The firmware gives a reason
     * when it is the one that refuses.
     */
    if (ret == -EIO && fw_error == SEV_RET_SUCCESS && ++tries < SNP_EIO_TRIES) {
        return -EAGAIN;
    }
    tries = 0;
    return ret == -EINTR ? -EAGAIN : ret;
}

void *guest_memfd_snp_cpuid_page(void *hva)
{
    return snp_cpuid_page ?: hva;
}

int guest_memfd_snp_required_memory(hwaddr gpa, hwaddr size)
{
    Error *err = NULL;

    if (!guest_memfd_in_place()) {
        return kvm_convert_memory(gpa, size, true);
    }
    if (!guest_memfd_launch_host(gpa, size, &err)) {
        error_report_err(err);
        return -EINVAL;
    }
    return 0;
}

bool guest_memfd_snp_has_hashes(const void *hashes, Error **errp)
{
    if (!hashes) {
        error_setg(errp, "kernel '%s' cannot be hashed for kernel-hashes=on: "
                   "QEMU makes hashes of a Linux kernel with its boot header "
                   "(bzImage) only, not of multiboot or PVH kernels",
                   current_machine->kernel_filename);
        return false;
    }
    return true;
}

/* KVM adds a page for each vCPU, in the order in which they were made. */
static void measure_vmsas(LaunchMeasurementSevSnp *snp)
{
    CPUState *cpu;

    CPU_FOREACH(cpu) {
        g_autofree uint8_t *vmsa = guest_memfd_vmsa(cpu, snp->guest_features);

        measure(SNP_PAGE_TYPE_VMSA, GUEST_MEMFD_VMSA_GPA,
                GUEST_MEMFD_VMSA_SIZE, vmsa);
        guest_memfd_launch_note(GUEST_MEMFD_VMSA_GPA, GUEST_MEMFD_VMSA_SIZE,
                                "vmsa", vmsa, &error_fatal);
        snp->vcpus++;
        if (X86_CPU(cpu)->env.cpuid_version != snp->vcpu_signature) {
            warn_report("vCPUs have the signatures 0x%x and 0x%x; the first "
                        "is told as that of all", snp->vcpu_signature,
                        (uint32_t)X86_CPU(cpu)->env.cpuid_version);
        }
    }
}

/* KVM takes a block of that size, and looks at none without the other. */
static bool check_id_auth(const struct kvm_sev_snp_launch_finish *finish,
                          Error **errp)
{
    g_autofree char *base64 = NULL;
    g_autofree guchar *auth = NULL;
    gsize size;

    if (!finish->id_block_en && !finish->id_auth_uaddr) {
        return true;
    }
    if (!finish->id_block_en || !finish->id_auth_uaddr) {
        error_setg(errp, "id-block= and id-auth= of sev-snp-guest belong "
                   "together: give both, or none");
        return false;
    }
    base64 = object_property_get_str(OBJECT(current_machine->cgs), "id-auth",
                                     &error_abort);
    auth = g_base64_decode(base64, &size);
    if (size != KVM_SEV_SNP_ID_AUTH_SIZE) {
        error_setg(errp, "id-auth= of sev-snp-guest has %zu bytes, and the ID "
                   "authentication information structure has %u", size,
                   KVM_SEV_SNP_ID_AUTH_SIZE);
        return false;
    }
    return true;
}

/*
 * The platform refuses an ID block for another launch, but does not say for
 * which it is.
 */
static void check_id_block(const struct kvm_sev_snp_launch_finish *finish,
                           const LaunchMeasurementSevSnp *snp)
{
    const SnpIdBlock *block = (void *)(uintptr_t)finish->id_block_uaddr;
    g_autofree char *digest = NULL;

    if (!finish->id_block_en) {
        return;
    }
    digest = guest_memfd_launch_hex(block->digest);
    if (strcmp(digest, snp->digest_after_vmsas)) {
        warn_report("id-block= is for the launch digest %s, and this launch "
                    "has %s%s", digest, snp->digest_after_vmsas,
                    strcmp(digest, snp->digest_before_vmsas) ? "" :
                    "; it has to be the one after the VMSAs");
    }
    if (le64_to_cpu(block->policy) != snp->policy) {
        warn_report("id-block= is for policy 0x%" PRIx64 ", and this guest "
                    "has 0x%" PRIx64, le64_to_cpu(block->policy), snp->policy);
    }
}

bool guest_memfd_snp_launch_finish(
    const struct kvm_sev_snp_launch_start *start,
    const struct kvm_sev_snp_launch_finish *finish, uint64_t features)
{
    LaunchMeasurement *m;
    Error *err = NULL;

    if (!check_id_auth(finish, &err)) {
        guest_memfd_launch_failed(err);
        return false;
    }
    if (guest_memfd_in_place()) {
        qemu_vfree(snp_cpuid_page);
        snp_cpuid_page = NULL;
        if (!guest_memfd_launch_finish(&err)) {
            guest_memfd_launch_failed(err);
            return false;
        }
    }
    m = g_new0(LaunchMeasurement, 1);
    m->type = LAUNCH_MEASUREMENT_TYPE_SEV_SNP;
    m->u.sev_snp.digest_before_vmsas = guest_memfd_launch_hex(snp_digest);
    m->u.sev_snp.policy = start->policy;
    m->u.sev_snp.guest_features = features | SVM_SEV_FEAT_SNP_ACTIVE;
    m->u.sev_snp.vcpu_signature = X86_CPU(first_cpu)->env.cpuid_version;
    measure_vmsas(&m->u.sev_snp);
    m->u.sev_snp.digest_after_vmsas = guest_memfd_launch_hex(snp_digest);
    check_id_block(finish, &m->u.sev_snp);
    guest_memfd_launch_measured(m);
    return true;
}
