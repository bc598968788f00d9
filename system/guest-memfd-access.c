/*
 * RAM blocks that are a KVM guest_memfd: the host's access to pages that are
 * private
 *
 * QEMU has private pages mapped, and a touch of one raises SIGBUS.  The guest
 * says where devices read and write, so it can aim them there.
 *
 * Hidden pages.  A page is hidden from before the kernel is asked to make it
 * private until after it has become shared again.  Its bit in state.shown is
 * clear meanwhile.  The engine (guest-memfd-convert.c) changes these bits
 * atomically, so they can be looked at without a lock.
 *
 * Check.  An address that leads to a hidden page is translated to a region
 * that is not RAM and answers nothing.  So emulated DMA gets the error that it
 * would get where there is no memory.  Who wants to map it gets memory that is
 * nobody's: zeros to read, or a sink to write to.  Not a bounce buffer, as
 * where there is no memory: these are few, and QEMU's disk requests that wait
 * for one do not survive a reset of NVMe or AHCI.  Cached regions (rings of
 * virtio) of a block that can be private keep no pointer into it, so each
 * access to them is translated.
 *
 * Survival.  A page may become private between the check and the access, or
 * while it is mapped for a request that takes long.  The kernel's accesses
 * (system calls, vhost, io_uring) fail with EFAULT then, which is an I/O error
 * like others.  Our own raise SIGBUS, in the thread that made them, and the
 * handler maps a page of zeros over the page: it is covered.  The access goes
 * on and reads zeros, or writes what nobody will see.  When the page becomes
 * shared, the file is mapped there again, before anybody is told and before
 * the check lets anybody through.
 *
 * Why that is sound:
 * - Only hidden pages are covered.  The handler covers and the engine uncovers
 *   under access_lock, each together with a look at, or a change of, the bit.
 *   So no shared page is or stays covered.
 * - A fault at a page whose bit is set is old news: it was raised before the
 *   page became shared.  The access is tried again, and succeeds.
 * - access_lock is a spinlock, which a handler may take: nobody touches guest
 *   memory, nor waits for anything, while holding it.
 * - Who accesses a page that changes its state may hit the zeros or the page,
 *   before and after.  That is the guest's own race, about its own data.
 * - Private contents are never read, because the kernel does not let us.
 * - Covered pages are few: each costs a mapping of its own, and processes have
 *   some 65000 of these.  Beyond GUEST_MEMFD_COVERED pages, or if there is no
 *   room for another mapping, all of the block is mapped anew.  What is touched
 *   again then is covered again.
 *
 * Memory that devices of other processes have mapped (vhost-user) is theirs to
 * look after.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include <sys/mman.h>
#include "hw/core/cpu.h"
#include "qemu/bitmap.h"
#include "qemu/error-report.h"
#include "qemu/host-utils.h"
#include "qemu/madvise.h"
#include "qemu/main-loop.h"
#include "qemu/memalign.h"
#include "qemu/units.h"
#include "system/guest-memfd.h"
#include "system/guest-memfd-access.h"
#include "system/kvm.h"
#include "system/memory-internal.h"
#include "system/memory.h"
#include "system/ramblock.h"
#include "system/system.h"
#include "gmem/trace.h"

/* As many pages are looked at for one access; then it is cut there. */
#define PAGES_AT_A_TIME (1 << 20)

/* Faults in a row at a page that is shared; then something else is wrong. */
#define FAULTS_AT_SHARED 1000

/* Hardware errors that wait for the main loop. */
#define HARDWARE_ERRORS 8

bool guest_memfd_some_hidden;

/* Pages of all blocks that are covered. */
static unsigned all_covered;

static MemoryRegion no_access;

/* Mapped instead of it, if a device will not, or will write there. */
#define NOBODYS_SIZE MiB

static MemoryRegion nobodys[2];
static QEMUBH *touched_bh;

/* Written by a handler in the main thread, read by the main loop. */
static void *hardware_errors[HARDWARE_ERRORS];

/*
 * Cut [@offset, @offset + *@len) where pages that are hidden and others meet.
 * Returns: are the first ones shown?
 */
