/*
 * Unit tests of the model's launch commands
 *
 * The model is in this program: its ioctl() is the model's.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <linux/psp-sev.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include "simkvm.h"

#define PAGES 8ULL                      /* in each of two slots, from gpa 0 */
#define SLOTS 2
#define SIZE (SLOTS * PAGES * SIM_PAGE)
#define X2APIC (1u << 21)               /* CPUID 1, ECX */

typedef struct Vm {
    int kvm, fd, sev, gmem;
    uint8_t *ram;                       /* of the slots; in place: the file */
    uint8_t *source;                    /* page n has bytes n + 1 */
    SimVm *vm;
    SimFile *file;
} Vm;

static int call(int fd, unsigned long request, void *arg)
{
    int ret = ioctl(fd, request, arg);

    return ret < 0 ? -errno : ret;
}

/* The model anew, configured by these lines. */
static void configure(const char *lines)
{
    g_autofree char *path = NULL;
    int fd = g_file_open_tmp("simkvm-XXXXXX", &path, NULL);

    g_assert(write(fd, lines, strlen(lines)) == (ssize_t)strlen(lines));
    close(fd);
    setenv("SIMKVM", path, 1);
    sim_config_load();
    unsetenv("SIMKVM");
    unlink(path);
}

static void vm_new(Vm *v, uint32_t type, const char *config)
{
    struct kvm_create_guest_memfd file = { .size = SIZE };
    int i;

    configure(config);
    v->kvm = open("/dev/kvm", O_RDWR);
    v->sev = open("/dev/sev", O_RDWR);
    v->fd = call(v->kvm, KVM_CREATE_VM, (void *)(uintptr_t)type);
    v->vm = sim_file_get(v->fd, SIM_VM, &v->file);
    g_assert_nonnull(v->vm);
    if (sim_in_place()) {
        file.flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
    }
    v->gmem = call(v->fd, KVM_CREATE_GUEST_MEMFD, &file);
    g_assert_cmpint(v->gmem, >=, 0);
    v->ram = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
                  sim_in_place() ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS,
                  sim_in_place() ? v->gmem : -1, 0);
    g_assert(v->ram != MAP_FAILED);
    v->source = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (i = 0; i < (int)(SIZE / SIM_PAGE); i++) {
        memset(v->source + i * SIM_PAGE, i + 1, SIM_PAGE);
    }
    for (i = 0; i < SLOTS; i++) {
        struct kvm_userspace_memory_region2 slot = {
            .slot = i,
            .flags = KVM_MEM_GUEST_MEMFD,
            .guest_phys_addr = i * PAGES * SIM_PAGE,
            .memory_size = PAGES * SIM_PAGE,
            .userspace_addr = (uintptr_t)v->ram + i * PAGES * SIM_PAGE,
            .guest_memfd = v->gmem,
            .guest_memfd_offset = i * PAGES * SIM_PAGE,
        };

        g_assert_cmpint(call(v->fd, KVM_SET_USER_MEMORY_REGION2, &slot), ==,
                        0);
    }
}

static void vm_free(Vm *v)
{
    sim_file_put(v->file);
    munmap(v->ram, SIZE);
    munmap(v->source, SIZE);
    close(v->gmem);
    close(v->fd);
    close(v->sev);
    close(v->kvm);
}

static void make_private(Vm *v, uint64_t page, uint64_t pages)
{
    struct gmem_memory_attributes2 in_place = {
        .offset = page * SIM_PAGE,
        .size = pages * SIM_PAGE,
        .attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE,
    };
    struct kvm_memory_attributes attributes = {
        .address = page * SIM_PAGE,
        .size = pages * SIM_PAGE,
        .attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE,
    };

    g_assert_cmpint(sim_in_place()
                    ? call(v->gmem, GMEM_SET_MEMORY_ATTRIBUTES2, &in_place)
                    : call(v->fd, KVM_SET_MEMORY_ATTRIBUTES, &attributes),
                    ==, 0);
}

/* The page's contents, whatever its state. */
static uint8_t *page_of(Vm *v, uint64_t page)
{
    SimGmem *gmem = g_ptr_array_index(v->vm->gmems, 0);

    return gmem->view + page * SIM_PAGE;
}

static void assert_digest(Vm *v, const char *expected)
{
    char hex[2 * SIM_DIGEST + 1];

    sim_digest_hex(v->vm->digest, hex);
    g_assert_cmpstr(hex, ==, expected);
}

/*
 * Run this test again, in a process of its own, where it has to abort.
 * Returns true in that process.
 */
static bool in_trap(const char *message)
{
    if (g_test_subprocess()) {
        return true;
    }
    g_test_trap_subprocess(NULL, 0, 0);
    g_test_trap_assert_failed();
    g_test_trap_assert_stderr(message);
    return false;
}

/* --- SNP --- */

#define SNP "strict off\ngeneration "
#define POLICY 0x30000

static uint32_t snp_error;              /* of the last command */

static int snp(Vm *v, uint32_t id, void *data, int sev)
{
    struct kvm_sev_cmd cmd = {
        .id = id,
        .data = (uintptr_t)data,
        .sev_fd = sev,
    };
    int ret = call(v->fd, KVM_MEMORY_ENCRYPT_OP, &cmd);

    snp_error = cmd.error;
    return ret;
}

static int snp_init(Vm *v, uint64_t features, uint32_t flags, uint16_t ghcb)
{
    struct kvm_sev_init args = {
        .vmsa_features = features,
        .flags = flags,
        .ghcb_version = ghcb,
    };

    return snp(v, KVM_SEV_INIT2, &args, v->sev);
}

static int snp_start(Vm *v, uint64_t policy, uint16_t flags, int sev)
{
    struct kvm_sev_snp_launch_start args = {
        .policy = policy,
        .flags = flags,
    };

    return snp(v, KVM_SEV_SNP_LAUNCH_START, &args, sev);
}

/* Of so many pages; @args keeps what is left. */
static int snp_update(Vm *v, struct kvm_sev_snp_launch_update *args,
                      uint8_t type, uint64_t page, uint64_t pages,
                      const void *source)
{
    *args = (struct kvm_sev_snp_launch_update) {
        .gfn_start = page,
        .uaddr = (uintptr_t)source,
        .len = pages * SIM_PAGE,
        .type = type,
    };
    return snp(v, KVM_SEV_SNP_LAUNCH_UPDATE, args, v->sev);
}

static int snp_finish(Vm *v, uint16_t flags)
{
    struct kvm_sev_snp_launch_finish args = { .flags = flags };

    return snp(v, KVM_SEV_SNP_LAUNCH_FINISH, &args, v->sev);
}

static void snp_started(Vm *v, const char *config)
{
    vm_new(v, KVM_X86_SNP_VM, config);
    g_assert_cmpint(snp_init(v, 0, 0, 0), ==, 0);
    g_assert_cmpint(snp_start(v, POLICY, 0, v->sev), ==, 0);
}

