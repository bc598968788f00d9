/*
 * RAM blocks that are a KVM guest_memfd: which pages are private, and how
 * that changes
 *
 * One request at a time.  A request queues up before all else and leaves at
 * its end; it waits for those before it that have a page in common with it.
 * So nobody else changes the state of its pages, requests that have no page in
 * common do not wait for each other, none starves, and a request knows what to
 * undo: the pages whose state differed when it began (@todo), and does not any
 * more.
 *
 * Locks.  The BQL is taken before a block's state.lock, and only one such
 * lock is held at a time.  Neither is held while the kernel converts, which
 * may take long; but a BQL that the caller holds stays held.  Such callers
 * are launch and reset, when no vCPU runs.  Who waits in the queue holds
 * neither, and waits only for who came before, so there is no circle.
 *
 * Hidden pages.  A page's bit in state.shown is set only while the page is
 * shared and nobody is about to change that: to private, it is cleared before
 * the kernel is asked; to shared, it is set after the kernel has answered.
 * Devices (guest-memfd-access.c) and discard listeners (guest-memfd-discard.c)
 * go by it.  Listeners are notified when a bit changes, without giving up the
 * BQL in between.  So a listener that comes meanwhile either finds the bit as
 * it will be, or is notified.  Without listeners nobody needs the BQL here, and
 * vCPUs do not wait for the main loop.
 *
 * Contents are the kernel's affair.  Nothing is discarded here: one page
 * serves both states, and its memory stays allocated.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "qemu/bitmap.h"
#include "qemu/error-report.h"
#include "qemu/host-utils.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "system/address-spaces.h"
#include "system/guest-memfd.h"
#include "system/kvm.h"
#include "system/memory-internal.h"
#include "system/memory.h"
#include "system/ramblock.h"
#include "gmem/trace.h"

/* Pages of state that are looked at before others get the lock. */
#define PAGES_AT_A_TIME (1 << 20)

/*
 * What holds a page back is mostly gone soon: an access of the guest or of a
 * device.  Up to 60 ms were seen on a busy host.
 */
static const GuestMemfdPatience one_second = { .timeout = 1000000 };

#define MIN_DELAY_US 50
#define MAX_DELAY_US 10000

/* Who waits in the queue looks as often whether it is interrupted. */
#define QUEUE_MS 10

/* More runs than that are converted with one call, if that can be. */
#define RUNS_AT_ONCE 64

/* After so many failures, what lies before the busy page goes first. */
#define FAILURES_BEFORE_SPLIT 3

/* GuestMemfdRun: pages [@first, @end) of a block */
typedef struct GuestMemfdRun {
    uint64_t first;
    uint64_t end;
} GuestMemfdRun;

/*
 * GuestMemfdClaim: a range of a block that one request converts
 * @pages: the range
 * @todo: a bit a page of the range; set if its state is to change
 */
typedef struct GuestMemfdClaim {
    GuestMemfd *gmem;
    GuestMemfdRun pages;
    unsigned long *todo;
} GuestMemfdClaim;

/*
 * Request: what one call of guest_memfd_convert() is about
 * @claims: @n ranges without a page in common, by block and offset
 * @patience: of the caller
 * @next: who came later
 */
typedef struct Request {
    GuestMemfdClaim *claims;
    unsigned n;
    bool to_private;
    const GuestMemfdPatience *patience;
    QTAILQ_ENTRY(Request) next;
} Request;

/* Requests in the order in which they came, and a signal when one leaves. */
static QTAILQ_HEAD(, Request) queue = QTAILQ_HEAD_INITIALIZER(queue);
static QemuMutex queue_lock;
static QemuCond left_queue;

static uint64_t conversions;

/*
 * Patience: how long to wait for pages that somebody holds
 * @limit: of the request
 * @deadline: when to give up, in microseconds; 0 if nothing failed yet
 * @delay: to wait next time, in microseconds
 * @failures: so far
 *
 * Deadline and delay begin anew when some page has been converted: what counts
 * is that nothing goes on.
 */
typedef struct Patience {
    const GuestMemfdPatience *limit;
    int64_t deadline;
    unsigned delay;
    unsigned failures;
} Patience;

static void __attribute__((constructor)) init_queue(void)
{
    qemu_mutex_init(&queue_lock);
    qemu_cond_init(&left_queue);
}