static bool is_shown(GuestMemfd *gmem, uint64_t offset, uint64_t *len)
{
    const unsigned long *map = gmem->state.shown;
    const uint64_t page_size = qemu_real_host_page_size();
    const uint64_t first = offset / page_size;
    uint64_t page, end, last;
    bool shown;

    if (first >= gmem->state.pages) {
        return true;
    }
    shown = qatomic_read(&map[BIT_WORD(first)]) & BIT_MASK(first);
    last = first + MIN(gmem->state.pages - 1 - first, PAGES_AT_A_TIME);
    if (*len - 1 < (last - first) * page_size) {
        last = (offset + *len - 1) / page_size;
    }
    /* The first page is taken for what it was: it may have changed since. */
    for (page = first + 1; page <= last; page = end) {
        unsigned long word = qatomic_read(&map[BIT_WORD(page)]);

        end = ROUND_UP(page + 1, BITS_PER_LONG);
        word = (shown ? ~word : word) & BITMAP_FIRST_WORD_MASK(page);
        if (word) {
            end = page - page % BITS_PER_LONG + ctzl(word);
            break;
        }
    }
    if (page <= last) {
        last = MIN(last, end - 1);
    }
    if (*len) {
        *len = MIN(*len, (last + 1) * page_size - offset);
    }
    return shown;
}

static GuestMemfd *with_hidden_pages(const MemoryRegion *mr)
{
    GuestMemfd *gmem = mr->ram_block ? mr->ram_block->gmem : NULL;

    return gmem && gmem->state.private ? gmem : NULL;
}

MemoryRegion *guest_memfd_shown(MemoryRegion *mr, uint64_t offset,
                                uint64_t *len)
{
    GuestMemfd *gmem = with_hidden_pages(mr);

    if (!gmem || is_shown(gmem, offset, len)) {
        return mr;
    }
    qatomic_inc(&gmem->state.denied);
    return &no_access;
}

bool guest_memfd_cache_is_direct(MemoryRegion *mr, bool is_write)
{
    return !with_hidden_pages(mr) &&
           memory_access_is_direct(mr, is_write, MEMTXATTRS_UNSPECIFIED);
}

MemoryRegion *guest_memfd_mapped(MemoryRegion *mr, uint64_t *offset,
                                 uint64_t *len, bool is_write)
{
    if (mr != &no_access || !nobodys[is_write].ram_block) {
        return mr;
    }
    *offset %= qemu_real_host_page_size();
    *len = MIN(*len, NOBODYS_SIZE - *offset);
    return &nobodys[is_write];
}

void *guest_memfd_map_shared(AddressSpace *as, hwaddr addr, hwaddr *len,
                             bool is_write)
{
    void *host = address_space_map(as, addr, len, is_write,
                                   MEMTXATTRS_UNSPECIFIED);
    ram_addr_t offset;
    MemoryRegion *mr = host ? memory_region_from_host(host, &offset) : NULL;

    if (host && (!mr || mr == &nobodys[is_write])) {
        address_space_unmap(as, host, *len, is_write, 0);
        *len = 0;
        return NULL;
    }
    return host;
}

/* Map the file, at its place.  Returns false if that fails. */
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

/* In a signal handler.  Returns whether the access can be tried again. */
static bool cover(GuestMemfd *gmem, uint64_t page)
{
    static __thread uint64_t last_page;
    static __thread unsigned faults;
    GuestMemfdState *s = &gmem->state;
    unsigned long word;
    bool ok = true;
    unsigned i;

    qemu_spin_lock(&s->access_lock);
    word = qatomic_read(&s->shown[BIT_WORD(page)]);
    if (word & BIT_MASK(page)) {
        faults = page == last_page ? faults + 1 : 0;
        last_page = page;
        qemu_spin_unlock(&s->access_lock);
        return faults < FAULTS_AT_SHARED;
    }
    faults = 0;
    for (i = 0; i < s->covered_pages; i++) {
        if (s->covered[i] == page) {
            /* Another thread was faster. */
            qemu_spin_unlock(&s->access_lock);
            return true;
        }
    }
    ok = qatomic_read(&all_covered) < GUEST_MEMFD_COVERED &&
         map_zeros(gmem, page);
    if (!ok && map_file(gmem, 0, s->pages)) {
        /* There is room again. */
        qatomic_sub(&all_covered, s->covered_pages);
        s->covered_pages = 0;
        ok = map_zeros(gmem, page);
    }
    if (ok) {
        qatomic_inc(&all_covered);
        s->covered[s->covered_pages++] = page;
        s->touched++;
        s->last_touched = page;
    }
    qemu_spin_unlock(&s->access_lock);
    return ok;
}

bool guest_memfd_remap(GuestMemfd *gmem)
{
    GuestMemfdState *s = &gmem->state;
    bool ok;

    qemu_spin_lock(&s->access_lock);
    ok = map_file(gmem, 0, s->pages);
    if (ok) {
        qatomic_sub(&all_covered, s->covered_pages);
        s->covered_pages = 0;
        s->touched = s->last_touched = s->told = 0;
    }
    qemu_spin_unlock(&s->access_lock);
    return ok;
}