static void test_snp_order(void)
{
    struct kvm_sev_snp_launch_update u;
    Vm v;

    vm_new(&v, KVM_X86_SNP_VM, SNP "g0");
    make_private(&v, 0, 2);
    g_assert_cmpint(call(v.fd, KVM_MEMORY_ENCRYPT_OP, NULL), ==, 0);
    g_assert_cmpint(snp(&v, KVM_SEV_LAUNCH_START, NULL, v.sev), ==, -EINVAL);
    g_assert_cmpint(snp_start(&v, POLICY, 0, v.sev), ==, -ENOTTY);
    g_assert_cmpint(snp_finish(&v, 0), ==, -ENOTTY);
    g_assert_cmpint(snp_init(&v, 0, 0, 0), ==, 0);
    g_assert_cmpint(snp_init(&v, 0, 0, 0), ==, -EPERM);
    g_assert_cmpint(snp_update(&v, &u, 1, 0, 1, v.source), ==, -EINVAL);
    g_assert_cmpint(snp_finish(&v, 0), ==, -EINVAL);
    g_assert_cmpint(snp_start(&v, POLICY, 0, v.sev), ==, 0);
    g_assert_cmpint(snp_start(&v, POLICY, 0, v.sev), ==, -EINVAL);
    g_assert_cmpint(snp_update(&v, &u, 1, 0, 1, v.source), ==, 0);
    g_assert_cmpint(snp_finish(&v, 1), ==, -EINVAL);
    g_assert_cmpint(v.vm->launch, ==, SIM_LAUNCH_STARTED);
    g_assert_cmpint(snp_finish(&v, 0), ==, 0);
    g_assert_cmpint(v.vm->launch, ==, SIM_LAUNCH_FINISHED);
    g_assert_cmpint(snp_update(&v, &u, 1, 1, 1, v.source), ==, -EIO);
    g_assert_cmpint(snp_error, ==, SEV_RET_INVALID_GUEST_STATE);
    g_assert_cmpint(snp_finish(&v, 0), ==, -EIO);
    vm_free(&v);
}

static void test_snp_arguments(void)
{
    struct kvm_sev_snp_launch_update u;
    Vm v;

    vm_new(&v, KVM_X86_SNP_VM, SNP "g0");
    g_assert_cmpint(snp_init(&v, 1, 0, 0), ==, -EINVAL);
    g_assert_cmpint(snp_init(&v, 0, 1, 0), ==, -EINVAL);
    g_assert_cmpint(snp_init(&v, 0, 0, 1), ==, -EINVAL);
    g_assert_cmpint(snp_init(&v, 0, 0, 3), ==, -EINVAL);
    g_assert_cmpint(snp_init(&v, sim_sev_vmsa_features(), 0, 2), ==, 0);
    g_assert_cmpint(snp_start(&v, 0, 0, v.sev), ==, -EINVAL);
    g_assert_cmpint(snp_start(&v, POLICY | 1ULL << 32, 0, v.sev), ==, -EINVAL);
    g_assert_cmpint(snp_start(&v, POLICY, 1, v.sev), ==, -EINVAL);
    g_assert_cmpint(snp_start(&v, POLICY, 0, v.kvm), ==, -EBADF);
    g_assert_cmpint(snp_start(&v, POLICY, 0, -1), ==, -EBADF);
    g_assert_cmpint(snp(&v, KVM_SEV_SNP_LAUNCH_START, NULL, v.sev), ==,
                    -EFAULT);
    g_assert_cmpint(snp_start(&v, POLICY, 0, v.sev), ==, 0);

    make_private(&v, 0, 4);
    g_assert_cmpint(snp_update(&v, &u, 1, 0, 0, v.source), ==, -EINVAL);
    g_assert_cmpint(snp_update(&v, &u, 0, 0, 1, v.source), ==, -EINVAL);
    g_assert_cmpint(snp_update(&v, &u, 2, 0, 1, v.source), ==, -EINVAL);
    g_assert_cmpint(snp_update(&v, &u, 7, 0, 1, v.source), ==, -EINVAL);
    g_assert_cmpint(snp_update(&v, &u, 1, 0, 1, v.source + 1), ==, -EINVAL);
    g_assert_cmpint(snp_update(&v, &u, 1, SLOTS * PAGES, 1, v.source), ==,
                    -EINVAL);
    g_assert_cmpint(snp_update(&v, &u, 1, 1ULL << 52, 1, v.source), ==,
                    -EINVAL);
    u.gfn_start = 0;
    u.len = SIM_PAGE - 1;
    g_assert_cmpint(snp(&v, KVM_SEV_SNP_LAUNCH_UPDATE, &u, v.sev), ==,
                    -EINVAL);
    u.len = SIM_PAGE;
    u.flags = 1;
    g_assert_cmpint(snp(&v, KVM_SEV_SNP_LAUNCH_UPDATE, &u, v.sev), ==,
                    -EINVAL);
    g_assert_cmpint(v.vm->launch_pages, ==, 0);
    vm_free(&v);
}

/*
 * d = bytes(48)
 * for kind, gpa in (1, 0), (3, 4096), (4, 8192), (5, 12288), (6, 16384):
 *     c = sha384(b'\1' * 4096).digest() if kind == 1 else bytes(48)
 *     d = sha384(d + c + bytes([0x70, 0, kind, 0, 0, 0, 0, 0]) +
 *                gpa.to_bytes(8, 'little')).digest()
 */
#define SNP_DIGEST "49b40b27abe7950c82c9a2d8ad86e9031282933abadb94c09b37552d" \
                   "d82e120aba169d0de7678ef54168ac3857743586"

static void check_snp_digest(const char *config)
{
    static const uint8_t types[] = { 1, 3, 4, 5, 6 };
    struct kvm_sev_snp_launch_update u;
    bool in_place;
    size_t i;
    Vm v;

    snp_started(&v, config);
    in_place = sim_in_place();
    if (in_place) {
        memcpy(v.ram, v.source, G_N_ELEMENTS(types) * SIM_PAGE);
    }
    make_private(&v, 0, G_N_ELEMENTS(types));
    for (i = 0; i < G_N_ELEMENTS(types); i++) {
        uint8_t *source = in_place ? NULL : v.source + i * SIM_PAGE;

        g_assert_cmpint(snp_update(&v, &u, types[i], i, 1, source), ==, 0);
        g_assert_cmpint(u.len, ==, 0);
        g_assert_cmpint(u.gfn_start, ==, i + 1);
        /* Ignored for ZERO */
        g_assert_cmphex(u.uaddr, ==, (uintptr_t)source +
                        (in_place || types[i] == 3 ? 0 : SIM_PAGE));
    }
    assert_digest(&v, SNP_DIGEST);
    g_assert_cmpint(snp_finish(&v, 0), ==, 0);
    assert_digest(&v, SNP_DIGEST);
    g_assert_cmpint(v.vm->launch_pages, ==, G_N_ELEMENTS(types));
    g_assert_cmpint(v.vm->measured_pages, ==, 1);
    g_assert_cmpint(page_of(&v, 0)[7], ==, 1);
    g_assert_cmpint(page_of(&v, 1)[7], ==, 0);
    g_assert_cmpint(page_of(&v, 2)[7], ==, 3);
    g_assert_cmpint(page_of(&v, 3)[7], ==, 0);
    g_assert_cmpint(page_of(&v, 4)[7], ==, 5);
    vm_free(&v);
}

static void test_snp_digest_of_copies(void)
{
    check_snp_digest(SNP "g0");
    check_snp_digest(SNP "g1");
}

static void test_snp_digest_in_place(void)
{
    check_snp_digest(SNP "g2");
}

static void test_snp_source_in_place(void)
{
    struct kvm_sev_snp_launch_update u;
    Vm v;

    snp_started(&v, SNP "g2");
    make_private(&v, 0, 1);
    g_assert_cmpint(snp_update(&v, &u, 1, 0, 1, v.source + SIM_PAGE), ==, 0);
    g_assert_cmpint(page_of(&v, 0)[0], ==, 2);
    vm_free(&v);
}

