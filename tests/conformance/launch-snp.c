/*
 * Launch commands of an SEV-SNP VM: their order, and what they accept
 *
 * The answers are those of arch/x86/kvm/svm/sev.c in Linux: sev_mem_enc_ioctl()
 * (which commands when), __sev_guest_init(), snp_launch_start(),
 * snp_launch_update() with kvm_gmem_populate(), snp_launch_finish().
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "conformance.h"

#define GPA 0x100000ULL
#define FILE_PAGES 16
#define POLICY (1ULL << 17 | 1ULL << 16)    /* must be one; SMT allowed */
#define NORMAL KVM_SEV_SNP_PAGE_TYPE_NORMAL

static int sev;
static uint8_t *source;

static int command(uint32_t id, void *data)
{
    struct kvm_sev_cmd cmd = {
        .id = id, .data = (uintptr_t)data, .sev_fd = sev,
    };

    return ioctl(vm, KVM_MEMORY_ENCRYPT_OP, &cmd);
}

static int init2(uint64_t features, uint32_t flags)
{
    struct kvm_sev_init args = { .vmsa_features = features, .flags = flags };

    return command(KVM_SEV_INIT2, &args);
}

static int start(uint64_t policy, uint16_t flags)
{
    struct kvm_sev_snp_launch_start args = {
        .policy = policy, .flags = flags,
    };

    return command(KVM_SEV_SNP_LAUNCH_START, &args);
}

static int finish(uint16_t flags)
{
    struct kvm_sev_snp_launch_finish args = { .flags = flags };

    return command(KVM_SEV_SNP_LAUNCH_FINISH, &args);
}

static void answer_update(const char *rule, uint64_t page, const void *from,
                          uint64_t len, uint8_t type)
{
    struct kvm_sev_snp_launch_update args = {
        .gfn_start = GPA / PAGE + page, .uaddr = (uintptr_t)from, .len = len,
        .type = type,
    };
    int ret = command(KVM_SEV_SNP_LAUNCH_UPDATE, &args);

    if (ret) {
        answer_ret(rule, ret);
    } else {
        answer(rule, "0-left-0x%llx", args.len);
    }
}

static void answer_updates(void)
{
    struct kvm_sev_snp_launch_update flags = {
        .gfn_start = GPA / PAGE, .uaddr = (uintptr_t)source, .len = PAGE,
        .type = NORMAL, .flags = 1,
    };

    answer_update("snp-update-size-0", 0, source, 0, NORMAL);
    answer_update("snp-update-unaligned-size", 0, source, PAGE + 1, NORMAL);
    answer_update("snp-update-type-0", 0, source, PAGE, 0);
    answer_update("snp-update-type-2", 0, source, PAGE, 2);
    answer_update("snp-update-unaligned-source", 0, source + 1, PAGE, NORMAL);
    answer_ret("snp-update-flags",
               command(KVM_SEV_SNP_LAUNCH_UPDATE, &flags));
    answer_update("snp-update-no-slot", FILE_PAGES, source, PAGE, NORMAL);
    /* Every error at the first page is EIO. */
    answer_update("snp-update-shared", 0, source, PAGE, NORMAL);
    answer_update("snp-update-bad-source", 8, (void *)(16 * PAGE), PAGE,
                  NORMAL);
    answer_update("snp-update-normal", 9, source, 2 * PAGE, NORMAL);
    answer_update("snp-update-twice", 9, source, PAGE, NORMAL);
    answer_update("snp-update-zero", 11, NULL, PAGE,
                  KVM_SEV_SNP_PAGE_TYPE_ZERO);
    answer_update("snp-update-unmeasured", 12, source, PAGE,
                  KVM_SEV_SNP_PAGE_TYPE_UNMEASURED);
    answer_update("snp-update-secrets", 13, source, PAGE,
                  KVM_SEV_SNP_PAGE_TYPE_SECRETS);
    answer_update("snp-update-null-source", 14, NULL, PAGE, NORMAL);
    answer_update("snp-update-past-slot", 15, source, 2 * PAGE, NORMAL);
}

int main(int argc, char **argv)
{
    uint8_t *memory;
    int fd;

    make_vm(argc, argv);
    if (vm_type != KVM_X86_SNP_VM) {
        end();
    }
    sev = open("/dev/sev", O_RDWR | O_CLOEXEC);
    if (sev < 0) {
        skip("no /dev/sev here: %s", strerror(errno));
    }
    source = make_anonymous(4 * PAGE);
    memset(source, 0x11, 4 * PAGE);
    memory = make_bindable(FILE_PAGES * PAGE, &fd);
    need(!bind_slot(1, GPA, FILE_PAGES * PAGE, memory, fd, 0),
         "binding a slot");

    answer_ret("snp-start-before-init", start(POLICY, 0));
    answer_update("snp-update-before-init", 0, source, PAGE, NORMAL);
    answer_ret("snp-finish-before-init", finish(0));
    answer_ret("snp-init-flags", init2(0, 1));
    answer_ret("snp-init-unknown-feature", init2(1ULL << 63, 0));
    answer_ret("snp-init", init2(0, 0));
    answer_ret("snp-init-twice", init2(0, 0));

    answer_update("snp-update-before-start", 0, source, PAGE, NORMAL);
    answer_ret("snp-finish-before-start", finish(0));
    answer_ret("snp-start-flags", start(POLICY, 1));
    answer_ret("snp-start-unknown-policy", start(POLICY | 1ULL << 40, 0));
    answer_ret("snp-start-policy-0", start(0, 0));
    answer_ret("snp-start", start(POLICY, 0));
    answer_ret("snp-start-twice", start(POLICY, 0));

    set_state(fd, 8 * PAGE, GPA + 8 * PAGE, 8 * PAGE, PRIVATE);
    answer_updates();

    answer_ret("snp-finish-flags", finish(1));
    answer_ret("snp-finish", finish(0));
    answer_ret("snp-finish-twice", finish(0));
    answer_update("snp-update-after-finish", 8, source, PAGE, NORMAL);
    answer_ret("snp-start-after-finish", start(POLICY, 0));
    return 0;
}