void guest_memfd_state_init(GuestMemfd *gmem, bool can_be_private)
{
    GuestMemfdState *s = &gmem->state;

    qemu_mutex_init(&s->lock);
    qemu_spin_init(&s->access_lock);
    s->pages = gmem->rb->max_length / qemu_real_host_page_size();
    if (can_be_private) {
        s->private = bitmap_new(s->pages);
        s->shown = bitmap_new(s->pages);
        bitmap_set(s->shown, 0, s->pages);
    }
}

void guest_memfd_state_destroy(GuestMemfd *gmem)
{
    GuestMemfdState *s = &gmem->state;

    g_free(s->private);
    g_free(s->shown);
    qemu_spin_destroy(&s->access_lock);
    qemu_mutex_destroy(&s->lock);
}

void guest_memfd_state_clear(GuestMemfd *gmem)
{
    GuestMemfdState *s = &gmem->state;

    if (s->shown) {
        QEMU_LOCK_GUARD(&s->lock);
        bitmap_test_and_clear_atomic(s->shown, 0, s->pages);
    }
}

void guest_memfd_state_reset(GuestMemfd *gmem)
{
    GuestMemfdState *s = &gmem->state;

    if (!s->private) {
        return;
    }
    QEMU_LOCK_GUARD(&s->lock);
    bitmap_zero(s->private, s->pages);
    s->private_pages = 0;
    s->to_private = s->to_shared = 0;
    s->busy = s->busy_page = 0;
    s->complained = false;
    qatomic_set(&s->denied, 0);
    s->launching = guest_memfd_is_launching();
    bitmap_set_atomic(s->shown, 0, s->pages);
}

bool guest_memfd_any_private(GuestMemfd *gmem, uint64_t offset, uint64_t size)
{
    GuestMemfdState *s = &gmem->state;
    const uint64_t page_size = qemu_real_host_page_size();
    uint64_t page = offset / page_size;
    uint64_t end;

    if (!s->private || !size || page >= s->pages) {
        return false;
    }
    end = size - 1 > UINT64_MAX - offset
          ? s->pages : MIN(s->pages, (offset + (size - 1)) / page_size + 1);

    while (page < end) {
        uint64_t stop = MIN(end, page + PAGES_AT_A_TIME);

        QEMU_LOCK_GUARD(&s->lock);
        if (find_next_bit(s->private, stop, page) < stop) {
            return true;
        }
        page = stop;
    }
    return false;
}

uint64_t guest_memfd_private_runs(GuestMemfd *gmem)
{
    GuestMemfdState *s = &gmem->state;
    const uint64_t words = s->private ? BITS_TO_LONGS(s->pages) : 0;
    unsigned long before = 0;
    uint64_t runs = 0, i = 0;

    while (i < words) {
        uint64_t stop = MIN(words, i + BITS_TO_LONGS(PAGES_AT_A_TIME));

        QEMU_LOCK_GUARD(&s->lock);
        for (; i < stop; i++) {
            unsigned long word = s->private[i];

            /* A run starts where the page before is shared. */
            runs += ctpopl(word & ~(word << 1 | before));
            before = word >> (BITS_PER_LONG - 1);
        }
    }
    return runs;
}

uint64_t guest_memfd_conversions(void)
{
    return qatomic_read(&conversions);
}

/* The kernel has changed these pages. */
static void set_state(GuestMemfd *gmem, GuestMemfdRun run, bool private)
{
    GuestMemfdState *s = &gmem->state;
    uint64_t count = run.end - run.first;

    qatomic_inc(&conversions);
    QEMU_LOCK_GUARD(&s->lock);
    if (private) {
        bitmap_set(s->private, run.first, count);
        s->private_pages += count;
        s->to_private += count;
    } else {
        bitmap_clear(s->private, run.first, count);
        s->private_pages -= count;
        s->to_shared += count;
    }
}

/*
 * The next run behind @run of pages that the request is about and that are
 * @private now.  A run of no pages at the start of the range finds the first.
 */