static void test_snp_needs_source(void)
{
    struct kvm_sev_snp_launch_update u;
    Vm v;

    snp_started(&v, SNP "g0");
    make_private(&v, 0, 2);
    g_assert_cmpint(snp_update(&v, &u, 1, 0, 1, NULL), ==, -EIO);
    g_assert_cmpint(snp_update(&v, &u, 3, 0, 1, NULL), ==, 0);
    vm_free(&v);
    snp_started(&v, SNP "g1");
    make_private(&v, 0, 1);
    g_assert_cmpint(snp_update(&v, &u, 1, 0, 1, NULL), ==, -EINVAL);
    vm_free(&v);
}

static void test_snp_shared_or_taken(void)
{
    struct kvm_sev_snp_launch_update u;
    Vm v;

    snp_started(&v, SNP "g2");
    make_private(&v, 1, 2);
    g_assert_cmpint(snp_update(&v, &u, 1, 0, 1, NULL), ==, -EIO);
    g_assert_cmpint(snp_error, ==, 0);
    g_assert_cmpint(snp_update(&v, &u, 1, 2, 1, NULL), ==, 0);
    g_assert_cmpint(snp_update(&v, &u, 1, 2, 1, NULL), ==, -EIO);
    /* The same in the middle of a range. */
    g_assert_cmpint(snp_update(&v, &u, 1, 1, 2, NULL), ==, 0);
    g_assert_cmpint(u.gfn_start, ==, 2);
    g_assert_cmpint(u.len, ==, SIM_PAGE);
    g_assert_cmpint(v.vm->launch_pages, ==, 2);
    vm_free(&v);
}

static void test_snp_progress(void)
{
    struct kvm_sev_snp_launch_update u;
    Vm v;

    snp_started(&v, SNP "g0\n"
                "fault SNP_LAUNCH_UPDATE errno=EAGAIN\n"
                "fault SNP_LAUNCH_UPDATE_PAGE at=3 errno=EINTR times=2");
    make_private(&v, 0, SLOTS * PAGES);
    g_assert_cmpint(snp_update(&v, &u, 1, 1, 15, v.source), ==, -EAGAIN);
    g_assert_cmpint(u.len, ==, 15 * SIM_PAGE);
    g_assert_cmpint(snp(&v, KVM_SEV_SNP_LAUNCH_UPDATE, &u, v.sev), ==, 0);
    g_assert_cmpint(u.len, ==, 13 * SIM_PAGE);
    g_assert_cmphex(u.uaddr, ==, (uintptr_t)v.source + 2 * SIM_PAGE);
    /* KVM gives no reason for an error at the first page. */
    g_assert_cmpint(snp(&v, KVM_SEV_SNP_LAUNCH_UPDATE, &u, v.sev), ==, -EIO);
    g_assert_cmpint(u.gfn_start, ==, 3);
    /* The end of the slot, then the rest. */
    g_assert_cmpint(snp(&v, KVM_SEV_SNP_LAUNCH_UPDATE, &u, v.sev), ==, 0);
    g_assert_cmpint(u.gfn_start, ==, PAGES);
    g_assert_cmpint(snp(&v, KVM_SEV_SNP_LAUNCH_UPDATE, &u, v.sev), ==, 0);
    g_assert_cmpint(u.gfn_start, ==, SLOTS * PAGES);
    g_assert_cmpint(u.len, ==, 0);
    g_assert_cmpint(v.vm->launch_pages, ==, 15);
    vm_free(&v);
}

static void test_snp_cpuid_rejected(void)
{
    const char *config = SNP "g2\nfault SNP_CPUID_REJECT errno=EIO";
    struct kvm_sev_snp_launch_update u;
    uint8_t before[SIM_PAGE];
    Vm v;

    snp_started(&v, config);
    memcpy(before, v.source, SIM_PAGE);
    make_private(&v, 0, 1);
    g_assert_cmpint(snp_update(&v, &u, 6, 0, 1, v.source), ==, -EIO);
    g_assert_cmpint(snp_error, ==, SEV_RET_INVALID_PARAM);
    g_assert_cmpint(memcmp(before, v.source, SIM_PAGE), !=, 0);
    g_assert_cmpint(snp_update(&v, &u, 6, 0, 1, v.source), ==, 0);
    vm_free(&v);

    snp_started(&v, config);
    make_private(&v, 0, 1);
    g_assert_cmpint(snp_update(&v, &u, 6, 0, 1, NULL), ==, -EIO);
    g_assert_cmpint(snp_error, ==, SEV_RET_INVALID_PARAM);
    g_assert_cmpint(snp_update(&v, &u, 6, 0, 1, NULL), ==, 0);
    vm_free(&v);
}

/* --- SNP: the state of vCPUs --- */

static int snp_vcpu(Vm *v, uint64_t id)
{
    int fd = call(v->fd, KVM_CREATE_VCPU, (void *)(uintptr_t)id);

    g_assert_cmpint(fd, >=, 0);
    return fd;
}

/* What would be measured of it now. */
static int take_vmsa(int fd, uint64_t features, uint8_t *page)
{
    SimFile *file;
    SimVcpu *vcpu = sim_file_get(fd, SIM_VCPU, &file);
    int ret = sim_vmsa(vcpu, features, page);

    sim_file_put(file);
    return ret;
}

/* The number of @size bytes there; it is zero from now on. */
static uint64_t take(uint8_t *page, size_t at, size_t size)
{
    uint64_t value = 0;

    memcpy(&value, page + at, size);
    memset(page + at, 0, size);
    return value;
}

#define TAKE(type, at, value) \
    g_assert_cmphex(take(page, at, sizeof(type)), ==, value)

static void assert_zeros(const uint8_t *page)
{
    size_t i;

    for (i = 0; i < SIM_PAGE; i++) {
        g_assert_cmphex(page[i] ? i : 0, ==, 0);
    }
}

static void set_msr(int fd, uint32_t index, uint64_t value)
{
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entry;
    } msrs = {
        .head.nmsrs = 1,
        .entry = { .index = index, .data = value },
    };

    g_assert_cmpint(call(fd, KVM_SET_MSRS, &msrs), ==, 1);
}

static void take_segment(uint8_t *page, size_t at, uint16_t attributes,
                         uint64_t n)
{
    TAKE(uint16_t, at, n);
    TAKE(uint16_t, at + 2, attributes);
    TAKE(uint32_t, at + 4, n + 1);
    TAKE(uint64_t, at + 8, n << 32);
}

