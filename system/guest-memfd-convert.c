/*
 * RAM blocks that are a KVM guest_memfd: conversion
 *
 * A request is carried out in chunks, and never undone: conversions are
 * idempotent, and whoever requests one may do so again.  A chunk is atomic.  It
 * is converted under the block's conversion lock, by one call to the kernel
 * over the span from its first page that differs to its last.  The kernel takes
 * a span of which a part is in that state already, and converts all of it or
 * nothing.
 *
 * To private: pages are hidden, listeners notified, and then the kernel is
 * called.  To shared: the kernel is called, pages are shown, and listeners
 * notified.  If a step fails, the chunk is put back.
 *
 * Between chunks, and while a busy page is waited for, nothing is held, and the
 * caller is asked whether it wants to go on.  So a request of any size keeps
 * "stop", "quit" and a reset waiting for one chunk at most: at 64 MiB, some
 * milliseconds.
 *
 * Listeners come and are notified with the BQL held, which is taken before the
 * conversion lock.  Without listeners the BQL is not needed, and vCPUs do not
 * wait for the main loop.  The list is looked at under the conversion lock
 * again, and a new listener asks for shared pages under that lock
 * (guest-memfd-discard.c): so it either finds a chunk's pages as they will be,
 * or is notified.
 *
 * Contents are the kernel's affair.  Nothing is discarded here: one page
 * serves both states, and its memory stays allocated.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "qemu/bitmap.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "qemu/units.h"
#include "system/guest-memfd-events.h"
#include "system/runstate.h"
#include "gmem/accel/kvm/guest-memfd.h"
#include "gmem/system/guest-memfd-internal.h"
#include "gmem/trace.h"

/* Pages in a chunk of GUEST_MEMFD_CHUNK bytes, whatever the page size is */
#define CHUNK_PAGES (GUEST_MEMFD_CHUNK / (4 * KiB))

#define MIN_DELAY_US 50
#define MAX_DELAY_US 10000

/* After so many failures, the pages before the busy one go first. */
#define FAILURES_BEFORE_CUT 3

/* After so many failures it is not a matter of moments. */
#define FAILURES_BEFORE_EVENT 32

/* At most one warning in this time, in microseconds. */
#define WARNING_US (10 * 1000 * 1000)

/* What a busy page may take where no vCPU waits for it. */
static const GuestMemfdRetry one_second = { .timeout = 1000000 };

static unsigned conversions;

/*
 * Chunk: a part of a block that is converted as a whole
 * @first, @end: the span, from the first page that differs to the last
 * @changes: a bit a page from @first, set if the page differs; the caller's
 * @notify: there are discard listeners, and the BQL is held
 */
typedef struct Chunk {
    GuestMemfd *gmem;
    uint64_t first;
    uint64_t end;
    unsigned long *changes;
    bool to_private;
    bool notify;
} Chunk;

/*
 * Attempt: at one chunk
 * @limit: its end, in pages; the chunk is cut there
 * @by_runs: end it with the first run of pages that differ
 * @first: its first page that differs
 * @busy: the page that was busy
 * @failures: of this chunk so far
 * @delay: before the next attempt, in microseconds
 * @deadline: when to give up, in microseconds; 0 if nothing has failed yet
 */
typedef struct Attempt {
    uint64_t limit;
    bool by_runs;
    uint64_t first;
    uint64_t busy;
    unsigned failures;
    int64_t delay;
    int64_t deadline;
} Attempt;

unsigned guest_memfd_conversions(void)
{
    return qatomic_read(&conversions);
}

void guest_memfd_converted(void)
{
    qatomic_inc(&conversions);
}

/* Finds the next run of pages that differ, from @run_end on. */
static bool chunk_next_run(const Chunk *c, uint64_t *run_first,
                           uint64_t *run_end)
{
    const uint64_t pages = c->end - c->first;
    uint64_t page = find_next_bit(c->changes, pages, *run_end - c->first);

    if (page >= pages) {
        return false;
    }
    *run_first = c->first + page;
    *run_end = c->first + find_next_zero_bit(c->changes, pages, page);
    return true;
}

/*
 * Have the kernel convert pages.  Returns 0 or -errno; sets @busy, a page, if
 * that is -EAGAIN.
 */