static bool next_run(const GuestMemfdClaim *c, bool private,
                     GuestMemfdRun *run)
{
    const uint64_t start = c->pages.first;
    const uint64_t pages = c->pages.end - start;
    GuestMemfdState *s = &c->gmem->state;
    uint64_t page = run->end - start;

    for (;;) {
        uint64_t first, end;

        page = find_next_bit(c->todo, pages, page);
        if (page >= pages) {
            return false;
        }
        first = start + page;
        page = find_next_zero_bit(c->todo, pages, page);
        end = start + page;

        QEMU_LOCK_GUARD(&s->lock);
        if (private) {
            first = find_next_bit(s->private, end, first);
            end = find_next_zero_bit(s->private, end, first);
        } else {
            first = find_next_zero_bit(s->private, end, first);
            end = find_next_bit(s->private, end, first);
        }
        if (first < end) {
            *run = (GuestMemfdRun) { first, end };
            return true;
        }
    }
}

/*
 * TodoIter: goes through the runs of a request
 * @c: the claim that @run is in; NULL at first
 * @run: found last
 */
typedef struct TodoIter {
    GuestMemfdClaim *c;
    GuestMemfdRun run;
} TodoIter;

/*
 * Find the next run, in the order of the claims, of pages that the request is
 * about and that are @private now.  Returns false behind the last one.  There
 * is a claim, or nothing would be to do.
 */
static bool next_todo(const Request *r, bool private, TodoIter *it)
{
    if (!it->c) {
        it->c = r->claims;
        it->run.end = it->c->pages.first;
    }
    while (!next_run(it->c, private, &it->run)) {
        it->c++;
        if (it->c == r->claims + r->n) {
            return false;
        }
        it->run.end = it->c->pages.first;
    }
    return true;
}

static bool is_interrupted(const GuestMemfdPatience *patience)
{
    return patience->interrupted && patience->interrupted();
}

/*
 * Waits.  Returns 0; or what the request fails with: @error if that is final,
 * or else -EAGAIN if patience is at its end, -EINTR if it was interrupted.
 */
static int try_again(Patience *patience, int error)
{
    int64_t now;

    if (error != -EAGAIN && error != -EINTR) {
        return error;
    }
    if (is_interrupted(patience->limit)) {
        return -EINTR;
    }
    now = g_get_monotonic_time();
    if (!patience->deadline) {
        patience->deadline = now + patience->limit->timeout;
    }
    /* A call may take longer than that; then what is free has to go first. */
    if (now >= patience->deadline &&
        patience->failures >= FAILURES_BEFORE_SPLIT) {
        return -EAGAIN;
    }
    patience->failures++;
    if (error == -EAGAIN) {
        g_usleep(MAX(0, MIN(patience->delay, patience->deadline - now)));
        patience->delay = MIN(2 * patience->delay, MAX_DELAY_US);
    }
    return 0;
}

/*
 * Have the kernel convert a run.  Returns 0 or -errno; then a part of it from
 * the start on may have been converted.
 */
static int change_run(GuestMemfd *gmem, GuestMemfdRun run, bool private,
                      Patience *patience)
{
    const uint64_t page_size = qemu_real_host_page_size();
    GuestMemfdRun part = run;

    while (part.first < run.end) {
        uint64_t busy = 0;
        int ret = kvm_guest_memfd_set_private(gmem->rb->fd,
                                              part.first * page_size,
                                              (part.end - part.first) *
                                              page_size, private, &busy);

        if (!ret) {
            set_state(gmem, part, private);
            part = (GuestMemfdRun) { part.end, run.end };
            patience->deadline = 0;
            patience->delay = MIN_DELAY_US;
            continue;
        }
        if (ret == -EAGAIN) {
            WITH_QEMU_LOCK_GUARD(&gmem->state.lock) {
                gmem->state.busy++;
                gmem->state.busy_page = busy / page_size;
            }
        }
        ret = try_again(patience, ret);
        if (ret) {
            return ret;
        }
        busy /= page_size;
        if (patience->failures >= FAILURES_BEFORE_SPLIT &&
            busy > part.first && busy < part.end) {
            part.end = busy;
        }
    }
    return 0;
}

/* From the first run of a claim that is to do to the last; pages in @runs */
static GuestMemfdRun span_of(const GuestMemfdClaim *c, bool private,
                             unsigned *runs)
{
    GuestMemfdRun run = { .end = c->pages.first };
    GuestMemfdRun span = {};

    *runs = 0;
    while (*runs <= RUNS_AT_ONCE && next_run(c, private, &run)) {
        span.first = *runs ? span.first : run.first;
        ++*runs;
    }
    span.end = c->pages.end;
    return span;
}

/*
 * A guest can have every other page private, and a call for each run of these
 * would keep its vCPU, and who wants that to stop, for long.  One call does
 * for all of a claim, if no page is busy.
 */