static void test_vmsa_segments(void)
{
#define SEGMENT(n, ...) { .selector = n, .limit = n + 1, \
                          .base = (uint64_t)(n) << 32, __VA_ARGS__ }
    static const struct kvm_sregs2 sregs = {
        .es = SEGMENT(0x10, .type = 0xf),
        .cs = SEGMENT(0x11, .type = 0x1b, .present = 1, .s = 1, .l = 1),
        .ss = SEGMENT(0x12, .type = 3, .present = 1, .dpl = 2),
        .ds = SEGMENT(0x13, .present = 1, .avl = 1),
        .fs = SEGMENT(0x14, .db = 1),
        .gs = SEGMENT(0x15, .g = 1),
        .ldt = SEGMENT(0x16, .type = 2, .present = 1, .unusable = 1),
        .tr = SEGMENT(0x17, .type = 0xb, .present = 1),
        .gdt = { .base = 0x18ULL << 32, .limit = 0x19 },
        .idt = { .base = 0x1aULL << 32, .limit = 0x1b },
        .cr0 = 0xe0000011,
        .cr2 = 1,
        .cr3 = 0x2000,
        .cr4 = 0x620,
        .efer = 0x500,
    };
    g_autofree uint8_t *page = g_malloc(SIM_PAGE);
    int vcpu;
    Vm v;

    snp_started(&v, SNP "g0");
    vcpu = snp_vcpu(&v, 0);
    g_assert_cmpint(call(vcpu, KVM_SET_SREGS2, (void *)&sregs), ==, 0);
    g_assert_cmpint(take_vmsa(vcpu, 1, page), ==, 0);
    take_segment(page, 0x00, 0x00f, 0x10);
    take_segment(page, 0x10, 0x29b, 0x11);
    take_segment(page, 0x20, 0x0c3, 0x12);
    take_segment(page, 0x30, 0x180, 0x13);
    take_segment(page, 0x40, 0x400, 0x14);
    take_segment(page, 0x50, 0x800, 0x15);
    take_segment(page, 0x70, 0x002, 0x16);
    take_segment(page, 0x90, 0x08b, 0x17);
    TAKE(uint64_t, 0x60, 0x19ULL << 32);
    TAKE(uint64_t, 0x68, 0x18ULL << 32);
    TAKE(uint64_t, 0x80, 0x1bULL << 32);
    TAKE(uint64_t, 0x88, 0x1aULL << 32);
    TAKE(uint8_t, 0xcb, 2);             /* CPL */
    TAKE(uint64_t, 0xd0, 0x1500);
    TAKE(uint64_t, 0x148, 0x660);
    TAKE(uint64_t, 0x150, 0x2000);
    TAKE(uint64_t, 0x158, 0x80000011);
    close(vcpu);
    vm_free(&v);
}

static void test_vmsa_registers(void)
{
    static const struct kvm_regs regs = {
        .rax = 1, .rbx = 2, .rcx = 3, .rdx = 4, .rsi = 5, .rdi = 6, .rsp = 7,
        .rbp = 8, .r8 = 9, .r9 = 10, .r10 = 11, .r11 = 12, .r12 = 13,
        .r13 = 14, .r14 = 15, .r15 = 16, .rip = 17, .rflags = 0x40,
    };
    static const struct kvm_debugregs debug = { .dr6 = 0xffff0ff1, .dr7 = 0 };
    static const struct kvm_xcrs xcrs = {
        .nr_xcrs = 2,
        .xcrs = { { .xcr = 1, .value = 9 }, { .xcr = 0, .value = 7 } },
    };
    static const struct {
        uint32_t msr;
        size_t at;
    } msrs[] = {
        { 0xc0000081, 0x200 }, { 0xc0000082, 0x208 }, { 0xc0000083, 0x210 },
        { 0xc0000084, 0x218 }, { 0xc0000102, 0x220 }, { 0x174, 0x228 },
        { 0x175, 0x230 }, { 0x176, 0x238 }, { 0x277, 0x268 },
        { 0x1d9, 0x270 }, { 0xda0, 0x140 },
    };
    g_autofree uint8_t *page = g_malloc(SIM_PAGE);
    size_t i;
    int vcpu;
    Vm v;

    snp_started(&v, SNP "g0");
    vcpu = snp_vcpu(&v, 0);
    g_assert_cmpint(take_vmsa(vcpu, 0x21, page), ==, 0);
    /* As after reset, or as a kernel has them. */
    TAKE(uint16_t, 0x10, 0xf000);
    TAKE(uint64_t, 0x18, 0xffff0000);
    TAKE(uint64_t, 0xd0, 0x1000);
    TAKE(uint64_t, 0x148, 0x40);
    TAKE(uint64_t, 0x158, 0x10);
    TAKE(uint64_t, 0x160, 0x400);
    TAKE(uint64_t, 0x168, 0xffff0ff0);
    TAKE(uint64_t, 0x170, 2);
    TAKE(uint64_t, 0x178, 0xfff0);
    TAKE(uint64_t, 0x268, 0x0007040600070406);
    TAKE(uint64_t, 0x3b0, 0x21);
    TAKE(uint64_t, 0x3e8, 1);
    TAKE(uint32_t, 0x408, 0x1f80);
    TAKE(uint16_t, 0x410, 0x37f);
    assert_zeros(page);

    g_assert_cmpint(call(vcpu, KVM_SET_REGS, (void *)&regs), ==, 0);
    g_assert_cmpint(call(vcpu, KVM_SET_DEBUGREGS, (void *)&debug), ==, 0);
    g_assert_cmpint(call(vcpu, KVM_SET_XCRS, (void *)&xcrs), ==, 0);
    for (i = 0; i < G_N_ELEMENTS(msrs); i++) {
        set_msr(vcpu, msrs[i].msr, 100 + i);
    }
    g_assert_cmpint(take_vmsa(vcpu, 1, page), ==, 0);
    TAKE(uint64_t, 0x160, 0x400);
    TAKE(uint64_t, 0x168, 0xffff0ff1);
    TAKE(uint64_t, 0x170, 0x42);
    TAKE(uint64_t, 0x178, 17);
    TAKE(uint64_t, 0x1d8, 7);
    TAKE(uint64_t, 0x1f8, 1);
    TAKE(uint64_t, 0x308, 3);
    TAKE(uint64_t, 0x310, 4);
    TAKE(uint64_t, 0x318, 2);
    TAKE(uint64_t, 0x328, 8);
    TAKE(uint64_t, 0x330, 5);
    TAKE(uint64_t, 0x338, 6);
    for (i = 0; i < 8; i++) {
        TAKE(uint64_t, 0x340 + 8 * i, 9 + i);
    }
    TAKE(uint64_t, 0x3e8, 7);
    for (i = 0; i < G_N_ELEMENTS(msrs); i++) {
        TAKE(uint64_t, msrs[i].at, 100 + i);
    }
    close(vcpu);
    vm_free(&v);
}

/* Of the area, KVM takes what its XSTATE_BV has. */
static void test_vmsa_xsave(void)
{
    g_autofree uint8_t *area = g_malloc0(SIM_PAGE);
    g_autofree uint8_t *page = g_malloc(SIM_PAGE);
    uint64_t bits;
    size_t i;
    int vcpu;
    Vm v;

    snp_started(&v, SNP "g0");
    vcpu = snp_vcpu(&v, 0);
    for (i = 0; i < 512; i++) {
        area[i] = i / 2 + 1;
    }
    memset(area + 576, 0xee, 256);
    for (bits = 0; bits < 8; bits++) {
        memcpy(area + 512, &bits, sizeof(bits));
        g_assert_cmpint(call(vcpu, KVM_SET_XSAVE, area), ==, 0);
        g_assert_cmpint(take_vmsa(vcpu, 1, page), ==, 0);
        TAKE(uint32_t, 0x408, bits ? 0x0e0e0d0d : 0x1f80);
        TAKE(uint16_t, 0x410, bits & 1 ? 0x0101 : 0x37f);
        TAKE(uint16_t, 0x40e, bits & 1 ? 0x0202 : 0);
        TAKE(uint16_t, 0x40c, bits & 1 ? 0x0303 : 0);
        TAKE(uint16_t, 0x412, bits & 1 ? 0x0404 : 0);
        TAKE(uint64_t, 0x418, bits & 1 ? 0x0808070706060505 : 0);
        TAKE(uint64_t, 0x400, bits & 1 ? 0x0c0c0b0b0a0a0909 : 0);
        for (i = 0; i < 8; i++) {
            uint8_t *st = area + 32 + 16 * i;

            g_assert(!(bits & 1) || !memcmp(page + 0x420 + 8 * i, st, 8));
            g_assert(!(bits & 1) || !memcmp(page + 0x460 + 2 * i, st + 8, 2));
        }
        g_assert_cmphex(page[0x421], ==, bits & 1 ? 17 : 0);
        g_assert_cmphex(page[0x461], ==, bits & 1 ? 21 : 0);
        g_assert(!(bits & 2) || !memcmp(page + 0x470, area + 160, 256));
        g_assert_cmphex(page[0x471], ==, bits & 2 ? 81 : 0);
        g_assert(!(bits & 4) || !memcmp(page + 0x570, area + 576, 256));
        g_assert_cmphex(page[0x571], ==, bits & 4 ? 0xee : 0);
    }
    close(vcpu);
    vm_free(&v);
}