static int chunk_call_kernel(const Chunk *c, uint64_t first, uint64_t end,
                             bool to_private, uint64_t *busy)
{
    const uint64_t page_size = qemu_real_host_page_size();
    uint64_t offset = first * page_size;
    int ret = kvm_guest_memfd_set_private(c->gmem->rb->fd, offset,
                                          (end - first) * page_size,
                                          to_private, &offset);

    *busy = offset / page_size;
    return ret;
}

static void run_discard(const Chunk *c, uint64_t first, uint64_t end)
{
    const uint64_t page_size = qemu_real_host_page_size();

    guest_memfd_hide(c->gmem, first, end);
    if (c->notify) {
        guest_memfd_notify_discard(c->gmem, first * page_size,
                                   (end - first) * page_size);
    }
}

/* Returns 0; or -errno, and then the pages are hidden and no listener's. */
static int run_populate(const Chunk *c, uint64_t first, uint64_t end)
{
    const uint64_t page_size = qemu_real_host_page_size();
    int ret = guest_memfd_show(c->gmem, first, end);

    if (!ret && c->notify) {
        ret = guest_memfd_notify_populate(c->gmem, first * page_size,
                                          (end - first) * page_size);
        if (ret) {
            guest_memfd_hide(c->gmem, first, end);
        }
    }
    return ret;
}

/* A guest may be able to cause more of these: only the first is reported. */
static void G_GNUC_PRINTF(2, 3) warn_once(GuestMemfd *gmem, const char *fmt,
                                          ...)
{
    g_autofree char *text = NULL;
    va_list ap;

    if (!gmem->state.warned) {
        va_start(ap, fmt);
        text = g_strdup_vprintf(fmt, ap);
        va_end(ap);
        warn_report("guest_memfd '%s': %s",
                    memory_region_name(gmem->rb->mr), text);
        gmem->state.warned = true;
    }
}

/*
 * The kernel has these pages as shared, whatever else fails.  Without a
 * mapping of them QEMU cannot be what the guest takes it for.
 */
static void run_stays_shared(const Chunk *c, uint64_t first, uint64_t end)
{
    GuestMemfd *gmem = c->gmem;
    int ret = run_populate(c, first, end);

    if (!ret) {
        return;
    }
    trace_guest_memfd_convert_unmapped(gmem->inode, first, end, ret);
    warn_once(gmem, "pages 0x%" PRIx64 " to 0x%" PRIx64 " are shared again, "
              "but a device cannot map them: %s", first, end - 1,
              strerror(-ret));
    if (guest_memfd_show(gmem, first, end)) {
        error_report("guest_memfd '%s': QEMU cannot map pages 0x%" PRIx64
                     " to 0x%" PRIx64 ", which the guest shares",
                     memory_region_name(gmem->rb->mr), first, end - 1);
        qemu_system_vmstop_request_prepare();
        qemu_system_vmstop_request(RUN_STATE_INTERNAL_ERROR);
    }
}

static int chunk_make_private(const Chunk *c, uint64_t *busy)
{
    uint64_t first, end;
    int ret;

    for (end = c->first; chunk_next_run(c, &first, &end); ) {
        run_discard(c, first, end);
    }
    ret = chunk_call_kernel(c, c->first, c->end, true, busy);
    if (ret) {
        for (end = c->first; chunk_next_run(c, &first, &end); ) {
            run_stays_shared(c, first, end);
        }
    }
    return ret;
}

/* Pages of @c up to @upto were shown, and all are shared: put them back. */
static void chunk_put_back_private(const Chunk *c, uint64_t upto)
{
    uint64_t first, end, busy;
    int ret;

    for (end = c->first; chunk_next_run(c, &first, &end); ) {
        if (first < upto) {
            run_discard(c, first, end);
        }
        ret = chunk_call_kernel(c, first, end, true, &busy);
        if (ret) {
            trace_guest_memfd_convert_stuck(c->gmem->inode, first, end, ret);
            warn_once(c->gmem, "pages 0x%" PRIx64 " to 0x%" PRIx64 " stay "
                      "shared after a failed conversion: %s", first, end - 1,
                      strerror(-ret));
            run_stays_shared(c, first, end);
        }
    }
}