void guest_memfd_uncover(GuestMemfd *gmem, uint64_t first, uint64_t end)
{
    GuestMemfdState *s = &gmem->state;
    unsigned i = 0;

    while (i < s->covered_pages) {
        uint64_t page = s->covered[i];

        if (page < first || page >= end) {
            i++;
            continue;
        }
        if (!map_file(gmem, page, 1)) {
            /* It replaces a mapping, so there was room for one. */
            error_report_once("guest_memfd '%s': cannot map page 0x%" PRIx64
                              " again: %s; devices see zeros there",
                              memory_region_name(gmem->rb->mr), page,
                              strerror(errno));
        }
        qatomic_dec(&all_covered);
        s->covered[i] = s->covered[--s->covered_pages];
    }
}

void guest_memfd_access_end(GuestMemfd *gmem)
{
    qatomic_sub(&all_covered, gmem->state.covered_pages);
}

/*
 * What a handler has to say, said by the main loop.  A guest can bring it
 * about as often as it likes, so it is one warning a block.
 */
static void tell_touched(void *opaque)
{
    GuestMemfd *gmem;
    unsigned i;

    QTAILQ_FOREACH(gmem, guest_memfd_list(), next) {
        GuestMemfdState *s = &gmem->state;
        uint64_t touched, page;

        qemu_spin_lock(&s->access_lock);
        touched = s->touched;
        page = s->last_touched;
        qemu_spin_unlock(&s->access_lock);
        if (touched == s->told) {
            continue;
        }
        trace_guest_memfd_touched(gmem->inode, page, touched);
        if (!s->told) {
            warn_report("guest_memfd '%s': a device has touched memory at "
                        "offset 0x%" PRIx64 ", which the guest has made "
                        "private; it sees zeros there until that is shared. "
                        "The guest is to blame; 'info guest-memfd' counts",
                        memory_region_name(gmem->rb->mr),
                        page * qemu_real_host_page_size());
        }
        s->told = touched;
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
 * The main thread used to block SIGBUS and hear of memory errors by its main
 * loop, where it can do something about them.  Errors beyond the room here are
 * found when the memory is used.
 */
static void put_off(void *addr)
{
    unsigned i;

    for (i = 0; i < HARDWARE_ERRORS; i++) {
        if (!qatomic_cmpxchg(&hardware_errors[i], NULL, addr)) {
            break;
        }
    }
    qemu_bh_schedule(touched_bh);
}

bool guest_memfd_on_sigbus(int code, void *addr)
{
    int saved_errno = errno;
    GuestMemfd *gmem;
    bool ok = false;

    if (code == BUS_MCEERR_AR && !current_cpu) {
        /* Such threads used to block SIGBUS, and this to end QEMU.  So be it */
        signal(SIGBUS, SIG_DFL);
        return true;
    }
    if (!guest_memfd_some_hidden) {
        return false;
    }
    if (code == BUS_MCEERR_AO && !current_cpu) {
        put_off(addr);
        return true;
    }
    if (code != BUS_ADRERR) {
        return false;
    }
    gmem = guest_memfd_from_host(addr);
    if (gmem && gmem->state.shown) {
        ok = cover(gmem, ((uintptr_t)addr - (uintptr_t)gmem->host) /
                         qemu_real_host_page_size());
        if (ok) {
            qemu_bh_schedule(touched_bh);
        }
    }
    errno = saved_errno;
    return ok;
}

/* Not any earlier: RAM blocks are made while another one is. */
static void machine_done(Notifier *n, void *data)
{
    static const char *const names[] = {
        "guest-memfd-zeros", "guest-memfd-sink"
    };
    int i;

    for (i = 0; i < ARRAY_SIZE(nobodys); i++) {
        void *host = qemu_memalign(qemu_real_host_page_size(), NOBODYS_SIZE);

        memset(host, 0, NOBODYS_SIZE);
        memory_region_init_ram_ptr(&nobodys[i], NULL, names[i], NOBODYS_SIZE,
                                   host);
    }
}

void guest_memfd_access_init(void)
{
    static Notifier notifier = { .notify = machine_done };
    sigset_t set;

    /* Threads that are created do not block it; see the hook there. */
    sigemptyset(&set);
    sigaddset(&set, SIGBUS);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);

    if (!guest_memfd_some_hidden) {
        memory_region_init_io(&no_access, NULL, &unassigned_mem_ops, NULL,
                              "guest-memfd-private", UINT64_MAX);
        memory_region_enable_lockless_io(&no_access);
        qemu_add_machine_init_done_notifier(&notifier);
        touched_bh = qemu_bh_new(tell_touched, NULL);
        guest_memfd_some_hidden = true;
    }
}