/*
 * d = bytes(48)
 * for rdx in 11, 22:
 *     p = bytearray(4096)
 *     for at, n in ((0x10, 0xf000), (0x18, 0xffff0000), (0xd0, 0x1000),
 *                   (0x148, 0x40), (0x158, 0x10), (0x160, 0x400),
 *                   (0x168, 0xffff0ff0), (0x170, 2), (0x178, rdx + 1),
 *                   (0x268, 0x7040600070406), (0x310, rdx), (0x3b0, 0x21),
 *                   (0x3e8, 1), (0x408, 0x1f80), (0x410, 0x37f)):
 *         p[at:at + 8] = n.to_bytes(8, 'little')
 *     d = sha384(d + sha384(p).digest() + bytes([0x70, 0, 2, 0, 0, 0, 0, 0]) +
 *                0xfffffffff000.to_bytes(8, 'little')).digest()
 */
#define VMSA_DIGEST "94be196acd3e1477984a380bf7494fc7e9bdf928f9eda048" \
                    "4581ffe517c197e3fb4503a43f20fdc0b19f1f99b38f2da1"

/* vCPUs in the order of their creation, which is not that of their numbers */
static void vmsas_started(Vm *v, int vcpus[2])
{
    int i;

    vm_new(v, KVM_X86_SNP_VM, SNP "g0");
    g_assert_cmpint(snp_init(v, sim_sev_vmsa_features(), 0, 0), ==, 0);
    g_assert_cmpint(snp_start(v, POLICY, 0, v->sev), ==, 0);
    for (i = 0; i < 2; i++) {
        struct kvm_regs regs = { .rdx = 11 + 11 * i, .rip = 12 + 11 * i };

        vcpus[i] = snp_vcpu(v, 1 - i);
        g_assert_cmpint(call(vcpus[i], KVM_SET_REGS, &regs), ==, 0);
    }
}

static void vmsas_free(Vm *v, int vcpus[2])
{
    close(vcpus[0]);
    close(vcpus[1]);
    vm_free(v);
}

static void assert_final(Vm *v, const char *expected)
{
    char hex[2 * SIM_DIGEST + 1];

    sim_digest_hex(v->vm->final, hex);
    g_assert_cmpstr(hex, ==, expected);
}

static void test_snp_digest_of_vcpus(void)
{
    static const char none[2 * SIM_DIGEST + 1] = {
        [0 ... 2 * SIM_DIGEST - 1] = '0',
    };
    int vcpus[2];
    Vm v;

    vmsas_started(&v, vcpus);
    g_assert_cmpint(snp_finish(&v, 0), ==, 0);
    assert_digest(&v, none);
    assert_final(&v, VMSA_DIGEST);
    g_assert_cmpint(v.vm->launch_pages, ==, 0);
    g_assert_cmpint(call(v.fd, KVM_CREATE_VCPU, (void *)2), ==, -EINVAL);
    vmsas_free(&v, vcpus);

    /* Without vCPUs, there is nothing to add. */
    snp_started(&v, SNP "g0");
    g_assert_cmpint(snp_finish(&v, 0), ==, 0);
    assert_final(&v, none);
    vm_free(&v);
}

static void test_snp_breakpoints(void)
{
    struct kvm_debugregs debug = { .dr7 = 0x401 };
    int vcpu;
    Vm v;

    snp_started(&v, SNP "g0");
    vcpu = snp_vcpu(&v, 0);
    g_assert_cmpint(call(vcpu, KVM_SET_DEBUGREGS, &debug), ==, 0);
    g_assert_cmpint(snp_finish(&v, 0), ==, -EINVAL);
    g_assert_cmpint(v.vm->launch, ==, SIM_LAUNCH_STARTED);
    debug.dr7 = 0x400;
    g_assert_cmpint(call(vcpu, KVM_SET_DEBUGREGS, &debug), ==, 0);
    g_assert_cmpint(snp_finish(&v, 0), ==, 0);
    close(vcpu);
    vm_free(&v);
}

/* --- SNP: ID blocks --- */

/* The firmware's: digest, names, version at 80, policy at 88 */
static int finish_with_block(Vm *v, const uint8_t digest[SIM_DIGEST],
                             uint32_t version, uint64_t policy)
{
    uint8_t block[96] = {}, auth[4096] = {};
    struct kvm_sev_snp_launch_finish args = {
        .id_block_en = 1,
        .id_block_uaddr = (uintptr_t)block,
        .id_auth_uaddr = (uintptr_t)auth,
    };

    memcpy(block, digest, SIM_DIGEST);
    memcpy(block + 80, &version, sizeof(version));
    memcpy(block + 88, &policy, sizeof(policy));
    return snp(v, KVM_SEV_SNP_LAUNCH_FINISH, &args, v->sev);
}

static void test_snp_id_block(void)
{
    struct kvm_sev_snp_launch_finish args = { .id_block_en = 1 };
    uint8_t digest[SIM_DIGEST];
    Vm v;

    snp_started(&v, SNP "g0");
    g_assert_cmpint(snp(&v, KVM_SEV_SNP_LAUNCH_FINISH, &args, v.sev), ==,
                    -EINVAL);
    args.id_block_uaddr = (uintptr_t)v.source;
    args.id_auth_uaddr = 8;
    g_assert_cmpint(snp(&v, KVM_SEV_SNP_LAUNCH_FINISH, &args, v.sev), ==,
                    -EFAULT);
    memcpy(digest, v.vm->digest, SIM_DIGEST);
    g_assert_cmpint(finish_with_block(&v, digest, 2, POLICY), ==, -EIO);
    g_assert_cmpint(snp_error, ==, SEV_RET_INVALID_PARAM);
    g_assert_cmpint(finish_with_block(&v, digest, 1, POLICY | 1), ==, -EIO);
    g_assert_cmpint(snp_error, ==, SEV_RET_POLICY_FAILURE);
    digest[SIM_DIGEST - 1] ^= 1;
    g_assert_cmpint(finish_with_block(&v, digest, 1, POLICY), ==, -EIO);
    g_assert_cmpint(snp_error, ==, SEV_RET_BAD_MEASUREMENT);
    g_assert_cmpint(v.vm->launch, ==, SIM_LAUNCH_STARTED);
    digest[SIM_DIGEST - 1] ^= 1;
    g_assert_cmpint(finish_with_block(&v, digest, 1, POLICY), ==, 0);
    g_assert_cmpint(snp_error, ==, SEV_RET_SUCCESS);
    g_assert_cmpint(v.vm->launch, ==, SIM_LAUNCH_FINISHED);
    vm_free(&v);
}