static void change_many_runs(Request *r)
{
    const uint64_t page_size = qemu_real_host_page_size();
    unsigned i;

    for (i = 0; i < r->n; i++) {
        GuestMemfdClaim *c = &r->claims[i];
        GuestMemfdRun run = { .end = c->pages.first };
        uint64_t busy;
        unsigned runs;
        GuestMemfdRun span = span_of(c, !r->to_private, &runs);

        if (runs <= RUNS_AT_ONCE ||
            kvm_guest_memfd_set_private(c->gmem->rb->fd,
                                        span.first * page_size,
                                        (span.end - span.first) * page_size,
                                        r->to_private, &busy)) {
            continue;
        }
        while (next_run(c, !r->to_private, &run)) {
            set_state(c->gmem, run, r->to_private);
        }
    }
}

/* Convert what is to do, up to the first error. */
static int change_all(Request *r)
{
    Patience patience = { .limit = r->patience, .delay = MIN_DELAY_US };
    TodoIter it = { NULL };
    int ret = 0;

    change_many_runs(r);
    while (!ret && next_todo(r, !r->to_private, &it)) {
        ret = change_run(it.c->gmem, it.run, r->to_private, &patience);
    }
    return ret;
}

/* A guest may be able to have conversions fail: it must not fill the log. */
static bool may_complain(GuestMemfd *gmem)
{
    GuestMemfdState *s = &gmem->state;
    bool first;

    QEMU_LOCK_GUARD(&s->lock);
    first = !s->complained;
    s->complained = true;
    return first;
}

/*
 * Convert back what was converted.  If the kernel refuses, the state stays
 * what it really is.
 */
static void change_back(Request *r)
{
    Patience patience = { .limit = &one_second, .delay = MIN_DELAY_US };
    TodoIter it = { NULL };

    while (next_todo(r, r->to_private, &it)) {
        GuestMemfd *gmem = it.c->gmem;
        int ret = change_run(gmem, it.run, !r->to_private, &patience);

        if (!ret) {
            continue;
        }
        trace_guest_memfd_convert_stuck(gmem->inode, it.run.first, it.run.end,
                                        r->to_private, ret);
        if (may_complain(gmem)) {
            error_report("guest_memfd '%s': a failed conversion of pages 0x%"
                         PRIx64 " to 0x%" PRIx64 " to %s cannot be undone: %s",
                         memory_region_name(gmem->rb->mr), it.run.first,
                         it.run.end - 1,
                         r->to_private ? "private" : "shared",
                         strerror(-ret));
        }
    }
}

/* From now on nobody but the guest has any business there. */
static void hide(GuestMemfd *gmem, GuestMemfdRun run)
{
    bitmap_test_and_clear_atomic(gmem->state.shown, run.first,
                                 run.end - run.first);
}

/* Devices find the page, and not what covers it, from when the bit is set. */
static void show(GuestMemfd *gmem, GuestMemfdRun run)
{
    GuestMemfdState *s = &gmem->state;

    qemu_spin_lock(&s->access_lock);
    if (s->covered_pages) {
        guest_memfd_uncover(gmem, run.first, run.end);
    }
    bitmap_set_atomic(s->shown, run.first, run.end - run.first);
    qemu_spin_unlock(&s->access_lock);
}

void guest_memfd_tell_listeners(GuestMemfd *gmem)
{
    QEMU_LOCK_GUARD(&gmem->state.lock);
    gmem->state.launching = false;
}

/* Change the bits of a run if there is nobody to be told of it. */
static bool change_untold(GuestMemfd *gmem, GuestMemfdRun run,
                          void (*change)(GuestMemfd *, GuestMemfdRun))
{
    GuestMemfdState *s = &gmem->state;

    QEMU_LOCK_GUARD(&s->lock);
    if (!s->launching && guest_memfd_has_listeners(gmem)) {
        return false;
    }
    change(gmem, run);
    return true;
}

/* The same with the BQL held, and listeners will be told. */
static void change_told(GuestMemfd *gmem, GuestMemfdRun run,
                        void (*change)(GuestMemfd *, GuestMemfdRun))
{
    QEMU_LOCK_GUARD(&gmem->state.lock);
    change(gmem, run);
}

