/*
 * KVM guest_memfd: what a vCPU leaves KVM for
 *
 * Hypercalls.  A guest asks for pages to be shared or private
 * (KVM_HC_MAP_GPA_RANGE).  It is answered with 0, EINVAL or EAGAIN, because
 * KVM takes nothing else; whatever it asks, the VM goes on.
 *
 * A page that somebody holds is tried for a while.  TDX guests then ask again
 * by themselves; SEV-SNP guests take any refusal as the end of them, so for
 * these it is a long while.  In the meantime the thread is to be had for
 * others (stop, reset, quit, work for the vCPU): it leaves the conversion with
 * nothing changed, and goes on when the vCPU is to run again.  KVM waits for
 * the answer as long.  A guest that can be reset is told EAGAIN instead.
 *
 * Memory faults.  SEV-SNP and TDX guests say whether they take a page for
 * shared or private; if it is not, that is a request like a hypercall, only
 * that nobody can be told that it has failed.  A guest that takes any state
 * (software-protected) asks for nothing: the fault raced with a conversion,
 * and the same access works now.  So does one of the others, if the page is
 * already as it wants it.  Such faults are old news, and the vCPU runs on.
 * But the same fault also comes when the kernel has no page to give.  So if it
 * comes again and again, and nothing is converted any more, the VM stops.
 *
 * EFAULT without a reason is the same for memory that KVM reaches through the
 * mapping only, which has no private pages; but here nobody says where.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include <linux/kvm.h>
#include <linux/kvm_para.h>
#include "hw/core/boards.h"
#include "hw/core/cpu.h"
#include "qemu/error-report.h"
#include "qemu/units.h"
#include "system/confidential-guest-support.h"
#include "system/cpus.h"
#include "system/guest-memfd.h"
#include "system/kvm.h"
#include "gmem/accel/kvm/guest-memfd-uapi.h"
#include "gmem/trace.h"

/* Pages of KVM_HC_MAP_GPA_RANGE, whatever the host's are. */
#define HC_PAGE_SIZE (4 * KiB)

/* Its bits 0 to 3 say which size of page suits, 4 what the pages shall be. */
#define HC_PAGE_SIZES 0xf
#define HC_PRIVATE BIT(4)

/* How long to try for a page that somebody holds, in microseconds. */
#define RETRY_US (1 * 1000 * 1000)
#define RETRY_FATAL_US (60 * 1000 * 1000)

/* The same fault so long and so often is no news any more. */
#define FAULT_US (1 * 1000 * 1000)
#define FAULT_LONG_US (60 * 1000 * 1000)
#define FAULTS 10
#define FAULT_PAUSE_US 1000

/* After such a time it is another one: the guest has run in between. */
#define FAULT_GAP_US (100 * 1000)

/* At most one warning in this time. */
#define WARNING_US (10 * 1000 * 1000)

/*
 * Wanted: the conversion that the vCPU of this thread asked for last
 * @pending: it is that of a hypercall, and is to be gone on with
 * @rebuilds: of the guest so far; another VM's guest has not asked for it
 * @spent: microseconds that were spent on it so far
 */
typedef struct Wanted {
    bool pending;
    uint64_t rebuilds;
    hwaddr gpa;
    hwaddr size;
    bool private;
    int64_t spent;
} Wanted;

/*
 * Fault: the last one that was old news, of the vCPU of this thread
 * @since, @all_since: when it came first; after a conversion, and at all
 * @last: when it came last
 * @times: how often it came since @all_since
 * @conversions: as there were at @since
 */
typedef struct Fault {
    hwaddr gpa;
    bool private;
    int64_t since;
    int64_t all_since;
    int64_t last;
    unsigned times;
    uint64_t conversions;
} Fault;

static __thread Wanted wanted;
static __thread Fault last_fault;

static bool vcpu_is_wanted(void)
{
    return qatomic_read(&current_cpu->exit_request);
}

static const char *state_name(bool private)
{
    return private ? "private" : "shared";
}

/* A guest can have this said as often as it likes. */
static void warn_busy(hwaddr gpa, hwaddr size)
{
    static int64_t next_warning;
    int64_t now = g_get_monotonic_time();
    int64_t due = qatomic_read(&next_warning);
    g_autofree char *page = NULL;

    if (now < due ||
        qatomic_cmpxchg(&next_warning, due, now + WARNING_US) != due) {
        return;
    }
    page = guest_memfd_busy_page(gpa, size);
    warn_report("guest_memfd: 0x%" HWADDR_PRIx " bytes at gpa 0x%" HWADDR_PRIx
                " cannot become private, because somebody holds the %s: a "
                "device, or I/O in flight",
                size, gpa, page ?: "memory");
}

