/*
 * RAM blocks that are a KVM guest_memfd: the host's access to pages that are
 * private
 *
 * QEMU has private pages mapped, and a touch of one raises SIGBUS.  The guest
 * decides where devices read and write, so it can aim them there.
 *
 * Hidden pages.  A page is hidden from before the kernel is asked to make it
 * private until after it has become shared again.  Its bit in state.shared is
 * clear meanwhile.
 *
 * Check.  An address that leads to a hidden page is translated to a region
 * that is not RAM and answers with an error, so emulated DMA gets the error
 * that it would get where there is no memory.  A device that maps such an
 * address gets dummy RAM: zeros to read, or a page to write to that nobody
 * reads.  A bounce buffer, which QEMU uses where there is no memory, will not
 * do: there are few of them, and QEMU's disk requests that wait for one do not
 * survive a reset of NVMe or AHCI.  Cached regions (rings of virtio) of a block
 * that can be private keep no pointer into it, so each access to them is
 * translated.
 *
 * Survival.  A page may become private between the check and the access, or
 * while it is mapped for a request that takes long.  The kernel's accesses
 * (system calls, vhost, io_uring) fail with EFAULT then, which is an I/O error
 * like others.  QEMU's own raise SIGBUS, in the thread that made them, and the
 * handler maps a page of zeros over the page: it is covered.  The access goes
 * on and reads zeros, or writes to a page that nobody reads.  When the page
 * becomes shared, the file is mapped there again, before listeners are notified
 * and before the check lets anybody through.
 *
 * Why that is sound:
 * - Only hidden pages are covered.  The handler covers, and the engine shows
 *   pages, under access->lock, each together with a look at, or a change of,
 *   the bit.  So no shared page is or stays covered.
 * - A fault at a page whose bit is set is stale: it was raised before the page
 *   became shared.  The access is tried again, and succeeds.  If it faults
 *   again and again, the page is private in the kernel, though nobody here has
 *   converted it: another process that has the file can do that.  Then the
 *   page is hidden and covered, and the VM stops.
 * - access->lock is a spinlock, which a handler may take: nobody touches guest
 *   memory, waits for anything or reports an error while holding it.
 * - An access to a page that changes its state may hit the zeros or the page,
 *   before and after.  That is the guest's own race, about its own data.
 * - Private contents are never read, because the kernel prevents it.
 * - Each covered page costs up to two mappings, and a process has some 65000 of
 *   them.  So there are COVERED_MAX pages a block, and the one covered first is
 *   given up for a new one.  An instruction touches COVERED_MIN pages at most,
 *   so it makes progress as long as these stay covered.  If there is no room
 *   for so many, nothing can be done, and the signal takes its course.
 *
 * Memory that devices of other processes have mapped (vhost-user) is theirs to
 * look after.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include <sys/mman.h>
#include "hw/core/cpu.h"
#include "qemu/error-report.h"
#include "qemu/madvise.h"
#include "qemu/main-loop.h"
#include "qemu/memalign.h"
#include "qemu/units.h"
#include "gmem/system/guest-memfd-internal.h"
#include "system/guest-memfd-access.h"
#include "system/guest-memfd-events.h"
#include "system/kvm.h"
#include "system/memory-internal.h"
#include "system/memory.h"
#include "system/runstate.h"
#include "system/system.h"
#include "gmem/trace.h"

/* Pages of a block that may be covered at a time */
#define COVERED_MAX 64

/* Source and destination of an instruction, each across two pages */
#define COVERED_MIN 4

/* As many pages are looked at for one mapping; then it is cut there. */
#define PAGES_AT_A_TIME (1 << 20)

/* Faults in a row at a page that no cover helps; then something is wrong. */
#define FAULTS_IN_A_ROW 1000

/* Hardware errors that wait for the main loop. */
#define HARDWARE_ERRORS 8

#define DUMMY_SIZE MiB

/**
 * GuestMemfdAccess: access of QEMU to a block whose pages can be private
 * @hidden: what addresses of hidden pages are translated to
 * @denied: accesses that were refused; atomic
 * @last_denied: offset of the last of them, in bytes; atomic
 * @lock: protects the rest; innermost
 * @covered: pages that are covered, @n of them, in the order in which they were
 * @touched: how often a page was covered so far
 * @last_touched: the page covered last
 * @foreign: a page is private that nobody here has converted: @last_touched
 * @reported: @denied and @touched as they were when they were reported last;
 *            main loop only
 */