static void discard_run(GuestMemfd *gmem, GuestMemfdRun run)
{
    const uint64_t page_size = qemu_real_host_page_size();

    if (change_untold(gmem, run, hide)) {
        return;
    }
    BQL_LOCK_GUARD();
    change_told(gmem, run, hide);
    guest_memfd_notify_discard(gmem, run.first * page_size,
                               (run.end - run.first) * page_size);
}

/*
 * Returns 0; or the error of a listener.  Then no listener has the run, and it
 * is hidden again unless it has to be shown all the same.
 */
static int populate_run(GuestMemfd *gmem, GuestMemfdRun run, bool keep)
{
    const uint64_t page_size = qemu_real_host_page_size();
    int ret;

    if (change_untold(gmem, run, show)) {
        return 0;
    }
    BQL_LOCK_GUARD();
    change_told(gmem, run, show);
    ret = guest_memfd_notify_populate(gmem, run.first * page_size,
                                      (run.end - run.first) * page_size);
    if (ret && !keep) {
        change_told(gmem, run, hide);
    }
    return ret;
}

/*
 * Shared pages of the request will go.
 * @until: stop at this run; NULL for all of the request
 */
static void discard_all(Request *r, const TodoIter *until)
{
    TodoIter it = { NULL };

    while (next_todo(r, false, &it)) {
        if (until && it.c == until->c && it.run.first == until->run.first) {
            return;
        }
        discard_run(it.c->gmem, it.run);
    }
}

/* Returns 0; or the error of a listener, and then none has any page of it. */
static int populate_all(Request *r)
{
    TodoIter it = { NULL };

    while (next_todo(r, false, &it)) {
        int ret = populate_run(it.c->gmem, it.run, false);

        if (ret) {
            discard_all(r, &it);
            return ret;
        }
    }
    return 0;
}

/* What is shared in spite of all is told to everybody, whoever fails. */
static void populate_again(Request *r)
{
    TodoIter it = { NULL };

    while (next_todo(r, false, &it)) {
        GuestMemfd *gmem = it.c->gmem;
        int ret = populate_run(gmem, it.run, true);

        if (ret) {
            trace_guest_memfd_convert_unmapped(gmem->inode, it.run.first,
                                               it.run.end, ret);
        }
        if (ret && may_complain(gmem)) {
            error_report("guest_memfd '%s': pages 0x%" PRIx64 " to 0x%"
                         PRIx64 " are shared again, but a device cannot "
                         "map them: %s",
                         memory_region_name(gmem->rb->mr), it.run.first,
                         it.run.end - 1, strerror(-ret));
        }
    }
}

static void undo(Request *r)
{
    change_back(r);
    populate_again(r);
}

static int make_private(Request *r)
{
    int ret;

    discard_all(r, NULL);
    ret = change_all(r);
    if (ret) {
        undo(r);
    }
    return ret;
}

static int make_shared(Request *r)
{
    int ret = change_all(r) ?: populate_all(r);

    if (ret) {
        undo(r);
    }
    return ret;
}

static int compare_claims(const void *a, const void *b)
{
    const GuestMemfdClaim *x = a, *y = b;

    if (x->gmem != y->gmem) {
        return (uintptr_t)x->gmem < (uintptr_t)y->gmem ? -1 : 1;
    }
    return x->pages.first < y->pages.first ? -1
         : x->pages.first > y->pages.first;
}

/* Have two requests a page in common?  Their claims are in the same order. */
static bool overlap(const Request *a, const Request *b)
{
    unsigned i = 0, j = 0;

    while (i < a->n && j < b->n) {
        const GuestMemfdClaim *x = &a->claims[i], *y = &b->claims[j];

        if (x->gmem == y->gmem && x->pages.first < y->pages.end &&
            y->pages.first < x->pages.end) {
            return true;
        }
        if (compare_claims(x, y) < 0) {
            i++;
        } else {
            j++;
        }
    }
    return false;
}

static bool must_wait(const Request *r)
{
    const Request *before;

    for (before = QTAILQ_FIRST(&queue); before != r;
         before = QTAILQ_NEXT(before, next)) {
        if (overlap(before, r)) {
            return true;
        }
    }
    return false;
}

static void leave(Request *r)
{
    QEMU_LOCK_GUARD(&queue_lock);
    QTAILQ_REMOVE(&queue, r, next);
    qemu_cond_broadcast(&left_queue);
}

/*
 * Queue up, and wait for one's turn without the BQL.
 * Returns 0; or -EINTR, and has left again.
 */
