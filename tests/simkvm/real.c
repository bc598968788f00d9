/*
 * simkvm: kvm mode, guest code on a real KVM
 *
 * The real VM is always one of the default type, and a guest_memfd of the
 * real KVM, mappable and shared, stands for each of the emulator's.  Which
 * pages are private, only the model knows:
 *
 * - state in place: a bound slot serves a page from the file in either state,
 *   as on a kernel that converts in place.  The real slots are the emulator's.
 * - separate memory: a slot that the emulator binds is made of several real
 *   ones, plain where the pages are shared and bound where they are private.
 *   They change while no vCPU is in the guest, as one step.
 *
 * A guest asks for a page-state change by a hypercall, where the real KVM lets
 * that out, or by the port MODEL_PORT of tests/guest/firmware/firmware.h.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>
#include "simkvm.h"

#define MODEL_PORT 0x5a0
#define MODEL_PRESENT 0x53

/* Real slots that are parts of the emulator's; below are its own numbers. */
#define FIRST_PART 16384
#define MAX_PARTS 16000

#define FEATURES_LEAF 0x80000001        /* of CPUID */
#define GIB_PAGES (1u << 26)            /* in EDX there */

typedef enum Service {
    NONE,
    ACCESS = 1,
    STATE = 2,
    HYPERCALL = KVM_HC_MAP_GPA_RANGE,
    VMMCALL,                    /* a real one */
} Service;

/* A request of the guest that was not answered yet */
typedef struct Request {
    Service service;
    uint64_t gpa, pages;
    bool private;
    uint64_t faults;            /* memory faults for it so far */
} Request;

typedef struct Part {
    uint32_t id, slot;          /* the real number; the emulator's */
    uint64_t gpa, size;         /* bytes */
} Part;

struct Real {
    GArray *parts;              /* Part; with vm->lock */
    uint8_t used[MAX_PARTS];    /* numbers of real slots; with vm->lock */
    pthread_mutex_t lock;       /* innermost; for what follows */
    pthread_cond_t changed;
    int running;                /* vCPUs in the guest */
    bool stop;                  /* let no vCPU in */
};

typedef struct Runner {
    Request request;
    pthread_t thread;
    bool running;               /* with Real.lock */
} Runner;

static struct Real *real_of(SimVm *vm)
{
    return vm->real_slots;
}

static bool separate(const SimVm *vm)
{
    return sim_vm_has_private(vm) && !sim_in_place();
}

int sim_real_create_vm(SimVm *vm)
{
    int kvm = sim_real_open("/dev/kvm", O_RDWR | O_CLOEXEC);
    struct Real *r;
    int fd;

    if (kvm < 0) {
        return -errno;
    }
    fd = sim_real_ioctl(kvm, KVM_CREATE_VM, NULL);
    sim_real_close(kvm);
    if (fd < 0) {
        return fd;
    }
    r = g_new0(struct Real, 1);
    r->parts = g_array_new(FALSE, FALSE, sizeof(Part));
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->changed, NULL);
    vm->real_slots = r;
    vm->real = sim_real_dup(fd);
    return fd;
}

void sim_real_free_vm(SimVm *vm)
{
    struct Real *r = real_of(vm);

    g_array_free(r->parts, TRUE);
    pthread_mutex_destroy(&r->lock);
    pthread_cond_destroy(&r->changed);
    g_free(r);
    sim_real_close(vm->real);
}

/* --- guest_memfd --- */

int sim_real_create_gmem(SimVm *vm, uint64_t size)
{
    struct kvm_create_guest_memfd args = {
        .size = size,
        .flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED,
    };
    int fd = sim_real_ioctl(vm->real, KVM_CREATE_GUEST_MEMFD, &args);

    if (fd == -ENOTTY || fd == -EINVAL) {
        sim_unmodelled("kvm mode on a KVM without mappable guest_memfd: it "
                       "needs a host with Linux 6.18 or later");
    }
    return fd;
}