typedef struct GuestMemfdAccess {
    MemoryRegion hidden;
    uint64_t denied;
    uint64_t last_denied;
    QemuSpin lock;
    unsigned n;
    uint64_t covered[COVERED_MAX];
    uint64_t touched;
    uint64_t last_touched;
    bool foreign;
    GuestMemfdAccessCounters reported;
} GuestMemfdAccess;

bool guest_memfd_some_hidden;

/* What is mapped instead of a hidden page, to be read and to be written */
static MemoryRegion dummy_ram[2];

/*
 * What a signal handler, or a device's thread, leaves to the main loop; NULL
 * before that runs.  It is scheduled once for many accesses.
 */
static QEMUBH *deferred_bh;
static bool deferred_pending;
static void *hardware_errors[HARDWARE_ERRORS];

static void schedule_deferred(void)
{
    QEMUBH *bh = qatomic_read(&deferred_bh);

    if (bh && !qatomic_read(&deferred_pending) &&
        !qatomic_xchg(&deferred_pending, true)) {
        qemu_bh_schedule(bh);
    }
}

/* @offset: in the block, bytes */
static void count_denied(GuestMemfd *gmem, uint64_t offset)
{
    qatomic_set(&gmem->access->last_denied, offset);
    qatomic_inc(&gmem->access->denied);
    schedule_deferred();
}

static MemTxResult hidden_read(void *opaque, hwaddr addr, uint64_t *data,
                               unsigned size, MemTxAttrs attrs)
{
    count_denied(opaque, addr);
    *data = 0;
    return MEMTX_DECODE_ERROR;
}

static MemTxResult hidden_write(void *opaque, hwaddr addr, uint64_t data,
                                unsigned size, MemTxAttrs attrs)
{
    count_denied(opaque, addr);
    return MEMTX_DECODE_ERROR;
}

static const MemoryRegionOps hidden_ops = {
    .read_with_attrs = hidden_read,
    .write_with_attrs = hidden_write,
    .endianness = HOST_BIG_ENDIAN ? DEVICE_BIG_ENDIAN : DEVICE_LITTLE_ENDIAN,
    .valid = { .max_access_size = 8, .unaligned = true },
    .impl = { .max_access_size = 8, .unaligned = true },
};

bool guest_memfd_is_hidden_region(const MemoryRegion *mr)
{
    return mr->ops == &hidden_ops;
}

/*
 * Cut [@offset, @offset + *@len) so that all of its pages are hidden, or none.
 * Returns: are they shown?
 */
static bool cut_at_hidden(const GuestMemfd *gmem, uint64_t offset,
                          uint64_t *len)
{
    const uint64_t page_size = qemu_real_host_page_size();
    const uint64_t first = offset / page_size;
    uint64_t end;

    if (first >= gmem->state.pages) {
        return true;
    }
    /*
     * The first page is looked at once, for it may change.  What is hidden is
     * refused page by page: a run of hidden pages may be long, and a device
     * that was refused does not look further.
     */
    end = first + 1;
    if (guest_memfd_next_page(gmem, first, end, true) == end) {
        *len = MIN(*len, end * page_size - offset);
        return false;
    }
    if (*len > end * page_size - offset) {
        uint64_t last = MIN(gmem->state.pages, end + PAGES_AT_A_TIME);

        if (*len < last * page_size - offset) {
            last = DIV_ROUND_UP(offset + *len, page_size);
        }
        end = guest_memfd_next_page(gmem, end, last, false);
        *len = MIN(*len, end * page_size - offset);
    }
    return true;
}

static GuestMemfd *with_hidden_pages(const MemoryRegion *mr)
{
    GuestMemfd *gmem = mr->ram_block ? mr->ram_block->gmem : NULL;

    return gmem && guest_memfd_can_be_private(gmem) ? gmem : NULL;
}