static int queue_up(Request *r)
{
    bool had_bql = bql_locked();
    bool wait, interrupted = false;

    WITH_QEMU_LOCK_GUARD(&queue_lock) {
        QTAILQ_INSERT_TAIL(&queue, r, next);
        wait = must_wait(r);
    }
    if (!wait) {
        return 0;
    }

    trace_guest_memfd_convert_wait(r->claims->gmem->inode,
                                   r->claims->pages.first,
                                   r->claims->pages.end);
    if (had_bql) {
        bql_unlock();
    }
    WITH_QEMU_LOCK_GUARD(&queue_lock) {
        while (must_wait(r) && !interrupted) {
            qemu_cond_timedwait(&left_queue, &queue_lock, QUEUE_MS);
            interrupted = is_interrupted(r->patience);
        }
    }
    if (had_bql) {
        bql_lock();
    }
    if (interrupted) {
        leave(r);
        return -EINTR;
    }
    return 0;
}

/*
 * Which pages have to change?  It takes a bit for each page of what is
 * claimed; there are no more claims than there are pages.
 * Returns 0 or -errno; sets @any if there are some.
 */
static int find_todo(Request *r, bool *any)
{
    unsigned i;

    *any = false;
    for (i = 0; i < r->n; i++) {
        GuestMemfdClaim *c = &r->claims[i];
        GuestMemfdState *s = &c->gmem->state;
        uint64_t pages = c->pages.end - c->pages.first;
        uint64_t page, count;

        c->todo = bitmap_try_new(pages);
        if (!c->todo) {
            return -ENOMEM;
        }
        for (page = 0; page < pages; page += count) {
            count = MIN(pages - page, PAGES_AT_A_TIME);
            QEMU_LOCK_GUARD(&s->lock);
            bitmap_copy_with_src_offset(c->todo + BIT_WORD(page), s->private,
                                        c->pages.first + page, count);
        }
        if (r->to_private) {
            bitmap_complement(c->todo, c->todo, pages);
        }
        *any |= !bitmap_empty(c->todo, pages);
    }
    return 0;
}

/* Sort the claims, and merge those that overlap or meet. */
static void normalise(Request *r)
{
    unsigned i, n = 0;

    qsort(r->claims, r->n, sizeof(*r->claims), compare_claims);
    for (i = 0; i < r->n; i++) {
        GuestMemfdClaim *c = &r->claims[i];
        GuestMemfdClaim *last = n ? &r->claims[n - 1] : NULL;

        if (last && last->gmem == c->gmem &&
            last->pages.end >= c->pages.first) {
            last->pages.end = MAX(last->pages.end, c->pages.end);
        } else {
            r->claims[n++] = *c;
        }
    }
    r->n = n;
}

/* Returns 0; or -EINVAL if a range is none, or cannot be private. */
static int add_range(Request *r, const GuestMemfdRange *range)
{
    const uint64_t page_size = qemu_real_host_page_size();
    const GuestMemfdState *s = &range->gmem->state;
    uint64_t first = range->offset / page_size;
    uint64_t count = range->size / page_size;

    if (!s->private) {
        return r->to_private ? -EINVAL : 0;
    }
    if (range->offset % page_size || range->size % page_size ||
        first > s->pages || count > s->pages - first) {
        return -EINVAL;
    }
    if (count) {
        r->claims[r->n++] = (GuestMemfdClaim) {
            .gmem = range->gmem,
            .pages = { first, first + count },
        };
    }
    return 0;
}

static int convert(const GuestMemfdRange *ranges, unsigned n, bool to_private,
                   const GuestMemfdPatience *patience)
{
    g_autofree GuestMemfdClaim *claims = g_new0(GuestMemfdClaim, n);
    Request r = {
        .claims = claims,
        .to_private = to_private,
        .patience = patience,
    };
    unsigned i;
    bool any;
    int ret;

    for (i = 0; i < n; i++) {
        ret = add_range(&r, &ranges[i]);
        if (ret) {
            return ret;
        }
    }
    if (!r.n) {
        return 0;
    }
    normalise(&r);

    ret = queue_up(&r);
    if (ret) {
        return ret;
    }
    ret = find_todo(&r, &any);
    if (!ret && any) {
        ret = to_private ? make_private(&r) : make_shared(&r);
    }
    leave(&r);
    trace_guest_memfd_convert(r.n, to_private, any, ret);

    for (i = 0; i < r.n; i++) {
        g_free(r.claims[i].todo);
    }
    return ret;
}