static void test_snp_id_block_is_of_the_final_digest(void)
{
    uint8_t final[SIM_DIGEST];
    int vcpus[2];
    Vm v;

    vmsas_started(&v, vcpus);
    g_assert_cmpint(finish_with_block(&v, v.vm->digest, 1, POLICY), ==, -EIO);
    g_assert_cmpint(snp_error, ==, SEV_RET_BAD_MEASUREMENT);
    assert_final(&v, VMSA_DIGEST);
    memcpy(final, v.vm->final, SIM_DIGEST);
    /* The vCPUs' pages were taken: that was the end of this guest. */
    g_assert_cmpint(finish_with_block(&v, final, 1, POLICY), ==, -EINVAL);
    vmsas_free(&v, vcpus);

    vmsas_started(&v, vcpus);
    g_assert_cmpint(finish_with_block(&v, final, 1, POLICY), ==, 0);
    vmsas_free(&v, vcpus);
}

static void test_snp_finish_needs_device(void)
{
    Vm v;

    snp_started(&v, SNP "g0");
    close(v.sev);
    g_assert_cmpint(snp_finish(&v, 0), ==, -EBADF);
    vm_free(&v);
}

/* What is private when the launch ends, and was not taken, is undefined. */
static void test_snp_scrambles(void)
{
    struct kvm_sev_snp_launch_update u;
    Vm v;

    snp_started(&v, "generation g2");
    v.ram[0] = 1;
    v.ram[SIM_PAGE] = 0;
    make_private(&v, 0, 2);
    g_assert_cmpint(snp_update(&v, &u, 1, 0, 1, NULL), ==, 0);
    g_assert_cmpint(snp_finish(&v, 0), ==, 0);
    g_assert_cmpint(page_of(&v, 0)[0], ==, 1);
    g_assert_cmpint(*(uint64_t *)page_of(&v, 1), !=, 0);
    vm_free(&v);
}

static void test_lost_page(void)
{
    Vm v;

    if (in_trap("*0x1000 of guest_memfd * not populated*")) {
        snp_started(&v, "generation g2");
        v.ram[SIM_PAGE + 5] = 1;
        make_private(&v, 0, 2);
        snp_finish(&v, 0);
    }
}

static void test_violation(void)
{
    struct kvm_sev_snp_launch_update u;
    Vm v;

    if (in_trap("*populate: gpa 0x0 is shared*")) {
        snp_started(&v, "generation g2");
        snp_update(&v, &u, 1, 0, 1, NULL);
    }
}

static void test_padding(void)
{
    struct kvm_sev_snp_launch_update u = {
        .uaddr = 0,
        .len = SIM_PAGE,
        .type = 1,
        .pad2[3] = 1,
    };
    Vm v;

    if (in_trap("*SNP_LAUNCH_UPDATE: padding*")) {
        snp_started(&v, "generation g2");
        make_private(&v, 0, 1);
        snp(&v, KVM_SEV_SNP_LAUNCH_UPDATE, &u, v.sev);
    }
}

static void test_platform_status(void)
{
    struct sev_user_data_snp_status snp_status = {};
    struct sev_user_data_status status = {};
    struct sev_issue_cmd issue = {
        .cmd = SEV_PLATFORM_STATUS,
        .data = (uintptr_t)&status,
    };
    Vm v;

    vm_new(&v, KVM_X86_SNP_VM, SNP "g0");
    g_assert_cmpint(call(v.sev, SEV_ISSUE_CMD, &issue), ==, 0);
    g_assert_cmpint(status.api_major, ==, 1);
    issue.cmd = SNP_PLATFORM_STATUS;
    issue.data = (uintptr_t)&snp_status;
    g_assert_cmpint(call(v.sev, SEV_ISSUE_CMD, &issue), ==, 0);
    g_assert_cmpint(snp_status.is_rmp_initialized, ==, 1);
    issue.cmd = SEV_MAX;
    g_assert_cmpint(call(v.sev, SEV_ISSUE_CMD, &issue), ==, -EINVAL);
    issue.cmd = SNP_PLATFORM_STATUS;
    issue.data = 8;
    g_assert_cmpint(call(v.sev, SEV_ISSUE_CMD, &issue), ==, -EFAULT);
    g_assert_cmpint(call(v.sev, SEV_ISSUE_CMD + 1, &issue), ==, -ENOTTY);
    vm_free(&v);
}

/* --- TDX --- */

#define TDX "strict off\ngeneration "

static int tdx(int fd, uint32_t id, uint32_t flags, void *data)
{
    struct kvm_tdx_cmd cmd = {
        .id = id,
        .flags = flags,
        .data = (uintptr_t)data,
    };

    return call(fd, KVM_MEMORY_ENCRYPT_OP, &cmd);
}

typedef union TdxInit {
    struct kvm_tdx_init_vm args;
    uint8_t room[sizeof(struct kvm_tdx_init_vm) +
                 2 * sizeof(struct kvm_cpuid_entry2)];
} TdxInit;

static void tdx_arguments(TdxInit *init, uint32_t address_bits)
{
    memset(init, 0, sizeof(*init));
    init->args.xfam = 3;
    init->args.cpuid.nent = 1;
    init->args.cpuid.entries[0] = (struct kvm_cpuid_entry2) {
        .function = 0x80000008,
        .eax = address_bits << 16,
    };
}

static int tdx_init(Vm *v)
{
    TdxInit init;

    tdx_arguments(&init, 48);
    return tdx(v->fd, KVM_TDX_INIT_VM, 0, &init);
}

static int new_vcpu(Vm *v, int id, uint32_t features)
{
    struct {
        struct kvm_cpuid2 list;
        struct kvm_cpuid_entry2 entry;
    } cpuid = {
        .list.nent = 1,
        .entry = { .function = 1, .ecx = features },
    };
    int fd = call(v->fd, KVM_CREATE_VCPU, (void *)(uintptr_t)id);

    if (fd >= 0) {
        g_assert_cmpint(call(fd, KVM_SET_CPUID2, &cpuid), ==, 0);
    }
    return fd;
}

/* Returns a vCPU that can add memory. */
static int tdx_started(Vm *v, const char *config)
{
    int vcpu;

    vm_new(v, KVM_X86_TDX_VM, config);
    g_assert_cmpint(tdx_init(v), ==, 0);
    vcpu = new_vcpu(v, 0, X2APIC);
    g_assert_cmpint(tdx(vcpu, KVM_TDX_INIT_VCPU, 0, NULL), ==, 0);
    return vcpu;
}

static int tdx_region(int vcpu, struct kvm_tdx_init_mem_region *r,
                      uint64_t page, uint64_t pages, const void *source,
                      uint32_t flags)
{
    *r = (struct kvm_tdx_init_mem_region) {
        .source_addr = (uintptr_t)source,
        .gpa = page * SIM_PAGE,
        .nr_pages = pages,
    };
    return tdx(vcpu, KVM_TDX_INIT_MEM_REGION, flags, r);
}