MemoryRegion *guest_memfd_shown(MemoryRegion *mr, uint64_t offset,
                                uint64_t *len)
{
    GuestMemfd *gmem = with_hidden_pages(mr);

    return !gmem || cut_at_hidden(gmem, offset, len) ? mr
           : &gmem->access->hidden;
}

bool guest_memfd_cache_is_direct(MemoryRegion *mr, bool is_write)
{
    return !with_hidden_pages(mr) &&
           memory_access_is_direct(mr, is_write, MEMTXATTRS_UNSPECIFIED);
}

MemoryRegion *guest_memfd_mapped(MemoryRegion *mr, uint64_t *offset,
                                 uint64_t *len, bool is_write)
{
    if (!guest_memfd_is_hidden_region(mr) || !dummy_ram[is_write].ram_block) {
        return mr;
    }
    count_denied(mr->opaque, *offset);
    *offset %= qemu_real_host_page_size();
    *len = MIN(*len, DUMMY_SIZE - *offset);
    return &dummy_ram[is_write];
}

void *guest_memfd_map_shared(AddressSpace *as, hwaddr addr, hwaddr *len,
                             bool is_write)
{
    void *host = address_space_map(as, addr, len, is_write,
                                   MEMTXATTRS_UNSPECIFIED);
    ram_addr_t offset;
    MemoryRegion *mr = host ? memory_region_from_host(host, &offset) : NULL;

    if (host && (!mr || mr == &dummy_ram[is_write])) {
        address_space_unmap(as, host, *len, is_write, 0);
        *len = 0;
        return NULL;
    }
    return host;
}

/* Map the file, at its place.  Returns false with errno set on error. */
static bool map_file(GuestMemfd *gmem, uint64_t page, uint64_t count)
{
    const uint64_t page_size = qemu_real_host_page_size();
    void *host = (uint8_t *)gmem->host + page * page_size;
    uint64_t size = count * page_size;

    if (mmap(host, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
             gmem->rb->fd, page * page_size) == MAP_FAILED) {
        return false;
    }
    /* As QEMU does for RAM; else it would stay a mapping of its own. */
    qemu_madvise(host, size, QEMU_MADV_HUGEPAGE);
    qemu_madvise(host, size, QEMU_MADV_DONTFORK);
    if (!gmem->dump) {
        qemu_madvise(host, size, QEMU_MADV_DONTDUMP);
    }
    return true;
}

static bool map_zeros(GuestMemfd *gmem, uint64_t page)
{
    const uint64_t page_size = qemu_real_host_page_size();

    return mmap((uint8_t *)gmem->host + page * page_size, page_size,
                PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
                -1, 0) != MAP_FAILED;
}

static void covered_remove(GuestMemfdAccess *a, unsigned i)
{
    a->n--;
    memmove(&a->covered[i], &a->covered[i + 1],
            (a->n - i) * sizeof(a->covered[0]));
}

static bool covered_find(const GuestMemfdAccess *a, uint64_t page)
{
    unsigned i;

    for (i = 0; i < a->n; i++) {
        if (a->covered[i] == page) {
            return true;
        }
    }
    return false;
}

/* The page covered first makes room.  What is touched again is covered again */
static bool covered_evict(GuestMemfd *gmem)
{
    GuestMemfdAccess *a = gmem->access;

    if (a->n < COVERED_MIN || !map_file(gmem, a->covered[0], 1)) {
        return false;
    }
    covered_remove(a, 0);
    return true;
}

static bool covered_add(GuestMemfd *gmem, uint64_t page)
{
    GuestMemfdAccess *a = gmem->access;

    while (a->n == COVERED_MAX || !map_zeros(gmem, page)) {
        if (!covered_evict(gmem)) {
            return false;
        }
    }
    a->covered[a->n++] = page;
    a->touched++;
    a->last_touched = page;
    return true;
}

/*
 * A touch has failed.  In a signal handler, with access->lock held.
 * Returns: can it be tried again?
 */