int guest_memfd_convert(const GuestMemfdRange *ranges, unsigned n,
                        bool to_private)
{
    return convert(ranges, n, to_private, &one_second);
}

/*
 * GpaRange: a part of a range of guest physical addresses
 * @range: what it is in a block; without @range.gmem if that is no block of
 *         ours, but has private memory beside its own
 * @gpa: bytes
 */
typedef struct GpaRange {
    GuestMemfdRange range;
    RAMBlock *rb;
    hwaddr gpa;
} GpaRange;

/*
 * GpaRequest: a range of guest physical addresses
 * @next, @end: what is not yet resolved; bytes
 * @gap: something in there has no state
 * @ranges: what has one, of type GpaRange
 * @view: keeps its regions alive, and these their blocks
 */
typedef struct GpaRequest {
    hwaddr next;
    hwaddr end;
    bool gap;
    GArray *ranges;
    FlatView *view;
} GpaRequest;

static bool has_state(const RAMBlock *rb)
{
    return rb && (guest_memfd_in_place() ? rb->gmem && rb->gmem->state.private
                                         : rb->guest_memfd >= 0);
}

/*
 * A flatview_cb.  KVM has memory at whole pages only; what is left at the
 * edges of a region counts as none.
 */
static bool resolve(Int128 start, Int128 len, const MemoryRegion *mr,
                    hwaddr offset, void *opaque)
{
    GpaRequest *g = opaque;
    const uint64_t page_size = qemu_real_host_page_size();
    hwaddr region = int128_get64(start);
    hwaddr first, end;

    if (region >= g->end) {
        return true;
    }
    end = int128_get64(int128_min(int128_add(start, len),
                                  int128_make64(g->end)));
    first = ROUND_UP(MAX(region, g->next), page_size);
    end = ROUND_DOWN(end, page_size);
    offset += first - region;
    if (first < end && offset % page_size == 0 && has_state(mr->ram_block)) {
        GpaRange part = {
            .range = { mr->ram_block->gmem, offset, end - first },
            .rb = mr->ram_block,
            .gpa = first,
        };

        g->gap |= first > g->next;
        g->next = end;
        g_array_append_val(g->ranges, part);
    }
    return false;
}

static void forget(GpaRequest *g)
{
    g_array_free(g->ranges, true);
    flatview_unref(g->view);
}

/* Resolve the whole range.  Returns 0, and @g is to be forgotten; or -EINVAL */
static int resolve_all(GpaRequest *g, hwaddr gpa, hwaddr size, bool private)
{
    const uint64_t page_size = qemu_real_host_page_size();

    if (!size || gpa % page_size || size % page_size || gpa + size < gpa) {
        return -EINVAL;
    }

    *g = (GpaRequest) { .next = gpa, .end = gpa + size };
    g->view = address_space_get_flatview(&address_space_memory);
    g->ranges = g_array_new(false, false, sizeof(GpaRange));
    flatview_for_each_range(g->view, resolve, g);
    g->gap |= g->next < g->end;

    if (g->gap && private) {
        forget(g);
        return -EINVAL;
    }
    return 0;
}

static int convert_in_place(const GpaRequest *g, bool to_private,
                            const GuestMemfdPatience *patience)
{
    g_autofree GuestMemfdRange *ranges = g_new(GuestMemfdRange, g->ranges->len);
    unsigned i;

    /* Memory that is unplugged meanwhile is converted like any other. */
    for (i = 0; i < g->ranges->len; i++) {
        ranges[i] = g_array_index(g->ranges, GpaRange, i).range;
    }
    return convert(ranges, i, to_private, patience ?: &one_second);
}

/* Pages of a part whose state is to change, a bit each; NULL: no memory. */
static unsigned long *separate_todo(const GpaRange *part, bool to_private)
{
    const uint64_t page_size = qemu_real_host_page_size();
    uint64_t pages = part->range.size / page_size;
    unsigned long *todo = bitmap_try_new(pages);

    if (todo) {
        bitmap_copy_with_src_offset(todo, part->rb->attributes->bitmap,
                                    part->range.offset / page_size, pages);
        if (!to_private) {
            bitmap_complement(todo, todo, pages);
        }
    }
    return todo;
}