/* How long the guest's requests are tried. */
static int64_t retry_us(void)
{
    return current_machine->cgs->retries ? RETRY_US : RETRY_FATAL_US;
}

/*
 * Convert what is wanted.  Returns 0; -EINTR, and it is to be gone on with;
 * -EAGAIN, or -EINVAL.
 */
static int convert(void)
{
    int64_t begun = g_get_monotonic_time();
    GuestMemfdPatience patience = {
        .timeout = retry_us() - wanted.spent,
        .interrupted = vcpu_is_wanted,
    };
    int ret;

    ret = guest_memfd_convert_gpa(wanted.gpa, wanted.size, wanted.private,
                                  &patience);
    wanted.spent += g_get_monotonic_time() - begun;
    switch (ret) {
    case 0:
    case -EINTR:
    case -EINVAL:
        return ret;
    case -EAGAIN:
        warn_busy(wanted.gpa, wanted.size);
        return ret;
    case -ENOMEM:
        return -EAGAIN;
    default:
        return -EINVAL;
    }
}

/*
 * Have the guest's next touch of these pages cost no exit.  What fails here is
 * found out when they are touched.
 */
static void pre_fault(CPUState *cpu, hwaddr gpa, hwaddr size)
{
    struct kvm_pre_fault_memory range = { .gpa = gpa, .size = size };

    while (kvm_pre_fault_memory_supported && range.size &&
           !vcpu_is_wanted() &&
           kvm_vcpu_ioctl(cpu, KVM_PRE_FAULT_MEMORY, &range) == 0) {
        /* It has moved on in the range. */
    }
}

/* Convert, and answer the guest.  Returns what to do with the vCPU. */
static int answer(CPUState *cpu, struct kvm_run *run)
{
    int ret = convert();

    if (ret == -EINTR && cpus_are_resettable()) {
        /*
         * KVM will put the answer into the registers when the vCPU runs
         * again, and these may be those of a reset by then.
         */
        ret = -EAGAIN;
    }
    if (ret == -EINTR) {
        wanted.pending = true;
        wanted.rebuilds = guest_memfd_rebuilds();
        return EXCP_INTERRUPT;
    }
    wanted.pending = false;
    wanted.spent = 0;
    run->hypercall.ret = -ret;
    if (!ret) {
        pre_fault(cpu, wanted.gpa, wanted.size);
    }
    trace_kvm_guest_memfd_hypercall(cpu->cpu_index, wanted.gpa, wanted.size,
                                    wanted.private, -ret);
    return 0;
}

bool kvm_guest_memfd_hypercall(CPUState *cpu, struct kvm_run *run, int *ret)
{
    uint64_t pages = run->hypercall.args[1];
    uint64_t attributes = run->hypercall.args[2];

    if (run->hypercall.nr != KVM_HC_MAP_GPA_RANGE ||
        !guest_memfd_is_required(current_machine)) {
        return false;
    }
    *ret = 0;
    if (attributes & ~(uint64_t)(HC_PAGE_SIZES | HC_PRIVATE) ||
        pages > UINT64_MAX / HC_PAGE_SIZE) {
        trace_kvm_guest_memfd_bad_hypercall(cpu->cpu_index,
                                            run->hypercall.args[0], pages,
                                            attributes);
        run->hypercall.ret = EINVAL;
        return true;
    }
    wanted = (Wanted) {
        .gpa = run->hypercall.args[0],
        .size = pages * HC_PAGE_SIZE,
        .private = attributes & HC_PRIVATE,
    };
    *ret = answer(cpu, run);
    return true;
}

bool kvm_guest_memfd_resume(CPUState *cpu, struct kvm_run *run, int *ret)
{
    if (wanted.rebuilds != guest_memfd_rebuilds()) {
        wanted = (Wanted) { .rebuilds = guest_memfd_rebuilds() };
    }
    if (!wanted.pending) {
        return false;
    }
    *ret = answer(cpu, run);
    return *ret != 0;
}

/*
 * A fault that is no request.  Returns false if it came too often; else it has
 * waited a little, if it is not the first of its kind.
 */