static int chunk_make_shared(const Chunk *c, uint64_t *busy)
{
    uint64_t first, end;
    int ret = chunk_call_kernel(c, c->first, c->end, false, busy);

    for (end = c->first; !ret && chunk_next_run(c, &first, &end); ) {
        ret = run_populate(c, first, end);
        if (ret) {
            chunk_put_back_private(c, first);
        }
    }
    return ret;
}

/*
 * Pages from @page on, up to @limit, are a chunk.  Returns false if they are
 * all as requested.  state.lock is held.
 */
static bool chunk_find(Chunk *c, uint64_t page, uint64_t limit, bool by_runs)
{
    const unsigned long *shared = c->gmem->state.shared;
    uint64_t pages;

    c->first = guest_memfd_next_page(c->gmem, page, limit, c->to_private);
    if (c->first == limit) {
        return false;
    }
    if (by_runs) {
        limit = guest_memfd_next_page(c->gmem, c->first, limit,
                                      !c->to_private);
    }
    pages = limit - c->first;
    bitmap_copy_with_src_offset(c->changes, shared, c->first, pages);
    if (!c->to_private) {
        bitmap_complement(c->changes, c->changes, pages);
    }
    c->end = c->first + find_last_bit(c->changes, pages) + 1;
    return true;
}

static void chunk_count(const Chunk *c)
{
    GuestMemfdState *s = &c->gmem->state;
    uint64_t pages = bitmap_count_one(c->changes, c->end - c->first);

    s->to_private += c->to_private ? pages : 0;
    s->to_shared += c->to_private ? 0 : pages;
    guest_memfd_converted();
}

/*
 * Is the page that was busy one that was private already?  Then the span as a
 * whole may be busy for ever, because the platform may hold that page.
 */
static bool busy_is_no_change(const Chunk *c, uint64_t busy)
{
    return busy >= c->first && busy < c->end &&
           !test_bit(busy - c->first, c->changes);
}

/*
 * Convert the next chunk of a block, from @page on.  Returns 0, with @page set
 * behind it; or -errno, with nothing changed.
 */
static int chunk_convert(GuestMemfd *gmem, uint64_t *page, bool to_private,
                         unsigned long *changes, Attempt *a)
{
    GuestMemfdState *s = &gmem->state;
    Chunk c = { .gmem = gmem, .changes = changes, .to_private = to_private };
    int ret;

    QEMU_LOCK_GUARD(&s->lock);
    c.notify = !s->launching && guest_memfd_has_listeners(gmem);
    if (c.notify && !bql_locked()) {
        /* A listener has come just now. */
        return -EINTR;
    }
    if (!chunk_find(&c, *page, a->limit, a->by_runs)) {
        *page = a->limit;
        return 0;
    }
    a->first = c.first;
    ret = to_private ? chunk_make_private(&c, &a->busy)
                     : chunk_make_shared(&c, &a->busy);
    if (!ret) {
        chunk_count(&c);
        *page = c.end;
    } else if (ret == -EAGAIN) {
        s->busy++;
        s->busy_page = a->busy;
        if (!a->by_runs && busy_is_no_change(&c, a->busy)) {
            a->by_runs = true;
            ret = -EINTR;
        }
    }
    trace_guest_memfd_convert_chunk(gmem->inode, c.first, c.end, to_private,
                                    ret);
    return ret;
}

/* The same with the BQL, if listeners need it. */
static int chunk_convert_notify(GuestMemfd *gmem, uint64_t *page,
                                bool to_private, unsigned long *changes,
                                Attempt *a)
{
    if (guest_memfd_has_listeners(gmem)) {
        BQL_LOCK_GUARD();
        return chunk_convert(gmem, page, to_private, changes, a);
    }
    return chunk_convert(gmem, page, to_private, changes, a);
}

/*
 * Pages before the busy one need not wait for it.  And while that is waited
 * for, those behind it are left alone, because each attempt unmaps its pages.
 */
static void attempt_cut(Attempt *a)
{
    if (a->failures >= FAILURES_BEFORE_CUT && a->busy >= a->first &&
        a->busy < a->limit) {
        a->limit = a->busy + (a->busy == a->first);
    }
}

/*
 * A chunk has failed with @error.  Waits, if it may be tried again.  Returns 0,
 * or the error to give up with.
 */