uint64_t sim_real_allocated(int fd)
{
    /* cachestat(2): range in bytes, counts in pages. */
    uint64_t range[2] = { 0, 0 }, counts[5];

    return syscall(451, fd, range, counts, 0) ? 0 : counts[0] * SIM_PAGE;
}

/* --- vCPUs in the guest --- */

static __thread SimVcpu *in_guest;
static int kick_signal;

/* Runs in the thread of a vCPU, on its way in or in the guest. */
static void on_kick(int signal)
{
    if (in_guest) {
        __atomic_store_n(&in_guest->run->immediate_exit, 1, __ATOMIC_RELEASE);
    }
}

static void catch_kicks(void)
{
    struct sigaction action = { .sa_handler = on_kick };

    kick_signal = SIGRTMIN;
    sigaction(kick_signal, &action, NULL);
}

static void enter(SimVcpu *vcpu, Runner *runner)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct Real *r = real_of(vcpu->vm);
    sigset_t kick;

    if (!runner->thread) {
        pthread_once(&once, catch_kicks);
        sigemptyset(&kick);
        sigaddset(&kick, kick_signal);
        pthread_sigmask(SIG_UNBLOCK, &kick, NULL);
        runner->thread = pthread_self();
    }
    pthread_mutex_lock(&r->lock);
    while (r->stop) {
        pthread_cond_wait(&r->changed, &r->lock);
    }
    in_guest = vcpu;
    runner->running = true;
    r->running++;
    pthread_mutex_unlock(&r->lock);
}