/* Convert these pages, which may not all have been converted before. */
static void convert_back_separate(const GpaRange *part,
                                  const unsigned long *todo, bool to_private)
{
    const uint64_t page_size = qemu_real_host_page_size();
    uint64_t pages = part->range.size / page_size;
    uint64_t first, end;

    for (first = find_first_bit(todo, pages); first < pages;
         first = find_next_bit(todo, pages, end)) {
        end = find_next_zero_bit(todo, pages, first);
        kvm_convert_memory(part->gpa + first * page_size,
                           (end - first) * page_size, to_private);
    }
}

/*
 * Private memory is separate: QEMU converts, and discards what is not needed
 * any more.  It looks at one region at a time, and at nobody else who may be
 * doing the same; listeners want the BQL, too.
 */
static int convert_separate(const GpaRequest *g, bool to_private)
{
    const GpaRange *parts = (const GpaRange *)g->ranges->data;
    g_autofree unsigned long **todo = g_new0(unsigned long *, g->ranges->len);
    unsigned i, n = 0;
    int ret = 0;

    BQL_LOCK_GUARD();
    while (n < g->ranges->len && !ret) {
        todo[n] = separate_todo(&parts[n], to_private);
        if (!todo[n]) {
            ret = -ENOMEM;
            break;
        }
        ret = kvm_convert_memory(parts[n].gpa, parts[n].range.size,
                                 to_private);
        qatomic_inc(&conversions);
        n++;
    }
    /* The last may have got half-way. */
    for (i = n; i-- > 0; ) {
        if (ret) {
            convert_back_separate(&parts[i], todo[i], !to_private);
        }
        g_free(todo[i]);
    }
    return ret;
}

int guest_memfd_convert_gpa(hwaddr gpa, hwaddr size, bool to_private,
                            const GuestMemfdPatience *patience)
{
    GpaRequest g;
    unsigned n = 0;
    int ret = resolve_all(&g, gpa, size, to_private);

    if (!ret) {
        n = g.ranges->len;
        ret = guest_memfd_in_place()
              ? convert_in_place(&g, to_private, patience)
              : convert_separate(&g, to_private);
        forget(&g);
    }
    trace_guest_memfd_convert_gpa(gpa, size, to_private, n, ret);
    return ret;
}

static bool differs(const GpaRange *part, bool private)
{
    const uint64_t page_size = qemu_real_host_page_size();
    GuestMemfd *gmem = part->range.gmem;
    uint64_t page = part->range.offset / page_size;
    uint64_t end = page + part->range.size / page_size;

    if (!gmem) {
        const unsigned long *shared = part->rb->attributes->bitmap;

        BQL_LOCK_GUARD();
        return (private ? find_next_bit(shared, end, page)
                        : find_next_zero_bit(shared, end, page)) < end;
    }
    while (page < end) {
        uint64_t stop = MIN(end, page + PAGES_AT_A_TIME);

        QEMU_LOCK_GUARD(&gmem->state.lock);
        if ((private ? find_next_zero_bit(gmem->state.private, stop, page)
                     : find_next_bit(gmem->state.private, stop, page)) <
            stop) {
            return true;
        }
        page = stop;
    }
    return false;
}

int guest_memfd_gpa_differs(hwaddr gpa, hwaddr size, bool private)
{
    GpaRequest g;
    unsigned i;
    int ret = resolve_all(&g, gpa, size, private);

    if (!ret) {
        for (i = 0; i < g.ranges->len && !ret; i++) {
            ret = differs(&g_array_index(g.ranges, GpaRange, i), private);
        }
        forget(&g);
    }
    return ret;
}

char *guest_memfd_busy_page(hwaddr gpa, hwaddr size)
{
    const uint64_t page_size = qemu_real_host_page_size();
    char *text = NULL;
    GpaRequest g;
    unsigned i;

    if (!guest_memfd_in_place() || resolve_all(&g, gpa, size, true) < 0) {
        return NULL;
    }
    for (i = 0; i < g.ranges->len && !text; i++) {
        GuestMemfdRange *r = &g_array_index(g.ranges, GpaRange, i).range;
        uint64_t offset;

        WITH_QEMU_LOCK_GUARD(&r->gmem->state.lock) {
            offset = r->gmem->state.busy_page * page_size;
        }
        if (offset - r->offset < r->size) {
            text = g_strdup_printf("page at offset 0x%" PRIx64 " of '%s'",
                                   offset,
                                   memory_region_name(r->gmem->rb->mr));
        }
    }
    forget(&g);
    return text;
}