static void test_tdx_order(void)
{
    struct kvm_tdx_init_mem_region r;
    int vcpu;
    Vm v;

    vm_new(&v, KVM_X86_TDX_VM, TDX "g0");
    make_private(&v, 0, 2);
    g_assert_cmpint(new_vcpu(&v, 0, X2APIC), ==, -EIO);
    g_assert_cmpint(tdx(v.fd, KVM_TDX_FINALIZE_VM, 0, NULL), ==, -EINVAL);
    g_assert_cmpint(tdx_init(&v), ==, 0);
    g_assert_cmpint(tdx_init(&v), ==, -EINVAL);
    g_assert_cmpint(tdx(v.fd, KVM_TDX_INIT_VCPU, 0, NULL), ==, -EINVAL);
    vcpu = new_vcpu(&v, 0, X2APIC);
    g_assert_cmpint(tdx_region(vcpu, &r, 0, 1, v.source, 0), ==, -EINVAL);
    g_assert_cmpint(tdx(vcpu, KVM_TDX_INIT_VCPU, 1, NULL), ==, -EINVAL);
    g_assert_cmpint(tdx(vcpu, KVM_TDX_INIT_VCPU, 0, NULL), ==, 0);
    g_assert_cmpint(tdx(vcpu, KVM_TDX_INIT_VCPU, 0, NULL), ==, -EINVAL);
    g_assert_cmpint(tdx(vcpu, KVM_TDX_FINALIZE_VM, 0, NULL), ==, -EINVAL);
    g_assert_cmpint(tdx_region(vcpu, &r, 0, 1, v.source, 0), ==, 0);
    g_assert_cmpint(tdx(v.fd, KVM_TDX_FINALIZE_VM, 0, NULL), ==, 0);
    g_assert_cmpint(v.vm->launch, ==, SIM_LAUNCH_FINISHED);
    g_assert_cmpint(tdx(v.fd, KVM_TDX_FINALIZE_VM, 0, NULL), ==, -EINVAL);
    g_assert_cmpint(tdx_region(vcpu, &r, 1, 1, v.source, 0), ==, -EINVAL);
    close(vcpu);
    vm_free(&v);
}

static void test_tdx_init_vm(void)
{
    TdxInit init;
    Vm v;

    vm_new(&v, KVM_X86_TDX_VM, TDX "g0");
    tdx_arguments(&init, 47);
    g_assert_cmpint(tdx(v.fd, KVM_TDX_INIT_VM, 0, &init), ==, -EINVAL);
    tdx_arguments(&init, 48);
    g_assert_cmpint(tdx(v.fd, KVM_TDX_INIT_VM, 1, &init), ==, -EINVAL);
    init.args.attributes = 1ULL << 62;
    g_assert_cmpint(tdx(v.fd, KVM_TDX_INIT_VM, 0, &init), ==, -EINVAL);
    tdx_arguments(&init, 48);
    init.args.xfam = 1;
    g_assert_cmpint(tdx(v.fd, KVM_TDX_INIT_VM, 0, &init), ==, -EINVAL);
    init.args.xfam = 1 << 9 | 3;
    g_assert_cmpint(tdx(v.fd, KVM_TDX_INIT_VM, 0, &init), ==, -EINVAL);
    tdx_arguments(&init, 48);
    init.args.reserved[11] = 1;
    g_assert_cmpint(tdx(v.fd, KVM_TDX_INIT_VM, 0, &init), ==, -EINVAL);
    tdx_arguments(&init, 48);
    init.args.cpuid.padding = 1;
    g_assert_cmpint(tdx(v.fd, KVM_TDX_INIT_VM, 0, &init), ==, -EINVAL);
    tdx_arguments(&init, 48);
    init.args.cpuid.nent = 2;
    init.args.cpuid.entries[1].function = 0x40000000;
    g_assert_cmpint(tdx(v.fd, KVM_TDX_INIT_VM, 0, &init), ==, -EINVAL);
    tdx_arguments(&init, 48);
    init.args.cpuid.entries[0].eax |= 1;
    g_assert_cmpint(tdx(v.fd, KVM_TDX_INIT_VM, 0, &init), ==, -EINVAL);
    tdx_arguments(&init, 48);
    init.args.cpuid.nent = 257;
    g_assert_cmpint(tdx(v.fd, KVM_TDX_INIT_VM, 0, &init), ==, -E2BIG);
    g_assert_cmpint(v.vm->launch, ==, SIM_LAUNCH_NONE);
    tdx_arguments(&init, 52);
    g_assert_cmpint(tdx(v.fd, KVM_TDX_INIT_VM, 0, &init), ==, 0);
    vm_free(&v);
}

static void test_tdx_capabilities(void)
{
    g_autofree struct kvm_tdx_capabilities *caps =
        g_malloc0(sizeof(*caps) + 256 * sizeof(*caps->cpuid.entries));
    Vm v;

    vm_new(&v, KVM_X86_TDX_VM, TDX "g0");
    caps->cpuid.nent = 1;
    g_assert_cmpint(tdx(v.fd, KVM_TDX_CAPABILITIES, 0, caps), ==, -E2BIG);
    g_assert_cmpint(caps->cpuid.nent, ==, 1);
    caps->cpuid.nent = 256;
    g_assert_cmpint(tdx(v.fd, KVM_TDX_CAPABILITIES, 1, caps), ==, -EINVAL);
    g_assert_cmpint(tdx(v.fd, KVM_TDX_CAPABILITIES, 0, caps), ==, 0);
    g_assert_cmpint(caps->supported_xfam & 3, ==, 3);
    g_assert_cmpint(caps->cpuid.nent, >, 1);
    g_assert_cmphex(caps->cpuid.entries[0].function, ==, 1);
    vm_free(&v);
}

static void test_tdx_cpuid(void)
{
    g_autofree struct kvm_cpuid2 *cpuid =
        g_malloc0(sizeof(*cpuid) + 64 * sizeof(*cpuid->entries));
    uint32_t n;
    int vcpu;
    Vm v;

    vcpu = tdx_started(&v, TDX "g0");
    cpuid->nent = 1;
    g_assert_cmpint(tdx(vcpu, KVM_TDX_GET_CPUID, 0, cpuid), ==, -E2BIG);
    n = cpuid->nent;
    g_assert_cmpint(n, >, 1);
    cpuid->nent = 64;
    g_assert_cmpint(tdx(vcpu, KVM_TDX_GET_CPUID, 1, cpuid), ==, -EINVAL);
    g_assert_cmpint(tdx(vcpu, KVM_TDX_GET_CPUID, 0, cpuid), ==, 0);
    g_assert_cmpint(cpuid->nent, ==, n);
    g_assert_cmphex(cpuid->entries[0].function, ==, 0x80000008);
    g_assert_cmphex(cpuid->entries[0].eax, ==, 48 << 16);
    g_assert_cmphex(cpuid->entries[1].function, ==, 1);
    g_assert_cmphex(cpuid->entries[1].ecx & X2APIC, ==, X2APIC);
    close(vcpu);
    vm_free(&v);
}

static void test_tdx_needs_x2apic(void)
{
    int vcpu;
    Vm v;

    vm_new(&v, KVM_X86_TDX_VM, TDX "g0");
    g_assert_cmpint(tdx_init(&v), ==, 0);
    vcpu = new_vcpu(&v, 0, 0);
    g_assert_cmpint(tdx(vcpu, KVM_TDX_INIT_VCPU, 0, NULL), ==, -EINVAL);
    close(vcpu);
    vm_free(&v);
}