static bool cover(GuestMemfd *gmem, uint64_t page)
{
    static __thread uint64_t last_page;
    static __thread unsigned faults;
    GuestMemfdAccess *a = gmem->access;
    bool shared = guest_memfd_next_page(gmem, page, page + 1, true) == page;

    /* Another thread may have been faster, with the one or the other. */
    if (shared || covered_find(a, page)) {
        faults = page == last_page ? faults + 1 : 0;
        last_page = page;
        if (faults < FAULTS_IN_A_ROW) {
            return true;
        }
        if (!shared) {
            return false;
        }
        guest_memfd_state_set(gmem, page, page + 1, false);
        a->foreign = true;
    }
    faults = 0;
    return covered_add(gmem, page);
}

bool guest_memfd_access_remap(GuestMemfd *gmem)
{
    GuestMemfdAccess *a = gmem->access;
    bool ok;

    if (!a) {
        return map_file(gmem, 0, gmem->state.pages);
    }
    qemu_spin_lock(&a->lock);
    ok = map_file(gmem, 0, gmem->state.pages);
    if (ok) {
        a->n = 0;
        a->touched = a->last_touched = 0;
        a->foreign = false;
        a->reported = (GuestMemfdAccessCounters) {};
        qatomic_set(&a->denied, 0);
    }
    qemu_spin_unlock(&a->lock);
    return ok;
}

int guest_memfd_show(GuestMemfd *gmem, uint64_t first, uint64_t end)
{
    GuestMemfdAccess *a = gmem->access;
    unsigned i = 0;
    int ret = 0;

    qemu_spin_lock(&a->lock);
    while (i < a->n && !ret) {
        uint64_t page = a->covered[i];

        if (page < first || page >= end) {
            i++;
        } else if (map_file(gmem, page, 1)) {
            covered_remove(a, i);
        } else {
            ret = -errno;
        }
    }
    if (!ret) {
        guest_memfd_state_set(gmem, first, end, true);
    }
    qemu_spin_unlock(&a->lock);
    return ret;
}

void guest_memfd_hide(GuestMemfd *gmem, uint64_t first, uint64_t end)
{
    guest_memfd_state_set(gmem, first, end, false);
}

GuestMemfdAccessCounters guest_memfd_access_counters(const GuestMemfd *gmem)
{
    GuestMemfdAccess *a = gmem->access;
    GuestMemfdAccessCounters counters = {};

    if (a) {
        counters.denied = qatomic_read(&a->denied);
        qemu_spin_lock(&a->lock);
        counters.touched = a->touched;
        qemu_spin_unlock(&a->lock);
    }
    return counters;
}

bool guest_memfd_is_covered(const GuestMemfd *gmem, uint64_t page)
{
    GuestMemfdAccess *a = gmem->access;
    bool covered;

    qemu_spin_lock(&a->lock);
    covered = covered_find(a, page);
    qemu_spin_unlock(&a->lock);
    return covered;
}

/* A guest can cause this as often as it likes, so one warning a block. */
static void report_access(GuestMemfd *gmem)
{
    GuestMemfdAccess *a = gmem->access;
    GuestMemfdAccessCounters now = guest_memfd_access_counters(gmem);
    const char *name = memory_region_name(gmem->rb->mr);
    bool was_touched = now.touched != a->reported.touched;
    uint64_t offset;
    bool foreign;

    qemu_spin_lock(&a->lock);
    offset = was_touched ? a->last_touched * qemu_real_host_page_size()
                         : qatomic_read(&a->last_denied);
    foreign = a->foreign;
    a->foreign = false;
    qemu_spin_unlock(&a->lock);

    if (foreign) {
        error_report("guest_memfd '%s': memory at offset 0x%" PRIx64 " has "
                     "become private, and neither the guest nor QEMU has "
                     "asked for that; does another process have the file?",
                     name, offset);
        vm_stop(RUN_STATE_INTERNAL_ERROR);
    }
    if (!was_touched && now.denied == a->reported.denied) {
        return;
    }
    trace_guest_memfd_access(gmem->inode, offset, now.touched, now.denied);
    guest_memfd_event_touched(name, offset, now.touched, now.denied);
    if (was_touched && !a->reported.touched) {
        warn_report("guest_memfd '%s': a device has touched memory at "
                    "offset 0x%" PRIx64 ", which the guest has made private; "
                    "it sees zeros there until that is shared. The guest is "
                    "to blame; 'info guest-memfd' counts", name, offset);
    }
    a->reported = now;
}