static void leave(SimVcpu *vcpu, Runner *runner)
{
    struct Real *r = real_of(vcpu->vm);

    pthread_mutex_lock(&r->lock);
    runner->running = false;
    in_guest = NULL;
    r->running--;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

/* Get all vCPUs out of the guest, and keep them out.  With vm->lock held. */
static void stop(SimVm *vm)
{
    struct Real *r = real_of(vm);
    guint i;

    pthread_mutex_lock(&r->lock);
    r->stop = true;
    for (i = 0; i < vm->vcpus->len; i++) {
        SimVcpu *vcpu = g_ptr_array_index(vm->vcpus, i);
        Runner *runner = vcpu->runner;

        /* One signal is enough: its handler sets immediate_exit. */
        if (runner && runner->running) {
            pthread_kill(runner->thread, kick_signal);
        }
    }
    while (r->running) {
        pthread_cond_wait(&r->changed, &r->lock);
    }
    pthread_mutex_unlock(&r->lock);
}

static void go_on(SimVm *vm)
{
    struct Real *r = real_of(vm);

    pthread_mutex_lock(&r->lock);
    r->stop = false;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

/* --- memslots --- */

static void set_real(SimVm *vm, struct kvm_userspace_memory_region2 *r)
{
    int ret = sim_real_ioctl(vm->real, KVM_SET_USER_MEMORY_REGION2, r);

    if (ret) {
        sim_unmodelled("refused by the real KVM: memslot 0x%x, gpa 0x%" PRIx64
                       ", 0x%" PRIx64 " bytes: %s", r->slot,
                       (uint64_t)r->guest_phys_addr, (uint64_t)r->memory_size,
                       strerror(-ret));
    }
}

/*
 * Where the real KVM finds a slot's memory when it emulates an instruction.
 * For a software-protected VM that is the emulator's mapping, whatever the
 * state of the page.  With SEV-SNP and TDX, KVM never accesses private memory;
 * but the real KVM has to emulate more than it would there, so it gets a view
 * that no private page is hidden in.
 */
static uintptr_t kvm_address(const SimVm *vm, const SimSlot *slot)
{
    return vm->type == KVM_X86_SW_PROTECTED_VM || !slot->gmem
           ? (uintptr_t)slot->hva
           : (uintptr_t)slot->gmem->view + slot->offset;
}

/* One real slot for pages of the same state. */
static void add_part(SimVm *vm, const SimSlot *slot, uint64_t gpa,
                     uint64_t size, bool private)
{
    uint64_t in_slot = gpa - slot->gpa;
    struct kvm_userspace_memory_region2 region = {
        .flags = slot->flags & ~KVM_MEM_GUEST_MEMFD,
        .guest_phys_addr = gpa,
        .memory_size = size,
        .userspace_addr = (uintptr_t)slot->hva + in_slot,
    };
    struct Real *r = real_of(vm);
    Part part = { .slot = slot->id, .gpa = gpa, .size = size };
    uint8_t *free_one = memchr(r->used, 0, MAX_PARTS);

    if (!free_one) {
        sim_unmodelled("more than %d runs of private and shared pages",
                       MAX_PARTS);
    }
    *free_one = 1;
    part.id = FIRST_PART + (free_one - r->used);
    if (private) {
        region.flags |= KVM_MEM_GUEST_MEMFD;
        region.guest_memfd = slot->gmem->fd;
        region.guest_memfd_offset = slot->offset + in_slot;
        region.userspace_addr = kvm_address(vm, slot) + in_slot;
    }
    region.slot = part.id;
    set_real(vm, &region);
    g_array_append_val(r->parts, part);
}

/*
 * Deletes the parts of a slot that overlap or adjoin a range, and extends the
 * range by them.  Returns their number.
 */
static guint remove_parts(SimVm *vm, uint32_t slot, uint64_t *start,
                          uint64_t *end)
{
    struct Real *r = real_of(vm);
    uint64_t from = *start, to = *end;
    guint before = r->parts->len, i = 0;

    while (i < r->parts->len) {
        Part *part = &g_array_index(r->parts, Part, i);
        struct kvm_userspace_memory_region2 region = { .slot = part->id };

        if (part->slot != slot || part->gpa > to ||
            part->gpa + part->size < from) {
            i++;
            continue;
        }
        set_real(vm, &region);
        *start = MIN(*start, part->gpa);
        *end = MAX(*end, part->gpa + part->size);
        r->used[part->id - FIRST_PART] = 0;
        g_array_remove_index_fast(r->parts, i);
    }
    return before - r->parts->len;
}

/* Make the parts of a slot anew in a range that lies in it. */
static void make_parts(SimVm *vm, const SimSlot *slot, uint64_t start,
                       uint64_t end)
{
    uint64_t page = start >> SIM_PAGE_SHIFT, next;

    for (; page < end >> SIM_PAGE_SHIFT; page = next) {
        next = sim_bitmap_run(&vm->private, page, end >> SIM_PAGE_SHIFT);
        add_part(vm, slot, page << SIM_PAGE_SHIFT,
                 (next - page) << SIM_PAGE_SHIFT,
                 sim_bitmap_test(&vm->private, page));
    }
}

int sim_real_set_region(SimVm *vm, const SimSlot *slot,
                        const struct kvm_userspace_memory_region2 *r)
{
    struct kvm_userspace_memory_region2 region = *r;
    uint64_t start = 0, end = UINT64_MAX;

    if (separate(vm) && slot && slot->gmem) {
        make_parts(vm, slot, slot->gpa, slot->gpa + slot->size);
        return 0;
    }
    if (separate(vm) && !slot && remove_parts(vm, r->slot, &start, &end)) {
        return 0;
    }
    if (slot && sim_vm_has_private(vm)) {
        region.userspace_addr = kvm_address(vm, slot);
    }
    if (slot && slot->gmem && !(slot->gmem->flags & GUEST_MEMFD_FLAG_MMAP)) {
        /* It serves private pages only, and this VM has none. */
        region.flags &= ~KVM_MEM_GUEST_MEMFD;
    }
    return sim_real_ioctl(vm->real, KVM_SET_USER_MEMORY_REGION2, &region);
}

void sim_real_attributes_changed(SimVm *vm, uint64_t gpa, uint64_t size)
{
    guint i;

    stop(vm);
    for (i = 0; i < vm->slots->len; i++) {
        const SimSlot *slot = g_ptr_array_index(vm->slots, i);
        uint64_t start = MAX(gpa, slot->gpa);
        uint64_t end = MIN(gpa + size, slot->gpa + slot->size);

        if (slot->gmem && start < end) {
            remove_parts(vm, slot->id, &start, &end);
            make_parts(vm, slot, start, end);
        }
    }
    go_on(vm);
}

/* --- KVM_RUN --- */

void sim_real_free_vcpu(SimVcpu *vcpu)
{
    g_free(vcpu->runner);
}

/* Does the real KVM take page tables with pages of 1 GiB? */
static bool has_gib_pages(void)
{
    size_t max = 256;
    g_autofree struct kvm_cpuid2 *cpuid =
        g_malloc0(sizeof(*cpuid) + max * sizeof(*cpuid->entries));
    int kvm = sim_real_open("/dev/kvm", O_RDWR | O_CLOEXEC);
    bool has = false;
    uint32_t i;

    cpuid->nent = max;
    if (!sim_real_ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid)) {
        for (i = 0; i < cpuid->nent; i++) {
            has |= cpuid->entries[i].function == FEATURES_LEAF &&
                   cpuid->entries[i].edx & GIB_PAGES;
        }
    }
    sim_real_close(kvm);
    return has;
}

int sim_real_set_cpuid(int fd, const struct kvm_cpuid2 *cpuid)
{
    g_autofree struct kvm_cpuid2 *copy =
        g_memdup2(cpuid, sizeof(*cpuid) +
                  cpuid->nent * sizeof(*cpuid->entries));
    uint32_t i;

    for (i = 0; i < copy->nent; i++) {
        if (copy->entries[i].function == FEATURES_LEAF && !has_gib_pages()) {
            copy->entries[i].edx &= ~GIB_PAGES;
        }
    }
    return sim_real_ioctl(fd, KVM_SET_CPUID2, copy);
}

/* Completes the guest's instruction, without running the next one. */
static void complete_instruction(SimVcpu *vcpu, int fd)
{
    sigset_t all, old;
    uint8_t wanted;

    /* A signal handler may have set immediate_exit, too; keep that. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    wanted = vcpu->run->immediate_exit;
    vcpu->run->immediate_exit = 1;
    sim_real_ioctl(fd, KVM_RUN, NULL);
    vcpu->run->immediate_exit = wanted;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

static void set_rax(int fd, uint64_t value)
{
    struct kvm_regs regs;
    int ret = sim_real_ioctl(fd, KVM_GET_REGS, &regs);

    if (!ret) {
        regs.rax = value;
        ret = sim_real_ioctl(fd, KVM_SET_REGS, &regs);
    }
    if (ret) {
        sim_unmodelled("a vCPU whose registers cannot be read: %s",
                       strerror(-ret));
    }
}

/* The state of a page, in the numbers of the firmware's enum State. */
static int state_at(SimVm *vm, uint64_t gpa)
{
    SimSlot *slot;
    int state = 2;

    pthread_mutex_lock(&vm->lock);
    slot = sim_slot_find(vm, gpa);
    if (slot && slot->gmem) {
        state = sim_gpa_private(vm, gpa);
    }
    pthread_mutex_unlock(&vm->lock);
    return state;
}

/*
 * The guest takes pages to be private, or shared.  Returns what KVM_RUN
 * answers, or SIM_PASS when they are.
 */
static int run_access(SimVcpu *vcpu, Request *q)
{
    for (; q->pages; q->pages--, q->gpa += SIM_PAGE, q->faults = 0) {
        int state = state_at(vcpu->vm, q->gpa);

        if (state != 2 && state != q->private) {
            sim_check_progress(++q->faults, q->gpa, q->private);
            return sim_exit_memory_fault(vcpu, q->gpa, SIM_PAGE, q->private);
        }
    }
    return SIM_PASS;
}

/* Returns what KVM_RUN answers, or SIM_PASS if the guest shall go on. */
static int begin_request(SimVcpu *vcpu, int fd, Request *q)
{
    struct kvm_regs regs;
    int ret = sim_real_ioctl(fd, KVM_GET_REGS, &regs);

    if (ret) {
        return ret;
    }
    *q = (Request) {
        .service = regs.rax,
        .gpa = regs.rbx,
        .pages = regs.rcx,
    };
    complete_instruction(vcpu, fd);
    switch (q->service) {
    case HYPERCALL:
        if (!(vcpu->vm->hypercalls & 1ULL << KVM_HC_MAP_GPA_RANGE)) {
            q->service = NONE;
            set_rax(fd, -KVM_ENOSYS);
            return SIM_PASS;
        }
        sim_exit_hypercall(vcpu, q->gpa, q->pages, false);
        vcpu->run->hypercall.args[2] = regs.rsi;
        return 0;
    case ACCESS:
        q->gpa &= ~(SIM_PAGE - 1);
        q->private = regs.rsi;
        return SIM_PASS;
    case STATE:
        q->service = NONE;
        set_rax(fd, state_at(vcpu->vm, q->gpa));
        return SIM_PASS;
    default:
        sim_unmodelled("port 0x%x: service %d", MODEL_PORT, q->service);
    }
}

/*
 * Answers the guest's last request, or leaves once more for it.  Returns what
 * KVM_RUN answers, or SIM_PASS if the guest shall go on.
 */
static int end_request(SimVcpu *vcpu, int fd, Request *q)
{
    int ret;

    switch (q->service) {
    case HYPERCALL:
        set_rax(fd, sim_hypercall_answer(vcpu));
        break;
    case VMMCALL:
        sim_hypercall_answer(vcpu);
        break;
    case ACCESS:
        ret = run_access(vcpu, q);
        if (ret != SIM_PASS) {
            return ret;
        }
        set_rax(fd, 0);
        break;
    default:
        break;
    }
    q->service = NONE;
    return SIM_PASS;
}

/* An exit of the real KVM that goes to the emulator as it is. */
static void real_exit(const SimVcpu *vcpu)
{
    uint32_t reason = vcpu->run->exit_reason;

    sim_count(SIM_EXITS, 1);
    /* Port I/O and MMIO are too frequent for the log. */
    if (reason != KVM_EXIT_IO && reason != KVM_EXIT_MMIO) {
        sim_log(reason == KVM_EXIT_HYPERCALL ? "KVM_EXIT_HYPERCALL"
                : "KVM_RUN", 0, "\"vcpu\": %d, \"exit-reason\": %u",
                vcpu->id, reason);
    }
}

int sim_real_run(SimVcpu *vcpu, int fd)
{
    struct kvm_run *run = vcpu->run;
    Runner *runner = vcpu->runner;
    int ret;

    if (!runner) {
        runner = g_new0(Runner, 1);
        pthread_mutex_lock(&vcpu->vm->lock);
        vcpu->runner = runner;
        pthread_mutex_unlock(&vcpu->vm->lock);
    }
    for (;;) {
        ret = end_request(vcpu, fd, &runner->request);
        if (ret != SIM_PASS) {
            return ret;
        }
        enter(vcpu, runner);
        ret = sim_real_ioctl(fd, KVM_RUN, NULL);
        leave(vcpu, runner);
        if (ret) {
            return ret;
        }
        if (run->exit_reason == KVM_EXIT_HYPERCALL) {
            runner->request.service = VMMCALL;
        }
        if (run->exit_reason != KVM_EXIT_IO || run->io.port != MODEL_PORT) {
            real_exit(vcpu);
            return 0;
        }
        if (run->io.direction == KVM_EXIT_IO_IN) {
            *((uint8_t *)run + run->io.data_offset) = MODEL_PRESENT;
            continue;
        }
        ret = begin_request(vcpu, fd, &runner->request);
        if (ret != SIM_PASS) {
            return ret;
        }
    }
}
