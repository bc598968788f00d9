/*
 * KVM guest_memfd: what a vCPU leaves KVM for
 *
 * Hypercalls.  A guest asks for pages to be shared or private
 * (KVM_HC_MAP_GPA_RANGE).  It is answered with 0, EINVAL or EAGAIN, because
 * KVM takes nothing else; whatever it asks, the VM runs on.  After an error a
 * part of the range, from its start on, may have been converted.
 *
 * Retry policy.  A page that is busy is tried for a while.  TDX guests then ask
 * again by themselves; SEV-SNP guests take any refusal as the end of them, so
 * for these it is a long while.  In the meantime the thread is available for
 * other work (stop, reset, quit, work for the vCPU): it leaves the conversion
 * after a chunk, and goes on from there when the vCPU is to run again.  KVM
 * waits for the answer as long.  A guest that can be reset is told EAGAIN
 * instead.
 *
 * Memory faults.  SEV-SNP and TDX guests say whether they take a page for
 * shared or private; if it is not, that is a request like a hypercall, except
 * that the guest cannot be told that it has failed.  A guest that takes any
 * state (software-protected) asks for nothing: the fault raced with a
 * conversion, and the same access works now.  So does an access of the other
 * guests, if the page is already as they want it.  Such faults are stale, and
 * the vCPU runs on.  But the same fault also comes when the kernel has no page
 * to give.  So if it comes again and again, and nothing is converted any more,
 * the VM stops.
 *
 * EFAULT without a reason is the same for memory that KVM reaches through the
 * mapping only, which has no private pages; but no address is reported then.
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
#include "system/kvm.h"
#include "gmem/accel/kvm/guest-memfd.h"
#include "gmem/accel/kvm/guest-memfd-uapi.h"
#include "gmem/system/guest-memfd-gpa.h"
#include "gmem/system/guest-memfd-rebuild.h"
#include "gmem/trace.h"

/* Pages of KVM_HC_MAP_GPA_RANGE, whatever the host's are. */
#define HC_PAGE_SIZE (4 * KiB)

/* Its bits 0 to 3 say which size of page suits, 4 what the pages shall be. */
#define HC_PAGE_SIZES 0xf
#define HC_PRIVATE BIT(4)

/* What a guest converts at once beyond that, it does not use at once. */
#define PRE_FAULT_MAX (2 * MiB)

/* How long to try for a page that is busy, in microseconds */
#define RETRY_US (1 * 1000 * 1000)
#define RETRY_FATAL_US (60 * 1000 * 1000)

/* A fault that comes so long and so often is not stale. */
#define FAULT_US (1 * 1000 * 1000)
#define FAULT_LONG_US (60 * 1000 * 1000)
#define FAULTS 10
#define FAULT_PAUSE_US 1000

/* After such a time it is another fault: the guest has run in between. */
#define FAULT_GAP_US (100 * 1000)

/*
 * PageStateRequest: the conversion that the vCPU of this thread asked for last
 * @pending: it is that of a hypercall, and is to be gone on with
 * @rebuilds: of the guest so far; the guest of a new VM has not asked for it
 * @asked_gpa, @asked_size: the whole of it, in bytes
 * @gpa, @size: bytes that are left to convert
 * @spent: microseconds that were spent on it since it came forward
 */
typedef struct PageStateRequest {
    bool pending;
    unsigned rebuilds;
    hwaddr asked_gpa;
    hwaddr asked_size;
    hwaddr gpa;
    hwaddr size;
    bool private;
    int64_t spent;
} PageStateRequest;

/*
 * StaleFault: the last stale fault of the vCPU of this thread
 * @since, @all_since: when it came first; after a conversion, and at all
 * @last: when it came last
 * @times: how often it came since @all_since
 * @conversions: how many there were at @since
 */
typedef struct StaleFault {
    hwaddr gpa;
    bool private;
    int64_t since;
    int64_t all_since;
    int64_t last;
    unsigned times;
    unsigned conversions;
} StaleFault;

static __thread PageStateRequest request;
static __thread StaleFault last_fault;

static bool vcpu_is_wanted(void)
{
    return qatomic_read(&current_cpu->exit_request);
}

static const char *state_name(bool private)
{
    return private ? "private" : "shared";
}

/* How long the guest's requests are tried. */
static int64_t retry_us(void)
{
    return current_machine->cgs->retries ? RETRY_US : RETRY_FATAL_US;
}

static void request_begin(hwaddr gpa, hwaddr size, bool private)
{
    request = (PageStateRequest) {
        .asked_gpa = gpa,
        .asked_size = size,
        .gpa = gpa,
        .size = size,
        .private = private,
    };
}

/*
 * Convert what is left of the request.  Returns 0; -EINTR, and it is to be gone
 * on with; -EAGAIN, or -EINVAL.
 */