/* What a signal handler, or a device's thread, has deferred */
static void run_deferred(void *opaque)
{
    GuestMemfd *gmem;
    unsigned i;

    /* What comes from now on has it scheduled again. */
    qatomic_set_mb(&deferred_pending, false);
    QTAILQ_FOREACH(gmem, guest_memfd_list(), next) {
        if (gmem->access) {
            report_access(gmem);
        }
    }
    for (i = 0; i < HARDWARE_ERRORS; i++) {
        void *addr = qatomic_xchg(&hardware_errors[i], NULL);

        if (addr && kvm_on_sigbus(BUS_MCEERR_AO, addr)) {
            error_report("memory at %p has a hardware error, and is not the "
                         "guest's", addr);
            signal(SIGBUS, SIG_DFL);
            raise(SIGBUS);
        }
    }
}

/*
 * A hardware error that nobody has touched yet.  Errors beyond the room here
 * are found when the memory is used.
 */
static void defer_hardware_error(void *addr)
{
    unsigned i;

    for (i = 0; i < HARDWARE_ERRORS; i++) {
        if (!qatomic_cmpxchg(&hardware_errors[i], NULL, addr)) {
            break;
        }
    }
    schedule_deferred();
}

static bool survive_touch(void *addr)
{
    GuestMemfd *gmem = guest_memfd_from_host(addr);
    bool ok;

    if (!gmem || !gmem->access) {
        return false;
    }
    qemu_spin_lock(&gmem->access->lock);
    ok = cover(gmem, ((uintptr_t)addr - (uintptr_t)gmem->host) /
                     qemu_real_host_page_size());
    qemu_spin_unlock(&gmem->access->lock);
    if (ok) {
        schedule_deferred();
    }
    return ok;
}

/*
 * No thread blocks SIGBUS: a thread of a library would inherit that and die of
 * a touch.  So what QEMU's main loop used to read from a signalfd comes here.
 */
bool guest_memfd_on_sigbus(int code, void *addr)
{
    int saved_errno = errno;
    bool ok = false;

    if (code == BUS_MCEERR_AR && !current_cpu) {
        /* A thread that blocks the signal is killed.  So is this one. */
        signal(SIGBUS, SIG_DFL);
        ok = true;
    } else if (code == BUS_MCEERR_AO && !current_cpu) {
        defer_hardware_error(addr);
        ok = true;
    } else if (code == BUS_ADRERR && guest_memfd_some_hidden) {
        ok = survive_touch(addr);
    }
    errno = saved_errno;
    return ok;
}

/* Not any earlier: a block is being made when the first access is set up. */
static void machine_done(Notifier *n, void *data)
{
    static const char *const names[] = {
        "guest-memfd-dummy-read", "guest-memfd-dummy-write"
    };
    int i;

    qatomic_set(&deferred_bh, qemu_bh_new(run_deferred, NULL));
    schedule_deferred();
    for (i = 0; guest_memfd_some_hidden && i < ARRAY_SIZE(dummy_ram); i++) {
        void *host = qemu_memalign(qemu_real_host_page_size(), DUMMY_SIZE);

        memset(host, 0, DUMMY_SIZE);
        memory_region_init_ram_ptr(&dummy_ram[i], NULL, names[i], DUMMY_SIZE,
                                   host);
    }
}

static void guest_memfd_access_register(void)
{
    static Notifier notifier = { .notify = machine_done };

    qemu_add_machine_init_done_notifier(&notifier);
}

type_init(guest_memfd_access_register)

void guest_memfd_access_init(GuestMemfd *gmem)
{
    GuestMemfdAccess *a = g_new0(GuestMemfdAccess, 1);

    memory_region_init_io(&a->hidden, NULL, &hidden_ops, gmem, NULL,
                          UINT64_MAX);
    memory_region_enable_lockless_io(&a->hidden);
    qemu_spin_init(&a->lock);
    gmem->access = a;
    guest_memfd_some_hidden = true;
}

void guest_memfd_access_destroy(GuestMemfd *gmem)
{
    if (gmem->access) {
        object_unref(OBJECT(&gmem->access->hidden));
        qemu_spin_destroy(&gmem->access->lock);
        g_free(gmem->access);
    }
}