static void test_tdx_region(void)
{
    struct kvm_tdx_init_mem_region r;
    int vcpu;
    Vm v;

    vcpu = tdx_started(&v, TDX "g0");
    make_private(&v, 0, 2);
    g_assert_cmpint(tdx_region(vcpu, &r, 0, 0, v.source, 0), ==, -EINVAL);
    g_assert_cmpint(tdx_region(vcpu, &r, 0, 1, v.source + 8, 0), ==, -EINVAL);
    g_assert_cmpint(tdx_region(vcpu, &r, 0, 1, v.source, 2), ==, -EINVAL);
    g_assert_cmpint(tdx_region(vcpu, &r, 1ULL << 35, 1, v.source, 0), ==,
                    -EINVAL);
    g_assert_cmpint(tdx_region(vcpu, &r, 1, 1ULL << 52, v.source, 0), ==,
                    -EINVAL);
    g_assert_cmpint(tdx_region(vcpu, &r, SLOTS * PAGES, 1, v.source, 0), ==,
                    -EINVAL);
    g_assert_cmpint(tdx_region(vcpu, &r, 0, 1, NULL, 0), ==, -EINVAL);
    g_assert_cmpint(tdx_region(vcpu, &r, 2, 1, v.source, 0), ==, -EINVAL);
    g_assert_cmpint(tdx_region(vcpu, &r, 1, 1, v.source, 0), ==, 0);
    g_assert_cmpint(tdx_region(vcpu, &r, 1, 1, v.source, 0), ==, -EEXIST);
    /* Pages before the one that fails are added. */
    g_assert_cmpint(tdx_region(vcpu, &r, 0, 2, v.source, 0), ==, -EEXIST);
    g_assert_cmphex(r.gpa, ==, SIM_PAGE);
    g_assert_cmpint(r.nr_pages, ==, 1);
    g_assert_cmpint(v.vm->launch_pages, ==, 2);
    close(vcpu);
    vm_free(&v);
}

static void test_tdx_progress(void)
{
    struct kvm_tdx_init_mem_region r;
    int vcpu;
    Vm v;

    vcpu = tdx_started(&v, TDX "g1\n"
                       "fault TDX_INIT_MEM_REGION_PAGE at=3 errno=EINTR\n"
                       "fault TDX_INIT_MEM_REGION_PAGE at=4 errno=EAGAIN");
    make_private(&v, 0, SLOTS * PAGES);
    g_assert_cmpint(tdx_region(vcpu, &r, 4, 8, v.source, 0), ==, -EINTR);
    g_assert_cmphex(r.gpa, ==, 6 * SIM_PAGE);
    g_assert_cmphex(r.source_addr, ==, (uintptr_t)v.source + 2 * SIM_PAGE);
    g_assert_cmpint(r.nr_pages, ==, 6);
    g_assert_cmpint(tdx(vcpu, KVM_TDX_INIT_MEM_REGION, 0, &r), ==, -EAGAIN);
    g_assert_cmphex(r.gpa, ==, 6 * SIM_PAGE);
    g_assert_cmpint(tdx(vcpu, KVM_TDX_INIT_MEM_REGION, 0, &r), ==, 0);
    g_assert_cmphex(r.gpa, ==, 12 * SIM_PAGE);
    g_assert_cmpint(r.nr_pages, ==, 0);
    g_assert_cmpint(page_of(&v, 11)[0], ==, 8);
    close(vcpu);
    vm_free(&v);
}

/*
 * def record(name, gpa):
 *     return name.ljust(16, b'\0') + gpa.to_bytes(8, 'little') + bytes(104)
 * m = record(b'MEM.PAGE.ADD', 0)
 * for at in range(0, 4096, 256):
 *     m += record(b'MR.EXTEND', at) + b'\1' * 256
 * m += record(b'MEM.PAGE.ADD', 4096)
 * sha384(m).hexdigest()
 */
#define TDX_DIGEST "6b814b11437155371d894d3100dea97096d4e9c92c9c506bf95ce27a" \
                   "a0392a581f8631377b268153838cf20a4d8b190e"

static void check_tdx_digest(const char *config)
{
    struct kvm_tdx_init_mem_region r;
    bool in_place;
    int vcpu;
    Vm v;

    vcpu = tdx_started(&v, config);
    in_place = sim_in_place();
    if (in_place) {
        memcpy(v.ram, v.source, 2 * SIM_PAGE);
    }
    make_private(&v, 0, 2);
    g_assert_cmpint(tdx_region(vcpu, &r, 0, 1, in_place ? NULL : v.source,
                               KVM_TDX_MEASURE_MEMORY_REGION), ==, 0);
    g_assert_cmphex(r.source_addr, ==,
                    in_place ? 0 : (uintptr_t)v.source + SIM_PAGE);
    g_assert_cmpint(tdx_region(vcpu, &r, 1, 1,
                               in_place ? NULL : v.source + SIM_PAGE, 0), ==,
                    0);
    g_assert_cmpint(tdx(v.fd, KVM_TDX_FINALIZE_VM, 0, NULL), ==, 0);
    assert_digest(&v, TDX_DIGEST);
    g_assert_cmpint(v.vm->launch_pages, ==, 2);
    g_assert_cmpint(v.vm->measured_pages, ==, 1);
    g_assert_cmpint(page_of(&v, 1)[0], ==, 2);
    close(vcpu);
    vm_free(&v);
}

static void test_tdx_digest_of_copies(void)
{
    check_tdx_digest(TDX "g0");
    check_tdx_digest(TDX "g1");
}

static void test_tdx_digest_in_place(void)
{
    check_tdx_digest(TDX "g2");
}

static void test_tdx_vcpu_left_out(void)
{
    Vm v;

    if (in_trap("*vCPU 1 had no KVM_TDX_INIT_VCPU*")) {
        tdx_started(&v, "generation g2");
        new_vcpu(&v, 1, X2APIC);
        tdx(v.fd, KVM_TDX_FINALIZE_VM, 0, NULL);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
#define ADD(name, fn) g_test_add_func("/simkvm/launch/" name, fn)
    ADD("SNP commands have an order", test_snp_order);
    ADD("SNP arguments are checked", test_snp_arguments);
    ADD("SNP digest of copied pages", test_snp_digest_of_copies);
    ADD("SNP digest of pages in place", test_snp_digest_in_place);
    ADD("SNP in place can copy from a source, too", test_snp_source_in_place);
    ADD("SNP without conversion in place needs a source",
        test_snp_needs_source);
    ADD("SNP does not take shared pages, nor pages twice",
        test_snp_shared_or_taken);
    ADD("SNP returns how far it came", test_snp_progress);
    ADD("SNP firmware rejects a CPUID page", test_snp_cpuid_rejected);
    ADD("SNP measures segments and control registers", test_vmsa_segments);
    ADD("SNP measures registers", test_vmsa_registers);
    ADD("SNP measures what XSTATE_BV has", test_vmsa_xsave);
    ADD("SNP digest of vCPUs is in the order of creation",
        test_snp_digest_of_vcpus);
    ADD("SNP refuses breakpoints", test_snp_breakpoints);
    ADD("SNP ID block is checked", test_snp_id_block);
    ADD("SNP ID block is of the final digest",
        test_snp_id_block_is_of_the_final_digest);
    ADD("SNP finish needs the device of the start",
        test_snp_finish_needs_device);
    ADD("SNP pages not taken have undefined contents", test_snp_scrambles);
    ADD("a page that is lost is a violation", test_lost_page);
    ADD("a refused command is a violation", test_violation);
    ADD("padding is a violation", test_padding);
    ADD("dev-sev returns its status", test_platform_status);
    ADD("TDX commands have an order", test_tdx_order);
    ADD("TDX guests are checked", test_tdx_init_vm);
    ADD("TDX capabilities need room", test_tdx_capabilities);
    ADD("TDX returns a vCPU's CPUID", test_tdx_cpuid);
    ADD("TDX vCPUs need an X2APIC", test_tdx_needs_x2apic);
    ADD("TDX regions are checked", test_tdx_region);
    ADD("TDX returns how far it came", test_tdx_progress);
    ADD("TDX digest of copied pages", test_tdx_digest_of_copies);
    ADD("TDX digest of pages in place", test_tdx_digest_in_place);
    ADD("a TDX vCPU left out is a violation", test_tdx_vcpu_left_out);
#undef ADD
    return g_test_run();
}