static int request_convert(void)
{
    int64_t begun = g_get_monotonic_time();
    GuestMemfdRetry retry = {
        .timeout = retry_us() - request.spent,
        .interrupted = vcpu_is_wanted,
    };
    hwaddr done;
    int ret = guest_memfd_convert_gpa(request.gpa, request.size,
                                      request.private, &retry, &done);

    request.gpa += done;
    request.size -= done;
    request.spent += g_get_monotonic_time() - begun;
    if (done) {
        request.spent = 0;
    }
    switch (ret) {
    case 0:
    case -EINTR:
    case -EINVAL:
        return ret;
    case -EAGAIN:
        /* A page was busy for all of the time. */
        request.spent = retry_us();
        return ret;
    case -ENOMEM:
        return -EAGAIN;
    default:
        return -EINVAL;
    }
}

/*
 * Have the guest's next touch of these pages cost no exit.  That allocates
 * them, so not for large ranges.  What fails here fails again when they are
 * touched.
 */
static void pre_fault(CPUState *cpu, hwaddr gpa, hwaddr size)
{
    struct kvm_pre_fault_memory range = { .gpa = gpa, .size = size };

    while (kvm_pre_fault_memory_supported && size <= PRE_FAULT_MAX &&
           range.size && !vcpu_is_wanted() &&
           kvm_vcpu_ioctl(cpu, KVM_PRE_FAULT_MEMORY, &range) == 0) {
        /* It has moved on in the range. */
    }
}

/* Convert, and answer the guest.  Returns what to do with the vCPU. */
static int request_answer(CPUState *cpu, struct kvm_run *run)
{
    int ret = request_convert();

    if (ret == -EINTR && cpus_are_resettable()) {
        /*
         * KVM will put the answer into the registers when the vCPU runs
         * again, and these may be those of a reset by then.
         */
        ret = -EAGAIN;
    }
    if (ret == -EINTR) {
        request.pending = true;
        request.rebuilds = guest_memfd_rebuilds();
        return EXCP_INTERRUPT;
    }
    request.pending = false;
    request.spent = 0;
    run->hypercall.ret = -ret;
    if (!ret) {
        pre_fault(cpu, run->hypercall.args[0],
                  run->hypercall.args[1] * HC_PAGE_SIZE);
    }
    trace_kvm_guest_memfd_hypercall(cpu->cpu_index, run->hypercall.args[0],
                                    run->hypercall.args[1] * HC_PAGE_SIZE,
                                    request.private, -ret);
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
    request_begin(run->hypercall.args[0], pages * HC_PAGE_SIZE,
                  attributes & HC_PRIVATE);
    *ret = request_answer(cpu, run);
    return true;
}

bool kvm_guest_memfd_resume(CPUState *cpu, struct kvm_run *run, int *ret)
{
    if (request.rebuilds != guest_memfd_rebuilds()) {
        request = (PageStateRequest) { .rebuilds = guest_memfd_rebuilds() };
    }
    if (!request.pending) {
        return false;
    }
    *ret = request_answer(cpu, run);
    return *ret != 0;
}

/*
 * A fault that is no request.  Returns false if it came too often; else this
 * has waited a little, if it is not the first of its kind.
 */
static bool fault_is_stale(hwaddr gpa, bool private)
{
    unsigned conversions = guest_memfd_conversions();
    int64_t now = g_get_monotonic_time();
    StaleFault *f = &last_fault;

    if (!f->times || f->gpa != gpa || f->private != private ||
        now - f->last > FAULT_GAP_US) {
        *f = (StaleFault) {
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
static int fault_serve(hwaddr gpa, hwaddr size, bool private)
{
    int ret;

    /*
     * A fault that was interrupted, or found no memory, comes again by itself.
     * The conversion goes on where it has stopped.  If it began anew, each time
     * the pages before that place would count as progress, and it would never
     * be given up.
     */
    if (request.asked_gpa != gpa || request.asked_size != size ||
        request.private != private || !request.size) {
        request_begin(gpa, size, private);
    }
    ret = guest_memfd_is_required(current_machine) ? request_convert()
                                                   : -EINVAL;
    if (ret == -EINTR) {
        return EXCP_INTERRUPT;
    }
    if (ret == -EAGAIN && request.spent < retry_us()) {
        /* The kernel lacks memory: the fault comes again. */
        g_usleep(FAULT_PAUSE_US);
        request.spent += FAULT_PAUSE_US;
        return 0;
    }
    request.spent = 0;
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
        return fault_serve(gpa, size, private);
    }
    request.spent = 0;
    if (fault_is_stale(gpa, private)) {
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
    if (fault_is_stale(UINT64_MAX, true)) {
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
    if (!guest_memfd_in_place() ||
        !guest_memfd_gpa_is_hidden(run->mmio.phys_addr)) {
        return true;
    }
    error_report("the guest's code needs KVM to emulate an access to private "
                 "memory at gpa 0x%" PRIx64 ", which KVM cannot; such code "
                 "has to use shared memory", (uint64_t)run->mmio.phys_addr);
    return false;
}