static int attempt_again(Attempt *a, int error, const GuestMemfdRetry *retry)
{
    int64_t now;

    if (error != -EAGAIN && error != -EINTR) {
        return error;
    }
    if (guest_memfd_retry_ends(retry)) {
        return -EINTR;
    }
    now = g_get_monotonic_time();
    if (!a->deadline) {
        a->deadline = now + retry->timeout;
    }
    a->failures++;
    /* A call may take longer than that; the free pages have to go first. */
    if (now >= a->deadline && a->failures > FAILURES_BEFORE_CUT) {
        return -EAGAIN;
    }
    if (error == -EAGAIN) {
        g_usleep(MAX(0, MIN(a->delay, a->deadline - now)));
        a->delay = MIN(2 * a->delay, MAX_DELAY_US);
        attempt_cut(a);
    }
    return 0;
}

/*
 * An attempt has failed because a page is busy, and the request with @gave_up.
 * A guest can cause this as often as it likes.
 */
static void report_busy(const GuestMemfd *gmem, const Attempt *a, bool gave_up)
{
    static int64_t next_warning;
    int64_t now = g_get_monotonic_time();
    int64_t due = qatomic_read(&next_warning);
    uint64_t offset = a->busy * qemu_real_host_page_size();

    if (gave_up || a->failures == FAILURES_BEFORE_EVENT) {
        guest_memfd_event_pinned(memory_region_name(gmem->rb->mr), offset);
    }
    if (gave_up && now >= due &&
        qatomic_cmpxchg(&next_warning, due, now + WARNING_US) == due) {
        warn_report("guest_memfd '%s': the page at offset 0x%" PRIx64
                    " cannot become private, because a device, its back end "
                    "or I/O in flight keeps it pinned",
                    memory_region_name(gmem->rb->mr), offset);
    }
}

/* @changes has room for @chunk pages. */
static int convert_pages(GuestMemfd *gmem, uint64_t *page, uint64_t end,
                         bool to_private, unsigned long *changes,
                         uint64_t chunk, const GuestMemfdRetry *retry)
{
    Attempt a = {};
    int ret = 0;

    while (!ret && *page < end) {
        if (!a.failures) {
            a.limit = MIN(end, *page + chunk);
            a.delay = MIN_DELAY_US;
        }
        ret = chunk_convert_notify(gmem, page, to_private, changes, &a);
        if (ret) {
            bool is_busy = ret == -EAGAIN;

            ret = attempt_again(&a, ret, retry);
            if (is_busy) {
                report_busy(gmem, &a, ret == -EAGAIN);
            }
        } else {
            a.failures = 0;
            a.deadline = 0;
            ret = *page < end && guest_memfd_retry_ends(retry) ? -EINTR : 0;
        }
    }
    return ret;
}

int guest_memfd_convert(GuestMemfd *gmem, uint64_t offset, uint64_t size,
                        bool to_private, const GuestMemfdRetry *retry,
                        uint64_t *done)
{
    const uint64_t page_size = qemu_real_host_page_size();
    const uint64_t first = offset / page_size, pages = size / page_size;
    unsigned long small[BITS_TO_LONGS(CHUNK_PAGES)];
    g_autofree unsigned long *large = NULL;
    uint64_t chunk = GUEST_MEMFD_CHUNK / page_size;
    uint64_t page = first;
    int ret;

    *done = 0;
    if (offset % page_size || size % page_size || first > gmem->state.pages ||
        pages > gmem->state.pages - first ||
        (to_private && !gmem->state.shared)) {
        return -EINVAL;
    }
    if (!gmem->state.shared) {
        *done = size;
        return 0;
    }
    if (!retry) {
        chunk = MAX(pages, 1);
        large = bitmap_try_new(chunk);
        if (!large) {
            return -ENOMEM;
        }
    }
    ret = convert_pages(gmem, &page, first + pages, to_private,
                        large ?: small, chunk, retry ?: &one_second);
    *done = (page - first) * page_size;
    trace_guest_memfd_convert(gmem->inode, offset, size, to_private, *done,
                              ret);
    return ret;
}

int guest_memfd_convert_all(GuestMemfd *gmem, bool to_private)
{
    uint64_t done;

    return guest_memfd_convert(gmem, 0,
                               gmem->state.pages * qemu_real_host_page_size(),
                               to_private, NULL, &done);
}