static bool is_old_news(hwaddr gpa, bool private)
{
    uint64_t conversions = guest_memfd_conversions();
    int64_t now = g_get_monotonic_time();
    Fault *f = &last_fault;

    if (!f->times || f->gpa != gpa || f->private != private ||
        now - f->last > FAULT_GAP_US) {
        *f = (Fault) {
            .gpa = gpa,
            .private = private,
            .since = now,
            .all_since = now,
            .conversions = conversions,
        };
    } else if (f->conversions != conversions) {
        f->since = now;
        f->conversions = conversions;
    }
    f->last = now;
    f->times++;
    if (f->times > FAULTS && (now - f->since >= FAULT_US ||
                              now - f->all_since >= FAULT_LONG_US)) {
        f->times = 0;
        return false;
    }
    if (f->times > 1) {
        g_usleep(FAULT_PAUSE_US);
    }
    return true;
}

/* A memory fault that is a request.  Returns what to do with the vCPU. */
static int serve_fault(hwaddr gpa, hwaddr size, bool private)
{
    int ret;

    /* One that was interrupted comes again by itself; nothing was done. */
    if (wanted.gpa != gpa || wanted.size != size ||
        wanted.private != private) {
        wanted = (Wanted) { .gpa = gpa, .size = size, .private = private };
    }
    ret = guest_memfd_is_required(current_machine) ? convert() : -EINVAL;
    if (ret == -EINTR) {
        return EXCP_INTERRUPT;
    }
    if (ret == -EAGAIN && wanted.spent < retry_us()) {
        /* The kernel lacks memory: it comes again. */
        g_usleep(FAULT_PAUSE_US);
        wanted.spent += FAULT_PAUSE_US;
        return 0;
    }
    wanted.spent = 0;
    if (ret) {
        error_report("the guest takes 0x%" HWADDR_PRIx " bytes at gpa 0x%"
                     HWADDR_PRIx " for %s, which they cannot become: %s",
                     size, gpa, state_name(private), strerror(-ret));
    }
    return ret;
}

int kvm_guest_memfd_memory_fault(CPUState *cpu, struct kvm_run *run)
{
    const ConfidentialGuestSupport *cgs = current_machine->cgs;
    hwaddr gpa = run->memory_fault.gpa;
    hwaddr size = run->memory_fault.size;
    bool private = run->memory_fault.flags & KVM_MEMORY_EXIT_FLAG_PRIVATE;
    int differs;

    if (!cgs || !cgs->require_guest_memfd) {
        /* It has no private memory. */
        differs = private;
    } else if (cgs->takes_any_state) {
        differs = 0;
    } else {
        differs = guest_memfd_gpa_differs(gpa, size, private);
    }
    trace_kvm_guest_memfd_memory_fault(cpu->cpu_index, gpa, size, private,
                                       differs);
    if (differs) {
        return serve_fault(gpa, size, private);
    }
    wanted.spent = 0;
    if (is_old_news(gpa, private)) {
        return 0;
    }
    error_report("the guest cannot access 0x%" HWADDR_PRIx " bytes at gpa 0x%"
                 HWADDR_PRIx " as %s memory: KVM fails again and again, and "
                 "not because of their state; is there memory left on the "
                 "host, and at this gpa?", size, gpa, state_name(private));
    return -EFAULT;
}

bool kvm_guest_memfd_retry(CPUState *cpu, struct kvm_run *run, int error)
{
    if (error != -EFAULT || run->exit_reason != KVM_EXIT_UNKNOWN ||
        !guest_memfd_in_place()) {
        return false;
    }
    trace_kvm_guest_memfd_retry(cpu->cpu_index);
    if (is_old_news(UINT64_MAX, true)) {
        return true;
    }
    error_report("the guest has made memory private that KVM reaches through "
                 "a mapping only, and uses it: read-only memory, memory of "
                 "system management mode, or a second alias; see 'info "
                 "guest-memfd'");
    return false;
}

bool kvm_guest_memfd_vcpu_is_lost(const CPUState *cpu)
{
    return !cpu->kvm_run;
}

bool kvm_guest_memfd_is_mmio(struct kvm_run *run)
{
    const hwaddr page_mask = qemu_real_host_page_size() - 1;
    hwaddr gpa = run->mmio.phys_addr & ~page_mask;

    if (!guest_memfd_in_place() ||
        guest_memfd_gpa_differs(gpa, page_mask + 1, false) <= 0) {
        return true;
    }
    error_report("the guest's code needs KVM to emulate an access to private "
                 "memory at gpa 0x%" PRIx64 ", which KVM cannot; such code "
                 "has to use shared memory", (uint64_t)run->mmio.phys_addr);
    return false;
}
